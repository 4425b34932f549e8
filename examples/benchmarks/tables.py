"""Density estimation of five data sets by this package and by zuko: test NLL on three splits.

Run once with the environment of the package, and once with an environment of its own for zuko:

    python -m venv zuko_env && zuko_env/bin/pip install torch zuko scikit-learn scipy
    python examples/benchmarks/tables.py ours --csv FILE
    zuko_env/bin/python examples/benchmarks/tables.py zuko --csv FILE
    python examples/benchmarks/tables.py table --csv FILE

`taskset -c 0` before each command holds it on one core; all computing is in one thread. Rows that are in the
file are not computed again.

The data: breast cancer, diabetes (its ten columns), wine and digits of scikit-learn, and 10,000 points of the
two moons of `toy_data.py`. Digits are dequantised, once in a split: a uniform number is added to each of the
64 pixels, three of which are always 0. A split is a permutation by its seed: 60 % training, 20 % validation,
20 % test. Columns get the mean 0 and the deviation 1 of the training rows. NLL is in nats of these columns.

The rules are those of `rules.py`, the same for all. The methods are `dense_flow(activation="spline")`,
`coupling_flow`, and zuko's NSF and MAF. Each has two sizes, those of zuko also with a weight decay. On each
split the setting, and the method of each library, are chosen by the validation NLL, without the test rows.
"""

import argparse
import importlib
import json
import pathlib
import sys

import numpy as np
from rules import Rows, Rules

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
from toy_data import two_moons  # noqa: E402

DATA_SETS = ("wine", "breast_cancer", "diabetes", "digits", "two_moons")
SEEDS = (1, 2, 3)
RULES = Rules(batch_size=64, patience=8, limit=30.0)
# Two moons have many rows and few columns.
RULES_OF_MANY = Rules(batch_size=128, patience=6, limit=40.0)


def _grid(options, weights, rates):
    return [(options | more, *rate) for more in weights for rate in rates]


# Learning rate and weight decay.
_PLAIN = [(3e-3, 0.0)]
_RATES = [*_PLAIN, (3e-3, 1.0)]
SETTINGS = {
    "ours": {
        "dense_flow": _grid({"activation": "spline"}, [{"num_layers": 2}, {"num_layers": 3}], _PLAIN),
        "coupling_flow": _grid({}, [{"num_layers": 2, "width": 32}, {"num_layers": 4, "width": 64}], _PLAIN),
    },
    "zuko": {
        method: _grid(
            {},
            [{"transforms": 1, "hidden_features": [32, 32]}, {"transforms": 3, "hidden_features": [64, 64]}],
            _RATES,
        )
        for method in ("NSF", "MAF")
    },
}
KEYS = ("data_set", "seed", "method", "options", "rate", "weight_decay")


def split(name, seed):
    """Training, validation and test rows, standardised."""
    rng = np.random.default_rng(seed)
    x = _columns(name, rng)
    x = x[rng.permutation(len(x))]
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    mean, deviation = x[:first].mean(axis=0), x[:first].std(axis=0)
    parts = x[:first], x[first:second], x[second:]
    return [((part - mean) / deviation).astype(np.float32) for part in parts]


def _columns(name, rng):
    if name == "two_moons":
        return two_moons(10_000, seed=0).astype(np.float64)
    from sklearn import datasets

    x = getattr(datasets, f"load_{name}")().data
    return x + rng.uniform(size=x.shape) if name == "digits" else x


def run(library, rows, data_sets, seeds):
    fits = importlib.import_module({"ours": "ours", "zuko": "zuko_flows"}[library])
    for seed in seeds:
        for name in data_sets:
            train, validation, test = split(name, seed)
            for method, settings in SETTINGS[library].items():
                for options, rate, weight_decay in settings:
                    key = dict(
                        zip(KEYS, (name, seed, method, json.dumps(options), rate, weight_decay), strict=True)
                    )
                    if rows.has(**key):
                        continue
                    rules = RULES_OF_MANY if name == "two_moons" else RULES
                    fit = fits.Fit(method, options, rate, weight_decay, train, validation, rules, seed)
                    test_nll = -float(np.mean(fit.log_prob(test)))
                    rows.add(key | {"library": library, "test_nll": test_nll} | fit.figures)
                    print(rows.rows[-1], flush=True)


def table(rows):
    """Mean and deviation over splits of the test NLL of the settings that the validation rows chose."""
    columns = [(lib, method) for lib, methods in SETTINGS.items() for method in [*methods, None]]
    print("| data set |", " | ".join(method or f"{library}, chosen" for library, method in columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name in DATA_SETS:
        cells = [_cell([row for row in rows if row["data_set"] == name], *column) for column in columns]
        print(f"| {name} |", " | ".join(cells), "|")


def _cell(rows, library, method):
    rows = [row for row in rows if row["library"] == library and method in (None, row["method"])]
    chosen = []
    for seed in sorted({row["seed"] for row in rows}):
        of_seed = [row for row in rows if row["seed"] == seed]
        chosen.append(min(of_seed, key=lambda row: float(row["val_nll"])))
    if not chosen:
        return ""
    nll, seconds = (np.array([float(row[name]) for row in chosen]) for name in ("test_nll", "fit_s"))
    return f"{nll.mean():.3f} ± {nll.std():.3f} ({seconds.mean():.0f} s)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("ours", "zuko", "table"))
    parser.add_argument("--csv", required=True, help="the file of the figures; more rows are added to it")
    parser.add_argument("--data-sets", nargs="+", choices=DATA_SETS, default=DATA_SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    rows = Rows(arguments.csv, KEYS)
    if arguments.what != "table":
        run(arguments.what, rows, arguments.data_sets, arguments.seeds)
    table(rows.rows)


if __name__ == "__main__":
    main()
