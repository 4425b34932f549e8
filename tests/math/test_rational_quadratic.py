"""Rational quadratic splines against numpy: values, first and second derivatives, inverses, shapes."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm.math.rational_quadratic import cumulative, spline

NUM_BINS, SIZE = 4, 3
DIRECTIONS = ["forward", "inverse"]


@pytest.fixture
def knots(rng):
    """For each of three dimensions: the knots on both axes, from -2 to 2, and the slopes there."""

    def axis():
        sizes = rng.uniform(0.2, 1.0, size=[NUM_BINS, SIZE])
        inner = np.cumsum(sizes / sizes.sum(axis=0), axis=0)
        return 4.0 * np.concatenate([np.zeros([1, SIZE]), inner]) - 2.0

    return [tf.constant(part) for part in (axis(), axis(), rng.uniform(0.2, 3.0, [NUM_BINS + 1, SIZE]))]


def of_numpy(x, x_knots, y_knots, slopes):
    """Durkan's equation 4 for one element, bin by bin."""
    for k in range(len(x_knots) - 1):
        if x_knots[k] <= x <= x_knots[k + 1]:
            s = (y_knots[k + 1] - y_knots[k]) / (x_knots[k + 1] - x_knots[k])
            t = (x - x_knots[k]) / (x_knots[k + 1] - x_knots[k])
            above = (y_knots[k + 1] - y_knots[k]) * (s * t**2 + slopes[k] * t * (1 - t))
            return y_knots[k] + above / (s + (slopes[k + 1] + slopes[k] - 2 * s) * t * (1 - t))
    return x


def values_of_numpy(x, *knots):
    return np.array(
        [
            [of_numpy(x[i, j], *(part[:, j].numpy() for part in knots)) for j in range(SIZE)]
            for i in range(len(x))
        ]
    )


def slopes_of_numpy(x, *knots, step=1e-6):
    return (values_of_numpy(x + step, *knots) - values_of_numpy(x - step, *knots)) / (2 * step)


def spread(rng, count=40):
    return rng.uniform(-1.95, 1.95, size=[count, SIZE])


def test_values_and_log_slopes(knots, rng):
    x = spread(rng)
    y, log_slope = spline("forward", tf.constant(x), *knots)
    np.testing.assert_allclose(y, values_of_numpy(x, *knots), atol=1e-12)
    np.testing.assert_allclose(log_slope, np.log(slopes_of_numpy(x, *knots)), atol=1e-6)
    back, log_slope_back = spline("inverse", tf.identity(y), *knots)
    np.testing.assert_allclose(back, x, atol=1e-12)
    np.testing.assert_allclose(log_slope_back, log_slope, atol=1e-11)


def test_it_is_the_identity_outside_and_at_the_ends(knots):
    x = np.array([[-2.0] * SIZE, [2.0 + 1e-9] * SIZE, [-7.5] * SIZE, [1e30] * SIZE, [-np.inf] * SIZE])
    for direction in DIRECTIONS:
        y, log_slope = spline(direction, tf.constant(x), *knots[:2], tf.ones_like(knots[2]))
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(log_slope, np.zeros_like(x))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nan_stays_nan(direction, knots):
    y, log_slope = spline(direction, tf.fill([1, SIZE], tf.constant(np.nan, tf.float64)), *knots)
    assert np.isnan(y).all()
    assert np.isnan(log_slope).all()


def scalar(direction, x, *knots):
    """A function of the outputs in which each element has a weight of its own."""
    mapped, log_slope = spline(direction, x, *knots)
    weights = np.cos(np.arange(mapped.shape.num_elements())).reshape(mapped.shape)
    return tf.reduce_sum(weights * tf.sin(mapped)) + tf.reduce_sum(weights[::-1] * log_slope)


def gradients(direction, *inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = scalar(direction, *inputs)
    return tape.gradient(output, inputs)


def differences(function, inputs, step=1e-6):
    """Central differences of a scalar function of tensors."""
    function = tf.function(function)
    results = []
    for position, value in enumerate(inputs):
        result = np.zeros(value.shape)
        for index in np.ndindex(*value.shape):
            change = np.zeros(value.shape)
            change[index] = step
            sides = []
            for moved in (value + change, value - change):
                sides.append(function(*inputs[:position], moved, *inputs[position + 1 :]).numpy())
            result[index] = (sides[0] - sides[1]) / (2 * step)
        results.append(result)
    return results


@pytest.mark.parametrize("compiled", ["eager", "graph", "xla"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_finite_differences(direction, compiled, knots, rng):
    inputs = [tf.constant(spread(rng, 12)), *knots]
    function = gradients if compiled == "eager" else tf.function(gradients, jit_compile=compiled == "xla")
    ours = function(direction, *inputs)
    theirs = differences(lambda *moved: scalar(direction, *moved), inputs)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_second_derivatives_are_finite_differences(direction, compiled, knots, rng):
    inputs = [tf.constant(spread(rng, 4)), *knots]
    directions = [rng.normal(size=value.shape) for value in inputs]

    def along(*inputs):
        """The derivative of the scalar along a direction."""
        parts = zip(gradients(direction, *inputs), directions, strict=True)
        return tf.add_n([tf.reduce_sum(part * change) for part, change in parts])

    def second(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = along(*inputs)
        return tape.gradient(output, inputs)

    ours = (tf.function(second) if compiled else second)(*inputs)
    theirs = differences(along, inputs)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_knots_of_each_element_are_those_of_each_dimension(direction, knots, rng):
    x = tf.constant(spread(rng, 5))
    own = [tf.repeat(part[:, tf.newaxis], 5, axis=1) for part in knots]
    shared_gradient, *shared = gradients(direction, x, *knots)
    gradient, *each = gradients(direction, x, *own)
    np.testing.assert_allclose(gradient, shared_gradient, rtol=1e-12)
    for our, their in zip(each, shared, strict=True):
        np.testing.assert_allclose(tf.reduce_sum(our, axis=1), their, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_shapes_broadcast_like_those_of_tfp(direction, knots):
    x = tf.constant([[0.3], [-0.4]], tf.float64)
    whole = tf.repeat(x, SIZE, axis=1)
    for few in (x, x[0], x[0, 0]):
        for our, their in zip(spline(direction, few, *knots), spline(direction, whole, *knots), strict=True):
            np.testing.assert_allclose(our, their[0] if few.shape.rank < 2 else their, rtol=1e-12)
    few_gradient, *few_knots = gradients(direction, x, *knots)
    gradient, *knot_gradients = gradients(direction, whole, *knots)
    np.testing.assert_allclose(few_gradient[:, 0], tf.reduce_sum(gradient, axis=1), rtol=1e-12)
    for our, their in zip(few_knots, knot_gradients, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-12)
    one = [part[:, :1] for part in knots]
    for our, their in zip(spline(direction, whole, *one), spline(direction, x, *one), strict=True):
        np.testing.assert_allclose(our, tf.repeat(their, SIZE, axis=1), rtol=1e-12)


def test_a_function_of_unknown_shapes(knots, rng):
    for signature in (tf.TensorSpec(None, tf.float64), tf.TensorSpec([None, SIZE], tf.float64)):
        function = tf.function(lambda x: spline("forward", x, *knots), input_signature=[signature])
        for x in (spread(rng), np.zeros([0, SIZE])):
            np.testing.assert_allclose(
                function(tf.constant(x))[0], values_of_numpy(x, *knots).reshape(x.shape), atol=1e-12
            )


def test_jacobians_of_a_batch(knots, rng):
    x = tf.constant(spread(rng, 5))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, log_slope = spline("inverse", x, *knots)
    jacobians = tape.batch_jacobian(y, x)
    np.testing.assert_allclose(jacobians, tf.linalg.diag(tf.exp(-log_slope)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 8, 32, 33])
def test_cumulative_sums(count, rng):
    sizes = rng.normal(size=[count, 2, 3])
    np.testing.assert_allclose(
        cumulative(tf.constant(sizes)), np.cumsum(sizes, axis=0), rtol=1e-12, atol=1e-12
    )
