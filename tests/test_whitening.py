"""The start from data of dense layers."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def correlated(rng, size, count=500):
    factor = rng.normal(size=[size, size])
    return rng.normal(size=[count, size]) @ factor + rng.normal(size=size)


def flow_of(layers, size):
    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(size, tf.float64), tf.ones(size, tf.float64)), tfb.Chain(layers)
    )


def test_one_layer_is_the_gaussian_that_fits_best(rng):
    x = correlated(rng, 5)
    flow = flow_of([sn.SelfNormDense.trainable(5, dtype=tf.float64)], 5)
    sn.whiten(flow, x)
    mean, covariance = x.mean(axis=0), np.cov(x, rowvar=False)
    residual = x - mean
    expected = -0.5 * (
        np.sum(residual * np.linalg.solve(covariance, residual.T).T, axis=1)
        + np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    )
    np.testing.assert_allclose(flow.log_prob(tf.constant(x)), expected, rtol=1e-9)


def test_every_layer_is_whitened_after_those_before_it_and_has_its_inverse(rng):
    x = correlated(rng, 4)
    layers = [sn.SelfNormDense.trainable(4, dtype=tf.float64, name=f"dense_{i}") for i in range(3)]
    slope = tf.constant(0.3, tf.float64)
    bend = tfb.Invert(sn.SmoothLeakyReLU(slope))
    # Nested, and from the data on.
    flow = flow_of([layers[0], bend, tfb.Chain([layers[1], bend]), layers[2]], 4)
    sn.whiten(flow, x)
    reached = x
    for layer in layers:
        output = layer.inverse(tf.constant(reached)).numpy()
        np.testing.assert_allclose(output.mean(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(np.cov(output, rowvar=False), np.eye(4), atol=1e-9)
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(4), atol=1e-9)
        np.testing.assert_allclose(layer.inverse_kernel, tf.transpose(layer.inverse_kernel), atol=1e-12)
        reached = 0.3 * output + 0.7 * np.log1p(np.exp(output))


def test_images_are_flattened_and_other_layers_stay(rng):
    flow = sn.dense_flow(event_shape=(2, 3), num_layers=2, seed=1)
    x = correlated(rng, 6).reshape(-1, 2, 3)
    before = -np.mean(flow.log_prob(tf.constant(x, tf.float32)))
    sn.whiten(flow, x)
    assert -np.mean(flow.log_prob(tf.constant(x, tf.float32))) < before
    conv = sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, centering=False, seed=1)
    kernel = sn.self_norm_layers(conv)[0].inverse_kernel.numpy()
    sn.whiten(conv, rng.normal(size=[50, 4, 4, 1]))
    np.testing.assert_array_equal(sn.self_norm_layers(conv)[0].inverse_kernel, kernel)


def test_a_direction_without_variance_stays_finite(rng):
    x = correlated(rng, 3)
    x[:, 1] = 2.0
    flow = flow_of([sn.SelfNormDense.trainable(3, dtype=tf.float64)], 3)
    sn.whiten(flow, x)
    layer = sn.self_norm_layers(flow)[0]
    largest = np.linalg.svd(layer.inverse_kernel.numpy())[1][0]
    np.testing.assert_allclose(largest, 1e4 / np.sqrt(np.linalg.eigvalsh(np.cov(x.T))[-1]), rtol=1e-6)


def test_without_a_bias_the_mean_stays(rng):
    x = correlated(rng, 3)
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, use_bias=False)
    sn.whiten(flow_of([layer], 3), x)
    output = layer.inverse(tf.constant(x)).numpy()
    np.testing.assert_allclose(np.cov(output, rowvar=False), np.eye(3), atol=1e-9)


def test_what_is_refused(rng):
    flow = flow_of([sn.SelfNormDense.trainable(3, dtype=tf.float64)], 3)
    kernel = sn.self_norm_layers(flow)[0].inverse_kernel.numpy()
    with pytest.raises(TypeError, match="`distribution` must be a TFP distribution; got ndarray"):
        sn.whiten(kernel, kernel)
    with pytest.raises(TypeError, match="`x` must be floating; got dtype int64"):
        sn.whiten(flow, np.ones([9, 3], np.int64))
    with pytest.raises(
        ValueError, match=r"`x` has shape \(9, 4\); expected a batch of events of shape \(3,\)"
    ):
        sn.whiten(flow, np.ones([9, 4]))
    with pytest.raises(ValueError, match="more events than `self_norm_dense` has dimensions, 3; got 3"):
        sn.whiten(flow, rng.normal(size=[3, 3]))
    with pytest.raises(ValueError, match="`self_norm_dense` from `x` must vary"):
        sn.whiten(flow, np.ones([9, 3]))
    with pytest.raises(ValueError, match="`self_norm_dense` from `x` must be finite"):
        sn.whiten(flow, np.full([9, 3], np.nan))
    np.testing.assert_array_equal(sn.self_norm_layers(flow)[0].inverse_kernel, kernel)
    constant = flow_of([sn.SelfNormDense(tf.eye(3, dtype=tf.float64), tf.eye(3, dtype=tf.float64))], 3)
    with pytest.raises(TypeError, match="parameters of `self_norm_dense` must be tf.Variables"):
        sn.whiten(constant, rng.normal(size=[9, 3]))
