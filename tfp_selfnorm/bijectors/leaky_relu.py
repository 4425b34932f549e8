"""`LeakyReLU`, and the rules of the negative slope that it shares with its smooth sibling."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.parameters import common_dtype, parameter
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bool


class LeakyReLU(tfp.bijectors.AutoCompositeTensorBijector):
    """`forward(x) = x` for `x >= 0` and `alpha x` otherwise, elementwise.

    `forward_log_det_jacobian` is 0 or `log(alpha)`; at 0, where there is no derivative, it is 0. Both
    directions cost O(1) an element. The slope may be learned: give a `tf.Variable` or, to keep it in
    (0, 1), `tfp.util.TransformedVariable(0.3, tfb.Sigmoid())`.

    The density of a flow with it jumps where an element passes 0. The gradient of a likelihood does not see
    the jumps, so that training can end at a worse flow than with `SmoothLeakyReLU`, whose density is smooth.

    Shapes: any; `negative_slope` broadcasts. Dtypes: float32 and float64, as the slope. Units: nats.

    >>> LeakyReLU(0.5).forward(tf.constant([-2.0, 3.0])).numpy()
    array([-1.,  3.], dtype=float32)
    >>> slope = tfp.util.TransformedVariable(0.3, tfb.Sigmoid())
    >>> len(LeakyReLU(slope).trainable_variables)
    1

    References: Maas et al., "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """

    def __init__(self, negative_slope=0.3, validate_args=False, name="leaky_relu"):
        """Makes the bijector.

        Args:
          negative_slope: `alpha`, in (0, 1]; float tensor, `tf.Variable` or `TransformedVariable`.
          validate_args: whether to check at each call that the slope is in (0, 1].
          name: name of the ops.

        Raises:
          TypeError: if the slope is not floating.
          ValueError: if a slope known now is outside (0, 1]; that of a variable counts under `validate_args`.
        """
        parameters = dict(locals())
        check_name(name)
        with tf.name_scope(name):
            self._negative_slope = slope_parameter(negative_slope, validate_args)
            super().__init__(
                forward_min_event_ndims=0,
                dtype=self._negative_slope.dtype,
                parameters=parameters,
                validate_args=validate_args,
                name=name,
            )

    @classmethod
    def _parameter_properties(cls, dtype):
        return {"negative_slope": slope_properties()}

    @classmethod
    def _is_increasing(cls):
        return True

    @property
    def negative_slope(self):
        """The slope left of 0."""
        return self._negative_slope

    def _forward(self, x):
        return x * self._slope(x)

    def _inverse(self, y):
        return y / self._slope(y)

    def _forward_log_det_jacobian(self, x):
        return self._log_slope(x)

    def _inverse_log_det_jacobian(self, y):
        return -self._log_slope(y)

    def _log_slope(self, x):
        return tf.math.log(self._slope(x))

    def _slope(self, x):
        # `tf.where` on what is computed would give NaN where the gradient of the branch not taken overflows.
        return tf.where(x < 0.0, self._negative_slope, tf.ones_like(x))

    def _parameter_control_dependencies(self, is_init):
        return slope_assertions(self, is_init)


def slope_parameter(negative_slope, validate_args):
    """Returns the slope as a tensor, or as it is where it may change; checks a slope known now."""
    check_bool(validate_args, "validate_args")
    value = parameter(negative_slope, common_dtype(negative_slope=negative_slope), "negative_slope")
    is_mutable = isinstance(value, (tf.Variable, tfp.util.DeferredTensor))
    is_known = not is_mutable or (validate_args and tf.executing_eagerly())
    static = tf.get_static_value(tf.convert_to_tensor(value)) if is_known else None
    if static is None:
        return value
    # Processors may round a subnormal slope to 0.
    is_right = (static >= np.finfo(static.dtype).tiny) & (static <= 1)
    if not np.size(static) or not np.all(is_right):
        raise ValueError(f"`negative_slope` must be in (0, 1]; got {negative_slope!r}.")
    return value


def slope_properties():
    """The TFP properties of a slope parameter."""
    return tfp.util.ParameterProperties(default_constraining_bijector_fn=tfp.bijectors.Sigmoid)


def slope_assertions(bijector, is_init):
    """The run-time checks of the slope under `validate_args`."""
    slope = bijector.negative_slope
    is_mutable = isinstance(slope, (tf.Variable, tfp.util.DeferredTensor))
    if not bijector.validate_args or is_init == is_mutable:
        return []
    slope = tf.convert_to_tensor(slope)
    message = f"`negative_slope` of `{bijector.name}` must be in (0, 1]."
    return [
        tf.debugging.assert_positive(slope, message),
        tf.debugging.assert_less_equal(slope, tf.ones([], slope.dtype), message),
    ]
