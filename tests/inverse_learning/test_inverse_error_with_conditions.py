"""The inverse error of networks with conditions, as a figure, as a callback and as a picture."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.callbacks import InverseQuality

tfb, tfd = tfp.bijectors, tfp.distributions


class Product(tf.Module):
    """The product with a matrix, and with 1 - c if the factor is 1, for the condition c."""

    def __init__(self, matrix, factor):
        super().__init__()
        self.matrix, self.factor = tf.Variable(matrix), factor

    def __call__(self, inputs):
        vectors, condition = inputs
        return (1.0 - self.factor * condition) * (vectors @ self.matrix)


def scaled_back(matrix):
    """Encoder A y, and decoder (1 - c) A^-1 z with the condition c: the relative error is |c|."""
    return Product(matrix, 0.0), Product(np.linalg.inv(matrix), 1.0)


@pytest.fixture
def layer(rng):
    matrix = rng.normal(size=[3, 3]) + 2.0 * np.eye(3)
    return sn.LearnedInverse(*scaled_back(matrix), 3, name="pair")


def test_the_error_at_a_condition(layer):
    for error in (0.0, 0.2, 1.5):
        condition = np.full([1, 1], error)
        estimate = sn.inverse_error(layer, num_probes=5, seed=1, condition=condition)
        np.testing.assert_allclose(estimate, error, rtol=1e-12, atol=1e-12)


def test_probes_take_conditions_in_turn(layer):
    estimate = sn.inverse_error(layer, num_probes=2000, seed=1, condition=[[0.1], [0.3]])
    np.testing.assert_allclose(estimate, np.sqrt((0.1**2 + 0.3**2) / 2.0), rtol=0.05)
    # One probe has the first condition alone.
    only = sn.inverse_error(layer, num_probes=1, seed=1, condition=np.float32([[0.1], [0.3]]))
    np.testing.assert_allclose(only, 0.1, rtol=1e-6)


def test_all_probes_of_networks_are_used():
    numbers = []

    def encoder(y):
        numbers.append(y.shape[0])
        return y

    sn.inverse_error(sn.LearnedInverse(encoder, tf.identity, 2), num_probes=20)
    assert numbers[-1] == 20


def test_a_condition_that_is_no_batch(layer):
    for condition in (0.5, np.zeros([0, 1])):
        with pytest.raises(ValueError, match="`condition` must be a batch of conditions; got shape"):
            sn.inverse_error(layer, condition=condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"level": np.ones([2, 1])}, "`condition` must be an array of numbers; got dict"),
        (tf.ragged.constant([[1.0], []]), "`condition` must be an array of numbers; got RaggedTensor"),
        (np.array([["a"]]), "`condition` must be an array of numbers; got dtype string"),
        (np.ones([2, 1], np.complex64), "`condition` must be an array of numbers; got dtype complex64"),
    ],
    ids=["dict", "ragged", "text", "complex"],
)
def test_a_condition_that_is_no_array_of_numbers(layer, condition, message):
    with pytest.raises(TypeError, match=message):
        sn.inverse_error(layer, condition=condition)


def test_columns_of_a_frame_are_put_in_order(rng):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; `pip install .[dev]` has it")
    x = pandas.DataFrame({"b": rng.normal(size=20), "a": rng.normal(size=20)}).astype("float32")
    y = pandas.DataFrame({"u": x["a"], "v": x["b"]})
    model = sn.ConditionalFlowModel(sn.free_form_flow(2, 2, num_layers=1, width=4, seed=1))
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, y, epochs=2, verbose=0)
    drawn = [
        sn.plot.inverse_errors(model, condition=frame).lines[0].get_xdata() for frame in (x, x[["a", "b"]])
    ]
    np.testing.assert_array_equal(*drawn)
    found = [begun(InverseQuality(condition=frame), model).errors for frame in (x, x[["a", "b"]])]
    assert found[0] == found[1]


def test_linear_layers_take_no_condition():
    dense = sn.SelfNormDense.trainable(2)
    with pytest.raises(ValueError, match="`condition` must be None for `self_norm_dense`"):
        sn.inverse_error(dense, condition=tf.zeros([1, 1]))


def conditional_model(rng, embedding=None):
    """A dense layer with the error 0.05, and the pair."""
    matrix = rng.normal(size=[3, 3]) + 2.0 * np.eye(3)
    pair = sn.LearnedInverse(*scaled_back(matrix), 3, name="pair")
    kernels = {"forward_kernel": tf.Variable(0.95 * np.eye(3)), "inverse_kernel": np.eye(3)}
    dense = sn.SelfNormDense(**kernels, name="dense")
    base = tfd.Sample(tfd.Normal(np.float64(0.0), 1.0), [3])
    flow = tfd.TransformedDistribution(base, tfb.Chain([dense, pair]))
    return sn.ConditionalFlowModel(flow, condition_shape=1, embedding=embedding)


def coupling_model():
    """Without a pair of networks."""
    return sn.ConditionalFlowModel(sn.coupling_flow(2, 1, num_layers=1, width=4, seed=1))


def begun(callback, model):
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {})
    return callback


def test_the_callback_maps_conditions_by_the_embedding(rng):
    half = keras.Sequential(
        [keras.Input([1]), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    )
    half.set_weights([np.array([[0.5]])])
    for embedding, error in ((None, 0.4), (half, 0.2)):
        quality = InverseQuality(condition=np.full([4, 1], 0.4))
        begun(quality, conditional_model(rng, embedding))
        assert quality.errors == pytest.approx({"dense": 0.05, "pair": error}, rel=1e-6)
        assert quality.worst_layer == "pair"


def test_the_picture_has_the_same_errors(rng):
    condition = np.full([7, 1], 0.4)
    ax = sn.plot.inverse_errors(conditional_model(rng), rng.normal(size=[7, 3]), condition=condition)
    probes, data = (line.get_xdata() for line in ax.lines[:2])
    np.testing.assert_allclose(probes, [0.05, 0.4], rtol=1e-6)
    np.testing.assert_allclose(data, [0.05, 0.4], rtol=1e-6)


def test_conditions_that_are_missing_or_surplus_or_no_batch(rng):
    model = conditional_model(rng)
    for condition, message in (
        (None, "InverseQuality needs the argument `condition`, a batch of conditions .* `pair`; got None"),
        (np.zeros(1), r"`condition` has shape \(1,\); expected \(batch, 1\), for conditions of shape \(1,\)"),
        (np.zeros([0, 1]), "`condition` must have one or more conditions"),
        (np.zeros([4, 2]), r"`condition` has shape \(4, 2\)"),
        (np.float32([[0.1], [np.nan]]), "`condition` has values that are not finite in 1 of 2 examples"),
    ):
        with pytest.raises(ValueError, match=message):
            begun(InverseQuality(condition=condition), model)
    with pytest.raises(ValueError, match="`inverse_errors` needs the argument `condition`"):
        sn.plot.inverse_errors(model)
    with pytest.raises(ValueError, match="of shape"):
        begun(InverseQuality(condition=np.zeros([4, 2])), coupling_model())
    plain = sn.FlowModel(sn.dense_flow(3, num_layers=1))
    with pytest.raises(ValueError, match="`condition` must be None for FlowModel"):
        begun(InverseQuality(condition=np.zeros([4, 1])), plain)
    for model in (plain, plain.distribution):
        with pytest.raises(
            ValueError, match="`condition` must be None for (FlowModel|PreprocessedFlow|Trans)"
        ):
            sn.plot.inverse_errors(model, condition=np.zeros([4, 1]))


def test_fit_of_a_free_form_posterior_with_the_callback(rng):
    x = rng.normal(size=[64, 1]).astype(np.float32)
    y = np.concatenate([x, -x], axis=1) + 0.1 * rng.normal(size=[64, 2]).astype(np.float32)
    model = sn.ConditionalFlowModel(sn.free_form_flow(2, 1, width=8, seed=1))
    model.compile(keras.optimizers.Adam(1e-2))
    quality = InverseQuality(condition=x[:16])
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[quality]).history
    pairs = [name for name in quality.errors if name.startswith("learned_inverse")]
    assert pairs
    assert all(0.0 < quality.errors[name] < 1.0 for name in pairs)
    assert history["worst_inverse_error"][-1] == max(quality.errors.values())


@pytest.mark.parametrize("argument", ["encoder", "decoder"])
def test_a_network_of_another_shape_is_named_before_training(argument):
    right, wrong = (
        keras.Sequential([keras.Input([2]), keras.layers.Dense(size, name=f"to_{size}")]) for size in (2, 3)
    )
    networks = {"encoder": right, "decoder": right, argument: wrong}
    with pytest.raises(
        ValueError, match=rf"`{argument}` must keep the event shape \(2,\); .* the shape \(3,\)"
    ):
        sn.LearnedInverse(**networks, event_shape=2)


def pair_flow(encoder):
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [2])
    return tfd.TransformedDistribution(base, tfb.Chain([sn.LearnedInverse(encoder, tf.identity, 2)]))


def test_the_error_of_a_function_is_that_of_its_layer():
    with pytest.raises(ValueError, match="The encoder of `learned_inverse` must keep the shape") as caught:
        sn.FlowModel(pair_flow(lambda y: y[:, :1]))
    assert "TrainingMode" not in str(caught.value)


def test_networks_without_a_condition_in_a_conditional_model():
    networks = [keras.Sequential([keras.Input([2]), keras.layers.Dense(2)]) for _ in range(2)]
    flow = tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(0.0, 1.0), [2]), tfb.Chain([sn.LearnedInverse(*networks, 2)])
    )
    with pytest.raises(ValueError, match="with a condition in a ConditionalFlowModel") as caught:
        sn.ConditionalFlowModel(flow, condition_shape=1)
    assert "use a FlowModel." in str(caught.value)
