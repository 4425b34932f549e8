"""Dense layers that data set one after the other."""

import numpy as np
import pytest
import scipy.linalg
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def correlated(rng, size, count):
    factor = rng.normal(size=[size, size])
    return rng.normal(size=[count, size]) @ factor + rng.normal(size=size)


def flow_of(layers, size):
    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(size, tf.float64), tf.ones(size, tf.float64)), tfb.Chain(layers)
    )


def dense(size, count):
    return [sn.SelfNormDense.trainable(size, dtype=tf.float64, name=f"dense_{i}") for i in range(count)]


def symmetric_root(x, shrinkage):
    """The mean of events and `(S P S)^-1/2`, by scipy."""
    deviations = np.diag(x.std(axis=0, ddof=1))
    shrunk = (1.0 - shrinkage) * np.corrcoef(x, rowvar=False) + shrinkage * np.eye(x.shape[1])
    return x.mean(axis=0), np.linalg.inv(scipy.linalg.sqrtm(deviations @ shrunk @ deviations).real)


def random_thirds(count):
    """Which events are in each third."""
    parts = np.array_split(np.random.default_rng(0).permutation(count), 3)
    return [np.isin(np.arange(count), part) for part in parts]


@pytest.mark.parametrize("is_conditional", [False, True])
def test_a_later_layer_is_set_by_events_that_are_new_to_the_first_one(rng, is_conditional):
    x = correlated(rng, 4, 20)
    x[3] *= 100.0
    layers = dense(4, 3)
    condition, moved, bijectors = None, x, list(layers)
    if is_conditional:
        condition = rng.normal(size=[20, 4])
        coupling = sn.AffineCoupling(lambda c: tf.concat([c, c], axis=-1), num_conditioning=0, event_ndims=1)
        bijectors.insert(0, coupling)
        moved = coupling.inverse(tf.constant(x), condition=condition).numpy()
    flow = flow_of(bijectors, 4)
    if is_conditional:
        flow = tfd.TransformedDistribution(flow.distribution, sn.Conditional(flow.bijector))
    sn.whiten(flow, x, shrinkage=0.1, condition=condition)

    mean, kernel = symmetric_root(moved, 0.1)
    seen, new = (moved - mean) @ kernel.T, np.zeros_like(moved)
    for is_new in random_thirds(20):
        mean_of_others, kernel_of_others = symmetric_root(moved[~is_new], 0.1)
        new[is_new] = (moved[is_new] - mean_of_others) @ kernel_of_others.T
    distances = np.linalg.norm(new - seen, axis=1) / np.linalg.norm(seen, axis=1)
    is_rare = distances > 5.0 * np.median(distances)
    assert 0 < is_rare.sum() < 10
    new[is_rare] = seen[is_rare]
    for layer in layers:
        np.testing.assert_allclose(layer.inverse_kernel, kernel, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(layer.bias, -kernel @ mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(4), atol=1e-9)
        mean, kernel = symmetric_root(new, 0.1)
        seen, new = (seen - mean) @ kernel.T, (new - mean) @ kernel.T


@pytest.mark.parametrize("activation", ["spline", "smooth_leaky_relu"])
@pytest.mark.parametrize("count", [40, 120])
def test_later_layers_do_not_undo_the_shrinkage_of_the_first_one(count, activation):
    """On digits that are new. Set by their inputs alone they cost 12 and 4 nats with splines.

    The order of 40 events is worth 0.6 nats either way.
    """
    pictures = sklearn.datasets.load_digits().images[:, :, :, np.newaxis] / 17.0
    pictures += np.random.default_rng(0).uniform(size=pictures.shape) / 17.0
    x, held_out = pictures[:count].astype(np.float32), pictures[1300:].astype(np.float32)
    nll = []
    for num_layers in (1, 2, 3):
        options = {"num_layers": num_layers, "activation": activation}
        flow = sn.dense_flow((8, 8, 1), preprocessing=sn.images.pixel_sigmoid(17), **options)
        sn.whiten(flow, x)
        nll.append(-np.mean(flow.log_prob(held_out)))
    # The bends of the leaky ReLU fit digits better than a Gaussian does.
    gain = 0.0 if activation == "spline" else 8.0
    assert max(nll[1:]) < nll[0] - gain + 1.0


@pytest.mark.parametrize("num_sources", [3, 5])
def test_sources_that_take_turns_are_as_good_as_events_in_any_order(num_sources, rng):
    """Parts of every third or fifth event would each have one source alone."""
    means = 3.0 * rng.normal(size=[num_sources, 20])
    x = np.tile(means, [60, 1]) + rng.normal(size=[60 * num_sources, 20])
    held_out = np.tile(means, [200, 1]) + rng.normal(size=[200 * num_sources, 20])
    nll = []
    for events in (x, rng.permutation(x)):
        flow = sn.dense_flow(20, num_layers=2, activation="spline", dtype=tf.float64, seed=1)
        sn.whiten(flow, events)
        nll.append(-np.mean(flow.log_prob(held_out)))
    assert abs(nll[0] - nll[1]) < 0.5


@pytest.mark.parametrize("count", range(2, 9))
def test_a_handful_of_events(count, rng):
    """From six on each layer has events that are new to the first one."""
    layers = dense(3, 2)
    sn.whiten(flow_of(layers, 3), correlated(rng, 3, count))
    for layer in layers:
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(3), atol=1e-6)


def test_events_that_hardly_vary(rng):
    """Without a third of them the others are all alike."""
    x = np.ones([12, 3])
    x[random_thirds(12)[1]] = rng.normal(size=[4, 3])
    layers = dense(3, 2)
    sn.whiten(flow_of(layers, 3), x, shrinkage=0.2)
    np.testing.assert_allclose(layers[0].inverse_kernel, symmetric_root(x, 0.2)[1], rtol=1e-8)
    np.testing.assert_allclose(layers[1].forward_kernel @ layers[1].inverse_kernel, np.eye(3), atol=1e-9)
    before = [layer.inverse_kernel.numpy() for layer in layers]
    with pytest.raises(ValueError, match="must vary; it is the same for all events"):
        sn.whiten(flow_of(layers, 3), np.ones([12, 3]))
    np.testing.assert_array_equal([layer.inverse_kernel for layer in layers], before)


def one_flag(x):
    x[:, 0] = 0.0
    x[7, 0] = 1.0


def rare_flags(x):
    x[:, :20] = 0.0
    x[11 * np.arange(20), np.arange(20)] = 1.0


def far_out(x):
    x[7, 0] = 1e6


@pytest.mark.parametrize("change", [one_flag, rare_flags, far_out])
def test_rare_events_do_not_set_the_later_layers(change, rng):
    """Without them two thirds of the events say nothing of their columns."""
    x = rng.normal(size=[3000, 24])
    change(x)
    nll = []
    for num_layers in (1, 2, 3):
        flow = sn.dense_flow(24, num_layers=num_layers, activation="spline", dtype=tf.float64)
        sn.whiten(flow, x)
        nll.append(-np.mean(flow.log_prob(x)))
        latents = flow.bijector.inverse(tf.constant(x)).numpy()
        np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=0.02)
        np.testing.assert_allclose(latents.std(axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(nll[1:], nll[0], atol=0.3)


@pytest.mark.parametrize("bijector", [sn.ActNorm, sn.Standardize, sn.Centering])
def test_a_bijector_after_a_whitened_layer_takes_its_values_last(bijector, rng):
    x = 50.0 * correlated(rng, 4, 900) + 7.0
    first, second = dense(4, 2)
    adaptable = bijector.trainable([4] if bijector is sn.Centering else 4, dtype=tf.float64)
    flow = flow_of([first, tfb.Scale(tf.constant(3.0, tf.float64)), adaptable, second], 4)
    sn.adapt(flow, x, whitens=True)
    latents = flow.bijector.inverse(tf.constant(x)).numpy()
    np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(np.cov(latents, rowvar=False), np.eye(4), atol=0.1)
    middle = adaptable.inverse(first.inverse(tf.constant(x)) / 3.0).numpy()
    np.testing.assert_allclose(middle[:512].mean(axis=0), 0.0, atol=0.1)
    if bijector is not sn.Centering:
        np.testing.assert_allclose(middle[:512].std(axis=0), 1.0, atol=0.1)


def shifted_by_the_condition(size):
    def shift(condition):
        shift = tf.reshape(condition, tf.concat([tf.shape(condition)[:-1], [size]], axis=0))
        return tf.concat([shift, tf.zeros_like(shift)], axis=-1)

    return sn.AffineCoupling(shift, num_conditioning=0, event_ndims=1)


@pytest.mark.parametrize(("shape", "condition_shape"), [([900, 4], [4]), ([9, 100, 4], [100, 4])])
def test_conditions_of_many_events_broadcast(shape, condition_shape, rng):
    """As in `log_prob`; also in parts, of which the first one has 512 events."""
    x, condition = correlated(rng, 4, 900).reshape(shape), rng.normal(size=condition_shape)
    kernels = []
    for given in (condition, np.broadcast_to(condition, shape)):
        layers = dense(4, 2)
        parts = [
            layers[0],
            shifted_by_the_condition(4),
            layers[1],
            sn.Centering.trainable([4], dtype=tf.float64),
        ]
        base = tfd.Sample(tfd.Normal(tf.constant(0.0, tf.float64), 1.0), [4])
        flow = tfd.TransformedDistribution(base, sn.Conditional(tfb.Chain(parts)))
        sn.adapt(flow, x, whitens=True, condition=given)
        kernels.append([layer.inverse_kernel for layer in layers])
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-9)


def test_events_of_a_batch_of_distributions(rng):
    x = correlated(rng, 4, 9)
    base = tfd.MultivariateNormalDiag(tf.zeros([9, 4], tf.float64))
    layers = dense(4, 2)
    sn.whiten(tfd.TransformedDistribution(base, tfb.Chain(layers)), x)
    expected = dense(4, 2)
    sn.whiten(flow_of(expected, 4), x)
    for layer, other in zip(layers, expected, strict=True):
        np.testing.assert_allclose(layer.inverse_kernel, other.inverse_kernel, rtol=1e-9)


def test_after_an_error_no_layer_has_changed(rng):
    layers = dense(3, 2)
    layers[1].inverse_kernel.assign(np.eye(3)[[1, 0, 2]])
    layers[1].forward_kernel.assign(np.eye(3)[[1, 0, 2]])
    before = [layer.inverse_kernel.numpy() for layer in layers]
    # The logarithm of a negative number.
    flow = flow_of([layers[0], tfb.Exp(), layers[1]], 3)
    with pytest.raises(ValueError, match="The input of `dense_1` from `x` must be finite"):
        sn.whiten(flow, correlated(rng, 3, 40))
    np.testing.assert_array_equal([layer.inverse_kernel for layer in layers], before)
