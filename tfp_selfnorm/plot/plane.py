"""Densities and samples in the plane as pictures, and grids of images."""

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.callbacks.sample_grid import image_grid
from tfp_selfnorm.model.conditional_model import ConditionalFlowModel
from tfp_selfnorm.plot.axes import as_axes, check_axes, distribution_of, range_of, table
from tfp_selfnorm.utils.checks import as_array
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.options import is_number
from tfp_selfnorm.utils.types import Array, TfpObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 2000


def density(
    flow: TfpObject,
    limits: Any,
    ax: "Axes | None" = None,
    num_points: int = 200,
    *,
    condition: Any = None,
    points: Array | None = None,
) -> "Axes":
    """Draws the density of a flow in the plane, and points over it.

    The image has the density in the middle of each cell, in 1 over the units of the two coordinates: its sum,
    times the area of a cell, is the mass in view. A few bright cells do not darken all others: the brightest
    colour begins at the 99th percentile of the cells with some density.

    Args:
      flow: a `FlowModel`, or a TFP distribution, of events of shape `(2,)`.
      limits: `(low, high)` for both coordinates, or `((left, right), (bottom, top))`.
      ax: axes; `None` makes a figure.
      num_points: number of cells on a side. `log_prob` is called once, for all cells.
      condition: one condition, for a `ConditionalFlowModel`.
      points: points `(number, 2)` to draw over the density, such as data. The first 2,000 are drawn.

    Returns:
      The axes. `ax.images[0].get_array()` has a row for each step of the second coordinate.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if the events have another shape, the density is not finite anywhere in view, or another
        argument does not fit.

    >>> import tfp_selfnorm as sn
    >>> flow = sn.dense_flow(event_shape=2, num_layers=1, seed=1)
    >>> ax = sn.plot.density(flow, limits=(-5, 5), num_points=100)
    >>> mass = ax.images[0].get_array().sum() * (10 / 100) ** 2
    >>> print(f"{mass:.3f}")
    1.000
    """
    check_axes(ax)
    distribution = distribution_of(flow)
    if tuple(distribution.event_shape) != (2,) or distribution.batch_shape.rank != 0:
        raise ValueError(
            "`flow` must have events of shape (2,) and no batch shape; got event shape "
            f"{tuple(distribution.event_shape)} and batch shape {distribution.batch_shape}."
        )
    view, number = _check_limits(limits), check_int(num_points, "num_points", 2, 5000)
    shown = None if points is None else table(points, "points", num_columns=2)[:_MOST_POINTS]
    sides = [low + (np.arange(number) + 0.5) * (high - low) / number for low, high in view]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    cells = np.exp(np.asarray(_log_prob(flow, tf.constant(grid, distribution.dtype), condition), np.float64))
    if not np.isfinite(cells).any():
        raise ValueError("`flow` has no finite density in view; its variables may be NaN.")
    ax = _show(cells.reshape(number, number), view, ax)
    if shown is not None:
        ax.scatter(shown[:, 0], shown[:, 1], s=3.0, color="white", alpha=0.7, linewidths=0.0)
        ax.set(xlim=view[0], ylim=view[1])
    return ax


def samples(x: Array, limits: Any = None, ax: "Axes | None" = None, num_bins: int | None = None) -> "Axes":
    """Draws samples or data in the plane as a picture: the number of points in each cell.

    The image has the share of the points in a cell over its area, so that it can be compared with `density`.

    Args:
      x: points `(number, 2)`, such as `model.sample(10_000)`. Those that are not finite are not drawn.
      limits: as in `density`; `None` shows all points.
      ax: axes; `None` makes a figure.
      num_bins: number of cells on a side; `None` takes from 20 to 100, the more the more points there are.

    Returns:
      The axes.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if `x` has another shape or no finite point, or another argument is out of range.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> ax = sn.plot.samples(tf.random.normal([1000, 2], seed=1), limits=(-5, 5))
    >>> ax.images[0].get_array().shape
    (22, 22)
    """
    check_axes(ax)
    points = table(x, "x", num_columns=2)
    view: Any = [range_of(column) for column in points.T] if limits is None else _check_limits(limits)
    number = int(np.clip(0.7 * len(points) ** 0.5, 20, 100))
    if num_bins is not None:
        number = check_int(num_bins, "num_bins", 2, 5000)
    finite = points[np.isfinite(points).all(axis=1)]
    counts, *_ = np.histogram2d(finite[:, 1], finite[:, 0], number, view[::-1])
    area = np.prod([high - low for low, high in view]) / number**2
    return _show(counts / (len(points) * area), view, ax)


def images(x: Array, num_levels: int = 256, ax: "Axes | None" = None) -> "Axes":
    """Draws images in a square, row by row, with grey lines between them.

    Args:
      x: images `(number, height, width)`, with 1, 3 or no channels, of levels in `[0, num_levels)`. A pixel
        is rounded down and clipped to the levels. Pixels that are not finite are red.
      num_levels: number of levels of a pixel, 256 for 8-bit images.
      ax: axes; `None` makes a figure.

    Returns:
      The axes.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if `x` has another shape, or `num_levels` is below 2.

    >>> import numpy as np
    >>> import tfp_selfnorm as sn
    >>> sn.plot.images(np.zeros([9, 4, 4]), num_levels=16).images[0].get_array().shape
    (14, 14, 3)
    """
    check_axes(ax)
    array = np.asarray(as_array(x, "x"))
    if array.dtype.kind not in "buif":
        raise TypeError(f"`x` must have numbers; got dtype {array.dtype}.")
    if array.size == 0 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3))):
        raise ValueError(
            "`x` must have images of shape (number, height, width), with 1, 3 or no channels; got shape "
            f"{array.shape}."
        )
    grid = image_grid(array, check_int(num_levels, "num_levels", lowest=2))
    ax = as_axes(ax)
    ax.imshow(grid, interpolation="nearest")
    ax.axis("off")
    return ax


def _log_prob(flow, grid, condition):
    if isinstance(flow, ConditionalFlowModel):
        return flow.log_prob(grid, condition)
    if condition is not None:
        raise ValueError(f"`condition` must be None for {type(flow).__name__}; got a condition.")
    return flow.log_prob(grid)


def _check_limits(limits):
    """`((left, right), (bottom, top))` as floats."""
    pairs = limits
    if isinstance(limits, (list, tuple, np.ndarray)) and len(limits) == 2 and all(map(is_number, limits)):
        pairs = (limits, limits)
    try:
        array = np.asarray(pairs, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != (2, 2) or not (np.isfinite(array).all() and (array[:, 0] < array[:, 1]).all()):
        raise ValueError(
            "`limits` must be (low, high), or ((left, right), (bottom, top)), finite and in ascending order; "
            f"got {limits!r}."
        )
    return [tuple(pair) for pair in array.tolist()]


def _show(cells, view, ax):
    """Draws an array of densities."""
    # A few bright cells would darken all others.
    bright = cells[np.isfinite(cells) & (cells > 0.01 * np.nanmax(cells))]
    ax = as_axes(ax)
    ax.imshow(
        cells,
        origin="lower",
        extent=(*view[0], *view[1]),
        vmin=0.0,
        vmax=np.percentile(bright, 99.0) if bright.size else 1.0,
        # Two coordinates of one range have one unit.
        aspect="equal" if view[0] == view[1] else "auto",
        interpolation="nearest",
        cmap="viridis",
    )
    return ax
