"""Pickles and deep copies of a `FlowModel` that was made from a distribution."""

import copy
from typing import Any

import keras
import numpy as np

from tfp_selfnorm.model.saving import own_variables


def reduce_model(model: keras.Model) -> tuple:
    """Returns the result of `__reduce__` for a `FlowModel` of a distribution: parts, state, compilation."""
    options = {
        "inverse_learning": model.inverse_learning,
        "bits_per_dim": model.reports_bits_per_dim,
        "name": model.name,
    }
    values: dict[str, np.ndarray] = {}
    model.save_own_variables(values)
    trainable = model._named.trainable_names
    state = [] if model.optimizer is None else [variable.numpy() for variable in model.optimizer.variables]
    compiled = model.get_compile_config()
    return _model_anew, (type(model), model.distribution, options, trainable, values, compiled, state)


def deep_copy_model(model: keras.Model, memo: dict[int, Any]) -> Any:
    """Returns a copy of a `FlowModel` that shares no variable with it.

    Raises:
      ValueError: if only a Python function holds a variable, which then cannot be copied.
    """
    function, arguments = model.__reduce__()
    copied = function(*copy.deepcopy(arguments, memo))
    own = {id(variable.value) for variable in model._flow_variables.values()}
    shared = [name for name, variable in copied._flow_variables.items() if id(variable.value) in own]
    if shared:
        raise ValueError(
            f"The model cannot be copied: only a function holds {', '.join(f'`{name}`' for name in shared)}, "
            "and Python copies no functions. Make the model with `FlowModel.from_builder`. Or make the "
            "distribution again, and give its model the weights by `get_weights` and `set_weights`."
        )
    memo[id(model)] = copied
    return copied


def _model_anew(kind, distribution, options, trainable, values, compiled, state):
    model = kind(distribution, **options)
    model._named.train_only(trainable)
    if compiled:
        model.compile_from_config(compiled)
        for variable, value in zip(model.optimizer.variables, state, strict=True):
            variable.assign(value)
    for name, variable in own_variables(model).items():
        variable.assign(values[name])
    model._refresh.take_weights()
    return model
