"""From tables to arrays and back, by the names of columns."""

import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfp_selfnorm import tables


@pytest.fixture
def table(rng):
    return {
        "count": rng.integers(0, 5, size=50),
        "price": rng.lognormal(size=50),
        "angle": rng.uniform(-180.0, 180.0, size=50),
        "x": rng.normal(size=50),
    }


@pytest.fixture
def columns(table):
    return tables.prepare(table, {"angle": tables.Periodic(360, low=-180)})


def test_columns_are_taken_by_name(table, columns):
    expected = np.stack(list(table.values()), axis=1).astype(np.float32)
    frame = pd.DataFrame(table)
    for other in (table, frame, frame[["x", "angle", "price", "count"]], dict(reversed(table.items()))):
        array = columns.to_array(other)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.drop(columns="x"), ValueError, "must have the columns 'count', .*; it lacks 'x'"),
        (lambda f: f.assign(id=1), ValueError, "it adds 'id'"),
        (lambda f: f.rename(columns={"x": "X"}), ValueError, "it lacks 'x' and adds 'X'"),
        (lambda f: f.assign(x=None), TypeError, "These are not numeric: 'x'"),
        (lambda f: f.assign(x=np.nan), ValueError, "'x' has nan in row 0, and 50 values"),
        (lambda f: f.assign(price=-1.0), ValueError, "'price' must be above 0"),
        (lambda f: f.assign(count=5), ValueError, "'count' must be from 0 to 4"),
        (lambda f: f.to_numpy(), TypeError, "`table` must be a data frame"),
    ],
)
def test_tables_that_do_not_fit(table, columns, change, error, message):
    with pytest.raises(error, match=message):
        columns.to_array(change(pd.DataFrame(table)))


def test_a_frame_comes_back(table, columns):
    frame = columns.to_frame(columns.dequantize(table, seed=1))
    assert list(frame.columns) == list(table)
    assert frame["count"].dtype == np.int64
    for name, values in table.items():
        np.testing.assert_allclose(frame[name], values, rtol=1e-6, atol=1e-5)
    turned = columns.to_dict([[[0.5, 1.0, 540.0, 0.0], [0.5, 1.0, 180.0 - 1e-9, 0.0]]])
    np.testing.assert_allclose(turned["angle"], [[-180.0, 180.0]], atol=1e-6)
    with pytest.raises(ValueError, match=r"`samples` must have 4 columns, .*; got shape \(5, 3\)"):
        columns.to_frame(np.zeros([5, 3]))
    with pytest.raises(ValueError, match=r"must be a table, \(number, 4\); got shape \(5, 2, 4\)"):
        columns.to_frame(np.zeros([5, 2, 4]))


def test_dicts_need_no_pandas(table, columns, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = columns.dequantize(table)
    assert list(columns.to_dict(rows)) == list(table)
    with pytest.raises(ImportError):
        columns.to_frame(rows)


def test_noise_is_new_in_each_epoch_and_only_in_integers(table, columns):
    raw = columns.to_array(table)
    plain = tf.data.Dataset.from_tensor_slices(raw).batch(25)
    data = columns.dequantize_dataset(plain, seed=1)
    first, second = (np.concatenate(list(data)) for _ in range(2))
    pairs = columns.dequantize_dataset(tf.data.Dataset.zip(plain, plain), seed=1, index=1)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in pairs]), first)
    np.testing.assert_array_equal(np.concatenate([known for known, _ in pairs]), raw)
    assert (first[:, 0] != second[:, 0]).all()
    np.testing.assert_array_equal(first[:, 1:], raw[:, 1:])
    np.testing.assert_array_equal(np.floor(first[:, 0]), raw[:, 0])
    same = (columns.dequantize(raw, seed=3) for _ in range(2))
    np.testing.assert_array_equal(next(same), next(same))
    with pytest.raises(ValueError, match=r"`table` must have 4 columns; got shape \(5, 3\)"):
        columns.dequantize(np.zeros([5, 3]))


def test_periodic_columns_are_not_for_the_layers_of_a_builder(columns):
    with pytest.raises(ValueError, match="not for periodic columns, 'angle': .* Use `tables.table_flow"):
        _ = columns.preprocessing


def test_columns_keep_their_order_around_the_kinds(table):
    """Latents have the order of the columns, whatever the order of the kinds, and mean 0 and deviation 1."""
    columns = tables.prepare(table, {"angle": "real", "x": "real"}, dtype=tf.float64)
    array = columns.to_array(table)
    latents = columns.preprocessing.inverse(array).numpy()
    logs = np.log(table["price"])
    np.testing.assert_allclose(latents[:, 1], (logs - logs.mean()) / logs.std(), rtol=1e-9)
    for i, name in ((2, "angle"), (3, "x")):
        expected = (table[name] - table[name].mean()) / table[name].std()
        np.testing.assert_allclose(latents[:, i], expected, rtol=1e-9)
    np.testing.assert_allclose(columns.preprocessing.forward(tf.constant(latents)), array, atol=1e-9)
