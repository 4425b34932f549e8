"""ActNorm and its initial values from data."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm.model.streams import first_events

tfb, tfd = tfp.bijectors, tfp.distributions


def images(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def test_act_norm_adapts_to_mean_and_deviation(rng):
    data = 3.0 + 2.0 * images(rng, 500, 4, 4, 2)
    for make, direction in (
        (lambda norm: norm, lambda b, x: b.inverse(x)),
        (tfb.Invert, lambda b, x: b.inverse(x)),
    ):
        norm = sn.ActNorm.trainable(2, dtype=tf.float64)
        bijector = make(norm)
        flow = tfd.TransformedDistribution(
            tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), [4, 4, 2]), bijector
        )
        assert not sn.is_adapted(flow)
        sn.adapt(flow, data)
        assert sn.is_adapted(flow)
        latents = direction(bijector, tf.identity(data)).numpy().reshape(-1, 2)
        np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(latents.std(axis=0), 1.0, rtol=1e-12)
        log_prob = stats.norm.logpdf(latents.reshape(500, -1)).sum(axis=1)
        scale = np.log(data.numpy().reshape(-1, 2).std(axis=0)).sum()
        np.testing.assert_allclose(flow.log_prob(tf.identity(data)), log_prob - 16 * scale, rtol=1e-10)


def test_adapting_once_normalises_the_input_of_every_coupling(rng):
    flow = sn.glow_flow((4, 4, 1), num_blocks=1, steps_per_block=3, width=4, dtype=tf.float64, seed=1)
    data = 5.0 + images(rng, 300, 4, 4, 1)
    sn.adapt(flow, data)
    x = data
    for bijector in flow.bijector.bijectors:
        x = bijector.inverse(tf.identity(x))
        if isinstance(bijector, sn.ActNorm):
            np.testing.assert_allclose(tf.reduce_mean(x, axis=[0, 1, 2]), 0.0, atol=1e-10)
            np.testing.assert_allclose(tf.math.reduce_std(x, axis=[0, 1, 2]), 1.0, rtol=1e-10)
    with pytest.raises(ValueError, match="adapted already"):
        sn.adapt(flow, data)


def test_adapting_keeps_a_start_that_there_is(rng):
    started, new = sn.ActNorm.trainable(1, dtype=tf.float64), sn.ActNorm.trainable(1, dtype=tf.float64)
    started.is_adapted.assign(True)
    normal = tfd.Normal(tf.zeros([], tf.float64), 1.0)
    flow = tfd.TransformedDistribution(tfd.Sample(normal, [1]), tfb.Chain([started, new]))
    sn.adapt(flow, 2.0 + images(rng, 50, 1))
    np.testing.assert_array_equal(started.shift, [0.0])
    assert new.shift[0] > 1.0


def test_a_start_that_fails_half_way_is_none(rng):
    first, second = sn.ActNorm.trainable(2, dtype=tf.float64), sn.ActNorm.trainable(2, dtype=tf.float64)
    constant = tfb.Inline(forward_fn=tf.identity, inverse_fn=tf.zeros_like, forward_min_event_ndims=1)
    normal = tfd.Normal(tf.zeros([], tf.float64), 1.0)
    flow = tfd.TransformedDistribution(tfd.Sample(normal, [2]), tfb.Chain([first, constant, second]))
    with pytest.raises(ValueError, match="cannot adapt to data of mean 0 and standard deviation 0"):
        sn.adapt(flow, images(rng, 50, 2))
    assert not first.is_adapted
    assert not second.is_adapted


def test_a_start_that_fails_leaves_an_earlier_one(rng):
    started, new = sn.ActNorm.trainable(2, dtype=tf.float64), sn.ActNorm.trainable(2, dtype=tf.float64)
    started.is_adapted.assign(True)
    normal = tfd.Normal(tf.zeros([], tf.float64), 1.0)
    flow = tfd.TransformedDistribution(tfd.Sample(normal, [2]), tfb.Chain([started, new]))
    with pytest.raises(ValueError, match="cannot adapt to data"):
        sn.adapt(flow, tf.ones([50, 2], tf.float64))
    assert started.is_adapted
    assert not new.is_adapted


def test_act_norm_without_a_start_refuses_in_graphs_too(rng):
    norm = sn.ActNorm.trainable(2, dtype=tf.float64)
    message = "`act_norm` has no initial values yet: call `adapt`"
    x = images(rng, 3, 2)
    compiled = tf.function(norm.inverse)
    for call in (norm.forward, norm.inverse, norm.inverse_log_det_jacobian):
        with pytest.raises(ValueError, match=message):
            call(x)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        compiled(x)
    norm.is_adapted.assign(True)
    np.testing.assert_allclose(compiled(x), x)


def test_without_a_start_xla_gives_nan(rng):
    norm = sn.ActNorm.trainable(2, dtype=tf.float64)
    compiled = tf.function(norm.inverse, jit_compile=True)
    assert np.isnan(compiled(images(rng, 3, 2))).all()
    norm.is_adapted.assign(True)
    assert np.isfinite(compiled(images(rng, 3, 2))).all()


def test_a_start_under_a_distribution_strategy(rng):
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        flow = sn.glow_flow((4, 4, 1), num_blocks=1, steps_per_block=1, width=2, dtype=tf.float64, seed=1)
        assert not sn.is_adapted(flow)
        sn.adapt(flow, images(rng, 50, 4, 4, 1))
        assert sn.is_adapted(flow)


def test_act_norm_goes_into_a_function_as_an_argument(rng):
    norm = sn.ActNorm.trainable(2, dtype=tf.float64)
    norm.is_adapted.assign(True)
    x = images(rng, 3, 2)
    np.testing.assert_array_equal(tf.function(lambda bijector, x: bijector.inverse(x))(norm, x), x)


def test_other_numbers_of_channels_are_refused():
    for channels in (1, 3):
        norm = sn.ActNorm(tf.zeros(channels), tf.ones(channels))
        for method in (norm.forward, norm.inverse, norm.forward_log_det_jacobian):
            with pytest.raises(ValueError, match=rf"has shape \(5, 4\); expected \(..., {channels}\)"):
                method(tf.ones([5, 4]))


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(TypeError, match="`is_adapted` must be True, or a tf.Variable"):
        sn.ActNorm(tf.zeros(2), tf.zeros(2), is_adapted=False)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones([5, 2]), "cannot adapt to data of mean 1 and standard deviation 0 in channel 0"),
        (np.full([5, 2], np.nan), "cannot adapt to data of mean nan"),
        (np.ones([1, 2]), r"two events or more to adapt to; got shape \(1, 2\)"),
        (np.ones([5, 3]), r"`x` has shape \(5, 3\); expected a batch of events"),
    ],
)
def test_data_that_act_norm_cannot_start_from(x, message):
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), sn.ActNorm.trainable(2))
    with pytest.raises(ValueError, match=message):
        sn.adapt(flow, x)
    assert not sn.is_adapted(flow)
    with pytest.raises(TypeError, match="`x` must be floating"):
        sn.adapt(flow, np.ones([5, 2], int))
    with pytest.raises(TypeError, match="`distribution` must be a TFP distribution"):
        sn.adapt(flow.bijector, x)


def test_the_same_two_events_give_a_start_again(rng):
    """TFP's cache knows their tensor from the first time, as long as its latent lives."""
    norm, x, kept = sn.ActNorm.trainable(2, dtype=tf.float64), images(rng, 2, 2), []
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), [2]), norm)
    for _ in range(2):
        sn.adapt(flow, x)
        assert norm.is_adapted
        np.testing.assert_allclose(norm.shift, np.mean(x, axis=0), rtol=1e-12)
        kept.append(flow.bijector.inverse(x))
        norm.is_adapted.assign(False)
        norm.shift.assign([0.0, 0.0])


def test_first_events_reads_so_many_and_no_more(rng):
    x, base = rng.normal(size=[9, 2]), tfd.MultivariateNormalDiag(tf.zeros(2, tf.float64))

    def rows():
        yield from x[:6]
        raise RuntimeError("read too far")

    data = tf.data.Dataset.from_generator(rows, output_signature=tf.TensorSpec([2], tf.float64)).batch(3)
    labelled = data.map(lambda batch: (batch, batch[:, 0]))
    for source in (x, (x, x[:, 0]), data, labelled):
        for count in (4, 6):
            np.testing.assert_array_equal(first_events(source, count, base)[0], x[:count])


def test_adapting_leaves_other_flows_alone(rng):
    flow = sn.conv_flow((4, 4, 1), num_blocks=1, centering=False, seed=1)
    sn.adapt(flow, images(rng, 5, 4, 4, 1))
    assert sn.is_adapted(flow)
