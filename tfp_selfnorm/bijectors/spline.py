"""Trainable spline activations, made of TFP's rational quadratic spline."""

import functools

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.math.rational_quadratic import cumulative, spline
from tfp_selfnorm.utils.compat import BijectorCacheWithGreedyAttrs
from tfp_selfnorm.utils.integers import check_int, check_sizes
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_dtype, check_positive
from tfp_selfnorm.utils.types import DType, Shape, TfpObject

_MIN_BIN_FRACTION = 1e-3
_MIN_SLOPE = 1e-3
MAX_BINS = round(1.0 / _MIN_BIN_FRACTION) - 1


class _Spline(tfp.bijectors.RationalQuadraticSpline):
    """TFP's spline, faster: a pass finds its bins once, and has its gradient in closed form."""

    # A pass computes the log-det too, as in TFP's FFJORD. Graphs drop a log-det that nothing uses.
    _cache = BijectorCacheWithGreedyAttrs(
        forward_name="_augmented_forward", inverse_name="_augmented_inverse"
    )

    def _augmented_forward(self, x):
        y, log_slope = self._map("forward", x)
        return y, {"ildj": -log_slope}

    def _augmented_inverse(self, y):
        x, log_slope = self._map("inverse", y)
        return x, {"ildj": -log_slope}

    def _forward_log_det_jacobian(self, x):
        return self._map("forward", x)[1]

    def _map(self, direction, x):
        parameters = (self.bin_widths, self.bin_heights, self.knot_slopes, self.range_min)
        return _traced_once(_map, direction, x, *map(tf.convert_to_tensor, parameters))


def _map(direction, x, widths, heights, slopes, range_min, end_slopes=None):
    """The mapped elements, and the logarithm of the slope of the spline at each.

    `end_slopes` are the slopes at both ends of splines on a circle, which end there. `None` is 1, and the
    identity outside.
    """
    widths, heights, slopes = (_bins_first(sizes) for sizes in (widths, heights, slopes))
    ends = tf.ones_like(slopes[:1]) if end_slopes is None else _bins_first(end_slopes)
    slopes = tf.concat([ends, slopes, ends], axis=0)
    return spline(
        direction, x, _knots(widths, range_min), _knots(heights, range_min), slopes, end_slopes is None
    )


def _bins_first(sizes):
    """TensorFlow is several times as fast along a first axis as along a short last one."""
    rank = sizes.shape.rank
    return tf.transpose(sizes, [rank - 1, *range(rank - 1)])


def _traced_once(function, direction, x, *arguments):
    """Calls a function. In a graph splines of one shape share its trace. Traces are most of a first step."""
    if tf.executing_eagerly():
        return function(direction, x, *arguments)
    return _tf_function(function, direction, tuple(x.shape))(x, *arguments)


# With a function for each shape, TensorFlow does not warn that one function is retraced often.
@functools.cache
def _tf_function(function, direction, shape):
    return tf.function(functools.partial(function, direction), autograph=False)


def _knots(bin_sizes, range_min):
    right = range_min + cumulative(bin_sizes)
    return tf.concat([tf.fill(tf.shape(right[:1]), range_min), right], axis=0)


def _bin_sizes(logits, bound):
    shares, num_bins = tf.nn.softmax(logits), logits.shape[-1]
    return 2.0 * bound * (_MIN_BIN_FRACTION + (1.0 - num_bins * _MIN_BIN_FRACTION) * shares)


def _slopes(logits):
    # softplus(log(e - 1)) = 1
    return _MIN_SLOPE + (1.0 - _MIN_SLOPE) * tf.math.softplus(logits + np.log(np.e - 1.0))


def spline_of_logits(
    direction: str,
    x: tf.Tensor,
    widths: tf.Tensor,
    heights: tf.Tensor,
    slopes: tf.Tensor,
    bound: float,
    end_slope: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """A spline for each element, or its inverse; logits of 0 give the identity.

    Args:
      direction: "forward" or "inverse".
      x: the elements.
      widths, heights: logits of the sizes of bins, `[*x.shape, num_bins]`.
      slopes: logits of the inner slopes, `[*x.shape, num_bins - 1]`.
      bound: half the width of the interval.
      end_slope: for splines on a circle, the logit of the slope at both ends, `[*x.shape, 1]`. The elements
        must then be inside. `None` is slope 1, and the identity outside.

    Returns:
      The mapped elements, and the logarithm of the slope of the spline at each.
    """
    return _traced_once(_map_of_logits, direction, x, widths, heights, slopes, bound, end_slope)


def _map_of_logits(direction, x, widths, heights, slopes, bound, end_slope):
    widths, heights = (_bin_sizes(logits, bound) for logits in (widths, heights))
    end_slopes = None if end_slope is None else _slopes(end_slope)
    range_min = tf.constant(-bound, x.dtype)
    return _map(direction, x, widths, heights, _slopes(slopes), range_min, end_slopes)


def trainable_spline(
    event_shape: Shape,
    num_bins: int = 5,
    bound: float = 10.0,
    dtype: DType = tf.float32,
    name: str = "trainable_spline",
) -> TfpObject:
    """Makes a monotone rational quadratic spline for each dimension. Initially it is the identity.

    Inside `[-bound, bound]` each dimension has `num_bins` bins with trainable widths, heights and inner
    slopes. Outside, the map is the identity. The initial values of all variables are 0. Both directions and
    the log-dets are closed forms and cost O(num_bins) an element.

    Args:
      event_shape: int, tuple or `tf.TensorShape`: the shape of an event, with one spline for each element.
      num_bins: number of bins, from 2 to 999.
      bound: positive float, half the width of the interval.
      dtype: floating dtype.
      name: name of the bijector and its variables.

    Returns:
      A `tfp.bijectors.RationalQuadraticSpline` with trainable variables; a faster subclass.

    Raises:
      TypeError: if `bound` is no number, or `dtype` not floating.
      ValueError: if `num_bins` is out of range, `bound` is not positive and finite, or `event_shape` has a
        size that is not a positive int.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> spline = sn.trainable_spline(4)
    >>> spline.forward(tf.constant([-20.0, -1.0, 0.5, 3.0])).numpy().round(4)
    array([-20. ,  -1. ,   0.5,   3. ], dtype=float32)

    References: Durkan et al., "Neural Spline Flows", NeurIPS 2019.
    """
    check_name(name)
    sizes = check_sizes(event_shape, "event_shape", "an int, or a shape, of positive ints")
    num_bins = check_int(num_bins, "num_bins", 2, MAX_BINS)
    bound = check_positive(bound, "bound")
    dtype = check_dtype(dtype, allows_short=True)

    def deferred(size, transform, part):
        variable = tf.Variable(tf.zeros([*sizes, size], dtype), name=f"{name}_{part}")
        return tfp.util.DeferredTensor(variable, transform)

    bins = functools.partial(_bin_sizes, bound=bound)
    # TFP reads a name. A function inside a function could not be pickled.
    bins.__name__ = "bins"  # type: ignore[attr-defined]
    return _Spline(
        bin_widths=deferred(num_bins, bins, "widths"),
        bin_heights=deferred(num_bins, bins, "heights"),
        knot_slopes=deferred(num_bins - 1, _slopes, "slopes"),
        range_min=tf.constant(-bound, dtype),
        name=name,
    )
