"""`prepare`: chooses the kinds of the columns of a table, and measures their means and deviations."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.standardize import FEWEST_STEPS, Moments, resolution
from tfp_selfnorm.tables.columns import Columns, check_support
from tfp_selfnorm.tables.frames import column_names, numeric_columns, whole_dtype
from tfp_selfnorm.tables.kinds import KINDS, HeavyTailed, Integer, Kind, Periodic, Positive, Real
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.types import DType

# Above this range the steps between whole numbers are too small to matter.
_LARGEST_RANGE = 1000
_FEW_VALUES = 20
# Skewness of an exponential distribution is 2, of a normal one 0.
_SKEWED = 1.0
# The width of the middle 99% over that of the middle 50%: 3.8 for a normal distribution, 6.6 for a Laplace.
_HEAVY = 8.0
# The share of equal values in a column of real numbers that is worth a warning.
_REPEATED, _FEWEST_REPEATED = 0.1, 10
_NEED_ARGUMENTS = {"bounded": "Bounded(low=..., high=...)", "periodic": "Periodic(period=...)"}


def prepare(table: Any, kinds: Mapping[Any, Any] | None = None, dtype: DType | None = None) -> Columns:
    """Describes the columns of a table of training data: the kind of each, and its mean and deviation.

    `print` shows the kinds and the reasons. Without `kinds` they are:

    - whole numbers in a range of at most 1000: `Integer`, with both bounds if there are at most 20 values,
      close together, and with `low=0` if they are skewed counts;
    - positive numbers of a skewness above 1, which the logarithm makes less skewed: `Positive`;
    - numbers whose middle 99% is more than 8 times as wide as the middle 50%: `HeavyTailed`;
    - others: `Real`. A column of this kind may have any value later. Bounds and periods must be named.

    Args:
      table: a data frame, or a dict from names to vectors; pandas is not needed.
      kinds: a dict from names of columns to kinds: "real", "positive", "heavy_tailed" or "integer", or an
        object such as `Bounded(0, 1)`, `Periodic(period=360)`, `Integer(low=0)`.
      dtype: float32 or float64. `None` takes float32, unless a column has a deviation of less than 1000 steps
        of float32, such as times in seconds since 1970.

    Returns:
      `Columns`.

    Raises:
      TypeError: if `table` or `kinds` is of another type, or a column is not numeric, with its name.
      ValueError: if `kinds` names no column or no kind, or a value is missing, not finite, or not among those
        of its kind, with the column and the row.

    Warns:
      UserWarning: if a column does not vary, a tenth of its values are equal, a periodic one has whole
        numbers alone, or `dtype` hides its digits.

    >>> import tfp_selfnorm as sn
    >>> table = {"stars": [1, 5, 4, 5, 3, 2], "price": [0.9, 1.2, 1.5, 2.0, 3.0, 90.0]}
    >>> columns = sn.tables.prepare(table | {"hour": [23.5, 0.5, 1.0, 22.0, 3.0, 23.0]},
    ...                             kinds={"hour": sn.tables.Periodic(24)})
    >>> columns
    3 columns in float32:
      stars  Integer(low=1, high=5)          5 whole numbers from 1 to 5
      price  Positive(low=0.0)               skewness 1.79, of the logarithm 1.56
      hour   Periodic(period=24.0, low=0.0)  given
    >>> flow = sn.tables.table_flow(columns, num_layers=2, width=16, seed=1)
    >>> flow.log_prob(columns.dequantize(table | {"hour": [0.0] * 6}, seed=1)).shape
    TensorShape([6])
    """
    names = column_names(table)
    given = _given_kinds(kinds, names)
    values = dict(zip(names, numeric_columns(table, names), strict=True))
    chosen, reasons = [], []
    for name, column in values.items():
        kind, reason = _chosen(given.get(name), column, whole_dtype(table, name))
        check_support(name, kind, column)
        chosen.append(kind.finished(column))
        reasons.append(reason)
    moments = [_moments(kind, *item) for kind, item in zip(chosen, values.items(), strict=True)]
    _warn_of_constants(
        [n for n, m in zip(names, moments, strict=True) if m is not None and m.lowest == m.highest]
    )
    _warn_of_repeated(dict(zip(names, chosen, strict=True)), values)
    return Columns(
        names=tuple(names),
        kinds=tuple(chosen),
        means=tuple(0.0 if m is None else float(m.mean) for m in moments),
        deviations=tuple(1.0 if m is None else float(m.deviation()) for m in moments),
        dtype=_dtype_for(values, chosen, dtype),
        reasons=tuple(reasons),
    )


def _given_kinds(kinds, names):
    kinds = {} if kinds is None else kinds
    if not isinstance(kinds, Mapping):
        raise TypeError(f"`kinds` must be a dict from names of columns to kinds; got {type(kinds).__name__}.")
    for name, kind in kinds.items():
        if name not in names:
            raise ValueError(f"`kinds` names the column {name!r}, which `table` lacks; it has {names}.")
        if isinstance(kind, str) and kind in _NEED_ARGUMENTS:
            raise ValueError(f"`kinds[{name!r}]` must be `tables.{_NEED_ARGUMENTS[kind]}`; got {kind!r}.")
        if isinstance(kind, type) and issubclass(kind, Kind):
            raise TypeError(
                f"`kinds[{name!r}]` must be an object; got the class {kind.__name__}. Call it: "
                f"{_NEED_ARGUMENTS.get(kind.__name__.lower(), kind.__name__ + '()')}."
            )
        if not (type(kind) in KINDS.values() or (isinstance(kind, str) and kind in KINDS)):
            listed = ", ".join(repr(key) for key in KINDS if key not in _NEED_ARGUMENTS)
            raise ValueError(
                f"`kinds[{name!r}]` must be {listed}, or a kind such as `tables.Bounded(0, 1)` or "
                f"`tables.Periodic(24)`; got {kind!r}."
            )
    return kinds


def _chosen(given, values, is_whole_dtype):
    """The kind of a column, and the reason for it."""
    if isinstance(given, Kind):
        return given, "given"
    if given == "integer":
        return _integer(values)[0], "given"
    if given is not None:
        return KINDS[given](), "given"
    is_whole = is_whole_dtype or (np.array_equal(values, np.round(values)) and len(np.unique(values)) > 1)
    if is_whole and np.ptp(values) <= _LARGEST_RANGE:
        return _integer(values)
    if np.ptp(values) == 0.0:
        return Real(), "does not vary"
    if values.min() > 0.0 and (skewness := _skewness(values)) > _SKEWED:
        logarithm = _skewness(np.log(values))
        if abs(logarithm) < skewness:
            return Positive(), f"skewness {skewness:.2f}, of the logarithm {logarithm:.2f}"
    points = np.quantile(values, [0.005, 0.25, 0.75, 0.995])
    spread = (points[3] - points[0]) / max(points[2] - points[1], np.finfo(np.float64).tiny)
    if spread > _HEAVY:
        return HeavyTailed(), f"99% of the values are {spread:.3g} times as wide as half of them"
    return Real(), "real numbers"


def _integer(values):
    levels = np.unique(np.floor(values))
    low, high = int(levels[0]), int(levels[-1])
    reason = f"{len(levels)} whole numbers from {low} to {high}"
    if len(levels) <= _FEW_VALUES and high - low < 2 * len(levels):
        return Integer(low, high), reason
    if low >= 0 and _skewness(values) > _SKEWED:
        return Integer(low=0), f"{reason}, skewness {_skewness(values):.2f}"
    return Integer(), f"{reason}; no bounds"


def _skewness(values):
    values = values / (np.max(np.abs(values)) or 1.0)  # The cubes of large values overflow.
    centred = values - np.mean(values)
    deviation = np.sqrt(np.mean(centred**2))
    return float(np.mean(centred**3) / deviation**3) if deviation > 0.0 else 0.0


def _moments(kind, name, values):
    """The moments of a column after the map to real numbers; `None` for angles."""
    if isinstance(kind, Periodic):
        return None
    if isinstance(kind, Integer) and np.array_equal(values, np.floor(values)):
        # The middles of equal parts, in an order that has nothing to do with the rows.
        noise = np.random.default_rng(0).permutation(len(values)) + 0.5
        values = values + noise / len(values)
    latents = type(kind).bijector([kind], tf.float64).inverse(tf.constant(values[:, np.newaxis], tf.float64))
    moments = Moments()
    moments.add(latents.numpy()[:, 0])
    if not np.isfinite(moments.deviation()):
        raise ValueError(f"The column {name!r} has values that are too large; give it in other units.")
    return moments


def _warn_of_constants(names):
    if names:
        warnings.warn(
            f"The columns {', '.join(map(repr, names))} do not vary. They get a deviation of 1, and their "
            "density has no meaning. Leave them out.",
            stacklevel=3,
        )


def _warn_of_repeated(kinds, values):
    """Warns of a value that many rows share, in a column that is no number of levels."""
    for name, column in values.items():
        levels, counts = np.unique(column, return_counts=True)
        count, value = counts.max(), levels[counts.argmax()]
        is_coarse = np.ptp(column) <= _LARGEST_RANGE and np.array_equal(column, np.floor(column))
        if isinstance(kinds[name], Periodic) and is_coarse:
            warnings.warn(
                f"The column {name!r} has whole numbers alone, as {kinds[name]!r}: they have a probability "
                "and no density. Add noise from U(0, 1) to them first, and round samples down.",
                stacklevel=3,
            )
            continue
        is_rare = count < max(_REPEATED * len(column), _FEWEST_REPEATED)
        if is_rare or len(levels) == 1 or isinstance(kinds[name], Integer):
            continue
        warnings.warn(
            f"{100 * count / len(column):.0f} % of the values of {name!r} are {value:g}. A value has a "
            "probability, and no density: the flow will spread it. Add a column 0 or 1 that says whether the "
            "value is this one, and model the other rows.",
            stacklevel=3,
        )


def _dtype_for(values, kinds, dtype):
    """The name of the dtype, given or chosen; warns if it hides the digits of a column."""
    checked = tf.float32 if dtype is None else check_dtype(dtype)
    coarse = _coarse_columns(values, kinds, checked)
    if coarse and dtype is None:
        checked = tf.float64
        coarse = _coarse_columns(values, kinds, checked)
    advice = "Use float64." if checked == tf.float32 else "Subtract a number from it."
    for name, number in coarse.items():
        warnings.warn(
            f"The column {name!r} has a spread of only {number:.3g} steps of {checked.name}: rounding hides "
            f"its digits. {advice}",
            stacklevel=3,
        )
    return checked.name


def _coarse_columns(values, kinds, dtype):
    """The steps of the columns whose digits the dtype hides, by name."""
    steps = {n: _steps(kind, column, dtype) for (n, column), kind in zip(values.items(), kinds, strict=True)}
    return {name: number for name, number in steps.items() if number < FEWEST_STEPS}


def _steps(kind, values, dtype):
    """The spread of a column in steps of the dtype at its largest values; 0 if it does not hold them."""
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    if not _holds(kind, values, dtype):
        return 0.0
    if isinstance(kind, HeavyTailed):
        center, scale = kind.values()
        return scale / (eps * (abs(center) + scale))
    if isinstance(kind, Periodic):
        return kind.period / (eps * max(np.abs(values).max(), kind.period))
    moments = Moments()
    moments.add(values)
    return np.inf if moments.lowest == moments.highest else float(resolution(moments, dtype))


def _holds(kind, values, dtype):
    """Whether rounding to the dtype leaves whole numbers apart, and other values among those of the kind."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype.as_numpy_dtype)[:, np.newaxis]
    if isinstance(kind, Integer):
        return np.abs(rounded).max() < 1.0 / np.finfo(rounded.dtype).eps
    return np.isfinite(type(kind).bijector([kind], dtype).inverse(tf.constant(rounded))).all()
