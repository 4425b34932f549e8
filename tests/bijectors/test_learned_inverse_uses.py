"""What users of other packages wanted of networks as flows, done with `LearnedInverse`.

The right values come from closed forms.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def normal_flow(layer, size):
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(size, tf.float64)), layer)


def log_normal(x, covariance):
    """The log density of a normal distribution with mean 0."""
    exponent = np.einsum("bi,ij,bj->b", x, np.linalg.inv(covariance), x)
    return -0.5 * (exponent + np.linalg.slogdet(2.0 * np.pi * covariance)[1])


def train(variables, loss, num_steps, learning_rate):
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, num_steps))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))

    optimizer.build(variables)
    for _ in range(num_steps):
        step()


class Line(tf.Module):
    """An affine map."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = tf.Variable(matrix, dtype=tf.float64)
        self.shift = tf.Variable(np.zeros(len(matrix)))

    def __call__(self, x):
        return x @ self.matrix + self.shift


def test_the_surrogate_is_no_measure_of_the_fit_and_the_exact_likelihood_is(rng):
    """vislearn/FFF, issue 9: a minimal example did not fit, and its loss did not show it.

    The answer was to watch the exact likelihood, by the Jacobian of the encoder, and the reconstruction.
    """
    covariance = np.array([[4.0, 1.2], [1.2, 1.5]])
    x = rng.normal(size=[400, 2]) @ np.linalg.cholesky(covariance).T
    layer = sn.LearnedInverse(Line(np.eye(2)), Line(np.eye(2)), 2, gradient="self_norm")
    flow, data = normal_flow(layer, 2), tf.constant(x)

    def loss():
        with sn.training_scope(sn.Reconstruction(weight=10.0)) as scope:
            return -tf.reduce_mean(flow.log_prob(tf.identity(data))) + scope.reconstruction_loss()

    train(layer.trainable_variables, loss, 400, 0.02)
    # The best likelihood of an affine map is that of the normal distribution with the moments of the data.
    best = log_normal(x - x.mean(axis=0), np.cov(x.T, bias=True)).mean()
    exact = np.mean(flow.log_prob(data))
    assert best - 0.02 < exact <= best + 1e-9
    with sn.training_scope(sn.Reconstruction()) as scope:
        surrogate = np.mean(flow.log_prob(tf.identity(data)))
    log_det = np.linalg.slogdet(layer.encoder.matrix)[1]
    np.testing.assert_allclose(exact - surrogate, log_det, rtol=1e-9)
    assert abs(log_det) > 0.3
    assert float(scope.reconstruction_error()) < 0.01
    assert float(sn.inverse_error(layer)) < 0.05


def test_a_likelihood_that_is_too_good_has_a_reconstruction_that_is_bad():
    """vislearn/FFF, issue 9: "low reconstruction quality can mean spurious likelihoods".

    This encoder maps y and -y to one latent. It doubles the density, so that it gains log 2 for each event.
    """
    normal = tfd.Normal(tf.constant(0.0, tf.float64), 1.0)
    layer = sn.LearnedInverse(
        lambda y: normal.quantile(2.0 * normal.cdf(tf.abs(y)) - 1.0),
        lambda z: normal.quantile(0.5 * (1.0 + normal.cdf(z))),
        event_shape=1,
    )
    y = np.array([[-1.5], [-0.4], [0.3], [0.9], [2.0]])
    log_prob = normal_flow(layer, 1).log_prob(tf.constant(y))
    np.testing.assert_allclose(log_prob, np.log(2.0) + log_normal(y, np.eye(1)), atol=1e-8)
    with sn.training_scope() as scope:
        layer.inverse(tf.constant(y))
    # y comes back as |y|.
    expected = np.mean((y - np.abs(y)) ** 2)
    np.testing.assert_allclose(scope.reconstruction_error(), expected, rtol=1e-8)


def test_a_posterior_by_networks_with_a_condition_has_a_density(rng):
    """bayesflow, pull request 251: free-form flows for inference, at first without log-probabilities.

    Parameters t ~ N(0, I), and observations c = A t + noise, have a normal posterior in closed form.
    """
    matrix, deviation = np.array([[1.0, 0.5], [0.0, 2.0]]), 0.5
    t = rng.normal(size=[1000, 2])
    c = t @ matrix.T + deviation * rng.normal(size=t.shape)
    covariance = np.linalg.inv(np.eye(2) + matrix.T @ matrix / deviation**2)
    means = c @ matrix @ covariance / deviation**2

    class Conditional(tf.Module):
        def __init__(self):
            super().__init__()
            self.lines = [Line(np.eye(2)), Line(np.zeros([2, 2]))]

        def __call__(self, inputs):
            return self.lines[0](inputs[0]) + self.lines[1](inputs[1])

    layer = sn.LearnedInverse(Conditional(), Conditional(), 2, gradient="self_norm")
    posterior = normal_flow(layer, 2)

    def log_prob(events, condition):
        return posterior.log_prob(tf.constant(events), bijector_kwargs={"condition": tf.constant(condition)})

    def loss():
        with sn.training_scope(sn.Reconstruction(weight=10.0)) as scope:
            return -tf.reduce_mean(log_prob(t, c)) + scope.reconstruction_loss()

    train(layer.trainable_variables, loss, 800, 0.03)
    expected = log_normal(t - means, covariance)
    # As a mean over all pairs, and for other parameters at the first observations.
    np.testing.assert_allclose(np.mean(log_prob(t, c)), expected.mean(), atol=0.02)
    others = means[:5] + 0.3
    np.testing.assert_allclose(log_prob(others, c[:5]), log_normal(others - means[:5], covariance), atol=0.3)
    kwargs = {"condition": tf.constant(np.repeat(c[:1], 2000, axis=0))}
    samples = posterior.sample(2000, seed=1, bijector_kwargs=kwargs).numpy()
    np.testing.assert_allclose(samples.mean(axis=0), means[0], atol=0.05)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.03)


@pytest.mark.parametrize("inverse_slope", [0.2, None])
def test_the_gradient_of_a_cubic_map_is_that_of_the_paper(inverse_slope):
    """samru-0610/FreeFlowForms_V: the cubic example of the paper's section 4.3, with gradients by hand.

    In one dimension the square of a probe is 1, and nothing is random. The map is a x + x^3. The gradient of
    its log-det with respect to a is 1 times the slope of the decoder at the latent.
    """
    a, x = tf.Variable(1.5, dtype=tf.float64), np.array([[-1.0], [0.2], [0.7]])
    z = 1.5 * x + x**3
    true_slopes = 1.0 / (1.5 + 3.0 * x**2)
    if inverse_slope is None:
        # Lines with the value and the slope of the true inverse at the latents.
        slopes = true_slopes

        def decoder(latents):
            return tf.constant(x) + true_slopes * (latents - z)

    else:
        slopes = np.full_like(x, inverse_slope)

        def decoder(latents):
            return inverse_slope * latents

    layer = sn.LearnedInverse(lambda y: a * y + y**3, decoder, 1, gradient="self_norm")
    flow = normal_flow(layer, 1)
    with tf.GradientTape() as tape, sn.training_scope(None):
        total = tf.reduce_sum(flow.log_prob(tf.constant(x)))
    np.testing.assert_allclose(tape.gradient(total, a), np.sum(-z * x + slopes), rtol=1e-10)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(flow.log_prob(tf.constant(x)))
    np.testing.assert_allclose(tape.gradient(total, a), np.sum(-z * x + true_slopes), rtol=1e-10)


def test_a_score_of_novelty_may_take_the_jacobian_of_either_network(rng):
    """podgorskiy/GPND, issue 6: which sign the log-det of the decoder has in the density of an encoder."""
    matrix = np.eye(3) + 0.3 * rng.normal(size=[3, 3])
    inverse = np.linalg.inv(matrix)
    layer = sn.LearnedInverse(lambda y: y @ matrix, lambda z: z @ inverse, 3)
    x = rng.normal(size=[4, 3])
    by_decoder = log_normal(x @ matrix, np.eye(3)) - np.sum(np.log(np.linalg.svd(inverse)[1]))
    np.testing.assert_allclose(normal_flow(layer, 3).log_prob(tf.constant(x)), by_decoder, rtol=1e-9)
    np.testing.assert_allclose(
        layer.forward_log_det_jacobian(tf.constant(x)), np.sum(np.log(np.linalg.svd(inverse)[1])), rtol=1e-9
    )


def test_a_planar_flow_whose_inverse_nobody_can_write_down(rng):
    """blei-lab/edward, issue 284: planar flows are invertible, and "programming the inverse is impossible".

    With `inversion="exact"` the identity is decoder enough. The log-det has a closed form.
    """
    u, w = rng.normal(size=[2, 3])
    # The condition for an inverse: w u > -1.
    u += (0.5 - w @ u) * w / (w @ w)
    layer = sn.LearnedInverse(
        lambda y: y + u * tf.tanh(tf.linalg.matvec(y, w)[:, tf.newaxis]), tf.identity, 3, inversion="exact"
    )
    y = rng.normal(size=[5, 3])
    z = y + u * np.tanh(y @ w)[:, np.newaxis]
    np.testing.assert_allclose(layer.forward(tf.constant(z)), y, atol=1e-9)
    log_det = np.log(np.abs(1.0 + (1.0 - np.tanh(y @ w) ** 2) * (w @ u)))
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(tf.constant(y)), log_det, rtol=1e-9)
    np.testing.assert_allclose(layer.forward_log_det_jacobian(tf.constant(z)), -log_det, rtol=1e-7)


def cubic_pair(inversion="exact"):
    return sn.LearnedInverse(lambda y: y + y**3 / 3.0, lambda z: z - z**3 / 3.0, 1, inversion=inversion)


@pytest.mark.parametrize("use", ["forward", "log_prob", "by a variable"])
def test_a_second_derivative_of_the_exact_inverse_is_refused(use):
    """It would be that of one step of Newton's method, which is another one."""
    factor = tf.Variable(1.0, dtype=tf.float64)
    pair = cubic_pair()
    if use == "by a variable":
        pair = sn.LearnedInverse(lambda y: factor * y + y**3 / 3.0, lambda z: z, 1, inversion="exact")
    flow = normal_flow(tfb.Invert(pair), 1)
    x = tf.constant([[0.8]], tf.float64)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = flow.log_prob(x) if use == "log_prob" else pair.forward(x)
        gradient = tape.gradient(value, x)
    if use == "log_prob":
        step = 1e-5
        below, above = (flow.log_prob(x + shift).numpy()[0] for shift in (-step, step))
        np.testing.assert_allclose(gradient[0, 0], (above - below) / (2.0 * step), rtol=1e-7)
    with pytest.raises(NotImplementedError, match="exact solves of a `LearnedInverse`"):
        outer.gradient(gradient, factor if use == "by a variable" else x)


def test_a_latent_that_is_not_finite_spoils_no_other_event():
    z = tf.constant([[0.3], [np.nan], [0.9]], tf.float64)
    y = cubic_pair().forward(z).numpy()
    np.testing.assert_array_equal(np.isnan(y[:, 0]), [False, True, False])
    np.testing.assert_allclose((y + y**3 / 3.0)[[0, 2]], z.numpy()[[0, 2]], rtol=1e-10)


def test_events_of_unknown_rank():
    pair = cubic_pair("learned")
    signature = [tf.TensorSpec(None, tf.float64)]
    passes = tf.function(
        lambda y: (pair.inverse(y), pair.inverse_log_det_jacobian(y)), input_signature=signature
    )
    y = np.linspace(-1.0, 1.0, 12).reshape([2, 6, 1])
    z, log_det = passes(y)
    np.testing.assert_allclose(z, y + y**3 / 3.0, rtol=1e-12)
    np.testing.assert_allclose(log_det, np.log(1.0 + y[..., 0] ** 2), rtol=1e-10)
    conditional = tf.function(lambda y: pair.inverse(y, condition=y), input_signature=signature)
    with pytest.raises(ValueError, match="`y` of `learned_inverse` must have a known rank"):
        conditional(y)


def normalized_network():
    inputs = keras.Input([2])
    hidden = keras.layers.Dense(32, "silu")(keras.layers.BatchNormalization()(inputs))
    change = keras.layers.Dense(2, kernel_initializer="zeros")(hidden)
    return keras.Model(inputs, keras.layers.Add()([inputs, change]))


def test_a_batch_normalization_takes_the_surrogate(rng):
    """It makes the output for an event depend on the others, which the exact gradient does not see."""
    keras.utils.set_random_seed(0)
    covariance = np.array([[1.0, 0.8], [0.8, 0.73]])
    x = rng.multivariate_normal([1.0, 0.0], covariance, size=2000).astype(np.float32)
    pair = sn.LearnedInverse(normalized_network(), normalized_network(), 2)
    assert pair.gradient == "self_norm"
    model = sn.FlowModel(tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), pair))
    model.compile(keras.optimizers.Adam(5e-3, clipnorm=50.0))
    model.fit(x, epochs=15, batch_size=100, verbose=0)
    entropy = 0.5 * np.log(np.linalg.det(2.0 * np.pi * np.e * covariance))
    assert abs(model.evaluate(x, verbose=0, return_dict=True)["nll"] - entropy) < 0.1
    with pytest.raises(ValueError, match="`gradient` must be 'self_norm' for an encoder with a batch normal"):
        sn.LearnedInverse(normalized_network(), normalized_network(), 2, gradient="exact")


@pytest.mark.parametrize("kind", [keras.layers.GRU, keras.layers.LSTM])
def test_recurrent_networks_are_trained(kind, rng):
    def network():
        inputs = keras.Input([5, 2])
        change = keras.layers.Rescaling(0.2)(kind(2, return_sequences=True)(inputs))
        return keras.Model(inputs, keras.layers.Add()([inputs, change]))

    keras.utils.set_random_seed(0)
    pair = sn.LearnedInverse(network(), network(), [5, 2])
    base = tfd.Independent(tfd.Normal(tf.zeros([5, 2]), 1.0), 2)
    model = sn.FlowModel(tfd.TransformedDistribution(base, pair))
    model.compile(keras.optimizers.Adam(1e-2))
    x = 0.5 * np.cumsum(rng.normal(size=[600, 5, 2]), axis=1).astype(np.float32)
    history = model.fit(x, batch_size=100, epochs=5, verbose=0).history
    assert history["nll"][-1] < history["nll"][0]
    log_det = model.distribution.bijector.inverse_log_det_jacobian(tf.constant(x[:2]))
    step, expected = 1e-2, []
    for event in x[:2]:
        units = step * np.eye(10, dtype=np.float32).reshape([10, 5, 2])
        change = pair.encoder(event + units).numpy() - pair.encoder(event - units).numpy()
        expected.append(np.linalg.slogdet(change.reshape([10, 10]) / (2.0 * step))[1])
    np.testing.assert_allclose(log_det, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [tf.int32, tf.bool, tf.float16, tf.bfloat16, tf.complex64])
@pytest.mark.parametrize("method", ["inverse", "forward", "inverse_log_det_jacobian"])
def test_events_of_another_dtype_are_refused(method, dtype):
    layer = sn.LearnedInverse(lambda y: y, lambda z: z, 2)
    with pytest.raises(TypeError, match=f"must be float32 or float64; got {dtype.name}"):
        getattr(layer, method)(tf.zeros([5, 2], dtype))


def test_functions_may_fail_without_a_condition():
    def function(inputs):
        events, shift = inputs.values
        return events + shift

    sn.LearnedInverse(function, function, 2)
