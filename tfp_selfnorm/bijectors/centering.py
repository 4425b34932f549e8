"""`Centering`: subtracts the mean of the training data from each event."""

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


class Centering(AdaptableToAll):
    """Subtracts the mean of the data: `inverse(y) = y - mean`, `forward(x) = x + mean`.

    It stands first in a flow, between the data and the layers. Without it the first layers must learn to
    remove the mean. `trainable` makes a bijector without an initial value. `adapt` (or `FlowModel.adapt`)
    sets the mean from data. Until then every call raises ValueError. Inside a graph it raises
    `tf.errors.InvalidArgumentError`; under XLA the result is NaN.

    The log-det is 0. Shapes: the mean has the shape of an event, or of its last dimensions, for example `[C]`
    for a mean of each channel of images. Dtypes: float32 and float64.

    >>> import tfp_selfnorm as sn
    >>> centering = sn.Centering(mean=[1.0, -2.0])
    >>> centering.inverse([[1.0, 0.0], [3.0, -2.0]]).numpy()
    array([[0., 2.],
           [2., 0.]], dtype=float32)
    """

    _PARAMETER_NDIMS = {"mean": lambda self, _: self.mean.shape.rank, "is_adapted": 0}

    def __init__(
        self,
        mean: Parameter,
        is_adapted: Parameter = True,
        validate_args: bool = False,
        name: str = "centering",
    ) -> None:
        """Makes the bijector from its parameters; `trainable` makes the parameters too.

        Args:
          mean: float tensor or `tf.Variable`, of one dimension or more.
          is_adapted: whether the mean has its initial value: True, or a bool tensor or variable.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if the mean is not floating, or `is_adapted` is a variable and the mean is not.
          ValueError: if the mean has no dimensions, or an unknown shape.
        """
        is_adapted = bool(is_adapted) if isinstance(is_adapted, np.bool_) else is_adapted
        parameters = dict(locals())
        check_name(name)
        with tf.name_scope(name):
            dtype, self._mean = as_parameters(mean=mean)
            if not self._mean.shape.rank or not self._mean.shape.is_fully_defined():
                raise ValueError(
                    f"`mean` must have a known shape of one dimension or more; got {self._mean.shape}."
                )
            super().__init__(self._mean.shape.rank, parameters, dtype, can_adapt=hasattr(mean, "assign"))

    @classmethod
    def trainable(cls, event_shape: Shape, *, dtype: DType = tf.float32, name: str = "centering") -> Self:
        """Makes the bijector with a variable that `adapt` must set.

        Args:
          event_shape: the shape of the mean: of an event, or of its last dimensions; positive ints.
          dtype: float32 or float64.
          name: name of the bijector; its variables are named after it.

        Raises:
          TypeError: if `dtype` is neither float32 nor float64.
          ValueError: if a size of `event_shape` is unknown or not positive.

        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> sn.Centering.trainable([3]).forward(tf.zeros(3))
        Traceback (most recent call last):
        ValueError: `centering` has no initial values yet: call `adapt` on the flow with training data first.
        """
        sizes = check_sizes(event_shape, "event_shape", "one or more positive ints", bool)
        dtype = check_dtype(dtype)
        mean = tf.Variable(tf.zeros(sizes, dtype), name=f"{name}_mean")
        return cls(mean, adaptation_flag(name), name=name)

    @property
    def mean(self) -> Parameter:
        """The mean that `inverse` subtracts."""
        return self._mean

    def _forward(self, x):
        self._prepare(x, self._mean.shape, is_inverse=False)
        return self._checked(x + self._mean)

    def _inverse(self, y):
        self._prepare(y, self._mean.shape, is_inverse=True)
        return self._checked(y - self._mean)

    def _forward_log_det_jacobian(self, x):
        return self._checked(tf.zeros([], x.dtype))

    def _inverse_log_det_jacobian(self, y):
        return self._checked(tf.zeros([], y.dtype))

    def set_from_batches(self, batches: Iterable[np.ndarray], is_inverse: bool) -> None:
        """Sets the mean to that of all batches, so that the result of `forward` or `inverse` has mean 0.

        Raises:
          ValueError: if an event, or the mean, is not finite.
        """
        total, count = np.zeros(self._mean.shape), 0
        for data in batches:
            events = np.reshape(data, [-1, *self._mean.shape])
            bad = np.flatnonzero(~np.isfinite(events).reshape([len(events), -1]).all(axis=1))
            if bad.size:
                raise ValueError(
                    f"`{self.name}` cannot adapt: event {count + bad[0]} (counted from 0) is not finite "
                    "here. It is not finite in the data, or the bijectors before this one make it so, such "
                    "as a preprocessing of data outside of its range."
                )
            total, count = total + np.sum(events, axis=0), count + len(events)
        mean = total / count
        if not np.isfinite(mean).all():
            raise ValueError(f"`{self.name}` cannot adapt to data whose mean is not finite.")
        self._mean.assign(tf.constant(mean if is_inverse else -mean, self.dtype))
        self._is_adapted.assign(True)
