"""`ActNorm`: a scale and a shift for each channel, with initial values from data."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Self

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.parameters import as_parameters
from tfp_selfnorm.utils.graphs import checked
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.types import DType, Parameter

_MODE: contextvars.ContextVar[str | None] = contextvars.ContextVar("act_norm_mode", default=None)


class ActNorm(CheckedBijector, tfp.bijectors.AutoCompositeTensorBijector):
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
            self._is_adapted = is_adapted
            shapes = self._shift.shape, self._log_scale.shape
            if not shapes[0].rank or shapes[0] != shapes[1]:
                raise ValueError(
                    f"`shift` and `log_scale` must have one shape (C,); got {tuple(shapes[0])} and "
                    f"{tuple(shapes[1])}. A batch of them is (..., C)."
                )
            can_adapt = shapes[0].rank == 1 and hasattr(shift, "assign") and hasattr(log_scale, "assign")
            # TFP makes copies with tensors instead of variables.
            is_bool = getattr(is_adapted, "dtype", None) == tf.bool
            is_variable = hasattr(is_adapted, "assign")
            if is_adapted is not True and not (is_bool and (can_adapt or not is_variable)):
                raise TypeError(
                    "`is_adapted` must be True, or a tf.Variable of a bool, or a bool tensor. With a "
                    "variable, `shift` and `log_scale` must be variables of shape (C,) too; got "
                    f"{is_adapted!r}."
                )
            super().__init__(1, parameters, dtype)

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
        is_adapted = tf.Variable(False, trainable=False, name=f"{name}_is_adapted")
        return cls(shift, log_scale, is_adapted, name=name)

    @property
    def shift(self) -> Parameter:
        """The shift that `forward` adds; after `adapt`, the mean of the data in each channel."""
        return self._shift

    @property
    def log_scale(self) -> Parameter:
        """The log of the scale of `forward`; after `adapt`, the log of the standard deviation of the data."""
        return self._log_scale

    @property
    def is_adapted(self) -> Parameter:
        """Whether the parameters have their initial values: True, or a bool tensor or `tf.Variable`."""
        return self._is_adapted

    def has_initial_values(self) -> bool:
        """Whether the parameters have their initial values, as a bool of Python; in eager mode."""
        # A variable of a distribution strategy is true in Python, with any value.
        return self._is_adapted is True or bool(tf.reduce_all(self._is_adapted))

    def _forward(self, x):
        self._adapt(x, is_inverse=False)
        return self._checked(tf.exp(self._log_scale) * x + self._shift)

    def _inverse(self, y):
        self._adapt(y, is_inverse=True)
        return self._checked((y - self._shift) * tf.exp(-self._log_scale))

    def _forward_log_det_jacobian(self, x):
        self._check_channels(x)
        return self._checked(tf.reduce_sum(self._log_scale, axis=-1))

    def _inverse_log_det_jacobian(self, y):
        return -self._forward_log_det_jacobian(y)

    def _check_channels(self, value):
        channels = self._shift.shape[-1]
        if value.shape.rank is not None and (value.shape.rank < 1 or value.shape[-1] not in (None, channels)):
            raise ValueError(
                f"`{self.name}` has parameters for {channels} channels; got shape {tuple(value.shape)}."
            )

    def _adapt(self, data, is_inverse):
        """Sets the parameters from the data of the first pass, in the mode "adapt"."""
        self._check_channels(data)
        if _MODE.get() != "adapt" or self.has_initial_values():
            return
        if not hasattr(self._is_adapted, "assign"):
            raise TypeError(f"`{self.name}` cannot adapt to data: its parameters are no variables.")
        values = tf.reshape(tf.cast(data, tf.float64), [-1, data.shape[-1]])
        mean, variance = tf.nn.moments(values, axes=[0])
        stddev = tf.sqrt(variance)
        bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(stddev) & (stddev > 0)))
        if bad.size:
            raise ValueError(
                f"`{self.name}` cannot adapt to data of mean {mean[bad[0]]:.3g} and standard deviation "
                f"{stddev[bad[0]]:.3g} in channel {bad[0]}: the data must be finite, and must vary."
            )
        log_stddev = tf.math.log(stddev)
        self._shift.assign(tf.cast(mean if is_inverse else -mean / stddev, self.dtype))
        self._log_scale.assign(tf.cast(log_stddev if is_inverse else -log_stddev, self.dtype))
        self._is_adapted.assign(True)

    def _checked(self, value):
        """Returns `value` if the parameters have their initial values."""
        if self._is_adapted is True or _MODE.get() == "ignore":
            return value
        message = (
            f"`{self.name}` has no initial values yet: call `adapt` on the flow with training data first."
        )
        return checked(value, tf.reduce_all(self._is_adapted), message)


@contextlib.contextmanager
def act_norm_mode(mode: str) -> Iterator[None]:
    """Sets the mode of `ActNorm`s without initial values, in this thread.

    In the mode "adapt" they take initial values from the data of a pass. In the mode "ignore" they compute
    with the values that they have.
    """
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)
