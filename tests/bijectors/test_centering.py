"""Centering and its mean from data."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def flow_of(bijector, shape, dtype=tf.float64):
    normal = tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype))
    return tfd.TransformedDistribution(tfd.Sample(normal, shape), bijector)


def test_adapt_takes_the_mean_of_each_pixel(rng):
    data = 3.0 + np.arange(12.0).reshape(3, 2, 2) + rng.normal(size=[50, 3, 2, 2])
    flow = flow_of(sn.Centering.trainable([3, 2, 2], dtype=tf.float64), [3, 2, 2])
    assert not sn.is_adapted(flow)
    sn.adapt(flow, data)
    assert sn.is_adapted(flow)
    np.testing.assert_allclose(flow.bijector.mean, data.mean(axis=0), rtol=1e-12)
    expected = stats.norm.logpdf(data - data.mean(axis=0)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(flow.log_prob(tf.constant(data)), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="adapted already"):
        sn.adapt(flow, data)


def test_a_mean_of_each_channel(rng):
    data = rng.normal(size=[50, 3, 2, 2])
    flow = flow_of(sn.Centering.trainable([2], dtype=tf.float64), [3, 2, 2])
    sn.adapt(flow, data)
    np.testing.assert_allclose(flow.bijector.mean, data.mean(axis=(0, 1, 2)), atol=1e-12)
    latents = flow.bijector.inverse(tf.constant(data))
    np.testing.assert_allclose(latents, data - data.mean(axis=(0, 1, 2)), atol=1e-12)
    assert flow.log_prob(tf.constant(data)).shape == [50]


def test_inverted_it_centres_the_output_of_forward(rng):
    data = 4.0 + rng.normal(size=[50, 3])
    flow = flow_of(tfb.Invert(sn.Centering.trainable([3], dtype=tf.float64)), [3])
    sn.adapt(flow, data)
    latents = flow.bijector.inverse(tf.constant(data))
    np.testing.assert_allclose(np.mean(latents, axis=0), 0.0, atol=1e-12)


def test_the_log_det_is_zero_and_the_mean_is_trained():
    centering = sn.Centering(tf.Variable([1.0, 2.0]))
    x = tf.constant([[3.0, 4.0]])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(centering.inverse(x)) + centering.inverse_log_det_jacobian(x)
    np.testing.assert_array_equal(centering.inverse_log_det_jacobian(x), 0.0)
    np.testing.assert_array_equal(centering.forward_log_det_jacobian(x), 0.0)
    np.testing.assert_array_equal(tape.gradient(value, centering.mean), [-1.0, -1.0])


def test_one_call_sets_means_act_norms_and_dense_layers(rng):
    data = rng.multivariate_normal([5.0, -3.0], [[4.0, 1.9], [1.9, 1.0]], size=1000)
    layer = sn.SelfNormDense.trainable(2, dtype=tf.float64)
    parts = [sn.Centering.trainable([2], dtype=tf.float64), sn.ActNorm.trainable(2, dtype=tf.float64), layer]
    flow = flow_of(tfb.Chain(parts), [2])
    sn.adapt(flow, data, whitens=True)
    latents = flow.bijector.inverse(tf.constant(data)).numpy()
    np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.cov(latents, rowvar=False), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(parts[0].mean, data.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(parts[1].log_scale, np.log(data.std(axis=0)), rtol=1e-9)


@pytest.mark.parametrize("build", [sn.conv_flow, sn.glow_flow])
def test_builders_centre_images_after_the_preprocessing(build, rng):
    pixels = rng.integers(0, 16, size=[60, 4, 4, 1]) + rng.uniform(size=[60, 4, 4, 1])
    preprocessing = sn.images.pixel_sigmoid(16, dtype=tf.float64)
    options = {"act_norm": False, "width": 2, "steps_per_block": 1} if build is sn.glow_flow else {}
    options |= {"num_blocks": 1, "dtype": tf.float64, "seed": 1}
    flow = build((4, 4, 1), centering=True, preprocessing=preprocessing, **options)
    with pytest.raises(ValueError, match="`centering` has no initial values yet: call `adapt`"):
        flow.log_prob(tf.constant(pixels))
    model = sn.FlowModel(flow)
    model.compile("adam")
    with pytest.raises(ValueError, match="has a `Centering` without initial values: call `adapt`"):
        model.fit(pixels, verbose=0)
    model.adapt(pixels)
    (centering,) = [part for part in flow.bijector.bijectors if isinstance(part, sn.Centering)]
    logits = preprocessing.inverse(tf.constant(pixels))
    np.testing.assert_allclose(centering.mean, np.mean(logits, axis=0), rtol=1e-9)
    bare = build((4, 4, 1), **options)
    centred = bare.log_prob(tf.constant(logits - np.mean(logits, axis=0)))
    log_det = preprocessing.inverse_log_det_jacobian(tf.constant(pixels), event_ndims=3)
    np.testing.assert_allclose(flow.log_prob(tf.constant(pixels)), centred + log_det, rtol=1e-9)


def test_data_without_a_finite_mean_are_refused():
    flow = flow_of(tfb.Chain([tfb.Log(), sn.Centering.trainable([2])]), [2], tf.float32)
    with pytest.raises(ValueError, match="`centering` cannot adapt to data whose mean is not finite"):
        sn.adapt(flow, np.full([3, 2], 1000.0, np.float32))
    assert not sn.is_adapted(flow)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sn.Centering(tf.ones([], tf.float32)), ValueError, "`mean` must have a known shape"),
        (lambda: sn.Centering(tf.ones([2], tf.int32)), TypeError, "`mean` must be floating"),
        (lambda: sn.Centering([1.0], is_adapted=False), TypeError, "`is_adapted` must be True, or"),
        (lambda: sn.Centering([1.0], is_adapted=tf.Variable(False)), TypeError, "must be variables too"),
        (lambda: sn.Centering.trainable([2, None]), ValueError, "`event_shape` must be one or more"),
        (lambda: sn.Centering.trainable([]), ValueError, "`event_shape` must be one or more"),
        (lambda: sn.Centering.trainable([2], dtype=tf.int32), TypeError, "`dtype` must be"),
        (lambda: sn.Centering([1.0, 2.0]).inverse(tf.ones([3])), ValueError, r"expected \(..., 2\)"),
        (lambda: sn.conv_flow((4, 4, 1), num_blocks=1, centering=1), TypeError, "`centering` must be"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
