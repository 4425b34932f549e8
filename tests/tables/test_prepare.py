"""The kinds that `prepare` chooses, what it says of them, and the tables that it refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest

from tfp_selfnorm import tables
from tfp_selfnorm.tables import HeavyTailed, Integer, Periodic, Positive, Real


def chosen(values, **options):
    return tables.prepare({"x": values}, **options).kinds[0]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rng: rng.normal(size=1000), Real()),
        (lambda rng: 1000.0 + rng.normal(size=1000), Real()),
        (lambda rng: rng.laplace(size=2000), Real()),
        (lambda rng: rng.lognormal(size=1000), Positive()),
        (lambda rng: np.append(rng.lognormal(sigma=0.8, size=1000), 0.0), Real()),
        (lambda rng: rng.standard_t(1.0, size=1000), HeavyTailed),
        (lambda rng: rng.integers(1, 6, size=1000), Integer(1, 5)),
        (lambda rng: rng.integers(0, 2, size=1000).astype(bool), Integer(0, 1)),
        (lambda rng: rng.integers(1, 6, size=1000).astype(float), Integer(1, 5)),
        (lambda rng: rng.integers(18, 90, size=1000), Integer()),
        (lambda rng: rng.geometric(0.02, size=1000) - 1, Integer(low=0)),
        (lambda rng: rng.integers(10_000, 90_000, size=1000), Real()),
        (lambda rng: np.array([0, 3, 400] * 50), Integer()),
    ],
)
def test_the_kind_is_that_of_the_data(make, expected, rng):
    kind = chosen(make(rng))
    assert kind == expected if isinstance(expected, tables.kinds.Kind) else isinstance(kind, expected)


def test_given_kinds_come_first_and_print_says_what_and_why(rng):
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 90, size=500),
            "income": rng.lognormal(10.0, 1.0, size=500),
            "share": rng.beta(2.0, 3.0, size=500),
            "angle": rng.uniform(0.0, 360.0, size=500),
        }
    )
    kinds = {"share": tables.Bounded(0, 1), "angle": Periodic(360), "age": "real"}
    columns = tables.prepare(frame, kinds)
    assert columns.kinds == (Real(), Positive(), tables.Bounded(0, 1), Periodic(360))
    assert columns.event_size == 4
    text = str(columns).splitlines()
    assert text[0] == "4 columns in float32:"
    assert text[1].split() == ["age", "Real()", "given"]
    assert "income  Positive(low=0.0)" in text[2]
    assert "skewness" in text[2]


@pytest.mark.filterwarnings("error")
def test_times_in_seconds_get_float64(rng):
    frame = {"time": 1.7e9 + 3600.0 * rng.uniform(size=100), "x": rng.normal(size=100)}
    columns = tables.prepare(frame)
    assert columns.dtype == "float64"
    assert columns.to_array(frame).dtype == np.float64
    latents = columns.preprocessing.inverse(columns.to_array(frame)).numpy()
    time = frame["time"]
    np.testing.assert_allclose(latents[:, 0], (time - time.mean()) / time.std(), atol=1e-6)
    # The time of the day of such a number has lost its digits too.
    assert tables.prepare(frame, {"time": Periodic(86400)}).dtype == "float64"
    assert tables.prepare({"x": frame["x"]}).dtype == "float32"


def test_float32_that_hides_digits_is_a_warning(rng):
    time = 1.7e9 + 3600.0 * rng.uniform(size=100)
    with pytest.warns(UserWarning, match="The column 'time' has a spread of only .* steps of float32"):
        assert tables.prepare({"time": time}, dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("positive", 1e-50),
        (Positive(1e4), 1e4 + 1e-4),
        ("real", 1e60),
        (Integer(low=0), 2.0**40 + 1.0),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_value_that_float32_does_not_hold_makes_the_dtype_float64(kind, value, rng):
    x = np.append(getattr(kind, "low", 0.0) + np.floor(rng.lognormal(8.0, 2.0, size=100)) + 1.0, value)
    columns = tables.prepare({"x": x}, {"x": kind})
    assert columns.dtype == "float64"
    latents = columns.preprocessing.inverse(columns.dequantize({"x": x}, seed=1))
    assert np.isfinite(latents).all()
    np.testing.assert_allclose(columns.to_dict(columns.dequantize({"x": x}))["x"], x, rtol=1e-15)


def test_digits_that_float64_hides_are_a_warning():
    with pytest.warns(UserWarning, match="'t' has a spread of only .* steps of float64"):
        tables.prepare({"t": 1.7e18 + 1e3 * np.arange(100.0)})


@pytest.mark.filterwarnings("error")
def test_values_whose_squares_overflow(rng):
    assert isinstance(chosen(np.exp(np.append(100.0 * rng.normal(size=100), 500.0))), Positive)
    with pytest.raises(ValueError, match="'x' has values that are too large"):
        tables.prepare({"x": 1e300 * rng.normal(size=100)})


def test_a_column_that_does_not_vary_is_a_warning():
    with pytest.warns(UserWarning, match="The columns 'x' do not vary. They get a deviation of 1"):
        columns = tables.prepare({"x": [0.3] * 9, "y": np.arange(9.0)})
    assert columns.deviations[0] == 1.0


def test_integers_of_pandas_without_missing_values_are_integers():
    frame = pd.DataFrame({"x": pd.array([1, 2, 3, 2], dtype="Int64"), "y": pd.array([True, False] * 2)})
    assert tables.prepare(frame).kinds == (Integer(1, 3), Integer(0, 1))


def frame_of(**columns):
    return pd.DataFrame({"x": np.arange(4.0), **columns})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: np.zeros([3, 2]), TypeError, "`table` must be a data frame, or a dict .*; got ndarray"),
        (dict, ValueError, "`table` has no columns"),
        (lambda: pd.DataFrame(np.zeros([3, 2]), columns=["a", "a"]), ValueError, "of one name: a"),
        (
            lambda: frame_of(s=list("abcd")),
            TypeError,
            "These are not numeric: 's' .*category.*ConditionalFlowModel",
        ),
        (lambda: frame_of(c=pd.Categorical(list("aabb"))), TypeError, r"'c' \(category, 'a' in row 0\)"),
        (lambda: frame_of(p=["1.5", "12,50", "2", "3"]), TypeError, "'12,50' in row 1.*pandas.to_numeric"),
        (lambda: frame_of(p=["1.5", "12", "2", "3"]), TypeError, "'p' .*numbers as text"),
        (lambda: frame_of(p=[None, "1,5", "2", "3"]), TypeError, "'1,5' in row 1"),
        (lambda: {"x": None}, TypeError, r"'x' \(object\)"),
        (lambda: frame_of(p=[True, 1, None, {}]), TypeError, r"'p' \(object\)"),
        (lambda: frame_of(t=pd.date_range("2020", periods=4)), TypeError, "'t' .*Dates and times become"),
        (lambda: {"x": ["a", "b"]}, TypeError, "'x'"),
        (lambda: {"x": [[1.0], [1.0, 2.0]]}, TypeError, "'x' .rows of several lengths"),
        (lambda: frame_of(y=[1.0, np.nan, 2.0, np.nan]), ValueError, "'y' has nan in row 1, and 2 values"),
        (lambda: frame_of(y=pd.array([1, 2, None, 3], dtype="Int64")), ValueError, "'y' has nan in row 2"),
        (lambda: frame_of(y=[1.0, np.inf, 2.0, 3.0]), ValueError, "'y' has inf in row 1"),
        (lambda: {"x": np.zeros(3), "y": np.zeros(4)}, ValueError, "vectors of one length; 'x' has shape"),
        (lambda: {"x": np.zeros([3, 1])}, ValueError, "vectors of one length"),
        (lambda: {"x": np.zeros(0)}, ValueError, "The table has no rows"),
        (lambda: {"x": np.ma.masked_array([1, 2, 3], [0, 1, 0])}, ValueError, "'x' has nan in row 1"),
    ],
)
def test_tables_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        tables.prepare(make())


@pytest.mark.parametrize(
    ("kinds", "error", "message"),
    [
        (["x"], TypeError, "`kinds` must be a dict .*; got list"),
        ({"z": "real"}, ValueError, "`kinds` names the column 'z', which `table` lacks"),
        ({"x": "normal"}, ValueError, r"`kinds\['x'\]` must be 'real', .*Periodic\(24\)`; got 'normal'"),
        ({"x": 3}, ValueError, r"`kinds\['x'\]` must be 'real', .*; got 3"),
        ({"x": tables.kinds.Kind()}, ValueError, r"`kinds\['x'\]` must be 'real', .*; got Kind\(\)"),
        ({"x": "bounded"}, ValueError, r"`tables.Bounded\(low=..., high=...\)`; got 'bounded'"),
        ({"x": Periodic}, TypeError, r"an object; got the class Periodic. Call it: Periodic\(period=...\)"),
        ({"x": HeavyTailed}, TypeError, r"got the class HeavyTailed. Call it: HeavyTailed\(\)"),
        ({"x": "periodic"}, ValueError, r"`tables.Periodic\(period=...\)`; got 'periodic'"),
        ({"x": "positive"}, ValueError, "The column 'x' must be above 0, as .*; got 0 in row 0, and 1 such"),
        ({"x": tables.Bounded(0, 2)}, ValueError, "must be from 0 to 2, as .*; got 3 in row 3"),
        ({"x": Integer(0, 2)}, ValueError, "must be from 0 to 2, as .*; got 3 in row 3"),
        ({"x": Integer(low=1)}, ValueError, "must be 1 or more, as .*; got 0 in row 0"),
    ],
)
def test_kinds_that_are_refused(kinds, error, message):
    with pytest.raises(error, match=message):
        tables.prepare({"x": np.arange(4.0)}, kinds)


def test_bad_dtype():
    with pytest.raises(TypeError, match="`dtype` must be float32 or float64"):
        tables.prepare({"x": np.arange(4.0)}, dtype="int32")


def test_a_value_that_many_rows_share_is_named(rng):
    tips = np.where(rng.random(200) < 0.4, 0.0, rng.lognormal(size=200))
    share = round(100 * np.mean(tips == 0.0))
    with pytest.warns(
        UserWarning, match=rf"^{share} % of the values of 'tip' are 0. A value has a probability"
    ):
        tables.prepare({"tip": tips, "stars": rng.integers(1, 6, size=200)})


def test_few_equal_values_are_no_matter(rng, recwarn):
    tables.prepare({"a": [1.5, 1.5, 2.25, 3.0], "b": np.append(rng.normal(size=195), [0.0] * 5)[:4]})
    tables.prepare({"b": np.append(rng.normal(size=195), [0.0] * 5)})
    assert not recwarn.list


def test_whole_hours_need_noise(rng):
    hours = rng.integers(0, 24, size=500)
    with pytest.warns(UserWarning, match="'h' has whole numbers alone.* Add noise from U"):
        tables.prepare({"h": hours}, {"h": Periodic(24)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables.prepare({"h": hours + rng.uniform(size=500)}, {"h": Periodic(24)})
        tables.prepare({"h": hours})
