"""Monotone rational quadratic splines of given knots, with their gradient in closed form.

In its bin an element has the position `t` in [0, 1]. With `u = t (1 - t)`, the mean slope `s` of the bin and
the slopes `d_0` and `d_1` at its ends (Durkan et al., "Neural Spline Flows", NeurIPS 2019, equations 4, 5):

    share = (s t^2 + d_0 u) / denominator,    denominator = s + (d_0 + d_1 - 2 s) u
    slope = (s / denominator)^2 bend,         bend = d_1 t^2 + 2 s u + d_0 (1 - t)^2

An element goes from the share `t` of the width of the bin to the share `share` of its height.
"""

from typing import NamedTuple

import tensorflow as tf


class _Bin(NamedTuple):
    """The bin of each element: its ends on both axes, and the slopes there."""

    left: tf.Tensor
    right: tf.Tensor
    bottom: tf.Tensor
    top: tf.Tensor
    left_slope: tf.Tensor
    right_slope: tf.Tensor


class _Place(NamedTuple):
    """The place of each element in its bin, and the quantities of the formulas above."""

    width: tf.Tensor
    height: tf.Tensor
    mean_slope: tf.Tensor
    excess: tf.Tensor
    t: tf.Tensor
    u: tf.Tensor
    share: tf.Tensor
    denominator: tf.Tensor
    bend: tf.Tensor


def cumulative(sizes: tf.Tensor) -> tf.Tensor:
    """Sums along the first axis. `tf.cumsum` takes several times as long for few terms."""
    if sizes.shape[0] is None or sizes.shape[0] > 32:
        return tf.cumsum(sizes)
    sums = tf.unstack(sizes)
    for index in range(1, len(sums)):
        sums[index] += sums[index - 1]
    return tf.stack(sums)


def spline(
    direction: str,
    x: tf.Tensor,
    x_knots: tf.Tensor,
    y_knots: tf.Tensor,
    slopes: tf.Tensor,
    is_identity_outside: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Maps elements by splines, or by their inverses.

    Args:
      direction: "forward" or "inverse".
      x: the elements.
      x_knots, y_knots: the knots on both axes, in rising order, `[num_bins + 1, *shape]`, where `shape` and
        the shape of `x` broadcast.
      slopes: the slopes at the knots, of the same shape.
      is_identity_outside: whether the map is the identity outside the knots. Otherwise an element there,
        by rounding, is mapped as the nearest knot is.

    Returns:
      The mapped elements, and the logarithm of the slope of the spline at each.
    """
    knots = x_knots if direction == "forward" else y_knots
    in_bin = _forward_in_bin if direction == "forward" else _inverse_in_bin
    inner = tf.transpose(knots[1:-1], [*range(1, knots.shape.rank), 0])
    indices = tf.reduce_sum(tf.cast(x[..., tf.newaxis] >= inner, tf.int32), axis=-1)
    if not is_identity_outside:
        # The gradient passes as inside.
        x += tf.stop_gradient(tf.minimum(tf.maximum(x, knots[0]), knots[-1]) - x)
        return in_bin(x, *_take_bins(indices, x_knots, y_knots, slopes))
    is_outside = (x <= knots[0]) | (x >= knots[-1])
    bins = _take_bins(tf.where(is_outside, 0, indices), x_knots, y_knots, slopes)
    # Outside, the formulas are never evaluated: their gradients could overflow there.
    inside = tf.where(is_outside, tf.stop_gradient(bins.left if direction == "forward" else bins.bottom), x)
    mapped, log_slope = in_bin(inside, *bins)
    return tf.where(is_outside, x, mapped), log_slope


def _take_bins(indices, *tables):
    """Reads the two ends of the bins from each table: the knot of the index, and the next one."""
    shape = tf.shape(tables[0])[1:]
    size = tf.reduce_prod(shape)
    rows = indices * size + tf.reshape(tf.range(size), shape)
    flat = [tf.reshape(table, [-1]) for table in tables]
    return _Bin(*(tf.gather(table, ends) for table in flat for ends in (rows, rows + size)))


def _place(bins, t, share=None):
    width, height = bins.right - bins.left, bins.top - bins.bottom
    mean_slope = height / width
    excess = bins.left_slope + bins.right_slope - 2.0 * mean_slope
    rest = 1.0 - t
    u = t * rest
    denominator = mean_slope + excess * u
    if share is None:
        share = t * (mean_slope * t + bins.left_slope * rest) / denominator
    bend = t * (bins.right_slope * t + mean_slope * rest) + rest * (bins.left_slope * rest + mean_slope * t)
    return _Place(width, height, mean_slope, excess, t, u, share, denominator, bend)


def _log_slope(place):
    return 2.0 * tf.math.log(place.mean_slope / place.denominator) + tf.math.log(place.bend)


def _slope(place):
    return tf.square(place.mean_slope / place.denominator) * place.bend


def _slope_of_log_slope(bins, place):
    """The derivative of the logarithm of the slope with respect to the element on the x axis."""
    rest = 1.0 - place.t
    bend = bins.right_slope * place.t + place.mean_slope * (rest - place.t) - bins.left_slope * rest
    logs = bend / place.bend - place.excess * (rest - place.t) / place.denominator
    return 2.0 * logs / place.width


@tf.custom_gradient
def _forward_in_bin(x, *ends):
    bins = _Bin(*ends)
    place = _place(bins, (x - bins.left) / (bins.right - bins.left))

    def gradient(of_output, of_log_slope):
        of_x = of_output * _slope(place) + of_log_slope * _slope_of_log_slope(bins, place)
        return of_x, *_gradients_of_ends(bins, place, of_output, of_x, of_log_slope)

    return (bins.bottom + place.height * place.share, _log_slope(place)), gradient


@tf.custom_gradient
def _inverse_in_bin(y, *ends):
    bins = _Bin(*ends)
    share = (y - bins.bottom) / (bins.top - bins.bottom)
    place = _place(bins, _position(bins, share), share)

    def gradient(of_output, of_log_slope):
        # Of the implicit function: a change of the output moves the element against that of the map.
        of_y = (of_output + of_log_slope * _slope_of_log_slope(bins, place)) / _slope(place)
        return of_y, *_gradients_of_ends(bins, place, -of_y, -of_output, of_log_slope)

    return (bins.left + place.width * place.t, _log_slope(place)), gradient


def _position(bins, share):
    """The root of Durkan's quadratic, as sums of terms that are 0 or more.

    The textbook discriminant `b^2 - 4 a c` is a difference. If a bin is much flatter than its ends, rounding
    makes it negative or 0. The root or its gradient is then not finite. The discriminant equals
    `across^2 + 4 s^2 share (1 - share)`.
    """
    mean_slope = (bins.top - bins.bottom) / (bins.right - bins.left)
    across = bins.left_slope * (1.0 - share) - bins.right_slope * share
    rise = 2.0 * mean_slope * share
    product = 2.0 * rise * mean_slope * (1.0 - share)
    total = tf.sqrt(tf.square(across) + product) + tf.abs(across)
    # This is `across + sqrt(...)`. If `across` is negative, the quotient is the same without a difference.
    rest = tf.where(across < 0.0, product / total, total)
    return rise / (rise + rest)


def _gradients_of_ends(bins, place, of_y, of_x, of_log_slope):
    """The gradient with respect to the ends of the bin, at a fixed element on the x axis.

    Args:
      bins, place: of the elements.
      of_y: the gradient with respect to the element on the y axis.
      of_x: the whole gradient with respect to the element on the x axis.
      of_log_slope: the gradient with respect to the logarithm of the slope.

    Returns:
      The gradients, in the order of `_Bin`.
    """
    width, height, mean_slope, _, t, u, share, denominator, bend = place
    of_share = of_y * height / denominator
    of_bend, of_denominator = of_log_slope / bend, 2.0 * of_log_slope / denominator
    rest = 1.0 - t
    tilt = 1.0 - 2.0 * u
    of_mean_slope = (
        of_share * (t * t - share * tilt)
        + 2.0 * of_log_slope / mean_slope
        + 2.0 * u * of_bend
        - of_denominator * tilt
    )
    per_width = of_mean_slope / width
    of_width = -(of_x * t + per_width * mean_slope)
    of_height = of_y * share + per_width
    of_share, of_denominator = of_share * u, of_denominator * u
    return (
        -of_x - of_width,
        of_width,
        of_y - of_height,
        of_height,
        of_share * (1.0 - share) + rest * rest * of_bend - of_denominator,
        t * t * of_bend - of_share * share - of_denominator,
    )
