"""Subclasses with a loss or steps of their own, which get the data as Keras gives them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_fit_data import Batches, X, data_set, gaussian, generator
from versions import keras_3_12

import tfp_selfnorm as sn

# Events that differ by less than float32 keeps.
WIDE = X.astype(np.float64) + 1e9
FORMS = {
    "array": lambda: WIDE,
    "tensor": lambda: tf.constant(WIDE),
    "data set": lambda: data_set(WIDE),
    "generator": lambda: generator(WIDE),
    "PyDataset": lambda: Batches(WIDE),
}


def events_of(data):
    return keras.utils.unpack_x_y_sample_weight(data)[0]


class Means:
    """Steps that return the mean of the events that they get, as their figure."""

    def train_step(self, data):
        return {"mean": tf.reduce_mean(events_of(data))}

    def test_step(self, data):
        return {"mean": tf.reduce_mean(events_of(data))}

    def predict_step(self, data):
        return tf.identity(events_of(data))


class MixedIn(Means, sn.FlowModel):
    """Its steps come from another class."""


class Steps(sn.FlowModel):
    """Its own steps."""

    train_step, test_step, predict_step = Means.train_step, Means.test_step, Means.predict_step


class StepsOfTheFlow(Steps):
    """Its steps also take the flow's own."""

    def train_step(self, data):
        return super().train_step(data) | sn.FlowModel.train_step(self, data)

    def test_step(self, data):
        return super().test_step(data) | sn.FlowModel.test_step(self, data)


class CompiledSteps(Steps):
    train_step = tf.function(Means.train_step)


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*", "ignore:.*ran out of data.*")
@pytest.mark.parametrize("kind", [Steps, StepsOfTheFlow, CompiledSteps, MixedIn])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_own_steps_see_float64_events_as_fed(kind, form):
    model = kind(gaussian(tf.float64))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=kind is not CompiledSteps)
    history = model.fit(form(), batch_size=12, shuffle=False, validation_data=form(), verbose=0).history
    is_array = hasattr(form(), "shape")
    last = WIDE if is_array else WIDE[10:]
    np.testing.assert_allclose([*history["mean"], *history["val_mean"]], last.mean(), rtol=1e-14)
    np.testing.assert_array_equal(model.predict(form(), batch_size=5, verbose=0), WIDE)
    if is_array:
        for method in (model.train_on_batch, model.test_on_batch):
            np.testing.assert_allclose(method(form(), return_dict=True)["mean"], WIDE.mean(), rtol=1e-14)
        np.testing.assert_array_equal(model.predict_on_batch(form()), WIDE)


# The labels and the weights of the last batch.
SEEN = []


class OwnLoss(sn.FlowModel):
    """Its loss keeps the labels and the weights of the last batch."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        SEEN[:] = keras.tree.map_structure(np.asarray, (y, sample_weight))
        return super().compute_loss(x, y, y_pred, sample_weight, training)


class OwnTrainStep(sn.FlowModel):
    def train_step(self, data):
        SEEN[:] = keras.tree.map_structure(np.asarray, keras.utils.unpack_x_y_sample_weight(data)[1:])
        return super().train_step(data)


class OwnTestStep(sn.FlowModel):
    def test_step(self, data):
        SEEN[:] = keras.tree.map_structure(np.asarray, keras.utils.unpack_x_y_sample_weight(data)[1:])
        return super().test_step(data)


STREAMS = {"data set": data_set, "generator": generator, "PyDataset": Batches}
KINDS = [(OwnLoss, "fit"), (OwnLoss, "evaluate"), (OwnTrainStep, "fit"), (OwnTestStep, "evaluate")]
INTEGERS, FLOATS = np.arange(5), np.linspace(0.0, 1.0, 10, dtype=np.float32).reshape(5, 2)
LABELS = {
    "integers": INTEGERS,
    "floats": FLOATS,
    "booleans": INTEGERS > 2,
    "complex": FLOATS + 1j,
    "dict": {"class": INTEGERS, "place": FLOATS},
    "tuple": (INTEGERS, FLOATS),
}


def seen_by(kind, method, *data, **options):
    model = kind(gaussian())
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    if method == "fit":
        options["shuffle"] = False
    getattr(model, method)(*data, verbose=0, **options)
    return tuple(SEEN)


def check_same(found, expected):
    keras.tree.assert_same_structure(found, expected)
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(one, other, strict=other is not None)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_labels_of_every_kind_reach_an_own_loss(labels):
    check_same(seen_by(OwnLoss, "fit", X[:5], labels)[0], labels)
    check_same(seen_by(OwnLoss, "fit", X[:5], validation_data=(X[:5], labels))[0], labels)


@pytest.mark.parametrize("labels", [INTEGERS, LABELS["dict"]], ids=["array", "dict"])
@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_labels_reach_own_steps_and_losses(kind, method, labels):
    weights = np.arange(1.0, 6.0, dtype=np.float32)
    found, found_weights = seen_by(kind, method, X[:5], labels, sample_weight=weights)
    check_same(found, labels)
    assert all(np.array_equal(part, weights) for part in keras.tree.flatten(found_weights))


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*", "ignore:.*ran out of data.*")
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS.keys())
def test_labels_of_streams_reach_an_own_loss(make):
    x, weights = X[:5], np.arange(1.0, 6.0, dtype=np.float32)
    check_same(seen_by(OwnLoss, "fit", make(x, INTEGERS)), (INTEGERS, None))
    check_same(seen_by(OwnLoss, "evaluate", make(x, FLOATS, weights)), (FLOATS, weights))


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
def test_labels_of_one_batch_reach_an_own_loss(method):
    model = OwnLoss(gaussian())
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    getattr(model, method)(X[:5], INTEGERS)
    check_same(SEEN[0], INTEGERS)


def test_lists_of_numbers_are_arrays():
    check_same(seen_by(OwnLoss, "fit", X[:5], INTEGERS.tolist())[0], INTEGERS)
    check_same(seen_by(OwnLoss, "fit", X[:2], [[0, 1], [1, 0]])[0], np.array([[0, 1], [1, 0]]))


def test_a_compiled_loss_of_the_labels_trains():
    class Classes(sn.FlowModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return -tf.reduce_mean(tf.cast(y["class"], y_pred.dtype) * y_pred)

    model = Classes(gaussian())
    model.compile(keras.optimizers.SGD(0.0))
    loss = model.fit(X[:5], {"class": INTEGERS}, verbose=0).history["loss"]
    np.testing.assert_allclose(loss, -np.mean(INTEGERS * model.log_prob(X[:5])), rtol=1e-5)


STRINGS = np.array(list("abcde"))
IGNORED = {
    "strings": STRINGS,
    "objects": STRINGS.astype(object),
    "tensor of strings": tf.constant(STRINGS),
    "ragged": tf.ragged.constant([[1], [2, 3], [], [4], [5]]),
    "uneven lists": [[1], [2, 3], [], [4], [5]],
    "sparse": tf.sparse.from_dense(FLOATS),
}


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*")
@pytest.mark.parametrize("labels", IGNORED.values(), ids=IGNORED.keys())
def test_strings_and_labels_that_are_not_dense_do_not_disturb(labels):
    x = X[:5]
    for kind in (sn.FlowModel, OwnLoss):
        model = kind(gaussian())
        model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
        model.fit(x, labels, validation_data=(x, labels), verbose=0)
        model.evaluate(x, labels, verbose=0)
        model.train_on_batch(x, labels)
        if not isinstance(labels, list):
            parts = (x, labels if tf.is_tensor(labels) else STRINGS)
            model.fit(tf.data.Dataset.from_tensors(parts), verbose=0)
    assert SEEN == [None, None]


@pytest.mark.filterwarnings("ignore:.*ran out of data.*")
@keras_3_12
def test_the_numbers_of_a_structure_with_strings_are_kept():
    labels = {"class": INTEGERS, "word": STRINGS}
    for data in (
        (X[:5], labels),
        (tf.data.Dataset.from_tensors((X[:5], labels)),),
        (iter([(X[:5], labels)]),),
    ):
        check_same(seen_by(OwnLoss, "fit", *data)[0], {"class": INTEGERS, "word": None})
