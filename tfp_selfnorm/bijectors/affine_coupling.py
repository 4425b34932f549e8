"""`AffineCoupling`: a network of some channels scales and shifts the other channels."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

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
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.options import check_positive
from tfp_selfnorm.utils.types import Parameter


class AffineCoupling(OptionalComposite):
    """Scales and shifts some channels by a network of the other channels, which do not change.

    With the first `num_conditioning` channels a and the rest b, and `shift, h = network(a)`:

        inverse:  a, b -> a, exp(s) b + shift      with s = bound tanh(h / bound)
        forward:  a, b -> a, (b - shift) exp(-s)

    The map is invertible for every network. `inverse_log_det_jacobian` is the sum of s. Both directions and
    the log-det cost one pass of the network. Inside a `tf.function` both ends of a pair share one pass.

    The input of the network has one batch dimension, `[B, H, W, Ca]` for images. Its output must have twice
    the channels of b: first the shift, then h. The network may be a function of tensors. A Keras network
    must be built. Its weights are among the `variables` and `trainable_variables` of the bijector, and so are
    the weights of a `tf.Module`. TFP sees no weights inside a plain function; `FlowModel` sees the trainable
    ones.

    With a `condition` the network gets a list, `network([a, condition])`, as a Keras model with two inputs
    does. The condition has the sample and batch dimensions of the events, then dimensions of its own. TFP
    passes arguments by the names of bijectors. In a `Chain`, write `flow.log_prob(x,
    bijector_kwargs={"name": {"condition": c}})` with the name of the coupling, or the name of a
    `tfp.bijectors.Invert` or `ChannelSplit` around it. For a coupling alone, write
    `bijector_kwargs={"condition": c}`.

    Shapes: events `[H, W, C]`, or events of rank `event_ndims`. Dtypes: as the events; the output of the
    network is cast, and a floating condition.

    With a Keras model or a plain function as its network, a coupling is a CompositeTensor: a `tf.function`
    takes and returns it. A Keras network then computes with the variables or values of that coupling. With a
    `tf.Module` it is no CompositeTensor, and a `tf.function` takes it as a Python object.

    >>> import keras
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> network = keras.Sequential([keras.Input([4, 4, 1]), keras.layers.Conv2D(4, 3, padding="same")])
    >>> coupling = sn.AffineCoupling(network, num_conditioning=1)
    >>> coupling.inverse(tf.ones([2, 4, 4, 3])).shape, len(coupling.trainable_variables)
    (TensorShape([2, 4, 4, 3]), 2)

    >>> coupling = sn.AffineCoupling(lambda inputs: tf.concat(inputs, axis=-1), event_ndims=1)
    >>> coupling.inverse(tf.zeros([5, 2]), condition=tf.ones([5, 1])).shape
    TensorShape([5, 2])

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, equations 7 and 8. The bound is
    from the published code of Keller et al., "Self Normalizing Flows", ICML 2021.
    """

    _PART = "network"

    def __init__(
        self,
        network: Callable,
        num_conditioning: int | None = None,
        event_ndims: int = 3,
        bound: float = 2.0,
        validate_args: bool = False,
        name: str = "affine_coupling",
    ) -> None:
        """Makes the bijector.

        Args:
          network: a callable, such as a built Keras model.
          num_conditioning: the number of channels that the network sees; `None` for half of an even number.
          event_ndims: rank of the events, 1 or more. Channels are the last dimension.
          bound: positive float, the limit of |s|.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if `network` is not callable, `bound` no number, or `validate_args` no bool.
          ValueError: if a Keras network is not built, or another argument is out of range.
        """
        parameters = dict(locals())
        check_network(network, "network")
        if num_conditioning is not None:
            num_conditioning = check_positive_int(num_conditioning, "num_conditioning")
        event_ndims = check_positive_int(event_ndims, "event_ndims")
        self._network = network
        self._num_conditioning = num_conditioning
        self._bound = check_positive(bound, "bound")
        # TFP finds variables in attributes. It does not search a Keras network.
        self._network_variables = [weight.value for weight in keras_weights(network)]
        self._passes = PairMemory()
        super().__init__(event_ndims, parameters, is_constant_jacobian=False)

    @property
    def network(self) -> Callable:
        """The map from the conditioning channels to shift and h."""
        return self._network

    def _forward(self, x, condition=None):
        kept, changed = self._split(x)
        shift, log_scale = self._shift_and_log_scale(kept, changed, condition)
        y = tf.concat([kept, (changed - shift) * tf.exp(-log_scale)], axis=-1)
        self._passes.add("forward", x, y, _remembered(log_scale, condition))
        return y

    def _inverse(self, y, condition=None):
        kept, changed = self._split(y)
        shift, log_scale = self._shift_and_log_scale(kept, changed, condition)
        x = tf.concat([kept, changed * tf.exp(log_scale) + shift], axis=-1)
        self._passes.add("inverse", y, x, _remembered(log_scale, condition))
        return x

    def _inverse_log_det_jacobian(self, y, condition=None):
        return self._sum_of_log_scale("inverse", "forward", y, condition)

    def _forward_log_det_jacobian(self, x, condition=None):
        return -self._sum_of_log_scale("forward", "inverse", x, condition)

    def _sum_of_log_scale(self, direction, opposite, value, condition):
        passes = self._passes
        passed = passes.values_by_input(direction, value) or passes.values_by_output(opposite, value)
        # The conditioning channels are the same at both ends of a pair. The condition may have changed.
        log_scale, passed_condition = [*(passed or [None]), None][:2]
        if log_scale is None or passed_condition is not condition:
            kept, changed = self._split(value)
            log_scale = self._shift_and_log_scale(kept, changed, condition)[1]
        return tf.reduce_sum(log_scale, axis=list(range(-self.forward_min_event_ndims, 0)))

    def _split(self, value):
        use = "keeps {} channels to condition on"
        kept = number_of_first_channels(self, value.shape, self._num_conditioning, "num_conditioning", use)
        # `tf.split` is one operation, and so is its gradient.
        return tf.split(value, [kept, value.shape[-1] - kept], axis=-1)

    def _shift_and_log_scale(self, kept, changed, condition):
        if 0 in kept.shape:
            # In TensorFlow, convolutions of empty batches have a wrong number of channels.
            return tf.zeros_like(changed), tf.zeros_like(changed)
        num_leading = kept.shape.rank - self.forward_min_event_ndims
        inputs = with_one_batch_dimension(kept, num_leading)
        if condition is not None:
            inputs = [inputs, flat_condition(condition, kept, num_leading, self.name)]
        output = call_network(self._network_call, self._network, inputs, self.name)
        expected = [None, *changed.shape[num_leading:-1], 2 * changed.shape[-1]]
        if not output.shape.is_compatible_with(expected):
            raise ValueError(
                f"The network of `{self.name}` must return shape {tuple(expected)}, shift and scale for "
                f"{changed.shape[-1]} channels; got {output.shape}."
            )
        shift, h = tf.split(tf.cast(output, changed.dtype), 2, axis=-1)
        log_scale = self._bound * tf.tanh(h / self._bound)
        return tf.reshape(shift, tf.shape(changed)), tf.reshape(log_scale, tf.shape(changed))

    def _network_call(self, inputs):
        return self._network(inputs)

    @staticmethod
    def _allows_composite(part: Any) -> bool:
        """Whether a call can take values for all variables that TFP sees in the network."""
        if isinstance(part, tf.Module):
            return isinstance(part, CompositeTensor)
        return not keras_weights(part) or hasattr(part, "stateless_call")


class _CompositeAffineCoupling(AffineCoupling, tfp.bijectors.AutoCompositeTensorBijector):
    """A coupling whose Keras network can compute with given variables, or values, instead of its own.

    TFP splits a CompositeTensor into the arguments of its constructor, and makes a new one from them. It does
    not see the variables of a Keras network. So they are an argument here. They are among the `parameters` if
    they are not the network's own.
    """

    def __init__(
        self,
        network: Callable,
        num_conditioning: int | None = None,
        event_ndims: int = 3,
        bound: float = 2.0,
        validate_args: bool = False,
        name: str = "affine_coupling",
        network_variables: Sequence[Parameter] | None = None,
    ) -> None:
        super().__init__(network, num_conditioning, event_ndims, bound, validate_args, name)
        given = list(network_variables or ())
        self._has_other_variables = any(map(operator.is_not, given, self._network_variables))
        if self._has_other_variables:
            self._network_variables = self.parameters["network_variables"] = given

    @property
    def network_variables(self) -> list:
        """The variables, or values, that the network computes with."""
        return list(self._network_variables)

    def copy(self, **override_parameters_kwargs: Any) -> AffineCoupling:
        parameters = self.parameters | override_parameters_kwargs
        if parameters["network"] is not self._network:
            parameters.pop("network_variables", None)
        return AffineCoupling(**parameters)

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


AffineCoupling._PLAIN, AffineCoupling._COMPOSITE = AffineCoupling, _CompositeAffineCoupling


def _remembered(log_scale, condition):
    """The values of a pass for `PairMemory`, which finds only tensors of the graph."""
    if condition is None:
        return [log_scale]
    return [log_scale, condition] if tf.is_symbolic_tensor(condition) else []
