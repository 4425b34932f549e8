"""What ConditionalFlowModel refuses, before any work, and what the errors say."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
X, Y = np.zeros([8, 3], np.float32), np.zeros([8, 2], np.float32)


def shift(condition):
    return tf.concat([condition[:, :2], condition[:, 1:]], axis=-1)


def affine():
    return sn.AffineCoupling(shift, num_conditioning=0, event_ndims=1)


def flow(bijector=None, size=2):
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [size]), bijector or affine())


def of_pairs():
    """A model whose embedding takes a label and numbers."""
    label, numbers = keras.Input([], dtype="int32", name="label"), keras.Input([3], name="numbers")
    merged = keras.layers.Concatenate()([keras.layers.Embedding(5, 2)(label), numbers])
    network = keras.Model({"label": label, "numbers": numbers}, keras.layers.Dense(3)(merged))
    return sn.ConditionalFlowModel(flow(), None, network)


@pytest.fixture(scope="module")
def model():
    model = sn.ConditionalFlowModel(flow(), condition_shape=3)
    model.compile("adam", run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def model_of_pairs():
    return of_pairs()


def with_value(array, value):
    array = array.copy()
    array[5, 1] = value
    return array


def data_set(*parts, size=4):
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


# Conditions and events, the kind of the error, and its message.
DATA = {
    "no condition": (
        (None, Y),
        ValueError,
        "`x` must be the conditions, float32 of shape .3,. each; got None",
    ),
    "no events": ((X, None), ValueError, "`y` must be the events; got None. .* conditions first"),
    "one condition": ((X[0], Y), ValueError, r"`x` has shape \(3,\); expected \(batch, 3\)"),
    "other conditions": (
        (X[:, :2], Y),
        ValueError,
        r"`x` has shape \(8, 2\); expected \(batch, 3\), for conditions",
    ),
    "other events": (
        (X, X),
        ValueError,
        r"`y` has shape \(8, 3\); expected a batch of events of shape \(2,\)",
    ),
    "exchanged": ((Y, X), ValueError, "`y` has shape"),
    "another length": ((X[:7], Y), ValueError, "`x` must have one condition an event, 8; got 7"),
    "text": ((X.astype(str), Y), TypeError, "`x` must be conditions of numbers; got dtype"),
    "complex": ((X.astype(complex), Y), TypeError, "`x` must be conditions of numbers; got dtype complex128"),
    "a dict": (({"x": X}, Y), TypeError, "`x` must be one array; got a dict"),
    "NaN": (
        (with_value(X, np.nan), Y),
        ValueError,
        "`x` has values that are not finite in 1 of 8 .* index 5",
    ),
    "NaN of events": ((X, with_value(Y, np.nan)), ValueError, "`y` has values that are not finite in 1 of 8"),
    "a data set and events": ((data_set(X, Y), Y), ValueError, "must hold the events"),
    "a data set of events": ((data_set(Y), None), ValueError, r"`x` must consist of \(conditions, events\)"),
    "a data set of four": (
        (data_set(X, Y, Y[:, 0], Y), None),
        ValueError,
        "`x` must consist of .* tuple of 4",
    ),
    "a data set of others": (
        (data_set(X[:, :2], Y), None),
        ValueError,
        r"`the conditions in x` has shape \(None, 2\)",
    ),
    "a data set of text": (
        (data_set(X.astype(str), Y), None),
        TypeError,
        "`the conditions in x` must be conditions of",
    ),
    "a data set of single ones": (
        (tf.data.Dataset.from_tensor_slices((X, Y)), None),
        ValueError,
        "single events of shape",
    ),
    "a data set with NaN": (
        (data_set(with_value(X, np.nan), Y), None),
        ValueError,
        "`x` has conditions that are not finite in batch 1 of the data set",
    ),
    "another length in a data set": (
        (tf.data.Dataset.from_tensors((X[:7], Y)), None),
        ValueError,
        "`x` has conditions that are not one an event in batch 0",
    ),
    "a generator with NaN": (
        (iter([(with_value(X, np.nan), Y)]), None),
        ValueError,
        "`the conditions in x` has values that are not finite.*batch 0",
    ),
    "a generator of events": ((iter([Y]), None), ValueError, r"`x` must consist of \(conditions, events\)"),
}


@pytest.mark.parametrize(("parts", "kind", "message"), DATA.values(), ids=DATA.keys())
def test_data_of_fit(model, parts, kind, message):
    if tf.is_tensor(parts[0]) or not hasattr(parts[0], "__next__"):
        with pytest.raises(kind, match=message):
            model.evaluate(*parts, verbose=0)
    with pytest.raises(kind, match=message):
        model.fit(*parts, verbose=0)


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
@pytest.mark.parametrize("name", ["no condition", "other conditions", "another length", "text"])
def test_data_of_one_batch(model, method, name):
    parts, kind, message = DATA[name]
    with pytest.raises(kind, match=message):
        getattr(model, method)(*parts)


@pytest.mark.parametrize(
    "network", [keras.Sequential([keras.Input([3]), keras.layers.Dense(5)]), lambda c: c[:, :1]]
)
def test_an_embedding_of_another_shape_than_the_couplings_take(network):
    couplings = sn.coupling_flow(2, condition_shape=8, num_layers=1, width=4)
    size = 1 if callable(network) and not isinstance(network, keras.Model) else 5
    message = rf"`embedding` must return conditions of shape \(8,\), .*`condition_shape`.*; got \({size},\)"
    with pytest.raises(ValueError, match=message):
        sn.ConditionalFlowModel(couplings, condition_shape=3, embedding=network)


def test_other_arguments_of_fit(model):
    with pytest.raises(ValueError, match="`class_weight` must be None: the data have no labels"):
        model.fit(X, Y, class_weight={0: 1.0})
    with pytest.raises(ValueError, match=r"`validation_data` must consist of \(conditions, events\)"):
        model.fit(X, Y, validation_data=Y)
    with pytest.raises(ValueError, match=r"`validation_data\[0\]` has shape \(8, 2\); expected .*conditions"):
        model.fit(X, Y, validation_data=(Y, Y))
    with pytest.raises(
        ValueError, match=r"`validation_data\[1\]` has shape \(8, 3\); expected a batch of events"
    ):
        model.fit(X, Y, validation_data=(X, X))
    with pytest.raises(ValueError, match="`sample_weight` has weights of shape"):
        model.fit(X, Y, sample_weight=np.ones(7))
    with pytest.raises(ValueError, match=r"`x` must consist of \(conditions, events\)"):
        model.predict(Y)
    with pytest.raises(ValueError, match=r"for conditions of shape \(3,\)"):
        model.predict((Y, Y))


CALLS = {
    "log_prob without": (lambda m: m.log_prob(Y), ValueError, "`condition` must be the conditions"),
    "sample without": (lambda m: m.sample(3), ValueError, "`condition` must be the conditions"),
    "encode without": (lambda m: m.encode(Y), ValueError, "`condition` must be the conditions"),
    "decode without": (lambda m: m.decode(Y), ValueError, "`condition` must be the conditions"),
    "call without": (lambda m: m(tf.zeros([8, 2])), ValueError, "`condition` must be the conditions"),
    "log_prob": (lambda m: m.log_prob(Y, X[:, :2]), ValueError, r"`condition` has shape \(8, 2\)"),
    "sample": (lambda m: m.sample(3, X[:, :2]), ValueError, r"`condition` has shape \(8, 2\)"),
    "sample of n": (lambda m: m.sample(-1, X), ValueError, "`n` must be an integer or a shape"),
    "another length": (
        lambda m: m.log_prob(Y, X[:7]),
        ValueError,
        "begin with the leading dimensions of the events",
    ),
    "events": (lambda m: m.log_prob(X, X), ValueError, r"`events` has shape \(8, 3\)"),
    "z": (lambda m: m.decode(X, X), ValueError, r"`z` has shape \(8, 3\)"),
    "text": (lambda m: m.log_prob(Y, X.astype(str)), TypeError, "`condition` must be conditions of numbers"),
    "adapt": (lambda m: m.adapt(Y, Y), ValueError, r"for conditions of shape \(3,\)"),
}


@pytest.mark.parametrize(("call", "kind", "message"), CALLS.values(), ids=CALLS.keys())
def test_calls(model, call, kind, message):
    with pytest.raises(kind, match=message):
        call(model)


LABELS = np.zeros(8, int)
PAIRS = {
    "an array": (
        X,
        ValueError,
        r"`condition` must be a dict with the keys \['label', 'numbers'\]; got ndarray",
    ),
    "a missing key": (
        {"label": LABELS},
        ValueError,
        r"keys \['label', 'numbers'\]; got the keys \['label'\]",
    ),
    "floats for labels": (
        {"label": X[:, 0], "numbers": X},
        TypeError,
        r"`condition\['label'\]` must be conditions of integers; got dtype float32",
    ),
    "another shape": (
        {"label": LABELS, "numbers": Y},
        ValueError,
        r"`condition\['numbers'\]` has shape \(8, 2\); expected .*conditions of shape \(3,\)",
    ),
}


@pytest.mark.parametrize(("condition", "kind", "message"), PAIRS.values(), ids=PAIRS.keys())
def test_conditions_of_several_arrays(model_of_pairs, condition, kind, message):
    with pytest.raises(kind, match=message):
        model_of_pairs.log_prob(Y, condition)
    with pytest.raises(kind, match=message.replace("`condition", "`x")):
        model_of_pairs.fit(condition, Y)


def networks_of(size):
    return keras.Sequential([keras.Input([size]), keras.layers.Dense(3)])


MADE = {
    "no distribution": (lambda: sn.ConditionalFlowModel(affine()), TypeError, "must be a TFP distribution"),
    "no latent": (
        lambda: sn.ConditionalFlowModel(tfd.Sample(tfd.Normal(0.0, 1.0), [2])),
        TypeError,
        "Only a tfd.TransformedDistribution",
    ),
    "a batch shape": (
        lambda: sn.ConditionalFlowModel(
            tfd.TransformedDistribution(tfd.Independent(tfd.Normal(tf.zeros([4, 2]), 1.0), 1), affine()), 3
        ),
        ValueError,
        "`distribution` must have no batch shape",
    ),
    "no layer takes one": (
        lambda: sn.ConditionalFlowModel(flow(tfb.Exp()), 3),
        ValueError,
        "takes a `condition`",
    ),
    "a builder without conditions": (
        lambda: sn.ConditionalFlowModel.from_builder(sn.dense_flow, event_shape=2),
        ValueError,
        "takes a `condition`",
    ),
    "an unknown shape": (
        lambda: sn.ConditionalFlowModel(flow()),
        ValueError,
        "`condition_shape` must be given",
    ),
    "no shape": (
        lambda: sn.ConditionalFlowModel(flow(), "a"),
        ValueError,
        "`condition_shape` must be a shape",
    ),
    "two shapes": (
        lambda: sn.ConditionalFlowModel(flow(), ((3,), (2,))),
        ValueError,
        "must be one shape without an embedding",
    ),
    "not the shape of the embedding": (
        lambda: sn.ConditionalFlowModel(flow(), 4, networks_of(5)),
        ValueError,
        r"must be as the inputs of the networks, float32 of shape \(5,\); got 4",
    ),
    "not the structure of the embedding": (
        lambda: sn.ConditionalFlowModel(flow(), {"a": 5}, networks_of(5)),
        ValueError,
        "must be as the inputs of the networks",
    ),
    "not callable": (
        lambda: sn.ConditionalFlowModel(flow(), 3, 3),
        TypeError,
        "`embedding` must be callable",
    ),
    "kwargs": (
        lambda: sn.ConditionalFlowModel(flow(), 3, None, 3),
        TypeError,
        "`bijector_kwargs` must be a function",
    ),
    "a shape that the layers do not take": (
        lambda: sn.ConditionalFlowModel(flow(), 7),
        ValueError,
        "`distribution` must sample and score",
    ),
    "a FlowModel of it": (lambda: sn.FlowModel(flow()), ValueError, "use a ConditionalFlowModel"),
}


@pytest.mark.parametrize(("make", "kind", "message"), MADE.values(), ids=MADE.keys())
def test_constructor(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_model_without_conditions_takes_none():
    model = sn.FlowModel(sn.dense_flow(2, num_layers=1, seed=1))
    for call in (lambda: model.log_prob(Y, X), lambda: model(Y, condition=X)):
        with pytest.raises(TypeError, match="argument"):
            call()


def test_labels_that_do_not_fit_into_the_dtype_are_refused():
    """A cast would make the label 1 of them."""
    model = of_pairs()
    condition = {"label": np.full([8], 2**32 + 1), "numbers": X}
    with pytest.raises(ValueError, match="must fit into int32; got values from 4294967297 to 4294967297"):
        model.log_prob(Y, condition)
    with pytest.raises(ValueError, match="must fit into int32"):
        model.fit(condition, Y)
