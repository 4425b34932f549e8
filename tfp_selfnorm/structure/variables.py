"""Finds every layer and variable that a distribution depends on, and wraps variables for Keras."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tf_keras

from tfp_selfnorm.bijectors.adaptable import adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.structure.names import CALLS, natural_order, own_name
from tfp_selfnorm.structure.network_search import find_networks, find_templates
from tfp_selfnorm.utils.compat import add_sublayer
from tfp_selfnorm.utils.types import TfpObject

# The Keras variables that models made, by the references of the variables that they wrap. Models that share
# a variable share its wrapper.
_WRAPPERS: weakref.WeakValueDictionary[Any, "_Wrapper"] = weakref.WeakValueDictionary()


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
    with adaptation_mode("ignore"), _without_a_trace(distribution), _explaining_failures():
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


def wrap_variables(
    variables: Mapping[str, tf.Variable],
    keras_variables: Mapping[Any, keras.Variable],
    networks: Iterable,
    frozen: Iterable[tf.Variable] = (),
) -> dict[str, keras.Variable]:
    """Makes a mapping from the names to Keras variables that share the storage of the `tf.Variable`s.

    If a Keras network made the variable, it is the network's own Keras variable. Otherwise it is a new one,
    with the constraint, the aggregation and the synchronization of the `tf.Variable`. A variable of a
    tf_keras layer is trainable as long as the layer is.

    Args:
      variables: mapping from names to the variables; see `name_variables`.
      keras_variables: mapping from references of variables to Keras variables.
      networks: Keras layers, of Keras 3 and of tf_keras.
      frozen: variables that Keras must not train, although they are trainable.
    """
    frozen_references = {variable.ref() for variable in frozen}
    tf_networks = [network for network in networks if isinstance(network, tf_keras.layers.Layer)]
    owners = {v.ref(): network for network in tf_networks for v in network.weights}

    def wrap(variable, name):
        is_frozen = variable.ref() in frozen_references
        known = keras_variables.get(variable.ref())
        if known is not None and not is_frozen:
            return known
        trainable, owner = variable.trainable and not is_frozen, owners.get(variable.ref())
        other = _WRAPPERS.get(variable.ref())
        # If a variable had two wrappers, the optimizer of a bigger model would update it twice in a step.
        if other is not None and other.is_like(owner, trainable, name):
            return other
        _WRAPPERS[variable.ref()] = wrapper = _Wrapper(variable, owner, trainable, name)
        return wrapper

    return {name: wrap(variable, name) for name, variable in variables.items()}


class _Wrapper(keras.Variable):
    """A Keras variable for a `tf.Variable` that Keras did not make."""

    def __init__(self, variable: tf.Variable, owner: Any, trainable: bool, name: str) -> None:
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

    def is_like(self, owner: Any, trainable: bool, name: str) -> bool:
        """Whether a wrapper with these arguments would be the same."""
        return (self._owner, self._trainable, self.name) == (owner, trainable, name)

    @property
    def trainable(self) -> bool:
        """Whether it is trainable. A variable of a tf_keras layer is trainable as long as the layer is."""
        owner = self._owner
        return self._trainable and (
            owner is None or any(weight is self._value for weight in owner.trainable_weights)
        )

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)


class _TensorConstraint(keras.constraints.Constraint):
    """A Keras constraint from the constraint of a `tf.Variable`, a function of tensors."""

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor]) -> None:
        self._function = function

    def __call__(self, value: Any) -> tf.Tensor:
        return self._function(tf.convert_to_tensor(value))


class NetworkHolder(keras.Layer):
    """Lets a model treat a network as its own layer, for losses, freezing and training mode.

    Files of a `FlowModel` hold variables by names. Keras's own saving follows attributes, and the holder has
    none.

    Args:
      network: a layer of Keras 3.
    """

    def __init__(self, network: keras.Layer) -> None:
        super().__init__(name=network.name, dtype=network.dtype_policy)
        add_sublayer(self, network)
        self.built = True

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: the model saves the variables."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing: the model loads the variables."""


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
def _explaining_failures():
    try:
        yield
    except Exception as error:
        if "singleton tf.Variables" in str(error):
            raise ValueError(
                "`distribution` makes variables anew at each call, such as by `keras.layers.Dense(2)(x)` in "
                "a function. Training cannot reach them. Make the networks once, outside of the function."
            ) from error
        raise ValueError(
            "`distribution` must sample and score without further arguments in a FlowModel; got "
            f"{type(error).__name__}: {error}\nIf it needs a condition (`bijector_kwargs`), use a "
            "ConditionalFlowModel, or a loop of your own; see 'Without Keras's fit' in the README."
        ) from error


def _trace(function: Callable[[], Any]) -> tuple[Any, list, dict]:
    """Traces a function: its scope, the variables that it reads, and the Keras 3 variables among them.

    The variables are in the order of their first reads.
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
    """Calls a function in training mode, as a model calls its layers."""

    def __init__(self) -> None:
        super().__init__(name="training_mode", dtype="float32", autocast=False)
        self.built = True

    def call(self, function, training=True):
        function()


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
        raise ValueError(
            f"`{layer_pass.layer.name}` maps data to latent by its learned inverse, `forward_kernel`. Inside "
            "tfb.Invert a layer does so. Exchange its two kernels instead, or make it with "
            "`inversion='exact'`."
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
