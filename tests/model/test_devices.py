"""A step that XLA compiles for a GPU, Keras's default there, reaches the variables of the GPU alone."""

import pytest
import tensorflow as tf
from life_models import BUILDERS, make_model


@pytest.mark.parametrize("builder", BUILDERS)
def test_no_variable_of_a_model_is_one_that_tensorflow_keeps_on_the_host(builder):
    model = make_model(builder)
    model.optimizer.build(model.trainable_variables)
    state = [*model.variables, *model.optimizer.variables]
    assert state
    assert [v.path for v in state if v.value.dtype == tf.int32] == []
