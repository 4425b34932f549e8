"""Images as continuous data: dequantisation, the logit transform, bits per dimension."""

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.integers import check_int, check_sizes
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import as_tensor, check_dtype, check_number, is_number
from tfp_selfnorm.utils.seeds import map_with_seeds, stateless_seed
from tfp_selfnorm.utils.types import Array, DType, Seed, Shape

_EXPECTED = "an array or a tensor of numbers"


def dequantize(images: Array, dtype: DType = tf.float32, seed: Seed = None) -> tf.Tensor:
    """Adds noise from U[0, 1) to integer pixels, which then have a continuous density.

    The likelihood of the result is a lower bound of the discrete likelihood of the pixels.

    Args:
      images: integer tensor of grey levels, of any shape.
      dtype: float32 or float64, the dtype of the result.
      seed: int or stateless TFP seed; `None` for fresh noise.

    Returns:
      A tensor of `dtype`, in `[0, levels)` for pixels in `{0, ..., levels - 1}`.

    Raises:
      TypeError: if the images have no integer dtype, or `dtype` is another one.

    >>> import tensorflow as tf, tfp_selfnorm as sn
    >>> sn.images.dequantize(tf.constant([3, 0], tf.uint8)).numpy().astype(int).tolist()
    [3, 0]

    References: Theis et al., "A note on the evaluation of generative models", ICLR 2016, section 3.1;
    Uria et al., "RNADE", 2013.
    """
    images = as_tensor(images, "images", _EXPECTED)
    if not images.dtype.is_integer:
        raise TypeError(f"`images` must have an integer dtype; got {images.dtype.name}.")
    dtype = check_dtype(dtype)
    noise = tf.random.stateless_uniform(tf.shape(images), stateless_seed(seed), dtype=dtype)
    levels = tf.cast(images, dtype)
    # Rounding may raise noise just below 1 to the next level.
    return tf.minimum(levels + noise, tf.math.nextafter(levels + 1.0, tf.zeros([], dtype)))


def dequantize_dataset(
    dataset: tf.data.Dataset, dtype: DType = tf.float32, seed: int | None = None
) -> tf.data.Dataset:
    """Dequantises a `tf.data.Dataset` with new noise in each epoch; reproducible with a seed.

    A plain `dataset.map(dequantize)` repeats its noise in every epoch if a global seed is set.

    Args:
      dataset: data set of integer images, or of tuples that begin with them, batched or not.
      dtype: float32 or float64, the dtype of the result.
      seed: int, or `None`.

    Returns:
      The data set with dequantised images.

    Raises:
      TypeError: if an argument has another type.

    >>> import tensorflow as tf, tfp_selfnorm as sn
    >>> images = tf.data.Dataset.from_tensors(tf.zeros(3, tf.int32))
    >>> pixels = sn.images.dequantize_dataset(images, seed=1)
    >>> first, second = next(iter(pixels)), next(iter(pixels))
    >>> bool(tf.reduce_any(first == second))
    False
    """
    dtype = check_dtype(dtype)

    def add_noise(element, noise_seed):
        if isinstance(element, tuple):
            return (dequantize(element[0], dtype, noise_seed), *element[1:])
        return dequantize(element, dtype, noise_seed)

    return map_with_seeds(dataset, add_noise, seed)


def pixel_sigmoid(
    num_levels: int = 256,
    alpha: float = 1e-6,
    dtype: DType = tf.float32,
    name: str | None = "pixel_sigmoid",
) -> tfp.bijectors.Sigmoid:
    """Returns the bijector from logits to dequantised pixels in `[0, num_levels]`.

    `inverse(x) = logit(alpha + (1 - 2 alpha) x / num_levels)`, the paper's logit. With it the `log_prob` of a
    distribution is a density of pixels, in nats, and `sample` gives pixels (to within `alpha num_levels`).

    Args:
      num_levels: number of grey levels, an int of 2 or more; 256 for 8-bit images.
      alpha: margin in (0, 0.5) that keeps the logit finite.
      dtype: floating dtype.
      name: name of the bijector.

    Returns:
      A `tfb.Sigmoid` with the range `num_levels [-alpha, 1 - alpha] / (1 - 2 alpha)`.

    Raises:
      TypeError: if `alpha` is no number, or `dtype` is not floating.
      ValueError: if `num_levels` is no int of 2 or more, or `alpha` is outside (0, 0.5).

    >>> import tfp_selfnorm as sn
    >>> float(sn.images.pixel_sigmoid(num_levels=16).inverse(8.0))
    0.0

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 4.1.
    """
    num_levels = check_int(num_levels, "num_levels", lowest=2)
    alpha = check_number(alpha, "alpha", "in (0, 0.5)", lambda value: 0.0 < value < 0.5)
    dtype = check_dtype(dtype, allows_short=True)
    check_optional_name(name)
    scale = num_levels / (1.0 - 2.0 * alpha)
    return tfp.bijectors.Sigmoid(
        low=tf.constant(-alpha * scale, dtype), high=tf.constant((1.0 - alpha) * scale, dtype), name=name
    )


def bits_per_dim(log_prob: Array, event_shape: Shape) -> Any:
    """Returns bits per dimension of densities of pixels: `-log_prob / (dimensions log 2)`.

    Args:
      log_prob: log densities in nats of pixels with levels of unit width, as `dequantize` makes them.
      event_shape: the shape of one image: int, tuple or `tf.TensorShape`.

    Returns:
      Bits per dimension, in the shape of `log_prob`.

    Raises:
      TypeError: if `log_prob` has no real numbers.
      ValueError: if `event_shape` is no known shape.

    >>> import math, tfp_selfnorm as sn
    >>> sn.images.bits_per_dim(-16.0 * math.log(2.0), (2, 2))
    4.0
    """
    sizes = check_sizes(event_shape, "event_shape", "an int, or a shape, of positive ints")
    if not is_number(log_prob):
        log_prob = log_prob if hasattr(log_prob, "dtype") else as_tensor(log_prob, "log_prob", _EXPECTED)
        if not tf.as_dtype(log_prob.dtype).is_floating:
            raise TypeError(f"`log_prob` must be of real numbers; got dtype {log_prob.dtype}.")
    return -log_prob / (math.log(2.0) * math.prod(sizes))
