"""The named experiments without their training, which `test_train.py` has."""

import inspect

import pytest
from presets import BUILDERS, PRESETS

from tfp_selfnorm.flows.building import SELF_NORM_OPTIONS


@pytest.mark.parametrize("name", PRESETS)
def test_the_builder_of_a_preset_has_its_arguments(name):
    preset = PRESETS[name]
    parameters = inspect.signature(BUILDERS[preset.builder]).parameters
    assert set(preset.flow) <= set(parameters) | set(SELF_NORM_OPTIONS)
