"""Whether conditional densities are calibrated: coverage of quantiles, and ranks of true values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_selfnorm.math.ranks import binomial_interval, ranks_among
from tfp_selfnorm.model.conditional_model import ConditionalFlowModel
from tfp_selfnorm.plot.axes import COLORS, GREY, as_axes, check_axes, check_number_of_lines, column_names
from tfp_selfnorm.utils.checks import as_array
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.types import Array, Seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the bands.
_CONFIDENCE = 0.99
_BAND: Any = {"color": GREY, "alpha": 0.25, "linewidth": 0.0, "label": "99 % by chance"}


def ranks(samples: Array, y: Array) -> np.ndarray:
    """The rank of each true value among samples for the same condition: how many of them are smaller.

    For simulation-based calibration, draw parameters `y` from the prior and data from the simulator with
    them, and samples from the posterior of the data. If the posterior is right and continuous, each rank from
    0 to n is equally likely.

    Args:
      samples: samples `(n, batch, dim)` or `(n, batch)`.
      y: true values `(batch, dim)` or `(batch,)`.

    Returns:
      Ints in `[0, n]`, of the shape of `y`.

    Raises:
      TypeError: if an argument has no real numbers.
      ValueError: if the shapes do not fit, or a number is NaN.

    >>> import tfp_selfnorm as sn
    >>> sn.plot.ranks(samples=[[[0.0], [5.0]], [[1.0], [6.0]], [[2.0], [7.0]]], y=[[1.5], [4.0]])
    array([[2],
           [0]])

    References: Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration", 2018, algorithm 1.
    """
    samples, y = _numbers(samples, "samples"), _numbers(y, "y")
    if y.ndim not in (1, 2) or y.size == 0 or samples.shape[1:] != y.shape or len(samples) == 0:
        raise ValueError(
            "`samples` and `y` must have shapes (n, batch, dim) and (batch, dim), or (n, batch) and "
            f"(batch,); got {samples.shape} and {y.shape}."
        )
    for name, values in (("samples", samples), ("y", y)):
        if np.isnan(values).any():
            raise ValueError(f"`{name}` must have no NaN; got {np.isnan(values).sum()} of them.")
    return ranks_among(samples, y)


def calibration(
    samples: Any,
    y: Array,
    ax: "Axes | None" = None,
    names: Sequence[str] | None = None,
    *,
    x: Any = None,
    num_samples: int = 200,
    seed: Seed = None,
) -> "Axes":
    """Draws the observed over the expected coverage of conditional quantiles, a line for each dimension.

    The quantiles of a level are those of the samples for each condition. The expected coverage is the level,
    and the observed one the fraction of the true values below the quantile. A calibrated model is on the
    diagonal, but for chance: in the grey band with a probability of 99 % at each level. A line like an S,
    above the diagonal at low levels and below it at high ones, belongs to a density that is too narrow.

    Args:
      samples: samples `(n, batch, dim)` or `(n, batch)` for the conditions of `y`; or a
        `ConditionalFlowModel`.
      y: true values `(batch, dim)` or `(batch,)`, of at most six dimensions.
      ax: axes; `None` makes a figure.
      names: names of the dimensions; `None` takes those of a pandas frame `y`.
      x: conditions of `y`, for a model. They must be independent, and not those of the training.
      num_samples, seed: number of samples of a model for each condition, and their seed.

    Returns:
      The axes. The first line is the diagonal; the others have levels k / (n + 1) with the coverage of the
      k-th smallest of n samples, which is exactly the level on average, and 0 and 1 at the ends.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if shapes do not fit, a number is NaN, or another argument does not fit.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> mean = tf.random.normal([500, 1], seed=1)
    >>> samples = mean + tf.random.normal([99, 500, 1], seed=2)
    >>> ax = sn.plot.calibration(samples, y=mean + tf.random.normal([500, 1], seed=3))
    >>> ax.lines[1].get_xdata().shape
    (101,)
    """
    check_axes(ax)
    names = column_names(names, y, int(np.prod(_numbers(y, "y").shape[1:])))
    check_number_of_lines(len(names), "y")
    if isinstance(samples, ConditionalFlowModel):
        num_samples = check_positive_int(num_samples, "num_samples")
        samples = samples.sample(num_samples, x, seed=seed)
    elif x is not None:
        kind = type(samples).__name__
        raise ValueError(f"`samples` must be a ConditionalFlowModel if `x` is given; got {kind}.")
    found = ranks(samples, y)
    columns = found.reshape(len(found), -1).T
    number, levels = len(samples), np.linspace(0.0, 1.0, 101)
    band = binomial_interval(len(found), levels, _CONFIDENCE) / len(found)
    expected = np.arange(number + 2) / (number + 1)
    ax = as_axes(ax, figsize=(4.8, 4.8))
    ax.plot([0.0, 1.0], [0.0, 1.0], color=GREY, linewidth=1.0)
    area = ax.fill_between(levels, *band, **_BAND)
    for column, name, color in zip(columns, names, COLORS, strict=False):
        below = np.searchsorted(np.sort(column), np.arange(number + 2))
        ax.plot(expected, below / len(column), color=color, label=name)
    _explain(ax, area, len(columns))
    ax.set(xlabel="expected coverage", ylabel="observed coverage", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    return ax


def sbc_ranks(
    ranks: Array,
    num_samples: int,
    ax: "Axes | None" = None,
    names: Sequence[str] | None = None,
    num_bins: int | None = None,
) -> "Axes":
    """Draws histograms of the ranks of simulation-based calibration, a line for each dimension.

    The height is the number of ranks in a bin over the expected number, if each rank from 0 to `num_samples`
    is equally likely. Then it is 1, but for chance: in the grey band with a probability of 99 % for each bin.
    If both ends are high, the posterior is too narrow. If the middle is high, it is too wide. A slope shows
    that it is shifted.

    Args:
      ranks: ints `(number,)` or `(number, dim)` in `[0, num_samples]`, see `ranks`; at most six dimensions.
      num_samples: number of posterior samples for each rank.
      ax: axes; `None` makes a figure.
      names: names of the dimensions.
      num_bins: number of bins; `None` takes one for 20 ranks, at most 20, or somewhat fewer if these have the
        same width.

    Returns:
      The axes. The y data of each line after the first are the heights, with the last one twice.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if `ranks` are no integers, or another argument has another type.
      ValueError: if a rank is out of range, the shape is another one, or an argument does not fit.

    >>> import numpy as np
    >>> import tfp_selfnorm as sn
    >>> ax = sn.plot.sbc_ranks(np.random.default_rng(1).integers(0, 100, size=1000), num_samples=99)
    >>> len(ax.lines[1].get_ydata())
    21

    References: Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
    simulation-based calibration", 2018, section 4.
    """
    check_axes(ax)
    num_samples = check_positive_int(num_samples, "num_samples")
    array = _check_ranks(ranks, num_samples)
    columns = array.reshape(len(array), -1).T
    names = column_names(names, ranks, len(columns))
    check_number_of_lines(len(columns), "ranks")
    edges = _edges(num_samples + 1, len(array), num_bins)
    shares = np.diff(edges) / (num_samples + 1)
    band = binomial_interval(len(array), shares, _CONFIDENCE) / (len(array) * shares)
    ax = as_axes(ax, figsize=(6.4, 3.6))
    ax.axhline(1.0, color=GREY, linewidth=1.0)
    low, high = np.append(band, band[:, -1:], axis=1)
    area = ax.fill_between(edges, low, high, step="post", **_BAND)
    for column, name, color in zip(columns, names, COLORS, strict=False):
        heights = np.histogram(column, edges)[0] / (len(column) * shares)
        ax.plot(edges, np.append(heights, heights[-1]), drawstyle="steps-post", color=color, label=name)
    _explain(ax, area, len(columns))
    ax.set(xlabel=f"rank among {num_samples} samples", ylabel="ranks, over expected", xlim=edges[[0, -1]])
    ax.set_ylim(bottom=0.0)
    return ax


def _numbers(x, name):
    array = np.asarray(as_array(x, name))
    if array.dtype.kind not in "buif":
        raise TypeError(f"`{name}` must have real numbers; got dtype {array.dtype}.")
    return array


def _check_ranks(ranks, num_samples):
    array = np.asarray(as_array(ranks, "ranks"))
    if array.dtype.kind not in "iu":
        raise TypeError(f"`ranks` must be integers; got dtype {array.dtype}.")
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"`ranks` must have shape (number,) or (number, dim), not empty; got {array.shape}.")
    if array.min() < 0 or array.max() > num_samples:
        raise ValueError(
            f"`ranks` must be from 0 to `num_samples` = {num_samples}; got {array.min()} to {array.max()}."
        )
    return array


def _edges(number_of_ranks, number, num_bins):
    """Integer edges of the bins, of as equal widths as possible."""
    if num_bins is None:
        most = int(np.clip(number // 20, 2, 20))
        # Bins of one width, if that does not cost half of them.
        divisors = [n for n in range(most, most // 2, -1) if number_of_ranks % n == 0]
        num_bins = (divisors or [most])[0]
    num_bins = min(check_positive_int(num_bins, "num_bins"), number_of_ranks)
    return np.round(np.linspace(0, number_of_ranks, num_bins + 1)).astype(int)


def _explain(ax, band, num_lines):
    """A legend above the axes, where no line is: the names, if there are several, and the band."""
    handles = [*(ax.lines[1:] if num_lines > 1 else []), band]
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    ax.legend(handles=handles, ncols=2 if len(handles) == 4 else 3, frameon=False, fontsize=9, **place)
    ax.spines[["top", "right"]].set_visible(False)
