"""Puts runs of `train.py` side by side: a table, a picture of their learning curves, and the raw figures.

    python examples/experiments/compare.py "tracked=runs/tracked_*" "exact=runs/exact_*" --output compared

Each argument is a label and a pattern of folders: runs that differ in nothing but the seed. The test NLL
is exact, in nats an example, under the weights of the epoch that was best on the validation examples: mean
and standard deviation over the seeds. Seconds are those of training, without validation. Writes `results.csv`
(a row a run), `curves.csv` (a row an epoch) and `curves.png`.
"""

import argparse
import glob
import json
import pathlib

import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from raw_files import write_csv

import tfp_selfnorm as sn

COLUMNS = ("label", "seed", "epochs", "best_epoch", "test_nll", "val_nll", "seconds", "cpu_seconds", "date")
# Of images, and of learned inverses.
OPTIONAL_COLUMNS = ("test_bits_per_dim", "test_reconstruction", "jacobian_error", "adapt_seconds")


def read_runs(label, pattern):
    """The finished runs whose folders fit the pattern; each a dict with its curve and its command."""
    runs = []
    for folder in map(pathlib.Path, sorted(glob.glob(pattern))):
        if not (folder / "results.json").exists():
            print(f"{folder} holds no finished run.")
            continue
        record = json.loads((folder / "config.json").read_text())
        results = json.loads((folder / "results.json").read_text())
        curve = json.loads((folder / "metrics.json").read_text())
        record["experiment"].pop("seed")
        record["command"] = without_places(record["command"])
        runs.append({"label": label, **results, "curve": curve, **record})
    if not runs:
        raise SystemExit(f"No finished run fits {pattern!r}.")
    if any(run["experiment"] != runs[0]["experiment"] for run in runs):
        raise SystemExit(f"The runs of {pattern!r} differ in more than their seed.")
    return runs


def without_places(command):
    """The command as anyone may give it, without the folders that it named."""
    words = iter(command.split()[1:])
    kept = ["python examples/experiments/train.py"]
    for word in words:
        if word in ("--output", "--data-dir"):
            next(words)
        else:
            kept.append(word)
    return " ".join(kept)


def spread(values):
    """Mean and standard deviation as text; of one value, that."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def print_table(groups):
    print("| run | epochs | seeds | test NLL, nats | bits/dim | seconds | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for label, runs in groups.items():
        bits = [run["test_bits_per_dim"] for run in runs if "test_bits_per_dim" in run]
        figures = (
            max(run["epochs"] for run in runs),
            len(runs),
            spread([run["test_nll"] for run in runs]),
            f"{np.mean(bits):.3f}" if bits else "-",
            f"{np.mean([run['seconds'] for run in runs]):.0f}",
            f"{np.mean([run['cpu_seconds'] for run in runs]):.0f}",
        )
        print("|", " | ".join(map(str, (label, *figures))), "|")


def write_figures(groups, output):
    runs = [run for group in groups.values() for run in group]
    found = [name for name in OPTIONAL_COLUMNS if any(name in run for run in runs)]
    columns = (*COLUMNS, *found, "command")
    write_csv(output / "results.csv", [{name: run.get(name, "") for name in columns} for run in runs])
    curves = [
        {name: run[name] for name in ("label", "seed")}
        | {"epoch": row["epoch"]}
        | {name: f"{row[name]:.2f}" for name in ("nll", "val_nll", "seconds", "cpu_seconds")}
        for run in runs
        for row in run["curve"]
    ]
    write_csv(output / "curves.csv", curves)


def draw(groups, path):
    """Validation curves, the mean over the seeds, over epochs and over the seconds of computing."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis in axes:
        axis.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=sn.plot.COLORS))
    best = min(row["val_nll"] for runs in groups.values() for run in runs for row in run["curve"])
    worst = max(run["val_nll"] for runs in groups.values() for run in runs)
    for label, runs in groups.items():
        length = min(len(run["curve"]) for run in runs)
        names = ("epoch", "cpu_seconds", "val_nll")
        epochs, seconds, nll = (
            np.mean([[row[name] for row in run["curve"][:length]] for run in runs], axis=0) for name in names
        )
        axes[0].plot(epochs, nll, label=label)
        axes[1].plot(seconds, nll, label=label)
    axes[0].set(
        xlabel="epochs", ylabel="validation, nats", ylim=(best - 5, worst + 0.5 * (worst - best) + 20)
    )
    axes[1].set(xlabel="seconds of CPU time")
    for axis in axes:
        axis.grid(alpha=0.3)
        sn.plot.label_lines(axis)
    figure.savefig(path, dpi=120)


def report(patterns, output):
    """Reads the runs of each label's pattern; writes the figures and the picture, and prints the table."""
    groups = {label: read_runs(label, pattern) for label, pattern in patterns.items()}
    output.mkdir(parents=True, exist_ok=True)
    write_figures(groups, output)
    draw(groups, output / "curves.png")
    print_table(groups)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDERS")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("compared"))
    arguments = parser.parse_args()
    patterns = {}
    for argument in arguments.runs:
        label, equals, pattern = argument.partition("=")
        if not equals:
            raise SystemExit(f"Each argument is a label and a pattern, label=folders; got {argument!r}.")
        patterns[label] = pattern
    report(patterns, arguments.output)


if __name__ == "__main__":
    main()
