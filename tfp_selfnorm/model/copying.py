"""Pickles and deep copies of a `FlowModel` that was made from a distribution."""

import copy
from typing import Any

import keras
import numpy as np

from tfp_selfnorm.model.saving import own_variables


def reduce_model(model: keras.Model) -> tuple:
    """Returns the result of `__reduce__` for a `FlowModel` of a distribution: parts, state, compilation."""
    values: dict[str, np.ndarray] = {}
    model.save_own_variables(values)
    of_layers = [variable.numpy() for variable in _variables_of_own_layers(model)]
    weights = values, of_layers, model._refresh.inverses.state
    trainable = model._named.trainable_names
    state = [] if model.optimizer is None else [variable.numpy() for variable in model.optimizer.variables]
    compiled = model.get_compile_config(), state
    return _model_anew, (type(model), *model._arguments, model.name, trainable, weights, compiled)


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


def _variables_of_own_layers(model):
    """The variables of the layers that a subclass adds."""
    own = {id(variable) for variable in model._named.all.values()}
    return [variable for variable in model.weights if id(variable) not in own]


def _model_anew(kind, args, kwargs, name, trainable, weights, compiled):
    model = kind.__new__(kind, *args, **kwargs)
    object.__setattr__(model, "_name_of_copy", name)
    kind.__init__(model, *args, **kwargs)
    model._named.train_only(trainable)
    config, state = compiled
    if config:
        model.compile_from_config(config)
        for variable, value in zip(model.optimizer.variables, state, strict=True):
            variable.assign(value)
    values, values_of_layers, state_of_inverses = weights
    for name, variable in own_variables(model).items():
        variable.assign(values[name])
    for variable, value in zip(_variables_of_own_layers(model), values_of_layers, strict=True):
        variable.assign(value)
    model._refresh.take_weights()
    model._refresh.inverses.state = state_of_inverses
    return model
