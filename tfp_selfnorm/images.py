"""Images as continuous data: dequantisation, the logit transform, bits per dimension."""

import math

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.integers import as_sizes, check_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_dtype, check_number, is_number
from tfp_selfnorm.utils.seeds import stateless_seed


def dequantize(images, dtype=tf.float32, seed=None):
    """Adds noise from U[0, 1) to integer pixels, so that they have a continuous density.

    The density of the result bounds the discrete likelihood of the pixels from below.

    Args:
      images: integer tensor of grey levels, any shape.
      dtype: float32 or float64, the dtype of the result.
      seed: int or stateless TFP seed; `None` for fresh noise.

    Returns:
      A tensor of `dtype`, in `[0, levels)` for pixels in `{0, ..., levels - 1}`.

    Raises:
      TypeError: if the images are not of an integer dtype, or `dtype` is another.

    >>> dequantize(tf.constant([3, 0], tf.uint8)).numpy().astype(int).tolist()
    [3, 0]

    References: Theis et al., "A note on the evaluation of generative models", ICLR 2016, section 3.1;
    Uria et al., "RNADE", 2013.
    """
    images = _tensor(images, "images")
    if not images.dtype.is_integer:
        raise TypeError(f"`images` must have an integer dtype; got {images.dtype.name}.")
    dtype = check_dtype(dtype)
    noise = tf.random.stateless_uniform(tf.shape(images), stateless_seed(seed), dtype=dtype)
    levels = tf.cast(images, dtype)
    # Rounding may take noise just below 1 up to the next level.
    return tf.minimum(levels + noise, tf.math.nextafter(levels + 1.0, tf.zeros([], dtype)))


def dequantize_dataset(dataset, dtype=tf.float32, seed=None):
    """Dequantises a `tf.data.Dataset` afresh in each epoch; reproducible with a seed.

    A plain `dataset.map(dequantize)` repeats its noise in every epoch once a global seed is set.

    Args:
      dataset: of integer images, or of tuples that begin with them, batched or not.
      dtype: float32 or float64, the dtype of the result.
      seed: int, or `None`.

    Returns:
      The data set with its images dequantised.

    Raises:
      TypeError: if an argument is of another type.

    >>> pixels = dequantize_dataset(tf.data.Dataset.from_tensors(tf.zeros(3, tf.int32)), seed=1)
    >>> first, second = next(iter(pixels)), next(iter(pixels))
    >>> bool(tf.reduce_any(first == second))
    False
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"`dataset` must be a tf.data.Dataset; got {type(dataset).__name__}.")
    dtype = check_dtype(dtype)
    if seed is not None:
        seed = check_int(seed, "seed", -(2**63), 2**63 - 1)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

    def add_noise(element, seed_pair):
        noise_seed = tf.cast(seed_pair, tf.int32)
        if isinstance(element, tuple):
            return (dequantize(element[0], dtype, noise_seed), *element[1:])
        return dequantize(element, dtype, noise_seed)

    return tf.data.Dataset.zip(dataset, seeds.batch(2, drop_remainder=True)).map(add_noise)


def pixel_sigmoid(num_levels=256, alpha=1e-6, dtype=tf.float32, name="pixel_sigmoid"):
    """The bijector from logits to dequantised pixels in `[0, num_levels]`; inverse: the paper's logit.

    `inverse(x) = logit(alpha + (1 - 2 alpha) x / num_levels)`. Inside a distribution it makes
    `log_prob` a density of pixels, in nats, and `sample` give pixels (to within `alpha num_levels`).

    Args:
      num_levels: number of grey levels, an int of 2 or more; 256 for 8-bit images.
      alpha: margin in (0, 0.5) that keeps the logit finite.
      dtype: floating dtype.
      name: name of the bijector.

    Returns:
      A `tfb.Sigmoid` with the range `num_levels [-alpha, 1 - alpha] / (1 - 2 alpha)`.

    Raises:
      TypeError: if `alpha` is no number, or `dtype` not floating.
      ValueError: if `num_levels` is no int of 2 or more, or `alpha` is outside (0, 0.5).

    >>> float(pixel_sigmoid(num_levels=16).inverse(tf.constant(8.0)))
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


def bits_per_dim(log_prob, event_shape):
    """Bits per dimension of densities of pixels: `-log_prob / (dimensions log 2)`.

    Args:
      log_prob: log densities in nats, over pixels of unit width as `dequantize` makes them.
      event_shape: the shape of one image: int, tuple or `tf.TensorShape`.

    Returns:
      Bits per dimension, of the shape of `log_prob`.

    Raises:
      TypeError: if `log_prob` is not of real numbers.
      ValueError: if `event_shape` is no known shape.

    >>> bits_per_dim(-16.0 * math.log(2.0), (2, 2))
    4.0
    """
    sizes = as_sizes(event_shape)
    if sizes is None or None in sizes:
        raise ValueError(f"`event_shape` must be an int, or a shape, of positive ints; got {event_shape!r}.")
    if not is_number(log_prob):
        log_prob = log_prob if hasattr(log_prob, "dtype") else _tensor(log_prob, "log_prob")
        if not tf.as_dtype(log_prob.dtype).is_floating:
            raise TypeError(f"`log_prob` must be of real numbers; got dtype {log_prob.dtype}.")
    return -log_prob / (math.log(2.0) * math.prod(sizes))


def _tensor(value, name):
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array or a tensor of numbers; got {value!r}.") from error
