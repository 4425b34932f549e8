"""`InverseQuality`: the errors of learned inverses."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.callbacks.shared import FlowCallback, check_verbose
from tfp_selfnorm.inverse_learning.scope import recording_scope
from tfp_selfnorm.inverse_learning.tracking import inverse_error
from tfp_selfnorm.structure.layers import sampling_by_decoders, self_norm_layers
from tfp_selfnorm.structure.names import unused_name
from tfp_selfnorm.utils.checks import check_finite
from tfp_selfnorm.utils.integers import check_int, check_positive_int
from tfp_selfnorm.utils.types import TfpObject


def learned_layers(distribution: TfpObject, user: str) -> dict[str, Any]:
    """The layers that need a learned inverse, by unique names.

    Raises:
      ValueError: if there is none, with the name of the user.
    """
    layers: dict[str, Any] = {}
    for layer in self_norm_layers(distribution):
        if layer.needs_inverse:
            layers[unused_name(layer.name, layers)] = layer
    if not layers:
        raise ValueError(f"{user} needs a layer with a learned inverse; the distribution has none.")
    return layers


def probed_errors(
    layers: dict[str, Any], num_probes: int, seed: int, conditions: dict[Any, list[tf.Tensor]]
) -> dict[str, float]:
    """The `inverse_error` of each layer, from probes of its own, the largest over its batches of conditions.

    Args:
      layers: the layers, by names.
      num_probes, seed: of the probes.
      conditions: the batches by the identities of layers; a layer that is not there has no condition.
    """
    return {
        name: float(
            np.max(
                [
                    inverse_error(layer, num_probes, seed=[seed, i], condition=batch)
                    for batch in conditions.get(layer.identity, [None])
                ]
            )
        )
        for i, (name, layer) in enumerate(layers.items())
    }


def conditions_of_pairs(
    layers: dict[str, Any], model: TfpObject, condition: Any, user: str
) -> dict[Any, list[tf.Tensor]]:
    """A batch of conditions as each pair of networks gets it in each of its passes, by identities.

    Args:
      layers: the layers, by names.
      model: a model, or a distribution.
      condition: the batch that the user gave, or `None`.
      user: the name of the user.

    Raises:
      TypeError, ValueError: if the batch is missing or does not fit.
    """
    pairs = [name for name, layer in layers.items() if not layer.is_constant_jacobian]
    form = getattr(model, "conditions", None)
    if form is None and condition is not None:
        raise ValueError(f"`condition` must be None for {type(model).__name__}; got conditions.")
    if form is None or (condition is None and not pairs):
        return {}
    if condition is None:
        raise ValueError(
            f"{user} needs the argument `condition`, a batch of conditions for the probes of the networks "
            f"`{pairs[0]}`; got None."
        )
    ordered = model._frames.ordered(condition, "condition", "conditions")
    batch = form.tensor(ordered, is_batch=True)
    numbers = {int(part.shape[0]) for part in tf.nest.flatten(batch)}
    if len(numbers) > 1 or 0 in numbers:
        found = " and ".join(map(str, sorted(numbers)))
        raise ValueError(
            f"`condition` must have one or more conditions, as many in each part; got {found} of them."
        )
    for part in tf.nest.flatten(batch):
        check_finite(part, "condition")
    if not pairs:
        return {}
    # Embeddings and `bijector_kwargs` give each pair its own. A pass shows them, whatever its events are.
    flow = sampling_by_decoders(model.inference_distribution)
    with recording_scope(None) as scope:
        flow.bijector.inverse(tf.zeros([*numbers, *flow.event_shape], flow.dtype), condition=batch)
    batches: dict[Any, list[tf.Tensor]] = {}
    for p in scope.passes:
        if not p.layer.is_constant_jacobian and p.kernel.conditions:
            batches.setdefault(p.layer.identity, []).append(p.kernel.conditions[0])
    return batches


class InverseQuality(FlowCallback):
    """Estimates the error of each learned inverse at the end of epochs, and names the worst layer.

    The error of a layer is its `tfp_selfnorm.inverse_error`: `||I - R W|| / ||I||` (Frobenius norm). 0 is
    exact; an R of zeros has the error 1. The estimate maps random probes by W and back by R, with the same
    probes each time. For a batch of kernels it is the largest error. For a convolution it is the error of the
    whole map, with the zero padding. It costs O(n D^2) for each layer, with n probes.

    It is a figure of each layer alone. The error of samples is that of all layers together: each layer maps
    the errors of those before it. For this error compare `model.reconstruct(x)` with `x`.

    `logs` get the largest error as `worst_inverse_error`. The figure `inverse_error` on the progress bar is
    another: the mean over the layers that `Tracking` updates, and over the steps of the epoch, before each
    update. Keras's callbacks after this one in the list can use it (EarlyStopping with `mode="min"`). An
    epoch without an estimate repeats the last one. Errors that are not finite are reported unchanged, and NaN
    counts as the largest.

    Args:
      num_probes: number of probes for each layer; see `tfp_selfnorm.inverse_error`. With a `LearnedInverse`
        take 1000.
      every_epochs: number of epochs from one estimate to the next; the first epoch always has one.
      seed: int, the seed of the probes.
      verbose: whether to print a line with each estimate.
      condition: for a `ConditionalFlowModel` with a `LearnedInverse`, a batch of conditions, as `fit` takes
        them. The probes of its networks take them in turn; of more conditions than probes they take some,
        evenly spread. To see conditions apart, give each a callback and read its `errors`: the figure in
        `logs` is of the last callback.

    Attributes:
      errors: dict from unique names to errors, for the layers that need a learned inverse.
      worst_layer: name of the layer with the largest error.

    Raises:
      TypeError: when training begins, if the model is no `FlowModel`.
      ValueError: if a number is not positive, or `seed` or `verbose` is no int; when training begins, if no
        layer needs a learned inverse, or `condition` is missing or does not fit.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> from tfp_selfnorm.callbacks import InverseQuality
    >>> model = sn.FlowModel(sn.dense_flow(3, seed=1))
    >>> model.compile("adam")
    >>> quality = InverseQuality()
    >>> history = model.fit(tf.zeros([8, 3]), callbacks=[quality], verbose=0)
    >>> list(quality.errors), history.history["worst_inverse_error"][0] < 0.1
    (['dense_0', 'dense_1'], True)
    """

    def __init__(
        self,
        num_probes: int = 32,
        every_epochs: int = 1,
        seed: int = 0,
        verbose: bool | int = 0,
        condition: Any = None,
    ) -> None:
        """Makes the callback; the class has the arguments."""
        super().__init__()
        self.num_probes = check_positive_int(num_probes, "num_probes")
        self.every_epochs = check_positive_int(every_epochs, "every_epochs")
        self.seed = check_int(seed, "seed", -(2**63), 2**63 - 1)
        self.verbose, self.condition = check_verbose(verbose), condition
        self.errors: dict[str, float] = {}
        self.worst_layer: Any = None
        self._layers: dict[str, Any] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.errors, self.worst_layer = {}, None
        self._layers = learned_layers(self.scored_distribution, type(self).__name__)
        self._batch()

    def _batch(self):
        """The conditions of the probes, by the embeddings of this epoch."""
        return conditions_of_pairs(self._layers, self.model, self.condition, type(self).__name__)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.every_epochs == 0 or not self.errors:
            self.errors = probed_errors(self._layers, self.num_probes, self.seed, self._batch())
            # For argmax, NaN is the largest.
            self.worst_layer = list(self.errors)[np.argmax(list(self.errors.values()))]
            if self.verbose:
                worst = self.errors[self.worst_layer]
                print(f"\nEpoch {epoch + 1}: the worst learned inverse, `{self.worst_layer}`: {worst:.3g}")
        if logs is not None:
            logs["worst_inverse_error"] = self.errors[self.worst_layer]
