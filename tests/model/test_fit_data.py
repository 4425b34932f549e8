"""Data and sample weights of every form count, or are refused with the cause; the numbers are numpy's."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn

tfd = tfp.distributions
LOC, SCALE = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.5, 2.0])
X = np.random.default_rng(1).normal(size=[12, 3]).astype(np.float32)
WEIGHTS = np.random.default_rng(2).uniform(0.0, 3.0, size=12).astype(np.float32)
LABELS = np.arange(12) % 3
LOG_PROB = stats.norm(LOC, SCALE).logpdf(X).sum(axis=-1)
NLL, WEIGHTED_NLL = -LOG_PROB.mean(), -np.average(LOG_PROB, weights=WEIGHTS)


def gaussian(dtype=tf.float32):
    loc = tf.Variable(LOC, dtype=dtype)
    return tfd.Independent(tfd.Normal(loc, tf.constant(SCALE, dtype)), 1)


@pytest.fixture(scope="module")
def model():
    """Its rate is 0, so that it stays as it is, and its steps are not traced, so that it is fast."""
    model = sn.FlowModel(gaussian())
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays, size=5, **options):
        super().__init__(**options)
        self.arrays, self.size = arrays, size

    def __len__(self):
        return -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, index):
        return tuple(array[index * self.size : (index + 1) * self.size] for array in self.arrays)


def generator(*arrays, size=5):
    return (tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size))


def data_set(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(5)


def with_shape(shape, x=X):
    """A data set whose shape is not known when it is made."""
    batches = tf.data.Dataset.range(2).map(lambda i: tf.constant(x)[6 * i : 6 * i + 6])
    return tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tf.TensorSpec(shape, tf.float32)
    )


def frame(dtype="float32", x=X):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; `pip install .[dev]` has it")
    return pandas.DataFrame(x).astype(dtype)


STRINGS = np.array(["a", "b", "c"] * 4)
FORMS = {
    "array": lambda: X,
    "float64 array": lambda: X.astype(np.float64),
    "list of lists": lambda: X.tolist(),
    "tuple of arrays": lambda: tuple(X),
    "list of one array": lambda: [X],
    "tensor": lambda: tf.constant(X),
    "tf.Variable": lambda: tf.Variable(X),
    "keras.Variable": lambda: keras.Variable(X),
    "data frame": frame,
    "nullable data frame": lambda: frame("Float32"),
    "frame of nullable and other columns": lambda: frame({0: "Float32", 1: "float64", 2: "Float64"}),
    "data set": lambda: data_set(X),
    "data set of float64": lambda: data_set(X.astype(np.float64)),
    "data set with labels": lambda: data_set(X, LABELS),
    "data set with strings as labels": lambda: data_set(X, STRINGS),
    "data set of 1-tuples": lambda: data_set(X).map(lambda x: (x,)),
    "data set without labels": lambda: data_set(X).map(lambda x: (x, None)),
    "data set of unknown rank": lambda: with_shape(None),
    "data set of unknown sizes": lambda: with_shape([None, None]),
    "iterator over a data set": lambda: iter(data_set(X)),
    "numpy iterator": lambda: data_set(X).as_numpy_iterator(),
    "generator of tuples": lambda: generator(X),
    "generator with labels": lambda: generator(X, STRINGS),
    "generator of arrays": lambda: (batch[0] for batch in generator(X)),
    "generator of lists": lambda: (batch[0].tolist() for batch in generator(X)),
    "PyDataset": lambda: Batches(X),
    "PyDataset with labels": lambda: Batches(X, STRINGS),
    "PyDataset of two threads": lambda: Batches(X, STRINGS, workers=2),
}


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*", "ignore:.*ran out of data.*")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_data_of_every_form(model, form):
    history = model.fit(form(), batch_size=12, validation_data=form(), verbose=0).history
    np.testing.assert_allclose([*history["nll"], *history["val_nll"]], NLL, rtol=1e-5)
    nll = model.evaluate(form(), batch_size=5, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(nll, NLL, rtol=1e-5)
    np.testing.assert_allclose(model.predict(form(), batch_size=5, verbose=0), LOG_PROB, rtol=1e-5)


ARRAYS = [name for name in FORMS if not any(word in name for word in ("set", "iterator", "generator"))]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_batch_of_every_form(model, name):
    x = FORMS[name]()
    for method in (model.train_on_batch, model.test_on_batch):
        model.reset_metrics()  # Keras 3.10 does not.
        found = method(x, sample_weight=list(WEIGHTS), return_dict=True)["nll"]
        np.testing.assert_allclose(found, WEIGHTED_NLL, rtol=1e-5)
    np.testing.assert_allclose(model.predict_on_batch(x), LOG_PROB, rtol=1e-5)
    if name != "list of one array":
        np.testing.assert_allclose(model.log_prob(x), LOG_PROB, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_adapting_to_data_of_every_form(form):
    """An `ActNorm` takes the mean of the first events."""
    norm = sn.ActNorm.trainable(3)
    model = sn.FlowModel(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [3]), norm))
    model.adapt(form(), num_examples=7)
    np.testing.assert_allclose(norm.shift, X[:7].mean(axis=0), rtol=1e-5)


WEIGHT_FORMS = {
    "array": lambda: WEIGHTS,
    "column": lambda: WEIGHTS[:, np.newaxis],
    "float64 array": lambda: WEIGHTS.astype(np.float64),
    "list": lambda: WEIGHTS.tolist(),
    "tensor": lambda: tf.constant(WEIGHTS),
    "tf.Variable": lambda: tf.Variable(WEIGHTS),
    "series": lambda: frame(x=WEIGHTS)[0],
    "nullable series": lambda: frame("Float32", WEIGHTS)[0],
    "frame": lambda: frame(x=WEIGHTS),
}


@pytest.mark.parametrize(
    ("events", "weights"),
    [
        *(("array", weights) for weights in WEIGHT_FORMS),
        *((events, "array") for events in ("tensor", "tf.Variable", "data frame", "list of lists")),
        ("data frame", "series"),
    ],
)
def test_sample_weights_of_every_form(model, events, weights):
    x, weights = FORMS[events](), WEIGHT_FORMS[weights]()
    history = model.fit(
        x, batch_size=12, sample_weight=weights, validation_data=[x, None, weights], verbose=0
    ).history
    nll = model.evaluate(x, batch_size=5, sample_weight=weights, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose([*history["nll"], *history["val_nll"], nll], WEIGHTED_NLL, rtol=1e-5)


@pytest.mark.parametrize("container", [tuple, list])
@pytest.mark.parametrize("labels", [None, LABELS, STRINGS], ids=["none", "numbers", "strings"])
def test_labels_are_ignored(model, container, labels):
    validation = container([X, labels, WEIGHTS])
    history = model.fit(X, labels, 12, validation_data=validation, verbose=0).history
    np.testing.assert_allclose([*history["nll"], *history["val_nll"]], [NLL, WEIGHTED_NLL], rtol=1e-5)
    nll = model.evaluate(X, labels, 5, 0, WEIGHTS, return_dict=True)["nll"]
    np.testing.assert_allclose(nll, WEIGHTED_NLL, rtol=1e-5)


WEIGHTED_STREAMS = {
    "data set": lambda w: data_set(X, LABELS, w),
    "data set without labels": lambda w: data_set(X, w).map(lambda x, w: (x, None, w)),
    "data set of columns": lambda w: data_set(X, LABELS, w[:, np.newaxis]),
    "data set of integers": lambda w: data_set(X, LABELS, w),
    "generator": lambda w: generator(X, LABELS, w),
    "generator without labels": lambda w: ((x, None, w) for x, w in generator(X, w)),
    "PyDataset": lambda w: Batches(X, LABELS, w),
}


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*", "ignore:.*ran out of data.*")
@pytest.mark.parametrize("form", WEIGHTED_STREAMS)
def test_sample_weights_in_data_sets(model, form):
    weights = np.arange(12) if form.endswith("integers") else WEIGHTS
    expected = -np.average(LOG_PROB, weights=weights)
    make = WEIGHTED_STREAMS[form]
    history = model.fit(make(weights), validation_data=make(weights), verbose=0).history
    np.testing.assert_allclose(history["val_nll"], expected, rtol=1e-5)
    np.testing.assert_allclose(history["nll"], expected, rtol=1e-5)
    nll = model.evaluate(make(weights), verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


CLASS_WEIGHTS = {0: 0.5, 1: 2, 2: np.float32(0.0)}
CLASS_WEIGHTED_NLL = -np.average(LOG_PROB, weights=[CLASS_WEIGHTS[label] for label in LABELS])


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.tolist(), np.eye(3)[LABELS]], ids=["array", "list", "one-hot"]
)
def test_weights_of_classes(model, labels):
    found = [
        *model.fit(X, labels, 12, class_weight=CLASS_WEIGHTS, verbose=0).history["nll"],
        model.train_on_batch(X, labels, class_weight=CLASS_WEIGHTS, return_dict=True)["nll"],
    ]
    np.testing.assert_allclose(found, CLASS_WEIGHTED_NLL, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*")
@pytest.mark.parametrize("make", [data_set, Batches])
def test_weights_of_classes_in_data_sets(model, make):
    history = model.fit(make(X, LABELS), class_weight=CLASS_WEIGHTS, verbose=0).history
    np.testing.assert_allclose(history["nll"], CLASS_WEIGHTED_NLL, rtol=1e-5)


@pytest.mark.parametrize("split", [0.25, 0.5])
def test_a_split_takes_its_weights_along(model, split):
    history = model.fit(
        tf.Variable(X), sample_weight=WEIGHTS, batch_size=12, validation_split=split, verbose=0
    ).history
    number = int(12 * (1 - split))
    for name, part in (("nll", slice(number)), ("val_nll", slice(number, 12))):
        np.testing.assert_allclose(
            history[name], -np.average(LOG_PROB[part], weights=WEIGHTS[part]), rtol=1e-5
        )


def test_compiled_steps_weigh_too():
    model = sn.FlowModel(gaussian())
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(
        [X], sample_weight=tf.Variable(WEIGHTS), batch_size=12, validation_data=[X, None, WEIGHTS], verbose=0
    ).history
    np.testing.assert_allclose([*history["nll"], *history["val_nll"]], WEIGHTED_NLL, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*ran out of data.*", "ignore:.*shuffle=True.*")
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}], ids=str)
def test_compiled_steps_know_the_event_shape(options):
    """A dense layer needs its rank."""
    model = sn.FlowModel(sn.dense_flow(3, num_layers=1, seed=1))
    model.compile(keras.optimizers.SGD(0.0), **options)
    for shape in (None, [None, None]):
        nll = model.fit(with_shape(shape), verbose=0).history["nll"]
        np.testing.assert_allclose(nll, -np.mean(model.log_prob(X)), rtol=1e-5)


def test_log_prob_of_a_tensor_of_unknown_rank():
    model = sn.FlowModel(sn.dense_flow(3, num_layers=1, seed=1))
    log_prob = tf.function(model.log_prob, input_signature=[tf.TensorSpec(None)])
    np.testing.assert_allclose(log_prob(X), model.log_prob(X), rtol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible with expected shape"):
        log_prob(X[:, :2])


def test_float64_events_stay_exact():
    """Keras rounds arrays to float32; these events differ by less than that keeps."""
    model = sn.FlowModel(gaussian(tf.float64))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    model.distribution.distribution.loc.assign(LOC + 1e9)
    x = X.astype(np.float64) + 1e9
    expected = stats.norm(LOC + 1e9, SCALE).logpdf(x).sum(axis=-1)
    for form in (x, tf.constant(x), x[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_allclose(model.predict(form, verbose=0), expected, rtol=1e-12)
    history = model.fit(x, batch_size=12, validation_data=(x,), verbose=0).history
    np.testing.assert_allclose([*history["nll"], *history["val_nll"]], -expected.mean(), rtol=1e-6)


METHODS = ["fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch", "compile"]


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_those_of_keras(method):
    own = inspect.signature(getattr(sn.FlowModel, method)).parameters
    expected = dict(inspect.signature(getattr(keras.Model, method)).parameters)
    added = {"max_skipped_updates"} if method == "compile" else set()
    if method == "compile":
        # The one default that differs.
        expected["optimizer"] = expected["optimizer"].replace(default="adam")
    assert [name for name in own if name not in added] == list(expected)
    for name, parameter in expected.items():
        assert (own[name].kind, own[name].default) == (parameter.kind, parameter.default), name
    assert all(own[name].kind is inspect.Parameter.KEYWORD_ONLY for name in added)


def test_every_argument_by_position(model):
    """As `inspect` orders them: `validation_data` is the eighth argument of `fit`."""
    weights = {0: 1.0, 1: 0.0, 2: 0.0}
    history = model.fit(
        X, LABELS, 12, 2, 0, None, 0.0, (X, None, WEIGHTS), False, weights, None, 1, 1, 1, 12, 1
    )
    assert history.epoch == [1]
    np.testing.assert_allclose(history.history["nll"], -LOG_PROB[LABELS == 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(history.history["val_nll"], WEIGHTED_NLL, rtol=1e-5)
    found = model.evaluate(X, LABELS, 6, 0, WEIGHTS, 1, None, True)["nll"]
    np.testing.assert_allclose(found, -np.average(LOG_PROB[:6], weights=WEIGHTS[:6]), rtol=1e-5)
    np.testing.assert_allclose(model.predict(X, 4, 0, 2, None), LOG_PROB[:8], rtol=1e-5)
    for method in (model.train_on_batch, model.test_on_batch):
        model.reset_metrics()
        # The loss, as Keras has it: divided by the number of examples.
        assert method(X, LABELS, WEIGHTS)[0] == pytest.approx(np.mean(-LOG_PROB * WEIGHTS), rel=1e-5)
    with pytest.raises(ValueError, match="`validation_data` has values that are not finite in 12 of 12"):
        model.fit(X, None, 12, 1, 0, None, 0.0, X * np.nan)


@pytest.mark.parametrize("batch_size", [10, 200])
def test_uneven_weights_have_one_optimum_however_the_data_fall_into_batches(batch_size):
    """As Keras's weighted loss: with weights normalised in each batch small batches end elsewhere."""
    x = np.random.default_rng(5).normal(size=[200, 1]).astype(np.float32)
    weights = np.exp(2.0 * x[:, 0])
    loc = tf.Variable([0.0])
    model = sn.FlowModel(tfd.MultivariateNormalDiag(loc, [1.0]))
    rate = keras.optimizers.schedules.PolynomialDecay(0.02, 40 * 200 // batch_size, 0.0)
    model.compile(keras.optimizers.SGD(rate if batch_size == 10 else 0.1))
    model.fit(x, sample_weight=weights, batch_size=batch_size, epochs=40, verbose=0)
    np.testing.assert_allclose(loc[0], np.average(x[:, 0], weights=weights), rtol=0.02)
