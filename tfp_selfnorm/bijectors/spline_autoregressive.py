"""`SplineAutoregressive`: the dimensions before each one give its monotone spline."""

from collections.abc import Callable

import tensorflow as tf

from tfp_selfnorm.bijectors.channels import number_of_first_channels
from tfp_selfnorm.bijectors.coupling import Coupling, with_composite
from tfp_selfnorm.bijectors.spline import MAX_BINS
from tfp_selfnorm.bijectors.spline_coupling import SplineCoupling
from tfp_selfnorm.utils.compat import is_compiled_by_xla
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.options import check_positive


@with_composite
class SplineAutoregressive(Coupling):
    """Maps each dimension by a rational quadratic spline, which a network of the dimensions before it gives.

        inverse:  z_i = spline(y_i; network(y)_i)
        forward:  y_i = spline^-1(z_i; network(y)_i)

    The outputs i of the network must depend on the dimensions before i alone, and on the condition, as those
    of an `autoregressive_network` do. Otherwise `log_prob` is no log density, and nothing says so. The
    splines are those of a `SplineCoupling`, and so are the outputs of the network, its variables and
    conditions.

    The log-det is a closed form, the sum of the logarithms of the slopes. `inverse`, which training and
    `log_prob` take, costs one pass of the network and O(num_bins) an element. `forward`, which samples,
    costs D passes one after the other, for events of D dimensions; XLA compiles each of them. Inside a
    `tf.function` both ends of a pair share their passes.

    Shapes: vectors, of a known size. Dtypes: as the events. Units: nats.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> network = sn.autoregressive_network(3, num_outputs=3 * (3 * 8 - 1), width=16, seed=1)
    >>> layer = sn.SplineAutoregressive(network)
    >>> layer.inverse(tf.constant([[0.5, 2.0, -1.0], [1.0, 9.0, 0.0]])).numpy().round(4)
    array([[ 0.5,  2. , -1. ],
           [ 1. ,  9. ,  0. ]], dtype=float32)

    References: Durkan et al., "Neural Spline Flows", NeurIPS 2019, section 3.2; Papamakarios et al., "Masked
    Autoregressive Flow for Density Estimation", NeurIPS 2017.
    """

    def __init__(
        self,
        network: Callable,
        num_bins: int = 8,
        bound: float = 5.0,
        validate_args: bool = False,
        name: str = "spline_autoregressive",
    ) -> None:
        """Makes the bijector.

        Args:
          network: a callable, such as an `autoregressive_network`.
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
        super().__init__(network, 0, 1, parameters)

    _change = SplineCoupling._change

    def _pass(self, direction, value, condition):
        number_of_first_channels(self, value.shape, 0, "", "changes all but {} dimensions")

        def step(index, known, _):
            return index + 1, *self._change(direction, value, self._outputs(known, value, condition))

        if direction == "inverse":
            _, output, log_det = step(0, value, None)
        else:
            _, output, log_det = _repeated(step, value.shape[-1], tf.zeros_like(value))
        log_det = tf.reduce_sum(log_det, axis=-1)
        self._passes.add(direction, value, output, [log_det], condition)
        return output, log_det


def _repeated(step, number, nothing):
    """The result of so many steps from nothing. After each one more dimension of the data is known."""
    state = 0, nothing, nothing
    if not is_compiled_by_xla():
        return tf.while_loop(lambda index, *_: index < number, step, state, maximum_iterations=number)
    # XLA cannot compile the gradient of a loop whose shapes are computed in it.
    for _ in range(number):
        state = step(*state)
    return state
