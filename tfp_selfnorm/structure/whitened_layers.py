"""Whitened dense layers: each one is set by the events that come through the layers before it."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.bijectors.adaptable import adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.math.whitening import whitening
from tfp_selfnorm.structure.layers import at_inference
from tfp_selfnorm.utils.types import TfpObject

# Fewer have no third that is worth holding out.
_LEAST_EVENTS = 6
# An event is a rare one if its output moves so many times as far as half of the events do.
_FAR = 5.0


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
    passes = _dense_passes(distribution, x, condition)
    layers = list({layer_pass.layer.identity: layer_pass.layer for layer_pass in passes}.values())
    batch_shape = x.shape[: x.shape.rank - distribution.event_shape.rank]
    before = [_values(layer) for layer in layers]
    held_out = None
    try:
        # The input of a layer depends on the layers before it. So each layer is set before the next one.
        for layer in layers:
            input_of = functools.partial(_input_of, layer, distribution, x, condition, batch_shape)
            events = held_out.input_of(input_of) if held_out else input_of()
            _whiten_layer(layer, events, shrinkage)
            # With 0 the caller asked for a covariance of I on these events.
            if held_out is None and len(layers) > 1 and shrinkage != 0.0 and len(events) >= _LEAST_EVENTS:
                held_out = _HeldOut(layer, events, shrinkage)
            renew()
    except Exception:
        for layer, values in zip(layers, before, strict=True):
            _assign(layer, values)
        raise


def _dense_passes(distribution, x, condition):
    """The passes of dense layers from data to latent, in their order."""
    with training_scope(inverse_learning=None) as scope, adaptation_mode("whiten"):
        at_inference(distribution).log_prob(tf.identity(x), **condition_arguments(condition))
    return [
        layer_pass
        for layer_pass in scope.passes
        if isinstance(layer_pass.layer, SelfNormDense)
        and layer_pass.layer.inverse_kernel.shape.rank == 2
        and layer_pass.direction == "inverse"
    ]


def _input_of(layer, distribution, x, condition, batch_shape):
    """The input of the first pass of a layer, `[n, rows, D]`, with some rows of each event."""
    passes = _dense_passes(distribution, x, condition)
    found = next(np.asarray(p.input) for p in passes if p.layer.identity == layer.identity)
    # A batch of parameters may broadcast: then no row belongs to one event.
    is_of_events = found.shape[: batch_shape.rank] == tuple(batch_shape)
    return found.reshape([batch_shape.num_elements() if is_of_events else 1, -1, layer.event_size])


class _HeldOut:
    """Events that are new to the first dense layer: two thirds of all set it, for each third in turn.

    Sources of events may take turns. So the thirds are drawn at random, always the same for as many events.
    An event that is nothing like the others says too little of a layer set without it: it passes the layer
    set by all.

    Args:
      layer: the first dense layer, with its values from all events.
      x: its input, `[n, rows, D]`.
      shrinkage: as in `whiten`.
    """

    def __init__(self, layer: Any, x: np.ndarray, shrinkage: float | None) -> None:
        self._layer, self._parts = layer, []
        seen = _output(layer, x)
        new = seen.copy()
        for third in np.array_split(np.random.default_rng(0).permutation(len(x)), 3):
            with _other_values(layer, _values(layer)), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # Two thirds may not vary.
                with contextlib.suppress(ValueError):
                    _whiten_layer(layer, np.delete(x, third, axis=0), shrinkage)
                    new[third] = _output(layer, x[third])
                    self._parts.append((third, _values(layer)))
        norms = np.linalg.norm([new - seen, seen], axis=(2, 3))
        distances = norms[0] / np.maximum(norms[1], np.finfo(norms.dtype).tiny)
        self._is_near = distances <= _FAR * np.median(distances)

    def input_of(self, passes: Callable[[], np.ndarray]) -> np.ndarray:
        """The input of a later layer, of which `passes` computes the input for all events."""
        result = np.array(passes())
        for third, values in self._parts:
            with _other_values(self._layer, values):
                new = passes()[third]
            is_taken = self._is_near[third] & np.isfinite(new).all(axis=(1, 2))
            result[third[is_taken]] = new[is_taken]
        return result


def _output(layer, x):
    z = x @ np.asarray(layer.inverse_kernel).T
    return z if layer.bias is None else z + np.asarray(layer.bias)


@contextlib.contextmanager
def _other_values(layer, values):
    """Gives the parameters of a layer some values, and in the end the values of before."""
    before = _values(layer)
    try:
        _assign(layer, values)
        yield
    finally:
        _assign(layer, before)


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
    layer.inverse_kernel.assign(tf.constant(kernel, layer.dtype))
    layer.forward_kernel.assign(tf.constant(inverse_kernel, layer.dtype))
    if layer.bias is not None:
        layer.bias.assign(tf.constant(-kernel @ result.mean, layer.dtype))


def _is_rotation(kernel):
    """Whether it is orthogonal but not I, such as the permutations of `coupling_flow`; by probes, O(D^2)."""
    probes = np.random.default_rng(0).normal(size=[len(kernel), 4])
    along = kernel.T @ probes
    return np.allclose(kernel @ along, probes, atol=1e-4) and not np.allclose(along, probes, atol=1e-4)


def _warn_of_constants(layer, result):
    found = []
    if numbers := result.constant_columns:
        more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
        found.append(f"the columns {', '.join(map(str, numbers[:10]))}{more}")
    if result.num_dependent:
        found.append(f"{result.num_dependent} combinations of the other columns")
    if found:
        warnings.warn(
            f"In the input of `{layer.name}` from `x`, of {layer.event_size} columns, "
            f"{' and '.join(found)} do not vary in {layer.dtype.name}. They get a deviation of 1, and their "
            "density has no meaning. Leave out columns that are constant or repeated. If a large mean hides "
            "that a column varies, subtract it.",
            stacklevel=4,
        )
