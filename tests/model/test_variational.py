"""TFP's optimisation loops and variational inference, without FlowModel."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from linear_flows import affine_map, arrays, base
from scipy import stats

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
DEVIATIONS, CORRELATIONS = [1.5, 0.7, 1.0], [[1.0, 0.8, -0.4], [0.8, 1.0, -0.2], [-0.4, -0.2, 1.0]]
MEAN, COVARIANCE = np.array([1.0, -2.0, 0.5]), np.multiply(CORRELATIONS, np.outer(DEVIATIONS, DEVIATIONS))
KERNEL = np.linalg.cholesky(COVARIANCE)
TARGET = tfd.MultivariateNormalTriL(MEAN, KERNEL)
NUM_STEPS, SAMPLE_SIZE = 1000, 500


def decaying_adam(num_steps, learning_rate=0.1):
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, num_steps))


def other_affine_map(bijector):
    """The same map as the density sees it: the inverse of what `inverse` computes."""
    if isinstance(bijector, tfb.Invert):
        _, r, bias = arrays(bijector.bijector)
        return np.linalg.inv(r), bias
    w, _, bias = arrays(bijector)
    return np.linalg.inv(w), -np.linalg.solve(w, bias)


def check_moments(matrix, offset, mean, covariance, tolerance):
    found = matrix @ matrix.T
    assert np.linalg.norm(found - covariance) < tolerance * np.linalg.norm(covariance)
    assert np.linalg.norm(offset - mean) < tolerance * np.linalg.norm(mean)


def regular_data(rng, size=500):
    """Three correlated columns, whose own mean and covariance are the optimum."""
    data = MEAN + rng.normal(size=[size, 3]) @ KERNEL.T
    return tf.constant(data), data.mean(axis=0), np.cov(data.T, bias=True)


@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
def test_minimize_finds_the_covariance_of_the_data(gradient, rng):
    data, mean, covariance = regular_data(rng)
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1, gradient=gradient)
    flow = tfd.TransformedDistribution(base(), layer)

    def loss():
        if gradient != "self_norm":
            return -tf.reduce_mean(flow.log_prob(tf.identity(data)))
        with sn.training_scope(sn.Reconstruction()) as scope:
            return -tf.reduce_mean(flow.log_prob(tf.identity(data))) + scope.reconstruction_loss()

    tfp.math.minimize(loss, NUM_STEPS, decaying_adam(NUM_STEPS))
    check_moments(*other_affine_map(layer), mean, covariance, tolerance=1e-3)
    check_moments(*affine_map(layer), mean, covariance, tolerance=1e-3)
    optimum = -stats.multivariate_normal(mean, covariance).logpdf(data.numpy()).mean()
    np.testing.assert_allclose(-tf.reduce_mean(flow.log_prob(tf.identity(data))), optimum, rtol=1e-5)


OPTIMIZERS = {
    "keras": keras.optimizers.SGD,
    "tf_keras": tf_keras.optimizers.SGD,
    "tf_keras legacy": tf_keras.optimizers.legacy.SGD,
    "tf.compat.v1": tf.compat.v1.train.GradientDescentOptimizer,
}


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_minimize_takes_every_optimizer(name, jit_compile, make_layer, rng):
    """Four steps of gradient descent, against the steps written out."""
    data = tf.constant(rng.normal(size=[20, 3]))
    layer = make_layer(3)
    flow = tfd.TransformedDistribution(base(), layer)

    def loss():
        with sn.training_scope() as scope:
            return -tf.reduce_mean(flow.log_prob(tf.identity(data))) + scope.reconstruction_loss()

    twin = sn.SelfNormDense(*(tf.Variable(v) for v in (layer.forward_kernel, *arrays(layer)[::2])))
    losses = tfp.math.minimize(loss, 4, OPTIMIZERS[name](0.01), jit_compile=jit_compile)
    x, expected = data.numpy(), []
    for _ in range(4):
        w, r, bias = arrays(twin)
        images = x @ w.T
        z, error = images + bias, x - images @ r.T
        expected.append(-stats.norm.logpdf(z).sum(axis=1).mean() + (error**2).sum(axis=1).mean())
        d_w = 0.5 * (z.T @ x / 20 - r.T) - 2.0 * r.T @ error.T @ x / 20
        d_r = 0.5 * (w.T - w.T @ z.T @ images / 20) - 2.0 * error.T @ images / 20
        for variable, gradient in zip(
            (twin.inverse_kernel, twin.forward_kernel, twin.bias), (d_w, d_r, z.mean(axis=0)), strict=True
        ):
            variable.assign_sub(0.01 * gradient)
    np.testing.assert_allclose(losses, expected, **TOLERANCE)
    for found, other in zip(arrays(layer), arrays(twin), strict=True):
        np.testing.assert_allclose(found, other, **TOLERANCE)


SURROGATES = {
    "forward": lambda layer: layer,
    "invert": tfb.Invert,
    "chain of both": lambda layer: tfb.Chain(
        [layer, tfb.Invert(sn.SelfNormDense.trainable(3, dtype=tf.float64))]
    ),
}


@pytest.mark.parametrize("name", ["forward", "invert"])
def test_an_exact_surrogate_posterior(name):
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1, gradient="exact")
    surrogate = tfd.TransformedDistribution(base(), SURROGATES[name](layer))
    losses = tfp.vi.fit_surrogate_posterior(
        TARGET.log_prob,
        surrogate,
        decaying_adam(NUM_STEPS),
        num_steps=NUM_STEPS,
        sample_size=SAMPLE_SIZE,
        seed=1,
    )
    check_moments(*affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)
    np.testing.assert_allclose(losses[-1], 0.0, atol=0.02)  # the divergence, as the target is normalised


@pytest.mark.parametrize("name", SURROGATES)
def test_a_self_normalizing_surrogate_posterior(name):
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1)
    surrogate = tfd.TransformedDistribution(base(), SURROGATES[name](layer))

    def loss(seed):
        with sn.training_scope() as scope:
            divergence = tfp.vi.monte_carlo_variational_loss(
                TARGET.log_prob, surrogate, sample_size=SAMPLE_SIZE, seed=seed
            )
            return divergence + scope.reconstruction_loss()

    tfp.math.minimize(loss, NUM_STEPS, decaying_adam(NUM_STEPS), seed=1)
    check_moments(*affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)
    if name != "chain of both":
        # The other direction has followed, so that the density is that of the samples.
        check_moments(*other_affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)


def test_a_tracked_surrogate_posterior():
    """Sampled by W, with R brought after it where TFP lets one look at each step."""
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1)
    surrogate = tfd.TransformedDistribution(base(), tfb.Invert(layer))
    tracking = sn.Tracking()

    def loss(seed):
        with sn.training_scope(tracking):
            return tfp.vi.monte_carlo_variational_loss(
                TARGET.log_prob, surrogate, sample_size=SAMPLE_SIZE, seed=seed
            )

    errors = tfp.math.minimize(
        loss,
        NUM_STEPS,
        decaying_adam(NUM_STEPS),
        trainable_variables=[layer.inverse_kernel, layer.bias],
        trace_fn=lambda state: tracking.follow([layer], int(state.step)),
        seed=1,
    )
    assert errors[-1] < 1e-4
    check_moments(*affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)
    check_moments(*other_affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)


@pytest.mark.parametrize("name", ["forward", "invert"])
def test_fit_surrogate_posterior_with_a_learned_inverse(name):
    """The regularizer comes with the discrepancy; the log-dets are exact."""
    tf.random.set_seed(1)
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1)
    surrogate = tfd.TransformedDistribution(base(), SURROGATES[name](layer))

    def discrepancy(log_weights):
        with sn.training_scope() as scope:
            surrogate.sample(SAMPLE_SIZE)
        return tfp.vi.kl_reverse(log_weights) + scope.reconstruction_loss()

    losses = tfp.vi.fit_surrogate_posterior(
        TARGET.log_prob,
        surrogate,
        decaying_adam(NUM_STEPS),
        num_steps=NUM_STEPS,
        sample_size=SAMPLE_SIZE,
        discrepancy_fn=discrepancy,
        seed=1,
    )
    check_moments(*affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)
    check_moments(*other_affine_map(surrogate.bijector), MEAN, COVARIANCE, tolerance=0.02)
    np.testing.assert_allclose(losses[-1], 0.0, atol=0.02)


@pytest.mark.parametrize("in_scope", [False, True], ids=["exact values", "scope"])
@pytest.mark.parametrize("gradient", ["self_norm", "exact"])
@pytest.mark.parametrize("name", ["forward", "invert"])
def test_gradients_of_the_variational_loss_are_numpys(name, gradient, in_scope, make_layer):
    layer = make_layer(3, gradient=gradient, inversion="learned" if gradient == "self_norm" else "exact")
    surrogate = tfd.TransformedDistribution(base(), SURROGATES[name](layer))

    def loss():
        sample, log_prob = surrogate.experimental_sample_and_log_prob(10, seed=(1, 2))
        return sample, tf.reduce_mean(log_prob - TARGET.log_prob(sample))

    with tf.GradientTape() as tape:
        if in_scope:
            with sn.training_scope(None):
                sample, value = loss()
        else:
            sample, value = loss()
    found = tape.gradient(value, [layer.inverse_kernel, layer.forward_kernel, layer.bias])
    w, r, bias = arrays(layer)
    matrix, offset = affine_map(surrogate.bijector)
    z, x = base().sample(10, seed=(1, 2)).numpy(), sample.numpy()
    np.testing.assert_allclose(x, z @ matrix.T + offset, **TOLERANCE)
    d_x = np.linalg.solve(COVARIANCE, (x - MEAN).T).T / 10
    # As functions of the matrix M that samples, x = M u + ..., and of the other one.
    u = z if name == "invert" else z - bias
    is_exact = gradient == "exact" or not in_scope
    other = np.linalg.inv(matrix) if is_exact else (r if name == "invert" else w)
    d_matrix = d_x.T @ u - other.T
    d_other = matrix.T - matrix.T @ d_x.T @ (u @ matrix.T)
    if gradient == "exact":
        d_w = d_matrix if name == "invert" else -matrix.T @ d_matrix @ matrix.T
        expected = [d_w, None]
    elif is_exact:
        expected = [d_matrix, None] if name == "invert" else [None, d_matrix]
    else:
        expected = [0.5 * d_matrix, 0.5 * d_other] if name == "invert" else [0.5 * d_other, 0.5 * d_matrix]
    expected.append(d_x.sum(axis=0) if name == "invert" else -(d_x @ matrix).sum(axis=0))
    for one, numpys in zip(found, expected, strict=True):
        assert (one is None) == (numpys is None)
        if one is not None:
            np.testing.assert_allclose(one, numpys, **TOLERANCE)
    log_prob = stats.norm.logpdf(z).sum(axis=1) - (0.0 if in_scope else np.linalg.slogdet(matrix)[1])
    target = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(x)
    np.testing.assert_allclose(value, (log_prob - target).mean(), **TOLERANCE)
