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

    An R that only the likelihood inside the training scope teaches is set, like a tracked one, where W has
    changed outside of training steps.

    Args:
      layers: self-normalizing layers.
      learning: the `InverseLearning`.
      add_weight: function that makes a Keras variable, such as the method of a `keras.Model`.
    """

    def __init__(self, layers, learning, add_weight):
        self._learning, self._layers = learning, tuple(layers)
        self._tracked = [layer for layer in layers if learning.tracks(layer)]
        self._untaught = [layer for layer in layers if _needs_teaching(layer, learning)]
        self._held = _held_log_dets(layers, add_weight)
        self._step = None
        # The weights that the inverses follow, those that all log-dets are of, and whether R was set in
        # between.
        self._followed, self._scored, self._is_set_between = self._weights(), None, False

    def read(self) -> dict:
        """What a `training_scope` takes for `log_dets`."""
        return {layer: tf.convert_to_tensor(held.value) for layer, held in self._held}

    def forget_step(self) -> None:
        """Has the next step looked up in its variable: `fit` begins, or other steps came between."""
        self._step = None

    def before_steps(self, step_variable, count: int) -> int:
        """Sets the values that are due before training steps, and those of other weights than theirs.

        Args:
          step_variable: the number of steps there were.
          count: the number of steps that come at once.

        Returns:
          The number of the first of them.

        Raises:
          ValueError: if a kernel is singular or not finite, naming the layer.
        """
        # An execution of several steps may have ended with the data; one of a single step has not.
        if self._step is None or count > 1:
            self._step = int(step_variable.numpy())
        step = self._step
        self._step += count

        def is_due(layer):
            return step % self._learning.refresh_interval(layer) < count

        inverses = self._changed(self._followed) if self._is_set_between else set()
        log_dets = set() if self._scored is None else self._changed(self._scored)
        self._followed, self._scored, self._is_set_between = None, None, False
        self._set_inverses([la for la in self._tracked if is_due(la) or la.identity in inverses])
        self._set_inverses([layer for layer in self._untaught if layer.identity in inverses])
        self._set_log_dets(lambda layer: is_due(layer) or layer.identity in log_dets)
        return step

    def after_steps(self) -> None:
        """Remembers the weights that the learned inverses follow from now on."""
        self._followed = self._weights()

    def before_evaluation(self) -> None:
        """Sets each log-det that is not of the present weights; raises as `before_steps` does."""
        changed = self._changed(self._scored)
        self._set_log_dets(lambda layer: layer.identity in changed)
        self._scored = self._weights()

    def before_use(self) -> None:
        """Sets each learned inverse and log-det whose W has changed without it; raises as `before_steps`."""
        changed = self._changed(self._followed)
        if changed:
            self._set_inverses([la for la in (*self._tracked, *self._untaught) if la.identity in changed])
            self._set_log_dets(lambda layer: layer.identity in changed)
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
            return {layer.identity for layer, _ in self._held}
        return {
            layer.identity
            for (layer, _), old, new in zip(self._held, weights, self._weights(), strict=True)
            if not all(bool(tf.reduce_all(a == b)) for a, b in zip(old, new, strict=True))
        }


def _needs_teaching(layer, learning):
    """Whether the layer needs a learned inverse that can be set, and that the learning does not teach."""
    can_be_set = layer.has_matrix_kernels and isinstance(layer.forward_kernel, tf.Variable)
    return layer.needs_inverse and can_be_set and not learning.teaches_inverse(layer)


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
