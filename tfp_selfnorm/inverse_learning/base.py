"""`InverseLearning`, the ways in which the kernel R of a layer follows its kernel W."""

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf


class InverseLearning:
    """How R follows W: base class of `Tracking` and `Reconstruction`.

    A `training_scope` and a `FlowModel` ask it about each self-normalizing layer. The base class itself does
    nothing: R then learns from the likelihood alone.
    """

    def mixture(self, layer: Any) -> float:
        """The weight of the density that is computed, inside a `training_scope`; see `SelfNormDense`."""
        check_layer(layer)
        return layer.mixture

    def regularizer(self, layer: Any) -> Any:
        """The `Reconstruction` whose loss trains R of the layer, or `None`."""
        check_layer(layer)

    def tracks(self, layer: Any) -> bool:
        """Whether `follow` updates R of the layer."""
        check_layer(layer)
        return False

    def refresh_interval(self, layer: Any) -> int:
        """The number of steps between two refreshes of the layer: of its log-det, and of a tracked R."""
        check_layer(layer)
        return layer.refresh_interval

    def follow(
        self, layers: Iterable, step: int | tf.Tensor, seed: int = 0, refreshes: bool = True
    ) -> tf.Tensor:
        """Updates R of each tracked layer, after a step of the optimizer; see `Tracking.follow`."""
        return tf.zeros([0])

    def measure(self, layers: Iterable) -> tf.Tensor:
        """The relative error of each tracked R, see `inverse_error`; a float32 vector."""
        return tf.zeros([0])

    def trains_inverse(self, layer: Any) -> bool:
        """Whether a gradient reaches R of the layer, from the likelihood or from a regularizer."""
        by_likelihood = layer.gradient == "self_norm" and self.mixture(layer) < 1.0
        return by_likelihood or self.regularizer(layer) is not None

    def untrained_variables(self, layers: Iterable) -> list:
        """The variables of the layers that only learned inverses have which no gradient reaches."""
        layers = check_layers(layers)
        trained = {variable.ref() for layer in layers for variable in layer.map_variables[0]}
        untrained = [layer for layer in layers if not self.trains_inverse(layer)]
        return [v for layer in untrained for v in layer.map_variables[1] if v.ref() not in trained]

    def teaches_inverse(self, layer: Any) -> bool:
        """Whether R of the layer is tracked or has a regularizer."""
        return self.tracks(layer) or self.regularizer(layer) is not None


def as_inverse_learning(inverse_learning: InverseLearning | None) -> InverseLearning:
    """Returns the argument, or for `None` an `InverseLearning` that does nothing.

    Raises:
      TypeError: if it is neither an `InverseLearning` nor `None`.
    """
    if inverse_learning is None:
        return InverseLearning()
    if not isinstance(inverse_learning, InverseLearning):
        raise TypeError(
            f"`inverse_learning` must be a Tracking, a Reconstruction or None; got {inverse_learning!r}."
        )
    return inverse_learning


def check_layers(layers: Iterable, name: str = "layers") -> list:
    """Returns the layers as a list; raises TypeError if one is no self-normalizing layer."""
    try:
        listed = list(layers)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a list of self-normalizing layers; got {layers!r}.") from error
    for layer in listed:
        check_layer(layer, name)
    return listed


def by_identity(mapping: Mapping, name: str) -> dict:
    """The values of a mapping from layers, by the identity of each layer.

    Raises:
      TypeError: if it is no mapping from self-normalizing layers.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"`{name}` must be a mapping from layers to numbers; got {mapping!r}.")
    check_layers(mapping, name)
    return {layer.identity: value for layer, value in mapping.items()}


def as_corrections(mapping: Mapping | None) -> dict:
    """The `gradient_corrections` of a scope by the identity of each layer.

    Raises:
      TypeError: if it is no mapping from self-normalizing layers.
      ValueError: if a layer takes no correction, or has kernels of another shape.
    """
    corrections = {} if mapping is None else by_identity(mapping, "gradient_corrections")
    for layer, value in (mapping or {}).items():
        if not layer.has_gradient_correction:
            raise ValueError(
                "`gradient_corrections` must be of convolutions with `gradient='circulant'`, wider than 1x1; "
                f"got `{layer.name}` with {layer.gradient!r}."
            )
        # A `FlowModel` holds the error of a correction with what it goes by.
        shape = getattr(getattr(value, "error", value), "shape", None)
        if shape is None or not layer.inverse_kernel.shape.is_compatible_with(shape):
            raise ValueError(
                f"`gradient_corrections` must have the shape of the kernel of `{layer.name}`, "
                f"{tuple(layer.inverse_kernel.shape)}; got {value!r:.80}."
            )
    return corrections


def is_fixed(layer: Any) -> bool:
    """Whether W and R of a linear layer are variables that do not train: nothing learns this inverse.

    A pair of frozen networks is not fixed: its log-det changes with the events.
    """
    check_layer(layer)
    kernels, inverses = layer.map_variables
    variables = kernels + inverses if kernels and inverses and layer.is_constant_jacobian else []
    return bool(variables) and not any(variable.trainable for variable in variables)


def check_layer(layer: Any, name: str = "layer") -> None:
    """Raises TypeError if it is no self-normalizing layer."""
    # By an attribute: an import of the class would be circular.
    if not hasattr(layer, "needs_inverse"):
        raise TypeError(
            f"`{name}` must be of self-normalizing layers, as `self_norm_layers` finds them; got {layer!r}."
        )
