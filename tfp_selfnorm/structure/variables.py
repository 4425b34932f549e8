"""Finds every layer and variable that a distribution depends on."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_selfnorm.bijectors.adaptable import adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.structure.names import CALLS, natural_order, own_name
from tfp_selfnorm.structure.network_search import find_networks, find_templates
from tfp_selfnorm.utils.types import TfpObject


class LayersAndVariables(NamedTuple):
    """The layers and variables that a distribution depends on, each once.

    Attributes:
      layers: its self-normalizing layers.
      variables: its variables.
      networks: its outermost Keras layers, of Keras 3 and of tf_keras.
      keras_variables: mapping from the references of variables that Keras 3 made to the Keras variables.
    """

    layers: list
    variables: list
    networks: list
    keras_variables: dict


def find_layers_and_variables(distribution: TfpObject, condition: Any = None) -> LayersAndVariables:
    """Finds the layers and variables that the distribution holds, and those that its `log_prob` reads.

    TFP does not see networks in closures and templates, and layers made by them. One trace of `log_prob`
    finds their variables. It runs in training mode, so that it finds random states and moving statistics too.

    Args:
      distribution: a TFP distribution.
      condition: a batch of one condition, if the distribution needs one.

    Raises:
      ValueError: if the distribution needs further arguments; if it makes new variables at each call; if a
        variable belongs to another distribution strategy than the current one; or if a layer that only a
        function knows learns its inverse.
    """
    arguments = condition_arguments(condition)
    with adaptation_mode("ignore"), _without_a_trace(distribution), _explaining_failures(condition):
        # Some networks make their variables at the first call, which is here.
        sample = distribution.sample(1, seed=0, **arguments)
        templates = find_templates(distribution)
        if templates:
            # A template whose second call is in a graph treats later eager calls as calls in that graph.
            sample = distribution.sample(1, seed=0, **arguments)
        scope, read, keras_variables = _trace(lambda: distribution.log_prob(tf.identity(sample), **arguments))
    held_layers = self_norm_layers(distribution)
    layers = {layer.identity: layer for layer in (*held_layers, *scope.layers)}
    for layer in layers.values():
        _check_hidden(layer, is_hidden=all(layer.identity != other.identity for other in held_layers))
    # A layer that is made anew at each call holds tensors of the graph, and is left out.
    layers = {k: layer for k, layer in layers.items() if not tf.is_symbolic_tensor(layer.maps[0])}
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
        hidden = _in_an_order_of_their_own(hidden, in_templates, distribution, arguments)
    variables = [*held.values(), *hidden.values()]
    for variable in variables:
        _check_strategy(variable)
    known = {*held, *hidden}
    # A function may name networks that it does not call.
    networks = [n for n in networks if not n.variables or any(_reference(v) in known for v in n.variables)]
    inside = [v.value for n in networks if isinstance(n, keras.Layer) for v in n.variables]
    variables += [v for v in inside if v.ref() not in known]
    return LayersAndVariables(list(layers.values()), variables, networks, keras_variables)


@contextlib.contextmanager
def _without_a_trace(distribution):
    """Restores the values of the variables, and the initial values of variables that were made inside.

    Some bijectors set their variables from the first events, such as TFP's `ActNorm` in `tfb.Glow`.
    """
    networks = [network for network in find_networks(distribution) if network.built]
    held = [*distribution.variables, *(v for network in networks for v in network.weights)]
    variables = {_reference(v): v.value if isinstance(v, keras.Variable) else v for v in held}
    values = [(variable, tf.identity(variable)) for variable in variables.values()]

    def remember(next_creator, **kwargs):
        variable = next_creator(**kwargs)
        if tf.executing_eagerly():
            values.append((variable, tf.identity(variable)))
        return variable

    with tf.variable_creator_scope(remember):
        yield
    for variable, value in values:
        if not tf.reduce_all(tf.equal(variable, value)):
            variable.assign(value)


@contextlib.contextmanager
def _explaining_failures(condition):
    try:
        yield
    except Exception as error:
        if "singleton tf.Variables" in str(error):
            raise ValueError(
                "`distribution` makes variables anew at each call, such as by `keras.layers.Dense(2)(x)` in "
                "a function. Training cannot reach them. Make the networks once, outside of the function."
            ) from error
        rule = "without further arguments in a FlowModel"
        advice = "If it needs a condition (`bijector_kwargs`), use a ConditionalFlowModel, or a loop of your "
        advice += "own; see the guide 'Without Keras's fit'."
        if condition is not None:
            rule = "with a condition in a ConditionalFlowModel"
            advice = "Each network must take the condition. If none does, use a FlowModel."
        raise ValueError(
            f"`distribution` must sample and score {rule}; got {type(error).__name__}: {error}\n{advice}"
        ) from error


def _trace(function: Callable[[], Any]) -> tuple[Any, list, dict]:
    """Traces a function: its scope, the variables that it reads, and the Keras 3 variables among them.

    The variables are in the order of their first reads.
    """
    recorder, scopes = _Recorder(), []

    def traced():
        with recorder, training_scope(None) as scope:
            layer = _InTrainingMode()
            layer(function=function)
            if layer.error is not None:
                raise layer.error
        scopes.append(scope)

    graph = tf.function(traced, autograph=False).get_concrete_function().graph
    handles = [id(handle) for handle, _ in graph.captures]
    order = {handle: position for position, handle in enumerate(handles)}
    read = sorted(graph.variables, key=lambda v: order.get(id(_handle(v)), len(order)))
    keras_variables = {v.value.ref(): v for v in recorder.found.values() if isinstance(v.value, tf.Variable)}
    return scopes[0], _without_copies(read, [v.value for v in keras_variables.values()]), keras_variables


class _InTrainingMode(keras.Layer):
    """Calls a function in training mode, as a model calls its layers."""

    def __init__(self) -> None:
        super().__init__(name="training_mode", dtype="float32", autocast=False)
        self.built = True
        self.error: Exception | None = None

    def call(self, function, training=True):
        try:
            function()
        except Exception as error:
            # Keras would add the call of this layer to the message.
            self.error = error


class _Recorder(keras.StatelessScope):
    """Collects the Keras variables that are read inside it, and prevents changes of their values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, keras.Variable] = {}

    def get_current_value(self, variable):
        self.found[id(variable)] = variable
        return super().get_current_value(variable)


def _in_an_order_of_their_own(variables, in_templates, distribution, arguments):
    """Sorts variables by their own names. Variables that calls made follow, by their first reads in `sample`.

    The order of calls, and so the names that they give, can differ between processes.
    """
    made = [r for r, v in variables.items() if r in in_templates or CALLS.match(own_name(v))]
    before = [reference for reference in variables if reference not in made]
    before.sort(key=lambda reference: natural_order(own_name(variables[reference])))
    if len(made) > 1:
        with adaptation_mode("ignore"):
            _, read, _ = _trace(lambda: distribution.sample(1, seed=0, **arguments))
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
    """Replaces copies by their variables. Under a distribution strategy a graph reads copies on devices."""
    local = tf.distribute.get_strategy().experimental_local_results
    containers = {copy.ref(): variable for variable in variables for copy in local(variable)}
    return [containers.get(variable.ref(), variable) for variable in read]


def _check_direction(layer_pass):
    """Refuses a layer inside tfb.Invert: `log_prob` would score R, and W would follow."""
    if layer_pass.direction == "forward":
        layer = layer_pass.layer
        inverse, two = ("forward_kernel", "kernels") if layer.is_constant_jacobian else ("decoder", "maps")
        raise ValueError(
            f"`{layer.name}` maps data to latent by its learned inverse, `{inverse}`. Inside tfb.Invert a "
            f"layer does so. Exchange its two {two} instead, or make it with `inversion='exact'`."
        )


def _check_hidden(layer, is_hidden):
    """Refuses a hidden layer with two log-dets: a bijector such as tfb.RealNVP may use the one of R."""
    has_one_log_det = layer.inversion == "exact" and (layer.gradient != "self_norm" or layer.mixture == 1.0)
    if is_hidden and not has_one_log_det:
        raise ValueError(
            f"`{layer.name}` is made or held by a function, such as the `bijector_fn` of tfb.RealNVP. The "
            "log-det of its learned inverse could then be used instead of its own. Make it with "
            "`inversion='exact', mixture=1.0`."
        )


def _check_strategy(variable):
    strategy = tf.distribute.get_strategy()
    if not strategy.extended.variable_created_in_scope(variable):
        raise ValueError(
            f"Variable `{variable.name}` was not made under {type(strategy).__name__}, the current "
            "distribution strategy. Make the distribution and the FlowModel in the same "
            "`with strategy.scope():`."
        )
