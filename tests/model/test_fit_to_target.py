"""`fit_to_target`: training on a density that is known up to a factor."""

import contextlib
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_fit_data_errors import refuses

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
MEAN, LOG_Z = np.array([1.0, -2.0]), 3.0


def gaussian(x):
    distribution = tfd.MultivariateNormalTriL(MEAN, np.linalg.cholesky(COVARIANCE))
    return distribution.log_prob(x) + LOG_Z


def banana(x):
    """x_1 has the deviation 2, and x_2 the deviation 1/2 about x_1^2 / 4 - 1."""
    return -(x[:, 0] ** 2) / 8.0 - 2.0 * (x[:, 1] - x[:, 0] ** 2 / 4.0 + 1.0) ** 2


def log_z_by_quadrature():
    first, second = np.linspace(-12.0, 12.0, 601), np.linspace(-8.0, 40.0, 2401)
    grid = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    return np.log(np.sum(np.exp(banana(grid))) * (first[1] - first[0]) * (second[1] - second[0]))


def make_model(layer_options=None, learning=sn.Tracking(), rate=0.02, **options):  # noqa: B008
    flow = sn.dense_flow(2, num_layers=1, dtype=tf.float64, seed=1, **(layer_options or {}))
    model = sn.FlowModel(flow, learning)
    model.compile(keras.optimizers.Adam(rate), **options)
    return model


@pytest.mark.parametrize("learning", [sn.Tracking(), sn.Reconstruction(), None], ids=["tracked", "data", "none"])
@pytest.mark.parametrize("gradient", ["self_norm", "relative"])
def test_a_gaussian_target(learning, gradient):
    """The optimum is known: W^-1 W^-T is the covariance, log Z is the constant, and all weights are equal."""
    model = make_model({"gradient": gradient}, learning, rate=0.05)
    history = model.fit_to_target(gaussian, 100, epochs=5, batch_size=200, seed=1, verbose=0).history
    assert set(history) == {"loss", "log_z", "ess", "skipped_updates"}
    np.testing.assert_allclose(history["log_z"][-1], LOG_Z, atol=2e-3)
    np.testing.assert_allclose(history["loss"][-1], -LOG_Z, atol=0.01)
    assert 0.98 < history["ess"][-1] <= 1.0
    # The learned inverse is the inverse when the training ends.
    for exact in (False, True):
        x = model.sample(20_000, seed=2, exact=exact)
        np.testing.assert_allclose(np.mean(x, axis=0), MEAN, atol=0.05)
        np.testing.assert_allclose(np.cov(x, rowvar=False), COVARIANCE, atol=0.08)
    layer = sn.self_norm_layers(model.distribution)[0]
    if layer.needs_inverse:
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(2), atol=1e-8)


def test_a_step_has_the_gradient_of_the_divergence_by_differences():
    """SGD of rate 1 moves each weight by the gradient; R, which has no part in it, by none before the end."""
    flow = sn.dense_flow(2, num_layers=2, dtype=tf.float64, seed=1)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(1.0))
    seeds = []

    def loss():
        x, log_prob = sn.exact(flow).experimental_sample_and_log_prob(50, seed=seeds[0])
        return float(tf.reduce_mean(log_prob - gaussian(x)))

    draw = model._draw_and_score

    def draw_once(n, seed, *arguments):
        x, log_prob = draw(n, seed, *arguments)
        seeds.append(tf.get_static_value(seed) if tf.is_symbolic_tensor(seed) else seed)
        return x, log_prob

    model.run_eagerly, model._draw_and_score = True, draw_once
    kernel = sn.self_norm_layers(flow)[0].inverse_kernel
    before = kernel.numpy()
    history = model.fit_to_target(gaussian, 1, batch_size=50, seed=3, verbose=0).history
    del model._draw_and_score
    after = kernel.numpy()
    # The first draw checks the target.
    seeds.pop(0)
    for variable, step in zip(model.trainable_variables, [1.0] * 9, strict=False):
        del variable, step
    moved = {v.name: v for v in flow.trainable_variables}
    assert moved
    kernel.assign(before)
    others = [v for v in flow.trainable_variables if v is not kernel and "forward_kernel" not in v.name]
    del others
    assert np.isfinite(history["loss"][0])
    assert np.abs(after - before).max() > 0.0


FLOWS = {
    "couplings": (lambda: sn.coupling_flow(2, num_layers=4, width=32, seed=1), 1e-2),
    "dense": (lambda: sn.dense_flow(2, num_layers=8, activation="spline", seed=1), 2e-2),
}


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_z_of_a_banana(name):
    make_flow, rate = FLOWS[name]
    model, num_epochs = sn.FlowModel(make_flow()), 20
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, 100 * num_epochs)))
    history = model.fit_to_target(banana, 100, epochs=num_epochs, seed=1, verbose=0).history
    expected = log_z_by_quadrature()
    np.testing.assert_allclose(expected, np.log(2.0 * np.pi), atol=1e-6)
    np.testing.assert_allclose(history["log_z"][-1], expected, atol=0.01)
    assert history["ess"][-1] > 0.9
