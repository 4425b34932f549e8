"""The exact log-dets of layers, held in variables between refreshes."""

import numpy as np
import tensorflow as tf

from tfp_selfnorm.variable_names import unused_name


class HeldLogDets:
    """Holds each layer's `log |det W|`, in nats.

    Args:
      layers: self-normalizing layers.
      add_weight: function that makes a Keras variable, such as the method of a `keras.Model`.
    """

    def __init__(self, layers, add_weight):
        names = {}
        for layer in layers:
            names[unused_name(f"held_log_det_{layer.name}", names)] = layer
        self._held = [
            (
                layer,
                add_weight(
                    shape=layer.inverse_kernel.shape[: -layer.operations.kernel_ndims],
                    initializer="zeros",
                    dtype=layer.dtype.name,
                    trainable=False,
                    name=name,
                ),
            )
            for name, layer in names.items()
        ]

    def read(self) -> dict:
        """What a `training_scope` takes for `log_dets`."""
        return {layer: tf.convert_to_tensor(held.value) for layer, held in self._held}

    def refresh(self, is_due=lambda layer: True) -> None:
        """Sets what is held to its exact value.

        Args:
          is_due: function of a layer: whether to refresh it.

        Raises:
          ValueError: if a log-det is not finite, naming the layer.
        """
        for layer, held in self._held:
            if is_due(layer):
                log_det = layer.exact_log_det()
                if not np.isfinite(log_det).all():
                    raise ValueError(
                        f"`log |det inverse_kernel|` of `{layer.name}` is {log_det.numpy()}: the kernel is "
                        "singular or not finite."
                    )
                held.assign(log_det)
