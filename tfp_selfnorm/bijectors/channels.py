"""The first channels of events, which a coupling and a split treat apart from the others."""


def number_of_first_channels(bijector, shape, number, argument, use):
    """How many channels come first in events of the bijector.

    Args:
      bijector: the bijector.
      shape: the static shape of its input.
      number: the number that it was made with; `None` for half of the channels.
      argument: the name of the argument with this number.
      use: for the error, the use of these channels, such as "keeps {} channels".

    Raises:
      ValueError: if the number of channels is unknown, odd where it is halved, or too small.
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
