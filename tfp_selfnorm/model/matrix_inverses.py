"""`MatrixInverses`: whether R is the inverse of W in the layers whose kernels are matrices."""

from collections.abc import Sequence

import tensorflow as tf

from tfp_selfnorm.inverse_learning.tracking import inverse_error, refresh_inverse
from tfp_selfnorm.utils.types import TfpObject

# A larger relative error of R on probes is not that of rounding.
_TOLERANCE = 1e-3


class MatrixInverses:
    """Sets R of the layers whose kernels are matrices, and knows whether it is the inverse of W.

    Training leaves R behind W, by little or much. Samples by this R have another density than the scored one.

    Args:
      layers: self-normalizing layers.
    """

    def __init__(self, layers: Sequence[TfpObject]) -> None:
        self._layers = [layer for layer in layers if layer.needs_inverse and can_be_set(layer)]
        self._are_exact: bool | None = None

    def set(self) -> None:
        """Sets each R to the inverse of its W, at O(D^3); raises ValueError if a kernel is singular."""
        self._are_exact = False
        for layer in self._layers:
            refresh_inverse(layer)
        self._are_exact = True

    def fall_behind(self) -> None:
        """Says that steps of training were done."""
        self._are_exact = False

    def forget(self) -> None:
        """Says that other code has set kernels, for example from a file: the next use measures R."""
        self._are_exact = None

    def are_exact(self) -> bool:
        """Whether each R is the inverse of its W, up to rounding."""
        if self._are_exact is None:
            errors = [float(inverse_error(layer, num_probes=8, seed=0)) for layer in self._layers]
            self._are_exact = all(error < _TOLERANCE for error in errors)
        return self._are_exact


def can_be_set(layer: TfpObject) -> bool:
    """Whether the learned inverse of the layer is a matrix in a variable, which can be set."""
    return layer.has_matrix_kernels and isinstance(layer.forward_kernel, tf.Variable)
