"""The refreshes between the compiled steps, O(D^3): exact log-dets, gradients and inverses."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.base import InverseLearning, is_fixed
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.inverse_learning.tracking import refresh_inverse
from tfp_selfnorm.model import held_variables
from tfp_selfnorm.model.gradient_corrections import GradientCorrections
from tfp_selfnorm.model.log_det_cache import are_equal
from tfp_selfnorm.model.matrix_inverses import MatrixInverses, can_be_set, is_inverse
from tfp_selfnorm.structure.layers import at_inference
from tfp_selfnorm.structure.whitened_layers import unset_layers
from tfp_selfnorm.utils.types import TfpObject


class Refresh:
    """Holds the `log |det W|` of each layer, in nats, and sets R to the inverse of W, on the host.

    A held log-det belongs to certain weights. Other code changes the weights too: callbacks, other
    optimizers, users. For example, Keras swaps the averages of an optimizer in for an evaluation. So each
    use compares W with the weights of the held log-det. The tensors to compare share the memory of the
    variables until these change. They are released while a compiled step runs.

    If W changes outside of training steps, two kinds of R are set: a tracked R, and an R that only the
    likelihood trains. When a training ends, each R that is a matrix is set.

    Args:
      layers: self-normalizing layers.
      learning: the `InverseLearning`.
      add_weight: function that makes a Keras variable, such as the method of a `keras.Model`.
      distribution: the distribution of the layers.
      condition: a batch of one condition, if the distribution needs one.
    """

    def __init__(
        self,
        layers: Sequence[TfpObject],
        learning: InverseLearning,
        add_weight: Callable[..., keras.Variable],
        distribution: TfpObject,
        condition: Any = None,
    ) -> None:
        self._learning, self._distribution, self._condition = learning, distribution, condition
        self._layers = list(layers)
        self._tracked = [layer for layer in layers if learning.tracks(layer)]
        self._untaught = [layer for layer in layers if _is_untaught(layer, learning)]
        # Training leaves their R behind. It is set where it is used.
        left = [layer for layer in self._untaught if not learning.trains_inverse(layer)]
        self._left = [layer for layer in left if not is_fixed(layer)]
        self._is_left = False
        self.inverses = MatrixInverses(layers)
        # The log-dets of the other layers depend on the events, and are computed if their gradient is exact.
        holding = [la for la in layers if la.is_constant_jacobian or la.gradient == "self_norm"]
        self._held = [(layer, held_variables.held_log_det(layer, add_weight)) for layer in holding]
        self._corrections = GradientCorrections(layers, add_weight)
        self._examples: Any = None
        if not all(layer.is_constant_jacobian for layer in holding):
            self._examples = held_variables.examples(distribution, condition, add_weight)
        self._has_first_examples = False
        # Of fixed layers, those of the held log-dets.
        self._fixed_kernels: dict = {}
        self._step: int | None = None
        # The weights after the last step, the numbers of steps that there can be then, the weights that R
        # follows, the weights of the held log-dets, and whether R was set since the last training step.
        self._stepped: list | None = self._weights()
        self._numbers: range | None = range(1)
        self._followed: list | None = self._stepped
        self._scored: list | None = None
        self._is_set_between = False

    def check_inverses(self) -> None:
        """Raises ValueError if `forward` of a layer uses an R that training would leave behind."""
        for layer, _ in self._held:
            if _stays_behind(layer, self._learning):
                raise ValueError(
                    f"`inversion='learned'` of `{layer.name}` needs an R that follows W. With "
                    f"`gradient={layer.gradient!r}` only a regularizer trains the R of a convolution wider "
                    "than 1x1, and there is none. Make the layer with `inversion='exact'`, which is the "
                    "default with this gradient, or give the model a Reconstruction."
                )

    def warn_of_untaught_inverses(self) -> None:
        """Warns of learned inverses that the gradient or samples use, and nothing teaches."""
        untaught = [layer for layer in self._layers if _is_without_teacher(layer, self._learning)]
        names = [layer.name for layer in untaught if layer.gradient == "self_norm"]
        if names:
            warnings.warn(
                f"`inverse_learning=None`: nothing holds R close to the inverse of W in {names}, and the "
                "gradient of these layers uses R as that inverse. Such a training ends at a wrong place. "
                "Give the model `Tracking()`, which is the default, or a `Reconstruction`; or make the "
                "layers with `gradient='exact'`.",
                stacklevel=6,
            )
        names = [layer.name for layer in untaught if layer.gradient != "self_norm"]
        if names:
            warnings.warn(
                f"`inverse_learning=None`: nothing trains the decoders of {names}. The density is trained, "
                "but samples need the decoders. Give the model `Tracking()`, which is the default, or a "
                "`Reconstruction`.",
                stacklevel=6,
            )

    def warn_of_unset_layers(self) -> None:
        """Warns of fixed layers without values from data."""
        if names := [layer.name for layer in unset_layers(self._layers)]:
            warnings.warn(
                f"The fixed layers {names} are still the identity. Call `adapt` with `whitens=True` before "
                "`fit`: it sets them from data.",
                stacklevel=6,
            )

    def read(self, is_training: bool) -> dict[str, dict[TfpObject, tf.Tensor]]:
        """Returns the held `log_dets` and `gradient_corrections` of a `training_scope`.

        In evaluations a log-det that depends on the events is not held, but exact for each event.
        """
        log_dets = {
            layer: tf.convert_to_tensor(held.value)
            for layer, held in self._held
            if is_training or layer.is_constant_jacobian
        }
        return {"log_dets": log_dets, "gradient_corrections": self._corrections.read()}

    def remember(self, x: tf.Tensor, is_applied: tf.Tensor, condition: Any = None) -> None:
        """Keeps the first events of a batch, and their conditions, unless the batch was skipped.

        They are for the log-dets that depend on events.
        """
        if self._examples is None:
            return
        for variable, value in zip(self._examples, [x, *held_variables.parts(condition)], strict=True):
            old = tf.convert_to_tensor(variable.value)
            new = tf.concat([tf.cast(value, old.dtype), old], axis=0)[: old.shape[0]]
            variable.assign(tf.where(is_applied, new, old))

    def forget_step(self) -> None:
        """Lets the next step read its number from the variable: `fit` begins, or other steps were done."""
        self._step = None

    def before_steps(self, step_variable: keras.Variable, count: int) -> int:
        """Sets the values that are due before training steps, and the values of changed weights.

        Args:
          step_variable: the number of steps up to now.
          count: the number of steps in one execution.

        Returns:
          The number of the first step.

        Raises:
          ValueError: if a kernel is singular or not finite, with the name of the layer.
        """
        # The data may have ended before the last of several steps; a single step was always done.
        is_first, step = self._step is None, self._step
        if step is None or count > 1:
            step = int(step_variable.numpy())
        # With another number of steps a checkpoint was restored, and the held values with it.
        may_move = is_first and (self._numbers is None or step in self._numbers)
        self._step, self._numbers = step + count, range(step + 1, step + count + 1)

        due = {layer.identity for layer, _ in self._held if self._is_due(layer, step, count, is_first)}
        if self._has_first_examples:
            due |= {layer.identity for layer, _ in self._held if not layer.is_constant_jacobian}
        inverses = self._changed(self._followed) if self._is_set_between else set()
        log_dets = self._changed(self._scored) if self._scored is not None else set()
        moved = set()
        if may_move or not is_first:
            # Between two steps a callback may set weights. A comparison costs some time for each layer.
            moved = self._changed(self._stepped, None if is_first else self._corrections.identities)
        self._stepped, self._followed, self._scored, self._is_set_between = None, None, None, False
        self._set_inverses(self._tracked, due | inverses)
        self._set_inverses(self._untaught, inverses)
        self._set_fixed_inverses(due | moved)
        self._set_log_dets(due | log_dets | moved)
        self._corrections.before_steps(step, count, moved)
        self._has_first_examples = self._examples is not None and step == 0
        return step

    def after_steps(self) -> None:
        """Remembers the weights that R now follows."""
        self._stepped = self._followed = self._weights()
        self._is_left = bool(self._left)
        self.inverses.fall_behind()

    def before_evaluation(self) -> None:
        """Sets each log-det that belongs to other weights; raises as `before_steps` does."""
        self._set_log_dets(self._changed(self._scored))
        self._scored = self._weights()

    def before_use(self) -> None:
        """Sets R and the log-det of each layer with a changed W; raises as `before_steps` does."""
        changed = self._changed(self._followed)
        if self._is_left:
            self._set_inverses(self._left, {layer.identity for layer in self._left})
            self._is_left = False
            self.inverses.forget()
        if changed:
            self.inverses.forget()
            self._set_inverses(self._tracked + self._untaught, changed)
            self._set_log_dets(changed)
            self._followed, self._is_set_between = self._weights(), True
            self._scored = None

    def before_files(self) -> None:
        """Does the same, with a warning instead of an error: weights without an inverse may be saved too."""
        try:
            self.before_use()
        except ValueError as error:
            warnings.warn(f"{error} The learned inverse is saved as it is.", stacklevel=3)

    def set_inverses(self) -> None:
        """Sets each R that is a matrix, whether or not W has changed; warns if a kernel has no inverse."""
        try:
            self._set_inverses(self.inverses.layers, {layer.identity for layer in self.inverses.layers})
        except ValueError as error:
            warnings.warn(f"{error} Its learned inverse stays as it is.", stacklevel=3)
        else:
            self._followed = self._weights()
            self.inverses.were_set()

    def take_weights(self, are_all: bool = True) -> None:
        """Takes the present R for the inverse of the present W, for example after a file was read.

        If not all variables were set, the held values of the training may be those of other weights.
        """
        self._followed = self._weights()
        self._stepped = self._followed if are_all else None
        self._scored, self._numbers, self._is_set_between = None, None, False
        self.inverses.forget()

    def _is_due(self, layer, step, count, is_first):
        is_turn = step % self._learning.refresh_interval(layer) < count
        if not is_fixed(layer):
            return is_turn
        # A callback may have set its weights.
        kernels = [tf.convert_to_tensor(variable) for variable in layer.map_variables[0]]
        known = self._fixed_kernels.get(layer.identity, [])
        if not (is_first or is_turn) or (known and all(map(are_equal, known, kernels))):
            return False
        self._fixed_kernels[layer.identity] = kernels
        return True

    def _set_fixed_inverses(self, identities):
        """Sets R of the fixed layers where it is no inverse: only W was given, or assigned."""
        fixed = [layer for layer in self._untaught if is_fixed(layer) and layer.identity in identities]
        self._set_inverses([layer for layer in fixed if not is_inverse(layer)], identities)

    def _set_inverses(self, layers, identities):
        for layer in layers:
            if layer.identity in identities:
                refresh_inverse(layer)

    def _set_log_dets(self, identities):
        due = [(layer, held) for layer, held in self._held if layer.identity in identities]
        of_events = {}
        if not all(layer.is_constant_jacobian for layer, _ in due):
            of_events = self._mean_log_dets()
        for layer, held in due:
            if layer.is_constant_jacobian:
                log_det = layer.exact_log_det()
                meaning, cause = "`log |det inverse_kernel|`", "the kernel is singular or not finite"
            elif layer.identity in of_events:
                log_det = of_events[layer.identity]
                meaning = "The mean of `log |det J|` of the encoder"
                cause = "at one of the last events its Jacobian is singular or not finite"
            else:
                continue
            if not np.isfinite(log_det).all():
                raise ValueError(f"{meaning} of `{layer.name}` is {log_det.numpy()}: {cause}.")
            held.assign(log_det)

    def _mean_log_dets(self):
        """The log-dets that depend on events, each a mean over the kept events; empty before the first."""
        x, *parts = [tf.convert_to_tensor(variable.value) for variable in self._examples]
        # The initial values are no events, and need not be in the support of the flow.
        is_kept = tf.reduce_any(x != 0.0, axis=list(range(1, x.shape.rank)))
        x, *parts = [tf.boolean_mask(part, is_kept) for part in (x, *parts)]
        if x.shape[0] == 0:
            return {}
        condition = tf.nest.pack_sequence_as(self._condition, parts) if parts else None
        with training_scope(None) as scope:
            at_inference(self._distribution).log_prob(x, **condition_arguments(condition))
        log_dets = zip(scope.layers, scope.exact_log_dets(), strict=True)
        return {layer.identity: log_det for layer, log_det in log_dets if not layer.is_constant_jacobian}

    def _weights(self):
        """The values of the variables of each W, without a copy."""
        return [[tf.convert_to_tensor(v) for v in layer.map_variables[0]] for layer, _ in self._held]

    def _changed(self, weights, among=None):
        """The identities of the layers with changed weights; of all layers if no weights are known.

        `among` are the identities of the layers to compare, by default all.
        """
        if among is None:
            among = {layer.identity for layer, _ in self._held}
        if weights is None or not among:
            return among
        return {
            layer.identity
            for (layer, _), old, new in zip(self._held, weights, self._weights(), strict=True)
            if layer.identity in among and not all(map(are_equal, old, new))
        }


def _is_untaught(layer, learning):
    """Whether the layer needs an R that can be set, and only the likelihood trains it."""
    return layer.needs_inverse and can_be_set(layer) and not learning.teaches_inverse(layer)


def _is_without_teacher(layer, learning):
    """Whether W is trained, and an R of other variables, which the layer uses, has no `InverseLearning`."""
    kernels, inverses = layer.map_variables
    known = {variable.ref() for variable in kernels}
    own = [variable for variable in inverses if variable.ref() not in known]
    is_used = layer.gradient == "self_norm" or not layer.is_constant_jacobian
    if layer.gradient != "self_norm":
        own = [variable for variable in own if variable.trainable]
    moves = any(variable.trainable for variable in kernels)
    return bool(layer.needs_inverse and is_used and moves and own and not learning.teaches_inverse(layer))


def _stays_behind(layer, learning):
    """Whether `forward` is a convolution with R, which nothing trains or sets, while W is trained."""
    moves, is_left = (any(v.trainable for v in variables) for variables in layer.map_variables)
    uses_kernel = layer.inversion == "learned" and layer.is_constant_jacobian and not layer.has_matrix_kernels
    is_left = is_left and not learning.trains_inverse(layer)
    return layer.gradient != "self_norm" and uses_kernel and is_left and moves
