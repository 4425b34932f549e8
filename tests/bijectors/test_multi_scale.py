"""Squeeze, AffineCoupling, ChannelSplit, and the flows made of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm.structure.layers import bijectors_of

tfb, tfd = tfp.bijectors, tfp.distributions
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def images(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def moved(flow, rng):
    """Off the start, at which couplings do nothing."""
    for variable in flow.trainable_variables:
        variable.assign_add(0.05 * rng.normal(size=variable.shape))
    return flow


def small_glow(rng, **options):
    defaults = {"num_blocks": 2, "steps_per_block": 2, "width": 4, "dtype": tf.float64, "seed": 1}
    flow = sn.glow_flow((4, 4, 2), **defaults | options)
    sn.adapt(flow, images(rng, 200, 4, 4, 2))
    return moved(flow, rng)


def test_squeeze_takes_blocks_of_pixels_to_channels(rng):
    x = images(rng, 3, 6, 4, 2)
    y = sn.Squeeze().forward(x)
    for i in range(2):
        for j in range(2):
            np.testing.assert_array_equal(y[..., (2 * i + j) * 2 : (2 * i + j + 1) * 2], x[:, i::2, j::2])
    np.testing.assert_array_equal(y, tf.nn.space_to_depth(x, 2))
    compiled = tf.function(sn.Squeeze().forward, input_signature=[tf.TensorSpec([None] * 4, tf.float64)])
    np.testing.assert_array_equal(compiled(x), y)
    pixels = tf.constant(rng.integers(0, 256, [2, 4, 4, 3]), tf.uint8)
    np.testing.assert_array_equal(sn.Squeeze().inverse(sn.Squeeze().forward(pixels)), pixels)


def test_affine_coupling_is_what_it_says(rng):
    def network(a):
        return tf.concat([tf.sin(a), 3.0 * a], axis=-1)

    coupling = sn.AffineCoupling(network, event_ndims=1, bound=2.0)
    y = images(rng, 7, 4)
    a, b = y[:, :2].numpy(), y[:, 2:].numpy()
    s = 2.0 * np.tanh(3.0 * a / 2.0)
    x = coupling.inverse(y)
    np.testing.assert_allclose(x, np.concatenate([a, np.exp(s) * b + np.sin(a)], axis=1), **TOLERANCE)
    np.testing.assert_allclose(coupling.inverse_log_det_jacobian(tf.identity(y)), s.sum(axis=1), **TOLERANCE)
    np.testing.assert_allclose(coupling.forward(tf.identity(x)), y, **TOLERANCE)


def test_a_pair_in_a_graph_costs_one_pass_of_the_network(rng):
    calls = []

    def network(a):
        calls.append(1)
        return tf.concat([a, a], axis=-1)

    flow = tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), [4, 4, 2]), sn.AffineCoupling(network)
    )
    x = images(rng, 5, 4, 4, 2)
    log_prob = tf.function(flow.log_prob)(x)
    assert len(calls) == 1
    tf.function(flow.experimental_sample_and_log_prob)(3, seed=[0, 1])
    assert len(calls) == 2
    np.testing.assert_allclose(flow.log_prob(tf.identity(x)), log_prob, **TOLERANCE)


def test_a_weight_that_changed_since_the_pass_counts(rng):
    weight = tf.Variable(1.0, dtype=tf.float64)
    coupling = sn.AffineCoupling(lambda a: tf.concat([weight * a, weight * a], axis=-1), event_ndims=1)
    y = images(rng, 3, 2)
    alive = coupling.inverse(y)
    weight.assign(5.0)
    with tf.GradientTape() as tape:
        log_det = coupling.inverse_log_det_jacobian(y)
    np.testing.assert_allclose(log_det, 2.0 * np.tanh(2.5 * y[:, 0]), **TOLERANCE)
    assert tape.gradient(log_det, weight) is not None
    assert alive is not None


@pytest.mark.parametrize(
    "bijector",
    [
        sn.AffineCoupling(lambda a: tf.concat([a, a], axis=-1), event_ndims=3),
        sn.SelfNormConv2D.trainable((4, 4), 2, dtype=tf.float64, seed=1),
        sn.ChannelSplit(tfb.Scale(tf.constant(2.0, tf.float64))),
    ],
    ids=lambda bijector: bijector.name,
)
def test_branches_of_a_function_do_not_share_what_they_computed(bijector, rng):
    y = images(rng, 3, 4, 4, 2)
    expected = bijector.inverse_log_det_jacobian(tf.identity(y), 3)

    @tf.function
    def after(y, branch):
        passed = tf.cond(branch, lambda: tf.reduce_sum(bijector.inverse(y)), lambda: tf.zeros([], tf.float64))
        return passed, bijector.inverse_log_det_jacobian(y, 3)

    @tf.function
    def beside(y, branch):
        return tf.cond(
            branch,
            lambda: tf.reduce_sum(bijector.inverse(y)),
            lambda: tf.reduce_sum(bijector.inverse_log_det_jacobian(y, 3)),
        )

    for branch in (True, False):
        np.testing.assert_allclose(after(y, tf.constant(branch))[1], expected, **TOLERANCE)
        beside(y, tf.constant(branch))


def test_the_weights_of_a_network_are_seen_and_get_gradients(rng):
    network = sn.coupling_network((4, 4, 1), num_outputs=2, width=3, dtype="float64", seed=1)
    coupling = sn.AffineCoupling(network)
    flow = tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), [4, 4, 2]), coupling
    )
    variables = {v.ref() for v in flow.trainable_variables}
    assert variables == {weight.value.ref() for weight in network.trainable_weights}
    moved(flow, rng)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(flow.log_prob(images(rng, 3, 4, 4, 2)))
    assert all(gradient is not None for gradient in tape.gradient(total, flow.trainable_variables))


class Module(tf.Module):
    def __init__(self):
        self.weight = tf.Variable(tf.ones([1, 2], tf.float64))

    def __call__(self, a):
        return a @ self.weight


def test_the_variables_of_a_module_are_seen():
    assert len(sn.AffineCoupling(Module(), event_ndims=1).trainable_variables) == 1


def test_a_coupling_starts_as_the_identity(rng):
    coupling = sn.AffineCoupling(sn.coupling_network((4, 4, 1), 2, width=3, dtype="float64"))
    x = images(rng, 2, 4, 4, 2)
    np.testing.assert_array_equal(coupling.forward(x), x)


def test_channel_split_hands_arguments_on(rng):
    def shift_and_log_scale(a, units, shift=0.0, **kwargs):
        return 0.0 * a + shift, 0.0 * a

    split = sn.ChannelSplit(tfb.RealNVP(1, shift_and_log_scale_fn=shift_and_log_scale), num_channels=2)
    x = images(rng, 5, 3)
    np.testing.assert_allclose(split.forward(x, shift=3.0), x + [0.0, 3.0, 0.0])
    np.testing.assert_allclose(split.inverse(tf.identity(x), shift=3.0), x - [0.0, 3.0, 0.0])


def test_channel_split_leaves_the_rest(rng):
    split = sn.ChannelSplit(tfb.Scale(tf.constant(2.0, tf.float64)), num_channels=1)
    x = images(rng, 5, 3)
    np.testing.assert_array_equal(split.forward(x), x * [2.0, 1.0, 1.0])
    np.testing.assert_allclose(split.inverse_log_det_jacobian(tf.identity(x)), np.full(5, -np.log(2.0)))
    halves = sn.ChannelSplit(sn.SelfNormDense.trainable(2, dtype=tf.float64))
    assert len(halves.trainable_variables) == 3
    assert len(sn.self_norm_layers(halves)) == 1
    assert sn.exact(halves).bijector.inversion == "exact"
    assert halves.bijector.inversion == "learned"


def count(kind, flow):
    return len(bijectors_of(kind, flow))


def test_the_parts_of_a_glow():
    flow = sn.glow_flow((8, 8, 1), num_blocks=3, steps_per_block=2, width=2, seed=1)
    assert [count(kind, flow) for kind in (sn.ActNorm, sn.SelfNormConv2D, sn.ChannelSplit)] == [6, 6, 2]
    assert count(sn.AffineCoupling, flow) == 6 + 2  # of the steps, and of the split priors
    # Squeezes of the three blocks, and the way back of the two inner ones.
    assert count(sn.Squeeze, flow) == 3 + 2
    plain = sn.glow_flow(
        (8, 8, 1), num_blocks=3, steps_per_block=2, width=2, act_norm=False, split_prior=False, layer="lu"
    )
    kinds = (sn.ActNorm, sn.SelfNormConv2D, sn.AffineCoupling, tfb.ScaleMatvecLU)
    assert [count(kind, plain) for kind in kinds] == [0, 0, 6, 6]
    exact = sn.glow_flow(
        (8, 8, 1), num_blocks=1, steps_per_block=1, kernel_size=(3, 5), width=2, gradient="exact"
    )
    (layer,) = sn.self_norm_layers(exact)
    assert (layer.gradient, layer.inversion, layer.inverse_kernel.shape) == ("exact", "exact", (3, 5, 4, 4))
    # The channels are mixed from the start.
    centre = layer.inverse_kernel.numpy()[1, 2]
    assert np.abs(centre - np.diag(np.diag(centre))).max() > 0.3


def test_the_parts_of_a_conv_flow():
    flow = sn.conv_flow((8, 8, 2), activation="spline", centering=False, seed=1)
    kinds = (sn.SelfNormConv2D, sn.Squeeze, tfb.RationalQuadraticSpline)
    assert [count(kind, flow) for kind in kinds] == [9, 2, 8]
    assert flow.distribution.event_shape == (2, 2, 32)
    assert isinstance(flow.bijector.bijectors[0], sn.SelfNormConv2D)
    assert isinstance(flow.bijector.bijectors[-1], sn.SelfNormConv2D)
    shapes = [layer.event_sizes for layer in sn.self_norm_layers(flow)]
    assert shapes == [(8, 8, 2)] * 3 + [(4, 4, 8)] * 3 + [(2, 2, 32)] * 3


def loop_log_prob(y, levels):
    """The log density of multi-scale latents, written out: a list of blocks, each a list of bijectors."""
    total, x = 0.0, y
    for block in levels:
        for bijector in block:
            value = tf.identity(x)
            total += bijector.inverse_log_det_jacobian(value, 3)
            x = bijector.inverse(tf.identity(x))
        if block is not levels[-1]:
            half = x.shape[-1] // 2
            rest = x[..., half:].numpy()
            total += stats.norm.logpdf(rest).sum(axis=(1, 2, 3))
            x = x[..., :half]
    return total + stats.norm.logpdf(x.numpy()).sum(axis=(1, 2, 3))


def levels_of(flow):
    """The bijectors of each block, without the splits and the way back into the images of the first."""
    blocks, bijectors = [], list(flow.bijector.bijectors)
    while True:
        blocks.append([b for b in bijectors if not isinstance(b, sn.ChannelSplit)])
        splits = [b for b in bijectors if isinstance(b, sn.ChannelSplit)]
        if not splits:
            return blocks
        bijectors = list(splits[0].bijector.bijectors)[:-1]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer": "lu"},
        {"gradient": "exact", "kernel_size": 3},
        {"split_prior": False, "act_norm": False},
        {"num_blocks": 1},
    ],
    ids=str,
)
def test_glow_equals_a_loop_over_its_blocks(options, rng):
    flow = small_glow(rng, **options)
    y = images(rng, 5, 4, 4, 2)
    blocks = levels_of(flow)
    assert len(blocks) == options.get("num_blocks", 2)
    np.testing.assert_allclose(flow.log_prob(tf.identity(y)), loop_log_prob(y, blocks), **TOLERANCE)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_jacobian_of_a_whole_glow_has_the_same_log_det(kernel_size, rng):
    flow = small_glow(rng, kernel_size=kernel_size)
    y = images(rng, 4, 4, 2)
    flat = tf.reshape(y, [32])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(flat)
        z = tf.reshape(flow.bijector.inverse(tf.reshape(flat, [4, 4, 2])), [32])
    log_det = np.linalg.slogdet(tape.jacobian(z, flat, experimental_use_pfor=False))[1]
    found = flow.bijector.inverse_log_det_jacobian(tf.identity(y), 3)
    np.testing.assert_allclose(found, log_det, **TOLERANCE)
    expected = stats.norm.logpdf(z.numpy()).sum() + log_det
    np.testing.assert_allclose(flow.log_prob(tf.identity(y)), expected, **TOLERANCE)
    back = sn.exact(flow).bijector.forward(flow.bijector.inverse(tf.identity(y)))
    np.testing.assert_allclose(back, y, **TOLERANCE)


def test_a_network_of_float64_does_not_round_its_input(rng):
    network = sn.coupling_network((1, 1, 1), num_outputs=2, width=3, dtype="float64")
    for weight in network.weights:
        weight.assign(keras.ops.ones(weight.shape))
    x = rng.normal(size=[1, 1, 1, 1]) + 3.0
    expected = 3.0 * (3.0 * (x + 1.0) + 1.0) + 1.0
    np.testing.assert_allclose(network(tf.constant(x)), np.tile(expected, 2), rtol=1e-14)
