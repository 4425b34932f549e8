"""Outside a scope `log_prob` is the exact density that W induces."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


@pytest.mark.parametrize(
    "wrap", [lambda layer: layer, lambda layer: tfb.Chain([layer])], ids=["bare", "chain"]
)
@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
@pytest.mark.parametrize("size", [1, 6, 16, 520])
def test_log_prob_is_numpys(make_layer, make_flow, rng, size, gradient, wrap):
    layer = make_layer(size, gradient=gradient)  # R is far from the inverse, and must not count
    x = rng.normal(size=[7, size])
    w, bias = layer.inverse_kernel.numpy(), layer.bias.numpy()
    expected = stats.norm.logpdf(x @ w.T + bias).sum(axis=-1) + np.linalg.slogdet(w)[1]
    found = make_flow(wrap(layer), size).log_prob(tf.constant(x))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_log_prob_of_a_deep_flow_is_numpys(rng):
    flow = sn.dense_flow(5, num_layers=3, dtype=tf.float64, seed=1)
    layers = sn.self_norm_layers(flow)
    for layer in layers:
        layer.inverse_kernel.assign_add(0.3 * rng.normal(size=[5, 5]))
    x = rng.normal(size=[4, 5])
    z, expected = x, 0.0
    for i, layer in enumerate(layers):
        w = layer.inverse_kernel.numpy()
        z = z @ w.T + layer.bias.numpy()
        expected += np.linalg.slogdet(w)[1]
        if i < 2:
            expected += np.log(0.3 + 0.7 / (1.0 + np.exp(-z))).sum(axis=-1)
            z = 0.3 * z + 0.7 * np.logaddexp(0.0, z)
    expected += stats.norm.logpdf(z).sum(axis=-1)
    np.testing.assert_allclose(flow.log_prob(tf.constant(x)), expected, rtol=1e-10)


@pytest.mark.parametrize("activation", ["smooth_leaky_relu", "leaky_relu", "spline"])
def test_a_random_density_integrates_to_one(rng, activation):
    flow = sn.dense_flow(2, num_layers=2, activation=activation, dtype=tf.float64, seed=1)
    for variable in flow.trainable_variables:
        variable.assign_add(0.3 * rng.normal(size=variable.shape))
    sides = np.linspace(-60.0, 60.0, 801)
    grid = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    mass = np.exp(flow.log_prob(tf.constant(grid))).sum() * (sides[1] - sides[0]) ** 2
    np.testing.assert_allclose(mass, 1.0, atol=1e-3)


def test_samples_of_the_exact_inverse_have_the_density(rng):
    flow = sn.dense_flow(2, num_layers=1, dtype=tf.float64, seed=1)
    (layer,) = sn.self_norm_layers(flow)
    layer.inverse_kernel.assign([[2.0, 0.5], [0.0, 0.5]])
    covariance = np.cov(sn.exact(flow).sample(200_000, seed=(1, 2)).numpy().T)
    w = layer.inverse_kernel.numpy()
    np.testing.assert_allclose(covariance, np.linalg.inv(w.T @ w), rtol=0.03, atol=0.03)
    learned = np.cov(flow.sample(200_000, seed=(1, 2)).numpy().T)  # R is still the identity
    np.testing.assert_allclose(learned, np.eye(2), rtol=0.03, atol=0.03)


def test_sampled_points_keep_the_log_det_of_the_map_that_made_them(make_layer, make_flow):
    layer = make_layer(3)
    flow = make_flow(layer, 3)
    sample, log_prob = flow.experimental_sample_and_log_prob(4, seed=(1, 2))
    r, bias = layer.forward_kernel.numpy(), layer.bias.numpy()
    z = np.linalg.solve(r, sample.numpy().T).T + bias
    expected = stats.norm.logpdf(z).sum(axis=-1) - np.linalg.slogdet(r)[1]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-9)
    # TFP's cache returns the point that was sampled from; a fresh tensor meets W.
    w = layer.inverse_kernel.numpy()
    exact = stats.norm.logpdf(sample @ w.T + bias).sum(axis=-1) + np.linalg.slogdet(w)[1]
    np.testing.assert_allclose(flow.log_prob(tf.identity(sample)), exact, rtol=1e-9)


def test_a_pair_has_the_log_det_of_the_direction_that_made_it(make_layer, rng):
    layer = make_layer(3)
    log_det_w, log_det_r = (np.linalg.slogdet(k)[1] for k in (layer.inverse_kernel, layer.forward_kernel))
    x = tf.constant(rng.normal(size=[2, 3]))
    y = layer.forward(x)
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(y), -log_det_r, rtol=1e-12)
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(tf.identity(y)), log_det_w, rtol=1e-12)
    x = layer.inverse(tf.identity(y))
    np.testing.assert_allclose(layer.forward_log_det_jacobian(x), -log_det_w, rtol=1e-12)
    np.testing.assert_allclose(layer.forward_log_det_jacobian(tf.identity(x)), log_det_r, rtol=1e-12)


def test_log_dets_follow_a_variable_that_changed(make_layer, rng):
    layer = make_layer(3)
    x = tf.constant(rng.normal(size=[2, 3]))
    z = layer.inverse(x)
    layer.inverse_kernel.assign(2.0 * np.eye(3))
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(x), 3 * np.log(2.0))
    np.testing.assert_allclose(layer.forward_log_det_jacobian(z), -3 * np.log(2.0))


def test_composes_with_the_bijectors_and_distributions_of_tfp(make_layer):
    layer = make_layer(4)
    bijector = tfb.Chain([tfb.Exp(), layer, tfb.Permute([2, 0, 3, 1]), tfb.Invert(layer)])
    base = tfd.Independent(tfd.StudentT(tf.constant([3.0] * 4, tf.float64), 0.0, 1.0), 1)
    flow = tfd.TransformedDistribution(base, bijector)
    mixture = tfd.Mixture(
        tfd.Categorical(probs=tf.constant([0.25, 0.75], tf.float64)), [flow, sn.exact(flow)]
    )
    x = tf.constant([[0.5, 1.0, 2.0, 3.0]], tf.float64)
    weighted = ((0.25, flow), (0.75, sn.exact(flow)))
    parts = [np.log(weight) + part.log_prob(tf.identity(x)) for weight, part in weighted]
    np.testing.assert_allclose(mixture.log_prob(tf.identity(x)), np.logaddexp(*parts), rtol=1e-9)


def test_entropy_and_kl_directions_run(make_layer, make_flow):
    layer = make_layer(3)
    w = layer.inverse_kernel.numpy()
    expected = 1.5 * np.log(2 * np.pi * np.e) - np.linalg.slogdet(w)[1]
    np.testing.assert_allclose(make_flow(layer, 3).entropy(), expected, rtol=1e-9)
