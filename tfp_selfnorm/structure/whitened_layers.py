"""Whitened dense layers: each one is set by the events that come through the layers before it."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.bijectors.adaptable import adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.base import is_fixed
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.math.whitening import MissingNoise, whitening
from tfp_selfnorm.structure.layers import at_inference, self_norm_layers
from tfp_selfnorm.utils.names import plural
from tfp_selfnorm.utils.types import TfpObject

# Draws of noise give a later layer this number of events for each dimension, and at most so many numbers.
_EVENTS_PER_DIMENSION, _MOST_NUMBERS = 10, 2**27


def whiten_layers(
    distribution: TfpObject,
    x: tf.Tensor,
    condition: Any,
    shrinkage: float | None,
    renew: Callable[[], None] = lambda: None,
) -> None:
    """Whitens the dense layers of a flow, as `whiten` says; after an error all have the values of before.

    Args:
      distribution: a TFP distribution.
      x: events `[..., *event_shape]`.
      condition: their conditions, or `None`.
      shrinkage: a number in [0, 1], or `None`.
      renew: sets the bijectors that take initial values from data again, after each layer.
    """
    flow = at_inference(distribution)
    passes = _dense_passes(flow, x, condition)
    layers = list({layer_pass.layer.identity: layer_pass.layer for layer_pass in passes}.values())
    before = [_values(layer) for layer in layers]
    noise = None
    try:
        # The input of a layer depends on the layers before it. So each layer is set before the next one.
        for layer in layers:
            input_of = functools.partial(_input_of, layer, flow, x, condition)
            events = input_of() if noise is None else noise.events(input_of)
            _whiten_layer(layer, events, shrinkage)
            # With 0 the caller asked for a covariance of I on these events. A layer that stands twice in the
            # chain would add its noise twice.
            is_first_of_many = layer is layers[0] and len(layers) > 1
            if is_first_of_many and shrinkage != 0.0 and _count(layer, passes) == 1:
                noise = _Noise(layer, events)
            renew()
    except Exception:
        for layer, values in zip(layers, before, strict=True):
            _assign(layer, values)
        raise


def check_unset(distribution: TfpObject) -> None:
    """Raises ValueError if a fixed dense layer has values already. A rotation may be given, and is kept."""
    for layer in filter(_is_fixed_matrix, self_norm_layers(distribution)):
        kernel = tf.convert_to_tensor(layer.inverse_kernel).numpy()
        if not _is_identity(kernel) and not _is_rotation(kernel):
            raise ValueError(
                f"The flow is adapted already: `{layer.name}` has its values, and others would undo the "
                "training. To set it anew, call `whiten`."
            )


def unset_layers(layers: Iterable) -> list[TfpObject]:
    """The fixed dense layers that are still the identity."""
    fixed = filter(_is_fixed_matrix, layers)
    return [la for la in fixed if _is_identity(tf.convert_to_tensor(la.inverse_kernel).numpy())]


def _is_fixed_matrix(layer):
    return isinstance(layer, SelfNormDense) and layer.inverse_kernel.shape.rank == 2 and is_fixed(layer)


def _is_identity(kernel):
    probes = np.random.default_rng(0).normal(size=[len(kernel), 4]).astype(kernel.dtype)
    return np.array_equal(kernel @ probes, probes)


def _dense_passes(flow, x, condition):
    """The passes of dense layers from data to latent, in their order."""
    with training_scope(inverse_learning=None) as scope, adaptation_mode("whiten"):
        flow.log_prob(tf.identity(x), **condition_arguments(condition))
    return [
        layer_pass
        for layer_pass in scope.passes
        if isinstance(layer_pass.layer, SelfNormDense)
        and layer_pass.layer.inverse_kernel.shape.rank == 2
        and layer_pass.direction == "inverse"
    ]


def _input_of(layer, flow, x, condition):
    """The input of the first pass of a layer."""
    passes = _dense_passes(flow, x, condition)
    return next(np.asarray(p.input) for p in passes if p.layer.identity == layer.identity)


def _count(layer, passes):
    return sum(layer_pass.layer.identity == layer.identity for layer_pass in passes)


class _Noise:
    """Noise in the output of the first dense layer, which brings the covariance of its output to I.

    The shrinkage of the layer is a smoothing of its events: new events have a covariance near I, and the
    events that set the layer have less. A later layer would scale them up. With the noise it does not.

    Args:
      layer: the first dense layer, with its values.
      x: its input.
    """

    def __init__(self, layer: SelfNormDense, x: np.ndarray) -> None:
        self._layer, self._shape = layer, x.shape
        kernel = np.asarray(layer.inverse_kernel, np.float64)
        self._noise = MissingNoise(np.reshape(x, [-1, layer.event_size]) @ kernel.T)
        needed = -(-_EVENTS_PER_DIMENSION * layer.event_size**2 // x.size)
        self._num_draws = max(1, min(needed, _MOST_NUMBERS // x.size))

    def events(self, input_of: Callable[[], np.ndarray]) -> np.ndarray:
        """The input of a later layer, which `input_of` computes, for several draws of the noise."""
        generator, found = np.random.default_rng(0), []
        for _ in range(self._num_draws):
            noise = np.reshape(self._noise.draw(generator), self._shape)
            with self._added(tf.constant(noise, self._layer.dtype)):
                found.append(input_of())
        return np.concatenate(found)

    @contextlib.contextmanager
    def _added(self, noise):
        bias = self._layer.bias
        self._layer._bias = noise if bias is None else bias + noise
        try:
            yield
        finally:
            self._layer._bias = bias


def _values(layer):
    return [tf.identity(variable) for variable in _parameters(layer)]


def _assign(layer, values):
    for variable, value in zip(_parameters(layer), values, strict=True):
        variable.assign(value)


def _parameters(layer):
    parameters = [layer.forward_kernel, layer.inverse_kernel]
    parameters += [] if layer.bias is None else [layer.bias]
    if not all(hasattr(value, "assign") for value in parameters):
        raise TypeError(f"The parameters of `{layer.name}` must be tf.Variables for `whiten` to set them.")
    return parameters


def _whiten_layer(layer, x, shrinkage):
    _parameters(layer)
    x = np.reshape(np.asarray(x, np.float64), [-1, layer.event_size])
    if len(x) < 2 or (len(x) <= layer.event_size and shrinkage == 0.0):
        least = "two events or more" if len(x) < 2 else f"more events than dimensions, {layer.event_size}"
        raise ValueError(f"`x` must have {least} for `{layer.name}`; got {len(x)}, `shrinkage={shrinkage}`.")
    if not np.isfinite(x).all():
        raise ValueError(f"The input of `{layer.name}` from `x` must be finite; it is not.")
    result = whitening(x, np.finfo(layer.dtype.as_numpy_dtype).eps, shrinkage)
    if len(result.constant_columns) == layer.event_size:
        raise ValueError(f"The input of `{layer.name}` from `x` must vary; it is the same for all events.")
    _warn_of_constants(layer, result)
    kernel, inverse_kernel = result.kernel, result.inverse_kernel
    rotation = np.asarray(layer.inverse_kernel, np.float64)
    if _is_rotation(rotation):
        kernel, inverse_kernel = rotation @ kernel, inverse_kernel @ np.linalg.inv(rotation)
    _check_range(layer, kernel, inverse_kernel)
    layer.inverse_kernel.assign(tf.constant(kernel, layer.dtype))
    layer.forward_kernel.assign(tf.constant(inverse_kernel, layer.dtype))
    if layer.bias is not None:
        layer.bias.assign(tf.constant(-kernel @ result.mean, layer.dtype))


def _check_range(layer, *kernels):
    dtype = layer.dtype.as_numpy_dtype
    with np.errstate(over="ignore"):
        is_finite = all(np.isfinite(kernel.astype(dtype)).all() for kernel in kernels)
    if not is_finite:
        raise ValueError(
            f"The input of `{layer.name}` from `x` must have deviations that {layer.dtype.name} "
            "can divide by, but the kernel is not finite. Bring its columns to deviations near 1."
        )


def _is_rotation(kernel):
    """Whether it is orthogonal but not I, such as the permutations of `coupling_flow`; by probes, O(D^2)."""
    probes = np.random.default_rng(0).normal(size=[len(kernel), 4])
    along = kernel.T @ probes
    return np.allclose(kernel @ along, probes, atol=1e-4) and not np.allclose(along, probes, atol=1e-4)


def _warn_of_constants(layer, result):
    found = []
    if numbers := result.constant_columns:
        more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
        noun = "column" if len(numbers) == 1 else "columns"
        found.append(f"{noun} {', '.join(map(str, numbers[:10]))}{more}")
    if result.num_dependent:
        found.append(f"{plural(result.num_dependent, 'combination')} of the other columns")
    if found:
        warnings.warn(
            f"The input of `{layer.name}` from `x`, of {plural(layer.event_size, 'column')}, does not vary "
            f"in {layer.dtype.name} in {' and in '.join(found)}. The deviation there becomes 1, and the "
            "density has no meaning. Leave out columns that are constant or repeated. If a large mean hides "
            "that a column varies, subtract it, or make the flow in float64.",
            stacklevel=4,
        )
