"""`InverseQuality`, the errors of learned inverses."""

from typing import Any

import numpy as np

from tfp_selfnorm.callbacks.shared import FlowCallback
from tfp_selfnorm.inverse_learning.tracking import inverse_error
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.structure.names import unused_name
from tfp_selfnorm.utils.integers import check_int, check_positive_int


class InverseQuality(FlowCallback):
    """Estimates at the end of epochs how far each learned inverse is off, and names the worst layer.

    The error of a layer is `||I - R W|| / ||I||` (Frobenius norm), with W from data to latent and R back:
    what random probes, the same each time, lose on the way there and back. 0 is exact, and 1 no better than
    an R of zeros. Of a batch of kernels it is the largest, of a convolution that of its map, zero padding
    included. Costs O(n D^2) a layer for n probes.

    `logs` get the largest error as `worst_inverse_error`, for Keras's own callbacks behind this one in the
    list (EarlyStopping takes `mode="min"`); an epoch without an estimate, where `every_epochs` is more than
    1, repeats the last. Values that are not finite are reported as they are, and NaN counts as the worst.

    Args:
      num_probes: probes of a layer; at most D, or 8 images of a convolution wider than 1x1, are used.
      every_epochs: epochs from one estimate to the next; the first epoch has one too.
      seed: int that the probes depend on.
      verbose: whether to print a line with each estimate.

    Attributes:
      errors: dict from the names of the layers that need their learned inverse, made unique, to the errors.
      worst_layer: the name of the layer with the largest error.

    Raises:
      TypeError: at the start of training, if the model is no `FlowModel`.
      ValueError: if a number is not positive, or `seed` or `verbose` no int; at the start of training, if no
        layer needs a learned inverse.

    >>> import tensorflow as tf, tfp_selfnorm as sn
    >>> from tfp_selfnorm.callbacks import InverseQuality
    >>> model = sn.FlowModel(sn.dense_flow(3, seed=1))
    >>> model.compile("adam")
    >>> quality = InverseQuality()
    >>> history = model.fit(tf.zeros([8, 3]), callbacks=[quality], verbose=0)
    >>> list(quality.errors), history.history["worst_inverse_error"][0] < 0.1
    (['dense_0', 'dense_1'], True)
    """

    def __init__(
        self, num_probes: int = 32, every_epochs: int = 1, seed: int = 0, verbose: bool | int = 0
    ) -> None:
        super().__init__(every_epochs=every_epochs, verbose=verbose)
        self.num_probes = check_positive_int(num_probes, "num_probes")
        self.seed = check_int(seed, "seed", -(2**63), 2**63 - 1)
        self.errors: dict[str, float] = {}
        self.worst_layer: Any = None
        self._layers: dict[str, Any] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.errors, self.worst_layer, self._layers = {}, None, {}
        for layer in self_norm_layers(self.distribution):
            if layer.needs_inverse:
                self._layers[unused_name(layer.name, self._layers)] = layer
        if not self._layers:
            raise ValueError(
                "InverseQuality needs a layer with a learned inverse; the distribution has none."
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.every_epochs == 0 or not self.errors:
            self.errors = {
                name: float(inverse_error(layer, self.num_probes, seed=[self.seed, i]))
                for i, (name, layer) in enumerate(self._layers.items())
            }
            # To argmax, NaN is the largest.
            self.worst_layer = list(self.errors)[np.argmax(list(self.errors.values()))]
            if self.verbose:
                worst = self.errors[self.worst_layer]
                print(f"\nEpoch {epoch + 1}: the worst learned inverse, `{self.worst_layer}`: {worst:.3g}")
        if logs is not None:
            logs["worst_inverse_error"] = self.errors[self.worst_layer]
