"""Finds every layer and variable that a distribution depends on, and wraps variables for Keras."""

import contextlib
import weakref
from typing import NamedTuple

import keras
import tensorflow as tf
import tf_keras

from tfp_selfnorm.bijectors.act_norm import act_norm_mode
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.structure.names import CALLS, natural_order, own_name
from tfp_selfnorm.structure.network_search import find_networks, find_templates

# What models made of variables, by the references of these: models that share a variable share it.
_WRAPPERS = weakref.WeakValueDictionary()


class LayersAndVariables(NamedTuple):
    """What a distribution depends on.

    `layers` are its self-normalizing layers, `variables` its variables, `networks` its outermost Keras
    layers, of Keras 3 and of tf_keras; each is there once. `keras_variables` maps the references of the
    variables that Keras 3 made to the variables of Keras.
    """

    layers: list
    variables: list
    networks: list
    keras_variables: dict


def find_layers_and_variables(distribution) -> LayersAndVariables:
    """Finds what the distribution holds, and what its `log_prob` reads.

    Networks in closures and templates, and layers made by them, TFP does not see. Tracing `log_prob` once
    finds their variables, in training mode, so that random states and moving statistics are among them.

    Raises:
      ValueError: if the distribution needs further arguments or makes variables anew at each call, a
        variable belongs to another distribution strategy than the current one, or a layer that only a
        function knows learns its inverse.
    """
    with act_norm_mode("ignore"), _without_a_trace(distribution), _explaining_failures():
        # Networks that make their variables at the first call make them here.
        sample = distribution.sample(1, seed=0)
        templates = find_templates(distribution)
        if templates:
            # A template whose second call is in a graph takes later eager calls for calls in that graph.
            sample = distribution.sample(1, seed=0)
        scope, read, keras_variables = _trace(lambda: distribution.log_prob(tf.identity(sample)))
    held_layers = self_norm_layers(distribution)
    layers = {layer.identity: layer for layer in (*held_layers, *scope.layers)}
    for layer in layers.values():
        _check_hidden(layer, is_hidden=all(layer.identity != other.identity for other in held_layers))
    # Those that are made anew at each call hold tensors of the graph.
    layers = {k: layer for k, layer in layers.items() if not tf.is_symbolic_tensor(layer.inverse_kernel)}
    for layer_pass in scope.passes:
        _check_direction(layer_pass)
    networks = find_networks(distribution)
    for network in networks:
        if isinstance(network, keras.Layer):
            keras_variables |= {v.value.ref(): v for v in network.variables}
    held = {v.ref(): v for v in distribution.variables}
    read = _without_copies(read, distribution.variables)
    hidden = {v.ref(): v for v in read if v.ref() not in held}
    if len(hidden) > 1:
        in_templates = [v.ref() for template in templates for v in template.variables]
        hidden = _in_an_order_of_their_own(hidden, in_templates, distribution)
    variables = [*held.values(), *hidden.values()]
    for variable in variables:
        _check_strategy(variable)
    known = {*held, *hidden}
    # A function may name more networks than it calls.
    networks = [n for n in networks if not n.variables or any(_reference(v) in known for v in n.variables)]
    inside = [v.value for n in networks if isinstance(n, keras.Layer) for v in n.variables]
    variables += [v for v in inside if v.ref() not in known]
    return LayersAndVariables(list(layers.values()), variables, networks, keras_variables)


def wrap_variables(variables, keras_variables, networks, frozen=()) -> dict:
    """A Keras variable for each `tf.Variable`, by the names; it shares its storage.

    That is the variable of the Keras network which made it, with all that Keras reads from it. For others a
    new one takes the constraint, the aggregation and the synchronization over. Those of a tf_keras layer
    train as long as the layer does.

    Args:
      variables: mapping from names to the variables; see `name_variables`.
      keras_variables: mapping from references of variables to the variables of Keras.
      networks: Keras layers, of Keras 3 and of tf_keras.
      frozen: variables that Keras is not to train, although they are trainable.
    """
    frozen_references = {variable.ref() for variable in frozen}
    owners = [network for network in networks if isinstance(network, tf_keras.layers.Layer)]
    owners = {v.ref(): network for network in owners for v in network.weights}

    def wrap(variable, name):
        is_frozen = variable.ref() in frozen_references
        known = keras_variables.get(variable.ref())
        if known is not None and not is_frozen:
            return known
        trainable, owner = variable.trainable and not is_frozen, owners.get(variable.ref())
        other = _WRAPPERS.get(variable.ref())
        # An optimizer of a bigger model would take two steps of a variable that has two.
        if other is not None and other.is_like(owner, trainable, name):
            return other
        _WRAPPERS[variable.ref()] = wrapper = _Wrapper(variable, owner, trainable, name)
        return wrapper

    return {name: wrap(variable, name) for name, variable in variables.items()}


class _Wrapper(keras.Variable):
    """A `tf.Variable` that Keras did not make, with what Keras reads from one that it made."""

    def __init__(self, variable, owner, trainable, name):
        self._owner = owner
        super().__init__(
            variable,
            trainable=trainable,
            name=name,
            aggregation=variable.aggregation.name.lower(),
            synchronization=variable.synchronization.name.lower(),
        )
        constraint = getattr(variable, "constraint", None)
        if constraint is not None:
            self.constraint = _TensorConstraint(constraint)

    def is_like(self, owner, trainable, name):
        """Whether another model that makes it so can share it."""
        return (self._owner, self._trainable, self.name) == (owner, trainable, name)

    @property
    def trainable(self):
        """Whether it trains; that of a tf_keras layer does as long as the layer does."""
        owner = self._owner
        return self._trainable and (
            owner is None or any(weight is self._value for weight in owner.trainable_weights)
        )

    @trainable.setter
    def trainable(self, value):
        self._trainable = bool(value)


class _TensorConstraint(keras.constraints.Constraint):
    """The constraint of a `tf.Variable`, a function of tensors, as one of Keras."""

    def __init__(self, function):
        self._function = function

    def __call__(self, value):
        return self._function(tf.convert_to_tensor(value))


class NetworkHolder(keras.Layer):
    """Lets a model treat a network as its own layer, for losses, freezing and training mode.

    Files of a `FlowModel` hold variables by names. Keras's saving, which goes by attributes, finds none here.
    """

    def __init__(self, network):
        super().__init__(name=network.name, dtype=network.dtype_policy)
        self._tracker.add_to_store("layers", network)
        self.built = True

    def save_own_variables(self, store):
        """Leaves the variables to the model."""

    def load_own_variables(self, store):
        """Leaves the variables to the model."""


@contextlib.contextmanager
def _without_a_trace(distribution):
    """Gives variables the values back that they had before, or were made with.

    A bijector such as TFP's `ActNorm` in `tfb.Glow` takes its start from the first events that it is passed.
    """
    networks = [network for network in find_networks(distribution) if network.built]
    variables = [*distribution.variables, *(v for network in networks for v in network.weights)]
    variables = {_reference(v): v.value if isinstance(v, keras.Variable) else v for v in variables}
    kept = [(variable, tf.identity(variable)) for variable in variables.values()]

    def keep(next_creator, **kwargs):
        variable = next_creator(**kwargs)
        if tf.executing_eagerly():
            kept.append((variable, tf.identity(variable)))
        return variable

    with tf.variable_creator_scope(keep):
        yield
    for variable, value in kept:
        if not tf.reduce_all(tf.equal(variable, value)):
            variable.assign(value)


@contextlib.contextmanager
def _explaining_failures():
    try:
        yield
    except Exception as error:
        if "singleton tf.Variables" in str(error):
            raise ValueError(
                "`distribution` makes variables anew at each call, as `keras.layers.Dense(2)(x)` in a "
                "function does: no training would reach them. Make its networks once, outside of it."
            ) from error
        raise ValueError(
            "`distribution` cannot sample and score without further arguments, as a FlowModel has it do: "
            f"{type(error).__name__}: {error}\nIf it needs a condition (`bijector_kwargs`), train it by a "
            "loop of your own, as under 'Without Keras's fit' in the README."
        ) from error


def _trace(function):
    """What a function reads when it is traced: the scope it was in, the variables, and those of Keras 3.

    The variables are in the order of the first reads.
    """
    recorder, scopes = _Recorder(), []

    def traced():
        with recorder, training_scope(None) as scope:
            _InTrainingMode()(function=function)
        scopes.append(scope)

    graph = tf.function(traced, autograph=False).get_concrete_function().graph
    handles = [id(handle) for handle, _ in graph.captures]
    order = {handle: position for position, handle in enumerate(handles)}
    read = sorted(graph.variables, key=lambda v: order.get(id(_handle(v)), len(order)))
    keras_variables = {v.value.ref(): v for v in recorder.found.values() if isinstance(v.value, tf.Variable)}
    return scopes[0], _without_copies(read, [v.value for v in keras_variables.values()]), keras_variables


class _InTrainingMode(keras.Layer):
    """Calls a function as a model in training calls its layers."""

    def __init__(self):
        super().__init__(name="training_mode", dtype="float32", autocast=False)
        self.built = True

    def call(self, function, training=True):
        function()


class _Recorder(keras.StatelessScope):
    """Collects the variables of Keras that are read within it, and keeps their values from changes."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def get_current_value(self, variable):
        self.found[id(variable)] = variable
        return super().get_current_value(variable)


def _in_an_order_of_their_own(variables, in_templates, distribution):
    """The order in which they were made, and of those that calls make, that of the first reads in `sample`.

    The calls that came first, and so the names that they gave, are not the same in each process.
    """
    made = [r for r, v in variables.items() if r in in_templates or CALLS.match(own_name(v))]
    before = [reference for reference in variables if reference not in made]
    before.sort(key=lambda reference: natural_order(own_name(variables[reference])))
    if len(made) > 1:
        with act_norm_mode("ignore"):
            _, read, _ = _trace(lambda: distribution.sample(1, seed=0))
        made = list(dict.fromkeys([*(v.ref() for v in read if v.ref() in made), *made]))
    return {reference: variables[reference] for reference in (*before, *made)}


def _reference(variable):
    return (variable.value if isinstance(variable, keras.Variable) else variable).ref()


def _handle(variable):
    try:
        return variable.handle
    except (AttributeError, ValueError):
        return None


def _without_copies(read, variables):
    """Under a distribution strategy a graph reads the copies on a device: the variables in their place."""
    local = tf.distribute.get_strategy().experimental_local_results
    containers = {copy.ref(): variable for variable in variables for copy in local(variable)}
    return [containers.get(variable.ref(), variable) for variable in read]


def _check_direction(layer_pass):
    """Inside tfb.Invert the roles are exchanged: R would be scored, and W the one that learns to follow."""
    if layer_pass.direction == "forward":
        raise ValueError(
            f"`{layer_pass.layer.name}` maps data to latent by its learned inverse, `forward_kernel`, as it "
            "does inside tfb.Invert. Exchange its two kernels instead, or make it with `inversion='exact'`."
        )


def _check_hidden(layer, is_hidden):
    """Bijectors such as tfb.RealNVP ask for log-dets at new tensors, in the direction from latent to data."""
    has_one_log_det = layer.inversion == "exact" and (layer.gradient != "self_norm" or layer.mixture == 1.0)
    if is_hidden and not has_one_log_det:
        raise ValueError(
            f"`{layer.name}` is made or held by a function, such as the `bijector_fn` of tfb.RealNVP, which "
            "may ask for the log-det of its learned inverse in place of its own; make it with "
            "`inversion='exact', mixture=1.0`."
        )


def _check_strategy(variable):
    strategy = tf.distribute.get_strategy()
    if not strategy.extended.variable_created_in_scope(variable):
        raise ValueError(
            f"Variable `{variable.name}` was not made under {type(strategy).__name__}, the current "
            "distribution strategy; make the distribution and the FlowModel under the same "
            "`with strategy.scope():`."
        )
