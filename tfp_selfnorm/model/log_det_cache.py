"""`LogDetCache`, the exact log-dets of weights that stay as they are."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_selfnorm.utils.types import TfpObject


class LogDetCache:
    """Computes the exact `log |det W|` of each layer once between two changes of its weights.

    Each use compares the weights with those of the known value. The weights may be changed by anything: an
    optimizer, a file, a user. A tensor of a variable's value shares its memory until the variable changes, so
    the comparison is of two addresses on the host. Elsewhere it is of all entries.

    Args:
      layers: self-normalizing layers.
    """

    def __init__(self, layers: Sequence[TfpObject]) -> None:
        self._layers = [layer for layer in layers if layer.is_constant_jacobian]
        self._known: dict = {}

    def read(self) -> dict[TfpObject, tf.Tensor]:
        """The log-dets of the present weights, of each layer whose log-det does not depend on events.

        Raises:
          ValueError: if the kernel of a convolution is singular to working precision.
        """
        log_dets = {}
        for layer in self._layers:
            weights, known = _weights(layer), self._known.get(layer.identity)
            if known is None or not all(map(are_equal, known[0], weights)):
                known = weights, layer.exact_log_det()
                # Another thread may have changed the weights in between.
                if all(map(are_equal, weights, _weights(layer))):
                    self._known[layer.identity] = known
            log_dets[layer] = known[1]
        return log_dets

    def forget(self) -> None:
        """Releases the weights: a variable whose memory is shared is copied when it changes."""
        self._known = {}


def _weights(layer):
    return [tf.convert_to_tensor(variable) for variable in layer.map_variables[0]]


def are_equal(old: tf.Tensor, new: tf.Tensor) -> bool:
    """Whether two eager tensors have the same entries. The same memory on the host is not compared."""
    # `numpy()` would copy.
    if "CPU" in old.device and np.may_share_memory(np.asarray(old), np.asarray(new)):
        return True
    return bool(tf.reduce_all(old == new))
