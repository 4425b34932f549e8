"""Keras networks for coupling layers and for `LearnedInverse`."""

from typing import Any

import keras

from tfp_selfnorm.utils.integers import as_sizes, check_int, check_positive_int, check_sizes
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.types import Shape

# The biases of residual networks begin within this distance of 0, where whitened events are.
_LARGEST_BIAS = 2.0
_POLICY_DTYPES = ("float16", "bfloat16", "float32", "float64")


def coupling_network(
    input_shape: Shape,
    num_outputs: int,
    width: int = 512,
    kernel_size: Shape = 3,
    seed: int | None = None,
    dtype: Any = None,
    name: str | None = None,
) -> keras.Sequential:
    """The paper's coupling network: 3x3, 1x1 and 3x3 convolutions with ReLU between them.

    The initial weights of the last layer are 0. The initial map of a coupling is then the identity.

    Args:
      input_shape: (height, width, channels) of the input that the coupling conditions on. `None` stands
        for an unknown height or width.
      num_outputs: number of output channels: twice the channels that the coupling changes.
      width: number of channels of the two hidden layers.
      kernel_size: size of the first and the last kernel, an int or two.
      seed: int of the initial weights, or `None`.
      dtype: Keras dtype policy, for example "float32" or "mixed_float16"; `None` is the global policy.
      name: name of the network; its weights are named after it.

    Returns:
      A built `keras.Sequential`.

    Raises:
      TypeError: if `dtype` is no Keras dtype policy with a floating dtype.
      ValueError: if another argument is out of range.

    >>> import tfp_selfnorm as sn
    >>> sn.coupling_network((4, 4, 2), num_outputs=4, width=16).output_shape
    (None, 4, 4, 4)

    References: Kingma & Dhariwal, "Glow", NeurIPS 2018, section 3.3.
    """
    sizes = as_sizes(input_shape)
    if sizes is None or len(sizes) != 3 or sizes[2] is None:
        raise ValueError(
            f"`input_shape` must be (height, width, channels), with known channels; got {input_shape!r}."
        )
    num_outputs, width = check_positive_int(num_outputs, "num_outputs"), check_positive_int(width, "width")
    kernel_size = _check_kernel_size(kernel_size)
    seed = None if seed is None else check_int(seed, "seed")
    policy = check_policy(dtype)
    name = name or "coupling_network"
    check_name(name)

    def initializer(offset):
        return keras.initializers.GlorotUniform(None if seed is None else seed + offset)

    def convolution(filters, size, layer, **arguments):
        return keras.layers.Conv2D(
            filters, size, padding="same", dtype=policy, name=f"{name}_{layer}", **arguments
        )

    return keras.Sequential(
        [
            # Without a dtype, Keras rounds the input to the global dtype.
            keras.Input(sizes, dtype=policy.compute_dtype),
            convolution(width, kernel_size, "first", activation="relu", kernel_initializer=initializer(0)),
            convolution(width, 1, "second", activation="relu", kernel_initializer=initializer(1)),
            convolution(num_outputs, kernel_size, "last", kernel_initializer="zeros"),
        ],
        name=name,
    )


def dense_network(
    num_inputs: int,
    num_outputs: int,
    width: int = 64,
    depth: int = 2,
    condition_size: int = 0,
    seed: int | None = None,
    dtype: Any = None,
    name: str | None = None,
) -> keras.Model:
    """A residual network of vectors for couplings: `depth` hidden layers of `width` units with ReLU.

    From the second one on, a hidden layer adds its output to its input. The initial weights of the last layer
    are 0. The initial map of a coupling is then the identity. The other initial values are uniform within
    `1 / sqrt(number of inputs)` of 0, as in PyTorch. Networks with larger ones overfit more: on 10,000
    simulations of a posterior of five dimensions, He's cost 0.8 nats.

    Args:
      num_inputs: number of conditioning dimensions; 0 if there is a condition alone.
      num_outputs: number of outputs: `outputs_per_channel` of the coupling for each dimension that changes.
      width: number of units of the hidden layers.
      depth: number of hidden layers.
      condition_size: number of dimensions of a condition; 0 for none.
      seed: int of the initial weights, or `None`.
      dtype: Keras dtype policy; `None` is the global policy.
      name: name of the network; its weights are named after it.

    Returns:
      A built `keras.Model`, of `[events, condition]` if there are both.

    Raises:
      TypeError: if `dtype` is no Keras dtype policy with a floating dtype.
      ValueError: if another argument is out of range, or there is no input.

    >>> import tfp_selfnorm as sn
    >>> sn.dense_network(2, num_outputs=6, width=16).output_shape
    (None, 6)
    """
    num_outputs, width = check_positive_int(num_outputs, "num_outputs"), check_positive_int(width, "width")
    depth, name = check_positive_int(depth, "depth"), name or "dense_network"
    check_name(name)
    seed = None if seed is None else check_int(seed, "seed")
    policy = check_policy(dtype)
    inputs = vector_inputs(num_inputs, condition_size, "num_inputs", policy)
    hidden = inputs[0]
    if len(inputs) > 1:
        hidden = keras.layers.Concatenate(dtype=policy, name=f"{name}_inputs")(inputs)
    for layer in range(depth):
        kernel, bias = small_initializers(hidden.shape[-1], seed, layer, depth)
        new = keras.layers.Dense(
            width,
            "relu",
            kernel_initializer=kernel,
            bias_initializer=bias,
            dtype=policy,
            name=f"{name}_{layer}",
        )(hidden)
        hidden = keras.layers.Add(dtype=policy, name=f"{name}_{layer}_sum")([hidden, new]) if layer else new
    output = keras.layers.Dense(num_outputs, kernel_initializer="zeros", dtype=policy, name=f"{name}_last")
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], output(hidden), name=name)


def small_initializers(num_inputs: int, seed: int | None, layer: int, depth: int) -> list:
    """Those of a kernel and a bias: uniform within `1 / sqrt(num_inputs)` of 0, see `dense_network`."""
    limit = num_inputs**-0.5
    seeds = (None, None) if seed is None else (seed + layer, seed + depth + layer)
    return [keras.initializers.RandomUniform(-limit, limit, seed) for seed in seeds]


def vector_inputs(
    size: int, condition_size: int, argument: str, policy: keras.DTypePolicy
) -> list[keras.KerasTensor]:
    """The inputs of a network of vectors: the events and the condition, if they have dimensions."""
    sizes = [check_int(size, argument, 0), check_int(condition_size, "condition_size", 0)]
    if not any(sizes):
        raise ValueError(f"`{argument}` or `condition_size` must be positive; got 0 for both.")
    # Without a dtype, Keras rounds the input to the global dtype.
    return [keras.Input([size], dtype=policy.compute_dtype) for size in sizes if size > 0]


def residual_network(
    event_size: int,
    condition_size: int = 0,
    width: int = 128,
    depth: int = 3,
    seed: int | None = None,
    dtype: Any = None,
    name: str | None = None,
) -> keras.Model:
    """A residual network that keeps the size of vectors: the sum of its input and `depth` small networks.

    A block is a dense layer of `width` units with SiLU and a dense layer back. It adds its output to its
    input. The initial weights of the second layer are 0. The initial map is then the identity. The initial
    biases of the first layer are random.

    Args:
      event_size: number of dimensions of an event.
      condition_size: number of dimensions of a condition, which each block sees; 0 for none.
      width: number of units of the hidden layer in each block.
      depth: number of blocks.
      seed: int of the initial weights, or `None`.
      dtype: Keras dtype policy; `None` is the global policy.
      name: name of the network; its weights are named after it.

    Returns:
      A built `keras.Model`, of `[events, condition]` if there is a condition.

    Raises:
      TypeError: if `dtype` is no Keras dtype policy with a floating dtype.
      ValueError: if another argument is out of range.

    >>> import tfp_selfnorm as sn
    >>> sn.residual_network(5, width=16).output_shape
    (None, 5)
    """
    event_size, width = check_positive_int(event_size, "event_size"), check_positive_int(width, "width")
    depth = check_positive_int(depth, "depth")
    seed = None if seed is None else check_int(seed, "seed")
    policy = check_policy(dtype)
    name = name or "residual_network"
    check_name(name)
    inputs = vector_inputs(event_size, condition_size, "event_size", policy)
    events, *conditions = inputs
    for block in range(depth):
        hidden = events
        if conditions:
            hidden = keras.layers.Concatenate(dtype=policy, name=f"{name}_{block}_inputs")(
                [events, *conditions]
            )
        seeds = (None, None) if seed is None else (seed + block, seed + depth + block)
        first = _hidden_layer(width, seeds, policy, f"{name}_{block}_first")
        last = keras.layers.Dense(
            event_size, kernel_initializer="zeros", dtype=policy, name=f"{name}_{block}_last"
        )
        events = keras.layers.Add(dtype=policy, name=f"{name}_{block}_sum")([events, last(first(hidden))])
    return keras.Model(inputs if conditions else inputs[0], events, name=name)


def _hidden_layer(width, seeds, policy, name):
    """A dense layer with SiLU. The odd part of SiLU is linear: biases of 0 would hide symmetric data."""
    kernel_seed, bias_seed = seeds
    return keras.layers.Dense(
        width,
        "silu",
        kernel_initializer=keras.initializers.HeUniform(kernel_seed),
        bias_initializer=keras.initializers.RandomUniform(-_LARGEST_BIAS, _LARGEST_BIAS, bias_seed),
        dtype=policy,
        name=name,
    )


def check_policy(dtype: Any, name: str = "dtype") -> keras.DTypePolicy:
    """Returns the Keras policy, the global one for `None`; raises TypeError if it is not floating."""
    try:
        policy = keras.dtype_policies.get(keras.config.dtype_policy() if dtype is None else dtype)
    except (KeyError, TypeError, ValueError):
        policy = None
    if getattr(policy, "compute_dtype", None) not in _POLICY_DTYPES:
        raise TypeError(
            f"`{name}` must be a Keras dtype policy with a floating dtype, for example 'float32' or "
            f"'mixed_float16'; got {dtype!r}."
        )
    return policy


def _check_kernel_size(kernel_size):
    expected = "a positive int or two positive ints"
    sizes = check_sizes(kernel_size, "kernel_size", expected, lambda sizes: len(sizes) in (1, 2))
    return sizes * (3 - len(sizes))


def computes_in_float16(network: Any) -> bool:
    """Whether a layer of a Keras network computes in float16; its gradients then need a scaled loss."""
    layers = network._flatten_layers() if isinstance(network, keras.Layer) else []
    return any(layer.compute_dtype == "float16" and not _only_passes_on(layer) for layer in layers)


def _only_passes_on(layer):
    """Whether it is a graph of layers or an input. These have the global policy, and compute nothing."""
    is_graph = isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    return is_graph or isinstance(layer, keras.layers.InputLayer)
