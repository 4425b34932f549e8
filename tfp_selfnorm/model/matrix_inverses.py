"""`MatrixInverses`: whether R is the inverse of W in the layers whose kernels are matrices."""

from collections.abc import Sequence

import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import is_fixed
from tfp_selfnorm.inverse_learning.tracking import inverse_error
from tfp_selfnorm.utils.types import TfpObject

# A larger relative error of R on probes is not that of rounding.
_TOLERANCE = 1e-3


class MatrixInverses:
    """Knows whether R is the inverse of W in the layers whose kernels are matrices.

    Training leaves R behind W, by little or much. Samples by this R have another density than the scored one.
    An R that was given, and not trained here, is taken as it is.

    Args:
      layers: self-normalizing layers.

    Attributes:
      layers: the layers that need a learned inverse which can be set.
      state: whether each R is exact, or was given; `None` if it is to be measured.
    """

    def __init__(self, layers: Sequence[TfpObject]) -> None:
        learned = [layer for layer in layers if layer.needs_inverse and not is_fixed(layer)]
        self.layers = [layer for layer in learned if can_be_set(layer)]
        self.state: bool | None = True

    def were_set(self) -> None:
        """Says that each R was set to the inverse of its W."""
        self.state = True

    def fall_behind(self) -> None:
        """Says that steps of training were done."""
        self.state = False

    def forget(self) -> None:
        """Says that other code has set kernels, for example from a file: the next use measures R."""
        self.state = None

    def are_exact(self) -> bool:
        """Whether each R is the inverse of its W, up to rounding, or was given.

        In a graph nothing is measured, and an R that is not known to be behind counts as exact.
        """
        if self.state is None and tf.executing_eagerly():
            self.state = all(map(is_inverse, self.layers))
        return self.state is not False


def is_inverse(layer: TfpObject) -> bool:
    """Whether R of the layer is the inverse of W, up to rounding, by random probes."""
    return float(inverse_error(layer, num_probes=8, seed=0)) < _TOLERANCE


def can_be_set(layer: TfpObject) -> bool:
    """Whether the learned inverse of the layer is a matrix in a variable, which can be set."""
    return layer.has_matrix_kernels and isinstance(layer.forward_kernel, tf.Variable)
