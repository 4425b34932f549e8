"""`CircularSplineCoupling`: a network of some channels gives the distribution of angles on the circle."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.coupling import Coupling, with_composite
from tfp_selfnorm.bijectors.spline import MAX_BINS, spline_of_logits
from tfp_selfnorm.utils.integers import check_int


@with_composite
class CircularSplineCoupling(Coupling):
    """Maps angles to standard normal numbers, by circular splines that a network of other channels gives.

    With the first `num_conditioning` channels a and the angles b:

        inverse:  a, b -> a, normal_quantile((1 + spline(b - shift) / pi) / 2)
        forward:  a, z -> a, shift + spline^-1(pi (2 normal_cdf(z) - 1))

    Angles are in radians and count modulo 2 pi; `forward` gives angles in [-pi, pi]. The spline is a rational
    quadratic one of `num_bins` bins, from [-pi, pi] to itself, with one slope for both ends. So the density
    of the angles has no seam on the circle, whatever the network gives, and integrates to one over it.

    **Nothing but the base distribution may follow, from data to latent, in the changed channels:** they must
    be independent and standard normal. If another layer mixed them, the density would jump at the ends.

    The last `num_angles` of the conditioning channels are angles themselves. The network gets their cosines,
    then their sines, after the other channels. It has `3 num_bins + 1` outputs for each channel of b:
    the logits of the widths, of the heights, of the inner slopes and of the slope at the ends, and the shift.
    Outputs of 0 give the uniform distribution.
    Without conditioning channels and without a condition, the network gets a one.

    The log-det is a closed form. A pass costs one pass of the network and O(num_bins) an element. The
    variables of the network and conditions are those of an `AffineCoupling`. Shapes: vectors. Dtypes: as the
    events. Units: radians, nats.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> network = sn.dense_network(1, num_outputs=3 * 8 + 1, width=16)
    >>> coupling = sn.CircularSplineCoupling(network, num_conditioning=1)
    >>> coupling.inverse(tf.constant([[0.5, 0.0], [0.5, 1.0], [0.5, 1.0 + 6.2831855]])).numpy().round(2)
    array([[0.5 , 0.  ],
           [0.5 , 0.41],
           [0.5 , 0.41]], dtype=float32)

    References: Rezende et al., "Normalizing flows on tori and spheres", ICML 2020, section 2.1.
    """

    def __init__(
        self,
        network: Callable,
        num_conditioning: int | None = None,
        num_angles: int = 0,
        num_bins: int = 8,
        validate_args: bool = False,
        name: str = "circular_spline_coupling",
    ) -> None:
        """Makes the bijector.

        Args:
          network: a callable, such as a built Keras model.
          num_conditioning: the number of channels that the network sees; `None` for half of an even number.
          num_angles: the number of these channels, the last ones, that are angles.
          num_bins: number of bins, from 2 to 999.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if `network` is not callable, or `validate_args` no bool.
          ValueError: if a Keras network is not built, or another argument is out of range.
        """
        parameters = dict(locals())
        self._num_bins = check_int(num_bins, "num_bins", 2, MAX_BINS)
        self._num_angles = check_int(num_angles, "num_angles", 0)
        self.outputs_per_channel = 3 * self._num_bins + 1
        super().__init__(network, num_conditioning, 1, parameters)
        if self._num_conditioning is not None and self._num_angles > self._num_conditioning:
            raise ValueError(
                f"`num_angles` must be at most `num_conditioning`, {num_conditioning}; got {num_angles}."
            )

    def _outputs(self, kept, changed, condition):
        plain, angles = tf.split(kept, [kept.shape[-1] - self._num_angles, self._num_angles], axis=-1)
        inputs = tf.concat([plain, tf.cos(angles), tf.sin(angles)], axis=-1) if self._num_angles else kept
        if condition is None and kept.shape[-1] == 0:
            inputs = tf.ones_like(changed[..., :1])
        return super()._outputs(inputs, changed, condition)

    def _change(self, direction, changed, outputs):
        sizes = [self._num_bins, self._num_bins, self._num_bins - 1, 1, 1]
        shape = tf.concat([tf.shape(changed), [self.outputs_per_channel]], axis=0)
        outputs = tf.ensure_shape(tf.reshape(outputs, shape), [*changed.shape, self.outputs_per_channel])
        *spline, end_slope, shift = tf.split(outputs, sizes, axis=-1)
        spline, shift = [*spline, math.pi, end_slope], shift[..., 0]
        if direction == "inverse":
            position, log_slope = spline_of_logits("forward", _wrapped(changed - shift), *spline)
            # The quantiles of the ends are infinite. The log density is exact for any z near them.
            largest = 1.0 - float(np.finfo(changed.dtype.as_numpy_dtype).eps)
            new = math.sqrt(2.0) * tf.math.erfinv(tf.clip_by_value(position / math.pi, -largest, largest))
            latent = new
        else:
            position = math.pi * tf.math.erf(changed / math.sqrt(2.0))
            new, log_slope = spline_of_logits("inverse", position, *spline)
            new, latent = _wrapped(new + shift), changed
        # The density is exp(log_slope) / (2 pi); the base takes the normal density of the latent.
        return new, log_slope + 0.5 * tf.square(latent) - 0.5 * math.log(2.0 * math.pi)


def _wrapped(angle):
    return tf.math.floormod(angle + math.pi, 2.0 * math.pi) - math.pi
