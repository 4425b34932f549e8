"""Trainable spline activations, from TFP's rational quadratic spline."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

_MIN_BIN_FRACTION = 1e-3
_MIN_SLOPE = 1e-3


def trainable_spline(event_shape, num_bins=5, bound=10.0, dtype=tf.float32, name="trainable_spline"):
    """A monotone rational quadratic spline for each dimension, which starts as the identity.

    Inside `[-bound, bound]` each dimension has `num_bins` bins with trainable widths, heights and inner
    slopes; outside the map is the identity. All variables start at 0. Both directions and log-dets are
    closed forms of O(num_bins) an element.

    Args:
      event_shape: int or tuple of ints; one spline for each element of such an event.
      num_bins: number of bins, from 2 to 999.
      bound: positive float, half the width of the interval.
      dtype: floating dtype.
      name: name of the bijector and its variables.

    Returns:
      A `tfb.RationalQuadraticSpline` with trainable variables.

    Raises:
      ValueError: if `num_bins` is out of range or `bound` is not positive.

    >>> spline = trainable_spline(4)
    >>> spline.forward(tf.constant([-20.0, -1.0, 0.5, 3.0])).numpy().round(4)
    array([-20. ,  -1. ,   0.5,   3. ], dtype=float32)

    References: Durkan et al., "Neural Spline Flows", NeurIPS 2019.
    """
    if not 2 <= num_bins < 1.0 / _MIN_BIN_FRACTION:
        raise ValueError(f"`num_bins` must be 2 or more, and less than 1000; got {num_bins!r}.")
    if not bound > 0.0:
        raise ValueError(f"`bound` must be positive; got {bound!r}.")
    event_shape = list(np.atleast_1d(event_shape))

    def deferred(size, transform, part):
        variable = tf.Variable(tf.zeros([*event_shape, size], dtype), name=f"{name}_{part}")
        return tfp.util.DeferredTensor(variable, transform)

    def bins(logits):
        shares = tf.nn.softmax(logits)
        return 2.0 * bound * (_MIN_BIN_FRACTION + (1.0 - num_bins * _MIN_BIN_FRACTION) * shares)

    def slopes(logits):
        # softplus(log(e - 1)) = 1
        return _MIN_SLOPE + (1.0 - _MIN_SLOPE) * tf.math.softplus(logits + np.log(np.e - 1.0))

    return tfp.bijectors.RationalQuadraticSpline(
        bin_widths=deferred(num_bins, bins, "widths"),
        bin_heights=deferred(num_bins, bins, "heights"),
        knot_slopes=deferred(num_bins - 1, slopes, "slopes"),
        range_min=tf.constant(-bound, dtype),
        name=name,
    )
