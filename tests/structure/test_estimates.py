"""Estimates of log-dets and likelihoods against the exact ones."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from network_pairs import residual

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
D = 5


def network(rng, condition_size=0):
    made = sn.residual_network(D, condition_size, width=6, depth=2, seed=1, dtype="float64")
    made.set_weights([0.5 * rng.normal(size=weight.shape) for weight in made.weights])
    return made


def make_layer(rng, condition_size=0, **options):
    return sn.LearnedInverse(network(rng, condition_size), network(rng, condition_size), D, **options)


def normal(*sizes):
    return tfd.MultivariateNormalDiag(tf.zeros(sizes, tf.float64))


def check(estimate, exact, num_errors=4.0):
    assert estimate.value.shape == estimate.standard_error.shape == exact.shape
    assert np.all(estimate.standard_error > 0.0)
    assert np.all(tf.abs(estimate.value - exact) < num_errors * estimate.standard_error)


def test_the_mean_of_many_probes_is_the_log_det(rng):
    layer, y = make_layer(rng), rng.normal(size=[2, 3, D])
    estimate = sn.estimate_log_det(layer, y, num_probes=400, num_steps=D, seed=1)
    check(estimate, layer.inverse_log_det_jacobian(tf.constant(y)))
    assert np.all(estimate.standard_error < 0.3)


def test_the_standard_error_is_the_spread_over_seeds(rng):
    layer, y = make_layer(rng), tf.constant(rng.normal(size=[1, D]))
    # As many estimates as events, with probes of their own.
    estimate = sn.estimate_log_det(layer, tf.repeat(y, 1000, axis=0), num_probes=8, num_steps=D, seed=1)
    spread = np.std(estimate.value, ddof=1)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(estimate.standard_error))), spread, rtol=0.1)
    exact = layer.inverse_log_det_jacobian(y)[0]
    assert abs(np.mean(estimate.value) - exact) < 4.0 * spread / np.sqrt(1000)
    other, again = (sn.estimate_log_det(layer, y, num_steps=D, seed=seed).value for seed in (2, 3))
    assert other != again
    assert other == sn.estimate_log_det(layer, y, num_steps=100, seed=2).value


def test_conditions_reach_the_encoder(rng):
    layer = make_layer(rng, condition_size=2)
    y, c = tf.constant(rng.normal(size=[4, D])), tf.constant(rng.normal(size=[4, 2]))
    estimate = sn.estimate_log_det(layer, y, c, num_probes=100, num_steps=D, seed=1)
    check(estimate, layer.inverse_log_det_jacobian(y, condition=c))
    flow = tfd.TransformedDistribution(normal(D), layer)
    kwargs = {"bijector_kwargs": {"condition": c}}
    estimate = sn.estimate_log_prob(flow, y, num_probes=100, num_steps=D, seed=1, **kwargs)
    check(estimate, flow.log_prob(y, **kwargs))


def nested(rng):
    """A chain with a dense layer, an inverted pair, and a base that is a flow."""
    base = tfd.TransformedDistribution(normal(D), make_layer(rng, name="in_the_base"))
    dense = sn.SelfNormDense.trainable(D, dtype=tf.float64, seed=1)
    chain = tfb.Chain([tfb.Exp(), make_layer(rng), dense, tfb.Invert(make_layer(rng))])
    return tfd.TransformedDistribution(base, chain)


FLOWS = {
    "chain, inverted, in the base": (nested, [3, 2, D]),
    "exact copy": (lambda rng: sn.exact(tfd.TransformedDistribution(normal(2), in_the_plane())), [3, 2]),
    "batch of bases": (lambda rng: tfd.TransformedDistribution(normal(3, D), make_layer(rng)), [4, 1, D]),
    "rows of a matrix": (lambda rng: tfd.TransformedDistribution(rows(), make_layer(rng)), [3, 2, D]),
    "half of an event": (lambda rng: tfd.TransformedDistribution(normal(4), halves()), [3, 4]),
    "a layer twice": (lambda rng: tfd.TransformedDistribution(normal(D), twice(rng)), [3, D]),
}


def rows():
    return tfd.Independent(normal(2, D), reinterpreted_batch_ndims=1)


def in_the_plane():
    first, second = (sn.LearnedInverse(residual(i), residual(i + 1), 2) for i in (1, 3))
    return tfb.Chain([first, tfb.Invert(second)])


def halves():
    layer = sn.LearnedInverse(residual(1), residual(2), 2)
    parts = tfb.JointMap([layer, tfb.Scale(tf.constant(2.0, tf.float64))])
    return tfb.Chain([tfb.Invert(tfb.Split(2)), parts, tfb.Split(2)])


def twice(rng):
    layer = make_layer(rng)
    return tfb.Chain([layer, tfb.Scale(tf.constant(2.0, tf.float64)), layer])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", FLOWS)
def test_the_estimate_of_a_likelihood_is_within_its_errors(rng, name, compiled):
    make, shape = FLOWS[name]
    flow, x = make(rng), tf.constant(rng.uniform(0.2, 2.0, size=shape))

    def estimate(x):
        return sn.estimate_log_prob(flow, x, num_probes=200, num_steps=D, seed=1)

    exact = flow.log_prob(tf.identity(x))
    check(tf.function(estimate)(x) if compiled else estimate(x), exact, num_errors=4.5)
    # The estimate is not what TFP remembers.
    np.testing.assert_allclose(flow.log_prob(x), exact, rtol=1e-12)


def test_a_flow_without_pairs_of_networks_is_exact():
    flow, x = sn.dense_flow(3, num_layers=1, seed=1), tf.ones([2, 3])
    value, error = sn.estimate_log_prob(flow, x)
    np.testing.assert_allclose(value, flow.log_prob(tf.identity(x)), rtol=1e-6)
    np.testing.assert_array_equal(error, [0.0, 0.0])


def test_an_estimate_has_no_gradient(rng):
    flow = tfd.TransformedDistribution(normal(D), make_layer(rng))
    with tf.GradientTape() as tape:
        value, error = sn.estimate_log_prob(flow, np.ones([2, D]), num_steps=2)
    assert not any(tape.gradient([value, error], flow.trainable_variables))


def test_what_has_no_estimate_is_refused(rng):
    layer = make_layer(rng)
    x = np.ones([2, D])
    with pytest.raises(TypeError, match="`layer` must be a LearnedInverse; got Exp"):
        sn.estimate_log_det(tfb.Exp(), x)
    with pytest.raises(TypeError, match=r"`distribution` must be a tfd.TransformedDistribution; got Nor"):
        sn.estimate_log_prob(tfd.Normal(0.0, 1.0), x)
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical([0.0, 0.0]), tfd.TransformedDistribution(normal(2, D), layer)
    )
    flow = tfd.TransformedDistribution(mixture, tfb.Identity())
    with pytest.raises(ValueError, match="each LearnedInverse in its bijector.*_inverse is in another"):
        sn.estimate_log_prob(flow, x)
    with pytest.raises(ValueError, match=r"`y` of `learned_inverse`.*\(2, 6\)"):
        sn.estimate_log_det(layer, np.ones([2, D + 1]))
    with sn.training_scope(), pytest.raises(RuntimeError, match="scopes do not nest"):
        sn.estimate_log_det(layer, x)


@pytest.mark.parametrize("function", [sn.estimate_log_prob, sn.whiten, sn.adapt, lambda m, x: sn.exact(m)])
def test_a_model_instead_of_its_distribution(function):
    model = sn.FlowModel(sn.free_form_flow(4, num_layers=1, width=4, depth=1, seed=1))
    with pytest.raises(TypeError, match="must be a TFP distribution.*got FlowModel.*`model.distribution`"):
        function(model, np.zeros([3, 4], np.float32))
