"""`Coupling`, the base class of the couplings: a network of some channels changes the other channels."""

import abc
import inspect
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.channels import number_of_first_channels
from tfp_selfnorm.bijectors.composite import OptionalComposite
from tfp_selfnorm.bijectors.network_call import (
    call_network,
    check_network,
    flat_condition,
    keras_weights,
    with_one_batch_dimension,
)
from tfp_selfnorm.bijectors.pair_memory import PairMemory
from tfp_selfnorm.utils.compat import CompositeTensor
from tfp_selfnorm.utils.integers import check_int, check_positive_int

_Class = TypeVar("_Class")


class Coupling(OptionalComposite):
    """Changes some channels by a network of the other channels and a condition; base of the couplings.

    Attributes:
      outputs_per_channel: the number of outputs of the network for each channel that changes.
    """

    _PART = "network"
    outputs_per_channel: int

    def __init__(
        self, network: Callable, num_conditioning: int | None, event_ndims: int, parameters: dict[str, Any]
    ) -> None:
        """`parameters` are the arguments of the subclass, with `validate_args` and `name`."""
        self._network = check_network(network, "network")
        if num_conditioning is not None:
            num_conditioning = check_int(num_conditioning, "num_conditioning", 0)
        self._num_conditioning = num_conditioning
        # TFP finds variables in attributes. It does not search a Keras network.
        self._network_variables = [weight.value for weight in keras_weights(network)]
        self._passes = PairMemory()
        event_ndims = check_positive_int(event_ndims, "event_ndims")
        super().__init__(event_ndims, parameters, is_constant_jacobian=False)

    @property
    def network(self) -> Callable:
        """The map from the conditioning channels to the parameters of the change."""
        return self._network

    @abc.abstractmethod
    def _change(self, direction: str, changed: tf.Tensor, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The new channels, and the log-det of `inverse` for each element.

        Args:
          direction: "forward" or "inverse".
          changed: the channels that change.
          outputs: the output of the network, `[..., channels * outputs_per_channel]`.
        """

    def _forward(self, x, condition=None):
        return self._pass("forward", x, condition)[0]

    def _inverse(self, y, condition=None):
        return self._pass("inverse", y, condition)[0]

    def _inverse_log_det_jacobian(self, y, condition=None):
        return self._log_det("inverse", "forward", y, condition)

    def _forward_log_det_jacobian(self, x, condition=None):
        return -self._log_det("forward", "inverse", x, condition)

    def _pass(self, direction, value, condition):
        kept, changed = self._split(value)
        new, log_det = self._change(direction, changed, self._outputs(kept, changed, condition))
        output = tf.concat([kept, new], axis=-1)
        log_det = tf.reduce_sum(log_det, axis=list(range(-self.forward_min_event_ndims, 0)))
        self._passes.add(direction, value, output, [log_det], condition)
        return output, log_det

    def _log_det(self, direction, opposite, value, condition):
        """The log-det of `inverse` for the pair with an end at this value."""
        passes = self._passes
        values = passes.values_by_input(direction, value, condition)
        values = values or passes.values_by_output(opposite, value, condition)
        return values[0] if values else self._pass(direction, value, condition)[1]

    def _split(self, value):
        use = "keeps {} channels to condition on"
        kept = number_of_first_channels(self, value.shape, self._num_conditioning, "num_conditioning", use)
        # `tf.split` is one operation, and so is its gradient.
        return tf.split(value, [kept, value.shape[-1] - kept], axis=-1)

    def _outputs(self, kept, changed, condition):
        size = changed.shape[-1] * self.outputs_per_channel
        shape = tf.concat([tf.shape(changed)[:-1], [size]], axis=0)
        if 0 in changed.shape:
            # In TensorFlow, convolutions of empty batches have a wrong number of channels.
            return tf.zeros(shape, changed.dtype)
        num_leading = kept.shape.rank - self.forward_min_event_ndims
        inputs = [with_one_batch_dimension(kept, num_leading)] if kept.shape[-1] else []
        if condition is not None:
            inputs.append(flat_condition(condition, kept, num_leading, self.name))
        if not inputs:
            raise ValueError(f"`{self.name}` keeps no channels, so that it needs a `condition`; got None.")
        inputs = inputs if len(inputs) > 1 else inputs[0]
        output = call_network(self._network_call, self._network, inputs, self.name)
        expected = [None, *changed.shape[num_leading:-1], size]
        if not output.shape.is_compatible_with(expected):
            raise ValueError(
                f"The network of `{self.name}` must return shape {tuple(expected)}, "
                f"{self.outputs_per_channel} for each of {changed.shape[-1]} channels; got {output.shape}."
            )
        return tf.reshape(tf.cast(output, changed.dtype), shape)

    def _network_call(self, inputs):
        return self._network(inputs)

    @staticmethod
    def _allows_composite(part: Any) -> bool:
        """Whether a call can take values for all variables that TFP sees in the network."""
        if isinstance(part, tf.Module):
            return isinstance(part, CompositeTensor)
        return not keras_weights(part) or hasattr(part, "stateless_call")


class CompositeCoupling(Coupling):
    """A coupling whose Keras network can compute with given variables, or values, instead of its own.

    TFP splits a CompositeTensor into the arguments of its constructor, and makes a new one from them. It does
    not see the variables of a Keras network. So the constructors of subclasses have them as an argument. They
    are among the `parameters` if they are not the network's own.
    """

    _has_other_variables = False

    def _take_variables(self, given: Sequence | None) -> None:
        """Computes with the given variables, if they are others than those of the network."""
        given = list(given or ())
        self._has_other_variables = any(map(operator.is_not, given, self._network_variables))
        if self._has_other_variables:
            self._network_variables = self.parameters["network_variables"] = given

    @property
    def network_variables(self) -> list:
        """The variables, or values, that the network computes with."""
        return list(self._network_variables)

    def copy(self, **override_parameters_kwargs: Any) -> Any:
        parameters = self.parameters | override_parameters_kwargs
        if parameters["network"] is not self._network:
            parameters.pop("network_variables", None)
        return self._PLAIN(**parameters)

    def _network_call(self, inputs):
        if not self._has_other_variables:
            return self._network(inputs)
        network: Any = self._network
        weights = keras_weights(network)
        given = dict(zip(map(id, weights), self._network_variables, strict=True))
        parts = network.trainable_variables, network.non_trainable_variables
        values = [[given.get(id(weight), weight) for weight in part] for part in parts]
        output, updated = network.stateless_call(*values, inputs)
        for variable, value in zip(values[1], updated, strict=True):
            # For example, the moving statistics.
            if hasattr(variable, "assign"):
                variable.assign(value)
        return output


def with_composite(cls: type[_Class]) -> type[_Class]:
    """Gives a class of couplings its `_COMPOSITE`, which has one more argument, `network_variables`."""
    coupling: Any = cls

    def initialize(self, *args, network_variables=None, **kwargs):
        coupling.__init__(self, *args, **kwargs)
        self._take_variables(network_variables)

    # TFP reads the names of the arguments from the signature.
    signature = inspect.signature(coupling.__init__)
    added = inspect.Parameter("network_variables", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = [*signature.parameters.values(), added]
    setattr(initialize, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    contents = {"__init__": initialize, "__module__": coupling.__module__, "__doc__": coupling.__doc__}
    bases = (CompositeCoupling, coupling, tfp.bijectors.AutoCompositeTensorBijector)
    composite = type(coupling)(f"_Composite{coupling.__name__}", bases, contents)
    coupling._PLAIN, coupling._COMPOSITE = coupling, composite
    # Pickles find a class by its name in its module.
    setattr(sys.modules[coupling.__module__], composite.__name__, composite)
    return cls
