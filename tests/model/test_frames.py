"""Data frames go into the models by the names of their columns."""

import copy

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tfp_selfnorm as sn
from tfp_selfnorm import tables


@pytest.fixture
def frame(rng):
    return pd.DataFrame(rng.normal(size=[64, 2]) * [1.0, 5.0], columns=["a", "b"]).astype(np.float32)


def small_model():
    model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, num_layers=1, seed=1)
    model.compile("sgd", run_eagerly=True)
    return model


def conditional_model(event_shape=2):
    model = sn.ConditionalFlowModel.from_builder(
        sn.coupling_flow,
        event_shape=event_shape,
        condition_shape=2,
        num_layers=1,
        num_bins=2,
        width=4,
        seed=1,
    )
    model.compile("sgd", run_eagerly=True)
    return model


def test_the_columns_of_fit_are_those_of_every_method(frame, tmp_path):
    model, swapped = small_model(), frame[["b", "a"]]
    history = model.fit(frame, validation_data=swapped, verbose=0).history
    expected = model.log_prob(frame.to_numpy())
    assert history["val_nll"][0] == pytest.approx(-np.mean(expected), rel=1e-5)
    model.save(tmp_path / "flow.keras")
    for same in (model, keras.models.load_model(tmp_path / "flow.keras"), copy.deepcopy(model)):
        np.testing.assert_array_equal(same.log_prob(swapped), expected)
        np.testing.assert_allclose(same.predict(swapped, verbose=0), expected, rtol=1e-6)
        np.testing.assert_allclose(same.predict_on_batch(swapped), expected, rtol=1e-6)
        np.testing.assert_array_equal(same.encode(swapped), same.encode(frame.to_numpy()))
        np.testing.assert_allclose(same.reconstruct(swapped), frame, atol=1e-4)
        nll = same.evaluate(swapped, verbose=0, return_dict=True)["nll"]
        assert nll == pytest.approx(-np.mean(expected), rel=1e-5)
        assert same.test_on_batch(swapped, return_dict=True)["nll"] == pytest.approx(nll, rel=1e-5)
        same.train_on_batch(swapped)
        same.fit(swapped, validation_data=(swapped, None, np.ones(64)), verbose=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.rename(columns={"a": "A"}), ValueError, "columns 'a', 'b'; it lacks 'a' and adds 'A'"),
        (lambda f: f.drop(columns="a"), ValueError, "it lacks 'a'. Their order does not matter"),
        (lambda f: f.assign(c=1.0), ValueError, "it adds 'c'"),
        (
            lambda f: f.assign(a="x"),
            TypeError,
            "must be floating; got dtype object. These are not numeric: 'a' ",
        ),
    ],
)
def test_other_columns_are_refused_by_every_method(frame, change, error, message):
    model, bad = small_model(), change(frame)
    model.adapt(frame)
    for name, method in (
        ("x", model.fit),
        ("x", model.evaluate),
        ("x", model.predict),
        ("x", model.log_prob),
        ("x", model.encode),
        ("x", model.train_on_batch),
        ("data", model.adapt),
        ("validation_data", lambda x: model.fit(frame, validation_data=x)),
        ("validation_data", lambda x: model.fit(frame, validation_data=(x, None))),
    ):
        with pytest.raises(error, match=f"`{name}`.*{message}"):
            method(bad)


def test_columns_that_are_not_numeric_are_named_without_an_earlier_frame(frame):
    with pytest.raises(TypeError, match="`x` must be floating; got dtype object. These are not numeric: 'b'"):
        small_model().fit(frame.assign(b="x"))
    # Arrays, and frames whose columns have one name, are as before.
    model = small_model()
    model.fit(frame.set_axis(["a", "a"], axis=1), verbose=0)
    model.fit(frame.to_numpy(), verbose=0)
    with pytest.raises(ValueError, match="not finite in 64 of 64"):
        model.fit(frame.assign(a=np.nan), verbose=0)
    assert "columns" not in model.get_config()
    model.fit(frame.rename(columns={"a": "c"}), verbose=0)
    assert model.get_config()["columns"] == {"events": ["c", "b"]}


def test_conditions_and_events_have_their_own_columns(frame, tmp_path):
    known = frame.rename(columns={"a": "c", "b": "d"})
    model = conditional_model()
    model.fit(known, frame, validation_data=(known[["d", "c"]], frame[["b", "a"]]), verbose=0)
    expected = model.log_prob(frame.to_numpy(), known.to_numpy())
    model.save(tmp_path / "flow.keras")
    for same in (model, keras.models.load_model(tmp_path / "flow.keras")):
        turned = frame[["b", "a"]], known[["d", "c"]]
        np.testing.assert_array_equal(same.log_prob(*turned), expected)
        np.testing.assert_array_equal(same.encode(*turned), same.encode(frame.to_numpy(), known.to_numpy()))
        np.testing.assert_allclose(same.predict(turned[::-1], verbose=0), expected, rtol=1e-6)
        nll = same.evaluate(*turned[::-1], verbose=0, return_dict=True)["nll"]
        assert nll == pytest.approx(-np.mean(expected), rel=1e-5)
        samples = (same.sample(2, condition=c, seed=1) for c in (known, turned[1]))
        np.testing.assert_array_equal(next(samples), next(samples))
        with pytest.raises(ValueError, match="`condition` must have the columns 'c', 'd'; it lacks 'c', 'd'"):
            same.sample(2, condition=frame)
        with pytest.raises(ValueError, match="`y` must have the columns 'a', 'b'; it lacks"):
            same.evaluate(known, known)
        with pytest.raises(ValueError, match=r"`x\[0\]` must have the columns 'c', 'd'; it lacks"):
            same.predict((frame, frame))


def test_the_columns_of_a_flow_of_a_table(rng, tmp_path):
    frame = pd.DataFrame({"n": rng.integers(0, 4, size=80), "x": rng.lognormal(size=80)})
    columns = tables.prepare(frame, {"x": "positive"})
    model = sn.FlowModel.from_builder(
        sn.dense_flow, event_shape=2, num_layers=1, seed=1, preprocessing=columns.preprocessing
    )
    model.compile("sgd", run_eagerly=True)
    model.save(tmp_path / "flow.keras")
    noisy = columns.dequantize(frame, seed=1).numpy()
    good = pd.DataFrame(noisy, columns=["n", "x"])
    for same in (model, keras.models.load_model(tmp_path / "flow.keras")):
        expected = same.log_prob(noisy)
        np.testing.assert_array_equal(same.log_prob(good[["x", "n"]]), expected)
        with pytest.raises(ValueError, match="without noise in the integer columns 'n'. Give `columns.deq"):
            same.fit(frame, verbose=0)
        for bad, message in (
            (good.drop(columns="n"), "`x` must have the columns 'n', 'x'; it lacks 'n'"),
            (good.assign(x=-1.0), "The column 'x' must be above 0"),
            (good.assign(x=np.nan), "The column 'x' has nan in row 0"),
        ):
            with pytest.raises(ValueError, match=message):
                same.log_prob(bad)
        same.fit(good[["x", "n"]], verbose=0)
        # Arrays carry no names, and are as they are.
        same.log_prob(tf.constant(noisy))


def test_bools_beside_floats_are_numbers(frame):
    """`pandas.get_dummies` makes such columns."""
    model, columns = small_model(), ["a", "b"]
    mixed = pd.DataFrame({"a": frame.iloc[:, 0] > 0.0, "b": frame.iloc[:, 1]})
    expected = model.log_prob(mixed.astype("float32")).numpy()
    model.fit(mixed.astype("float32"), epochs=0, verbose=0)
    np.testing.assert_array_equal(model.log_prob(mixed[columns[::-1]]), expected)
    np.testing.assert_allclose(model.predict(mixed, verbose=0), expected, rtol=1e-6)
    with pytest.raises(TypeError, match="`x` must be floating"):
        model.log_prob(mixed.assign(b=1))
