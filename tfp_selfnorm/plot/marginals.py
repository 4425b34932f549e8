"""`marginals`, the corner plot: each column of a table, and each pair of columns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_selfnorm.plot.axes import COLORS, column_names, make_figure, range_of, table
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_MOST_COLUMNS = 12
_MOST_POINTS = 2000
# Above it halves of steps are rounding.
_LARGEST_WHOLE = 1e9
_DATA, _SAMPLES = COLORS[:2]


def marginals(
    data: Array,
    samples: Array | None = None,
    names: Sequence[str] | None = None,
    figure: "Figure | SubFigure | None" = None,
    num_bins: int = 30,
) -> "Figure | SubFigure":
    """Draws the marginals of data beside those of samples: a corner plot.

    On the diagonal are histograms of each column, as densities, of the data (filled) and of the samples
    (line). Below the diagonal are the pairs of columns of the data, above it the same pairs of the samples.
    The axes show the central 99.8 % of each column of the data, and a margin: data and samples outside are
    out of view.

    Args:
      data: table `(number, columns)`, an array or a pandas frame, of at most 12 columns. Missing values are
        left out. The first 2,000 rows are drawn as points; the histograms have all.
      samples: samples of a flow, with the same columns; `None` draws the data alone.
      names: names of the columns; `None` takes those of the frame.
      figure: an empty figure or subfigure of yours, best with `layout="constrained"`; `None` makes one.
      num_bins: number of bins of a histogram in view; the most of a column of whole numbers.

    Returns:
      The figure. `figure.axes[i * columns + j]` has column `i` over column `j`.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if a table has another shape or a column without a finite number, or another argument does
        not fit.

    >>> import pandas as pd
    >>> import tfp_selfnorm as sn
    >>> data = pd.DataFrame({"height": [1.6, 1.7, 1.8, 1.9], "mass": [55.0, 80.0, 75.0, 90.0]})
    >>> figure = sn.plot.marginals(data, samples=[[1.7, 70.0], [1.8, 85.0]])
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['', '', 'height', 'mass']

    References: Foreman-Mackey, "corner.py", Journal of Open Source Software 1(2), 2016.
    """
    tables = {"data": table(data, "data")}
    size = tables["data"].shape[1]
    if size > _MOST_COLUMNS:
        raise ValueError(
            f"`data` must have at most {_MOST_COLUMNS} columns; got {size}. Choose some of them."
        )
    if samples is not None:
        tables["samples"] = table(samples, "samples", num_columns=size)
    names = column_names(names, data, size)
    num_bins = check_int(num_bins, "num_bins", 2, 1000)
    if figure is None:
        side = 1.0 + min(2.0 * size, 12.0)
        figure = make_figure(figsize=(side, side))
    elif not hasattr(figure, "subplots") or figure.axes:
        raise ValueError(f"`figure` must be an empty matplotlib Figure or SubFigure; got {figure!r:.80}.")
    grid: Any = figure.subplots(size, size, squeeze=False)
    views = [range_of(column, share=0.998) for column in tables["data"].T]
    for i, row in enumerate(grid):
        for j, ax in enumerate(row):
            if i == j:
                _draw_column(ax, {key: values[:, i] for key, values in tables.items()}, views[i], num_bins)
            elif i > j or samples is not None:
                _draw_pair(ax, tables["data" if i > j else "samples"], i, j, views)
            else:
                ax.axis("off")
            _label(ax, i, j, names, samples is not None)
    _explain(figure, samples is not None, size)
    return figure


def _draw_column(ax, columns, view, num_bins):
    edges = _edges(columns["data"], view, num_bins)
    for key, values in columns.items():
        finite = values[np.isfinite(values)]
        heights = np.histogram(finite, edges)[0] / (len(finite) * (edges[1] - edges[0]))
        if key == "data":
            ax.stairs(heights, edges, fill=True, color=_DATA, alpha=0.45)
        else:
            ax.stairs(heights, edges, color=_SAMPLES, linewidth=1.5)
    ax.set(xlim=view, yticks=[])
    ax.set_ylim(bottom=0.0)


def _edges(values, view, num_bins):
    """The edges of the bins: of whole numbers halfway between them, so that each bin has as many of them."""
    low, high = view
    if np.any(values[np.isfinite(values)] % 1) or max(-low, high) > _LARGEST_WHOLE:
        return np.linspace(low, high, num_bins + 1)
    width = max(1.0, np.ceil((high - low) / num_bins))
    return np.arange(np.floor(low) - 0.5, high + width, width)


def _draw_pair(ax, values, i, j, views):
    color = _DATA if i > j else _SAMPLES
    points = values[:_MOST_POINTS]
    # Many points would run together.
    alpha = float(np.clip(300.0 / len(points), 0.25, 0.8))
    ax.scatter(points[:, j], points[:, i], s=5.0, color=color, alpha=alpha, linewidths=0.0, rasterized=True)
    ax.set(xlim=views[j], ylim=views[i])


def _label(ax, i, j, names, has_samples):
    """Ticks and names at the left and at the bottom; the first row has its ticks on the right."""
    size = len(names)
    ax.locator_params(axis="x", nbins=3)
    if i != j:
        ax.locator_params(axis="y", nbins=4)
    is_left, is_last = j == 0 and i > 0, i == 0 and j == size - 1 and has_samples
    ax.tick_params(
        labelsize=8, labelbottom=i == size - 1, labelleft=is_left, right=is_last, labelright=is_last
    )
    if i == size - 1:
        ax.set_xlabel(names[j])
    if j == 0 and size > 1:
        ax.set_ylabel(names[i])


def _explain(figure, has_samples, size):
    """A legend above the panels, and names of rows that line up."""
    from matplotlib.patches import Patch

    figure.align_labels()
    if has_samples:
        below, above = (", below the diagonal", ", above") if size > 1 else ("", "")
        handles = [Patch(color=_DATA, label=f"data{below}"), Patch(color=_SAMPLES, label=f"samples{above}")]
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
