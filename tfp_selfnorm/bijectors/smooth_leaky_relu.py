"""`SmoothLeakyReLU`, the activation of the paper: smooth, monotone, with slopes `alpha` and 1."""

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.leaky_activation import SmoothLeakyActivation

# Where the curve is exponential, each step of Newton's method from above moves at least one unit. The
# distance is at most -log(alpha). 800 covers the smallest float64.
_MAX_ITERATIONS = 800


class SmoothLeakyReLU(SmoothLeakyActivation):
    """`forward(x) = alpha x + (1 - alpha) log(1 + e^x)`, elementwise.

    The slope grows from `alpha` on the left to 1 on the right. So the map is a bijection of the reals for
    every `alpha` in (0, 1]. `forward_log_det_jacobian = log(alpha + (1 - alpha) sigmoid(x))`.

    `forward` and its log-det cost O(1) an element. `inverse` has no closed form. It begins close to the root
    and takes one step of third order and one of second order, which are enough for slopes of 0.2 and more in
    float32. For slopes from 0.01 on it takes two of each. If these are not enough, it uses Newton's method
    from a point above the root. On a convex increasing function this method descends to the root without
    overshooting. So it converges for every input, in some tens of iterations at a slope of 1e-30.
    The gradients of `inverse` use the implicit function theorem. In a flow, put the activation in
    `tfp.bijectors.Invert`: training, which maps data to latent, then uses the closed form.

    Shapes: any; `negative_slope` broadcasts. Dtypes: float32 and float64, as the slope. Units: nats.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> activation = sn.SmoothLeakyReLU(0.3)
    >>> y = activation.forward(tf.constant([-10.0, 0.0, 10.0]))
    >>> activation.inverse(tf.identity(y)).numpy().round(4).tolist()
    [-10.0, 0.0, 10.0]

    References: Keller et al., "Self Normalizing Flows", ICML 2021, appendix on experiment details.
    """

    _DEFAULT_NAME = "smooth_leaky_relu"

    def _ramp(self, x):
        return tf.math.softplus(x)

    def _ramp_slope(self, x):
        return tf.math.sigmoid(x)

    def _root(self, y, alpha):
        return _find_root(y, alpha)


def _smooth_leaky_relu(x, alpha):
    return alpha * x + (1.0 - alpha) * tf.math.softplus(x)


def _slope(x, alpha):
    return alpha + (1.0 - alpha) * tf.math.sigmoid(x)


def _find_root(y, alpha):
    """The `x` with `_smooth_leaky_relu(x, alpha) = y`."""
    # Softplus is close to the hyperbola (x + sqrt(x^2 + c)) / 2, which has an inverse. This c was the best
    # for slopes of 0.01 to 0.9.
    c = 2.0 * alpha**0.25
    first = (0.5 / alpha + 0.5) * y - (0.5 / alpha - 0.5) * tf.sqrt(tf.square(y) + c * alpha)

    def improve_again(x):
        return _improved(x, y, alpha, lambda _: _find_root_from_above(y, alpha))

    # In float32 once is enough for slopes of 0.2 and more. Twice is enough from 0.01 on, and in float64.
    return _improved(first, y, alpha, improve_again)


def _improved(x, y, alpha, otherwise):
    """`x` after two steps towards the root, or `otherwise(x)` if its error is then not within rounding."""
    newton, decay, slope = _newton_step(x, y, alpha)
    # For Halley's method: the Newton step times the second derivative, divided by the first.
    second = newton * (1.0 - alpha) * (decay - tf.square(decay)) / slope
    x -= newton / (1.0 - 0.5 * second)
    newton, *_ = _newton_step(x, y, alpha)
    # From so near, one Newton step, of order two, is enough. NaN is not near.
    near = tf.abs(newton) < np.finfo(x.dtype.as_numpy_dtype).eps ** 0.5 * (1.0 + tf.abs(x))
    return tf.cond(tf.reduce_all(near), lambda: x - newton, lambda: otherwise(x - newton))


def _newton_step(x, y, alpha):
    """The step that Newton's method subtracts from `x`, `1 - sigmoid(x)`, and the slope."""
    softplus = tf.nn.relu(x) + tf.math.log1p(tf.exp(-tf.abs(x)))
    decay = tf.exp(-softplus)
    slope = 1.0 - (1.0 - alpha) * decay
    return (alpha * x + (1.0 - alpha) * softplus - y) / slope, decay, slope


def _find_root_from_above(y, alpha):
    """The root by Newton's method, which converges for every `y` and every slope."""
    # Each tangent lies below the curve, so the root of a tangent lies above the root of the curve. The first
    # point is the smallest root of three lines: two asymptotes, and the tangent at the knee, where the linear
    # and the exponential part meet.
    knee = tf.math.log(alpha)
    first = tf.where(y > 0.0, y, y / alpha)
    first = tf.minimum(first, _stepped(knee, y, alpha))
    # Beyond the largest float no step can improve the point.
    usable = tf.math.is_finite(first)
    first = tf.where(usable, first, y / alpha)

    def step(_, x):
        return x, tf.where(usable, tf.minimum(x, _stepped(x, y, alpha)), x)

    def moves(previous, x):
        return tf.reduce_any(x < previous)

    # The first comparison is with a larger point, so that the loop always runs once.
    _, root = tf.while_loop(
        moves, step, (first + tf.ones_like(first), first), maximum_iterations=_MAX_ITERATIONS
    )
    # Rounding may leave the last point on either side of the root. The last step may go in both directions.
    return tf.where(usable, _stepped(root, y, alpha), root)


def _stepped(x, y, alpha):
    """`x` after a Newton step. The slope is right for the smallest `alpha` too."""
    return x - (_smooth_leaky_relu(x, alpha) - y) / _slope(x, alpha)
