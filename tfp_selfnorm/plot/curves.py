"""`learning_curves`, the figures of a training over its epochs."""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfp_selfnorm.plot.axes import COLORS, GREY, as_axes, check_axes, check_number_of_lines, label_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DEFAULTS = ("nll", "loss")
_UNITS = {"nll": "nll, nats", "loss": "loss, nats", "bits_per_dim": "bits per dimension"}
_VALIDATION = "val_"


def learning_curves(
    history: Any, ax: "Axes | None" = None, names: str | Sequence[str] | None = None
) -> "Axes":
    """Draws figures of a training over the epochs, with their names at the ends of the lines.

    Training and validation of a figure have one colour; training is dashed. Epochs count from 1. To see the
    end of a training better, set `ax.set_ylim`: the names follow.

    Args:
      history: Keras's `History` that `fit` returned; or a mapping from names to lists, one number an epoch,
        with the numbers of the epochs as "epoch" if they are not 1, 2, and so on; or the path of a file of
        `keras.callbacks.CSVLogger`.
      ax: axes; `None` makes a figure.
      names: a figure or several, such as `["nll", "reconstruction"]`, which give at most six lines; `None`
        takes "nll", or else "loss".

    Returns:
      The axes. `ax.lines` has a line for each figure, and after it one for its validation, if there was any.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if the history is empty or lacks a figure, a figure has no finite number, there are more
        than six lines, or the epochs of a figure are not known. The last may happen with `validation_freq`,
        and never with a CSV file.

    >>> import tfp_selfnorm as sn
    >>> ax = sn.plot.learning_curves({"nll": [3.0, 2.5, 2.3], "val_nll": [3.1, 2.7, 2.6]})
    >>> ax.get_ylabel(), [text.get_text() for text in ax.texts]
    ('nll, nats', ['training', 'validation'])
    """
    check_axes(ax)
    epochs, columns = _read(history)
    names = _check_names(names, columns)
    lines = [
        (column, color, len(names) == 1)
        for name, color in zip(names, COLORS * len(names), strict=False)
        for column in (name, _VALIDATION + name)
        if column in columns
    ]
    check_number_of_lines(len(lines), "names")
    points = [_points(column, columns[column], epochs) for column, *_ in lines]
    ax = as_axes(ax)
    for (column, color, is_alone), (x, y) in zip(lines, points, strict=True):
        is_paired = _VALIDATION + column in columns
        ax.plot(
            x,
            y,
            "--" if is_paired else "-",
            # A single point has no line.
            marker="o" if len(x) == 1 else None,
            color=color,
            label=_label(column, is_alone),
        )
    ax.set(xlabel="epoch", ylabel=_UNITS.get(names[0], names[0]) if len(names) == 1 else "")
    ax.locator_params(axis="x", integer=True)
    ax.grid(color=GREY, alpha=0.2)
    ax.spines[["top", "right"]].set_visible(False)
    return label_lines(ax)


def _read(history):
    """The numbers of the epochs, and lists of numbers by name."""
    if isinstance(history, keras.callbacks.History):
        epochs, columns = np.array(getattr(history, "epoch", []), np.float64) + 1.0, history.history
    elif isinstance(history, Mapping):
        columns = {name: np.atleast_1d(np.asarray(values)) for name, values in history.items()}
        epochs = columns.pop("epoch", np.arange(1.0, 1.0 + max(map(len, columns.values()), default=0)))
    elif isinstance(history, (str, os.PathLike)):
        with open(history, newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: [_number(row[name]) for row in rows] for name in rows[0]} if rows else {}
        # Keras counts from 0 there.
        epochs = np.array(columns.pop("epoch", np.arange(len(rows))), np.float64) + 1.0
    else:
        raise TypeError(
            "`history` must be a History of Keras, a mapping from names to lists, or the path of a CSV file; "
            f"got {type(history).__name__}."
        )
    if not columns or len(epochs) == 0:
        raise ValueError(f"`history` must have an epoch at least; got {history!r:.80}, which is empty.")
    return epochs, columns


def _number(text):
    """The number in a cell. Keras writes NA for a figure that an epoch lacks."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.nan


def _check_names(names, columns):
    if names is None:
        names = [name for name in _DEFAULTS if name in columns][:1] or list(_DEFAULTS[:1])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) for n in names):
        raise TypeError(f"`names` must be a string or a list of strings; got {names!r:.80}.")
    for name in names:
        if name not in columns:
            raise ValueError(f"`names` has {name!r}; the history has {', '.join(map(str, columns))}.")
    return names


def _points(name, values, epochs):
    """The epochs and the values of a figure; of a validation that was not after each epoch as well."""
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        values = np.array([])
    if not np.isfinite(values).any():
        raise ValueError(f"`history` has no finite number for {name!r}.")
    if len(values) == len(epochs):
        return epochs, values
    # Keras validates after each epoch whose number `validation_freq` divides.
    periods = [k for k in range(2, int(max(epochs)) + 1) if np.sum(epochs % k == 0) == len(values)]
    if len(periods) != 1:
        raise ValueError(
            f"`history` has {len(values)} numbers for {name!r}, and {len(epochs)} epochs; it is not known "
            "which epochs have one. Give the CSV file of `keras.callbacks.CSVLogger`, which tells."
        )
    return epochs[epochs % periods[0] == 0], values


def _label(column, is_alone):
    name = column.removeprefix(_VALIDATION)
    part = "training" if name == column else "validation"
    return part if is_alone else f"{name}, {part}"
