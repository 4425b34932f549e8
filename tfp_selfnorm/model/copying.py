"""Pickles and deep copies of a `FlowModel` that was made from a distribution."""

import copy

from tfp_selfnorm.model.saving import own_variables


def reduce_model(model):
    """What `__reduce__` returns for a `FlowModel` of a distribution: parts, state, compilation."""
    options = {
        "inverse_learning": model.inverse_learning,
        "bits_per_dim": model.reports_bits_per_dim,
        "name": model.name,
    }
    values = {}
    model.save_own_variables(values)
    trainable = model._named.trainable_names
    state = [] if model.optimizer is None else [variable.numpy() for variable in model.optimizer.variables]
    compiled = model.get_compile_config()
    return _model_anew, (type(model), model.distribution, options, trainable, values, compiled, state)


def deep_copy_model(model, memo):
    """A copy of a `FlowModel` that shares no variable with it.

    Raises:
      ValueError: if a variable is out of reach of a copy, because only a function knows it.
    """
    function, arguments = model.__reduce__()
    copied = function(*copy.deepcopy(arguments, memo))
    own = {id(variable.value) for variable in model._flow_variables.values()}
    shared = [name for name, variable in copied._flow_variables.items() if id(variable.value) in own]
    if shared:
        raise ValueError(
            f"The model cannot be copied: only a function knows {', '.join(f'`{name}`' for name in shared)}, "
            "and Python copies no functions. Make the model with `FlowModel.from_builder`, or make the "
            "distribution a second time and give its model the weights by `get_weights` and `set_weights`."
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
