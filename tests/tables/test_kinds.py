"""The kinds of columns: their densities, against scipy, and their bad parameters."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm import tables

tfd = tfp.distributions


def log_density(kind, values, data=None):
    """The log density of values of one column whose latent is standard normal."""
    columns = tables.prepare({"x": values if data is None else data}, {"x": kind}, dtype=tf.float64)
    normal = tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), tf.ones([], tf.float64)), [1])
    flow = tfd.TransformedDistribution(normal, columns.preprocessing)
    return flow.log_prob(np.reshape(values, [-1, 1])).numpy(), columns


def test_real_columns_have_the_density_of_their_gaussian(rng):
    x = 1e6 + 1e-3 * rng.normal(size=200)
    expected = stats.norm.logpdf(x, x.mean(), x.std())
    np.testing.assert_allclose(log_density("real", x)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("low", [0.0, -3.0])
def test_positive_columns_are_log_normal(low, rng):
    x = low + rng.lognormal(2.0, 1.5, size=200)
    logs = np.log(x - low)
    expected = stats.lognorm.logpdf(x, s=logs.std(), loc=low, scale=np.exp(logs.mean()))
    np.testing.assert_allclose(log_density(tables.Positive(low), x)[0], expected, rtol=1e-9)


def test_bounded_columns_are_logit_normal_and_finite_at_both_ends(rng):
    x = np.concatenate([[10.0, 30.0], rng.uniform(10.0, 30.0, size=200)])
    width = 20.0 / (1.0 - 2e-6)
    share = (x - 10.0) / width + 1e-6
    logits = np.log(share) - np.log1p(-share)
    expected = stats.norm.logpdf(logits, logits.mean(), logits.std())
    expected -= np.log(width * share * (1.0 - share))
    values, columns = log_density(tables.Bounded(10.0, 30.0), x)
    np.testing.assert_allclose(values, expected, rtol=1e-8)
    outside = columns.to_dict([[9.9999], [30.0001], [12.0]])["x"]
    np.testing.assert_array_equal(outside, [10.0, 30.0, 12.0])
    single = columns.preprocessing.copy(columns=tables.prepare({"x": x}, {"x": tables.Bounded(10, 30)}))
    assert np.isfinite(single.inverse(tf.constant([[10.0], [30.0]]))).all()


def test_heavy_tails_are_johnsons_distribution(rng):
    """asinh of a standardised number is normal in the S_U distribution of Johnson (1949)."""
    x = stats.t.rvs(1.5, loc=3.0, scale=2.0, size=400, random_state=1)
    first, center, third = np.quantile(x, [0.25, 0.5, 0.75])
    latents = np.arcsinh((x - center) / (third - first))
    mean, deviation = latents.mean(), latents.std()
    expected = stats.johnsonsu.logpdf(
        x, a=-mean / deviation, b=1.0 / deviation, loc=center, scale=third - first
    )
    values, columns = log_density("heavy_tailed", x)
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    np.testing.assert_allclose([columns.kinds[0].center, columns.kinds[0].scale], [center, third - first])
    # Outliers of a hundred deviations leave the rest where it is.
    assert np.abs(x).max() > 300.0 > 30.0 * np.abs(latents).max()
    assert values.mean() > stats.norm.logpdf(x, x.mean(), x.std()).mean() + 0.5


@pytest.mark.parametrize(
    ("kind", "logarithm"),
    [(tables.Integer(), None), (tables.Integer(low=2), np.log), (tables.Integer(2, 9), "logit")],
)
def test_integers_with_noise(kind, logarithm, rng):
    """The density of the dequantised column, by the change of variables, and samples rounded down."""
    x = rng.integers(2, 10, size=300)
    columns = tables.prepare({"x": x}, {"x": kind}, dtype=tf.float64)
    noisy = columns.dequantize({"x": x}, seed=1).numpy()[:, 0]
    np.testing.assert_array_equal(np.floor(noisy), x)
    np.testing.assert_allclose(np.mean(noisy - x), 0.5, atol=0.05)
    assert (noisy > x).all()
    share = (noisy - 2.0) / 8.0 * (1.0 - 2e-6) + 1e-6
    latents = {
        None: lambda: noisy,
        np.log: lambda: np.log(noisy - 2.0),
        "logit": lambda: np.log(share / (1.0 - share)),
    }
    slopes = {
        None: lambda: 1.0,
        np.log: lambda: noisy - 2.0,
        "logit": lambda: 8.0 / (1.0 - 2e-6) * share * (1.0 - share),
    }
    (mean,), (deviation,) = columns.means, columns.deviations
    expected = stats.norm.logpdf(latents[logarithm](), mean, deviation) - np.log(slopes[logarithm]())
    normal = tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), tf.ones([], tf.float64)), [1])
    flow = tfd.TransformedDistribution(normal, columns.preprocessing)
    np.testing.assert_allclose(flow.log_prob(noisy[:, None]), expected, rtol=1e-7)
    np.testing.assert_allclose(latents[logarithm]().mean(), mean, atol=0.2 * deviation)
    found = columns.to_dict(flow.sample(1000, seed=1))["x"]
    assert found.dtype == np.int64
    assert found.min() >= (-30 if logarithm is None else 2)
    if kind.high is not None:
        assert found.max() <= 9


def test_the_noise_bounds_the_probability_of_whole_numbers():
    """E log q(k + u) is at most log P(k), and equals it where the density is flat."""
    columns = tables.prepare({"x": np.arange(8)}, {"x": tables.Integer(0, 7)}, dtype=tf.float64)
    normal = tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), tf.ones([], tf.float64)), [1])
    flow = tfd.TransformedDistribution(normal, columns.preprocessing)
    fine = (np.arange(4000) + 0.5) / 4000
    for k in range(8):
        log_prob = flow.log_prob((k + fine)[:, None]).numpy()
        assert log_prob.mean() <= np.log(np.mean(np.exp(log_prob))) + 1e-12
    total = np.concatenate([np.exp(flow.log_prob((k + fine)[:, None])) for k in range(8)]).mean() * 8
    np.testing.assert_allclose(total, 1.0, atol=1e-3)


# rdt issue 874: a whole column came back from a transformer with fractions.
def test_whole_columns_come_back_whole():
    data = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    columns = tables.prepare({"col 1": data})
    rows = columns.dequantize({"col 1": data}, seed=1)
    np.testing.assert_array_equal(columns.to_dict(rows)["col 1"], data)
    latents = columns.preprocessing.inverse(rows)
    back = columns.to_dict(columns.preprocessing.forward(tf.identity(latents)))["col 1"]
    np.testing.assert_array_equal(back, data)
    assert back.dtype == np.int64


def test_float32_keeps_whole_numbers_apart_from_their_ends():
    columns = tables.prepare(
        {"x": [100, 101, 105, 190, 400]}, {"x": tables.Integer(low=100)}, dtype="float32"
    )
    rows = columns.dequantize(np.full([200_000, 1], 100.0), seed=1)
    assert np.isfinite(columns.preprocessing.inverse(rows)).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tables.Positive("a"), TypeError, "`low` must be a number"),
        (lambda: tables.Positive(np.inf), ValueError, "`low` must be finite"),
        (lambda: tables.Bounded(0.0, np.inf), ValueError, "`high` must be finite"),
        (lambda: tables.Bounded(1.0, 1.0), ValueError, "`high` must be larger than `low`, 1.0; got 1.0"),
        (lambda: tables.Bounded(0.0, 1.0, margin=0.5), ValueError, r"`margin` must be in \(0, 0.5\)"),
        (lambda: tables.HeavyTailed(scale=0.0), ValueError, "`scale` must be positive"),
        (lambda: tables.Integer(low=0.5), ValueError, "`low` must be"),
        (lambda: tables.Integer(high=3), ValueError, "`high` must be at least `low`, None; got 3"),
        (lambda: tables.Integer(5, 3), ValueError, "`high` must be at least `low`, 5; got 3"),
        (lambda: tables.Periodic(0), ValueError, "`period` must be positive"),
        (lambda: tables.Periodic(360, low=np.nan), ValueError, "`low` must be finite"),
        (lambda: tables.ColumnMap({"x": 1}), TypeError, "`columns` must be the Columns that"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_each_kind_is_a_value_that_a_file_keeps():
    for kind in (
        tables.Real(),
        tables.Positive(2),
        tables.Bounded(0, 1),
        tables.HeavyTailed(1, 2),
        tables.Integer(0, 3),
        tables.Periodic(24),
    ):
        encoded = sn.model.serialization.encode(kind, "kind")
        assert sn.model.serialization.decode(encoded, "kind") == kind


@pytest.mark.parametrize("kind", [tables.Bounded(1990, 2020), tables.Bounded(-1, 0, margin=1e-20)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_leaves_the_ends_of_a_narrow_interval_inside(kind, dtype, rng):
    ends = [[kind.low], [kind.high]]
    x = np.append(rng.uniform(kind.low, kind.high, size=100), ends)
    columns = tables.prepare({"x": x}, {"x": kind}, dtype)
    assert np.isfinite(columns.preprocessing.inverse(tf.constant(ends, dtype))).all()


def test_samples_of_integers_without_a_bound_stay_integers_above_the_lowest():
    values = tables.Integer(low=0).as_data(np.array([1e30, np.inf, 3.5, -1.0], "float32"))
    assert values[0] == values[1] > 2**62
    assert list(values[2:]) == [3, 0]
    assert list(tables.Integer(low=0).as_data(np.array([-1, 2]))) == [0, 2]
