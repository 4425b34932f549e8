"""Image helpers, builders, and the walk through trees of TFP objects."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


def test_dequantize_adds_uniform_noise_below_the_next_level():
    levels = np.arange(256, dtype=np.uint8).repeat(200)
    for seed in (None, 7):
        pixels = sn.images.dequantize(levels, seed=seed).numpy()
        np.testing.assert_array_equal(np.floor(pixels), levels)
        assert stats.kstest(pixels - levels, "uniform").pvalue > 1e-4
    np.testing.assert_array_equal(pixels, sn.images.dequantize(levels, seed=7))
    with pytest.raises(TypeError, match="`images` must have an integer dtype; got float32"):
        sn.images.dequantize([0.5])
    with pytest.raises(TypeError, match="`dtype` must be float32 or float64"):
        sn.images.dequantize([1], dtype=tf.float16)


@pytest.mark.parametrize("level", [0, 3, 255, 512, 60_000])
def test_dequantize_stays_below_the_next_level(level):
    pixels = sn.images.dequantize(np.full(200_000, level), seed=1).numpy()
    assert pixels.min() >= level
    assert pixels.max() < level + 1


@pytest.mark.parametrize("labels", [False, True])
def test_a_data_set_is_dequantized_afresh_in_each_epoch(labels):
    tf.random.set_seed(1)  # with it, a plain map would repeat its noise
    levels = np.arange(12, dtype=np.uint8).reshape(4, 3)
    elements = (levels, np.arange(4)) if labels else levels
    data = sn.images.dequantize_dataset(tf.data.Dataset.from_tensor_slices(elements).batch(2), seed=3)
    epochs = [[batch[0] if labels else batch for batch in data] for _ in range(2)]
    first, second = (np.concatenate(epoch) for epoch in epochs)
    np.testing.assert_array_equal(np.floor(first), levels)
    assert (first != second).all()
    assert len(np.unique(first - levels)) == 12
    if labels:
        np.testing.assert_array_equal(np.concatenate([label for _, label in data]), np.arange(4))


def test_pixel_sigmoid_is_the_papers_preprocessing(rng):
    alpha, x = 1e-6, rng.uniform(0.0, 256.0, [100])
    u = alpha + (1 - 2 * alpha) * x / 256
    bijector = sn.images.pixel_sigmoid(dtype=tf.float64)
    np.testing.assert_allclose(bijector.inverse(tf.constant(x)), np.log(u / (1 - u)), rtol=1e-10)
    expected = np.log((1 - 2 * alpha) / 256 / (u * (1 - u)))
    np.testing.assert_allclose(bijector.inverse_log_det_jacobian(tf.constant(x)), expected, rtol=1e-9)
    corners = sn.images.pixel_sigmoid().inverse([0.0, 256.0])
    np.testing.assert_allclose(corners, [-np.log(1e6), np.log(1e6)], rtol=1e-2)


@pytest.mark.parametrize("arguments", [{"num_levels": 1}, {"alpha": 0.0}, {"alpha": 0.5}])
def test_pixel_sigmoid_refuses(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        sn.images.pixel_sigmoid(**arguments)


def test_bits_per_dim_of_the_uniform_density_over_256_levels_is_8():
    log_prob = tf.constant([-28 * 28 * np.log(256.0)])
    np.testing.assert_allclose(sn.images.bits_per_dim(log_prob, (28, 28, 1)), [8.0], rtol=1e-6)


@pytest.mark.parametrize(
    "activation",
    ["smooth_leaky_relu", "leaky_relu", "leaky_squareplus", "spline", None, lambda size: tfb.Tanh()],
)
def test_dense_flow_starts_with_the_papers_values(activation):
    flow = sn.dense_flow((3, 2), num_layers=3, activation=activation, seed=4)
    layers = sn.self_norm_layers(flow)
    assert [layer.name for layer in layers] == ["dense_0", "dense_1", "dense_2"]
    for layer in layers:
        np.testing.assert_array_equal(layer.inverse_kernel, np.eye(6))
        np.testing.assert_array_equal(layer.forward_kernel, np.eye(6))
        assert 0.0 < np.abs(layer.bias).max() < 0.01
    assert len({layer.bias.numpy().tobytes() for layer in layers}) == 3
    twin = sn.self_norm_layers(sn.dense_flow((3, 2), num_layers=3, seed=4))
    np.testing.assert_array_equal(layers[0].bias, twin[0].bias)
    sample = flow.sample(5, seed=(1, 2))
    assert flow.log_prob(tf.identity(sample)).shape == [5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (None, 3)}, "`event_shape` must be fully defined"),
        ({"event_shape": ()}, "`event_shape`"),
        ({"event_shape": 0}, "`event_shape`"),
        ({"event_shape": 3, "num_layers": 0}, "`num_layers`"),
        ({"event_shape": 3, "activation": "relu"}, "`activation` must be one of"),
        ({"event_shape": 3, "gradient": "exakt"}, "`gradient` must be one of"),
        ({"event_shape": 3, "inversion": "both"}, "`inversion` must be None or one of"),
        ({"event_shape": 3, "mixture": 1.5}, r"`mixture` must be in \[0, 1\]"),
    ],
)
def test_dense_flow_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.dense_flow(**arguments)


def test_exact_replaces_every_layer_and_shares_its_variables(make_layer):
    layers = [make_layer(2, inversion="learned") for _ in range(5)]
    joint = tfb.JointMap({"a": layers[0], "b": tfb.Invert(layers[1])})
    nested = tfd.Mixture(
        tfd.Categorical(probs=tf.constant([0.5, 0.5], tf.float64)),
        [
            tfd.TransformedDistribution(
                tfd.MultivariateNormalDiag(tf.zeros(2, tf.float64)), tfb.Chain([tfb.Tanh(), layer])
            )
            for layer in layers[2:4]
        ],
    )
    sequential = tfd.JointDistributionSequential([nested, tfd.Normal(0.0, 1.0)])
    for tree, inside in ((joint, layers[:2]), (nested, layers[2:4]), (sequential, layers[2:4])):
        replaced = sn.exact(tree)
        assert type(replaced) is type(tree)
        found = sn.self_norm_layers(replaced)
        assert {layer.identity for layer in found} == {layer.identity for layer in inside}
        assert all((layer.gradient, layer.inversion) == ("exact", "exact") for layer in found)
        assert all(layer.gradient == "self_norm" for layer in sn.self_norm_layers(tree))
        assert {v.ref() for v in replaced.variables} == {v.ref() for v in tree.variables}


def test_exact_leaves_what_has_no_layer_alone():
    for plain in (tfb.Chain([tfb.Exp(), tfb.Scale(2.0)]), tfd.Sample(tfd.Normal(0.0, 1.0), 3)):
        assert sn.exact(plain) is plain
        assert sn.self_norm_layers(plain) == []
    for function in (sn.exact, sn.self_norm_layers):
        with pytest.raises(
            TypeError, match="`distribution_or_bijector` must be a TFP distribution or bijector; got float"
        ):
            function(1.0)


def test_a_layer_used_twice_is_one_layer(make_layer):
    layer = make_layer(2)
    chain = tfb.Chain([layer, tfb.Tanh(), layer])
    assert sn.self_norm_layers(chain) == [layer]
    first, _, second = sn.exact(chain).bijectors
    assert first is second
