"""`AffineCoupling`: a network of some channels scales and shifts the other channels."""

from collections.abc import Callable

import tensorflow as tf

from tfp_selfnorm.bijectors.coupling import Coupling, with_composite
from tfp_selfnorm.utils.options import check_positive


@with_composite
class AffineCoupling(Coupling):
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
    does. With `num_conditioning=0` it gets the condition alone, for example for a scalar event. The condition
    has the sample and batch dimensions of the events, then dimensions of its own. TFP passes arguments by the
    names of bijectors. In a `Chain`, write `flow.log_prob(x, bijector_kwargs={"name": {"condition": c}})`
    with the name of the coupling, or the name of a `tfp.bijectors.Invert` or `ChannelSplit` around it. For a
    coupling alone, write `bijector_kwargs={"condition": c}`.

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

    outputs_per_channel = 2

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
            With 0 the network gets the condition alone.
          event_ndims: rank of the events, 1 or more. Channels are the last dimension.
          bound: positive float, the limit of |s|.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if `network` is not callable, `bound` no number, or `validate_args` no bool.
          ValueError: if a Keras network is not built, or another argument is out of range.
        """
        parameters = dict(locals())
        self._bound = check_positive(bound, "bound")
        super().__init__(network, num_conditioning, event_ndims, parameters)

    def _change(self, direction, changed, outputs):
        shift, h = tf.split(outputs, 2, axis=-1)
        log_scale = self._bound * tf.tanh(h / self._bound)
        if direction == "inverse":
            return changed * tf.exp(log_scale) + shift, log_scale
        return (changed - shift) * tf.exp(-log_scale), log_scale
