"""What users of other flow libraries reported, tried on this package; each docstring says where."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors


def gaussian_entropy(x):
    """The smallest mean negative log-likelihood of any Gaussian on these data."""
    covariance = np.cov(x, rowvar=False, bias=True)
    return 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * covariance)[1]


@pytest.mark.parametrize("activation", ["smooth_leaky_relu", "spline"])
def test_score_and_hessian_of_a_trained_flow(activation, rng):
    """Gradient of the log probability, https://github.com/bayesflow-org/bayesflow/issues/244."""
    x = rng.normal(size=[256, 3]) ** 3
    model = sn.FlowModel(sn.dense_flow(3, activation=activation, dtype=tf.float64, seed=1))
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, epochs=2, verbose=0)
    points = tf.constant(x[:5] + 0.01)
    with tf.GradientTape() as outer:
        outer.watch(points)
        with tf.GradientTape() as tape:
            tape.watch(points)
            log_prob = model.log_prob(points)
        score = tape.gradient(log_prob, points)
    hessian = outer.batch_jacobian(score, points)

    def log_prob_at(*steps):
        return model.log_prob(points + sum(steps)).numpy()

    fine, coarse = 1e-6 * np.eye(3), 1e-4 * np.eye(3)
    slopes = [(log_prob_at(e) - log_prob_at(-e)) / 2e-6 for e in fine]
    np.testing.assert_allclose(score, np.stack(slopes, -1), rtol=1e-6, atol=1e-7)
    curvature = [
        [
            (log_prob_at(d, e) - log_prob_at(d, -e) - log_prob_at(-d, e) + log_prob_at(-d, -e)) / 4e-8
            for e in coarse
        ]
        for d in coarse
    ]
    np.testing.assert_allclose(hessian, np.moveaxis(curvature, -1, 0), rtol=1e-3, atol=1e-4)


def test_samples_come_with_the_density_of_the_map_that_made_them(rng):
    """log_prob and sample_and_log_prob disagree, https://github.com/bayesiains/nflows/issues/24."""
    flow = sn.dense_flow(3, dtype=tf.float64, seed=1)
    layers = sn.self_norm_layers(flow)
    for layer in layers:
        layer.forward_kernel.assign_add(0.2 * rng.normal(size=[3, 3]))
        layer.bias.assign(rng.normal(size=3))
    samples, log_prob = flow.experimental_sample_and_log_prob(5, seed=1)
    # `forward` of two layers, R_0 (f^-1(R_1 (z - b_1)) - b_0), undone by numpy alone.
    kernels, biases = zip(
        *((layer.forward_kernel.numpy(), layer.bias.numpy()) for layer in layers), strict=True
    )
    hidden = np.linalg.solve(kernels[0], samples.numpy().T).T + biases[0]
    bent = 0.3 * hidden + 0.7 * np.logaddexp(0.0, hidden)
    z = np.linalg.solve(kernels[1], bent.T).T + biases[1]
    expected = -0.5 * np.sum(z**2 + np.log(2.0 * np.pi), axis=-1)
    expected += np.sum(np.log(0.3 + 0.7 / (1.0 + np.exp(-hidden))), axis=-1)
    expected -= sum(np.linalg.slogdet(kernel)[1] for kernel in kernels)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)
    assert np.abs(flow.log_prob(tf.identity(samples)) - expected).max() > 0.1
    samples, log_prob = sn.exact(flow).experimental_sample_and_log_prob(5, seed=1)
    np.testing.assert_allclose(log_prob, flow.log_prob(tf.identity(samples)), rtol=1e-10)


def test_dropout_of_a_coupling_network_acts_in_training_alone(rng):
    """Propagate training flag, https://github.com/bayesflow-org/bayesflow/issues/288."""
    x = rng.normal(size=[512, 4]).astype(np.float32)
    first, second = (rng.normal(size=size).astype(np.float32) for size in ([2, 16], [16, 4]))
    network = keras.Sequential(
        [
            keras.Input([2]),
            keras.layers.Dense(16, "tanh", use_bias=False),
            keras.layers.Dropout(0.8, seed=3),
            keras.layers.Dense(4, use_bias=False),
        ]
    )
    network.set_weights([first, second, *network.get_weights()[2:]])
    base = tfd.MultivariateNormalDiag(tf.zeros(4))
    model = sn.FlowModel(tfd.TransformedDistribution(base, sn.AffineCoupling(network, event_ndims=1)))
    model.compile(keras.optimizers.SGD(0.0))
    shift, h = np.split(np.tanh(x[:, :2] @ first) @ second, 2, axis=-1)
    log_scale = 2.0 * np.tanh(h / 2.0)
    z = np.concatenate([x[:, :2], x[:, 2:] * np.exp(log_scale) + shift], axis=-1)
    expected = 0.5 * np.sum(z**2 + np.log(2.0 * np.pi), axis=-1) - np.sum(log_scale, axis=-1)
    np.testing.assert_allclose(-model.log_prob(x), expected, rtol=1e-4)
    trained = model.fit(x, batch_size=512, epochs=2, verbose=0).history["nll"]
    assert trained[0] != trained[1]
    assert min(trained) > 1.1 * np.mean(expected)
    evaluated = model.evaluate(x, batch_size=512, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(evaluated, np.mean(expected), rtol=1e-4)


def test_frozen_layers_stay_and_the_last_one_is_fine_tuned(rng):
    """NonTrainable parts in place of a filter, https://github.com/danielward27/flowjax/pull/142."""
    x = (rng.normal(size=[1024, 3]) @ (np.eye(3) + 0.3 * rng.normal(size=[3, 3])) + 2.0).astype(np.float32)
    flow = sn.dense_flow(3, num_layers=2, activation=None, seed=1)
    sn.whiten(flow, x)
    model = sn.FlowModel(flow)
    for variable in model.trainable_variables:
        variable.trainable = variable.name.startswith("dense_1")
    parts = "bias", "inverse_kernel", "forward_kernel"
    kept = [np.array(model.named_variables[f"dense_0_{part}"]) for part in parts]
    shifted = 2.0 * x + 1.0
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, 320)))
    model.fit(shifted, batch_size=64, epochs=20, verbose=0)
    after = [np.array(model.named_variables[f"dense_0_{part}"]) for part in parts]
    # The learned inverse is no frozen part: it is set to the inverse anew.
    assert all(map(np.array_equal, kept[:2], after[:2]))
    np.testing.assert_allclose(after[2], kept[2], atol=1e-5)
    nll = -np.mean(model.log_prob(shifted))
    assert 0.0 <= nll - gaussian_entropy(shifted) + 1e-4 < 0.01


def test_flows_of_a_batch_train_together_each_to_its_own_optimum(rng):
    """Ensembles, https://github.com/sbi-dev/sbi/issues/106."""
    members = [rng.normal(size=[512, 2]) * scale + 1.0 for scale in ([1.0, 2.0], [0.5, 1.0], [3.0, 1.0])]
    x = np.stack(members, axis=1).astype(np.float32)
    kernels = [tf.Variable(tf.eye(2, batch_shape=[3]), name=name) for name in ("r", "w")]
    layer = sn.SelfNormDense(*kernels, tf.Variable(tf.zeros([3, 2]), name="bias"))
    model = sn.FlowModel(tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([3, 2])), layer))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 320)))
    model.fit(x, batch_size=64, epochs=40, verbose=0)
    nll = -np.mean(model.log_prob(x), axis=0)
    np.testing.assert_allclose(nll, [gaussian_entropy(member) for member in members], atol=0.01)
    assert model.sample(5, seed=1).shape == (5, 3, 2)
    np.testing.assert_allclose(model.reconstruct(x), x, atol=1e-3)
