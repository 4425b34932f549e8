"""`AffineCoupling`: channels scaled and shifted by what a network makes of the other channels."""

import numbers

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.passes import Passes
from tfp_selfnorm.integers import check_positive_int


class AffineCoupling(tfp.bijectors.Bijector):
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

    Shapes: events `[H, W, C]`, or of the rank `event_ndims`. Dtypes: those of the events; what the network
    returns is cast. `FlowModel` and TFP see its variables.

    >>> network = keras.Sequential([keras.Input([4, 4, 1]), keras.layers.Conv2D(4, 3, padding="same")])
    >>> coupling = AffineCoupling(network, num_conditioning=1)
    >>> coupling.inverse(tf.ones([2, 4, 4, 3])).shape, len(coupling.trainable_variables)
    (TensorShape([2, 4, 4, 3]), 2)

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, equations 7 and 8; the bound is
    that of the code published with Keller et al., "Self Normalizing Flows", ICML 2021.
    """

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
          TypeError: if `network` is not callable.
          ValueError: if it is a Keras network that is not built, or another argument is out of range.
        """
        parameters = dict(locals())
        if not callable(network):
            raise TypeError(f"`network` must be callable; got {type(network).__name__}.")
        if not getattr(network, "built", True):
            raise ValueError(
                f"`network` {getattr(network, 'name', network)!r} has no weights yet: build it, or begin it "
                "with keras.Input, before it goes into a bijector."
            )
        if num_conditioning is not None:
            check_positive_int(num_conditioning, "num_conditioning")
        check_positive_int(event_ndims, "event_ndims")
        if not (isinstance(bound, numbers.Real) and 0 < bound < float("inf")):
            raise ValueError(f"`bound` must be positive and finite; got {bound!r}.")
        self._network = network
        self._num_conditioning = num_conditioning
        self._bound = float(bound)
        # TFP finds the variables of attributes, but not inside a Keras network.
        self._network_variables = [weight.value for weight in _keras_weights(network)]
        self._passes = Passes()
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

    @property
    def frozen_variables(self) -> list:
        """The variables of a Keras network that Keras is not to train."""
        return [weight.value for weight in _keras_weights(self._network) if not weight.trainable]

    def _forward(self, x):
        kept, changed = self._split(x)
        shift, log_scale = self._shift_and_log_scale(kept, changed)
        y = tf.concat([kept, (changed - shift) * tf.exp(-log_scale)], axis=-1)
        self._passes.add("forward", x, y, [log_scale])
        return y

    def _inverse(self, y):
        kept, changed = self._split(y)
        shift, log_scale = self._shift_and_log_scale(kept, changed)
        x = tf.concat([kept, changed * tf.exp(log_scale) + shift], axis=-1)
        self._passes.add("inverse", y, x, [log_scale])
        return x

    def _inverse_log_det_jacobian(self, y):
        passed = self._passes.values_by_input("inverse", y) or self._passes.values_by_output("forward", y)
        return self._sum_of_log_scale(passed, y)

    def _forward_log_det_jacobian(self, x):
        passed = self._passes.values_by_input("forward", x) or self._passes.values_by_output("inverse", x)
        return -self._sum_of_log_scale(passed, x)

    def _sum_of_log_scale(self, passed, value):
        # The conditioning channels are the same at both ends of a pair.
        (log_scale,) = passed or (self._shift_and_log_scale(*self._split(value))[1],)
        return tf.reduce_sum(log_scale, axis=list(range(-self.forward_min_event_ndims, 0)))

    def _split(self, value):
        shape, ndims = value.shape, self.forward_min_event_ndims
        if shape.rank is None or shape.rank < ndims or shape[-1] is None:
            raise ValueError(f"`{self.name}` needs a known number of channels; got shape {shape}.")
        channels, kept = shape[-1], self._num_conditioning
        if kept is None:
            if channels % 2:
                raise ValueError(
                    f"`{self.name}` halves an even number of channels; got shape {tuple(shape)}. For others "
                    "say `num_conditioning`."
                )
            kept = channels // 2
        if kept >= channels:
            raise ValueError(
                f"`{self.name}` keeps {kept} channels to condition on and needs more; got {tuple(shape)}."
            )
        return value[..., :kept], value[..., kept:]

    def _shift_and_log_scale(self, kept, changed):
        ndims = self.forward_min_event_ndims
        flat = tf.reshape(kept, tf.concat([[-1], tf.shape(kept)[-ndims:]], axis=0))
        flat = tf.ensure_shape(flat, [None, *kept.shape[-ndims:]])
        output = tf.convert_to_tensor(self._network(flat))
        expected = [None, *changed.shape[-ndims:-1], 2 * changed.shape[-1]]
        if not output.shape.is_compatible_with(expected):
            raise ValueError(
                f"The network of `{self.name}` must return shape {tuple(expected)}, shift and scale for "
                f"{changed.shape[-1]} channels; got {output.shape}."
            )
        shift, h = tf.split(tf.cast(output, changed.dtype), 2, axis=-1)
        log_scale = self._bound * tf.tanh(h / self._bound)
        return tf.reshape(shift, tf.shape(changed)), tf.reshape(log_scale, tf.shape(changed))


def _keras_weights(network):
    """The Keras variables of a network; empty for others, whose variables TFP finds itself or not at all."""
    weights = getattr(network, "weights", None)
    is_keras = isinstance(weights, list) and all(hasattr(weight, "value") for weight in weights)
    return [weight for weight in weights if isinstance(weight.value, tf.Variable)] if is_keras else []
