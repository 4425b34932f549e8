"""`AffineCoupling`: channels scaled and shifted by what a network makes of the other channels."""

import operator

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.channels import number_of_first_channels
from tfp_selfnorm.bijectors.composite import OptionalComposite
from tfp_selfnorm.bijectors.pair_memory import PairMemory
from tfp_selfnorm.utils.compat import CompositeTensor
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_bool, check_positive


class AffineCoupling(OptionalComposite):
    """Scales and shifts some channels by a network's output for the others, which stay as they are.

    With the first `num_conditioning` channels a and the rest b, and `shift, h = network(a)`:

        inverse:  a, b -> a, exp(s) b + shift      with s = bound tanh(h / bound)
        forward:  a, b -> a, (b - shift) exp(-s)

    Invertible whatever the network is. `inverse_log_det_jacobian` is the sum of s; both directions and the
    log-det cost one pass of the network; inside a `tf.function` both ends of a pair share one.

    The network is called on one batch dimension, `[B, H, W, Ca]` for images, and must return twice as many
    channels as b has: first the shift, then h. Any callable will do. The weights of a Keras network, which
    must be built, are among the `variables` and `trainable_variables` of the bijector, as are those of a
    `tf.Module`. Of weights inside a plain function TFP sees none, and `FlowModel` those that are trained.

    With a `condition` the network is called on a list, `network([a, condition])`, as a Keras model of two
    inputs takes it. The condition has the leading dimensions of the events, for samples and batch, and then
    any of its own. TFP hands arguments on by the names of bijectors: for a part of a `Chain`, be it the
    coupling itself or in a `tfb.Invert` or `ChannelSplit` of that name, say `flow.log_prob(x,
    bijector_kwargs={"name": {"condition": c}})`, and for a coupling on its own `{"condition": c}`.

    Shapes: events `[H, W, C]`, or of the rank `event_ndims`. Dtypes: those of the events; what the network
    returns is cast, and a floating condition. `FlowModel` and TFP see its variables.

    It is a CompositeTensor, which goes into and out of a `tf.function`, if its network is a Keras model or a
    plain function. A Keras network then computes with the variables or values that come with the coupling.
    With a `tf.Module` it is none, and a `tf.function` takes it as any Python object.

    >>> network = keras.Sequential([keras.Input([4, 4, 1]), keras.layers.Conv2D(4, 3, padding="same")])
    >>> coupling = AffineCoupling(network, num_conditioning=1)
    >>> coupling.inverse(tf.ones([2, 4, 4, 3])).shape, len(coupling.trainable_variables)
    (TensorShape([2, 4, 4, 3]), 2)

    >>> coupling = AffineCoupling(lambda inputs: tf.concat(inputs, axis=-1), event_ndims=1)
    >>> coupling.inverse(tf.zeros([5, 2]), condition=tf.ones([5, 1])).shape
    TensorShape([5, 2])

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, equations 7 and 8; the bound is
    that of the code published with Keller et al., "Self Normalizing Flows", ICML 2021.
    """

    _PART = "network"

    def __init__(
        self,
        network,
        num_conditioning=None,
        event_ndims=3,
        bound=2.0,
        validate_args=False,
        name="affine_coupling",
    ):
        """Makes the bijector.

        Args:
          network: a callable, such as a built Keras model.
          num_conditioning: how many channels the network sees; `None` for half of an even number.
          event_ndims: rank of the events, 1 or more; channels are the last dimension.
          bound: positive float, the largest |s|.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if `network` is not callable, `bound` no number, or `validate_args` no bool.
          ValueError: if it is a Keras network that is not built, or another argument is out of range.
        """
        parameters = dict(locals())
        check_optional_name(name)
        if not callable(network):
            raise TypeError(f"`network` must be callable; got {type(network).__name__}.")
        if not getattr(network, "built", True):
            raise ValueError(
                f"`network` {getattr(network, 'name', network)!r} has no weights yet: build it, or begin it "
                "with keras.Input, before it goes into a bijector."
            )
        if num_conditioning is not None:
            num_conditioning = check_positive_int(num_conditioning, "num_conditioning")
        event_ndims = check_positive_int(event_ndims, "event_ndims")
        check_bool(validate_args, "validate_args")
        self._network = network
        self._num_conditioning = num_conditioning
        self._bound = check_positive(bound, "bound")
        # TFP finds the variables of attributes, but not inside a Keras network.
        self._network_variables = [weight.value for weight in _keras_weights(network)]
        self._passes = PairMemory()
        super().__init__(
            forward_min_event_ndims=event_ndims, parameters=parameters, validate_args=validate_args, name=name
        )

    @classmethod
    def _parameter_properties(cls, dtype):
        return {}

    @property
    def network(self):
        """What maps the conditioning channels to shift and h."""
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
        passed = self._passes.values_by_input("inverse", y) or self._passes.values_by_output("forward", y)
        return self._sum_of_log_scale(passed, y, condition)

    def _forward_log_det_jacobian(self, x, condition=None):
        passed = self._passes.values_by_input("forward", x) or self._passes.values_by_output("inverse", x)
        return -self._sum_of_log_scale(passed, x, condition)

    def _sum_of_log_scale(self, passed, value, condition):
        # The conditioning channels are the same at both ends of a pair; the condition may be another.
        log_scale, passed_condition = [*(passed or [None]), None][:2]
        if log_scale is None or passed_condition is not condition:
            kept, changed = self._split(value)
            log_scale = self._shift_and_log_scale(kept, changed, condition)[1]
        return tf.reduce_sum(log_scale, axis=list(range(-self.forward_min_event_ndims, 0)))

    def _split(self, value):
        use = "keeps {} channels to condition on"
        kept = number_of_first_channels(self, value.shape, self._num_conditioning, "num_conditioning", use)
        # One operation, whose gradient is one too.
        return tf.split(value, [kept, value.shape[-1] - kept], axis=-1)

    def _shift_and_log_scale(self, kept, changed, condition):
        if 0 in kept.shape:
            # TensorFlow's convolutions of empty batches have a wrong number of channels.
            return tf.zeros_like(changed), tf.zeros_like(changed)
        num_leading = kept.shape.rank - self.forward_min_event_ndims
        inputs = _with_one_batch_dimension(kept, num_leading)
        if condition is not None:
            condition = tf.convert_to_tensor(condition)
            condition = tf.cast(condition, kept.dtype) if condition.dtype.is_floating else condition
            self._check_condition(condition, kept, num_leading)
            inputs = [inputs, _with_one_batch_dimension(condition, num_leading)]
        output = tf.convert_to_tensor(self._call_network(inputs))
        expected = [None, *changed.shape[num_leading:-1], 2 * changed.shape[-1]]
        if not output.shape.is_compatible_with(expected):
            raise ValueError(
                f"The network of `{self.name}` must return shape {tuple(expected)}, shift and scale for "
                f"{changed.shape[-1]} channels; got {output.shape}."
            )
        shift, h = tf.split(tf.cast(output, changed.dtype), 2, axis=-1)
        log_scale = self._bound * tf.tanh(h / self._bound)
        return tf.reshape(shift, tf.shape(changed)), tf.reshape(log_scale, tf.shape(changed))

    def _check_condition(self, condition, kept, num_leading):
        leading = kept.shape[:num_leading]
        message = (
            f"The condition of `{self.name}` must begin with the sample and batch dimensions of the events, "
            f"{leading}; got shape {condition.shape}."
        )
        if not condition.shape[:num_leading].is_compatible_with(leading):
            raise ValueError(message)
        sizes = (tf.shape(value)[:num_leading] for value in (condition, kept))
        tf.debugging.assert_equal(*sizes, message=message)

    def _call_network(self, inputs):
        number = len(inputs) if isinstance(inputs, list) else 1
        # A Keras model may leave out an input too many.
        known = getattr(self._network, "inputs", None)
        try:
            if isinstance(known, list) and len(known) != number:
                raise ValueError(f"it has {len(known)} inputs, and got {number}.")
            return self._network_call(inputs)
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            shapes = " and ".join(str(value.shape) for value in tf.nest.flatten(inputs))
            raise ValueError(
                f"The network of `{self.name}`, called {'with' if number > 1 else 'without'} a condition on "
                f"shapes {shapes}, failed: {error} With the argument `condition` the network gets the list "
                "`[kept, condition]`, without it the kept channels alone."
            ) from error

    def _network_call(self, inputs):
        return self._network(inputs)

    @staticmethod
    def _admits_composite(part):
        """Whether a call can be given all variables that TFP sees in the network."""
        if isinstance(part, tf.Module):
            return isinstance(part, CompositeTensor)
        return not _keras_weights(part) or hasattr(part, "stateless_call")


class _CompositeAffineCoupling(AffineCoupling, tfp.bijectors.AutoCompositeTensorBijector):
    """Its Keras network may be called with other variables, or values, than its own.

    TFP takes a CompositeTensor apart into the arguments of its constructor, and makes it anew from them. It
    does not see the variables of a Keras network. So they are an argument here, and they are among the
    `parameters` if they are not the network's own.
    """

    def __init__(
        self,
        network,
        num_conditioning=None,
        event_ndims=3,
        bound=2.0,
        validate_args=False,
        name="affine_coupling",
        network_variables=None,
    ):
        super().__init__(network, num_conditioning, event_ndims, bound, validate_args, name)
        given = list(network_variables or ())
        self._has_other_variables = any(map(operator.is_not, given, self._network_variables))
        if self._has_other_variables:
            self._network_variables = self.parameters["network_variables"] = given

    @property
    def network_variables(self):
        """The variables, or values, that the network computes with."""
        return list(self._network_variables)

    def copy(self, **override_parameters_kwargs):
        parameters = self.parameters | override_parameters_kwargs
        if parameters["network"] is not self._network:
            parameters.pop("network_variables", None)
        return AffineCoupling(**parameters)

    def _network_call(self, inputs):
        if not self._has_other_variables:
            return self._network(inputs)
        network, weights = self._network, _keras_weights(self._network)
        given = dict(zip(map(id, weights), self._network_variables, strict=True))
        parts = network.trainable_variables, network.non_trainable_variables
        values = [[given.get(id(weight), weight) for weight in part] for part in parts]
        output, updated = network.stateless_call(*values, inputs)
        for variable, value in zip(values[1], updated, strict=True):
            # Such as the moving statistics.
            if hasattr(variable, "assign"):
                variable.assign(value)
        return output


AffineCoupling._PLAIN, AffineCoupling._COMPOSITE = AffineCoupling, _CompositeAffineCoupling


def _with_one_batch_dimension(value, num_leading):
    flat = tf.reshape(value, tf.concat([[-1], tf.shape(value)[num_leading:]], axis=0))
    return tf.ensure_shape(flat, tf.TensorShape([None]).concatenate(value.shape[num_leading:]))


def _remembered(log_scale, condition):
    """What `PairMemory` keeps of a pass: it finds nothing that is outside of the graph."""
    if condition is None:
        return [log_scale]
    return [log_scale, condition] if tf.is_symbolic_tensor(condition) else []


def _keras_weights(network):
    """The Keras variables of a network; empty for others, whose variables TFP finds itself or not at all."""
    weights = getattr(network, "weights", None)
    if not isinstance(weights, list) or not all(hasattr(weight, "value") for weight in weights):
        return []
    return [weight for weight in weights if isinstance(weight.value, tf.Variable)]
