"""Runs a study, a named table of experiments, and puts the runs side by side.

    python examples/experiments/study.py dense --epochs 6 --seeds 1 2 3    # `--list` lists the studies

Each line of a study is a preset with changes, run by `train.py` in a process of its own for each seed. What
has finished is not run again, and what was killed goes on. The table, the picture and the raw figures are
those of `compare.py`. To run two studies at a time on two cores, give each one: `taskset -c 0 python ...`;
the seconds are then those of one core.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import compare

TRAIN = pathlib.Path(__file__).with_name("train.py")
_PAPER = "fast_selfnorm_fc_mnist"
_TRACKED, _EXACT, _RELATIVE = "tracked_fc_mnist", "fast_exact_fc_mnist", "fast_relative_fc_mnist"
# A fixed layer in front, and whitened initial values.
_WHITENED = {"flow.whitening": True, "whiten": True}
# The paper's convolutional flow, with a rate that falls to 0 over a short run.
_SHORT = {"schedule": "cosine", "warmup_epochs": None}
_FAST = {**_SHORT, "learning_rate": 3e-3}
_LEAKY = {**_FAST, "flow.activation": "smooth_leaky_relu"}
_SMALL_GLOW = {**_SHORT, "flow.steps_per_block": 4, "flow.width": 16}


def _rates(preset, rates):
    return {f"{preset}, {rate:g}": (preset, {"learning_rate": rate}) for rate in rates}


def _learning(**changes):
    return {f"inverse_learning.{name}": value for name, value in changes.items()}


def _identity(**tracking):
    """The paper's start, with some other tracking."""
    return {"whiten": False, **_learning(**tracking)}


def _dense_patches(side, rate, tracked, exact):
    """Dense flows on colour patches, for about as many seconds; a method has its epochs and their steps."""
    name = f"photo_patches/{side}"
    shared = {"dataset": name, **_WHITENED, "flow.activation": "spline", "learning_rate": rate}
    return {
        f"{label}, {side}x{side}": (preset, {**shared, "epochs": epochs, "steps_per_epoch": steps})
        for label, preset, (epochs, steps) in (
            ("tracked", _TRACKED, tracked),
            ("exact gradient", _EXACT, exact),
        )
    }


def _convolutions(changes):
    names = {
        "self_norm": "selfnorm_cnn_mnist",
        "exact": "exact_cnn_mnist",
        "emerging": "emerging_cnn_mnist",
        "exponential": "exponential_cnn_mnist",
    }
    return {label: (preset, changes) for label, preset in names.items()}


def _gradients(changes):
    """The gradients of a convolution, with data that the flow centres, and without."""
    presets = ("circulant_cnn_mnist", "exact_cnn_mnist", "selfnorm_cnn_mnist")
    probes = _learning(kind="probes", weight=10.0)
    return {
        f"{preset.split('_')[0]}, {'centred' if centering else 'as they are'}": (
            preset,
            {**changes, "flow.centering": centering, **(probes if preset == presets[2] else {})},
        )
        for centering in (True, False)
        for preset in presets
    }


STUDIES = {
    "dense": {
        "tracked, whitening": ("whitened_fc_mnist", {}),
        "exact, whitening": (_EXACT, {**_WHITENED, "learning_rate": 3e-3}),
        "paper, whitening": (_PAPER, _WHITENED),
        "paper, whitened start": (_PAPER, {"whiten": True}),
        "tracked": (_TRACKED, {}),
        "exact, whitened": (_EXACT, {"whiten": True}),
        "exact": (_EXACT, {}),
        "paper": (_PAPER, {}),
        "paper, R only": (_PAPER, {"inverse_learning.kind": "inverse_only"}),
        "relative": (_RELATIVE, {}),
    },
    "rates": {
        **_rates(_TRACKED, (5e-4, 1e-3, 2e-3, 4e-3)),
        **_rates(_EXACT, (1e-3, 2e-3, 4e-3)),
        **_rates(_PAPER, (5e-4, 1e-3, 2e-3)),
        **_rates(_RELATIVE, (5e-4, 1e-3, 2e-3)),
    },
    "tracking": {
        "8 probes, whitened": (_TRACKED, {}),
        "8 probes, whitened, never refreshed": (_TRACKED, {"inverse_learning.refresh_every": 10**9}),
        "8 probes": (_TRACKED, _identity()),
        "8 probes, never refreshed": (_TRACKED, _identity(refresh_every=10**9)),
        "8 probes, refreshed every 20": (_TRACKED, _identity(refresh_every=20)),
        "1 probe": (_TRACKED, _identity(num_probes=1)),
        "32 probes": (_TRACKED, _identity(num_probes=32)),
        "whitened, batches of 50": (_TRACKED, {"batch_size": 50}),
        "whitened, batches of 200": (_TRACKED, {"batch_size": 200}),
        "whitened, rate 5e-4": (_TRACKED, {"learning_rate": 5e-4}),
        "whitened, rate 2e-3": (_TRACKED, {"learning_rate": 2e-3}),
    },
    "regularizer": {
        "weight 1": (_PAPER, {}),
        "weight 0.1": (_PAPER, _learning(weight=0.1)),
        "weight 10": (_PAPER, _learning(weight=10.0)),
        "symmetric": (_PAPER, _learning(kind="symmetric")),
        "inverse_only": (_PAPER, _learning(kind="inverse_only")),
        "p_f alone": (_PAPER, {"flow.mixture": 1.0}),
        "probes, weight 10": (_PAPER, _learning(kind="probes", weight=10.0)),
    },
    "conv": _convolutions(_LEAKY),
    "conv_regularizer": {
        label: ("selfnorm_cnn_mnist", {**_LEAKY, **_learning(**changes)})
        for label, changes in (
            ("weight 1", {}),
            ("weight 0.1", {"weight": 0.1}),
            ("weight 10", {"weight": 10.0}),
            ("symmetric", {"kind": "symmetric"}),
            ("inverse_only", {"kind": "inverse_only"}),
            ("probes, weight 10", {"kind": "probes", "weight": 10.0}),
        )
    },
    "conv_spline": _convolutions(_FAST),
    "conv_gradients": _gradients(_LEAKY),
    "conv_gradients_spline": _gradients(_FAST),
    "conv_gradients_patches": {
        # An epoch of the exact gradient takes as long as six or seven of the circulant one.
        "circulant, 1 epoch": ("circulant_cnn_patches", {"epochs": 1}),
        "self_norm, 1 epoch": ("selfnorm_cnn_patches", {"epochs": 1}),
        "circulant": ("circulant_cnn_patches", {}),
        "self_norm": ("selfnorm_cnn_patches", {}),
        "exact, 1 epoch": ("exact_cnn_patches", {"epochs": 1}),
        "exact": ("exact_cnn_patches", {}),
    },
    # D = 768, 3072 and 12,288.
    "dense_patches": {
        **_dense_patches(16, 2e-3, (15, 200), (7, 200)),
        **_dense_patches(32, 5e-4, (10, 200), (8, 25)),
        **_dense_patches(64, 1e-4, (5, 100), (5, 2)),
    },
    # Each for about as many seconds.
    "free_form_digits": {
        "one pair of networks": ("free_form_digits", {}),
        "chain of three pairs": ("free_form_chain_digits", {}),
        "dense": ("dense_digits", {}),
    },
    "glow": {
        "1x1": ("selfnorm_glow_mnist", _SMALL_GLOW),
        "5x5": ("selfnorm_glow_mnist", {**_SMALL_GLOW, "flow.kernel_size": 5}),
        "5x5, weight 1": (
            "selfnorm_glow_mnist",
            {**_SMALL_GLOW, "flow.kernel_size": 5, "inverse_learning.weight": 1.0},
        ),
        "1x1, exact": ("selfnorm_glow_mnist", {**_SMALL_GLOW, "flow.gradient": "exact"}),
        "5x5, exact": (
            "selfnorm_glow_mnist",
            {**_SMALL_GLOW, "flow.kernel_size": 5, "flow.gradient": "exact"},
        ),
        "1x1, lu": ("conv1x1_glow_mnist", _SMALL_GLOW),
    },
}


def command_of(preset, changes, seed, output, arguments):
    """What trains one run."""
    settings = [f"{path}={json.dumps(value)}" for path, value in changes.items()]
    command = [sys.executable, str(TRAIN), preset, "--seed", str(seed), "--output", str(output)]
    command += ["--verbose", "2"]
    for option in ("epochs", "time_limit", "data_dir"):
        value = getattr(arguments, option)
        if value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    return command + (["--set", *settings] if settings else [])


def folder_of(output, label, seed):
    name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in label)
    return output / f"{name}_seed{seed}"


def run(study, output, arguments):
    """Trains what has not finished; a run that fails is reported, and the next one is begun."""
    for seed in arguments.seeds:
        for label, (preset, changes) in study.items():
            folder = folder_of(output, label, seed)
            if (folder / "results.json").exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            print(f"{label}, seed {seed}", flush=True)
            with open(folder / "log.txt", "a") as log:
                command = command_of(preset, changes, seed, folder, arguments)
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
            if code != 0:
                print(f"{label}, seed {seed}: ended with {code}, see {folder / 'log.txt'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", choices=STUDIES)
    parser.add_argument("--list", action="store_true", help="list the studies and their runs")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="these lines of the study alone")
    parser.add_argument("--epochs", type=int, help="default: the presets'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--time-limit", type=float, help="seconds of training for each run")
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--output", type=pathlib.Path, help="default: study_output/STUDY")
    arguments = parser.parse_args()
    if arguments.list or arguments.study is None:
        for name, study in STUDIES.items():
            for label, (preset, changes) in study.items():
                print(f"{name:12} {label:28} {preset:24} {changes}")
        return
    study = STUDIES[arguments.study]
    unknown = set(arguments.only or ()) - set(study)
    if unknown:
        raise SystemExit(f"{arguments.study!r} has no {sorted(unknown)}; it has {list(study)}.")
    if arguments.only:
        study = {label: study[label] for label in arguments.only}
    output = arguments.output or pathlib.Path("study_output") / arguments.study
    run(study, output, arguments)
    compare.report({label: str(folder_of(output, label, "*")) for label in study}, output)


if __name__ == "__main__":
    main()
