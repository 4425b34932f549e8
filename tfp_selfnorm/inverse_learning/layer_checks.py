"""Checks of self-normalizing layers, for modules that their class is made from."""


def check_layers(layers, name="layers") -> list:
    """Returns them as a list; raises TypeError if they are no self-normalizing layers."""
    try:
        listed = list(layers)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a list of self-normalizing layers; got {layers!r}.") from error
    for layer in listed:
        check_layer(layer, name)
    return listed


def check_layer(layer, name="layer") -> None:
    """Raises TypeError if it is no self-normalizing layer."""
    # By what it has: a check of its class would be a circular import.
    if not hasattr(layer, "inverse_kernel"):
        raise TypeError(
            f"`{name}` must be of self-normalizing layers, as `self_norm_layers` finds them; got {layer!r}."
        )
