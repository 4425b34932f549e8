"""The reconstruction regularizers: the paper's way of learning the inverse, by gradient."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import InverseLearning
from tfp_selfnorm.inverse_learning.layer_checks import check_layer
from tfp_selfnorm.inverse_learning.reconstruction_weight import AdaptiveWeight
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.options import check_choice, check_not_negative, is_number
from tfp_selfnorm.utils.seeds import stateless_seed

KINDS = ("data", "symmetric", "inverse_only", "probes")


@dataclasses.dataclass(frozen=True)
class Reconstruction(InverseLearning):
    """Learns the inverse by gradient, from a regularizer that is added to the loss.

    For a layer with kernel W, other kernel R and input x, cut from the graph so that the loss trains
    this layer's kernels and nothing before it:

    - "data": `||x - R W x||^2`, the paper's;
    - "symmetric": half of that, and half of `||z - W R z||^2` with `z = W x` cut from the graph;
    - "inverse_only": "data" with W cut as well, so that R alone is trained;
    - "probes": `||e - W R e||^2` for standard normal e, which also covers directions in which the
      data hardly vary.

    The weight 1 is the paper's. Where the inverse error stays above some hundredths, a larger one (10 to 100)
    or `Tracking` ends at a better likelihood.

    Each is a mean over the batch (over the probes) and a sum over the layers. Cost: "data" brings a
    training step from four products of a batch with a kernel to six.

    Args:
      kind: one of the four names above.
      weight: the weight in the loss: a float, 0 or more; a scalar `tf.Variable` that you change; a function
        of the step, such as a schedule of Keras (`PolynomialDecay(0.0, 1000, 1.0)` warms up to 1 in 1,000
        steps); or an `AdaptiveWeight`.
      num_probes: number of probes a step, for "probes".

    Raises:
      TypeError: if the weight is none of these.
      ValueError: for an unknown kind, a weight that is negative or not finite, or no positive int of probes.

    >>> Reconstruction("probes", weight=10.0).weight
    10.0

    References: Keller et al., "Self Normalizing Flows", ICML 2021, equation 7; the variants are those
    of its published code, the probes are this package's.
    """

    kind: str = "data"
    weight: Any = 1.0
    num_probes: int = 100

    def __post_init__(self):
        check_choice(self.kind, "kind", KINDS)
        check_weight(self.weight)
        check_positive_int(self.num_probes, "num_probes")

    @property
    def trained_kernels(self) -> str | None:
        """Which kernels the error that a layer computes along with its map trains, see `math.linear`."""
        return {"probes": None, "inverse_only": "other"}.get(self.kind, "both")

    def regularizer(self, layer) -> "Reconstruction":
        """Itself: it trains every layer."""
        check_layer(layer)
        return self

    def loss(self, layer_pass, seed=None) -> tf.Tensor:
        """The unweighted loss of one pass of a layer, a scalar; the seed is that of probes."""
        if self.kind == "probes":
            return self._probe_loss(layer_pass, seed)
        data = _mean(layer_pass.error)
        if self.kind != "symmetric":
            return data
        z = tf.stop_gradient(layer_pass.output)
        return 0.5 * data + 0.5 * _mean(_distance(z, layer_pass, layer_pass.other_kernel, layer_pass.kernel))

    def _probe_loss(self, layer_pass, seed):
        layer = layer_pass.layer
        ndims = layer.forward_min_event_ndims + layer.experimental_batch_shape().rank
        shape = tf.concat([[self.num_probes], tf.shape(layer_pass.output)[-ndims:]], axis=0)
        seed = stateless_seed(seed, salt="reconstruction_probes")
        probes = tf.random.stateless_normal(shape, seed, dtype=layer_pass.output.dtype)
        return tf.reduce_mean(_distance(probes, layer_pass, layer_pass.other_kernel, layer_pass.kernel))

    @staticmethod
    def error(layer_pass, num_examples: int | None = None) -> tf.Tensor:
        """The data error of one pass of a layer, a mean over its first `num_examples` examples."""
        if layer_pass.error is not None and num_examples is None:
            return _mean(layer_pass.error)
        operations, x, z = layer_pass.layer.operations, layer_pass.input, layer_pass.output
        if x.shape.rank > operations.event_ndims and num_examples is not None:
            x, z = x[:num_examples], z[:num_examples]
        return _mean(operations.squared_norm(x - operations.apply(layer_pass.other_kernel, z)))


def check_weight(weight) -> None:
    """Raises TypeError or ValueError if it can be no weight of a regularizer."""
    if is_number(weight):
        check_not_negative(weight, "weight")
    elif tf.is_tensor(weight):
        if weight.shape.rank not in (0, None) or not (weight.dtype.is_floating or weight.dtype.is_integer):
            raise TypeError(f"`weight` must be a scalar of a number; got {weight!r}.")
        static = None if isinstance(weight, tf.Variable) else tf.get_static_value(weight)
        if static is not None:
            check_not_negative(static, "weight")
    elif not (callable(weight) or isinstance(weight, AdaptiveWeight)):
        raise TypeError(
            "`weight` must be a number, a variable, a function of the step, or an AdaptiveWeight; got "
            f"{weight!r}."
        )


def _mean(x):
    """The mean, and 0 of nothing: the last batch may leave a replica without examples."""
    return tf.math.divide_no_nan(tf.reduce_sum(x), tf.cast(tf.size(x), x.dtype))


def _distance(x, layer_pass, first_kernel, second_kernel):
    """The squared distance of each event from its image under the two maps."""
    operations = layer_pass.layer.operations
    return operations.squared_norm(x - operations.apply(second_kernel, operations.apply(first_kernel, x)))
