"""The checks of `keras_life.py`; what other tests cover for a builder is not repeated here."""

import keras_life
import pytest

# XLA and eager fits of image flows are in test_flow_model_images.py, SavedModels in test_export.py.
RUN = {
    "dense_flow": keras_life.CHECKS,
    "conv_flow": ["save/load", "weights", "SIGKILL, resume", "Mirrored"],
    "glow_flow": ["save/load", "two workers", "float16", "bfloat16"],
    "glow_flow, lu": ["weights"],
    "conv_flow, circulant": ["save/load", "export"],
    "free_form_flow": ["save/load", "weights", "export", "SIGKILL, resume", "float16", "run_eagerly"],
    "free_form_flow, exact": ["Mirrored"],
    "coupling_flow, conditions": keras_life.CHECKS,
    "autoregressive_flow, conditions": ["save/load", "export", "SIGKILL, resume", "float16"],
}


@pytest.mark.parametrize(
    ("builder", "check"), [(builder, check) for builder in RUN for check in RUN[builder]]
)
def test_life(builder, check, tmp_path):
    keras_life.CHECKS[check](builder, tmp_path)
