"""Dense layers that data set one after the other."""

import numpy as np
import pytest
import scipy.linalg
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm import initialization

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


@pytest.mark.parametrize("is_conditional", [False, True])
def test_a_later_layer_is_set_by_events_with_noise(rng, is_conditional):
    x = correlated(rng, 4, 20)
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
    passed = (moved - mean) @ kernel.T
    # Two draws are ten events for each dimension.
    variances, directions = np.linalg.eigh(np.cov(passed, rowvar=False))
    missing = (directions * np.sqrt(np.maximum(1.0 - variances, 0.0))) @ directions.T
    generator = np.random.default_rng(0)
    noisy = np.concatenate([passed + generator.normal(size=[20, 4]) @ missing for _ in range(2)])
    for layer in layers:
        np.testing.assert_allclose(layer.inverse_kernel, kernel, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(layer.bias, -kernel @ mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(4), atol=1e-9)
        mean, kernel = symmetric_root(noisy, 0.1)
        noisy = (noisy - mean) @ kernel.T


@pytest.mark.parametrize("activation", ["spline", "smooth_leaky_relu"])
@pytest.mark.parametrize("count", [40, 120])
def test_later_layers_do_not_undo_the_shrinkage_of_the_first_one(count, activation):
    """On digits that are new. Set by their inputs alone they cost 12 and 4 nats with splines."""
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
    layers = dense(3, 2)
    sn.whiten(flow_of(layers, 3), correlated(rng, 3, count))
    for layer in layers:
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(3), atol=1e-6)


def test_events_that_do_not_vary(rng):
    layers = dense(3, 2)
    before = [layer.inverse_kernel.numpy() for layer in layers]
    with pytest.raises(ValueError, match="must vary; it is the same for all events"):
        sn.whiten(flow_of(layers, 3), np.ones([12, 3]))
    np.testing.assert_array_equal([layer.inverse_kernel for layer in layers], before)


def flags(count):
    def change(x):
        x[:, :count] = 0.0
        x[np.arange(count) * (len(x) // count), np.arange(count)] = 1.0

    return change


def far_out(x):
    x[7, 0] = 1e6


def minority(x):
    """A tenth fills a space of which the others fill a plane."""
    generator = np.random.default_rng(5)
    plane = generator.normal(size=[len(x), 2]) @ generator.normal(size=[2, x.shape[1]])
    x[::10] = 0.0
    x[:] = np.where(np.arange(len(x))[:, np.newaxis] % 10 == 0, 3.0 * generator.normal(size=x.shape), plane)
    x += 1e-3 * generator.normal(size=x.shape)


@pytest.mark.parametrize("builder", [sn.dense_flow, sn.coupling_flow])
@pytest.mark.parametrize(
    ("count", "change"),
    [(3000, flags(1)), (3000, flags(20)), (100, flags(20)), (30, flags(1)), (3000, far_out), (120, minority)],
)
def test_more_layers_are_no_worse_than_one(count, change, builder, rng):
    """Each flow is a Gaussian at first. Of rare events a part of the events knows nothing."""
    x = rng.normal(size=[count, 24])
    change(x)
    one = sn.dense_flow(24, num_layers=1, dtype=tf.float64)
    sn.whiten(one, x)
    expected = -np.mean(one.log_prob(x))
    options = {"activation": "spline"} if builder is sn.dense_flow else {}
    flow = builder(24, num_layers=3, dtype=tf.float64, seed=1, **options)
    sn.whiten(flow, x)
    assert -np.mean(flow.log_prob(x)) < expected + 1.5
    assert np.max(flow.bijector.inverse(tf.constant(x)).numpy().std(axis=0)) < 1.2


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
def test_conditions_of_many_events_broadcast(shape, condition_shape, rng, monkeypatch):
    """As in `log_prob`; also in parts of the events."""
    monkeypatch.setattr(initialization, "_PART_SIZE", 1)
    monkeypatch.setattr(initialization, "_PART_EVENTS", 300)
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


@pytest.mark.parametrize("shape", [[3, 1, 4], [100, 1, 4]])
def test_a_batch_of_parameters_broadcasts(shape, rng):
    """Whatever the size of the batch: the rows of a later layer are those of all its members."""
    layers, shifts = dense(4, 2), rng.normal(size=shape)
    bijectors = [layers[0], tfb.Shift(tf.constant(shifts)), layers[1]]
    x = correlated(rng, 4, 100)
    sn.whiten(flow_of(bijectors, 4), x, shrinkage=0.0)
    rows = (layers[0].inverse(tf.constant(x)) - shifts).numpy().reshape([-1, 4])
    np.testing.assert_allclose(layers[1].inverse_kernel, symmetric_root(rows, 0.0)[1], rtol=1e-7, atol=1e-9)
    sn.whiten(flow_of(bijectors, 4), x)
    np.testing.assert_allclose(layers[1].forward_kernel @ layers[1].inverse_kernel, np.eye(4), atol=1e-9)


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
