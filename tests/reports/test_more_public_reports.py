"""More uses from public reports of TFP and Keras; each docstring says where."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_public_reports import (
    gaussian_entropy,
    mass,
    nll,
    normal_log_density,
    over_a_normal,
    train,
)

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def test_an_update_inside_a_compiled_step_leaves_the_refresh_to_a_call_between_steps(make_layer):
    """tensorflow/probability#1410, tried in a compiled step: TensorFlow spoke of a tensor out of scope."""
    compiled_layer, layer = make_layer(4), make_layer(4)
    for variable, value in ((v, getattr(layer, v)) for v in ("forward_kernel", "inverse_kernel")):
        getattr(compiled_layer, variable).assign(value)
    tracking = sn.Tracking(num_probes=2, refresh_every=5)
    follow = tf.function(lambda step: tracking.follow([compiled_layer], step))
    for step in (1, 2):
        np.testing.assert_allclose(follow(tf.constant(step)), tracking.follow([layer], step), rtol=1e-6)
    np.testing.assert_allclose(compiled_layer.forward_kernel, layer.forward_kernel, rtol=1e-10)
    assert follow(tf.constant(5))[0] > 1e-3
    for step in (4, 5):
        assert sn.inverse_error(compiled_layer) > 1e-6
        tracking.refresh([compiled_layer], step)
    assert sn.inverse_error(compiled_layer) < 1e-12


@pytest.mark.parametrize("inverse_learning", [sn.Tracking(), sn.Reconstruction()])
def test_one_layer_at_two_places_of_a_chain(correlated, inverse_learning):
    """tensorflow/probability#787: a chain of one and the same layer several times."""
    x, optimum = correlated
    layer = sn.SelfNormDense.trainable(2, seed=1)
    model = train(over_a_normal(tfb.Chain([layer, layer])), x, inverse_learning=inverse_learning)
    np.testing.assert_allclose(nll(model, x), optimum, rtol=1e-3)
    np.testing.assert_allclose(-np.mean(model.log_prob(x)), optimum, rtol=1e-3)
    np.testing.assert_allclose(mass(model.log_prob), 1.0, rtol=1e-4)


def test_a_transformed_variable_trains_to_its_estimate(rng):
    """tensorflow/probability#946: a TransformedVariable that Keras did not train."""
    x = (rng.normal(size=[1000, 3]) * [0.5, 1.0, 2.0] + [1.0, 0.0, -1.0]).astype(np.float32)
    loc, scale = tf.Variable(tf.zeros(3)), tfp.util.TransformedVariable(tf.ones(3), tfb.Softplus())
    model = train(tfd.Independent(tfd.Normal(loc, scale), 1), x, steps=250)
    np.testing.assert_allclose(loc, x.mean(axis=0), atol=1e-2)
    np.testing.assert_allclose(tf.convert_to_tensor(scale), x.std(axis=0), rtol=1e-2)
    np.testing.assert_allclose(
        nll(model, x), np.sum(0.5 + np.log(x.std(axis=0) * np.sqrt(2 * np.pi))), rtol=1e-3
    )


def test_variables_that_a_chain_hides_are_trained(rng):
    """tensorflow/probability#1997: variables of a block operator that a chain has lost."""
    mixing = np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 1.0], [0.3, 0.0, 1.0]])
    x = (rng.normal(size=[1000, 3]) @ mixing).astype(np.float32)
    operators = (
        (tf.linalg.LinearOperatorDiag,),
        (tf.linalg.LinearOperatorFullMatrix, tf.linalg.LinearOperatorLowerTriangular),
    )
    operator = tfp.experimental.vi.util.build_trainable_linear_operator_block(operators, (1, 2))
    for variable in operator.trainable_variables:
        variable.assign(tf.ones_like(variable))
    scale = tfb.ScaleMatvecLinearOperatorBlock(operator)
    flow = over_a_normal(tfb.Chain([tfb.Invert(tfb.Split([1, 2])), scale, tfb.Split([1, 2])]), 3)
    assert not flow.trainable_variables
    model = train(flow, x, steps=80)
    assert len(model.trainable_variables) == 3
    moments = x.T @ x / len(x)
    np.testing.assert_allclose(
        nll(model, x), 0.5 * np.linalg.slogdet(2 * np.pi * np.e * moments)[1], rtol=1e-3
    )


def test_the_density_of_squashed_actions_is_finite_and_that_of_the_sampler(rng):
    """tensorflow/probability#840: actions through tanh, whose log_prob is NaN inside a tf.function."""
    forward, inverse = np.array([[1.0, 0.4], [0.0, 0.8]]), np.array([[0.9, -0.4], [0.1, 1.3]])
    layer = sn.SelfNormDense(tf.Variable(forward, dtype=tf.float32), tf.Variable(inverse, dtype=tf.float32))
    loc = rng.normal(size=[4, 2])
    base = tfd.MultivariateNormalDiag(tf.constant(loc, tf.float32), tf.fill([2], 6.0))
    policy = tfd.TransformedDistribution(base, tfb.Chain([tfb.Tanh(), layer]))

    @tf.function
    def act():
        actions = policy.sample(500, seed=[0, 3])
        return actions, policy.log_prob(actions)

    actions, log_prob = (np.float64(value) for value in act())
    assert np.isfinite(log_prob).all()
    assert np.abs(actions).max() == 1.0
    inside = (np.abs(actions) < 0.9).all(axis=-1)
    kept, means = actions[inside], np.broadcast_to(loc, actions.shape)[inside]
    for kernel, found in (
        # The tensor that was sampled has the density of the learned inverse, every other that of the kernel.
        (np.linalg.inv(forward), log_prob[inside]),
        (inverse, policy.log_prob(tf.constant(actions, tf.float32)).numpy()[inside]),
    ):
        z = (np.arctanh(kept) @ kernel.T - means) / 6.0
        log_det = np.linalg.slogdet(kernel)[1] - 2.0 * np.log(6.0) - np.log(1.0 - kept**2).sum(axis=-1)
        np.testing.assert_allclose(found, normal_log_density(z) + log_det, atol=1e-4)


class Squashed(tfb.Bijector):
    """A user's own, which holds a chain as an attribute, and tells TFP its parameters or does not."""

    def __init__(self, layer, tells):
        self.chain = tfb.Chain([tfb.Tanh(), layer])
        parameters = {"layer": layer, "tells": tells} if tells else None
        super().__init__(forward_min_event_ndims=1, dtype=tf.float32, parameters=parameters, name="squashed")

    def _forward(self, z):
        return self.chain.forward(z)

    def _inverse(self, x):
        return self.chain.inverse(x)

    def _forward_log_det_jacobian(self, z):
        return self.chain.forward_log_det_jacobian(z, event_ndims=1)


@pytest.mark.parametrize("tells", [True, False])
def test_a_bijector_of_ones_own_that_holds_a_chain(correlated, tells):
    """tensorflow/probability#1388: a Bijector with a chain inside, which has the forward log-det only."""
    logits = 0.3 * correlated[0]
    x = np.tanh(logits)
    options = {} if tells else {"inversion": "exact", "mixture": 1.0}
    model = train(over_a_normal(Squashed(sn.SelfNormDense.trainable(2, seed=1, **options), tells)), x)
    optimum = gaussian_entropy(logits) + np.mean(np.log(1.0 - x**2).sum(axis=-1))
    np.testing.assert_allclose(nll(model, x), optimum, atol=5e-3)
    np.testing.assert_allclose(-np.mean(model.log_prob(x)), optimum, atol=5e-3)


def test_accumulated_gradients_make_the_step_of_the_whole_batch(correlated):
    """keras-team/keras#19998: gradient accumulation that was not the same as a larger batch."""
    x = correlated[0][:512]
    weights = []
    for batch_size, options in ((256, {}), (64, {"gradient_accumulation_steps": 4})):
        layers = [sn.SelfNormDense.trainable(2, seed=seed, gradient="exact") for seed in (1, 2)]
        model = sn.FlowModel(over_a_normal(tfb.Chain([layers[0], sn.SmoothLeakyReLU(), layers[1]])))
        model.compile(keras.optimizers.Adam(1e-2, clipnorm=0.5, **options))
        model.fit(x, epochs=5, batch_size=batch_size, shuffle=False, verbose=0)
        weights.append([layer.inverse_kernel.numpy() for layer in layers])
    start = sn.SelfNormDense.trainable(2, seed=1).inverse_kernel
    assert np.abs(weights[0][0] - start).max() > 0.01
    np.testing.assert_allclose(*weights, atol=1e-5)


class Posterior(keras.Model):
    """The evidence lower bound of `x = z A + noise`, with a flow as the posterior."""

    def __init__(self, mixing, noise):
        super().__init__()
        self.mixing, self.noise = tf.constant(mixing, tf.float32), noise
        self.mean = keras.layers.Dense(2)
        # Samples train the kernel from latent to data, which nothing else is to follow.
        self.flow = sn.FlowModel(over_a_normal(sn.SelfNormDense.trainable(2, seed=1)), inverse_learning=None)

    def call(self, x):
        base = tfd.MultivariateNormalDiag(self.mean(x), tf.ones(2))
        posterior = tfd.TransformedDistribution(base, self.flow.distribution.bijector)
        z = posterior.sample(seed=None)
        log_prior = tfd.MultivariateNormalDiag(tf.zeros(2)).log_prob(z)
        log_likelihood = tfd.MultivariateNormalDiag(z @ self.mixing, tf.fill([4], self.noise)).log_prob(x)
        return log_likelihood + log_prior - posterior.log_prob(z)


def test_a_flow_as_a_posterior_inside_a_bigger_model_reaches_the_evidence(rng):
    """pierresegonne/VINF#1: a trainable bijector that turns what a Keras layer gives into a posterior."""
    keras.utils.set_random_seed(1)
    mixing, noise = np.array([[1.0, 0.8, 0.0, 0.3], [0.0, 1.0, -0.7, 0.2]]), 0.7
    x = rng.normal(size=[2000, 2]) @ mixing + noise * rng.normal(size=[2000, 4])
    covariance = mixing.T @ mixing + noise**2 * np.eye(4)
    evidence = -0.5 * np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    evidence -= 0.5 * np.mean(np.sum(x @ np.linalg.inv(covariance) * x, axis=-1))
    # A normal posterior without the correlation is 0.09 nats short of it.
    precision = np.eye(2) + mixing @ mixing.T / noise**2
    shortfall = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    model = Posterior(mixing, noise)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 400)), loss=lambda y, bound: -bound
    )
    x = x.astype(np.float32)
    model.fit(x, np.zeros(2000), epochs=40, batch_size=200, verbose=0)
    bound = np.mean([model(x) for _ in range(20)])
    np.testing.assert_allclose(bound, evidence, atol=shortfall / 8)
    assert shortfall > 0.08
