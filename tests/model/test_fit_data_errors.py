"""Data, weights and arguments that a FlowModel cannot take: refused before training, with the cause."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_fit_data import LABELS, WEIGHTS, Batches, X, data_set, frame, gaussian, generator, with_shape

import tfp_selfnorm as sn

tfd = tfp.distributions
SPARSE = tf.sparse.from_dense(X)


@pytest.fixture(scope="module")
def model():
    model = sn.FlowModel(gaussian())
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    return model


class NoEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        raise AssertionError("An epoch has begun.")


class Scipy:
    """As a sparse matrix of scipy has it."""

    def tocoo(self):
        return self


def refuses(error, message, call):
    with pytest.raises(error, match=message):
        call()


def changed(value, index, x=X):
    x = x.astype(np.float64)
    x[index] = value
    return x


ARRAYS = {
    "none": (lambda: None, TypeError, "@ must be an array or a tensor of floats; got None"),
    "string": (lambda: "x.csv", TypeError, "@ must be an array or a tensor of floats; got 'x.csv'"),
    "object": (lambda: len, TypeError, "@ must be an array or a tensor of floats; got a builtin_function"),
    "dict": (lambda: {"x": X}, TypeError, r"@ must be one array; got a dict with the keys \['x'\]"),
    "keras.Input": (
        lambda: keras.Input([3]),
        TypeError,
        r"@ must have values; got a symbolic tensor.*`model\(x\)`",
    ),
    "integers": (lambda: X.astype(int), TypeError, "@ must be floating; got dtype int64.*dequantize"),
    "booleans": (lambda: X > 0, TypeError, "@ must be floating; got dtype bool"),
    "complex": (lambda: X + 1j, TypeError, "@ must be floating; got dtype complex"),
    "objects": (lambda: X.astype(object), TypeError, "@ must be floating; got dtype object.*Cast it"),
    "strings": (lambda: X.astype(str), TypeError, "@ must be floating; got dtype str"),
    "dates": (
        lambda: X.astype(int).astype("M8[s]"),
        TypeError,
        "@ must be floating; got dtype datetime",
    ),
    "frame of strings": (
        lambda: frame().assign(a="b"),
        TypeError,
        "@ must be floating; got dtype object",
    ),
    "frame of integers": (
        lambda: frame("Int64", LABELS),
        TypeError,
        "@ must be floating; got dtype (int64|object)",
    ),
    "ragged": (
        lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]),
        TypeError,
        "@ must be dense; got Ragged",
    ),
    "sparse": (lambda: SPARSE, TypeError, "@ must be dense; got SparseTensor"),
    "scipy sparse": (Scipy, TypeError, "@ must be dense; got Scipy"),
    "uneven lists": (lambda: [*X.tolist(), [4.0]], ValueError, "@ is no array: .*inhomogeneous"),
    "other shape": (lambda: X[:, :2], ValueError, r"@ has shape \(12, 2\); expected .* shape \(3,\)"),
    "two arrays": (
        lambda: [X, X, X, X],
        ValueError,
        "@ must (be one array.*got a list of|consist of events.*) 4",
    ),
}
BATCHES = {
    "one event": (
        lambda: X[0],
        ValueError,
        r"@ has shape \(3,\), the shape of one event; expected.*\(batch, 3\)",
    ),
    "no events": (lambda: X[:0], ValueError, r"@ has no events: its shape is \(0, 3\)"),
    "NaN": (
        lambda: changed(np.nan, 7),
        ValueError,
        "@ has values that are not finite in 1 of 12 .* index 7",
    ),
    "overflow": (lambda: changed(1e300, 4), ValueError, "@ has values that are not finite in 1 of 12"),
    "missing": (
        lambda: frame(x=changed(np.nan, 2)).astype("Float64"),
        ValueError,
        "@ .* not finite in 1 of 12",
    ),
}
STREAMS = {
    "unbatched": (
        lambda: tf.data.Dataset.from_tensor_slices(X),
        ValueError,
        r"elements of @ are single events of shape \(3,\); batch the data set: `.batch\(n\)`",
    ),
    "unbatched, labels": (
        lambda: tf.data.Dataset.from_tensor_slices((X, LABELS)),
        ValueError,
        r"single events.*`.batch\(n\)`",
    ),
    "dicts": (
        lambda: data_set(X).map(lambda x: {"image": x, "label": 0}),
        TypeError,
        r"events in @ must be one dense tensor.* a dict with the keys \['image', 'label'\].*\.map",
    ),
    "dicts and labels": (lambda: data_set(X).map(lambda x: ({"a": x}, 0)), TypeError, r"keys \['a'\]"),
    "two events": (
        lambda: data_set(X).map(lambda x: ((x, x), 0)),
        TypeError,
        "events in @ must be one dense",
    ),
    "ragged tensors": (
        lambda: data_set(X).map(lambda x: tf.RaggedTensor.from_tensor(x)),
        TypeError,
        "events in @ must be one dense tensor.*RaggedTensorSpec",
    ),
    "strings": (lambda: data_set(X.astype(str)), TypeError, "@ must be floating; got dtype string"),
    "integers": (
        lambda: data_set(X.astype(int)),
        TypeError,
        "@ must be floating; got dtype int64.*dequantize",
    ),
    "other shape": (lambda: data_set(X[:, :2]), ValueError, r"@ has shape \(None, 2\); expected a batch"),
    "four parts": (lambda: data_set(X, X, X, X), ValueError, "@ must consist of events.*got a tuple of 4"),
    "empty": (lambda: data_set(X).take(0), ValueError, "@ is an empty data set"),
    "generator of dicts": (lambda: ({"a": X} for _ in "a"), TypeError, r"keys \['a'\]"),
    "generator of events": (lambda: iter(X), ValueError, "@ has shape .*one event.* batch 0 of the data"),
    "PyDataset, other shape": (lambda: Batches(X[:, :2]), ValueError, r"@ has shape \(5, 2\)"),
}
LATE = {
    "data set of another shape": (
        lambda: with_shape(None, X[:, :2]),
        ValueError,
        "@ has events of another shape in batch 0",
    ),
    "data set of another size": (
        lambda: with_shape([None, None], X[:, :1]),
        ValueError,
        "@ has events of another shape in batch 0",
    ),
    "data set of another rank": (
        lambda: with_shape(None, X[:, 0]),
        ValueError,
        "@ has events of another shape in batch 0",
    ),
    "data set": (
        lambda: data_set(changed(np.inf, 11)),
        ValueError,
        "@ .* not finite in batch 2 of the data set",
    ),
    "overflow": (
        lambda: data_set(changed(1e300, 6)),
        ValueError,
        "@ .* not finite in batch 1 of the data set",
    ),
    "generator": (
        lambda: generator(changed(np.nan, 11)),
        ValueError,
        "@ .* not finite in 1 of 2 .* in batch 2 of the data",
    ),
    "generator, other shape": (
        lambda: iter([X, X, X, X[:, :2]]),
        ValueError,
        r"@ has shape \(12, 2\).* batch 3 of the data set",
    ),
    "generator, other dtype": (
        lambda: iter([X, X, X, X.astype(int)]),
        TypeError,
        "@ must be floating; got dtype int64.* batch 3 of the data set",
    ),
    "PyDataset": (lambda: Batches(changed(np.nan, 11)), ValueError, "@ .* not finite in 1 of 2 .* batch 2"),
}
EARLY = [*ARRAYS.values(), *BATCHES.values(), *STREAMS.values()]
EARLY_NAMES = [
    f"{kind}: {name}"
    for kind, forms in (("array", ARRAYS), ("batch", BATCHES), ("stream", STREAMS))
    for name in forms
]


@pytest.mark.parametrize(("form", "error", "message"), EARLY, ids=EARLY_NAMES)
def test_data_that_are_refused_before_the_first_step(model, form, error, message):
    for method in (model.fit, model.evaluate, model.predict):
        refuses(error, message.replace("@", "`x`"), lambda: method(form(), verbose=0))  # noqa: B023
    if form() is not None:
        validation = message.replace("@", "`validation_data`")
        refuses(
            error, validation, lambda: model.fit(X, validation_data=form(), callbacks=[NoEpoch()], verbose=0)
        )
        if not hasattr(form(), "element_spec"):
            parts = (form(), LABELS)
            refuses(
                error,
                validation,
                lambda: model.fit(X, validation_data=parts, callbacks=[NoEpoch()], verbose=0),
            )
    refuses(error, message.replace("@", "`data`"), lambda: model.adapt(form()))


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*")
@pytest.mark.parametrize(("form", "error", "message"), LATE.values(), ids=LATE.keys())
def test_data_that_are_refused_as_they_are_read(model, form, error, message):
    for method in (model.fit, model.evaluate, model.predict):
        refuses(error, message.replace("@", "`x`"), lambda: method(form(), verbose=0))  # noqa: B023
    validation = message.replace("@", "`validation_data`")
    refuses(error, validation, lambda: model.fit(X, validation_data=form(), verbose=0))
    refuses(error, message.replace("@", "`data`"), lambda: model.adapt(form()))


@pytest.mark.parametrize(("form", "error", "message"), ARRAYS.values(), ids=ARRAYS.keys())
def test_events_that_are_refused(form, error, message):
    model = sn.FlowModel(sn.dense_flow(3, num_layers=1, seed=1))
    model.compile(run_eagerly=True)
    for method in (model.train_on_batch, model.test_on_batch, model.predict_on_batch):
        refuses(error, message.replace("@", "`x`"), lambda: method(form()))  # noqa: B023
    if not isinstance(form(), list):
        for method, name in ((model.log_prob, "x"), (model.encode, "x"), (model.decode, "z")):
            refuses(error, message.replace("@", f"`{name}`"), lambda: method(form()))  # noqa: B023


BAD_WEIGHTS = {
    "NaN": (
        changed(np.nan, 3, WEIGHTS),
        ValueError,
        "has weights that are NaN, .* in 1 of 12 examples, .* index 3",
    ),
    "negative": (WEIGHTS - 9, ValueError, "has weights that are NaN, infinite or negative in 12 of 12"),
    "infinite": (changed(np.inf, 3, WEIGHTS), ValueError, "has weights that are NaN, infinite or negative"),
    "overflow": (changed(1e300, 3, WEIGHTS), ValueError, "has weights that are NaN, infinite or negative"),
    "zero": (0 * WEIGHTS, ValueError, "has weights that are all zero"),
    "too few": (
        WEIGHTS[1:],
        ValueError,
        r"has weights of shape \(11,\); expected one weight an example, \(12,\)",
    ),
    "one a value": (np.ones_like(X), ValueError, r"has weights of shape \(12, 3\)"),
    "strings": (WEIGHTS.astype(str), TypeError, "must have weights that are real numbers; got dtype <U"),
    "complex": (WEIGHTS + 1j, TypeError, "must have weights that are real numbers; got dtype complex"),
    "dict": ({"a": WEIGHTS}, TypeError, "must be one array; got a dict"),
}


@pytest.mark.parametrize(("weights", "error", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_weights_that_are_refused(model, weights, error, message):
    before = model.distribution.distribution.loc.numpy()
    methods = [model.fit, model.evaluate]
    if "zero" not in message:
        methods += [model.train_on_batch, model.test_on_batch]
    for method in methods:
        refuses(error, f"`sample_weight` {message}", lambda: method(X, sample_weight=weights))  # noqa: B023
    for container in (tuple, list):
        validation = container([X, None, weights])
        refuses(error, f"`validation_data` {message}", lambda: model.fit(X, validation_data=validation))  # noqa: B023
    np.testing.assert_array_equal(model.distribution.distribution.loc, before)


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*")
@pytest.mark.parametrize("make", [data_set, generator, Batches])
@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
def test_weights_in_data_sets_that_are_refused(model, make, bad):
    weights = changed(bad, 11, WEIGHTS)
    message = "`{}` has weights that are NaN, infinite or negative in.* batch 2 of the data set"
    refuses(ValueError, message.format("x"), lambda: model.fit(make(X, LABELS, weights), verbose=0))
    refuses(ValueError, message.format("x"), lambda: model.evaluate(make(X, LABELS, weights), verbose=0))
    validation = make(X, LABELS, weights)
    name = message.format("validation_data")
    refuses(ValueError, name, lambda: model.fit(X, validation_data=validation, verbose=0))


@pytest.mark.filterwarnings("ignore:.*shuffle=True.*")
def test_weights_of_a_data_set_that_are_not_one_an_example(model):
    message = r"sample weights in `x` have shape \(None, 3\); expected one weight an example"
    refuses(ValueError, message, lambda: model.fit(data_set(X, LABELS, X)))
    message = "sample weights in `x` must be real numbers; got .*string"
    refuses(TypeError, message, lambda: model.fit(data_set(X, LABELS, X.astype(str))))
    message = "`x` has weights that are not one an example in batch 0 of the data set"
    one = data_set(X).map(lambda x: (x, None, tf.ones([1])))
    refuses(ValueError, message, lambda: model.evaluate(one, verbose=0))


def test_weights_beside_a_data_set(model):
    message = r"`{}` gives batches; these must hold the weights"
    refuses(ValueError, message.format("x"), lambda: model.fit(data_set(X), sample_weight=WEIGHTS))
    validation = (data_set(X), None, WEIGHTS)
    refuses(ValueError, message.format("validation_data"), lambda: model.fit(X, validation_data=validation))


@pytest.mark.parametrize(
    ("x", "labels", "weights", "error", "message"),
    [
        (X, None, {0: 1.0}, ValueError, "`class_weight` needs labels: give them as `y`"),
        (
            data_set(X),
            None,
            {0: 1.0},
            ValueError,
            "`class_weight` needs labels; the elements of `x` have none",
        ),
        (
            Batches(X),
            None,
            {0: 1.0},
            ValueError,
            "`class_weight` needs labels; the elements of `x` have none",
        ),
        (
            data_set(X, LABELS, WEIGHTS),
            None,
            {0: 1.0},
            ValueError,
            "must be None with sample weights; the elements of `x` have weights",
        ),
        (
            Batches(X, LABELS, WEIGHTS),
            None,
            {0: 1.0},
            ValueError,
            "must be None with sample weights; the elements of `x` have weights",
        ),
        (X, LABELS, [1.0, 2.0], TypeError, "`class_weight` must be a dictionary from labels to weights; got"),
        (X, LABELS, {0: np.nan}, ValueError, "`class_weight` must be finite and 0 or more; got nan for 0"),
        (X, LABELS, {1: -2.0}, ValueError, "`class_weight` must be finite and 0 or more; got -2.0 for 1"),
        (X, LABELS, {1: "a"}, ValueError, "`class_weight` must be finite and 0 or more; got 'a' for 1"),
    ],
)
def test_weights_of_classes_that_are_refused(model, x, labels, weights, error, message):
    refuses(error, message, lambda: model.fit(x, labels, class_weight=weights))
    if x is X:
        refuses(error, message, lambda: model.train_on_batch(x, labels, class_weight=weights))
