"""`SplineCoupling`: a network of some channels gives monotone splines for the other channels."""

from collections.abc import Callable

import tensorflow as tf

from tfp_selfnorm.bijectors.coupling import Coupling, with_composite
from tfp_selfnorm.bijectors.spline import MAX_BINS, spline_of_logits
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.options import check_positive


@with_composite
class SplineCoupling(Coupling):
    """Maps some channels by rational quadratic splines, which a network of the other channels gives.

    With the first `num_conditioning` channels a and the rest b:

        inverse:  a, b -> a, spline(b; network(a))
        forward:  a, b -> a, spline^-1(b; network(a))

    The spline of each element has `num_bins` bins in `[-bound, bound]`. Outside, it is the identity. The
    network has `3 num_bins - 1` outputs for each channel of b: the logits of the widths and of the heights,
    and the inner slopes. Outputs of 0 give the identity. Both directions and the log-det are closed forms.
    `inverse_log_det_jacobian` is the sum of the logarithms of the slopes. A pass costs one pass of the
    network and O(num_bins) an element. Inside a `tf.function` both ends of a pair share one pass.

    The inputs of the network, its variables and conditions are those of an `AffineCoupling`.

    Shapes: events of rank `event_ndims`; channels are the last dimension. Dtypes: as the events. Units: nats.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> network = sn.dense_network(1, num_outputs=3 * 8 - 1, width=16)
    >>> coupling = sn.SplineCoupling(network, num_conditioning=1)
    >>> coupling.inverse(tf.constant([[0.5, 2.0], [1.0, 9.0]])).numpy().round(4)
    array([[0.5, 2. ],
           [1. , 9. ]], dtype=float32)

    References: Durkan et al., "Neural Spline Flows", NeurIPS 2019, section 3.
    """

    def __init__(
        self,
        network: Callable,
        num_conditioning: int | None = None,
        event_ndims: int = 1,
        num_bins: int = 8,
        bound: float = 5.0,
        validate_args: bool = False,
        name: str = "spline_coupling",
    ) -> None:
        """Makes the bijector.

        Args:
          network: a callable, such as a built Keras model.
          num_conditioning: the number of channels that the network sees; `None` for half of an even number.
            With 0 the network gets the condition alone.
          event_ndims: rank of the events, 1 or more; 3 for images.
          num_bins: number of bins, from 2 to 999.
          bound: positive float, half the width of the interval.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if `network` is not callable, `bound` no number, or `validate_args` no bool.
          ValueError: if a Keras network is not built, or another argument is out of range.
        """
        parameters = dict(locals())
        self._num_bins = check_int(num_bins, "num_bins", 2, MAX_BINS)
        self._bound = check_positive(bound, "bound")
        self.outputs_per_channel = 3 * self._num_bins - 1
        super().__init__(network, num_conditioning, event_ndims, parameters)

    def _change(self, direction, changed, outputs):
        sizes = [self._num_bins, self._num_bins, self._num_bins - 1]
        shape = tf.concat([tf.shape(changed), [self.outputs_per_channel]], axis=0)
        outputs = tf.ensure_shape(tf.reshape(outputs, shape), [*changed.shape, self.outputs_per_channel])
        widths, heights, slopes = tf.split(outputs, sizes, axis=-1)
        # `inverse`, data to latent, is the spline itself: it is cheaper than its inverse.
        opposite = {"inverse": "forward", "forward": "inverse"}[direction]
        return spline_of_logits(opposite, changed, widths, heights, slopes, self._bound)
