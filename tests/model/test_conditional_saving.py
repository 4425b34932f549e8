"""Files and SavedModels of a ConditionalFlowModel."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd = tfp.distributions

SCORE = """
import sys
for name in ("tfp_selfnorm", "tensorflow_probability", "tf_keras"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
flow, data = tf.saved_model.load(folder + "/model"), np.load(folder + "/data.npz")
condition = {name: tf.constant(data[name]) for name in data.files if name != "y"}
given = condition if len(condition) > 1 else condition["x"]
y = tf.constant(data["y"])
results = {"log_prob": flow.log_prob(y, given), "sample": flow.sample(3, [1, 2], given)}
results |= {"sample_exact": flow.sample_exact(3, [1, 2], given)}
results |= {"encode": flow.encode(y, given), "decode": flow.decode(flow.encode(y, given), given)}
served = {f"condition_{name}" if len(condition) > 1 else "condition": v for name, v in condition.items()}
results |= {"served": flow.signatures["serving_default"](x=y, **served)["output_0"]}
np.savez(folder + "/results.npz", **results)
"""
ARGUMENTS = {"event_shape": 2, "condition_shape": 3, "num_layers": 2, "width": 8, "num_bins": 4}


def embedding():
    label, numbers = keras.Input([], dtype="int32", name="label"), keras.Input([3], name="numbers")
    merged = keras.layers.Concatenate()([keras.layers.Embedding(5, 2)(label), numbers])
    return keras.Model({"label": label, "numbers": numbers}, keras.layers.Dense(3)(merged))


@keras.saving.register_keras_serializable("test_conditional_saving")
def doubled(condition):
    return {"coupling_0": {"condition": 2.0 * condition}}


def make_model(kind, seed=1):
    options = {"plain": {}, "embedding": {"embedding": embedding()}, "kwargs": {"bijector_kwargs": doubled}}
    model = sn.ConditionalFlowModel.from_builder(sn.coupling_flow, seed=seed, **ARGUMENTS, **options[kind])
    model.compile(keras.optimizers.Adam(1e-2))
    return model


@pytest.fixture
def data(rng):
    x = rng.normal(size=[40, 3]).astype(np.float32)
    y = (0.5 * x[:, :2] + 0.3 * rng.normal(size=[40, 2])).astype(np.float32)
    return {
        "plain": x,
        "kwargs": x,
        "embedding": {"label": np.arange(40, dtype=np.int32) % 5, "numbers": x},
    }, y


@pytest.mark.parametrize("kind", ["plain", "embedding", "kwargs"])
def test_a_file_goes_on_to_the_bit(kind, data, tmp_path):
    x, y = data[0][kind], data[1]
    model = make_model(kind)

    def fit(model):
        return model.fit(x, y, batch_size=20, shuffle=False, verbose=0).history

    fit(model)
    model.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    assert type(loaded) is sn.ConditionalFlowModel
    np.testing.assert_array_equal(loaded.log_prob(y, x), model.log_prob(y, x))
    np.testing.assert_array_equal(loaded.sample(2, x, seed=1), model.sample(2, x, seed=1))
    assert list(loaded.named_variables) == list(model.named_variables)
    assert fit(loaded) == fit(model)
    for one, other in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


def test_weights_alone(data, tmp_path):
    x, y = data[0]["embedding"], data[1]
    model, other = make_model("embedding"), make_model("embedding", seed=2)
    model.save_weights(tmp_path / "flow.weights.h5")
    assert not np.array_equal(other.log_prob(y, x), model.log_prob(y, x))
    other.load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(other.log_prob(y, x), model.log_prob(y, x))


def test_an_embedding_keeps_the_weights_that_it_has(data):
    """Also one that was trained before, and does not train any more."""
    network = embedding()
    network.trainable = False
    values = network.get_weights()
    model = sn.ConditionalFlowModel.from_builder(sn.coupling_flow, embedding=network, seed=1, **ARGUMENTS)
    assert model.distribution.bijector.embedding is network
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(data[0]["embedding"], data[1], verbose=0, epochs=2)
    for value, weight in zip(values, network.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weight)


@pytest.mark.parametrize("kind", ["plain", "embedding"])
def test_a_process_without_the_package_gets_the_same(kind, data, tmp_path):
    x, y = data[0][kind], data[1]
    model = make_model(kind)
    model.fit(x, y, verbose=0)
    model.export(tmp_path / "model")
    np.savez(tmp_path / "data.npz", y=y, **(x if isinstance(x, dict) else {"x": x}))
    subprocess.run([sys.executable, "-I", "-c", SCORE, tmp_path], check=True)
    results = np.load(tmp_path / "results.npz")
    expected = {
        "log_prob": model.log_prob(y, x),
        "served": model.log_prob(y, x),
        "sample": model.sample(3, x, seed=(1, 2)),
        "sample_exact": model.sample(3, x, seed=(1, 2), exact=True),
        "encode": model.encode(y, x),
        "decode": model.reconstruct(y, x),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_errors(tmp_path):
    flow = sn.coupling_flow(**ARGUMENTS)
    with pytest.raises(ValueError, match="made from a distribution"):
        sn.ConditionalFlowModel(flow).save(tmp_path / "flow.keras")
    for argument in ("embedding", "bijector_kwargs"):
        with pytest.raises(TypeError, match=f"`{argument}` .* cannot be saved"):
            sn.ConditionalFlowModel.from_builder(sn.coupling_flow, **ARGUMENTS, **{argument: lambda c: c})
    config = make_model("plain").get_config()
    for value in (3, {"layer": 3}, {"function": "unknown"}):
        with pytest.raises((TypeError, ValueError), match="embedding"):
            sn.ConditionalFlowModel.from_config(config | {"embedding": value})


def test_the_inputs_of_exported_signatures_have_fixed_names(tmp_path):
    inputs = {key: keras.Input([1]) for key in ("my label", "größe", "n")}
    merged = keras.layers.Concatenate()([*inputs.values()])
    flow = sn.coupling_flow(2, 3, num_layers=1, transform="affine", layer="permute", width=4, seed=1)
    with warnings.catch_warnings():
        # Keras wants the names of the tensors as keys.
        warnings.simplefilter("ignore", UserWarning)
        model = sn.ConditionalFlowModel(flow, embedding=keras.Model(inputs, merged))
    model.export(tmp_path / "served")
    served, y = tf.saved_model.load(tmp_path / "served"), tf.ones([2, 2])
    condition = {key: tf.fill([2, 1], float(i)) for i, key in enumerate(inputs)}
    found = served.signatures["log_prob"](
        x=y,
        condition_my_label=condition["my label"],
        condition_gr__e=condition["größe"],
        condition_n=condition["n"],
    )
    expected = model.log_prob(y, condition)
    np.testing.assert_allclose(found["output_0"], expected, rtol=1e-6)
    np.testing.assert_allclose(served.log_prob(y, condition), expected, rtol=1e-6)
