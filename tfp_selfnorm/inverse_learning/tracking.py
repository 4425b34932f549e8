"""Keeping the learned inverse close to the inverse without a gradient: sketches and refreshes."""

import dataclasses

import tensorflow as tf

from tfp_selfnorm.inverse_learning.layer_checks import check_layer, check_layers
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.math import dense
from tfp_selfnorm.math.linear import largest
from tfp_selfnorm.utils.integers import check_int, check_positive_int, check_step
from tfp_selfnorm.utils.seeds import stateless_seed

# Probes of a convolution: few, since each already averages over its pixels.
_NUM_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Learns the inverse by tracking: a sketch-and-project update a step, an exact inverse at times.

    After each step of the optimizer, `R += (r - R u) (u^T u)^-1 u^T` for random probes `e`, turned to where
    the error is, `r = (I - R W)^T e`, and `u = W r`: 5 n D^2 for n probes, no optimizer state, and never
    further from the inverse. Every `refresh_every` steps R is set to the inverse of W, which also brings back
    directions that W has left. W takes the plain gradient of the likelihood (mixture 1).

    The inverse of a convolution wider than 1x1 is no kernel that could be tracked. Such layers learn it from
    a regularizer, as in the paper.

    Args:
      num_probes: probes a step; at most D are used.
      refresh_every: steps between exact refreshes; `None` takes the `refresh_interval` of each layer.
      reconstruction: what teaches convolutions wider than 1x1 their inverse.

    Raises:
      TypeError: if `reconstruction` is no `Reconstruction`.
      ValueError: if one of the numbers is no positive int.

    >>> Tracking(num_probes=16).refresh_every is None
    True

    References: Gower & Richtarik, "Randomized quasi-Newton updates are linearly convergent matrix
    inversion algorithms", 2017; Halko, Martinsson & Tropp, "Finding structure with randomness", 2011.
    """

    num_probes: int = 8
    refresh_every: int | None = None
    reconstruction: Reconstruction = Reconstruction()

    def __post_init__(self):
        check_positive_int(self.num_probes, "num_probes")
        if self.refresh_every is not None:
            check_positive_int(self.refresh_every, "refresh_every")
        if not isinstance(self.reconstruction, Reconstruction):
            raise TypeError(f"`reconstruction` must be a Reconstruction; got {self.reconstruction!r}.")

    def follows(self, layer) -> bool:
        """Whether the layer has a learned inverse that is a matrix, to follow.

        Raises:
          TypeError: if it has one that is no `tf.Variable`.
        """
        check_layer(layer)
        return layer.needs_inverse and layer.is_matrix and _assignable(layer) is not None

    def reconstruction_of(self, layer) -> Reconstruction | None:
        """What trains the layer's learned inverse instead, if it needs one that is no matrix."""
        check_layer(layer)
        return self.reconstruction if layer.needs_inverse and not layer.is_matrix else None

    def interval(self, layer) -> int:
        """Steps between two exact refreshes of the layer."""
        check_layer(layer)
        return self.refresh_every or layer.refresh_interval

    def update(self, layers, step: int, seed=0) -> tf.Tensor:
        """Brings R of each layer after W, for a loop of your own: call it after the optimizer's step.

        A convolution wider than 1x1 stays as it is: the scope's `reconstruction_loss` trains its R.

        Args:
          layers: the layers, as `self_norm_layers(flow)` gives them.
          step: Python int, the number of the step; it decides on the refresh and seeds the probes.
          seed: Python int that the probes depend on too.

        Returns:
          The largest relative error of a layer before the update, a scalar; 0 where R was refreshed.

        Raises:
          TypeError: if `step` is a tensor of a graph, as inside a `tf.function`.
        """
        layers = check_layers(layers)
        check_step(step)
        if tf.is_symbolic_tensor(step):
            raise TypeError(
                "`step` must be known when `update` is called, which decides by it whether to refresh; got "
                f"{step!r}, of a `tf.function`. Call `update` after the compiled step, not inside it."
            )
        check_int(seed, "seed")
        errors = [tf.zeros([])]
        for i, layer in enumerate(filter(self.follows, layers)):
            if step % self.interval(layer) == 0:
                refresh_inverse(layer)
            else:
                error = sketch_and_project(layer, self.num_probes, [seed + i, step])
                errors.append(tf.cast(error, tf.float32))
        return largest(tf.stack(errors))


def sketch_and_project(layer, num_probes: int = 8, seed=None) -> tf.Tensor:
    """Updates the layer's forward kernel from random probes, in place, at O(n D^2).

    Args:
      layer: a `SelfNormDense` or a 1x1 convolution whose forward kernel is a `tf.Variable`.
      num_probes: Python int, number of probes; at most D are used.
      seed: TFP seed, an int or a pair; the update is a function of it and the two kernels.

    Returns:
      The relative error before the update, `||I - R W|| / ||I||` (Frobenius norm), estimated from the probes;
      a scalar.

    >>> layer = SelfNormDense(tf.Variable(tf.eye(3)), 2.0 * tf.eye(3))
    >>> float(sketch_and_project(layer, 3, seed=1))
    1.0
    >>> float(inverse_error(layer)) < 1e-3
    True
    """
    kernel, operations = _assignable(layer), layer.operations
    updated, error = dense.sketch_and_project(
        *(operations.to_matrix(tf.convert_to_tensor(k)) for k in (kernel, layer.inverse_kernel)),
        _probes(layer, num_probes, seed),
    )
    kernel.assign(operations.from_matrix(updated))
    return largest(error)


def refresh_inverse(layer) -> None:
    """Sets the layer's forward kernel to the inverse of its inverse kernel, in place, at O(D^3).

    Args:
      layer: a `SelfNormDense` or a 1x1 convolution whose forward kernel is a `tf.Variable`.

    Raises:
      TypeError: if the forward kernel is no `tf.Variable`.
      ValueError: in eager mode, if the inverse kernel is singular or not finite.
    """
    kernel = _assignable(layer)
    try:
        matrix = layer.operations.to_matrix(tf.convert_to_tensor(layer.inverse_kernel))
        kernel.assign(layer.operations.from_matrix(tf.linalg.inv(matrix)))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"`inverse_kernel` of `{layer.name}` has no inverse: it is singular or not finite."
        ) from error


def inverse_error(layer, num_probes: int = 32, seed=None) -> tf.Tensor:
    """Estimates `||I - R W|| / ||I||` (Frobenius norm) from random probes, at O(n D^2).

    Args:
      layer: a self-normalizing layer.
      num_probes: Python int, number of probes; at most D are used.
      seed: int or stateless TFP seed.

    Returns:
      A scalar, the largest of a batch of kernels.
    """
    probes, operations = _probes(layer, num_probes, seed), layer.operations
    kernel, other = (tf.convert_to_tensor(k) for k in (layer.inverse_kernel, layer.forward_kernel))
    if operations.to_matrix is None:
        return tf.norm(probes - operations.apply(other, operations.apply(kernel, probes))) / tf.norm(probes)
    kernel, other = operations.to_matrix(kernel), operations.to_matrix(other)
    back = tf.matmul(other, tf.matmul(kernel, probes))
    return largest(tf.norm(probes - back, axis=[-2, -1])) / tf.norm(probes)


def _assignable(layer):
    check_layer(layer)
    if not layer.is_matrix:
        raise TypeError(f"`{layer.name}` is a convolution wider than 1x1, whose inverse no kernel holds.")
    if not hasattr(layer.forward_kernel, "assign"):
        raise TypeError(
            f"`forward_kernel` of `{layer.name}` must be a tf.Variable for Tracking to update it; got "
            f"{type(layer.forward_kernel).__name__}. Use Reconstruction or gradient='exact' there."
        )
    return layer.forward_kernel


def _probes(layer, num_probes, seed):
    """Columns for a layer whose kernels are matrices, and a few images for one whose kernels are not."""
    check_layer(layer)
    check_positive_int(num_probes, "num_probes")
    seed = stateless_seed(seed, salt="tfp_selfnorm_probes")
    event = layer.event_sizes
    if layer.operations.to_matrix is not None:
        shape = [event[-1], min(num_probes, event[-1])]
    else:
        shape = [min(num_probes, _NUM_IMAGES), *event]
    return tf.random.stateless_normal(shape, seed, dtype=layer.dtype)
