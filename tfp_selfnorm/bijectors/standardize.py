"""`Standardize`: brings each column of the data to mean 0 and deviation 1."""

import warnings
from collections.abc import Iterable
from typing import Self

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.adaptable import AdaptableToAll, adaptation_flag
from tfp_selfnorm.bijectors.parameters import as_parameters
from tfp_selfnorm.utils.integers import check_sizes
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.types import DType, Parameter, Shape

# A column with fewer steps of the dtype in its deviation has lost its digits.
FEWEST_STEPS = 1000.0


class Standardize(AdaptableToAll):
    """Brings columns to mean 0 and deviation 1: `inverse(y) = (y - mean) / deviation`.

    It stands first in a flow of columns of any units, after the map of each column to all real numbers. The
    values are from data and do not train. `trainable` makes a bijector without them. `adapt` (or
    `FlowModel.adapt`) sets them; they are saved with a model. Until then every call raises ValueError. Inside
    a graph it raises `tf.errors.InvalidArgumentError`; under XLA the result is NaN.

    A column that does not vary gets a deviation of 1, and a warning names its number. Another warning names
    columns whose deviation is too small beside their values for the dtype, such as times in seconds in
    float32.

    `inverse_log_det_jacobian` is `-sum(log(deviation))`. Shapes: the parameters have the shape of an event,
    or of its last dimensions. Dtypes: float32 and float64.

    >>> import tfp_selfnorm as sn
    >>> standardize = sn.Standardize(mean=[1.0, -2.0], deviation=[2.0, 0.5])
    >>> standardize.inverse([[1.0, 0.0], [3.0, -2.0]]).numpy()
    array([[0., 4.],
           [1., 0.]], dtype=float32)
    """

    _PARAMETER_NDIMS = {
        "mean": lambda self, _: self.mean.shape.rank,
        "deviation": lambda self, _: self.deviation.shape.rank,
        "is_adapted": 0,
    }

    def __init__(
        self,
        mean: Parameter,
        deviation: Parameter,
        is_adapted: Parameter = True,
        validate_args: bool = False,
        name: str = "standardize",
    ) -> None:
        """Makes the bijector from its parameters; `trainable` makes the parameters too.

        Args:
          mean: float tensor or `tf.Variable`, of one dimension or more.
          deviation: float, of the same shape: tensor or `tf.Variable`. Positive and finite.
          is_adapted: whether the parameters have their values: True, or a bool tensor or variable.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating, the dtypes differ, or `is_adapted` is a variable beside
            parameters that are not.
          ValueError: if the two parameters do not have one known shape, or a constant deviation is not
            positive and finite.
        """
        is_adapted = bool(is_adapted) if isinstance(is_adapted, np.bool_) else is_adapted
        parameters = dict(locals())
        check_name(name)
        with tf.name_scope(name):
            dtype, self._mean, self._deviation = as_parameters(mean=mean, deviation=deviation)
            shapes = self._mean.shape, self._deviation.shape
            if not shapes[0].rank or not shapes[0].is_fully_defined() or shapes[0] != shapes[1]:
                raise ValueError(
                    "`mean` and `deviation` must have one known shape of one dimension or more; got "
                    f"{shapes[0]} and {shapes[1]}."
                )
            value = None if hasattr(deviation, "assign") else tf.get_static_value(self._deviation)
            if value is not None and not ((value > 0.0) & (value < np.inf)).all():
                raise ValueError(f"`deviation` must be positive and finite; got {deviation!r}.")
            can_adapt = hasattr(mean, "assign") and hasattr(deviation, "assign")
            super().__init__(shapes[0].rank, parameters, dtype, can_adapt)

    @classmethod
    def trainable(cls, event_shape: Shape, *, dtype: DType = tf.float32, name: str = "standardize") -> Self:
        """Makes the bijector with variables that `adapt` must set, and that do not train afterwards.

        Args:
          event_shape: the shape of the parameters: of an event, or of its last dimensions; positive ints.
          dtype: float32 or float64.
          name: name of the bijector; its variables are named after it.

        Raises:
          TypeError: if `dtype` is neither float32 nor float64.
          ValueError: if a size of `event_shape` is unknown or not positive.

        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> sn.Standardize.trainable(3, name="standard").forward(tf.zeros(3))
        Traceback (most recent call last):
        ValueError: `standard` has no initial values yet: call `adapt` on the flow with training data first.
        """
        sizes = check_sizes(event_shape, "event_shape", "one or more positive ints", bool)
        dtype = check_dtype(dtype)
        mean, deviation = (
            tf.Variable(make(sizes, dtype), trainable=False, name=f"{name}_{part}")
            for part, make in (("mean", tf.zeros), ("deviation", tf.ones))
        )
        return cls(mean, deviation, adaptation_flag(name), name=name)

    @property
    def mean(self) -> Parameter:
        """The mean that `inverse` subtracts."""
        return self._mean

    @property
    def deviation(self) -> Parameter:
        """The deviation that `inverse` divides by."""
        return self._deviation

    def _forward(self, x):
        self._prepare(x, self._mean.shape, is_inverse=False)
        return self._checked(x * self._deviation + self._mean)

    def _inverse(self, y):
        self._prepare(y, self._mean.shape, is_inverse=True)
        return self._checked((y - self._mean) / self._deviation)

    def _forward_log_det_jacobian(self, x):
        return self._checked(tf.reduce_sum(tf.math.log(self._deviation)))

    def _inverse_log_det_jacobian(self, y):
        return -self._forward_log_det_jacobian(y)

    def set_from_batches(self, batches: Iterable[np.ndarray], is_inverse: bool) -> None:
        """Sets the values to those of all batches: `forward` or `inverse` then gives mean 0 and deviation 1.

        Raises:
          ValueError: if a column has values that are not finite.

        Warns:
          UserWarning: if a column does not vary, or its deviation is too small for the dtype.
        """
        moments = Moments()
        for data in batches:
            moments.add(np.reshape(data, [-1, *self._mean.shape]))
        mean, deviation = moments.mean, moments.deviation()
        _check_columns(~(np.isfinite(mean) & np.isfinite(deviation)), self.name)
        warn_of_columns(moments, self.dtype, self.name)
        if not is_inverse:
            mean, deviation = -mean / deviation, 1.0 / deviation
        self._mean.assign(tf.constant(mean, self.dtype))
        self._deviation.assign(tf.constant(deviation, self.dtype))
        self._is_adapted.assign(True)


class Moments:
    """The mean, the squared distances from it, and the range of each column; they grow batch by batch.

    Batches are joined as Chan et al. do, so that neither a large mean nor the number of events takes digits.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros([]), np.zeros([])
        self.lowest, self.highest = np.asarray(np.inf), np.asarray(-np.inf)

    def add(self, events: np.ndarray) -> None:
        """Takes another batch of events in float64."""
        if not len(events):
            return
        self.lowest = np.minimum(self.lowest, np.min(events, axis=0))
        self.highest = np.maximum(self.highest, np.max(events, axis=0))
        with np.errstate(invalid="ignore", over="ignore"):
            first = events[:1]
            mean = first[0] + np.mean(events - first, axis=0)
            squares = np.sum((events - mean) ** 2, axis=0)
            total = self.count + len(events)
            step = mean - self.mean
            self.squares = self.squares + squares + step**2 * (self.count * len(events) / total)
            self.mean = self.mean + step * (len(events) / total)
        self.count = total

    def deviation(self) -> np.ndarray:
        """The deviation of each column, and 1 where all values are the same."""
        deviation = np.sqrt(self.squares / self.count)
        return np.where((self.highest == self.lowest) | (deviation == 0.0), 1.0, deviation)


def warn_of_columns(moments: Moments, dtype: tf.DType, name: str) -> None:
    """Warns of columns that do not vary, and of those that the dtype does not resolve."""
    constant = moments.highest == moments.lowest
    if constant.any():
        warnings.warn(
            f"`{name}` got data that do not vary in {_columns(constant)}. They get a deviation of 1, and "
            "their density has no meaning. Leave them out.",
            stacklevel=2,
        )
    steps = resolution(moments, dtype)
    coarse = ~constant & (steps < FEWEST_STEPS)
    if coarse.any():
        warnings.warn(
            f"`{name}` got data in {_columns(coarse)} with a deviation of only {np.min(steps[coarse]):.3g} "
            f"steps of {dtype.name}: rounding hides their digits. Use float64, from the data on.",
            stacklevel=2,
        )


def resolution(moments: Moments, dtype: tf.DType) -> np.ndarray:
    """The deviation of each column in steps of the dtype at its largest value."""
    largest = np.maximum(np.abs(moments.lowest), np.abs(moments.highest))
    limits = np.finfo(dtype.as_numpy_dtype)
    step = np.maximum(largest * float(limits.eps), float(limits.tiny))
    return moments.deviation() / step


def _check_columns(is_bad, name):
    if is_bad.any():
        raise ValueError(f"`{name}` cannot adapt to data that are not finite in {_columns(is_bad)}.")


def _columns(chosen):
    """The numbers of the columns in words; pairs and so on in larger events."""
    numbers = [", ".join(map(str, index)) for index in np.argwhere(chosen)]
    if np.ndim(chosen) > 1:
        numbers = [f"({number})" for number in numbers]
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"column{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:10])}{more}"
