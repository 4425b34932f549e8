"""`ActNorm`: a scale and a shift for each channel, which start from data."""

import contextlib
import threading

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.parameters import as_parameters, parameter_properties
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bool, check_dtype

_THREAD = threading.local()


class ActNorm(tfp.bijectors.AutoCompositeTensorBijector):
    """A scale and a shift for each channel: `forward(x) = exp(log_scale) x + shift`.

    `trainable` makes variables that are to start from data: `adapt` (or `FlowModel.adapt`) sets them so that
    on these data the map from data to latent gives each channel mean 0 and variance 1. Until then every
    call is refused: ValueError, inside a graph `tf.errors.InvalidArgumentError`, and NaN under XLA.

    `forward_log_det_jacobian` is the sum of `log_scale`, for each pixel. Shapes: parameters `[C]`, events
    `[C]`, or images and other arrays with the channels last. Parameters `[..., C]` broadcast, as TFP's do.
    Dtypes: float32 and float64.

    >>> norm = ActNorm(shift=[1.0, 0.0], log_scale=[0.0, 1.0])
    >>> norm.forward([1.0, 1.0]).numpy().round(4)
    array([2.    , 2.7183], dtype=float32)

    References: Kingma & Dhariwal, "Glow", NeurIPS 2018, section 3.1.
    """

    def __init__(self, shift, log_scale, is_adapted=True, validate_args=False, name="act_norm"):
        """Makes the bijector from its parameters; `trainable` makes the parameters too.

        Args:
          shift: float `[C]`, or `[..., C]` for a batch: tensor or `tf.Variable`.
          log_scale: float, of the same shape: tensor or `tf.Variable`.
          is_adapted: True, or a bool tensor or `tf.Variable`: whether the parameters have their start.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating, the dtypes differ, or what is to be adapted cannot be.
          ValueError: if the parameters are not of one shape with channels.
        """
        is_adapted = bool(is_adapted) if isinstance(is_adapted, np.bool_) else is_adapted
        parameters = dict(locals())
        check_name(name)
        check_bool(validate_args, "validate_args")
        with tf.name_scope(name):
            dtype, self._shift, self._log_scale = as_parameters(shift=shift, log_scale=log_scale)
            self._is_adapted = is_adapted
            shapes = self._shift.shape, self._log_scale.shape
            if not shapes[0].rank or shapes[0] != shapes[1]:
                raise ValueError(
                    f"`shift` and `log_scale` must have one shape (C,); got {tuple(shapes[0])} and "
                    f"{tuple(shapes[1])}. A batch of them is (..., C)."
                )
            can_start = shapes[0].rank == 1 and hasattr(shift, "assign") and hasattr(log_scale, "assign")
            # TFP makes copies with tensors in place of variables.
            is_bool = getattr(is_adapted, "dtype", None) == tf.bool
            is_variable = hasattr(is_adapted, "assign")
            if is_adapted is not True and not (is_bool and (can_start or not is_variable)):
                raise TypeError(
                    "`is_adapted` must be True, or a tf.Variable of a bool beside a `shift` and a "
                    "`log_scale` that are variables of shape (C,) too, or a bool tensor; got "
                    f"{is_adapted!r}."
                )
            super().__init__(
                forward_min_event_ndims=1,
                is_constant_jacobian=True,
                dtype=dtype,
                parameters=parameters,
                validate_args=validate_args,
                name=name,
            )

    @classmethod
    def trainable(cls, channels, dtype=tf.float32, name="act_norm"):
        """Makes the bijector with variables that `adapt` is to set.

        Args:
          channels: C, a positive int.
          dtype: float32 or float64.
          name: name of the bijector; its variables are named after it.

        Raises:
          TypeError: if `dtype` is neither float32 nor float64.
          ValueError: if `channels` is no positive int.

        >>> norm = ActNorm.trainable(3)
        >>> norm.forward(tf.zeros(3))
        Traceback (most recent call last):
        ValueError: `act_norm` has no start yet: call `adapt` on the flow with some training data first.
        """
        channels, dtype = check_positive_int(channels, "channels"), check_dtype(dtype)
        shift, log_scale = (
            tf.Variable(tf.zeros([channels], dtype), name=f"{name}_{part}") for part in ("shift", "log_scale")
        )
        is_adapted = tf.Variable(False, trainable=False, name=f"{name}_is_adapted")
        return cls(shift, log_scale, is_adapted, name=name)

    @classmethod
    def _parameter_properties(cls, dtype):
        return parameter_properties(shift=1, log_scale=1, is_adapted=0)

    @property
    def shift(self):
        """What `forward` adds; after `adapt` the mean of the data of the channel."""
        return self._shift

    @property
    def log_scale(self):
        """The log of what `forward` multiplies by; after `adapt` of the data's standard deviation."""
        return self._log_scale

    @property
    def is_adapted(self):
        """Whether the parameters have their start: True, or a bool tensor or `tf.Variable`."""
        return self._is_adapted

    def has_start(self) -> bool:
        """Whether the parameters have their start; in eager mode."""
        # A variable of a distribution strategy counts as true whatever it holds.
        return self._is_adapted is True or bool(tf.reduce_all(self._is_adapted))

    def _forward(self, x):
        self._start(x, is_inverse=False)
        return self._started(tf.exp(self._log_scale) * x + self._shift)

    def _inverse(self, y):
        self._start(y, is_inverse=True)
        return self._started((y - self._shift) * tf.exp(-self._log_scale))

    def _forward_log_det_jacobian(self, x):
        self._check_channels(x)
        return self._started(tf.reduce_sum(self._log_scale, axis=-1))

    def _inverse_log_det_jacobian(self, y):
        return -self._forward_log_det_jacobian(y)

    def _check_channels(self, value):
        channels = self._shift.shape[-1]
        if value.shape.rank is not None and (value.shape.rank < 1 or value.shape[-1] not in (None, channels)):
            raise ValueError(
                f"`{self.name}` has parameters for {channels} channels; got shape {tuple(value.shape)}."
            )

    def _start(self, data, is_inverse):
        """In the mode "adapt" the first pass sets the parameters from what it is given."""
        self._check_channels(data)
        if _mode() != "adapt" or self.has_start():
            return
        if not hasattr(self._is_adapted, "assign"):
            raise TypeError(f"`{self.name}` cannot start from data: its parameters are no variables.")
        values = tf.reshape(tf.cast(data, tf.float64), [-1, data.shape[-1]])
        mean, variance = tf.nn.moments(values, axes=[0])
        stddev = tf.sqrt(variance)
        bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(stddev) & (stddev > 0)))
        if bad.size:
            raise ValueError(
                f"`{self.name}` cannot start from data of mean {mean[bad[0]]:.3g} and standard deviation "
                f"{stddev[bad[0]]:.3g} in channel {bad[0]}: they must be finite, and must vary."
            )
        log_stddev = tf.math.log(stddev)
        self._shift.assign(tf.cast(mean if is_inverse else -mean / stddev, self.dtype))
        self._log_scale.assign(tf.cast(log_stddev if is_inverse else -log_stddev, self.dtype))
        self._is_adapted.assign(True)

    def _started(self, value):
        """`value`, unless there is no start yet."""
        if self._is_adapted is True or _mode() == "ignore":
            return value
        message = f"`{self.name}` has no start yet: call `adapt` on the flow with some training data first."
        if tf.executing_eagerly():
            if not self.has_start():
                raise ValueError(message)
            return value
        is_adapted = tf.reduce_all(self._is_adapted)
        # XLA drops the assertion; NaN remains.
        with tf.control_dependencies([tf.debugging.Assert(is_adapted, [message])]):
            return tf.where(is_adapted, value, tf.constant(np.nan, value.dtype))


@contextlib.contextmanager
def act_norm_mode(mode):
    """Within it, in this thread, an `ActNorm` without a start takes it ("adapt") or not ("ignore")."""
    previous, _THREAD.mode = _mode(), mode
    try:
        yield
    finally:
        _THREAD.mode = previous


def _mode():
    return getattr(_THREAD, "mode", None)
