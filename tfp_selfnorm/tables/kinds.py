"""The kinds of columns: for each one the map from all real numbers to its values."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.options import check_number, check_positive
from tfp_selfnorm.utils.types import TfpObject

tfb = tfp.bijectors


@dataclasses.dataclass(frozen=True)
class Kind:
    """The kind of a column; base of the kinds."""

    def contains(self, values: np.ndarray) -> np.ndarray:
        """Whether each value is one of a column of this kind; values are finite."""
        return np.full(values.shape, True)

    def expected(self) -> str:
        """The values of a column in words."""
        return "finite"

    def finished(self, values: np.ndarray) -> "Kind":
        """The kind with the parameters that the data give."""
        return self

    def as_data(self, samples: np.ndarray) -> np.ndarray:
        """Samples of a flow as values of the column."""
        return samples

    @classmethod
    def bijector(cls, kinds: Sequence[Any], dtype: tf.DType) -> TfpObject:
        """The map from real numbers to the values of columns of this kind, the last dimension."""
        return tfb.Identity()


@dataclasses.dataclass(frozen=True)
class Real(Kind):
    """Any real numbers, as they are.

    >>> import tfp_selfnorm as sn
    >>> sn.tables.Real()
    Real()
    """


@dataclasses.dataclass(frozen=True)
class Positive(Kind):
    """Numbers above `low`: the logarithm of the distance from it, so that factors become differences.

    `low` itself is excluded. A column of amounts with zeros has no density at 0: take `Integer` for counts,
    a `low` below the zeros, or a column that says whether the amount is zero.

    Args:
      low: a finite number.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is not finite.
    """

    low: float = 0.0

    def __post_init__(self) -> None:
        _set(self, low=_finite(self.low, "low"))

    def contains(self, values: np.ndarray) -> np.ndarray:
        return values > self.low

    def expected(self) -> str:
        return f"above {self.low:g}"

    @classmethod
    def bijector(cls, kinds: Sequence[Any], dtype: tf.DType) -> TfpObject:
        return _above([kind.low for kind in kinds], dtype)


@dataclasses.dataclass(frozen=True)
class Bounded(Kind):
    """Numbers from `low` to `high`, both included: a scaled logit.

    As in `images.pixel_sigmoid`, the interval of the map is wider by the margin times the width at each end,
    so that the logits of the ends are finite. Samples of a flow are in the wider interval; `Columns.to_frame`
    brings them back.

    Args:
      low: a finite number.
      high: a finite number, larger than `low`.
      margin: in (0, 0.5).

    Raises:
      TypeError: if one is no number.
      ValueError: if one is not finite or out of range.
    """

    low: float
    high: float
    margin: float = 1e-6

    def __post_init__(self) -> None:
        low, high = _finite(self.low, "low"), _finite(self.high, "high")
        if not low < high:
            raise ValueError(f"`high` must be larger than `low`, {self.low!r}; got {self.high!r}.")
        margin = check_number(self.margin, "margin", "in (0, 0.5)", lambda value: 0.0 < value < 0.5)
        _set(self, low=low, high=high, margin=margin)

    def contains(self, values: np.ndarray) -> np.ndarray:
        return (values >= self.low) & (values <= self.high)

    def expected(self) -> str:
        return f"from {self.low:g} to {self.high:g}"

    def as_data(self, samples: np.ndarray) -> np.ndarray:
        return np.clip(samples, self.low, self.high)

    @classmethod
    def bijector(cls, kinds: Sequence[Any], dtype: tf.DType) -> TfpObject:
        return _between([(kind.low, kind.high, kind.margin) for kind in kinds], dtype)


@dataclasses.dataclass(frozen=True)
class HeavyTailed(Kind):
    """Real numbers with far outliers: `asinh((x - center) / scale)`, by `tfb.Sinh`.

    Near the center it is linear, and far out the logarithm. The steps of an optimizer, and splines, then meet
    no values of a hundred deviations. The tails of samples are those of a log-normal: heavier than those of
    each Gaussian, and lighter than a power, whose moments are infinite.

    Args:
      center: a finite number; `None` for the median of the data.
      scale: a positive number; `None` for the distance of the quartiles of the data.

    Raises:
      TypeError: if one is no number.
      ValueError: if one is not finite or not positive.
    """

    center: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.center is not None:
            _set(self, center=_finite(self.center, "center"))
        if self.scale is not None:
            _set(self, scale=check_positive(self.scale, "scale"))

    def finished(self, values: np.ndarray) -> "HeavyTailed":
        first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
        spread = float(third - first) or float(np.std(values)) or 1.0
        center = float(median) if self.center is None else self.center
        return HeavyTailed(center, spread if self.scale is None else self.scale)

    def values(self) -> tuple[float, float]:
        """The center and the scale, after `finished`."""
        return self.center, self.scale  # type: ignore[return-value]

    @classmethod
    def bijector(cls, kinds: Sequence[Any], dtype: tf.DType) -> TfpObject:
        pairs = np.transpose([kind.values() for kind in kinds])
        centers, scales = (tf.constant(values, dtype) for values in pairs)
        return tfb.Chain([tfb.Shift(centers), tfb.Scale(scales), tfb.Sinh()])


@dataclasses.dataclass(frozen=True)
class Integer(Kind):
    """Whole numbers, which noise from U(0, 1) makes continuous: see `Columns.dequantize`.

    With `low` and `high` the map is the one of `Bounded` from `low` to `high + 1`; with `low` alone the one
    of `Positive`; without them values are as they are. `Columns.to_frame` rounds samples down.

    Args:
      low: the lowest value, an int, or `None`.
      high: the highest value, an int not below `low`, or `None`. It needs a `low`.

    Raises:
      ValueError: if one is no int, or `high` is out of range.
    """

    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        low = None if self.low is None else check_int(self.low, "low")
        high = None if self.high is None else check_int(self.high, "high")
        if high is not None and (low is None or high < low):
            raise ValueError(f"`high` must be at least `low`, {self.low!r}; got {self.high!r}.")
        _set(self, low=low, high=high)

    def contains(self, values: np.ndarray) -> np.ndarray:
        # With the noise of `dequantize` or without it.
        floor = np.floor(values)
        return floor == np.clip(floor, *self._limits())

    def expected(self) -> str:
        if self.high is None:
            return "whole numbers" if self.low is None else f"{self.low} or more"
        return f"from {self.low} to {self.high}"

    def as_data(self, samples: np.ndarray) -> np.ndarray:
        samples = np.asarray(samples, np.result_type(samples, np.float32))
        # The float below 2**63 is the largest that is an int64.
        largest = np.nextafter(samples.dtype.type(2**63), samples.dtype.type(0))
        whole = np.clip(np.floor(samples), -largest, largest)
        return np.clip(whole, *self._limits()).astype(np.int64)

    def _limits(self):
        low = -math.inf if self.low is None else self.low
        return low, math.inf if self.high is None else self.high

    @classmethod
    def bijector(cls, kinds: Sequence[Any], dtype: tf.DType) -> TfpObject:
        # All of them have the same bounds or none: see `group`.
        if kinds[0].high is not None:
            return _between([(kind.low, kind.high + 1, 1e-6) for kind in kinds], dtype)
        return tfb.Identity() if kinds[0].low is None else _above([kind.low for kind in kinds], dtype)


@dataclasses.dataclass(frozen=True)
class Periodic(Kind):
    """Angles, hours of the day and the like: values count modulo the period.

    The density has no seam, and integrates to one over a period. It needs a `table_flow`: see there. Samples
    are from `low` to `low + period`.

    Args:
      period: a positive number.
      low: a finite number.

    Raises:
      TypeError: if one is no number.
      ValueError: if one is not finite, or the period not positive.

    >>> import tfp_selfnorm as sn
    >>> sn.tables.Periodic(period=360)
    Periodic(period=360.0, low=0.0)
    """

    period: float
    low: float = 0.0

    def __post_init__(self) -> None:
        _set(self, period=check_positive(self.period, "period"), low=_finite(self.low, "low"))

    def as_data(self, samples: np.ndarray) -> np.ndarray:
        # Rounding may give the period itself.
        turned = np.mod(samples - self.low, self.period)
        return self.low + np.where(turned < self.period, turned, 0.0)

    @classmethod
    def bijector(cls, kinds: Sequence[Any], dtype: tf.DType) -> TfpObject:
        lows = tf.constant([kind.low for kind in kinds], dtype)
        scales = tf.constant([kind.period / (2.0 * math.pi) for kind in kinds], dtype)
        return tfb.Chain([tfb.Shift(lows), tfb.Scale(scales), tfb.Shift(tf.constant(math.pi, dtype))])


KINDS = {
    "real": Real,
    "positive": Positive,
    "heavy_tailed": HeavyTailed,
    "integer": Integer,
    "bounded": Bounded,
    "periodic": Periodic,
}


def group(kind: Kind) -> tuple:
    """Columns of one group have one bijector for all of them."""
    bounds = (kind.low is None, kind.high is None) if isinstance(kind, Integer) else ()
    return (list(KINDS.values()).index(type(kind)), *bounds)


def _above(lows, dtype):
    if not any(lows):
        return tfb.Exp()
    return tfb.Chain([tfb.Shift(tf.constant(lows, dtype)), tfb.Exp()])


def _between(bounds, dtype):
    """The sigmoid of intervals that are wider by their margins."""
    low, high, margin = np.transpose(np.asarray(bounds, np.float64))
    numpy_dtype = dtype.as_numpy_dtype
    margin = np.maximum(margin, np.finfo(numpy_dtype).eps)
    width = (high - low) / (1.0 - 2.0 * margin)
    # Rounding must not put the ends on the bounds, whose logits would be infinite.
    lowest = np.minimum(low - margin * width, np.nextafter(low.astype(numpy_dtype), -np.inf))
    highest = np.maximum(high + margin * width, np.nextafter(high.astype(numpy_dtype), np.inf))
    return tfb.Sigmoid(tf.constant(lowest, dtype), tf.constant(highest, dtype))


def _finite(value, name):
    return check_number(value, name, "finite", math.isfinite)


def _set(kind, **values):
    for name, value in values.items():
        object.__setattr__(kind, name, value)
