"""`LeakyReLU`, an activation with two straight lines."""

import tensorflow as tf

from tfp_selfnorm.bijectors.leaky_activation import LeakyActivation


class LeakyReLU(LeakyActivation):
    """`forward(x) = x` for `x >= 0` and `alpha x` otherwise, elementwise.

    `forward_log_det_jacobian` is 0 or `log(alpha)`. At 0 the map has no derivative, and the log-det is 0.
    Both directions cost O(1) an element. For a learned slope, give a `tf.Variable`. To keep it in (0, 1),
    give `tfp.util.TransformedVariable(0.3, tfp.bijectors.Sigmoid())`.

    The density of a flow with this activation jumps where an element passes 0. The gradient of a likelihood
    does not see the jumps. So training can end at a worse flow than with `SmoothLeakyReLU`, whose density is
    smooth.

    Shapes: any; `negative_slope` broadcasts. Dtypes: float32 and float64, as the slope. Units: nats.

    >>> import tensorflow as tf
    >>> import tensorflow_probability as tfp
    >>> import tfp_selfnorm as sn
    >>> sn.LeakyReLU(0.5).forward(tf.constant([-2.0, 3.0])).numpy()
    array([-1.,  3.], dtype=float32)
    >>> slope = tfp.util.TransformedVariable(0.3, tfp.bijectors.Sigmoid())
    >>> len(sn.LeakyReLU(slope).trainable_variables)
    1

    References: Maas et al., "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """

    _DEFAULT_NAME = "leaky_relu"

    def _forward(self, x):
        return x * self._slope(x)

    def _inverse(self, y):
        return y / self._slope(y)

    def _forward_log_det_jacobian(self, x):
        return tf.math.log(self._slope(x))

    def _inverse_log_det_jacobian(self, y):
        # An element and its image have the same sign.
        return -self._forward_log_det_jacobian(y)

    def _slope(self, x):
        # With `tf.where` on the results, the gradient would be NaN where the other branch overflows.
        return tf.where(x < 0.0, self._negative_slope, tf.ones_like(x))
