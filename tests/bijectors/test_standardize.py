"""Standardize and its values from data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm import initialization

tfb, tfd = tfp.bijectors, tfp.distributions


def flow_of(bijector, size, dtype=tf.float64):
    normal = tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype))
    return tfd.TransformedDistribution(tfd.Sample(normal, [size]), bijector)


@pytest.mark.filterwarnings("error")
def test_columns_of_any_units_have_the_density_of_their_gaussian(rng, monkeypatch):
    """Batches do not matter, and neither do ratios of 1e24 nor a mean of 1e9 deviations."""
    monkeypatch.setattr(initialization, "_PART_SIZE", 4 * 3)
    monkeypatch.setattr(initialization, "_PART_EVENTS", 7)
    scale, offset = np.array([1e-12, 1e12, 1.0]), np.array([0.0, -1e13, 1e9])
    x = offset + scale * rng.normal(size=[100, 3])
    flow = flow_of(sn.Standardize.trainable(3, dtype=tf.float64), 3)
    assert not sn.is_adapted(flow)
    sn.adapt(flow, x)
    assert sn.is_adapted(flow)
    np.testing.assert_allclose(flow.bijector.deviation, (x - offset).std(axis=0), rtol=1e-6)
    expected = stats.norm.logpdf(x, x.mean(axis=0), (x - x.mean(axis=0)).std(axis=0)).sum(axis=1)
    np.testing.assert_allclose(flow.log_prob(tf.constant(x)), expected, rtol=1e-6)
    assert not flow.trainable_variables
    with pytest.raises(ValueError, match="adapted already"):
        sn.adapt(flow, x)


def test_inverted_it_standardises_the_output_of_forward(rng):
    x = 4.0 + 3.0 * rng.normal(size=[50, 3])
    flow = flow_of(tfb.Invert(sn.Standardize.trainable(3, dtype=tf.float64)), 3)
    sn.adapt(flow, x)
    latents = flow.bijector.inverse(tf.constant(x)).numpy()
    np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(latents.std(axis=0), 1.0, rtol=1e-12)


def test_a_constant_column_gets_a_deviation_of_1_and_a_warning(rng):
    x = np.stack([rng.normal(size=20), np.full(20, 0.1), rng.normal(size=20)], axis=1)
    flow = flow_of(sn.Standardize.trainable(3, dtype=tf.float64), 3)
    with pytest.warns(UserWarning, match="data that do not vary in column 1. They get a deviation of 1"):
        sn.adapt(flow, x)
    np.testing.assert_allclose(flow.bijector.deviation[1], 1.0)
    np.testing.assert_allclose(flow.bijector.inverse(tf.constant(x))[:, 1], 0.0, atol=1e-15)


def test_float32_that_hides_digits_is_a_warning(rng):
    seconds = np.stack([rng.normal(size=50), 1.7e9 + 3600.0 * rng.normal(size=50)], axis=1)
    with pytest.warns(UserWarning, match="in column 1 with a deviation of only .* steps of float32"):
        sn.adapt(flow_of(sn.Standardize.trainable(2), 2, tf.float32), seconds)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad, rng):
    x = rng.normal(size=[20, 3])
    x[5, 2] = bad
    flow = flow_of(sn.Standardize.trainable(3, dtype=tf.float64), 3)
    with pytest.raises(ValueError, match="cannot adapt to data that are not finite in column 2"):
        sn.adapt(flow, x)
    assert not sn.is_adapted(flow)
    with pytest.raises(ValueError, match="not finite in 1 of 20 examples, the first at index 5"):
        sn.FlowModel(flow).adapt(x)


@keras.saving.register_keras_serializable("tests")
def standardized_flow():
    return flow_of(
        tfb.Chain([sn.Standardize.trainable(2), sn.SelfNormDense.trainable(2, seed=1)]), 2, tf.float32
    )


def test_values_are_saved_and_not_trained(rng, tmp_path):
    x = (np.array([5.0, -300.0]) + np.array([0.1, 40.0]) * rng.normal(size=[64, 2])).astype(np.float32)
    model = sn.FlowModel.from_builder(standardized_flow)
    model.compile("sgd")
    with pytest.raises(ValueError, match="has a `Standardize` without initial values: call `adapt`"):
        model.fit(x, verbose=0)
    model.adapt(x)
    mean = model.distribution.bijector.bijectors[0].mean
    before = mean.numpy()
    model.fit(x, verbose=0)
    np.testing.assert_array_equal(mean, before)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-5)
    model.save(tmp_path / "flow.keras")
    model.export(tmp_path / "export")
    loaded, exported = (
        keras.models.load_model(tmp_path / "flow.keras"),
        tf.saved_model.load(tmp_path / "export"),
    )
    np.testing.assert_array_equal(loaded.log_prob(x), model.log_prob(x))
    np.testing.assert_allclose(exported.log_prob(x), model.log_prob(x), rtol=1e-5)


# From the documentation of `keras.layers.Normalization`: the data and the printed results.
@pytest.mark.parametrize(
    ("data", "given", "expected"),
    [
        ([[1.0], [2.0], [3.0], [4.0], [5.0]], [[1.0], [2.0], [3.0]], [[-1.4142135], [-0.70710677], [0.0]]),
        ([[0.0, 7.0, 4.0], [2.0, 9.0, 6.0]] * 2, [[0.0, 7.0, 4.0]], [[-1.0, -1.0, -1.0]]),
    ],
)
def test_the_examples_of_the_normalization_of_keras(data, given, expected):
    flow = flow_of(sn.Standardize.trainable(len(data[0])), len(data[0]), tf.float32)
    sn.adapt(flow, data)
    np.testing.assert_allclose(flow.bijector.inverse(tf.constant(given)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sn.Standardize([1.0], [1.0, 2.0]), ValueError, "must have one known shape"),
        (lambda: sn.Standardize(tf.ones([]), tf.ones([])), ValueError, "must have one known shape"),
        (lambda: sn.Standardize([1.0], [0.0]), ValueError, "`deviation` must be positive and finite"),
        (lambda: sn.Standardize([1.0], [np.nan]), ValueError, "`deviation` must be positive and finite"),
        (lambda: sn.Standardize([1.0], [1.0], tf.Variable(False)), TypeError, "must be variables too"),
        (lambda: sn.Standardize([1.0], [1.0]).inverse(tf.ones([3])), ValueError, r"expected \(..., 1\)"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
