"""`InverseLearning`, the ways in which the learned inverse R of a layer follows its kernel W."""

import tensorflow as tf

from tfp_selfnorm.inverse_learning.layer_checks import check_layer


class InverseLearning:
    """How R follows W: base class of `Tracking` and `Reconstruction`.

    A `training_scope` and a `FlowModel` ask it about each self-normalizing layer. By itself it teaches
    nothing: R then learns from the likelihood alone.
    """

    def mixture(self, layer) -> float:
        """The weight of the density that is computed, inside a `training_scope`; see `SelfNormDense`."""
        check_layer(layer)
        return layer.mixture

    def regularizer(self, layer):
        """The `Reconstruction` whose loss trains R of the layer, or `None`."""
        check_layer(layer)

    def tracks(self, layer) -> bool:
        """Whether `follow` updates R of the layer."""
        check_layer(layer)
        return False

    def refresh_interval(self, layer) -> int:
        """Steps between two exact computations for the layer: of its log-det, and of a tracked R."""
        check_layer(layer)
        return layer.refresh_interval

    def follow(self, layers, step, seed=0) -> tf.Tensor:
        """Updates R of each tracked layer, after a step of the optimizer; see `Tracking.follow`."""
        del layers, step, seed
        return tf.zeros([0])

    def measure(self, layers) -> tf.Tensor:
        """The relative error of each tracked R, see `inverse_error`; a float32 vector."""
        del layers
        return tf.zeros([0])

    def trains_inverse(self, layer) -> bool:
        """Whether a gradient reaches R of the layer, from the likelihood or from a regularizer."""
        by_likelihood = layer.gradient == "self_norm" and self.mixture(layer) < 1.0
        return by_likelihood or self.regularizer(layer) is not None

    def teaches_inverse(self, layer) -> bool:
        """Whether R of the layer is tracked or has a regularizer."""
        return self.tracks(layer) or self.regularizer(layer) is not None


class _Nothing(InverseLearning):
    """Stands for `inverse_learning=None`."""

    def __repr__(self):
        return "None"


def as_inverse_learning(inverse_learning) -> InverseLearning:
    """Returns the way of learning that an argument names, `None` included.

    Raises:
      TypeError: if it is no `InverseLearning` and not `None`.
    """
    if inverse_learning is None:
        return _Nothing()
    if not isinstance(inverse_learning, InverseLearning):
        raise TypeError(
            f"`inverse_learning` must be a Tracking, a Reconstruction or None; got {inverse_learning!r}."
        )
    return inverse_learning
