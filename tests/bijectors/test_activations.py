"""The activations, at their edges."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfp_selfnorm import LeakyReLU, LeakySquareplus, SmoothLeakyReLU, trainable_spline
from tfp_selfnorm.bijectors import smooth_leaky_relu as smooth_leaky_relu_module

tfb = tfp.bijectors
SLOPES = [1.2e-38, 1e-30, 1e-10, 1e-4, 0.01, 0.3, 0.7, 0.999999, 1.0]
FLOATS32 = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


# The ramps and their slopes in float64, by other routes than the package's: e^arsinh(x / 2) is squareplus.
RAMPS = {
    SmoothLeakyReLU: (lambda x: np.logaddexp(0.0, x), lambda x: np.exp(-np.logaddexp(0.0, -x))),
    LeakySquareplus: (
        lambda x: np.exp(np.arcsinh(x / 2.0)),
        lambda x: np.exp(-np.logaddexp(0.0, -2.0 * np.arcsinh(x / 2.0))),
    ),
}
SMOOTH = pytest.mark.parametrize("kind", RAMPS)


def curve(kind, x, alpha):
    x = np.asarray(x, np.float64)
    return alpha * x + (1.0 - alpha) * RAMPS[kind][0](x)


@SMOOTH
@settings(deadline=None, max_examples=100)
@given(y=hnp.arrays(np.float32, 16, elements=FLOATS32), alpha=st.sampled_from(SLOPES))
@example(y=np.float32([1e-20, 1e-18, 1e7, 1e8, 1e12, 1e20]), alpha=1.2e-38)
def test_smooth_activations_invert_any_float32(kind, y, alpha):
    x = kind(alpha).inverse(tf.constant(y)).numpy()
    assert not np.isnan(x).any()
    representable = np.isfinite(x)
    assert representable[y >= 0].all()
    with np.errstate(over="ignore"):
        assert (np.abs(y[~representable] / np.float32(alpha)) > 1e38).all()
    x, y = x[representable].astype(np.float64), y[representable]
    back = curve(kind, x, np.float64(np.float32(alpha)))
    # Rounding x by one part in 2^24 moves y by its slope times so much.
    wiggle = 2.0**-22 * (np.abs(y) + np.abs(x) * (alpha + RAMPS[kind][1](x)))
    assert (np.abs(back - y) <= wiggle + 1e-37).all()


@SMOOTH
@pytest.mark.parametrize("alpha", SLOPES)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_smooth_activations_invert_ordinary_values(kind, alpha, dtype):
    y = tf.cast(tf.linspace(-30.0, 30.0, 4001), dtype)
    if alpha < 1e-30:
        y = tf.abs(y)  # left of 0 the inverse overflows float32
    activation = kind(tf.constant(alpha, dtype))
    back = activation.forward(tf.identity(activation.inverse(y)))
    tolerance = 1e-5 if dtype == tf.float32 else 1e-13
    np.testing.assert_allclose(back, y, rtol=tolerance, atol=tolerance)


@SMOOTH
@pytest.mark.parametrize("alpha", SLOPES)
def test_the_smooth_curves_and_their_log_dets(kind, alpha):
    x = np.concatenate([np.linspace(-30.0, 30.0, 4001), [-1e300, -1e160, -1e9, 0.0, 1e9, 1e160, 1e300]])
    activation = kind(tf.constant(alpha, tf.float64))
    np.testing.assert_allclose(
        activation.forward(tf.constant(x)), curve(kind, x, alpha), rtol=1e-13, atol=1e-16
    )
    expected = np.log(alpha + (1.0 - alpha) * RAMPS[kind][1](x))
    np.testing.assert_allclose(
        activation.forward_log_det_jacobian(tf.constant(x)), expected, rtol=1e-11, atol=1e-15
    )


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_ordinary_slopes_take_few_steps(alpha, dtype, monkeypatch):
    monkeypatch.setattr(smooth_leaky_relu_module, "_find_root_from_above", lambda y, _: y * np.nan)
    y = tf.cast(tf.linspace(-1e3, 1e3, 100001), dtype)
    x = SmoothLeakyReLU(tf.constant(alpha, dtype)).inverse(y)
    np.testing.assert_allclose(curve(SmoothLeakyReLU, x, alpha), y, rtol=1e-5, atol=1e-5)


@SMOOTH
@pytest.mark.parametrize("function", ["forward", "inverse"])
def test_smooth_activations_pass_on_what_is_not_finite(kind, function):
    found = getattr(kind(0.3), function)([np.nan, np.inf, -np.inf, 1.0])
    np.testing.assert_array_equal(np.isnan(found), [True, False, False, False])
    np.testing.assert_array_equal(np.isinf(found), [False, True, True, False])


def derivatives(function, *values):
    """The gradient of the sum by each value, and the second derivatives by the first value."""
    values = [tf.constant(value, tf.float64) for value in values]
    with tf.GradientTape() as second:
        second.watch(values[0])
        with tf.GradientTape() as first:
            first.watch(values)
            total = tf.reduce_sum(function(*values))
        gradients = first.gradient(total, values)
    return gradients, second.gradient(gradients[0], values[0])


@SMOOTH
@pytest.mark.parametrize(
    "name", ["forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian"]
)
def test_derivatives_of_smooth_activations_against_finite_differences(kind, name):
    # At 0 and at the image of 0 too, where the absolute value in a formula has no derivative.
    x, step = np.append(np.linspace(-4.0, 4.0, 9), curve(kind, 0.0, 0.2)), 1e-4

    def function(x, alpha):
        return getattr(kind(alpha), name)(tf.identity(x))

    def values(x, alpha):
        return function(tf.constant(x), tf.constant(alpha, tf.float64)).numpy()

    (d_x, d_alpha), second = derivatives(function, x, 0.2)
    above, here, below = (values(x + k * step, 0.2) for k in (1, 0, -1))
    np.testing.assert_allclose(d_x, (above - below) / (2.0 * step), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(second, (above - 2.0 * here + below) / step**2, rtol=1e-5, atol=1e-6)
    finite = np.sum(values(x, 0.2 + step) - values(x, 0.2 - step)) / (2.0 * step)
    np.testing.assert_allclose(d_alpha, finite, rtol=1e-6)


@SMOOTH
def test_gradients_stay_finite_far_out(kind):
    far = np.float32([-1e38, -1e20, 1e20, 1e38])
    for name in ("forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian"):
        with tf.GradientTape() as tape:
            x = tf.constant(far)
            tape.watch(x)
            y = getattr(kind(0.5), name)(x + 0.0)
        slope = {"forward": [0.5, 0.5, 1.0, 1.0], "inverse": [2.0, 2.0, 1.0, 1.0]}.get(name, [0.0] * 4)
        np.testing.assert_allclose(tape.gradient(y, x), slope, rtol=1e-6)


def test_slopes_are_learned_in_both_directions():
    x = tf.constant([-2.0, -0.5, 1.0])
    for bijector in (LeakyReLU, *RAMPS):
        slope = tfp.util.TransformedVariable(0.3, tfp.bijectors.Sigmoid())
        activation = bijector(slope, validate_args=True)
        for function in (activation.forward, activation.inverse):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(function(tf.identity(x)))
            assert abs(tape.gradient(total, activation.trainable_variables)[0]) > 0.0


@pytest.mark.parametrize("bijector", [LeakyReLU, *RAMPS])
def test_slopes_outside_the_interval_are_refused(bijector):
    for slope in (0.0, -0.5, 1.5, 1e-40):
        with pytest.raises(ValueError, match=r"`negative_slope` must be in \(0, 1\]"):
            bijector(slope)
    with pytest.raises(TypeError, match="floating"):
        bijector(1)
    variable = tf.Variable(0.5)
    activation = bijector(variable, validate_args=True)
    variable.assign(-1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be in"):
        activation.forward([1.0])


def test_spline_starts_as_the_identity_and_is_per_dimension(rng):
    spline = trainable_spline((2, 3), dtype=tf.float64)
    x = tf.constant(rng.uniform(-15.0, 15.0, [50, 2, 3]))
    np.testing.assert_allclose(spline.forward(x), x, atol=1e-12)
    np.testing.assert_allclose(spline.forward_log_det_jacobian(tf.identity(x), 2), np.zeros(50), atol=1e-12)
    spline.trainable_variables[0][0, 1].assign(rng.normal(size=5))
    moved = np.abs(spline.forward(tf.identity(x)) - x).max(axis=0) > 1e-6
    np.testing.assert_array_equal(moved, [[False, True, False], [False, False, False]])


@pytest.mark.parametrize("num_bins", [2, 5])
def test_spline_is_tfps(num_bins, rng):
    """Values, log-dets and gradients of both directions: inside, outside, and at each knot."""
    spline = trainable_spline((2, 3), num_bins, bound=4.0, dtype=tf.float64)
    for variable in spline.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    names = ("bin_widths", "bin_heights", "knot_slopes")
    parameters = {name: tf.convert_to_tensor(getattr(spline, name)) for name in names}
    for sizes, names in (
        ("bin_widths", ("forward", "forward_log_det_jacobian")),
        ("bin_heights", ("inverse", "inverse_log_det_jacobian")),
    ):
        knots = -4.0 + np.moveaxis(np.cumsum(parameters[sizes], axis=-1), -1, 0)
        x = tf.constant(np.concatenate([rng.uniform(-6.0, 6.0, size=[50, 2, 3]), knots, [[[-4.0] * 3] * 2]]))
        found = []
        for make in (type(spline), tfb.RationalQuadraticSpline):
            bijector = make(**parameters, range_min=-4.0)
            with tf.GradientTape() as tape:
                tape.watch([x, *parameters.values()])
                z = tf.identity(x)
                # In one pass, and the log-det alone.
                outputs = [getattr(bijector, name)(z) for name in names]
                outputs.append(getattr(bijector, names[1])(tf.identity(x)))
                # Second derivatives jump at the knots.
                loss = tf.add_n([tf.reduce_sum(tf.sin(i + output[:50])) for i, output in enumerate(outputs)])
            found.append([*outputs, *tape.gradient(loss, [x, *parameters.values()])])
        for ours, expected in zip(*found, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_bins": 1}, "num_bins"), ({"num_bins": 1500}, "num_bins"), ({"bound": 0.0}, "bound")],
)
def test_spline_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        trainable_spline(3, **arguments)


@pytest.mark.parametrize("slope", [1e-20, 1.2e-38, 0.3])
def test_the_slope_that_is_not_taken_has_gradient_0(slope):
    for y in (1.0, 1e30, np.inf):
        for name in ("forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian"):
            variable = tf.Variable(slope)
            with tf.GradientTape() as tape:
                output = getattr(LeakyReLU(variable), name)(tf.constant(y))
            assert output == (0.0 if "log_det" in name else y)
            assert tape.gradient(output, variable) == 0.0


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [
        ("forward", -0.5, -2.0),
        ("inverse", -8.0, 32.0),  # -2 / a, and 2 / a^2
        ("forward_log_det_jacobian", np.log(0.25), 4.0),
        ("inverse_log_det_jacobian", -np.log(0.25), -4.0),
    ],
)
def test_the_slope_that_is_taken_has_its_gradient(name, value, gradient):
    variable = tf.Variable(0.25)
    with tf.GradientTape() as tape:
        output = getattr(LeakyReLU(variable), name)(tf.constant(-2.0))
    np.testing.assert_allclose([output, tape.gradient(output, variable)], [value, gradient], rtol=1e-6)


def test_a_spline_inverts_bins_much_flatter_than_their_ends():
    """`AssertionError` due to negative `discriminant`, https://github.com/bayesiains/nflows/issues/87."""
    spline = trainable_spline(1, num_bins=3, bound=3.0)
    logits = {"widths": [0.0, 8.0, 0.0], "heights": [8.0, 0.0, 8.0], "slopes": [50.0, 50.0]}
    for variable in spline.trainable_variables:
        variable.assign([logits[variable.name.split("_")[-1].split(":")[0]]])
    widths, heights, (slope, _) = (
        np.float64(values)[0]
        for values in map(tf.convert_to_tensor, (spline.bin_widths, spline.bin_heights, spline.knot_slopes))
    )
    y = tf.constant(
        np.linspace(heights[0] - 3.0 + 1e-6, heights[:2].sum() - 3.0 - 1e-6, 2001)[:, np.newaxis], tf.float32
    )
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(y)
        x, log_det = spline.inverse(y), spline.inverse_log_det_jacobian(y, 1)
    assert np.isfinite(x).all()
    assert np.isfinite(log_det).all()
    for output in (x, log_det):
        for gradient in tape.gradient(output, [y, *spline.trainable_variables]):
            assert np.isfinite(gradient).all()
    # Equation 4 of Durkan et al., with the same slope at both ends of the bin.
    xi, mean = (np.float64(x) + 3.0 - widths[0]) / widths[1], heights[1] / widths[1]
    share = (mean * xi**2 + slope * xi * (1 - xi)) / (mean + 2 * (slope - mean) * xi * (1 - xi))
    np.testing.assert_allclose(heights[0] - 3.0 + heights[1] * share, y, atol=1e-4)


@pytest.mark.parametrize("edge", [1e20, -1e30, 3e38, 10.0, -10.0])
def test_a_spline_has_finite_gradients_out_of_bounds(edge, rng):
    spline = trainable_spline(2)
    for variable in spline.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    for name in ("forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian"):
        y = tf.constant([edge, 0.3])
        with tf.GradientTape() as tape:
            tape.watch(y)
            output = getattr(spline, name)(y)
            first = output if "log_det" in name else output[0]
        d_y, *others = tape.gradient(first, [y, *spline.trainable_variables])
        assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in others)
        if "log_det" in name:
            assert d_y[0] == 0.0
        else:
            assert (first, d_y[0]) == (edge, 1.0)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (LeakyReLU, "leaky_relu"),
        (LeakySquareplus, "leaky_squareplus"),
        (SmoothLeakyReLU, "smooth_leaky_relu"),
    ],
)
def test_each_has_its_own_name(activation, name):
    assert activation().name == activation().parameters["name"] == name
    assert activation(0.5, name="other").name == "other"
    with pytest.raises(ValueError, match="`name` must begin with a letter"):
        activation(name="")
