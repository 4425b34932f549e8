"""The density of a preprocessed flow is 0 outside the range of the preprocessing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.flows.support import preprocessed_flow

tfb, tfd = tfp.bijectors, tfp.distributions
INSIDE = np.array([[1.0, 2.0], [7.5, 0.25]], np.float32)
OUTSIDE = np.array([[-1.0, 2.0], [1.0, 9.0], [np.inf, 1.0], [-np.inf, 1.0]], np.float32)


def small_flow(**options):
    return sn.dense_flow(2, num_layers=2, preprocessing=sn.images.pixel_sigmoid(8), seed=1, **options)


def expected_density(flow, x):
    """The same layers without preprocessing, at the logits, and the logit's Jacobian by hand."""
    scale = 8.0 / (1.0 - 2e-6)
    share = (x.astype(float) + 1e-6 * scale) / scale
    logits = np.log(share) - np.log1p(-share)
    inner = tfd.TransformedDistribution(flow.distribution, tfb.Chain(flow.bijector.bijectors[1:]))
    jacobian = -np.sum(np.log(scale * share * (1.0 - share)), axis=-1)
    return inner.log_prob(tf.constant(logits, tf.float32)) + jacobian.astype(np.float32)


def test_density_inside_and_outside():
    flow = small_flow()
    np.testing.assert_allclose(flow.log_prob(INSIDE), expected_density(flow, INSIDE), rtol=1e-4)
    x = tf.constant(np.concatenate([OUTSIDE, INSIDE]))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        log_prob = flow.log_prob(x)
    np.testing.assert_array_equal(log_prob[:4], np.full(4, -np.inf))
    np.testing.assert_array_equal(flow.prob(x)[:4], np.zeros(4))
    np.testing.assert_allclose(log_prob[4:], flow.log_prob(INSIDE), rtol=1e-6)
    gradient = tape.gradient(log_prob, x).numpy()
    np.testing.assert_array_equal(gradient[:4], np.zeros([4, 2]))
    assert np.all(np.isfinite(gradient[4:]))
    assert np.all(gradient[4:] != 0.0)
    kernel = flow.trainable_variables[0]
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(INSIDE)
    np.testing.assert_allclose(
        tape.gradient(log_prob, kernel), gradient_of_kernel(flow, kernel, x), rtol=1e-5, atol=1e-6
    )


def gradient_of_kernel(flow, kernel, x):
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(x)
    return tape.gradient(log_prob, kernel)


def test_a_nan_is_not_hidden():
    flow = small_flow()
    assert np.isnan(flow.log_prob([np.nan, 1.0]))
    assert np.isnan(flow.log_prob([np.nan, -1.0]))
    flow.trainable_variables[0].assign(tf.fill(flow.trainable_variables[0].shape, np.nan))
    assert np.all(np.isnan(flow.log_prob(INSIDE)))
    broken = sn.dense_flow(2, preprocessing=tfb.Scale(tf.Variable([np.nan, 1.0], dtype=tf.float32)))
    assert np.all(np.isnan(broken.log_prob(INSIDE)))


@pytest.mark.parametrize(
    "of",
    [
        lambda flow: tf.function(flow.log_prob),
        lambda flow: tf.function(flow.log_prob, jit_compile=True),
        lambda flow: lambda x: tf.function(lambda argument, x: argument.log_prob(x))(flow, x),
        lambda flow: sn.exact(flow).log_prob,
        lambda flow: flow.copy(name="copy").log_prob,
        lambda flow: lambda x: sn.estimate_log_prob(flow, x, seed=1).value,
        lambda flow: sn.FlowModel(flow).log_prob,
        lambda flow: tfd.TransformedDistribution(flow, tfb.Shift([0.0, 0.0])).log_prob,
    ],
    ids=("graph", "xla", "argument", "exact", "copy", "estimate", "model", "as a base"),
)
def test_every_route_to_the_density(of):
    flow = small_flow()
    log_prob = of(flow)(np.concatenate([INSIDE, OUTSIDE]))
    np.testing.assert_allclose(log_prob[:2], expected_density(flow, INSIDE), rtol=1e-4)
    np.testing.assert_array_equal(log_prob[2:], np.full(4, -np.inf))


def test_model_that_trains_saves_and_exports(tmp_path):
    model = sn.FlowModel.from_builder(
        sn.dense_flow, event_shape=2, num_layers=1, preprocessing=tfb.Exp(), seed=1
    )
    model.compile(keras.optimizers.Adam(1e-2))
    events = np.exp(np.random.default_rng(0).normal(size=[200, 2])).astype(np.float32)
    model.fit(events, epochs=1, verbose=0)
    x = np.concatenate([events[:3], -events[:1], np.zeros([1, 2], np.float32)])
    expected = model.log_prob(x)
    assert np.all(np.isfinite(expected[:3]))
    assert np.all(np.isneginf(expected[3:]))
    assert np.isinf(model.evaluate(x, verbose=0, return_dict=True)["nll"])
    model.save(tmp_path / "flow.keras")
    model.export(tmp_path / "flow")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "flow.keras").log_prob(x), expected)
    served = tf.saved_model.load(tmp_path / "flow")
    np.testing.assert_allclose(served.log_prob(tf.constant(x)), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="the log-likelihood. It is -inf for an event outside the support"):
        model.fit(-events, epochs=10, batch_size=10, verbose=0)


def test_conditional_model():
    flow = sn.coupling_flow(2, 1, num_layers=1, width=4, preprocessing=sn.images.pixel_sigmoid(8), seed=1)
    model, condition = sn.ConditionalFlowModel(flow, condition_shape=1), np.ones([6, 1], np.float32)
    log_prob = model.log_prob(np.concatenate([INSIDE, OUTSIDE]), condition)
    kwargs = {"coupling_0": {"condition": condition[:2]}}
    np.testing.assert_allclose(log_prob[:2], flow.log_prob(INSIDE, bijector_kwargs=kwargs), rtol=1e-5)
    assert np.all(np.isfinite(log_prob[:2]))
    assert np.all(np.isneginf(log_prob[2:]))


def test_images_and_a_preprocessing_that_changes_the_shape():
    preprocessing = tfb.Chain([tfb.Reshape([2, 2, 1], [4]), tfb.Softplus()])
    flow = sn.dense_flow(4, num_layers=1, preprocessing=preprocessing, seed=1)
    images = np.ones([3, 2, 2, 1], np.float32)
    images[1, 0, 1, 0] = -1.0
    log_prob = flow.log_prob(images)
    assert log_prob.shape == [3]
    assert np.isneginf(log_prob[1])
    assert log_prob[0] == log_prob[2]
    assert np.isfinite(log_prob[0])


def test_preprocessing_with_layers_is_a_part_of_the_flow():
    flow = sn.dense_flow(2, num_layers=1, preprocessing=sn.SelfNormDense.trainable(2, seed=2), seed=1)
    with sn.training_scope() as scope:
        flow.log_prob(tf.ones([5, 2]))
    assert len(scope.passes) == 2


def test_initial_values_do_not_come_from_events_outside():
    x = np.random.default_rng(0).uniform(0.5, 7.5, size=[50, 2]).astype(np.float32)
    sn.whiten(small_flow(), x)
    x[3, 0] = -1.0
    with pytest.raises(ValueError, match="input of `dense_0` from `x` must be finite"):
        sn.whiten(small_flow(), x)
    images = np.concatenate([np.ones([5, 2, 2, 1]), -np.ones([5, 2, 2, 1])]).astype(np.float32)
    flow = sn.conv_flow((2, 2, 1), num_blocks=1, layers_per_block=1, preprocessing=tfb.Exp(), seed=1)
    with pytest.raises(ValueError, match="finite"):
        sn.adapt(flow, images)


def flow_to_the_end(preprocessing):
    """Latents with a deviation of 30, which a sigmoid in float32 rounds to its ends."""
    layers = tfb.Chain([preprocessing, tfb.Scale(30.0)])
    return preprocessed_flow(tfd.Sample(tfd.Normal(0.0, 1.0), 3), layers, "flow")


@pytest.mark.parametrize(
    "preprocessing",
    [
        sn.images.pixel_sigmoid(17),
        tfb.Sigmoid(),
        tfb.Sigmoid(-1.0, 0.0),
        tfb.Sigmoid(1000.0, 1001.0),
        tfb.Tanh(),
        tfb.NormalCDF(),
        tfb.SoftClip(0.0, 1.0),
        tfb.Chain([tfb.Shift(5.0), tfb.Softplus()]),
    ],
    ids=lambda bijector: bijector.name,
)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_samples_that_the_dtype_rounds_to_the_end_are_inside(preprocessing, is_compiled):
    flow = flow_to_the_end(preprocessing)

    def draw():
        return flow.sample(200, seed=(0, 1)), *flow.experimental_sample_and_log_prob(200, seed=(0, 1))

    samples, also, log_prob = (tf.function(draw) if is_compiled else draw)()
    np.testing.assert_allclose(samples, also, rtol=1e-4)
    assert np.all(np.isfinite(flow.log_prob(tf.identity(samples))))
    assert np.all(np.isfinite(log_prob))
    plain = flow.bijector.forward(flow.distribution.sample(200, seed=(0, 1))).numpy()
    at_end = ~np.isfinite(preprocessing.inverse(tf.constant(plain)))
    assert 50 < np.sum(at_end) < 600
    # Rounding of a compiled sigmoid differs.
    close = {"rtol": 2e-6, "atol": 1e-6}
    np.testing.assert_allclose(samples, plain, **close)
    if not is_compiled:
        np.testing.assert_array_equal(samples.numpy()[~at_end], plain[~at_end])


@pytest.mark.parametrize(
    "preprocessing",
    [tfb.Exp(), tfb.GumbelCDF(), tfb.Chain([tfb.Square(), tfb.Softplus()])],
    ids=lambda bijector: bijector.name,
)
def test_xla_moves_numbers_at_the_end_too(preprocessing):
    """By itself it takes the logarithm of an exponential for the number, at the end too."""
    model = sn.FlowModel(sn.dense_flow(2, num_layers=1, preprocessing=preprocessing, seed=1))
    for jit_compile in (False, True):
        x = tf.function(model.decode, jit_compile=jit_compile)(tf.constant([[-200.0, 0.0], [0.0, -200.0]]))
        assert np.all(np.isfinite(model.log_prob(x)))
        assert np.all(np.isfinite(model.encode(x)))


def test_an_event_is_moved_only_to_the_inside():
    """A place alone is not enough where the inverse at a place depends on the others."""
    flow = flow_to_the_end(tfb.Chain([tfb.Ascending(), tfb.Scale(30.0)]))
    samples = flow.sample(300, seed=(0, 1)).numpy()
    plain = flow.bijector.forward(flow.distribution.sample(300, seed=(0, 1))).numpy()
    is_moved = np.any(samples != plain, axis=-1)
    assert np.all(np.isfinite(flow.log_prob(tf.constant(samples[is_moved]))))
    assert np.all(np.diff(samples[is_moved], axis=-1) > 0.0)


def test_samples_inside_are_the_tensor_of_the_cache():
    flow = preprocessed_flow(tfd.Sample(tfd.Normal(0.0, 1.0), 3), tfb.Chain([tfb.Sigmoid()]), "flow")
    samples = flow.sample(5, seed=(0, 1))
    z = flow.distribution.sample(5, seed=(0, 1))
    assert flow.bijector.inverse(samples) is flow.bijector.inverse(samples)
    np.testing.assert_array_equal(flow.bijector.inverse(samples), z)


def test_gradients_of_samples_at_the_end():
    scale = tf.Variable(30.0)
    flow = preprocessed_flow(
        tfd.Sample(tfd.Normal(0.0, 1.0), 3), tfb.Chain([tfb.Sigmoid(), tfb.Scale(scale)]), "flow"
    )
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(flow.sample(200, seed=(0, 1)))
    z = np.float64(flow.distribution.sample(200, seed=(0, 1)))
    share = 1.0 / (1.0 + np.exp(-30.0 * z))
    np.testing.assert_allclose(tape.gradient(total, scale), np.sum(z * share * (1.0 - share)), rtol=1e-4)


def test_latents_of_decoded_extremes_are_finite():
    model = sn.FlowModel(small_flow())
    z = tf.constant([[60.0, -60.0], [0.5, 200.0]])
    x = model.decode(z)
    assert np.all(np.isfinite(model.encode(x)))
    assert np.all(np.isfinite(model.log_prob(x)))
    np.testing.assert_allclose(x, model.distribution.bijector.forward(tf.identity(z)), atol=1e-5)
    flow = sn.coupling_flow(2, 1, num_layers=1, width=4, preprocessing=sn.images.pixel_sigmoid(8), seed=1)
    model, condition = sn.ConditionalFlowModel(flow), tf.zeros([2, 1])
    x = model.decode(z, condition)
    assert np.all(np.isfinite(model.log_prob(x, condition)))


@pytest.mark.parametrize(
    ("preprocessing", "size", "shape"),
    [
        (tfb.Chain([tfb.Reshape([2, 2, 1], [4]), tfb.Softplus()]), 4, (2, 2, 1)),
        (tfb.Chain([tfb.TransformDiagonal(tfb.Exp()), tfb.FillTriangular()]), 3, (2, 2)),
        # Two spacings of float32 wide: no number is inside.
        (tfb.Sigmoid(1e6, 1e6 + 0.125), 3, (3,)),
        (tfb.Scale(0.0), 3, (3,)),
    ],
)
def test_samples_of_other_preprocessings_are_as_they_were(preprocessing, size, shape):
    layers = tfb.Chain([preprocessing, tfb.Scale(30.0)])
    flow = preprocessed_flow(tfd.Sample(tfd.Normal(0.0, 1.0), size), layers, "flow")
    samples = flow.sample(20, seed=(0, 1))
    assert samples.shape == (20, *shape)
    np.testing.assert_array_equal(samples, layers.forward(flow.distribution.sample(20, seed=(0, 1))))


def test_the_places_of_a_permutation_are_no_harm():
    flow = flow_to_the_end(tfb.Chain([tfb.Permute([1, 2, 0]), tfb.Sigmoid()]))
    samples = flow.sample(200, seed=(0, 1))
    expected = flow.bijector.forward(flow.distribution.sample(200, seed=(0, 1)))
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


def test_forward_mode_through_samples_in_a_graph():
    low = tf.Variable(-1.0)
    flow = sn.dense_flow(3, num_layers=1, preprocessing=tfb.Sigmoid(low, 1.0), seed=1)

    def derivative():
        with tf.autodiff.ForwardAccumulator(low, tf.constant(1.0)) as accumulator:
            total = tf.reduce_sum(flow.sample(5, seed=(1, 2)))
        return accumulator.jvp(total)

    # The derivative of low + (1 - low) s by low is 1 - s, which is (1 - y) / 2.
    expected = np.sum(1.0 - flow.sample(5, seed=(1, 2))) / 2.0
    np.testing.assert_allclose(derivative(), expected, rtol=1e-5)
    np.testing.assert_allclose(tf.function(derivative)(), expected, rtol=1e-5)
