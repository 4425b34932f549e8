"""Keras variables and layers for the variables and networks of a distribution."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfp_selfnorm.utils.compat import add_sublayer

# The Keras variables that models made, by the references of the variables that they wrap. Models that share
# a variable share its wrapper.
_WRAPPERS: weakref.WeakValueDictionary[Any, "_Wrapper"] = weakref.WeakValueDictionary()


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
      frozen: references of variables of the network that the model must not train, see `wrap_variables`.
    """

    def __init__(self, network: keras.Layer, frozen: Iterable = ()) -> None:
        super().__init__(name=network.name, dtype=network.dtype_policy)
        add_sublayer(self, network)
        self._frozen_references = frozenset(frozen)
        self.built = True

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the network; the model has wrappers of the frozen ones."""
        return [v for v in super().variables if v.value.ref() not in self._frozen_references]

    @property
    def weights(self) -> list[keras.Variable]:
        """The weights of the network, without the frozen ones."""
        return [w for w in super().weights if w.value.ref() not in self._frozen_references]

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: the model saves the variables."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing: the model loads the variables."""
