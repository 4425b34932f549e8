"""The start from data of dense layers."""

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.math.whitening import MissingNoise, whitening

tfb, tfd = tfp.bijectors, tfp.distributions


def correlated(rng, size, count=500):
    factor = rng.normal(size=[size, size])
    return rng.normal(size=[count, size]) @ factor + rng.normal(size=size)


def flow_of(layers, size):
    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(size, tf.float64), tf.ones(size, tf.float64)), tfb.Chain(layers)
    )


def test_one_layer_is_the_gaussian_that_fits_best(rng):
    x = correlated(rng, 5)
    flow = flow_of([sn.SelfNormDense.trainable(5, dtype=tf.float64)], 5)
    sn.whiten(flow, x, shrinkage=0.0)
    mean, covariance = x.mean(axis=0), np.cov(x, rowvar=False)
    residual = x - mean
    expected = -0.5 * (
        np.sum(residual * np.linalg.solve(covariance, residual.T).T, axis=1)
        + np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    )
    np.testing.assert_allclose(flow.log_prob(tf.constant(x)), expected, rtol=1e-9)


def test_every_layer_is_whitened_after_those_before_it_and_has_its_inverse(rng):
    x = correlated(rng, 4)
    layers = [sn.SelfNormDense.trainable(4, dtype=tf.float64, name=f"dense_{i}") for i in range(3)]
    slope = tf.constant(0.3, tf.float64)
    bend = tfb.Invert(sn.SmoothLeakyReLU(slope))
    # Nested, and from the data on.
    flow = flow_of([layers[0], bend, tfb.Chain([layers[1], bend]), layers[2]], 4)
    sn.whiten(flow, x, shrinkage=0.0)
    reached = x
    for layer in layers:
        output = layer.inverse(tf.constant(reached)).numpy()
        np.testing.assert_allclose(output.mean(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(np.cov(output, rowvar=False), np.eye(4), atol=1e-9)
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(4), atol=1e-9)
        np.testing.assert_allclose(layer.inverse_kernel, tf.transpose(layer.inverse_kernel), atol=1e-12)
        reached = 0.3 * output + 0.7 * np.log1p(np.exp(output))


def test_images_are_flattened_and_other_layers_stay(rng):
    flow = sn.dense_flow(event_shape=(2, 3), num_layers=2, seed=1)
    x = correlated(rng, 6).reshape(-1, 2, 3)
    before = -np.mean(flow.log_prob(tf.constant(x, tf.float32)))
    sn.whiten(flow, x)
    assert -np.mean(flow.log_prob(tf.constant(x, tf.float32))) < before
    conv = sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, centering=False, seed=1)
    kernel = sn.self_norm_layers(conv)[0].inverse_kernel.numpy()
    sn.whiten(conv, rng.normal(size=[50, 4, 4, 1]))
    np.testing.assert_array_equal(sn.self_norm_layers(conv)[0].inverse_kernel, kernel)


def gaussian_nll(x, mean, covariance):
    residual = x - mean
    squares = np.sum(residual * np.linalg.solve(covariance, residual.T).T, axis=1)
    return 0.5 * np.mean(squares) + 0.5 * np.linalg.slogdet(2.0 * np.pi * covariance)[1]


def whitened_nll(x, dtype=tf.float64, **options):
    """The mean NLL of the whitened data under one layer."""
    size = x.shape[1]
    flow = sn.dense_flow(size, num_layers=1, dtype=dtype)
    sn.whiten(flow, x, **options)
    return -np.mean(flow.log_prob(tf.constant(x, dtype)))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e150])
def test_units_of_the_columns_do_not_matter(scale, rng):
    unit = rng.normal(size=[5000, 2])
    expected = gaussian_nll(unit, unit.mean(axis=0), np.cov(unit, rowvar=False))
    np.testing.assert_allclose(whitened_nll(unit * [scale, 1.0 / scale]), expected, atol=3e-4)


def test_a_column_that_does_not_vary_has_a_deviation_of_one_and_is_named(rng):
    x = correlated(rng, 3)
    expected = gaussian_nll(x, x.mean(axis=0), np.cov(x, rowvar=False)) + 0.5 * np.log(2.0 * np.pi)
    for constant in (0.0, 2.0, 1e9 / 3.0):
        with pytest.warns(
            UserWarning, match="of `dense_0` from `x`, of 4 columns, does not vary in float64 in column 1. "
        ):
            found = whitened_nll(np.insert(x, 1, constant, axis=1), shrinkage=0.0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_column_that_stands_there_twice_is_a_direction_of_deviation_one(rng):
    x = correlated(rng, 3)
    with pytest.warns(UserWarning, match="in 1 combination of the other columns"):
        found = whitened_nll(np.concatenate([x, 10.0 * x[:, :1]], axis=1), shrinkage=0.0)
    # The standardised twins have the sum sqrt(2) a and the difference 0, of deviations sqrt(2) and 1.
    deviation = np.std(x[:, 0], ddof=1)
    turned = np.concatenate([np.sqrt(2.0) * x[:, :1] / deviation, x[:, 1:]], axis=1)
    of_difference = 0.5 * np.log(2.0 * np.pi)
    units = 2.0 * np.log(deviation) + np.log(10.0)
    expected = gaussian_nll(turned, turned.mean(axis=0), np.cov(turned, rowvar=False)) + of_difference + units
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_constant_pixels_do_not_spoil_the_training():
    """Three pixels of the digits of scikit-learn. Without them the first epochs end near 120 nats."""
    x = sklearn.datasets.load_digits().data
    flow = sn.dense_flow(64, num_layers=2, seed=1)
    with pytest.warns(UserWarning, match="not vary in float32 in columns 0, 32, 39"):
        sn.whiten(flow, x)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(1e-3))
    nll = model.fit(x, epochs=3, verbose=0).history["nll"]
    assert max(nll) < 130.0


@pytest.mark.parametrize("count", [15, 45, 300])
def test_the_shrinkage_has_the_best_likelihood_of_held_out_events(count, rng):
    """Five random parts in turn, in scipy."""
    x = correlated(rng, 20, count)
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)

    def held_out_nll(shrinkage):
        nll = 0.0
        for part in range(5):
            is_held_out = np.random.default_rng(0).permutation(count) % 5 == part
            seen = x[~is_held_out]
            distances = np.sum(x**2, axis=1)
            is_held_out &= distances <= np.quantile(distances, 0.95)
            # The units are those of all events.
            covariance = (1.0 - shrinkage) * np.cov(seen, rowvar=False) + shrinkage * np.eye(20)
            normal = scipy.stats.multivariate_normal(seen.mean(axis=0), covariance)
            nll -= np.sum(normal.logpdf(x[is_held_out]))
        return nll

    chosen = whitening(x, 1e-16).shrinkage
    assert 0.0 < chosen < 1.0
    assert held_out_nll(chosen) < min(held_out_nll(chosen / 1.8), held_out_nll(chosen * 1.8))
    assert held_out_nll(chosen) < held_out_nll(1e-8)
    assert np.isfinite(whitened_nll(x))


@pytest.mark.parametrize("shrinkage", [0.01, 0.5, 1.0])
def test_fewer_events_than_dimensions(shrinkage, rng):
    """By the whole correlation, and its root in scipy. One column is constant."""
    x = correlated(rng, 9, 6) * 10.0 ** np.arange(9)
    x[:, 4] = 3.0
    found = whitening(x, 1e-16, shrinkage)
    deviations = x.std(axis=0, ddof=1)
    deviations[4] = 1.0
    standard = (x - x.mean(axis=0)) / deviations
    shrunk = (1.0 - shrinkage) * standard.T @ standard / 5.0 + shrinkage * np.eye(9)
    shrunk[4] = np.eye(9)[4]
    expected = np.linalg.inv(scipy.linalg.sqrtm(shrunk)) / deviations
    np.testing.assert_allclose(found.kernel * deviations, expected * deviations, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.kernel @ found.inverse_kernel, np.eye(9), atol=1e-9)
    assert found.constant_columns == [4]
    assert found.num_dependent == 0


def test_fewer_events_than_pixels_are_a_better_start_than_none():
    pictures = sklearn.datasets.load_digits().images[:, :, :, np.newaxis] / 17.0
    noise = np.random.default_rng(0).uniform(size=pictures.shape) / 17.0
    train, held_out = np.split((pictures + noise).astype(np.float32), [60])
    nll = []
    for whitens in (False, True):
        flow = sn.dense_flow((8, 8, 1), num_layers=1, preprocessing=sn.images.pixel_sigmoid(17))
        if whitens:
            sn.whiten(flow, train)
        nll.append(-np.mean(flow.log_prob(held_out)))
        kernels = [layer.inverse_kernel @ layer.forward_kernel for layer in sn.self_norm_layers(flow)]
        np.testing.assert_allclose(kernels, [np.eye(64)], atol=1e-3)
    assert nll[1] < nll[0] - 20.0


def test_a_column_of_rounding_errors_leaves_the_others_whitened(rng):
    """In float32 a time in seconds of an hour has steps of 128: it alone is called constant."""
    x = correlated(rng, 6, 2000)
    times = 1.7e9 + 3600.0 * np.linspace(0.0, 1.0, 2000)
    flow = sn.dense_flow(7, num_layers=1)
    with pytest.warns(UserWarning, match="in 1 combination of the other columns"):
        sn.whiten(flow, np.column_stack([x, times]), shrinkage=0.0)
    latents = flow.bijector.inverse(tf.constant(np.column_stack([x, times]), tf.float32)).numpy()
    covariance = np.cov(latents, rowvar=False)
    assert np.linalg.norm(covariance[:6, :6] - np.eye(6)) < 0.1


class Basis:
    """In place of a generator: the vectors of the basis, some at a time, and then zeros."""

    def __init__(self):
        self.rows = np.concatenate([np.eye(9), np.zeros([9, 9])])

    def normal(self, size):
        taken, self.rows = np.split(self.rows, [size[0]])
        return taken


@pytest.mark.parametrize("count", [3, 9, 18])
def test_noise_has_the_covariance_that_events_lack(count, rng):
    """With fewer events than dimensions, and more; not in a direction of a larger variance."""
    x = 0.3 * rng.normal(size=[count, 9])
    x[0] += 5.0
    noise, basis = MissingNoise(x), Basis()
    draws = np.concatenate([noise.draw(basis) for _ in range(max(1, 9 // count))])
    variances, directions = np.linalg.eigh(np.cov(x, rowvar=False))
    missing = (directions * np.clip(1.0 - variances, 0.0, 1.0)) @ directions.T
    assert variances[-1] > 1.0
    np.testing.assert_allclose(draws.T @ draws, missing, atol=1e-8)


def test_one_event_far_out_does_not_choose_the_shrinkage(rng):
    x = correlated(rng, 6, 2000)
    x[0] = 1e4
    flow = sn.dense_flow(6, num_layers=1, dtype=tf.float64)
    nll = []
    for shrinkage in (None, 0.0):
        sn.whiten(flow, x, shrinkage=shrinkage)
        nll.append(-np.mean(flow.log_prob(x[1:])))
    assert nll[0] < nll[1] + 1.0


@pytest.mark.filterwarnings("ignore:.*combinations? of the other columns")
@pytest.mark.parametrize(("count", "repeats"), [(25, 10), (25, 2), (60, 5)])
def test_copies_of_events_do_not_choose_the_shrinkage(rng, count, repeats):
    factor = rng.normal(size=[30, 30]) / np.sqrt(30)
    x, new = (rng.normal(size=[n, 30]) @ factor for n in (count, 1000))
    once, copied = (sn.dense_flow(30, num_layers=1, dtype=tf.float64, seed=1) for _ in range(2))
    sn.whiten(once, x)
    sn.whiten(copied, rng.permutation(np.repeat(x, repeats, axis=0)))
    scores = [-np.mean(flow.log_prob(tf.constant(new))) / 30 for flow in (once, copied)]
    # Without a shrinkage the second one is above 4.
    assert scores[1] < scores[0] + 0.15


def test_a_deviation_that_the_dtype_cannot_divide_by_is_refused(rng):
    x = rng.normal(size=[100, 3]) * [1e-41, 1.0, 1.0]
    layer = sn.SelfNormDense.trainable(3)
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 3), layer)
    with pytest.raises(ValueError, match="`self_norm_dense` .* can divide by"):
        sn.whiten(flow, np.float32(x))
    np.testing.assert_array_equal(layer.inverse_kernel, np.eye(3))


def test_whitening_in_float32_of_columns_far_from_zero(rng):
    x = (correlated(rng, 3) + 1e3).astype(np.float32)
    expected = gaussian_nll(np.float64(x), np.float64(x).mean(axis=0), np.cov(np.float64(x), rowvar=False))
    np.testing.assert_allclose(whitened_nll(x, tf.float32, shrinkage=0.0), expected, rtol=1e-2)


def test_without_a_bias_the_mean_stays(rng):
    x = correlated(rng, 3)
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, use_bias=False)
    sn.whiten(flow_of([layer], 3), x, shrinkage=0.0)
    output = layer.inverse(tf.constant(x)).numpy()
    np.testing.assert_allclose(np.cov(output, rowvar=False), np.eye(3), atol=1e-9)


def test_what_is_refused(rng):
    flow = flow_of([sn.SelfNormDense.trainable(3, dtype=tf.float64)], 3)
    kernel = sn.self_norm_layers(flow)[0].inverse_kernel.numpy()
    with pytest.raises(TypeError, match="`distribution` must be a TFP distribution; got ndarray"):
        sn.whiten(kernel, kernel)
    with pytest.raises(TypeError, match="`x` must be floating; got dtype int64"):
        sn.whiten(flow, np.ones([9, 3], np.int64))
    with pytest.raises(
        ValueError, match=r"`x` has shape \(9, 4\); expected a batch of events of shape \(3,\)"
    ):
        sn.whiten(flow, np.ones([9, 4]))
    with pytest.raises(ValueError, match="more events than dimensions, 3 for `self_norm_dense`; got 3"):
        sn.whiten(flow, rng.normal(size=[3, 3]), shrinkage=0.0)
    with pytest.raises(ValueError, match="two events or more for `self_norm_dense`; got 1"):
        sn.whiten(flow, rng.normal(size=[1, 3]))
    with pytest.raises(ValueError, match="`self_norm_dense` from `x` must vary"):
        sn.whiten(flow, np.ones([9, 3]))
    with pytest.raises(ValueError, match="`x` has values that are not finite in 1 of 9 examples.*index 4"):
        sn.whiten(flow, np.where(np.arange(9)[:, np.newaxis] == 4, np.nan, rng.normal(size=[9, 3])))
    for function in (sn.whiten, sn.adapt):
        with pytest.raises(TypeError, match="`x` must be one array of events; got a tuple of 2 arrays"):
            function(flow, (rng.normal(size=[9, 3]), rng.normal(size=[9, 3])))
    np.testing.assert_array_equal(sn.self_norm_layers(flow)[0].inverse_kernel, kernel)
    constant = flow_of([sn.SelfNormDense(tf.eye(3, dtype=tf.float64), tf.eye(3, dtype=tf.float64))], 3)
    with pytest.raises(TypeError, match="parameters of `self_norm_dense` must be tf.Variables"):
        sn.whiten(constant, rng.normal(size=[9, 3]))


@pytest.mark.parametrize("name", ["adapt", "whiten"])
def test_initial_values_are_not_set_in_a_graph(name):
    flow = sn.dense_flow(2, seed=1)
    with pytest.raises(ValueError, match=f"`{name}` sets variables from data: call it outside"):
        tf.function(lambda x: getattr(sn, name)(flow, x))(tf.zeros([4, 2]))
