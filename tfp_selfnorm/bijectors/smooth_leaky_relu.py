"""`SmoothLeakyReLU`, the paper's activation: smooth, monotone, with slopes `alpha` and 1."""

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.leaky_activation import LeakyActivation
from tfp_selfnorm.math.linear import sum_to_shape

# Newton from above moves at least one unit a step where the curve is exponential, and the way is at
# most -log(alpha); 800 covers the smallest float64.
_MAX_ITERATIONS = 800


class SmoothLeakyReLU(LeakyActivation):
    """`forward(x) = alpha x + (1 - alpha) log(1 + e^x)`, elementwise.

    The slope runs from `alpha` on the left to 1 on the right, so the map is a bijection of the reals
    for every `alpha` in (0, 1]. `forward_log_det_jacobian = log(alpha + (1 - alpha) sigmoid(x))`.

    `forward` and its log-det cost O(1) an element. `inverse` has no closed form: from a start close to the
    root one step of third and one of second order are enough for slopes of 0.2 and more in float32, two of
    each for slopes from 0.01 on. Where they are not, it is Newton's method from a point above the root, which
    on a convex increasing function descends to it without overshooting, so it converges for every input, in
    some tens of iterations at a slope of 1e-30.
    Gradients pass through it by the implicit function theorem. In a flow that trains from data to
    latent put it in `tfb.Invert`, so that training takes the closed form.

    Shapes: any; `negative_slope` broadcasts. Dtypes: float32 and float64, as the slope. Units: nats.

    >>> activation = SmoothLeakyReLU(0.3)
    >>> y = activation.forward(tf.constant([-10.0, 0.0, 10.0]))
    >>> activation.inverse(tf.identity(y)).numpy().round(4).tolist()
    [-10.0, 0.0, 10.0]

    References: Keller et al., "Self Normalizing Flows", ICML 2021, appendix on experiment details.
    """

    _DEFAULT_NAME = "smooth_leaky_relu"

    def _forward(self, x):
        return _smooth_leaky_relu(x, tf.convert_to_tensor(self._negative_slope))

    def _forward_log_det_jacobian(self, x):
        return tf.math.log(_slope(x, tf.convert_to_tensor(self._negative_slope)))

    def _inverse(self, y):
        return _inverse_smooth_leaky_relu(y, tf.convert_to_tensor(self._negative_slope))

    def _inverse_log_det_jacobian(self, y):
        return -self._forward_log_det_jacobian(self.inverse(y))


def _smooth_leaky_relu(x, alpha):
    return alpha * x + (1.0 - alpha) * tf.math.softplus(x)


def _slope(x, alpha):
    return alpha + (1.0 - alpha) * tf.math.sigmoid(x)


@tf.custom_gradient
def _inverse_smooth_leaky_relu(y, alpha):
    root = _find_root(y, alpha)

    def gradients(upstream):
        # The inverse anew, with this very gradient, makes the higher derivatives right too.
        x = _inverse_smooth_leaky_relu(y, alpha)
        d_y = upstream / _slope(x, alpha)
        d_alpha = -d_y * (x - tf.math.softplus(x))
        return sum_to_shape(d_y, y), sum_to_shape(d_alpha, alpha)

    return root, gradients


def _find_root(y, alpha):
    """The `x` with `_smooth_leaky_relu(x, alpha) = y`."""
    # Softplus is close to the hyperbola (x + sqrt(x^2 + c)) / 2, which has an inverse. Such a c was best for
    # slopes of 0.01 to 0.9.
    c = 2.0 * alpha**0.25
    start = (0.5 / alpha + 0.5) * y - (0.5 / alpha - 0.5) * tf.sqrt(tf.square(y) + c * alpha)

    def once_more(x):
        return _polished(x, y, alpha, lambda _: _find_root_from_above(y, alpha))

    # Once is enough for slopes of 0.2 and more in float32, twice from 0.01 on, and in float64.
    return _polished(start, y, alpha, once_more)


def _polished(x, y, alpha, otherwise):
    """`x` after two steps towards the root, or `otherwise` of it where these do not end within rounding."""
    newton, decay, slope = _newton_step(x, y, alpha)
    # Halley's method: of the first derivative, newton times the second.
    second = newton * (1.0 - alpha) * (decay - tf.square(decay)) / slope
    x -= newton / (1.0 - 0.5 * second)
    newton, *_ = _newton_step(x, y, alpha)
    # From so near, Newton's step, whose order is two, does. NaN is not near.
    near = tf.abs(newton) < np.finfo(x.dtype.as_numpy_dtype).eps ** 0.5 * (1.0 + tf.abs(x))
    return tf.cond(tf.reduce_all(near), lambda: x - newton, lambda: otherwise(x - newton))


def _newton_step(x, y, alpha):
    """What Newton's method subtracts from `x`, `1 - sigmoid(x)`, and the slope."""
    softplus = tf.nn.relu(x) + tf.math.log1p(tf.exp(-tf.abs(x)))
    decay = tf.exp(-softplus)
    slope = 1.0 - (1.0 - alpha) * decay
    return (alpha * x + (1.0 - alpha) * softplus - y) / slope, decay, slope


def _find_root_from_above(y, alpha):
    """By Newton's method, which converges for every `y` and every slope."""
    # The tangent at any point lies below the curve, so its root lies above the curve's. Two asymptotes
    # and the knee, where the linear and the exponential part meet, give a good start.
    knee = tf.math.log(alpha)
    start = tf.where(y > 0.0, y, y / alpha)
    start = tf.minimum(start, _stepped(knee, y, alpha))
    # Beyond the largest float there is nothing to improve.
    usable = tf.math.is_finite(start)
    start = tf.where(usable, start, y / alpha)

    def step(_, x):
        return x, tf.where(usable, tf.minimum(x, _stepped(x, y, alpha)), x)

    def moves(previous, x):
        return tf.reduce_any(x < previous)

    # The first pass compares with a start moved up, so that it always enters the loop.
    _, root = tf.while_loop(
        moves, step, (start + tf.ones_like(start), start), maximum_iterations=_MAX_ITERATIONS
    )
    # From the last iterate, which rounding may have left on either side, one step in both directions.
    return tf.where(usable, _stepped(root, y, alpha), root)


def _stepped(x, y, alpha):
    """`x` after Newton's step, with a slope that is right for the smallest `alpha` too."""
    return x - (_smooth_leaky_relu(x, alpha) - y) / _slope(x, alpha)
