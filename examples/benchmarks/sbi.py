"""Posteriors of four tasks of the sbibm benchmark by this package and by zuko, of 10,000 simulations each.

Run once with the environment of the package, and once with an environment of its own for zuko:

    python -m venv zuko_env && zuko_env/bin/pip install torch zuko scikit-learn scipy
    python examples/benchmarks/sbi.py ours --csv FILE
    python examples/benchmarks/sbi.py free_form --csv FILE
    zuko_env/bin/python examples/benchmarks/sbi.py zuko --csv FILE
    python examples/benchmarks/sbi.py table --csv FILE

`taskset -c 0` before each command holds it on one core; all computing is in one thread. Rows that are in the
file are not computed again.

Parameters with a uniform prior pass the logit of its box, for all libraries: no posterior leaks out of the
prior. Then parameters and data get the mean 0 and the deviation 1. A tenth of the simulations is for
validation. The rules are those of `rules.py`, the same for all; the limit is the same CPU time. Each library
has up to four settings for each task; of fits with seed 0 the validation NLL chooses one, which the seeds 1
to 3 take. One has a weight decay, which leaves out the kernels of self-normalizing layers. Of zuko the flow
is NSF.

Figures, means over seeds: C2ST, the accuracy of a classifier between 2,000 samples of the posterior and 2,000
of the reference, five folds (0.5 is best), as in sbibm (multilayer perceptron, two hidden layers of 10 D
units, inputs standardised; there 10,000 samples each), over three observations of each task; SBC, the largest
Kolmogorov-Smirnov distance, over the dimensions, of the ranks of 1,000 parameters among 100 samples each from
the uniform distribution (0.043 is the 95 % point of one dimension); and the NLL of these parameters, in nats
of the standardised ones.

References: Lueckmann et al., "Benchmarking Simulation-Based Inference", AISTATS 2021; Talts et al.,
"Validating Bayesian Inference Algorithms with Simulation-Based Calibration", 2018; Draxler et al., "Free-form
flows", AISTATS 2024.
"""

import argparse
import importlib
import json

import numpy as np
from rules import Rows, Rules
from sbi_tasks import TASKS

# The seed 0 chooses the setting.
SEEDS = (1, 2, 3)
RULES = Rules(batch_size=128, patience=8, limit=90.0)
NUM_SIMULATIONS, NUM_CALIBRATION, NUM_RANKED = 10_000, 1_000, 100
NUM_OBSERVATIONS, NUM_SAMPLES = 3, 2_000
_FREE_FORM = {"width": 128, "reconstruction": 10.0}
SETTINGS = {
    "ours": [
        ("coupling_flow", {"num_layers": 4, "width": 64}, 3e-3),
        ("coupling_flow", {"num_layers": 6, "width": 64}, 3e-3),
        ("autoregressive_flow", {"num_layers": 3}, 3e-3),
        ("autoregressive_flow", {"num_layers": 2, "weight_decay": 0.3}, 3e-3),
    ],
    # One of the experiments of "Free-form flows".
    "free_form": [
        ("free_form_flow", _FREE_FORM | {"num_layers": 1, "depth": 2, "whitens": True}, 3e-3),
        ("free_form_flow", _FREE_FORM | {"num_layers": 3, "depth": 1}, 3e-3),
    ],
    "zuko": [
        ("NSF", {"transforms": 3, "hidden_features": [64] * 3}, 1e-3),
        ("NSF", {"transforms": 3, "hidden_features": [64] * 3}, 3e-3),
        ("NSF", {"transforms": 3, "hidden_features": [64] * 3, "weight_decay": 0.3}, 3e-3),
        ("NSF", {"transforms": 5, "hidden_features": [64] * 2}, 1e-3),
    ],
}
KEYS = ("task", "seed", "library", "method", "options", "rate")


class Problem:
    """The simulations of one seed, on the scales that the flows see."""

    def __init__(self, task, seed):
        self.task, self.bound = TASKS[task], TASKS[task].bound
        theta, x = self.task.simulate(NUM_SIMULATIONS, np.random.default_rng([seed, 0]))
        theta = self._unbounded(theta)
        self.theta_scale = theta.mean(axis=0), theta.std(axis=0)
        self.x_scale = x.mean(axis=0), x.std(axis=0)
        pairs = _scaled(theta, self.theta_scale), _scaled(x, self.x_scale)
        validation = NUM_SIMULATIONS // 10
        self.train = tuple(part[:-validation] for part in pairs)
        self.validation = tuple(part[-validation:] for part in pairs)

    def _unbounded(self, theta):
        if self.bound is None:
            return theta
        return np.log(self.bound + theta) - np.log(self.bound - theta)

    def parameters(self, theta):
        return _scaled(self._unbounded(theta), self.theta_scale)

    def data(self, x):
        return _scaled(x, self.x_scale)

    def original(self, samples):
        """Parameters as the task has them."""
        theta = samples * self.theta_scale[1] + self.theta_scale[0]
        return theta if self.bound is None else self.bound * np.tanh(theta / 2)


def _scaled(values, scale):
    return ((values - scale[0]) / scale[1]).astype(np.float32)


def calibration(fit, problem, seed):
    """The largest distance of the ranks from uniform ones, and the NLL of the parameters."""
    theta, x = problem.task.simulate(NUM_CALIBRATION, np.random.default_rng([seed, 1]))
    theta, x = problem.parameters(theta), problem.data(x)
    samples = fit.sample(NUM_RANKED, x, seed)
    shares = np.sort((np.sum(samples < theta, axis=0) + 0.5) / (NUM_RANKED + 1), axis=0)
    steps = (np.arange(NUM_CALIBRATION)[:, np.newaxis] + 0.5) / NUM_CALIBRATION
    return float(np.abs(shares - steps).max()), -float(np.mean(fit.log_prob(theta, x)))


def classifier_score(first, second):
    """C2ST of sbibm."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, deviation = first.mean(axis=0), first.std(axis=0)
    x = (np.concatenate([first, second]) - mean) / deviation
    y = np.repeat([0, 1], [len(first), len(second)])
    units = 10 * x.shape[1]
    classifier = MLPClassifier((units, units), max_iter=1000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(np.mean(cross_val_score(classifier, x, y, cv=folds, scoring="accuracy")))


def scores(fit, problem, seed):
    """C2ST at observations that are the same for all seeds and libraries."""
    _, observations = problem.task.simulate(NUM_OBSERVATIONS, np.random.default_rng(100))
    for i, x in enumerate(observations):
        reference = problem.task.reference(x, NUM_SAMPLES, np.random.default_rng([101, i]))
        samples = fit.sample(NUM_SAMPLES, problem.data(x[np.newaxis]), seed)[:, 0]
        yield classifier_score(reference, problem.original(samples.astype(np.float64)))


def run(library, rows, tasks, seeds, takes_all):
    fits = importlib.import_module({"zuko": "zuko_flows"}.get(library, "ours"))
    for task in tasks:
        for seed in (0, *seeds):
            problem, settings = Problem(task, seed), SETTINGS[library]
            if seed and not takes_all:
                chosen = _chosen(rows.rows, task, library)
                settings = [setting for setting in settings if _names(*setting) == chosen]
            for method, options, rate in settings:
                key = dict(zip(KEYS, (task, seed, library, *_names(method, options, rate)), strict=True))
                if not rows.has(**key):
                    options = dict(options)
                    decay = options.pop("weight_decay", 0.0)
                    data = problem.train, problem.validation
                    fit = fits.Fit(method, options, rate, decay, *data, RULES, seed)
                    rows.add(key | _figures(fit, problem, seed) | fit.figures)
                    print(rows.rows[-1], flush=True)


def _figures(fit, problem, seed):
    """Those of the table; the fits that choose a setting have none."""
    names = ["sbc", "nll", *(f"c2st_{i}" for i in range(NUM_OBSERVATIONS))]
    if not seed:
        return dict.fromkeys(names, "")
    return dict(zip(names, [*calibration(fit, problem, seed), *scores(fit, problem, seed)], strict=True))


def _names(method, options, rate):
    return method, json.dumps(options), str(rate)


def _chosen(rows, task, library):
    """The method, the options and the rate of the best fit with seed 0."""
    fits = [row for row in rows if (row["task"], row["library"], row["seed"]) == (task, library, "0")]
    best = min(fits, key=lambda row: float(row["val_nll"]))
    return best["method"], best["options"], best["rate"]


def table(rows):
    print("| task | library | setting | C2ST | SBC | NLL | CPU seconds | parameters |\n" + "|---" * 8 + "|")
    for task in TASKS:
        for library in SETTINGS:
            of_library = [row for row in rows if (row["task"], row["library"]) == (task, library)]
            settings = {}
            for row in of_library:
                if row["seed"] != "0":
                    settings.setdefault((row["method"], row["options"], row["rate"]), []).append(row)
            for fits in settings.values():
                print(f"| {task} | {library} |", _cells(fits))


def _cells(fits):
    """The setting, the figures and the number of parameters of the fits of one setting."""
    c2st = [np.mean([float(row[f"c2st_{i}"]) for i in range(NUM_OBSERVATIONS)]) for row in fits]
    cells = ["{method}, {options}, rate {rate}".format(**fits[0])]
    cells.append(f"{np.mean(c2st):.3f} ± {np.std(c2st):.3f}")
    for name, places in (("sbc", 3), ("nll", 3), ("fit_s", 0)):
        values = [float(row[name]) for row in fits]
        cells.append(f"{np.mean(values):.{places}f} ± {np.std(values):.{places}f}")
    return " | ".join([*cells, fits[0]["parameters"]]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=(*SETTINGS, "table"))
    parser.add_argument("--csv", required=True, help="the file of the figures; more rows are added to it")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--all-settings", action="store_true", help="the seeds take all, not the chosen one")
    arguments = parser.parse_args()
    rows = Rows(arguments.csv, KEYS)
    if arguments.what != "table":
        run(arguments.what, rows, arguments.tasks, arguments.seeds, arguments.all_settings)
    table(rows.rows)


if __name__ == "__main__":
    main()
