"""Files that version 0.1.0 saved load to the bit; `make_saved_files.py` made them."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from make_saved_files import FOLDER, NAMES, events, make_model

import tfp_selfnorm as sn


def check_file(model, file):
    """Each variable, and the state of the optimizer, is that of the file, read apart from Keras."""
    with h5py.File(file) as weights:
        saved = {name: np.asarray(dataset) for name, dataset in weights["vars"].items()}
        state = [np.asarray(weights["optimizer/vars"][str(i)]) for i in range(len(weights["optimizer/vars"]))]
    assert len(saved) > 5
    variables = model.named_variables
    for name, value in saved.items():
        # Counts and permutations were int32.
        value = value.astype(np.int64) if value.dtype == np.int32 else value
        np.testing.assert_array_equal(variables[name], value, err_msg=name, strict=True)
    assert int(state[0]) == 1
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.name, strict=True)


def check_log_prob(model, name):
    expected = np.float32(json.loads((FOLDER / f"{name}.json").read_text()))
    # To the bit where they were made; another processor may round otherwise.
    np.testing.assert_allclose(model.log_prob(events(model)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_earlier_file_loads(name):
    model = keras.models.load_model(FOLDER / f"{name}.keras")
    with zipfile.ZipFile(FOLDER / f"{name}.keras") as archive:
        check_file(model, io.BytesIO(archive.read("model.weights.h5")))
    check_log_prob(model, name)


@pytest.mark.parametrize("name", NAMES)
def test_earlier_weights_load(name):
    model = make_model(name, seed=2)
    model.load_weights(FOLDER / f"{name}.weights.h5")
    check_file(model, FOLDER / f"{name}.weights.h5")
    check_log_prob(model, name)


def config_of(builder, **arguments):
    """A config such as version 0.1.0 wrote."""
    return {
        "builder": {"function": f"tfp_selfnorm>{builder}"},
        "arguments": {"image_shape": {"tuple": [4, 4, 1]}, "num_blocks": 1, "seed": 1, **arguments},
        "inverse_learning": None,
        "bits_per_dim": False,
        "dtype_policy": "float32",
        "name": "flow_model",
    }


GLOW = {"steps_per_block": 1, "width": 2, "act_norm": False}


@pytest.mark.parametrize(
    ("earlier", "present"),
    [
        ({"mixing": "self_norm", "mixture": 0.25}, {"layer": "self_norm", "mixture": 0.25}),
        ({"mixing": "exact", "inversion": None}, {"gradient": "exact", "inversion": None}),
        ({"mixing": "lu", "mixture": 0.25, "inversion": "exact"}, {"layer": "lu"}),
    ],
    ids=["self_norm", "exact", "lu"],
)
def test_the_mixing_of_earlier_configs_is_the_layer(earlier, present):
    model = sn.FlowModel.from_config(config_of("glow_flow", **GLOW, **earlier))
    present = {**present, "centering": False}
    expected = sn.glow_flow((4, 4, 1), num_blocks=1, seed=1, **GLOW, **present)
    # What is saved next has today's words.
    arguments = model.get_config()["arguments"]
    assert arguments == config_of("glow_flow", **GLOW, **present)["arguments"]
    layers, expected_layers = sn.self_norm_layers(model.distribution), sn.self_norm_layers(expected)
    assert len(layers) == len(expected_layers) == (present.get("layer") != "lu")
    for layer, other in zip(layers, expected_layers, strict=True):
        for option in ("gradient", "mixture", "inversion"):
            assert getattr(layer, option) == getattr(other, option)
    x = np.random.default_rng(0).normal(size=[3, 4, 4, 1]).astype(np.float32)
    np.testing.assert_array_equal(model.log_prob(x), expected.log_prob(x))


def test_options_that_had_no_effect_in_earlier_configs():
    options = {"gradient": "self_norm", "mixture": 0.5, "inversion": None, "layer": "emerging"}
    model = sn.FlowModel.from_config(config_of("conv_flow", **options))
    expected = sn.conv_flow((4, 4, 1), num_blocks=1, layer="emerging", centering=False, seed=1)
    x = np.random.default_rng(0).normal(size=[3, 4, 4, 1]).astype(np.float32)
    np.testing.assert_array_equal(model.log_prob(x), expected.log_prob(x))


@pytest.mark.parametrize("mixing", ["qr", None, ["lu"]])
def test_a_wrong_mixing_in_a_config(mixing):
    with pytest.raises(ValueError, match="`layer` must be one of"):
        sn.FlowModel.from_config(config_of("glow_flow", **GLOW, mixing=mixing))
