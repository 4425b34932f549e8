"""The paper's competitors, beside dense matrices that plain numpy builds pixel by pixel."""

import itertools
import math

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
import tensorflow_probability as tfp
from dense_convolution import matrix, random_kernel

import tfp_selfnorm as sn
from tfp_selfnorm.baselines import ConvolutionExponential2D, EmergingConv2D
from tfp_selfnorm.baselines.math import convolution_exponential

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
# Kernel sizes, channels, images: among them kernels that reach beyond the image.
SIZES = [
    ((3, 3), 2, (4, 5)),
    ((5, 3), 1, (2, 3)),
    ((5, 1), 1, (4, 2)),
    ((1, 5), 3, (3, 4)),
    ((3, 1), 4, (1, 3)),
    ((3, 3), 4, (3, 2)),
    ((1, 1), 2, (2, 2)),
]


def triangular_matrix(kernel, spatial_shape, is_upper):
    """The dense matrix of the convolution, less all that breaks the order of pixels and channels."""
    height, width, channels, _ = kernel.shape
    places = list(itertools.product(*map(range, spatial_shape), range(channels)))
    result = np.zeros([len(places), len(places)])
    for row, (i, j, c_out) in enumerate(places):
        for column, (k, m, c_in) in enumerate(places):
            a, b = k - i + height // 2, m - j + width // 2
            in_order = column >= row if is_upper else column <= row
            if in_order and 0 <= a < height and 0 <= b < width:
                result[row, column] = kernel[a, b, c_in, c_out]
    return result


def emerging(rng, sizes, channels, spatial_shape, dtype=tf.float64):
    """A layer whose masked elements are none of them 0, and its dense matrix and bias."""
    first, second = (random_kernel(rng, sizes, channels) for _ in range(2))
    bias = rng.normal(size=[channels])
    dense = triangular_matrix(second, spatial_shape, True) @ triangular_matrix(first, spatial_shape, False)
    parameters = [tf.Variable(value, dtype=dtype) for value in (first, second, bias)]
    return EmergingConv2D(*parameters[:2], spatial_shape, parameters[2], name="mixer"), dense, bias


def exponential(rng, sizes, channels, spatial_shape, max_norm=2.0):
    """A layer whose kernel is scaled down in half of the cases, and its dense matrix and bias."""
    kernel = random_kernel(rng, sizes, channels, noise=0.6)
    rows, columns = np.abs(kernel).sum((0, 1, 2)).max(), np.abs(kernel).sum((0, 1, 3)).max()
    scale = min(1.0, max_norm / math.sqrt(rows * columns))
    bias = rng.normal(size=[channels])
    layer = ConvolutionExponential2D(tf.Variable(kernel), spatial_shape, tf.Variable(bias), max_norm)
    return layer, scipy.linalg.expm(scale * matrix(kernel, spatial_shape)), bias


def test_the_expected_matrices_are_triangular_and_the_whole_convolution_together(rng):
    kernel = rng.normal(size=[3, 3, 2, 2])
    lower, upper = (triangular_matrix(kernel, (4, 5), is_upper) for is_upper in (False, True))
    np.testing.assert_array_equal(lower, np.tril(matrix(kernel, (4, 5))))
    np.testing.assert_array_equal(upper, np.triu(matrix(kernel, (4, 5))))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("sizes", "channels", "spatial_shape"), SIZES)
@pytest.mark.parametrize("make", [emerging, exponential])
def test_both_directions_and_the_log_det_are_those_of_the_dense_matrix(
    make, sizes, channels, spatial_shape, rng
):
    layer, dense, bias = make(rng, sizes, channels, spatial_shape)
    y = rng.normal(size=[3, *spatial_shape, channels])
    x = (y.reshape(3, -1) @ dense.T).reshape(y.shape) + bias
    np.testing.assert_allclose(layer.inverse(tf.constant(y)), x, **CLOSE)
    np.testing.assert_allclose(layer.forward(tf.constant(x)), y, **CLOSE)
    expected = np.linalg.slogdet(dense)[1]
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(tf.constant(y)), expected, **CLOSE)
    np.testing.assert_allclose(layer.forward_log_det_jacobian(tf.constant(x)), -expected, **CLOSE)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("make", [emerging, exponential])
@pytest.mark.parametrize("channels", [1, 4])
def test_gradients_are_those_of_finite_differences(make, channels, rng):
    max_norm = {"max_norm": 0.7} if make is exponential else {}
    layer, _, _ = make(rng, (3, 3), channels, (2, 3), **max_norm)
    images = tf.constant(rng.normal(size=[2, 2, 3, channels]))
    weights = tf.constant(rng.normal(size=[2, *images.shape]))

    def value(images, *parameters):
        for variable, parameter in zip(layer.trainable_variables, parameters, strict=True):
            variable.assign(parameter)
        outputs = tf.stack([layer.inverse(tf.identity(images)), layer.forward(tf.identity(images))])
        return tf.reduce_sum(weights * outputs) + layer.inverse_log_det_jacobian(tf.identity(images))

    at = [images, *(tf.constant(variable) for variable in layer.trainable_variables)]
    with tf.GradientTape() as tape:
        tape.watch(images)
        result = value(images, *at[1:])
    gradients = tape.gradient(result, [images, *layer.trainable_variables])
    for i, gradient in enumerate(gradients):
        for direction in rng.normal(size=[2, *gradient.shape]):
            moved = [
                value(*(a + sign * 1e-6 * direction if i == j else a for j, a in enumerate(at)))
                for sign in (1.0, -1.0)
            ]
            slope = (moved[0] - moved[1]) / 2e-6
            np.testing.assert_allclose(slope, np.sum(gradient * direction), rtol=1e-6, atol=1e-6)


def test_masked_elements_have_no_effect_and_gradient_0(rng):
    layer, _, _ = emerging(rng, (3, 3), 2, (3, 3))
    y = tf.constant(rng.normal(size=[2, 3, 3, 2]))
    with tf.GradientTape() as tape:
        x = layer.inverse(y)
        total = tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(tf.sin(layer.forward(tf.identity(y))))
    first, second = tape.gradient(total, [layer.first_kernel, layer.second_kernel])
    later = np.zeros([3, 3, 2, 2], bool)
    later[2], later[1, 2], later[1, 1, 1, 0] = True, True, True
    np.testing.assert_array_equal(first == 0.0, later)
    np.testing.assert_array_equal(second == 0.0, later[::-1, ::-1, ::-1, ::-1])
    layer.first_kernel.assign(tf.where(later, 7.0, layer.first_kernel))
    np.testing.assert_array_equal(layer.inverse(tf.identity(y)), x)


def test_a_pixel_sees_all_that_a_kernel_of_the_size_sees():
    ones = tf.ones([3, 3, 1, 1])
    layer = EmergingConv2D(ones, ones, (7, 7))
    impulse = tf.one_hot([24], 49)
    seen = layer.inverse(tf.reshape(impulse, [1, 7, 7, 1]))[0, ..., 0].numpy() > 0.0
    assert seen[2:5, 2:5].all()


@pytest.mark.parametrize("zero_in", ["first_kernel", "second_kernel"])
def test_a_singular_map_is_named(zero_in, rng):
    layer, _, _ = emerging(rng, (3, 3), 2, (3, 3), tf.float32)
    getattr(layer, zero_in)[1, 1, 0, 0].assign(0.0)
    images = tf.ones([1, 3, 3, 2])
    assert layer.inverse_log_det_jacobian(images) == -math.inf
    message = f"`{zero_in} of mixer` is singular to working precision"
    with pytest.raises(ValueError, match=message):
        layer.forward(images)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tf.function(layer.forward)(images)
    compiled = tf.function(lambda images: layer.forward(images), jit_compile=True)
    assert np.isnan(compiled(images)).all()


def test_ill_conditioned_maps_are_refused_where_the_substitution_would_give_noise():
    kernel = np.full([3, 3, 1, 1], 9.0)
    kernel[1, 1] = 1.0
    layer = EmergingConv2D(kernel, np.ones([3, 3, 1, 1]), (16, 16))
    with pytest.raises(ValueError, match="singular to working precision: .* relative error of"):
        layer.forward(tf.ones([1, 16, 16, 1], tf.float64))


def test_forward_of_the_emerging_convolution_is_differentiable_once(rng):
    layer, _, _ = emerging(rng, (3, 3), 1, (2, 2))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            total = tf.reduce_sum(layer.forward(tf.ones([1, 2, 2, 1], tf.float64)))
        gradient = inner.gradient(total, layer.first_kernel)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        outer.gradient(gradient, layer.first_kernel)


@pytest.mark.parametrize("max_norm", [0.3, 1, 2.0])
def test_the_norm_of_the_exponent_is_bounded(max_norm, rng):
    for gain in (1e-3, 0.1, 1.0, 1e3):
        kernel = gain * rng.normal(size=[3, 3, 2, 2])
        layer = ConvolutionExponential2D(kernel, (4, 4), max_norm=max_norm)
        bounded = layer.bounded_kernel().numpy()
        assert np.linalg.norm(matrix(bounded, (4, 4)), 2) <= max_norm * (1.0 + 1e-12)
        share = bounded / kernel
        np.testing.assert_allclose(share, share.flat[0], rtol=1e-12)
        assert share.flat[0] <= 1.0 + 1e-12
        if gain == 1e-3:
            np.testing.assert_allclose(bounded, kernel, rtol=1e-12)
    sharp = ConvolutionExponential2D(np.full([1, 1, 1, 1], 50.0), (4, 4), max_norm=max_norm)
    np.testing.assert_allclose(sharp.bounded_kernel(), max_norm, rtol=1e-12)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("max_norm", [0.01, 0.9, 2.0, 5.0])
def test_the_series_ends_where_the_rest_is_below_rounding_and_no_later(dtype, max_norm):
    eps = np.finfo(dtype.as_numpy_dtype).eps
    count = convolution_exponential.number_of_terms(max_norm, dtype)
    rest = [sum(max_norm**n / math.factorial(n) for n in range(k + 1, 60)) for k in (count - 1, count)]
    assert rest[1] <= eps * math.exp(-max_norm) < rest[0]
    one = tf.ones([1, 1, 1, 1], dtype)
    for sign in (1.0, -1.0):
        layer = ConvolutionExponential2D(sign * max_norm * one, (1, 1), max_norm=max_norm)
        expected = math.exp(sign * max_norm)
        error = 2.0 * eps * math.exp(max_norm)
        np.testing.assert_allclose(layer.inverse(tf.identity(one)), expected, rtol=0.0, atol=error)
        np.testing.assert_allclose(layer.forward(tf.identity(one)), 1.0 / expected, rtol=0.0, atol=error)


def test_a_kernel_of_zeros_is_the_identity_with_finite_gradients():
    layer = ConvolutionExponential2D(tf.Variable(tf.zeros([3, 3, 1, 1])), (4, 4))
    y = tf.random.stateless_normal([2, 4, 4, 1], [1, 2])
    with tf.GradientTape() as tape:
        x = layer.inverse(y)
        total = tf.reduce_sum(x**2) + layer.inverse_log_det_jacobian(y)
    np.testing.assert_array_equal(x, y)
    gradient = tape.gradient(total, layer.kernel)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).min() > 0.0


LAYERS = {"emerging": EmergingConv2D, "exponential": ConvolutionExponential2D}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("kernel_size", [1, 3, (3, 5)])
def test_layers_start_near_the_identity(layer, kernel_size):
    made = layer.trainable((6, 6), 3, kernel_size, seed=4, name="mixer")
    y = tf.random.stateless_normal([10, 6, 6, 3], [1, 2])
    change = made.inverse(y) - y
    assert 0.0 < np.std(change) < 0.05
    assert abs(made.inverse_log_det_jacobian(y)) < 0.02 * 6 * 6 * 3
    names = [variable.name for variable in made.trainable_variables]
    assert len(set(names)) == len(names) == len(layer._parameter_properties(None))
    assert all(name.startswith("mixer_") for name in names)
    twin = layer.trainable((6, 6), 3, kernel_size, seed=4, use_bias=False)
    np.testing.assert_array_equal(twin.inverse(tf.identity(y)), made.inverse(tf.identity(y)))
    other = layer.trainable((6, 6), 3, kernel_size, seed=5)
    assert np.abs(other.inverse(tf.identity(y)) - made.inverse(tf.identity(y))).max() > 1e-5


ONE, TWO = np.ones([3, 3, 1, 1], np.float32), np.ones([3, 3, 2, 2], np.float32)
EVEN = np.ones([3, 2, 1, 1], np.float32)
WRONG = [
    (EmergingConv2D, (EVEN, EVEN, (4, 4)), r"`first_kernel` must have odd sizes.*\(3, 2, 1, 1\)"),
    (EmergingConv2D, (ONE, EVEN, (4, 4)), r"`second_kernel` must have odd sizes"),
    (EmergingConv2D, (ONE, TWO, (4, 4)), r"the same shape; got `first_kernel` \(3, 3, 1, 1\), `second_k"),
    (EmergingConv2D, (ONE, ONE, (4, None)), "`spatial_shape` must be 2 positive ints"),
    (EmergingConv2D, (TWO, TWO, (4, 4), ONE[0, 0, 0]), r"`bias` must have shape \(2,\).*got \(1,\)"),
    (ConvolutionExponential2D, (EVEN, (4, 4)), r"`kernel` must have odd sizes.*\(3, 2, 1, 1\)"),
    (ConvolutionExponential2D, (ONE[0], (4, 4)), r"`kernel` must have a known shape \[kh, kw, C, C\]"),
    (ConvolutionExponential2D, (ONE, 4), "`spatial_shape` must be 2 positive ints"),
    (ConvolutionExponential2D, (ONE, (4, 4), None, 0.0), "`max_norm` must be above 0 and at most 5; got 0"),
    (ConvolutionExponential2D, (ONE, (4, 4), None, math.nan), "`max_norm` must be above 0.*got nan"),
    (EmergingConv2D.trainable, ((4, 4), 1, 2), "`kernel_size` must be an odd positive int, or 2.*got 2"),
    (ConvolutionExponential2D.trainable, ((4, 4), 0), "`channels` must be a positive int; got 0"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), WRONG)
def test_wrong_parameters_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="`first_kernel` must be floating.*got dtype int64"):
        EmergingConv2D(ONE.astype(np.int64), ONE, (4, 4))
    with pytest.raises(TypeError, match="`kernel` must be a tensor or a tf.Variable; got None"):
        ConvolutionExponential2D(None, (4, 4))
    with pytest.raises(TypeError, match="`max_norm` must be a number; got 'large'"):
        ConvolutionExponential2D(ONE, (4, 4), max_norm="large")


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_images_of_another_size_are_refused(layer):
    made = layer.trainable((4, 4), 1, name="mixer")
    for method, name in (("inverse", "y"), ("forward", "x"), ("inverse_log_det_jacobian", "y")):
        with pytest.raises(ValueError, match=rf"`{name}` of `mixer` has shape \(2, 8, 1\); expected"):
            getattr(made, method)(tf.ones([2, 8, 1]))
    unknown = tf.function(made.inverse, input_signature=[tf.TensorSpec([None] * 4)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        unknown(tf.ones([1, 2, 8, 1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"layer": "emergent"},
            r"`layer` must be one of \('self_norm', 'emerging', 'exponential'\); got 'e",
        ),
        (
            {"layer": "emerging", "gradient": "exact"},
            "`gradient` is an option of `layer` 'self_norm' alone;",
        ),
        ({"layer": "emerging", "mixture": 1.0}, "`mixture` is an option of .* got 1.0 for 'emerging'"),
        ({"layer": "exponential", "inversion": "exact"}, "`inversion` .* got 'exact' for 'exponential'"),
    ],
)
def test_conv_flow_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.conv_flow((4, 4, 1), num_blocks=1, **arguments)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("kind", "layer"), LAYERS.items())
def test_conv_flow_takes_the_layer(kind, layer):
    flow = sn.conv_flow((4, 4, 1), num_blocks=2, layers_per_block=2, layer=kind, centering=False, seed=1)
    layers = [part for part in flow.bijector.bijectors if isinstance(part, layer)]
    assert [made.name for made in layers] == [f"block_{i}_conv_{j}" for i in range(2) for j in range(2)]
    assert [made.spatial_shape for made in layers] == [(4, 4)] * 2 + [(2, 2)] * 2
    assert len({variable.name for variable in flow.variables}) == len(flow.variables)
    assert sn.self_norm_layers(flow) == []
    assert sn.exact(flow) is flow
    x = tf.random.stateless_normal([3, 4, 4, 1], [1, 2])
    np.testing.assert_allclose(flow.bijector.forward(flow.bijector.inverse(x) + 0.0), x, atol=1e-5)
    assert flow.log_prob(x).shape == [3]


@keras.saving.register_keras_serializable("test_baselines")
def both_layers():
    normal = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), (2, 3, 1))
    layers = [layer.trainable((2, 3), 1, seed=1, name=name) for name, layer in LAYERS.items()]
    return tfp.distributions.TransformedDistribution(normal, tfp.bijectors.Chain(layers))


def test_a_flow_of_both_trains_is_saved_and_exported(tmp_path, rng):
    x = rng.normal(loc=1.0, scale=0.3, size=[200, 2, 3, 1]).astype(np.float32)
    model = sn.FlowModel.from_builder(both_layers)
    model.compile(keras.optimizers.Adam(3e-2))
    history = model.fit(x, epochs=3, batch_size=20, verbose=0).history["nll"]
    assert history[-1] < history[0] - 1.0
    names = {f"emerging_{part}" for part in ("first_kernel", "second_kernel", "bias")}
    names |= {"exponential_kernel", "exponential_bias"}
    assert {variable.name for variable in model.trainable_variables} == names
    np.testing.assert_allclose(model.decode(model.encode(x[:3])), x[:3], rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    np.testing.assert_array_equal(loaded.log_prob(x), model.log_prob(x))
    model.export(tmp_path / "served")
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.log_prob(x), model.log_prob(x), rtol=1e-5)
    np.testing.assert_allclose(served.decode(served.encode(x[:3])), x[:3], rtol=1e-4, atol=1e-4)
    assert served.sample(3, [1, 2]).shape == (3, 2, 3, 1)
