"""`autoregressive_network`: a Keras network with outputs of each dimension from those before it."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfp_selfnorm.flows.networks import check_policy, small_initializers, vector_inputs
from tfp_selfnorm.utils.integers import check_int, check_positive_int
from tfp_selfnorm.utils.names import check_name


@keras.saving.register_keras_serializable("tfp_selfnorm")
class MaskedDense(keras.layers.Dense):
    """A Keras `Dense` layer with weights between some of the units alone.

    An output of degree n depends on the inputs of degrees up to n.

    Args:
      input_degrees: ints, one for each input.
      output_degrees: ints, one for each output.
      **options: those of `keras.layers.Dense`.
    """

    def __init__(self, input_degrees: Sequence[int], output_degrees: Sequence[int], **options: Any) -> None:
        super().__init__(len(output_degrees), **options)
        self._degrees = tuple(map(int, input_degrees)), tuple(map(int, output_degrees))

    @property
    def kernel(self) -> Any:
        """The kernel, with 0 between the units without a weight."""
        inputs, outputs = map(np.array, self._degrees)
        kernel = super().kernel
        return kernel * keras.ops.cast(inputs[:, np.newaxis] <= outputs, kernel.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = super().get_config()
        del config["units"]
        return config | dict(zip(("input_degrees", "output_degrees"), self._degrees, strict=True))


def autoregressive_network(
    event_size: int,
    num_outputs: int,
    width: int = 64,
    depth: int = 3,
    condition_size: int = 0,
    seed: int | None = None,
    dtype: Any = None,
    name: str | None = None,
) -> keras.Model:
    """A network with outputs of each dimension that depend on the dimensions before it alone (MADE).

    It has `depth` hidden layers of `width` units with ReLU. Weights between some units are left out: hidden
    units have degrees from 0, or 1 without a condition, to `event_size - 1`, and a unit of degree n sees the
    first n dimensions. All units see the condition. The initial weights of the last layer are 0, and the
    others those of a `dense_network`. A pass costs that of a dense network.

    Args:
      event_size: number of dimensions of an event, D.
      num_outputs: number of outputs, a multiple of D; first those of the first dimension.
      width: number of units of the hidden layers.
      depth: number of hidden layers.
      condition_size: number of dimensions of a condition; 0 for none.
      seed: int of the initial weights, or `None`.
      dtype: Keras dtype policy; `None` is the global policy.
      name: name of the network; its weights are named after it.

    Returns:
      A built `keras.Model`, of `[events, condition]` if there is a condition.

    Raises:
      TypeError: if `dtype` is no Keras dtype policy with a floating dtype.
      ValueError: if another argument is out of range.

    >>> import numpy as np
    >>> import tfp_selfnorm as sn
    >>> network = sn.autoregressive_network(2, num_outputs=4, width=8, depth=1, seed=1)
    >>> network.set_weights([np.ones_like(weight) for weight in network.get_weights()])
    >>> network(np.array([[1.0, 2.0], [3.0, 4.0]])).numpy()
    array([[ 1.,  1., 17., 17.],
           [ 1.,  1., 33., 33.]], dtype=float32)

    References: Germain et al., "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015.
    """
    event_size, num_outputs = _check_sizes(event_size, num_outputs)
    width, depth = check_positive_int(width, "width"), check_positive_int(depth, "depth")
    name = name or "autoregressive_network"
    check_name(name)
    seed = None if seed is None else check_int(seed, "seed")
    policy = check_policy(dtype)
    inputs = vector_inputs(event_size, condition_size, "event_size", policy)
    degrees = [*range(1, event_size + 1), *[0] * condition_size]
    # Of one dimension alone no unit could see one.
    smallest = min(0 if condition_size else 1, event_size - 1)
    hidden_degrees = [int(n) for n in np.linspace(smallest, event_size - 1, width).round()]
    units = inputs[0]
    if len(inputs) > 1:
        units = keras.layers.Concatenate(dtype=policy, name=f"{name}_inputs")(inputs)
    for layer in range(depth):
        kernel, bias = small_initializers(units.shape[-1], seed, layer, depth)
        initializers = {"kernel_initializer": kernel, "bias_initializer": bias}
        hidden = MaskedDense(
            degrees, hidden_degrees, activation="relu", dtype=policy, name=f"{name}_{layer}", **initializers
        )
        units, degrees = hidden(units), hidden_degrees
    output_degrees = [n for n in range(event_size) for _ in range(num_outputs // event_size)]
    output = MaskedDense(
        degrees, output_degrees, kernel_initializer="zeros", dtype=policy, name=f"{name}_last"
    )
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], output(units), name=name)


def _check_sizes(event_size, num_outputs):
    event_size = check_positive_int(event_size, "event_size")
    num_outputs = check_positive_int(num_outputs, "num_outputs")
    if num_outputs % event_size:
        raise ValueError(
            f"`num_outputs` must be a multiple of `event_size`, {event_size}; got {num_outputs}."
        )
    return event_size, num_outputs
