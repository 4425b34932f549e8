"""`LeakySquareplus`, a smooth leaky ReLU whose inverse has a closed form."""

import tensorflow as tf

from tfp_selfnorm.bijectors.leaky_activation import SmoothLeakyActivation

_UNITS = {tf.float32: 2.0**40, tf.float64: 2.0**300}


class LeakySquareplus(SmoothLeakyActivation):
    """`forward(x) = alpha x + (1 - alpha) squareplus(x)` with `squareplus(x) = (x + sqrt(x^2 + 4)) / 2`.

    Elementwise. `squareplus` is a hyperbola. It is close to the `log(1 + e^x)` of `SmoothLeakyReLU`, with the
    same curvature at 0, and it nears its asymptotes as `1 / x`. The slope grows from `alpha` on the left to 1
    on the right. So the map is a bijection of the reals for every `alpha` in (0, 1].
    `forward_log_det_jacobian = log(alpha + (1 - alpha) (1 + x / sqrt(x^2 + 4)) / 2)`.

    With `h = squareplus(x)` it holds that `x = h - 1 / h` and `forward(x) = h - alpha / h`. So the inverse
    has a closed form: `h` is the positive root of `h^2 - y h - alpha = 0`. Both directions cost O(1) an
    element and one square root, without an iteration. For fast samples take this activation. Short trainings
    on MNIST ended at a somewhat worse likelihood than with `SmoothLeakyReLU`.

    Shapes: any; `negative_slope` broadcasts. Dtypes: float32 and float64, as the slope. Units: nats.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> activation = sn.LeakySquareplus(0.3)
    >>> y = activation.forward(tf.constant([-10.0, 0.0, 10.0]))
    >>> y.numpy().round(4)
    array([-2.9307,  0.7   , 10.0693], dtype=float32)
    >>> activation.inverse(tf.identity(y)).numpy().round(4).tolist()
    [-10.0, 0.0, 10.0]

    References: Barron, "Squareplus: a softplus-like algebraic rectifier", 2021.
    """

    _DEFAULT_NAME = "leaky_squareplus"

    def _ramp(self, x):
        return _squareplus(x)

    def _ramp_slope(self, x):
        return _squareplus_slope(x)

    def _root(self, y, alpha):
        # The inverse of a leaky ReLU, less a term that is large near 0 alone.
        line = tf.where(y < 0.0, y / alpha, y)
        # Without the unit squares of small numbers underflow. Where one overflows, the term is below a digit.
        unit = tf.constant(_UNITS[y.dtype], y.dtype)
        y = unit * y
        return line - 2.0 * unit * (1.0 - alpha) / (tf.sqrt(tf.square(y) + 4.0 * unit**2 * alpha) + tf.abs(y))


# These formulas do not subtract large numbers from each other, and a square that overflows gives the limit.
# The gradients are formulas too: at 0 TensorFlow's derivatives of the absolute value and the ReLU are wrong.
@tf.custom_gradient
def _squareplus(x):
    return tf.nn.relu(x) + _smaller_root(x), lambda upstream: upstream * _squareplus_slope(x)


@tf.custom_gradient
def _squareplus_slope(x):
    inverse = tf.nn.relu(-x) + _smaller_root(x)

    def gradient(upstream):
        return upstream * 2.0 * tf.math.rsqrt(tf.square(x) + 4.0) ** 3

    return 1.0 / (1.0 + tf.square(inverse)), gradient


def _smaller_root(x):
    """The smaller one of `squareplus(x)` and its inverse, `squareplus(-x)`."""
    return 2.0 / (tf.sqrt(tf.square(x) + 4.0) + tf.abs(x))
