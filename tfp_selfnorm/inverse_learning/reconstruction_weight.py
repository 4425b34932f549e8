"""The weight of the reconstruction regularizer: fixed, scheduled, or adapted to a tolerance."""

import dataclasses
import math
from collections.abc import Mapping

import tensorflow as tf

from tfp_selfnorm.inverse_learning.layer_checks import check_layers
from tfp_selfnorm.utils.integers import check_step
from tfp_selfnorm.utils.options import check_bool, check_not_negative, check_number, check_positive, is_number


@dataclasses.dataclass(frozen=True)
class AdaptiveWeight:
    """A weight that grows while the reconstruction error is above a tolerance, and shrinks below it.

    After each step, with E the error of the batch and C its constraint's moving average:

        C <- momentum C + (1 - momentum) (E - tolerance)
        weight <- weight exp(rate C), within `bounds`

    The state, C and the log of the weight, lives in variables: those of the `FlowModel`, which saves them, or
    of `ReconstructionWeights` in a loop of your own.

    Args:
      tolerance: the error to settle at: of each layer, or of all together, the mean over the batch of
        `||x - R W x||^2`; 0 lets the weight only grow, as in the paper's code.
      initial: the weight to begin with, positive.
      rate: speed of adaptation, positive.
      momentum: of the moving average, in [0, 1).
      per_layer: whether each layer has a weight and a tolerance of its own.
      bounds: the smallest and the largest weight.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if a number is out of range.

    >>> Reconstruction(weight=AdaptiveWeight(tolerance=0.5)).weight.initial
    1.0

    References: Keller et al., "Self Normalizing Flows", ICML 2021, its constrained optimisation; Rezende &
    Viola, "Taming VAEs", 2018.
    """

    tolerance: float
    initial: float = 1.0
    rate: float = 1e-3
    momentum: float = 0.9
    per_layer: bool = False
    bounds: tuple = (1e-6, 1e6)

    def __post_init__(self):
        check_not_negative(self.tolerance, "tolerance")
        is_pair = isinstance(self.bounds, (tuple, list)) and len(self.bounds) == 2
        if not is_pair or not all(map(is_number, self.bounds)):
            raise TypeError(f"`bounds` must be a pair of numbers; got {self.bounds!r}.")
        lowest, highest = self.bounds
        if not 0.0 < lowest <= highest < math.inf:
            raise ValueError(f"`bounds` must be positive and in order; got {self.bounds!r}.")
        check_number(
            self.initial, "initial", f"within {self.bounds}", lambda value: lowest <= value <= highest
        )
        check_positive(self.rate, "rate")
        check_number(self.momentum, "momentum", "in [0, 1)", lambda value: 0.0 <= value < 1.0)
        check_bool(self.per_layer, "per_layer")


class ReconstructionWeights:
    """The weight of the regularizer of each layer, at each step, with the state of an adaptive one.

    `FlowModel` has one. In a loop of your own:

    >>> layer = SelfNormDense.trainable(2)
    >>> reconstruction = Reconstruction(weight=AdaptiveWeight(tolerance=1.0, rate=0.5, momentum=0.0))
    >>> weights = ReconstructionWeights(reconstruction, [layer])
    >>> with tf.GradientTape() as tape, training_scope(reconstruction) as scope:
    ...     _ = layer.inverse(tf.ones([5, 2]))
    ...     loss = scope.reconstruction_loss(weights.read(step=0))
    >>> weights.update(scope.reconstruction_errors())
    >>> round(float(weights.read(step=1)[layer]), 4) == round(math.exp(0.5 * (0.0 - 1.0)), 4)
    True
    """

    def __init__(self, reconstruction, layers, add_state=None):
        """Makes the state.

        Args:
          reconstruction: the `Reconstruction` that trains the layers.
          layers: self-normalizing layers.
          add_state: function of an initial value and a name that makes a scalar variable; `None` makes
            `tf.Variable`s.

        Raises:
          TypeError: if an argument is of another type.
        """
        if not hasattr(reconstruction, "trained_kernels"):
            raise TypeError(f"`reconstruction` must be a Reconstruction; got {reconstruction!r}.")
        if not (add_state is None or callable(add_state)):
            raise TypeError(f"`add_state` must be a function or None; got {add_state!r}.")
        self._weight = reconstruction.weight
        self._layers = check_layers(layers)
        self._states = []
        if self.is_adaptive:
            # Alike on all replicas after a mean: the update is linear in the error.
            groups = [[layer] for layer in self._layers] if self._weight.per_layer else [self._layers]
            add = add_state or _plain_variable
            for i, group in enumerate(groups):
                name = f"{group[0].name}_{i}" if self._weight.per_layer else "flow"
                log_weight = add(math.log(self._weight.initial), f"{name}_log_reconstruction_weight")
                self._states.append((group, log_weight, add(0.0, f"{name}_reconstruction_constraint")))

    @property
    def is_adaptive(self) -> bool:
        """Whether there are layers, whose errors the weight follows."""
        return isinstance(self._weight, AdaptiveWeight) and bool(self._layers)

    @property
    def changes(self) -> bool:
        """Whether there are layers, and the weight is another one from step to step."""
        return self.is_adaptive or (callable(self._weight) and bool(self._layers))

    def read(self, step):
        """The weight at a step, for `TrainingScope.reconstruction_loss`.

        Args:
          step: the number of the step, an int or a scalar tensor, for schedules.

        Returns:
          A scalar, or, of an adaptive weight, a mapping from layers to scalars.

        Raises:
          TypeError: if the step is neither an int nor a scalar.
        """
        check_step(step)
        if not self.is_adaptive:
            return self._weight(step) if callable(self._weight) else self._weight
        return {
            layer: tf.exp(tf.convert_to_tensor(log_weight))
            for group, log_weight, _ in self._states
            for layer in group
        }

    def mean(self, step) -> tf.Tensor:
        """The mean of the layers' weights, for a figure."""
        weights = self.read(step)
        weights = list(weights.values()) if self.is_adaptive else [weights]
        return tf.add_n([tf.cast(weight, tf.float32) for weight in weights]) / len(weights)

    def update(self, errors, is_valid=True) -> None:
        """One step of the adaptation, in place.

        Args:
          errors: mapping from layers to their errors, scalars, as `TrainingScope.reconstruction_errors`
            gives them.
          is_valid: bool, or a scalar tensor of one; without it all stays as it is.

        Raises:
          TypeError: if an argument is of another type.
        """
        if not isinstance(errors, Mapping):
            raise TypeError(f"`errors` must be a mapping from layers to scalars; got {errors!r}.")
        check_layers(list(errors), "errors")
        if not (isinstance(is_valid, (tf.Tensor, tf.Variable)) and is_valid.dtype == tf.bool):
            is_valid = check_bool(is_valid, "is_valid")
        errors = {layer.identity: error for layer, error in errors.items()}
        for group, log_weight, average in self._states:
            # A layer that was passed by an exact solve has no error.
            known = [
                tf.cast(errors[layer.identity], tf.float32) for layer in group if layer.identity in errors
            ]
            if not known:
                continue
            error = tf.add_n(known)
            momentum, rate = self._weight.momentum, self._weight.rate
            constraint = momentum * average + (1.0 - momentum) * (error - self._weight.tolerance)
            lowest, highest = map(math.log, self._weight.bounds)
            updated = tf.clip_by_value(log_weight + rate * constraint, lowest, highest)
            average.assign(tf.where(is_valid, constraint, average))
            log_weight.assign(tf.where(is_valid, updated, log_weight))


def _plain_variable(initial, name):
    return tf.Variable(initial, trainable=False, name=name, dtype=tf.float32)
