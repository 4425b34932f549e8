"""`ActNorm`: a scale and a shift for each channel, with initial values from data."""

from typing import Self

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.adaptable import Adaptable, adaptation_flag
from tfp_selfnorm.bijectors.parameters import as_parameters, check_event_shape
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.types import DType, Parameter


class ActNorm(Adaptable):
    """A scale and a shift for each channel: `forward(x) = exp(log_scale) x + shift`.

    `trainable` makes variables without initial values. `adapt` (or `FlowModel.adapt`) sets them from data: on
    these data, each channel of the latent has mean 0 and variance 1. Until then every call raises ValueError.
    Inside a graph it raises `tf.errors.InvalidArgumentError`; under XLA the result is NaN.

    `forward_log_det_jacobian` is the sum of `log_scale`, for each pixel. Shapes: parameters `[C]`, events
    `[C]`, or images and other arrays with the channels last. Parameters `[..., C]` broadcast, as TFP's do.
    Dtypes: float32 and float64.

    >>> import tfp_selfnorm as sn
    >>> norm = sn.ActNorm(shift=[1.0, 0.0], log_scale=[0.0, 1.0])
    >>> norm.forward([1.0, 1.0]).numpy().round(4)
    array([2.    , 2.7183], dtype=float32)

    References: Kingma & Dhariwal, "Glow", NeurIPS 2018, section 3.1.
    """

    _PARAMETER_NDIMS = {"shift": 1, "log_scale": 1, "is_adapted": 0}

    def __init__(
        self,
        shift: Parameter,
        log_scale: Parameter,
        is_adapted: Parameter = True,
        validate_args: bool = False,
        name: str = "act_norm",
    ) -> None:
        """Makes the bijector from its parameters; `trainable` makes the parameters too.

        Args:
          shift: float `[C]`, or `[..., C]` for a batch: tensor or `tf.Variable`.
          log_scale: float, of the same shape: tensor or `tf.Variable`.
          is_adapted: whether the parameters have their initial values: True, or a bool tensor or variable.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating, the dtypes differ, or `is_adapted` is a variable beside
            parameters that are not.
          ValueError: if the two parameters do not have one shape with channels.
        """
        is_adapted = bool(is_adapted) if isinstance(is_adapted, np.bool_) else is_adapted
        parameters = dict(locals())
        check_name(name)
        with tf.name_scope(name):
            dtype, self._shift, self._log_scale = as_parameters(shift=shift, log_scale=log_scale)
            shapes = self._shift.shape, self._log_scale.shape
            if not shapes[0].rank or shapes[0] != shapes[1]:
                raise ValueError(
                    f"`shift` and `log_scale` must have one shape (C,); got {tuple(shapes[0])} and "
                    f"{tuple(shapes[1])}. A batch of them is (..., C)."
                )
            can_adapt = shapes[0].rank == 1 and hasattr(shift, "assign") and hasattr(log_scale, "assign")
            super().__init__(1, parameters, dtype, can_adapt)

    @classmethod
    def trainable(cls, channels: int, *, dtype: DType = tf.float32, name: str = "act_norm") -> Self:
        """Makes the bijector with variables that `adapt` must set.

        Args:
          channels: C, a positive int.
          dtype: float32 or float64.
          name: name of the bijector; its variables are named after it.

        Raises:
          TypeError: if `dtype` is neither float32 nor float64.
          ValueError: if `channels` is no positive int.

        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> norm = sn.ActNorm.trainable(3)
        >>> norm.forward(tf.zeros(3))
        Traceback (most recent call last):
        ValueError: `act_norm` has no initial values yet: call `adapt` on the flow with training data first.
        """
        channels, dtype = check_positive_int(channels, "channels"), check_dtype(dtype)
        shift, log_scale = (
            tf.Variable(tf.zeros([channels], dtype), name=f"{name}_{part}") for part in ("shift", "log_scale")
        )
        return cls(shift, log_scale, adaptation_flag(name), name=name)

    @property
    def shift(self) -> Parameter:
        """The shift that `forward` adds; after `adapt`, the mean of the data in each channel."""
        return self._shift

    @property
    def log_scale(self) -> Parameter:
        """The log of the scale of `forward`; after `adapt`, the log of the standard deviation of the data."""
        return self._log_scale

    def _forward(self, x):
        self._prepare(x, self._shift.shape[-1:], is_inverse=False)
        return self._checked(tf.exp(self._log_scale) * x + self._shift)

    def _inverse(self, y):
        self._prepare(y, self._shift.shape[-1:], is_inverse=True)
        return self._checked((y - self._shift) * tf.exp(-self._log_scale))

    def _forward_log_det_jacobian(self, x):
        check_event_shape(x, self._shift.shape[-1:], "x", self.name)
        return self._checked(tf.reduce_sum(self._log_scale, axis=-1))

    def _inverse_log_det_jacobian(self, y):
        return -self._forward_log_det_jacobian(y)

    def _set_from(self, data, is_inverse):
        values = np.reshape(data, [-1, data.shape[-1]])
        mean, stddev = np.mean(values, axis=0), np.std(values, axis=0)
        bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(stddev) & (stddev > 0)))
        if bad.size:
            raise ValueError(
                f"`{self.name}` cannot adapt to data of mean {mean[bad[0]]:.3g} and standard deviation "
                f"{stddev[bad[0]]:.3g} in channel {bad[0]}: the data must be finite, and must vary."
            )
        log_stddev = np.log(stddev)
        self._shift.assign(tf.constant(mean if is_inverse else -mean / stddev, self.dtype))
        self._log_scale.assign(tf.constant(log_stddev if is_inverse else -log_stddev, self.dtype))
