"""Flows of this package beside what a user would take instead: time of a step, and time to a likelihood.

    python -m venv torch_env && torch_env/bin/pip install torch zuko normflows
    python examples/benchmarks/side_by_side.py steps --torch torch_env/bin/python --csv FILE
    python examples/benchmarks/side_by_side.py fits --torch torch_env/bin/python --csv FILE
    python examples/benchmarks/side_by_side.py table --csv FILE

TensorFlow and PyTorch run in a process and an environment each, both with one thread. The processes take
turns: first each flow has its first repeat, then each its second one. Without `--torch` only the flows of
TensorFlow run. Rows that are in the file are not computed again. All times are seconds of the processor.

`steps`: whole steps with Adam on batches of 100 normal events.

`fits`: scikit-learn's digits, 64 pixels, with new noise in each pass. All flows see the same standardised
logits, in batches of 100. Every 120 steps the exact validation NLL is taken, in nats of pixels. A training
ends at the target, or when its seconds are over; the validations do not count, compiling does. A flow that
missed the target has no further seeds. The flows of a family have the same rate, which stays, and the same
target. The paper's layers are here a dense layer with the inverse R learned by gradients. "TFP, solves" has
the factors of the map to data, as `TransformedDistribution` wants it; "TFP, products" of the other map.

References: Keller et al., ICML 2021; Draxler et al., "Free-form flows", AISTATS 2024.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from rules import Rows

FOLDER = pathlib.Path(__file__).parent
COLUMNS = ("part", "family", "case", "size", "seed", "step_cpu_ms", "target", "reached_cpu_s", "steps")
COLUMNS += ("val_nll", "cpu_s", "date")
KEYS = ("part", "case", "size", "seed")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# The dimensions of the digits.
DIGITS = 64


@dataclasses.dataclass(frozen=True)
class Family:
    """Flows that compare: the rate, the bound of the gradient's norm, the target, the sizes of steps."""

    rate: float
    clip: float | None
    target: float
    sizes: tuple[int, ...] = (DIGITS,)


FAMILIES = {
    "dense": Family(1e-3, None, 100.0, (DIGITS, 784)),
    "splines": Family(1e-3, None, 95.0),
    "Glow": Family(1e-3, None, 100.0),
    "free-form": Family(3e-3, 50.0, 95.0),
}
SIDES = {"ours": "tensorflow_flows", "TFP": "tensorflow_flows"}
_DENSE = {"builder": "dense_flow"}
_FREE_FORM = {"builder": "free_form_flow", "num_layers": 1, "depth": 3, "learning": "free_form"}
_GLOW = {"num_blocks": 2, "steps_per_block": 4, "width": 64}
# Family, name, maker and options. What stands before the comma of a name is the side.
CASES = (
    ("dense", "ours, tracked", "ours", _DENSE),
    ("dense", "ours, tracked, whitened start", "ours", _DENSE | {"whitens": True}),
    ("dense", "ours, the paper's regularizer", "ours", _DENSE | {"learning": "paper"}),
    ("dense", "ours, exact gradient", "ours", _DENSE | {"learning": "none", "gradient": "exact"}),
    ("dense", "PyTorch, the paper's form by six products", "paper", {}),
    ("dense", "PyTorch, slogdet", "exact", {}),
    ("dense", "TFP, ScaleMatvecLU, solves", "scale_matvec_lu", {"solves": True}),
    ("dense", "TFP, ScaleMatvecLU, products", "scale_matvec_lu", {"solves": False}),
    ("dense", "zuko, LULinearTransform", "zuko_lu", {}),
    ("dense", "normflows, LULinearPermute", "normflows", {"kind": "LULinearPermute"}),
    ("dense", "normflows, InvertibleAffine", "normflows", {"kind": "InvertibleAffine"}),
    ("splines", "ours, autoregressive_flow", "ours", {"builder": "autoregressive_flow", "num_layers": 3}),
    ("splines", "zuko, NSF", "zuko", {"flow": "NSF", "transforms": 3, "hidden_features": [64, 64]}),
    ("Glow", "ours, glow_flow", "ours", _GLOW | {"builder": "glow_flow"}),
    ("Glow", "TFP, Glow", "glow", _GLOW),
    ("free-form", "ours, free_form_flow", "ours", _FREE_FORM),
    ("free-form", "ours, free_form_flow, whitened start", "ours", _FREE_FORM | {"whitens": True}),
    ("free-form", "PyTorch, surrogate loss with a probe", "free_form", {"exact": False}),
    ("free-form", "PyTorch, exact loss", "free_form", {"exact": True}),
)


class Process:
    """The process of a library, which answers one request at a time; see `one_side.py`."""

    def __init__(self, python, module):
        self._name, pipe = module, subprocess.PIPE
        self._process = subprocess.Popen(
            [python, FOLDER / "one_side.py", module],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=os.environ | ONE_THREAD,
        )

    def ask(self, **request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"The process of `{self._name}` ended at {request}; its error is above.")
        return json.loads(answer)

    def close(self):
        self._process.communicate()


class Sides:
    """A process for each library, started when it is needed."""

    def __init__(self, torch_python):
        self._pythons = {"tensorflow_flows": sys.executable, "torch_flows": torch_python}
        self._processes = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self._processes.values():
            process.close()

    def has(self, case):
        return self._pythons[_module(case)] is not None

    def ask(self, case, **request):
        family, _, maker, options = case
        module, rules = _module(case), FAMILIES[family]
        if module not in self._processes:
            self._processes[module] = Process(self._pythons[module], module)
        rules = {"rate": rules.rate, "clip": rules.clip}
        return self._processes[module].ask(maker=maker, options=options, rules=rules, **request)


def _module(case):
    return SIDES.get(case[1].split(",")[0], "torch_flows")


def steps(sides, rows, cases, arguments):
    """Adds a row for each case, size and repeat."""
    for size in (DIGITS, 784):
        for repeat in range(1, arguments.repeats + 1):
            # A whitened start changes nothing in a step.
            for case in [case for case in cases if "whitens" not in case[3]]:
                if size in FAMILIES[case[0]].sizes and not has_row(rows, "steps", case, size, repeat):
                    answer = sides.ask(case, task="steps", size=size, seconds=arguments.seconds)
                    add_row(rows, "steps", case, size, repeat, answer)


def fits(sides, rows, cases, arguments):
    """Adds a row for each case and seed, but for the seeds after one that missed the target."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "digits.npz"
        write_digits(path)
        for seed in range(1, arguments.repeats + 1):
            for case in cases:
                missed = any(row["reached_cpu_s"] == "" for row in rows_of(rows.rows, "fits", case[1]))
                if missed or has_row(rows, "fits", case, DIGITS, seed):
                    continue
                target = FAMILIES[case[0]].target if arguments.target is None else arguments.target
                request = {"path": str(path), "seed": seed, "target": target, "limit": arguments.limit}
                answer = sides.ask(case, task="fit", **request)
                add_row(rows, "fits", case, DIGITS, seed, {"target": target} | answer)


def write_digits(path):
    """The splits of `data_sets.py`, for both environments."""
    import numpy as np
    from shared import load

    data = load("digits")
    parts = {name: getattr(data, name).reshape(-1, DIGITS) for name in ("train", "validation")}
    np.savez(path, num_levels=data.num_levels, **parts)


def has_row(rows, part, case, size, seed):
    return rows.has(part=part, case=case[1], size=size, seed=seed)


def add_row(rows, part, case, size, seed, answer):
    own = {"part": part, "family": case[0], "case": case[1], "size": size, "seed": seed}
    own["date"] = datetime.date.today().isoformat()
    row = {name: (own | answer).get(name) for name in COLUMNS}
    rows.add({name: "" if value is None else value for name, value in row.items()})
    print(rows.rows[-1], flush=True)


def rows_of(rows, part, name):
    return [row for row in rows if (row["part"], row["case"]) == (part, name)]


def table(rows):
    print("| family | flow | ms, D = 64 | ms, D = 784 | target | steps | CPU seconds |\n" + "|---" * 7 + "|")
    for family, name, *_ in CASES:
        timed, fitted = (rows_of(rows, part, name) for part in ("steps", "fits"))
        if not timed + fitted:
            continue
        cells = [
            _median([row["step_cpu_ms"] for row in timed if row["size"] == str(size)])
            for size in (DIGITS, 784)
        ]
        print(f"| {family} | {name} |", " | ".join(cells + _fit_cells(fitted)), "|")


def _fit_cells(rows):
    """The target, the steps to it and the seconds; where it was missed, the best NLL and the limit."""
    if not rows:
        return ["–"] * 3
    target, missed = f"{float(rows[0]['target']):g}", [row for row in rows if not row["reached_cpu_s"]]
    if missed:
        best, seconds = (float(missed[0][name]) for name in ("val_nll", "cpu_s"))
        return [target, "–", f"{best:.1f} after {seconds:.0f}"]
    return [target, *(_median([row[name] for row in rows]) for name in ("steps", "reached_cpu_s"))]


def _median(values):
    if not values:
        return "–"
    median = statistics.median(map(float, values))
    return f"{median:.0f}" if median >= 100 else f"{median:.3g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("steps", "fits", "table"))
    parser.add_argument("--csv", required=True, help="the file of the figures; rows are added to it")
    parser.add_argument("--torch", help="the Python of an environment with PyTorch, zuko and normflows")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of a time, seeds of a training")
    parser.add_argument("--seconds", type=float, default=1.0, help="of the steps of one turn")
    parser.add_argument("--target", type=float, help="nats of validation; by default each family has its own")
    parser.add_argument("--limit", type=float, default=90.0, help="CPU seconds of a training")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    arguments = parser.parse_args()
    rows = Rows(arguments.csv, KEYS)
    if arguments.what != "table":
        with Sides(arguments.torch) as sides:
            cases = [case for case in CASES if case[0] in arguments.families and sides.has(case)]
            {"steps": steps, "fits": fits}[arguments.what](sides, rows, cases, arguments)
    table(rows.rows)


if __name__ == "__main__":
    main()
