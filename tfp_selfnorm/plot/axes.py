"""What the pictures share: figures of matplotlib, which is optional, checks, and labels at ends of lines."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_probability as tfp

from tfp_selfnorm.model.flow_model import FlowModel
from tfp_selfnorm.utils.checks import as_array, check_distribution
from tfp_selfnorm.utils.options import check_positive
from tfp_selfnorm.utils.types import Array, TfpObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that colour-blind people can tell apart (Okabe and Ito, 2008), those that read best on white first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00")
GREY = "#777777"
# The group of the labels at the ends of lines.
_LABEL = "tfp_selfnorm_line_label"


def make_figure(**options: Any) -> Any:
    """Makes a figure of `matplotlib.pyplot`, with room for labels.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "`tfp_selfnorm.plot` needs matplotlib, which is not installed: `pip install matplotlib`, or "
            "`pip install tfp_selfnorm[plot]`."
        ) from error
    return pyplot.figure(layout="constrained", **options)


def check_axes(ax: Any) -> None:
    """Raises TypeError if it is neither `None` nor axes."""
    if ax is not None and not hasattr(ax, "imshow"):
        raise TypeError(f"`ax` must be matplotlib Axes or None; got {type(ax).__name__}.")


def as_axes(ax: Any, **options: Any) -> "Axes":
    """Returns the axes, or those of a new figure with these options if `ax` is `None`."""
    return make_figure(**options).subplots() if ax is None else ax


def check_number_of_lines(number: int, name: str) -> None:
    """Raises ValueError if there are more lines than colours."""
    if number > len(COLORS):
        raise ValueError(
            f"`{name}` must give at most {len(COLORS)} lines; got {number}. Choose some of them."
        )


def label_lines(ax: "Axes", fontsize: float = 9.0) -> "Axes":
    """Writes the label of each line to the right of the axes, at the end of the line and in its colour.

    Labels that would overlap are moved apart, each time that the figure is drawn, and a thin rule leads from
    the end of the line to its label. Lines without a label, or without a finite point, get none. The room on
    the right comes from the layout of the figure: make yours with `layout="constrained"`. A second call
    writes all labels anew, also those of lines that came later.

    Args:
      ax: axes with lines.
      fontsize: size of the labels, in points.

    Returns:
      The axes.

    Raises:
      TypeError: if `ax` is no Axes, or `fontsize` no number.
      ValueError: if `fontsize` is not positive and finite.

    >>> import matplotlib.figure
    >>> import tfp_selfnorm as sn
    >>> ax = matplotlib.figure.Figure(layout="constrained").subplots()
    >>> lines = ax.plot([1, 2, 3], [3.0, 2.0, 1.5], label="training")
    >>> [text.get_text() for text in sn.plot.label_lines(ax).texts]
    ['training']
    """
    if ax is None:
        raise TypeError("`ax` must be matplotlib Axes; got None.")
    check_axes(ax)
    fontsize = check_positive(fontsize, "fontsize")
    for text in list(ax.texts):
        if text.get_gid() == _LABEL:
            text.remove()
    ends = [(line, end) for line in ax.get_lines() if (end := _end_of(line)) is not None]
    for index, (line, end) in enumerate(ends):
        ax.annotate(
            str(line.get_label()),
            xy=(0.0, 0.0),
            xytext=(0.0, 0.0),
            xycoords=functools.partial(_place_of_end, ax, end),
            textcoords=functools.partial(_place_of_label, ax, ends, fontsize, index),
            color=line.get_color(),
            fontsize=fontsize,
            verticalalignment="center",
            annotation_clip=False,
            gid=_LABEL,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.6,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1.0,
                "shrinkB": 2.0,
            },
        )
    return ax


def spread(centres: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Centres closest to these, by least squares and in their order, of boxes that do not overlap."""
    order = np.argsort(centres, kind="stable")
    boxes = heights[order]
    offsets = np.concatenate([[0.0], np.cumsum(0.5 * (boxes[1:] + boxes[:-1]))])
    # Isotonic regression of the centres without the heights: neighbours in the wrong order share their mean.
    blocks: list[tuple[float, int]] = []
    for total in centres[order] - offsets:
        count = 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            last = blocks.pop()
            total, count = total + last[0], count + last[1]
        blocks.append((total, count))
    result = np.empty(len(order))
    result[order] = np.concatenate([np.full(count, total / count) for total, count in blocks]) + offsets
    return result


def _end_of(line):
    """The last finite point of a line with a label; `None` if there is none."""
    points = np.asarray(line.get_xydata(), np.float64)
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    has_label = not str(line.get_label()).startswith("_")
    return tuple(points[finite[-1]]) if has_label and finite.size else None


def _place_of_end(ax, end, unused_renderer=None):
    """The shift to the end of a line, in pixels of the figure as it is drawn."""
    from matplotlib.transforms import Affine2D

    # An end may be out of view, or 0 on a logarithmic scale.
    place = np.nan_to_num(ax.transData.transform(end), nan=-np.inf)
    return Affine2D().translate(*np.clip(place, ax.bbox.min, ax.bbox.max))


def _place_of_label(ax, ends, fontsize, index, unused_renderer=None):
    """The shift to the left edge of a label, in pixels of the figure as it is drawn."""
    from matplotlib.transforms import Affine2D

    pixels = ax.figure.dpi / 72.0
    wanted = np.array([_place_of_end(ax, end).transform((0.0, 0.0))[1] for _, end in ends])
    lines = np.array([str(line.get_label()).count("\n") + 1.0 for line, _ in ends])
    heights = spread(wanted, 1.25 * fontsize * pixels * lines)
    return Affine2D().translate(ax.bbox.x1 + 6.0 * pixels, heights[index])


def distribution_of(flow: TfpObject, name: str = "flow") -> TfpObject:
    """Returns the distribution of a FlowModel, or a distribution itself.

    Raises:
      TypeError: if it is neither, or its dtype is not floating.
      ValueError: if its event shape is unknown.
    """
    if isinstance(flow, FlowModel):
        return flow.inference_distribution
    if not isinstance(flow, tfp.distributions.Distribution):
        raise TypeError(f"`{name}` must be a FlowModel or a TFP distribution; got {type(flow).__name__}.")
    check_distribution(flow)
    return flow


def table(x: Array, name: str, num_columns: int | None = None) -> np.ndarray:
    """Converts an array or a frame to a float64 table `(number, columns)`.

    Raises:
      TypeError: if it is no dense array of real numbers.
      ValueError: if it has another shape, no rows, or a column without a finite number.
    """
    array = np.asarray(as_array(x, name))
    if array.dtype.kind not in "buif":
        raise TypeError(f"`{name}` must have columns of real numbers; got dtype {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape or num_columns not in (None, array.shape[1]):
        expected = "columns" if num_columns is None else num_columns
        raise ValueError(f"`{name}` must have shape (number, {expected}), not empty; got {array.shape}.")
    empty = np.flatnonzero(~np.isfinite(array).any(axis=0))
    if empty.size:
        raise ValueError(f"`{name}` has no finite number in column {empty[0]}.")
    return array.astype(np.float64)


def column_names(names: Sequence[str] | None, x: Array, number: int) -> list[str]:
    """The names that are given, or the columns of a frame, or numbers.

    Raises:
      TypeError: if the names are no sequence of strings.
      ValueError: if there are more or fewer names than columns.
    """
    if names is None:
        names = [str(name) for name in getattr(x, "columns", range(number))]
    elif not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`names` must be a list of strings; got {names!r:.80}.")
    if len(names) != number:
        raise ValueError(f"`names` must have {number} names, one a column; got {len(names)}.")
    return list(names)


def range_of(values: np.ndarray, share: float = 1.0) -> tuple[float, float]:
    """Limits of axes: the central share of the finite values, and 5 % on each side."""
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.5 * (1.0 - share), 0.5 * (1.0 + share)])
    margin = 0.05 * (high - low) or max(1.0, abs(low)) * 0.5
    return float(low - margin), float(high + margin)
