"""`LeakyReLU`, an activation of two straight lines."""

import tensorflow as tf

from tfp_selfnorm.bijectors.leaky_activation import LeakyActivation


class LeakyReLU(LeakyActivation):
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

    _DEFAULT_NAME = "leaky_relu"

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
