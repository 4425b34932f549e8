"""Keras networks for coupling layers."""

import keras

from tfp_selfnorm.names import check_name


def coupling_network(input_shape, num_outputs, width=512, kernel_size=3, seed=None, dtype=None, name=None):
    """The paper's coupling network: convolutions 3x3, 1x1 and 3x3 with ReLU between, zero at the start.

    The last layer starts at 0, so that a coupling starts as the identity.

    Args:
      input_shape: (height, width, channels) of what the coupling conditions on.
      num_outputs: channels out, twice as many as the coupling changes.
      width: channels of the two hidden layers.
      kernel_size: of the first and the last convolution.
      seed: int of the initial weights, or `None`.
      dtype: Keras dtype policy, such as "float32" or "mixed_float16"; `None` for the global one.
      name: name of the network; its weights are named after it.

    Returns:
      A built `keras.Sequential`.

    >>> coupling_network((4, 4, 2), num_outputs=4, width=16).output_shape
    (None, 4, 4, 4)

    References: Kingma & Dhariwal, "Glow", NeurIPS 2018, section 3.3.
    """
    name = name or "coupling_network"
    check_name(name)

    def initializer(offset):
        return keras.initializers.GlorotUniform(None if seed is None else seed + offset)

    def convolution(filters, size, layer, **arguments):
        return keras.layers.Conv2D(
            filters, size, padding="same", dtype=dtype, name=f"{name}_{layer}", **arguments
        )

    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    return keras.Sequential(
        [
            # Without its dtype Keras rounds what comes in to the global one.
            keras.Input(input_shape, dtype=policy.compute_dtype),
            convolution(width, kernel_size, "first", activation="relu", kernel_initializer=initializer(0)),
            convolution(width, 1, "second", activation="relu", kernel_initializer=initializer(1)),
            convolution(num_outputs, kernel_size, "last", kernel_initializer="zeros"),
        ],
        name=name,
    )


def computes_in_float16(network) -> bool:
    """Whether a layer of a Keras network does, so that its gradients need a scaled loss."""
    layers = network._flatten_layers() if isinstance(network, keras.Layer) else []
    return any(layer.compute_dtype == "float16" for layer in layers)
