"""What costs O(D^3) and is computed between the compiled steps: exact log-dets and exact inverses."""

import warnings

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.inverse_learning.tracking import refresh_inverse
from tfp_selfnorm.structure.names import unused_name


class Refresh:
    """Holds each layer's `log |det W|`, in nats, and brings learned inverses after W, on the host.

    What is held is of certain weights. Callbacks, optimizers of other models and users change weights too:
    the averages of an optimizer take the place of the weights before an evaluation, and leave it afterwards.
    So each use looks whether W is still the one that the value is of. The tensors to compare with share the
    memory of the variables until these change, and are let go while a compiled step runs.

    Args:
      layers: self-normalizing layers.
      tracked: those of them whose R is set to the inverse of W every so many steps.
      untaught: those whose R nothing teaches but the likelihood inside the training scope. It is set, like
        that of the tracked ones, where W has changed outside of training steps.
      add_weight: function that makes a Keras variable, such as the method of a `keras.Model`.
    """

    def __init__(self, layers, tracked, untaught, add_weight):
        self._tracked, self._untaught = tuple(tracked), tuple(untaught)
        self._held = _held_log_dets(layers, add_weight)
        # The weights that the inverses follow, those that all log-dets are of, and whether R was set in
        # between.
        self._followed, self._scored, self._is_set_between = self._weights(), None, False

    def read(self) -> dict:
        """What a `training_scope` takes for `log_dets`."""
        return {layer: tf.convert_to_tensor(held.value) for layer, held in self._held}

    def before_steps(self, is_due) -> None:
        """Sets what is due before training steps, and what is of other weights than theirs.

        Args:
          is_due: function of a layer: whether it is to be refreshed.

        Raises:
          ValueError: if a kernel is singular or not finite, naming the layer.
        """
        inverses = self._changed(self._followed) if self._is_set_between else set()
        log_dets = set() if self._scored is None else self._changed(self._scored)
        self._followed, self._scored, self._is_set_between = None, None, False
        self._set_inverses([la for la in self._tracked if is_due(la) or la.key in inverses])
        self._set_inverses([layer for layer in self._untaught if layer.key in inverses])
        self._set_log_dets(lambda layer: is_due(layer) or layer.key in log_dets)

    def after_steps(self) -> None:
        """Remembers the weights that the learned inverses follow from now on."""
        self._followed = self._weights()

    def before_evaluation(self) -> None:
        """Sets each log-det that is not of the present weights; raises as `before_steps` does."""
        changed = self._changed(self._scored)
        self._set_log_dets(lambda layer: layer.key in changed)
        self._scored = self._weights()

    def before_use(self) -> None:
        """Sets each learned inverse and log-det whose W has changed without it; raises as `before_steps`."""
        changed = self._changed(self._followed)
        if changed:
            self._set_inverses([la for la in (*self._tracked, *self._untaught) if la.key in changed])
            self._set_log_dets(lambda layer: layer.key in changed)
            self._followed, self._is_set_between = self._weights(), True
            self._scored = None

    def before_files(self) -> None:
        """The same, and a warning in place of an error: weights that have no inverse may be saved too."""
        try:
            self.before_use()
        except ValueError as error:
            warnings.warn(f"{error} The learned inverse is saved as it is.", stacklevel=3)

    def set_inverses(self) -> None:
        """Sets the tracked inverses, whether or not W has changed; warns of kernels that have none."""
        try:
            self._set_inverses(self._tracked)
        except ValueError as error:
            warnings.warn(f"{error} Its learned inverse stays as it is.", stacklevel=3)
        else:
            self._followed = self._weights()

    def take_weights(self) -> None:
        """Takes the present weights for those that the present inverses follow, as after a file was read."""
        self._followed, self._scored, self._is_set_between = self._weights(), None, False

    def _set_inverses(self, layers):
        for layer in layers:
            refresh_inverse(layer)

    def _set_log_dets(self, is_meant):
        for layer, held in self._held:
            if not is_meant(layer):
                continue
            log_det = layer.exact_log_det()
            if not np.isfinite(log_det).all():
                raise ValueError(
                    f"`log |det inverse_kernel|` of `{layer.name}` is {log_det.numpy()}: the kernel is "
                    "singular or not finite."
                )
            held.assign(log_det)

    def _weights(self):
        """The values that each kernel W depends on, without a copy."""
        return [[tf.convert_to_tensor(v) for v in _variables(layer)] for layer, _ in self._held]

    def _changed(self, weights):
        """The keys of the layers whose weights are others; of all of them if none are known."""
        if weights is None:
            return {layer.key for layer, _ in self._held}
        return {
            layer.key
            for (layer, _), old, new in zip(self._held, weights, self._weights(), strict=True)
            if not all(bool(tf.reduce_all(a == b)) for a, b in zip(old, new, strict=True))
        }


def _variables(layer):
    kernel = layer.inverse_kernel
    if isinstance(kernel, tfp.util.DeferredTensor):
        return kernel.variables
    return [kernel] if isinstance(kernel, tf.Variable) else []


def _held_log_dets(layers, add_weight):
    """Pairs of a layer and the variable that holds its log-det."""
    names = {}
    for layer in layers:
        names[unused_name(f"held_log_det_{layer.name}", names)] = layer
    return [
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
