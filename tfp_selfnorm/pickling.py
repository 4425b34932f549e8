"""Pickles and deep copies of bijectors, distributions and models: made anew from their parameters."""

import copy
import copyreg

import tensorflow_probability as tfp

_TFP_TYPES = (tfp.bijectors.Bijector, tfp.distributions.Distribution)


def by_parameters(value):
    """What `__reduce__` returns for a TFP object: its class and the arguments of its constructor.

    What an object keeps beside them, such as traces of earlier calls, is not for a copy.
    """
    return _made_anew, (type(value), dict(value.parameters))


def reduce_model(model):
    """What `__reduce__` returns for a `FlowModel` of a distribution: parts, state, compilation."""
    options = {
        "inverse_learning": model.inverse_learning,
        "bits_per_dim": model._bits_per_dim is not None,
        "name": model.name,
    }
    values = {}
    model.save_own_variables(values)
    trainable = [name for name, variable in model._adopted.items() if variable.trainable]
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
    own = {id(variable.value) for variable in model._adopted.values()}
    shared = [name for name, variable in copied._adopted.items() if id(variable.value) in own]
    if shared:
        raise ValueError(
            f"The model cannot be copied: only a function knows {', '.join(f'`{name}`' for name in shared)}, "
            "and Python copies no functions. Make the model with `FlowModel.from_builder`, or make the "
            "distribution a second time and give its model the weights by `get_weights` and `set_weights`."
        )
    memo[id(model)] = copied
    return copied


def _made_anew(kind, parameters):
    return kind(**parameters)


def _model_anew(kind, distribution, options, trainable, values, compiled, state):
    model = kind(distribution, **options)
    for name, variable in model._adopted.items():
        variable.trainable = name in trainable
    if compiled:
        model.compile_from_config(compiled)
        for variable, value in zip(model.optimizer.variables, state, strict=True):
            variable.assign(value)
    for name, variable in model._own_variables().items():
        variable.assign(values[name])
    model._refresh.take_weights()
    return model


def _register_tfp():
    """TFP's classes whose `__new__` asks for arguments, such as `tfb.Invert`, have no pickles otherwise."""
    for public in (*vars(tfp.bijectors).values(), *vars(tfp.distributions).values()):
        if isinstance(public, type) and issubclass(public, _TFP_TYPES):
            # Of parts that are no composite tensors such a class makes an object of a private base class.
            for kind in public.__mro__:
                if issubclass(kind, _TFP_TYPES) and public.__new__ is not object.__new__:
                    copyreg.pickle(kind, by_parameters)


_register_tfp()
