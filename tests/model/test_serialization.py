"""Arguments of builders as JSON and back."""

import collections
import functools
import json
import sys
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.flows.building import SELF_NORM_OPTIONS
from tfp_selfnorm.model.serialization import decode, encode

tfb = tfp.bijectors


@keras.saving.register_keras_serializable("tests")
def exponential(event_shape):
    return tfb.Softplus()


def through_json(value):
    return decode(json.loads(json.dumps(encode(value, "value"))), "value")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        "text",
        [1, [2.5, None]],
        (1, ("a", 2)),
        {"a": (1,), "tuple": {"shape": 2}},
        tf.float64,
        tf.TensorShape([2, None]),
        exponential,
        sn.Tracking(num_probes=3, reconstruction=sn.Reconstruction("probes", 2.0)),
        sn.Reconstruction("symmetric", sn.AdaptiveWeight(0.5, bounds=(1e-3, 10.0))),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_arguments_survive_json(value):
    result = through_json(value)
    assert result == value
    assert type(result) is type(value)


def test_arrays_survive_json_bit_by_bit(rng):
    arrays = [10 * rng.normal(size=shape) for shape in ([2, 3], [0, 3], [])]
    for dtype in (np.float32, np.float64, np.int8, np.uint16, np.int32, np.bool_):
        array = np.abs(arrays[0]).astype(dtype)
        result = through_json(array)
        assert isinstance(result, np.ndarray)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, array)
        tensor = through_json(tf.constant(array))
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, array)
    for array in arrays:
        np.testing.assert_array_equal(through_json(array), array, strict=True)
    assert through_json(np.float32(0.1)) == np.float32(0.1)
    assert through_json(np.float64(0.1)).dtype == np.float64
    assert through_json(np.int64(3)) == 3
    assert through_json(np.float64) == through_json(np.dtype("float64")) == tf.float64


def test_a_schedule_of_keras_survives_json():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 100, 1.0)
    result = through_json(sn.Reconstruction(weight=schedule)).weight
    assert [float(result(step)) for step in (0, 50, 200)] == [0.0, 0.5, 1.0]


def test_trees_of_bijectors_survive_json(rng):
    tree = tfb.Chain(
        [
            sn.images.pixel_sigmoid(num_levels=4),
            tfb.Invert(tfb.Softplus(hinge_softness=0.5)),
            tfb.Shift([1.0, 2.0, 3.0]),
            tfb.Shift(np.float32(0.1)),
            sn.SmoothLeakyReLU(0.3),
            tfb.Invert(sn.LeakyReLU(0.2)),
            sn.LeakySquareplus(0.4),
            tfb.Permute([2, 0, 1]),
            tfb.ScaleMatvecTriL(np.array([[1, 0, 0], [2, 1, 0], [0, 3, 2]], np.float32)),
            tfb.Reshape([3], [1, 3]),
        ],
        name="tree",
    )
    result = through_json(tree)
    x = rng.normal(size=[5, 1, 3]).astype(np.float32)
    assert result.name == "tree"
    np.testing.assert_array_equal(result.forward(tf.identity(x)), tree.forward(tf.identity(x)))
    np.testing.assert_array_equal(
        result.forward_log_det_jacobian(tf.identity(x)), tree.forward_log_det_jacobian(tf.identity(x))
    )


def test_parameters_that_are_none_stay_none():
    bijector = tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)
    result = through_json(bijector)
    x = np.array([1.0, -9.0, 0.5], np.float32)
    np.testing.assert_array_equal(result.forward(x), bijector.forward(x))


def test_functions_of_the_module_of_schedules_are_none():
    with pytest.raises(ValueError, match="a schedule of the class 'deserialize', which is none"):
        decode({"schedule": ["deserialize", {"config": None}]}, "value")


class OtherShift(tfb.Shift):
    pass


class Pair(NamedTuple):
    first: int
    second: int


class CosineDecay(keras.optimizers.schedules.CosineDecay):
    """Of the name of one of Keras's, which a file would give back in its place."""


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lambda x: x, "value"),
        ([1, {"a": object()}], r"value\[1\].a"),
        (tf.Variable(1.0), "value"),
        (tfb.Shift(tf.Variable(1.0)), "value.shift"),
        (tfb.Scale(tfp.util.TransformedVariable(2.0, tfb.Exp())), "value.scale"),
        (keras.Variable(1.0), "value"),
        (tfb.Chain([tfb.Exp(), OtherShift(1.0)]), r"value.bijectors\[1\]"),
        (tfb.Inline(forward_fn=tf.exp, forward_min_event_ndims=0), "value"),
        (sn.Reconstruction(weight=tf.Variable(1.0)), "value.weight"),
        (np.array([object()]), "value"),
        (Pair(1, 2), "value"),
        ([Pair(1, 2)], r"value\[0\]"),
        ({1: 2}, "value"),
        (collections.OrderedDict(a=1), "value"),
        (CosineDecay(1.0, 10), "value"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_training(value, path):
    with pytest.raises(TypeError, match=f"`{path}` is .* cannot be saved as an argument of a builder"):
        encode(value, "value")


@pytest.mark.parametrize(
    "name", ["__class__", "__doc__", "__name__", "deserialize", "serialize", "Schedule", "CosineDecayAdam", 3]
)
def test_a_file_names_no_schedule_but_those_of_keras(name):
    with pytest.raises(ValueError, match=f"`value` .* is a schedule of the class {name!r}, which is none"):
        decode({"schedule": [name, {"name": "x"}]}, "value")


def test_values_nested_too_deep_are_refused():
    value = 1
    for _ in range(sys.getrecursionlimit() // 3):
        value = {"tuple": [value]}
    with pytest.raises(ValueError, match="`value"):
        decode(value, "value")


def test_a_file_has_the_defaults_of_its_builder(monkeypatch):
    config = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, seed=1).get_config()
    monkeypatch.setitem(sn.dense_flow.__kwdefaults__, "num_layers", 5)
    monkeypatch.setitem(SELF_NORM_OPTIONS, "gradient", "exact")
    layers = sn.self_norm_layers(sn.FlowModel.from_config(config).distribution)
    assert len(layers) == config["arguments"]["num_layers"] == 2
    assert [layer.gradient for layer in layers] == 2 * [config["arguments"]["gradient"]] == 2 * ["self_norm"]
    # Layers of other kinds have no such options.
    config = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, layer="lu").get_config()
    assert "gradient" not in config["arguments"]
    assert not sn.self_norm_layers(sn.FlowModel.from_config(config).distribution)


def test_a_wrapper_of_a_builder_keeps_its_own_defaults():
    @keras.saving.register_keras_serializable("wrappers")
    @functools.wraps(sn.dense_flow)
    def deep_flow(**arguments):
        return sn.dense_flow(**({"num_layers": 5} | arguments))

    @keras.saving.register_keras_serializable("wrappers_of_a_shape")
    @functools.wraps(sn.dense_flow)
    def deep_flow_of_a_shape(event_shape):
        return sn.dense_flow(event_shape, num_layers=5)

    for builder in (deep_flow, deep_flow_of_a_shape):
        model = sn.FlowModel.from_builder(builder, event_shape=2)
        copy = sn.FlowModel.from_config(model.get_config())
        assert len(sn.self_norm_layers(model.distribution)) == 5
        assert len(sn.self_norm_layers(copy.distribution)) == 5
