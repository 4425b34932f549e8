"""The weight of the reconstruction regularizer: fixed, scheduled, or adapted to a tolerance."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import by_identity, check_layers
from tfp_selfnorm.utils.integers import check_step
from tfp_selfnorm.utils.options import check_bool, check_not_negative, check_number, check_positive, is_number


@dataclasses.dataclass(frozen=True)
class AdaptiveWeight:
    """A weight that grows while the reconstruction error is above a tolerance, and shrinks below it.

    After each step, with E the error of the batch and C the moving average of the constraint:

        C <- momentum C + (1 - momentum) (E - tolerance)
        weight <- weight exp(rate C), within `bounds`

    Variables hold the state, C and the log of the weight. A `FlowModel` has them and saves them. A loop of
    your own has them in `ReconstructionWeights`.

    Args:
      tolerance: the error to reach, the mean over the batch of `||x - R W x||^2`. It is for each layer with
        `per_layer`, and otherwise for the sum over the layers. With 0 the weight only grows, as in the
        paper's code.
      initial: the initial weight, positive.
      rate: speed of adaptation, positive.
      momentum: the momentum of the moving average, in [0, 1).
      per_layer: whether each layer has its own weight and tolerance.
      bounds: the smallest and the largest weight.

    Raises:
      TypeError: if an argument has a wrong type.
      ValueError: if a number is out of range.

    >>> import tfp_selfnorm as sn
    >>> sn.Reconstruction(weight=sn.AdaptiveWeight(tolerance=0.5)).weight.initial
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

    def __post_init__(self) -> None:
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
    """The weights of the regularizers of the layers at each step, with the state of an `AdaptiveWeight`.

    A `FlowModel` makes one itself. In a loop of your own:

    >>> import math
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormDense.trainable(2)
    >>> adaptive = sn.AdaptiveWeight(tolerance=1.0, rate=0.5, momentum=0.0)
    >>> reconstruction = sn.Reconstruction(weight=adaptive)
    >>> weights = sn.ReconstructionWeights(reconstruction, [layer])
    >>> with tf.GradientTape() as tape, sn.training_scope(reconstruction) as scope:
    ...     _ = layer.inverse(tf.ones([5, 2]))
    ...     loss = scope.reconstruction_loss(weights.read(step=0))
    >>> weights.update(scope.reconstruction_errors())
    >>> round(float(weights.read(step=1)[layer]), 4) == round(math.exp(0.5 * (0.0 - 1.0)), 4)
    True
    """

    def __init__(
        self,
        reconstruction: Any,
        layers: Iterable,
        add_state: Callable[[float, str], Any] | None = None,
    ) -> None:
        """Makes the variables of the state.

        Args:
          reconstruction: the `Reconstruction` that trains the layers.
          layers: self-normalizing layers.
          add_state: function of an initial value and a name that makes a scalar variable; `None` makes
            `tf.Variable`s.

        Raises:
          TypeError: if an argument has a wrong type.
        """
        if not hasattr(reconstruction, "trained_kernels"):
            raise TypeError(f"`reconstruction` must be a Reconstruction; got {reconstruction!r}.")
        if not (add_state is None or callable(add_state)):
            raise TypeError(f"`add_state` must be a function or None; got {add_state!r}.")
        self._weight = reconstruction.weight
        self._layers = check_layers(layers)
        self._states: list[tuple[list, Any, Any]] = []
        if self.is_adaptive:
            # A mean over the replicas gives the same state on each: the update is linear in the error.
            groups = [[layer] for layer in self._layers] if self._weight.per_layer else [self._layers]
            add = add_state or _plain_variable
            for i, group in enumerate(groups):
                name = f"{group[0].name}_{i}" if self._weight.per_layer else "flow"
                log_weight = add(math.log(self._weight.initial), f"{name}_log_reconstruction_weight")
                self._states.append((group, log_weight, add(0.0, f"{name}_reconstruction_constraint")))

    @property
    def is_adaptive(self) -> bool:
        """Whether there are layers, and the weight follows their errors."""
        return isinstance(self._weight, AdaptiveWeight) and bool(self._layers)

    @property
    def changes(self) -> bool:
        """Whether there are layers, and the weight changes from step to step."""
        return self.is_adaptive or (callable(self._weight) and bool(self._layers))

    def read(self, step: int | tf.Tensor) -> Any:
        """The weight at a step, for `TrainingScope.reconstruction_loss`.

        Args:
          step: the number of the step, an int or a scalar tensor, for schedules.

        Returns:
          A scalar; for an `AdaptiveWeight`, a mapping from layers to scalars.

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

    def mean(self, step: int | tf.Tensor) -> tf.Tensor:
        """The mean of the weights of the layers, for the progress bar."""
        weights = self.read(step)
        weights = list(weights.values()) if self.is_adaptive else [weights]
        return tf.add_n([tf.cast(weight, tf.float32) for weight in weights]) / len(weights)

    def update(self, errors: Mapping[Any, Any], is_valid: bool | tf.Tensor = True) -> None:
        """Makes one step of the adaptation, in place.

        Args:
          errors: mapping from layers to their errors, scalars, as `TrainingScope.reconstruction_errors`
            returns them.
          is_valid: bool, or a scalar bool tensor. If it is false, the state does not change.

        Raises:
          TypeError: if an argument has a wrong type.
        """
        errors = by_identity(errors, "errors")
        if not (isinstance(is_valid, (tf.Tensor, tf.Variable)) and is_valid.dtype == tf.bool):
            is_valid = check_bool(is_valid, "is_valid")
        for group, log_weight, average in self._states:
            # A layer has no error if its pass was an exact solve.
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
