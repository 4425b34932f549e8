"""The errors of `tfp_selfnorm.plot`, and what it leaves alone."""

import pathlib
import sys

import keras
import matplotlib as mpl
import numpy as np
import pytest
import tensorflow_probability as tfp
from matplotlib import pyplot
from matplotlib.figure import Figure

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
BACKEND = mpl.get_backend()
NORMAL = tfd.MultivariateNormalDiag([0.5, -1.0], [1.0, 0.5])


BAD = {
    "flow": (lambda: sn.plot.density("flow", (-1, 1)), TypeError, "`flow` must be a FlowModel or a TFP"),
    "flow 3d": (
        lambda: sn.plot.density(tfd.Sample(tfd.Normal(0.0, 1.0), [3]), (-1, 1)),
        ValueError,
        r"`flow` must have events of shape \(2,\).*\(3,\)",
    ),
    "flow nan": (
        lambda: sn.plot.density(tfd.MultivariateNormalDiag([np.nan, 0.0]), (-1, 1)),
        ValueError,
        "`flow` has no finite density",
    ),
    "condition": (
        lambda: sn.plot.density(NORMAL, (-1, 1), condition=[1.0]),
        ValueError,
        "`condition` must be None for MultivariateNormalDiag",
    ),
    "limits": (lambda: sn.plot.density(NORMAL, (1, -1)), ValueError, r"`limits` must be .*\(1, -1\)"),
    "limits text": (lambda: sn.plot.samples([[1.0, 2.0]], "ab"), ValueError, "`limits` must be"),
    "num_points": (lambda: sn.plot.density(NORMAL, (-1, 1), num_points=1), ValueError, "`num_points` must"),
    "points": (lambda: sn.plot.density(NORMAL, (-1, 1), points=[1.0]), ValueError, "`points` must have sha"),
    "x": (lambda: sn.plot.samples(np.zeros([4, 3])), ValueError, r"`x` must have shape \(number, 2\)"),
    "x text": (lambda: sn.plot.samples([["a", "b"]]), TypeError, "`x` must have columns of real numbers"),
    "images": (lambda: sn.plot.images(np.zeros([4, 4])), ValueError, "`x` must have images of shape"),
    "data": (lambda: sn.plot.marginals(np.zeros(3)), ValueError, "`data` must have shape"),
    "data nan": (
        lambda: sn.plot.marginals([[1.0, np.nan], [2.0, np.inf]]),
        ValueError,
        "`data` has no finite number in column 1",
    ),
    "data wide": (lambda: sn.plot.marginals(np.ones([2, 13])), ValueError, "at most 12 columns; got 13"),
    "samples": (lambda: sn.plot.marginals(np.eye(2), np.eye(3)), ValueError, "`samples` must have shape"),
    "names": (lambda: sn.plot.marginals(np.eye(2), names=["a"]), ValueError, "`names` must have 2 names"),
    "names text": (lambda: sn.plot.marginals(np.eye(2), names="ab"), TypeError, "`names` must be a list"),
    "figure": (lambda: sn.plot.marginals(np.eye(2), figure=3), ValueError, "`figure` must be an empty"),
    "history": (lambda: sn.plot.learning_curves(3), TypeError, "`history` must be a History"),
    "history empty": (lambda: sn.plot.learning_curves({}), ValueError, "`history` must have an epoch"),
    "history untrained": (
        lambda: sn.plot.learning_curves(keras.callbacks.History()),
        ValueError,
        "`history` must have an epoch",
    ),
    "history nan": (
        lambda: sn.plot.learning_curves({"nll": [np.nan]}),
        ValueError,
        "`history` has no finite number for 'nll'",
    ),
    "history short": (
        lambda: sn.plot.learning_curves({"nll": [1.0] * 10, "val_nll": [1.0] * 2}),
        ValueError,
        "2 numbers for 'val_nll', and 10 epochs",
    ),
    "figure names": (
        lambda: sn.plot.learning_curves({"nll": [1.0]}, names="loss"),
        ValueError,
        "`names` has 'loss'; the history has nll",
    ),
    "seven lines": (
        lambda: sn.plot.learning_curves({str(i): [1.0] for i in range(7)}, names=list("0123456")),
        ValueError,
        "`names` must give at most 6 lines; got 7",
    ),
    "model": (lambda: sn.plot.inverse_errors(3), TypeError, "`model` must be a FlowModel or a TFP"),
    "no layer": (lambda: sn.plot.inverse_errors(NORMAL), ValueError, "needs a layer with a learned inverse"),
    "shapes": (
        lambda: sn.plot.calibration(np.zeros([9, 4, 2]), np.zeros([4, 3])),
        ValueError,
        r"`samples` and `y` must have shapes.*\(9, 4, 2\) and \(4, 3\)",
    ),
    "y nan": (lambda: sn.plot.ranks([[1.0]], [np.nan]), ValueError, "`y` must have no NaN; got 1"),
    "conditions": (
        lambda: sn.plot.calibration([[1.0]], [1.0], x=[[1.0]]),
        ValueError,
        "`samples` must be a ConditionalFlowModel if `x` is given; got list",
    ),
    "ranks": (
        lambda: sn.plot.sbc_ranks([0, 5], 4),
        ValueError,
        "`ranks` must be from 0 to `num_samples` = 4",
    ),
    "ranks float": (lambda: sn.plot.sbc_ranks([0.5], 4), TypeError, "`ranks` must be integers"),
    "ax": (lambda: sn.plot.sbc_ranks([1], 4, ax=Figure()), TypeError, "`ax` must be matplotlib Axes"),
    "ax none": (lambda: sn.plot.label_lines(None), TypeError, "`ax` must be matplotlib Axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_by_name_before_a_figure_is_made(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
    assert not pyplot.get_fignums()


def test_without_matplotlib_the_error_names_the_package(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install matplotlib.*pip install tfp_selfnorm\[plot\]"):
        sn.plot.samples([[1.0, 2.0], [2.0, 3.0]])


def test_importing_needs_no_matplotlib_and_drawing_changes_no_settings(ax):
    for path in pathlib.Path(sn.__file__).parent.rglob("*.py"):
        lines = path.read_text().splitlines()
        at_import = [line for line in lines if line.startswith(("import matplotlib", "from matplotlib"))]
        assert not at_import, path
        assert not [
            line for line in lines if ".show(" in line or "switch_backend" in line or "rcParams" in line
        ]
    before = dict(mpl.rcParams)
    sn.plot.samples([[1.0, 2.0], [2.0, 3.0]], ax=ax)
    assert not pyplot.get_fignums()
    assert sn.plot.samples([[1.0, 2.0], [2.0, 3.0]]).figure.number in pyplot.get_fignums()
    assert dict(mpl.rcParams) == before
    assert mpl.get_backend() == BACKEND
