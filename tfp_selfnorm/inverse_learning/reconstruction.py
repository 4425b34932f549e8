"""The reconstruction regularizers, by which the paper learns the inverse with gradients."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import InverseLearning, is_fixed
from tfp_selfnorm.inverse_learning.reconstruction_weight import AdaptiveWeight
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.options import check_choice, check_not_negative, is_number
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import Seed

KINDS = ("data", "symmetric", "inverse_only", "probes")


@dataclasses.dataclass(frozen=True)
class Reconstruction(InverseLearning):
    """Learns the inverse by gradient, from a regularizer that is added to the loss.

    The kernels of a layer are W and R, its input is x. The gradient stops at x: the loss trains the kernels
    of this layer and nothing before it. In a `LearnedInverse`, W stands for the encoder and R for the
    decoder. The kinds are:

    - "data": `||x - R W x||^2`, as in the paper;
    - "symmetric": half of "data" and half of `||z - W R z||^2`, where the gradient stops at `z = W x`;
    - "inverse_only": "data", where the gradient stops at W too, so that R alone is trained;
    - "probes": `||e - W R e||^2` for standard normal e. This also covers directions in which the data
      vary little.

    The weight 1 is the paper's. If the inverse error stays above some hundredths, take `Tracking`, or
    "probes" with a weight of 10. A larger weight of "data" made the likelihood of dense layers and
    convolutions worse.

    When `fit` of a `FlowModel` ends, it sets each R that is a matrix to the inverse of W, so that samples are
    exact. The next `fit` starts from there. So many short calls of `fit` are not the same as one long call.

    Each loss is a mean over the batch (or the probes) and a sum over the layers. Cost: with "data" a
    training step has six products of a batch with a kernel instead of four.

    Args:
      kind: one of the four names above.
      weight: the weight in the loss: a float, 0 or more; a scalar `tf.Variable` that you change; a function
        of the step, such as a schedule of Keras (`PolynomialDecay(0.0, 1000, 1.0)` warms up to 1 in 1,000
        steps); or an `AdaptiveWeight`.
      num_probes: number of probes in each step, for "probes".

    Raises:
      TypeError: if the weight is none of these.
      ValueError: if the kind is unknown, the weight is negative or not finite, or `num_probes` is no
        positive int.

    >>> import tfp_selfnorm as sn
    >>> sn.Reconstruction("probes", weight=10.0).weight
    10.0

    References: Keller et al., "Self Normalizing Flows", ICML 2021, equation 7. Its published code has the
    variants, except for the probes, which are new in this package.
    """

    kind: str = "data"
    weight: Any = 1.0
    num_probes: int = 100

    def __post_init__(self) -> None:
        check_choice(self.kind, "kind", KINDS)
        check_weight(self.weight)
        check_positive_int(self.num_probes, "num_probes")

    @property
    def trained_kernels(self) -> str | None:
        """The kernels that the error of a pass trains, "both" or "other"; see `math.linear.linear_map`."""
        return {"probes": None, "inverse_only": "other"}.get(self.kind, "both")

    def regularizer(self, layer: Any) -> "Reconstruction | None":
        """This object: it trains every layer, but `None` if the variables of the layer do not train."""
        return None if is_fixed(layer) else self

    def loss(self, layer_pass: Any, seed: Seed = None) -> tf.Tensor:
        """The unweighted loss of one `LayerPass`, a scalar. The seed is for the probes."""
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
    def error(layer_pass: Any, num_examples: int | None = None) -> tf.Tensor:
        """The data error of one `LayerPass`, a mean over its first `num_examples` examples."""
        if layer_pass.error is not None and num_examples is None:
            return _mean(layer_pass.error)
        operations, x, z = layer_pass.layer.operations, layer_pass.input, layer_pass.output
        if x.shape.rank > operations.event_ndims and num_examples is not None:
            x, z = x[:num_examples], z[:num_examples]
        return _mean(operations.squared_norm(x - operations.apply(layer_pass.other_kernel, z)))


def check_weight(weight: Any) -> None:
    """Raises TypeError or ValueError if it cannot be the weight of a regularizer."""
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
    """The mean, and 0 for an empty tensor: in the last batch a replica may have no examples."""
    return tf.math.divide_no_nan(tf.reduce_sum(x), tf.cast(tf.size(x), x.dtype))


def _distance(x, layer_pass, first_kernel, second_kernel):
    """The squared distance of each event from its reconstruction by the two maps."""
    operations = layer_pass.layer.operations
    return operations.squared_norm(x - operations.apply(second_kernel, operations.apply(first_kernel, x)))
