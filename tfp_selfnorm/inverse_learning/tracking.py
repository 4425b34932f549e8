"""`Tracking`, which keeps R close to the inverse of W without a gradient: by sketches and refreshes."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import InverseLearning, check_layer, check_layers, is_fixed
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.math import dense
from tfp_selfnorm.math.linear import largest
from tfp_selfnorm.utils.integers import check_counts, check_int, check_positive_int, check_step
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import Array, Seed

# The number of probes of a convolution. Few are enough, since each averages over its pixels.
_NUM_IMAGES = 8
# The best regularizers in our trainings, of wide convolutions and of pairs of networks.
_OF_CONVOLUTIONS = Reconstruction("probes", weight=10.0, num_probes=8)
_OF_UNUSED_INVERSES = Reconstruction("inverse_only")
_OF_NETWORKS = Reconstruction(weight=3.0)


@dataclasses.dataclass(frozen=True)
class Tracking(InverseLearning):
    """Learns the inverse by tracking: a sketch-and-project update after each step, and refreshes at times.

    The update is `R += (r - R u) (u^T u)^-1 u^T`. Random probes `e` give the directions of the error, `r = (I
    - R W)^T e`, and `u = W r`. It costs 5 n D^2 for n probes and needs no optimizer state. Except for
    rounding, it never increases the distance to the inverse. Every `refresh_every` steps R is set to the
    inverse of W. This also corrects R in directions that W has left. W takes the plain gradient of the
    likelihood (mixture 1).

    The inverse of a convolution wider than 1x1 has no kernel, so it cannot be tracked. Such layers learn it
    from a regularizer, and so do networks; `regularizer(layer)` is that of a layer.

    Args:
      num_probes: number of probes in each step; at most D are used.
      refresh_every: steps between refreshes; `None` takes the `refresh_interval` of each layer.
      reconstruction: the regularizer of layers that cannot be tracked. `None` takes
        `Reconstruction("probes", weight=10.0, num_probes=8)` for convolutions wider than 1x1, or
        `Reconstruction("inverse_only")` where their gradient does not use R; and
        `Reconstruction(weight=3.0)` for each `LearnedInverse`.

    Raises:
      TypeError: if `reconstruction` is neither a `Reconstruction` nor `None`.
      ValueError: if one of the numbers is no positive int.

    >>> import tfp_selfnorm as sn
    >>> sn.Tracking(num_probes=16).refresh_every is None
    True

    References: Gower & Richtarik, "Randomized quasi-Newton updates are linearly convergent matrix
    inversion algorithms", 2017; Halko, Martinsson & Tropp, "Finding structure with randomness", 2011.
    """

    num_probes: int = 8
    refresh_every: int | None = None
    reconstruction: Reconstruction | None = None

    def __post_init__(self) -> None:
        check_positive_int(self.num_probes, "num_probes")
        check_counts(refresh_every=self.refresh_every)
        if not isinstance(self.reconstruction, Reconstruction | None):
            raise TypeError(
                f"`reconstruction` must be a Reconstruction or None; got {self.reconstruction!r}."
            )

    def mixture(self, layer: Any) -> float:
        """1 if R is tracked: W then has the plain gradient of the likelihood."""
        check_layer(layer)
        return 1.0 if layer.has_matrix_kernels else layer.mixture

    def regularizer(self, layer: Any) -> Reconstruction | None:
        """`reconstruction` or its default, if the layer needs a learned inverse and cannot be tracked."""
        if is_fixed(layer) or not layer.needs_inverse or layer.has_matrix_kernels:
            return None
        default = _OF_CONVOLUTIONS if layer.gradient == "self_norm" else _OF_UNUSED_INVERSES
        return self.reconstruction or (default if layer.is_constant_jacobian else _OF_NETWORKS)

    def tracks(self, layer: Any) -> bool:
        """Whether the layer needs a learned inverse, its kernels are matrices, and one of them trains.

        Raises:
          TypeError: if R of such a layer is no `tf.Variable`.
        """
        if is_fixed(layer) or not layer.needs_inverse or not layer.has_matrix_kernels:
            return False
        return _assignable(layer) is not None

    def refresh_interval(self, layer: Any) -> int:
        """`refresh_every`, or the interval of the layer if that is `None`."""
        check_layer(layer)
        return self.refresh_every or layer.refresh_interval

    def follow(
        self, layers: Iterable, step: int | tf.Tensor, seed: int = 0, refreshes: bool = True
    ) -> tf.Tensor:
        """Updates R of each tracked layer, after a step of the optimizer.

        `FlowModel` calls it, and a loop of your own can call it. If a refresh is due, it sets R to the exact
        inverse of W, at O(D^3). Otherwise it updates R by `sketch_and_project`, at O(n D^2). Inside a
        `tf.function` the number of the step is unknown, and it never refreshes: call `refresh` between the
        compiled steps.

        A convolution wider than 1x1 does not change: the `reconstruction_loss` of the scope trains its R.

        Args:
          layers: the layers, as `self_norm_layers(flow)` returns them.
          step: int or scalar integer tensor, the number of the step. It is also a seed of the probes.
          seed: int, a further seed of the probes.
          refreshes: whether to refresh. `FlowModel` does not: it refreshes between the steps.

        Returns:
          The relative error of each tracked layer before the update, a float32 vector; 0 after a refresh.

        Raises:
          TypeError: if an argument has a wrong type.

        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> layer = sn.SelfNormDense.trainable(3)
        >>> _ = layer.inverse_kernel.assign(2.0 * tf.eye(3))
        >>> float(sn.Tracking().follow([layer], step=1)[0]), float(sn.inverse_error(layer)) < 1e-3
        (1.0, True)
        """
        layers = check_layers(layers)
        check_step(step)
        check_int(seed, "seed")
        refreshes, errors = check_bool(refreshes, "refreshes") and not tf.is_symbolic_tensor(step), []
        for i, layer in enumerate(filter(self.tracks, layers)):
            if refreshes and int(step) % self.refresh_interval(layer) == 0:
                refresh_inverse(layer)
                errors.append(tf.zeros([]))
            else:
                errors.append(sketch_and_project(layer, self.num_probes, [seed + i, step]))
        return _vector(errors)

    def refresh(self, layers: Iterable, step: int) -> None:
        """Sets R to the exact inverse of W, at O(D^3), in each tracked layer whose refresh is due.

        Args:
          layers: the layers, as `self_norm_layers(flow)` returns them.
          step: int, the number of the step.

        Raises:
          TypeError: if an argument has a wrong type.
          ValueError: if a kernel W is singular or not finite. The error names the layer.
        """
        step = check_int(step, "step")
        for layer in filter(self.tracks, check_layers(layers)):
            if step % self.refresh_interval(layer) == 0:
                refresh_inverse(layer)

    def measure(self, layers: Iterable) -> tf.Tensor:
        """The relative error of each tracked R, see `inverse_error`. All calls use the same probes."""
        tracked = filter(self.tracks, check_layers(layers))
        return _vector([inverse_error(layer, self.num_probes, seed=i) for i, layer in enumerate(tracked)])


def sketch_and_project(layer: Any, num_probes: int = 8, seed: Seed = None) -> tf.Tensor:
    """Updates R of the layer from random probes, in place, at O(n D^2).

    Args:
      layer: a `SelfNormDense` or a 1x1 convolution whose forward kernel is a `tf.Variable`.
      num_probes: Python int, number of probes; at most D are used.
      seed: TFP seed, an int or a pair. The update depends on the seed and the two kernels alone.

    Returns:
      The relative error before the update, `||I - R W|| / ||I||` (Frobenius norm), estimated from the probes;
      a scalar.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormDense(tf.Variable(tf.eye(3)), 2.0 * tf.eye(3))
    >>> float(sn.sketch_and_project(layer, 3, seed=1))
    1.0
    >>> float(sn.inverse_error(layer)) < 1e-3
    True
    """
    kernel, operations = _assignable(layer), layer.operations
    updated, error = dense.sketch_and_project(
        operations.to_matrix(tf.convert_to_tensor(kernel)),
        operations.to_matrix(tf.convert_to_tensor(layer.inverse_kernel)),
        _probes(layer, num_probes, seed),
    )
    kernel.assign(operations.from_matrix(updated))
    return largest(error)


def refresh_inverse(layer: Any) -> None:
    """Sets R of the layer to the inverse of W, in place, at O(D^3).

    Args:
      layer: a `SelfNormDense` or a 1x1 convolution whose forward kernel is a `tf.Variable`.

    Raises:
      TypeError: if R is no `tf.Variable`, or the inverse has no kernel.
      ValueError: in eager mode, if W is singular or not finite.
    """
    kernel = _assignable(layer)
    try:
        matrix = layer.operations.to_matrix(tf.convert_to_tensor(layer.inverse_kernel))
        kernel.assign(layer.operations.from_matrix(tf.linalg.inv(matrix)))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"`inverse_kernel` of `{layer.name}` has no inverse: it is singular or not finite."
        ) from error


def inverse_error(
    layer: Any, num_probes: int = 32, seed: Seed = None, *, condition: Array | None = None
) -> tf.Tensor:
    """Estimates `||I - R W|| / ||I||` (Frobenius norm) from random probes, at O(n D^2).

    For a `LearnedInverse` it is `||I - J_f J_g|| / ||I||`, with the Jacobian of the decoder at standard
    normal latents, and the Jacobian of the encoder at the decoded events.

    It speaks of one layer, and of all directions alike. The error of samples of a flow can be larger: the
    layers after a layer map its error too. It is `reconstruct(x) - x` of a `FlowModel`. For a convolution
    with `gradient="circulant"` or `"exact"`, which needs no R, it is the error of a kernel that nothing uses
    unless `forward` does.

    Args:
      layer: a self-normalizing layer.
      num_probes: Python int, number of probes. At most D are used for a layer of matrices, and at most 8
        images for a convolution wider than 1x1. A `LearnedInverse` differs from place to place: 32 probes
        can be off by a factor of two, so take 1000.
      seed: int or stateless TFP seed.
      condition: for a `LearnedInverse` whose networks take one, a batch of conditions `(n, ...)`, as the
        networks get them, after any embedding. The probes take them in turn; of more conditions than probes
        they take some, evenly spread.

    Returns:
      A scalar, the largest error in a batch of kernels.

    Raises:
      TypeError: if the layer is no self-normalizing layer, or the condition is no array of numbers.
      ValueError: if `num_probes` is no positive int, if the condition is no batch of one or more, or if a
        linear layer gets one.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormDense(inverse_kernel=2.0 * tf.eye(3), forward_kernel=0.45 * tf.eye(3))
    >>> print(sn.inverse_error(layer, seed=1).numpy().round(4))
    0.1
    """
    probes, operations = _probes(layer, num_probes, seed), layer.operations
    if condition is None:
        kernel, other = layer.maps
    elif layer.is_constant_jacobian:
        raise ValueError(f"`condition` must be None for `{layer.name}`, which takes none; got a condition.")
    else:
        kernel, other = layer.maps_given(_as_conditions(condition, num_probes))
    if not layer.has_matrix_kernels:
        return operations.inverse_error(kernel, other, probes)
    kernel, other = operations.to_matrix(kernel), operations.to_matrix(other)
    back = tf.matmul(other, tf.matmul(kernel, probes))
    return largest(tf.norm(probes - back, axis=[-2, -1])) / tf.norm(probes)


def _as_conditions(condition, num_probes):
    kind = type(condition).__name__
    try:
        condition = tf.convert_to_tensor(condition)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`condition` must be an array of numbers; got {kind}.") from error
    dtype = condition.dtype
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise TypeError(f"`condition` must be an array of numbers; got dtype {dtype.name}.")
    if not condition.shape.rank or condition.shape[0] == 0:
        raise ValueError(f"`condition` must be a batch of conditions; got shape {condition.shape}.")
    if len(condition) > num_probes:
        condition = tf.gather(condition, np.linspace(0, len(condition) - 1, num_probes).round().astype(int))
    return condition


def _vector(errors):
    return tf.stack([tf.cast(error, tf.float32) for error in errors]) if errors else tf.zeros([0])


def _assignable(layer):
    check_layer(layer)
    if not layer.has_matrix_kernels:
        kind = "a convolution wider than 1x1" if layer.is_constant_jacobian else "a pair of networks"
        raise TypeError(f"`{layer.name}` is {kind}. Its inverse has no kernel; see `tfp_selfnorm.exact`.")
    if not hasattr(layer.forward_kernel, "assign"):
        raise TypeError(
            f"`forward_kernel` of `{layer.name}` must be a tf.Variable for Tracking to update it; got "
            f"{type(layer.forward_kernel).__name__}. Use Reconstruction or gradient='exact' there."
        )
    return layer.forward_kernel


def _probes(layer, num_probes, seed):
    """Columns for kernels that are matrices, a few images for convolutions, and events for networks."""
    check_layer(layer)
    check_positive_int(num_probes, "num_probes")
    seed = stateless_seed(seed, salt="tfp_selfnorm_probes")
    event = layer.event_sizes
    if layer.has_matrix_kernels:
        shape = [event[-1], min(num_probes, event[-1])]
    else:
        shape = [min(num_probes, _NUM_IMAGES) if layer.is_constant_jacobian else num_probes, *event]
    return tf.random.stateless_normal(shape, seed, dtype=layer.dtype)
