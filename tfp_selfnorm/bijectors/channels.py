"""The number of the first channels, which a coupling and a split separate from the others."""

import tensorflow as tf

from tfp_selfnorm.utils.types import TfpObject


def number_of_first_channels(
    bijector: TfpObject, shape: tf.TensorShape, number: int | None, argument: str, use: str
) -> int:
    """The number of the first channels in events of the bijector.

    Args:
      bijector: the bijector.
      shape: the static shape of its input.
      number: the number in its constructor; `None` for half of the channels.
      argument: the name of the argument with this number.
      use: the use of these channels in words, for the error: "keeps {} channels".

    Raises:
      ValueError: if the number of channels is unknown or too small, or is odd and must be halved.
    """
    if shape.rank is None or shape.rank < bijector.forward_min_event_ndims or shape[-1] is None:
        raise ValueError(f"`{bijector.name}` needs a known number of channels; got shape {shape}.")
    if number is None and shape[-1] % 2:
        raise ValueError(
            f"`{bijector.name}` halves an even number of channels; got shape {tuple(shape)}. For another "
            f"number give `{argument}`."
        )
    number = shape[-1] // 2 if number is None else number
    if number >= shape[-1]:
        raise ValueError(f"`{bijector.name}` {use.format(number)} and needs more; got {tuple(shape)}.")
    return number
