"""Layers inside TFP's compositions: joint distributions, mixtures, batches, inversion."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from linear_flows import affine_map, arrays, base
from scipy import special, stats

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def flow_log_prob(layer, x):
    """Of a standard normal base, in numpy."""
    w, _, bias = arrays(layer)
    z = np.einsum("...ij,...j->...i", w, x) + bias
    return stats.norm.logpdf(z).sum(axis=-1) + np.linalg.slogdet(w)[1]


def flow_gradients(layer, x, weight):
    """Gradients of the weighted sum of `flow_log_prob` for W, R and the bias: the exact ones and the paper's.

    For a batch of kernels x and the weight have the batch as their last batch dimension.
    """
    w, r, bias = arrays(layer)
    images = np.einsum("...ij,...j->...i", w, x)
    z = images + bias
    d_z = -weight[..., np.newaxis] * z
    d_x = np.einsum("...ij,...i->...j", w, d_z)
    subscripts = "n...i,n...j->...ij"
    total = weight.sum(axis=0)[..., np.newaxis, np.newaxis]
    x = np.broadcast_to(x, z.shape)
    likelihood = np.einsum(subscripts, d_z, x)
    d_w = 0.5 * (likelihood + total * np.swapaxes(r, -1, -2))
    d_r = -0.5 * (np.einsum(subscripts, d_x, images) + total * np.swapaxes(w, -1, -2))
    d_bias = d_z.sum(axis=0)
    exact_d_w = likelihood + total * np.swapaxes(np.linalg.inv(w), -1, -2)
    return (exact_d_w, None, d_bias), (d_w, d_r, d_bias)


def check_log_prob_and_gradients(distribution, x, expected, layers_and_gradients):
    """The log-prob and its gradients, outside of a scope and in one that holds the exact log-dets.

    Outside they are exact, inside the paper's.
    """
    held = {layer: layer.exact_log_det() for layer, _ in layers_and_gradients}
    variables = [
        variable
        for layer, _ in layers_and_gradients
        for variable in (layer.inverse_kernel, layer.forward_kernel, layer.bias)
    ]
    exact, papers = ([gradient for _, both in layers_and_gradients for gradient in both[i]] for i in range(2))

    def outside(x):
        with tf.GradientTape() as tape:
            log_prob = distribution.log_prob(tf.nest.map_structure(tf.identity, x))
        return log_prob, tape.gradient(log_prob, variables)

    def inside(x):
        with tf.GradientTape() as tape, sn.training_scope(None, log_dets=held):
            log_prob = distribution.log_prob(tf.nest.map_structure(tf.identity, x))
        return log_prob, tape.gradient(log_prob, variables)

    for function, gradients in ((outside, exact), (inside, papers)):
        for log_prob, found in (function(x), tf.function(function)(x)):
            np.testing.assert_allclose(log_prob, expected, **TOLERANCE)
            for one, other in zip(found, gradients, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    np.testing.assert_allclose(one, other, **TOLERANCE)
    assert {id(v) for v in variables} <= {id(v) for v in distribution.trainable_variables}


@pytest.mark.parametrize("kind", ["sequential", "named"])
def test_in_a_joint_distribution(kind, make_layer, rng):
    """A normal whose mean is the sum of what the flow made."""
    layer = make_layer(3, inverse_is_exact=True)
    flow = tfd.TransformedDistribution(base(), layer)

    def noisy_sum(flow):
        return tfd.Normal(tf.reduce_sum(flow, axis=-1), tf.constant(0.5, tf.float64))

    x, y = rng.normal(size=[7, 3]), rng.normal(size=[7])
    if kind == "sequential":
        joint, value = tfd.JointDistributionSequential([flow, noisy_sum]), (tf.constant(x), tf.constant(y))
    else:
        joint = tfd.JointDistributionNamed({"flow": flow, "noisy_sum": noisy_sum})
        value = {"flow": tf.constant(x), "noisy_sum": tf.constant(y)}
    expected = flow_log_prob(layer, x) + stats.norm.logpdf(y, x.sum(axis=1), 0.5)
    gradients = flow_gradients(layer, x, np.ones(7))
    check_log_prob_and_gradients(joint, value, expected, [(layer, gradients)])
    sampled, total = tf.nest.flatten(joint.sample(20_000, seed=(1, 2)))
    matrix, offset = affine_map(layer)
    np.testing.assert_allclose(np.cov(sampled.numpy().T), matrix @ matrix.T, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(np.mean(sampled, axis=0), offset, atol=0.1)
    np.testing.assert_allclose(np.std(total - tf.reduce_sum(sampled, axis=1)), 0.5, atol=0.02)


def random_batch_layer(rng, num_flows, **options):
    kernel = np.eye(3) + 0.4 * rng.normal(size=[num_flows, 3, 3])
    other = np.linalg.inv(kernel) + 0.1 * rng.normal(size=[num_flows, 3, 3])
    bias = rng.normal(size=[num_flows, 3])
    return sn.SelfNormDense(*(tf.Variable(value) for value in (other, kernel, bias)), **options)


def test_in_a_mixture_of_one_family(rng):
    layer = random_batch_layer(rng, 2)
    logits = np.array([0.3, -0.4])
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=logits),
        tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([2, 3], tf.float64)), layer),
    )
    x = rng.normal(size=[7, 3])
    terms = special.log_softmax(logits) + flow_log_prob(layer, x[:, np.newaxis])
    expected = special.logsumexp(terms, axis=-1)
    weight = np.exp(terms - expected[:, np.newaxis])
    gradients = flow_gradients(layer, x[:, np.newaxis], weight)
    check_log_prob_and_gradients(mixture, tf.constant(x), expected, [(layer, gradients)])
    # Without the log-dets the weights of the components are others.
    with sn.training_scope(None):
        assert np.ptp(mixture.log_prob(tf.constant(x)) - expected) > 0.01


def test_in_a_mixture_of_two_flows(make_layer, rng):
    layers = [make_layer(3), make_layer(3)]
    flows = [tfd.TransformedDistribution(base(), layer) for layer in layers]
    mixture = tfd.Mixture(tfd.Categorical(probs=np.array([0.3, 0.7])), flows)
    x = rng.normal(size=[7, 3])
    terms = np.log([0.3, 0.7]) + np.stack([flow_log_prob(layer, x) for layer in layers], axis=-1)
    expected = special.logsumexp(terms, axis=-1)
    weight = np.exp(terms - expected[:, np.newaxis])
    gradients = [(layer, flow_gradients(layer, x, weight[:, i])) for i, layer in enumerate(layers)]
    check_log_prob_and_gradients(mixture, tf.constant(x), expected, gradients)
    sample = mixture.sample(20_000, seed=(1, 2))
    means = [affine_map(layer)[1] for layer in layers]
    np.testing.assert_allclose(np.mean(sample, axis=0), 0.3 * means[0] + 0.7 * means[1], atol=0.1)


def test_independent_over_a_batch_of_flows(rng):
    layer = random_batch_layer(rng, 4)
    flows = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([4, 3], tf.float64)), layer)
    independent = tfd.Independent(flows, reinterpreted_batch_ndims=1)
    assert independent.event_shape == (4, 3)
    assert independent.batch_shape == ()
    x = rng.normal(size=[7, 4, 3])
    expected = flow_log_prob(layer, x).sum(axis=-1)
    gradients = flow_gradients(layer, x, np.ones([7, 4]))
    check_log_prob_and_gradients(independent, tf.constant(x), expected, [(layer, gradients)])
    sample = independent.sample(20_000, seed=(1, 2)).numpy()
    for i in range(4):
        w, r, bias = (value[i] for value in arrays(layer))
        np.testing.assert_allclose(np.cov(sample[:, i].T), r @ r.T, rtol=0.1, atol=0.1)
        np.testing.assert_allclose(sample[:, i].mean(axis=0), -r @ bias, atol=0.1)


@pytest.mark.parametrize("inversion", ["learned", "exact"])
def test_an_inverted_layer_samples_by_the_inverse_kernel(inversion, make_layer, rng):
    layer = make_layer(3, inversion=inversion)
    flow = tfd.TransformedDistribution(base(), tfb.Invert(layer))
    w, r, bias = arrays(layer)
    way_back = r if inversion == "learned" else np.linalg.inv(w)
    sample, log_prob = flow.experimental_sample_and_log_prob(10, seed=(1, 2))
    z = base().sample(10, seed=(1, 2)).numpy()
    np.testing.assert_allclose(sample, z @ w.T + bias, **TOLERANCE)
    expected = stats.norm.logpdf(z).sum(axis=1) - np.linalg.slogdet(w)[1]
    np.testing.assert_allclose(log_prob, expected, **TOLERANCE)
    x = rng.normal(size=[10, 3])
    expected = stats.norm.logpdf((x - bias) @ way_back.T).sum(axis=1) + np.linalg.slogdet(way_back)[1]
    np.testing.assert_allclose(flow.log_prob(tf.constant(x)), expected, **TOLERANCE)
