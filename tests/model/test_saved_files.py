"""Files that version 0.1.0 saved load to the bit; `make_saved_files.py` made them."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from make_saved_files import FOLDER, NAMES, events, make_model


def check_file(model, file):
    """Each variable, and the state of the optimizer, is that of the file, read apart from Keras."""
    with h5py.File(file) as weights:
        saved = {name: np.asarray(dataset) for name, dataset in weights["vars"].items()}
        state = [np.asarray(weights["optimizer/vars"][str(i)]) for i in range(len(weights["optimizer/vars"]))]
    assert len(saved) > 5
    variables = model.named_variables
    for name, value in saved.items():
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
