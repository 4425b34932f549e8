"""The base classes of the leaky activations: the rules of their negative slope, and their smooth maps."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.parameters import as_parameters, is_checked_now, is_mutable
from tfp_selfnorm.math.linear import sum_to_shape
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.types import Parameter


class LeakyActivation(CheckedBijector, tfp.bijectors.AutoCompositeTensorBijector):
    """An increasing elementwise map. Its slope is `alpha` on the left and 1 on the right."""

    def __init__(
        self, negative_slope: Parameter = 0.3, validate_args: bool = False, name: str | None = None
    ) -> None:
        """Makes the bijector.

        Args:
          negative_slope: `alpha`, in (0, 1]: float tensor, `tf.Variable` or `TransformedVariable`.
          validate_args: whether to check at each call that the slope is in (0, 1].
          name: name of the ops.

        Raises:
          TypeError: if the slope is not floating.
          ValueError: if a constant slope is outside (0, 1], or a variable slope with `validate_args`.
        """
        name = self._DEFAULT_NAME if name is None else name
        parameters = dict(locals())
        check_name(name)
        with tf.name_scope(name):
            self._negative_slope = _checked_slope(negative_slope, validate_args)
            super().__init__(0, parameters, self._negative_slope.dtype, is_constant_jacobian=False)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        slope = tfp.util.ParameterProperties(default_constraining_bijector_fn=tfp.bijectors.Sigmoid)
        return {"negative_slope": slope}

    @classmethod
    def _is_increasing(cls) -> bool:
        return True

    @property
    def negative_slope(self) -> Parameter:
        """The slope on the left."""
        return self._negative_slope

    def _parameter_control_dependencies(self, is_init):
        if not is_checked_now(self, self._negative_slope, is_init):
            return []
        slope = tf.convert_to_tensor(self._negative_slope)
        message = f"`negative_slope` of `{self.name}` must be in (0, 1]."
        return [
            tf.debugging.assert_positive(slope, message),
            tf.debugging.assert_less_equal(slope, tf.ones([], slope.dtype), message),
        ]


class SmoothLeakyActivation(LeakyActivation):
    """`forward(x) = alpha x + (1 - alpha) ramp(x)` for a smooth ramp, whose slope goes from 0 to 1.

    A class has `_ramp(x)`, its derivative `_ramp_slope(x)`, and `_root(y, alpha)`, the inverse.
    """

    def _forward(self, x):
        alpha = tf.convert_to_tensor(self._negative_slope)
        return alpha * x + (1.0 - alpha) * self._ramp(x)

    def _slope(self, x, alpha):
        return alpha + (1.0 - alpha) * self._ramp_slope(x)

    def _forward_log_det_jacobian(self, x):
        return tf.math.log(self._slope(x, tf.convert_to_tensor(self._negative_slope)))

    def _inverse(self, y):
        @tf.custom_gradient
        def inverse(y, alpha):
            def gradients(upstream):
                # A new call of the inverse, with this same gradient, makes the higher derivatives right too.
                x = inverse(y, alpha)
                d_y = upstream / self._slope(x, alpha)
                return sum_to_shape(d_y, y), sum_to_shape(-d_y * (x - self._ramp(x)), alpha)

            return self._root(y, alpha), gradients

        return inverse(y, tf.convert_to_tensor(self._negative_slope))

    def _inverse_log_det_jacobian(self, y):
        return -self._forward_log_det_jacobian(self.inverse(y))


def _checked_slope(negative_slope, validate_args):
    """Checks a slope that is known now. Returns the slope; a constant becomes a tensor."""
    check_bool(validate_args, "validate_args")
    _, value = as_parameters(negative_slope=negative_slope)
    is_known = not is_mutable(value) or (validate_args and tf.executing_eagerly())
    static = tf.get_static_value(tf.convert_to_tensor(value)) if is_known else None
    if static is None:
        return value
    # Processors may round a subnormal slope to 0.
    is_right = (static >= np.finfo(static.dtype).tiny) & (static <= 1)
    if not np.size(static) or not np.all(is_right):
        raise ValueError(f"`negative_slope` must be in (0, 1]; got {negative_slope!r}.")
    return value
