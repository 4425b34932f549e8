"""`Squeeze`: space to depth and back."""

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.utils.integers import check_positive_int


class Squeeze(CheckedBijector, tfp.bijectors.AutoCompositeTensorBijector):
    """Moves blocks of pixels to channels: `[H, W, C]` to `[H / b, W / b, b b C]`, and back with `inverse`.

    It is a permutation, with log-det 0. Pixel (i, j) and channel c of a block become channel
    `(i b + j) C + c`.
    Shapes: events of rank 3. Any dtype; log-dets are for dtypes with negative numbers.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> sn.Squeeze().forward(tf.reshape(tf.range(4.0), [2, 2, 1])).numpy().tolist()
    [[[0.0, 1.0, 2.0, 3.0]]]
    >>> sn.Squeeze(2).forward_event_shape([28, 28, 1])
    TensorShape([14, 14, 4])

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 3.6.
    """

    def __init__(self, block_size: int = 2, validate_args: bool = False, name: str = "squeeze") -> None:
        """Makes the bijector.

        Args:
          block_size: b, a Python int, 1 or more.
          validate_args: has no effect; wrong sizes always raise an error.
          name: name of the ops.

        Raises:
          ValueError: if `block_size` is no positive int.
        """
        parameters = dict(locals())
        self._block_size = check_positive_int(block_size, "block_size")
        super().__init__(3, parameters)

    @property
    def block_size(self) -> int:
        """b, the side of a block of pixels."""
        return self._block_size

    def _forward(self, x):
        shapes = self._forward_event_shape(x.shape), self._forward_event_shape_tensor(tf.shape(x))
        b, (height, width, channels) = self._block_size, _sizes(x)
        return _rearranged(x, [height // b, b, width // b, b, channels], *shapes)

    def _inverse(self, y):
        shapes = self._inverse_event_shape(y.shape), self._inverse_event_shape_tensor(tf.shape(y))
        b, (height, width, channels) = self._block_size, _sizes(y)
        return _rearranged(y, [height, width, b, b, channels // (b * b)], *shapes)

    def _forward_log_det_jacobian(self, x):
        self._forward_event_shape(x.shape)
        return tf.zeros([], x.dtype)

    def _inverse_log_det_jacobian(self, y):
        self._inverse_event_shape(y.shape)
        return tf.zeros([], y.dtype)

    def _forward_event_shape(self, input_shape):
        b = self._block_size
        needs = f"a height and a width divisible by its block size, {b}"
        height, width, channels = self._image_sizes(input_shape, (b, b, 1), needs)
        sizes = [height and height // b, width and width // b, channels and channels * b * b]
        return input_shape[:-3].concatenate(sizes)

    def _inverse_event_shape(self, output_shape):
        b = self._block_size
        needs = f"a number of channels divisible by the square of its block size, {b * b}, for its inverse"
        height, width, channels = self._image_sizes(output_shape, (1, 1, b * b), needs)
        sizes = [height and height * b, width and width * b, channels and channels // (b * b)]
        return output_shape[:-3].concatenate(sizes)

    def _forward_event_shape_tensor(self, input_shape):
        b = self._block_size
        height, width, channels = tf.unstack(input_shape[-3:])
        return tf.concat([input_shape[:-3], [height // b, width // b, channels * b * b]], axis=0)

    def _inverse_event_shape_tensor(self, output_shape):
        b = self._block_size
        height, width, channels = tf.unstack(output_shape[-3:])
        return tf.concat([output_shape[:-3], [height * b, width * b, channels // (b * b)]], axis=0)

    def _image_sizes(self, shape, divisors, needs):
        """Height, width and channels, `None` if unknown. The divisors must divide them."""
        if shape.rank is None or shape.rank < 3:
            raise ValueError(f"`{self.name}` needs images (..., height, width, channels); got shape {shape}.")
        sizes = shape[-3:].as_list()
        if any((size or 0) % divisor for size, divisor in zip(sizes, divisors, strict=True)):
            raise ValueError(f"`{self.name}` needs {needs}; got an image of shape {tuple(sizes)}.")
        return sizes


def _sizes(images):
    """Height, width and channels: Python ints where they are known, otherwise tensors."""
    dynamic = tf.shape(images)
    return [images.shape[i] or dynamic[i] for i in (-3, -2, -1)]


def _rearranged(images, sizes, static_shape, shape):
    """The images as arrays of five sizes, with the second and the third axis swapped, in a new shape."""
    # TensorFlow's `space_to_depth` has no GPU kernel for float64, and needs blocks of 2 or more.
    swapped = tf.transpose(tf.reshape(images, [-1, *sizes]), [0, 1, 3, 2, 4, 5])
    return tf.ensure_shape(tf.reshape(swapped, shape), static_shape)
