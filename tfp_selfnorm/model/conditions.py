"""The form of the conditions of a model: their shapes and dtypes, and the checks of conditions in data."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors import Conditional, LearnedInverse
from tfp_selfnorm.bijectors.coupling import Coupling
from tfp_selfnorm.bijectors.network_call import takes_condition
from tfp_selfnorm.structure.layers import bijectors_of
from tfp_selfnorm.utils.checks import as_array, cast_array, check_finite
from tfp_selfnorm.utils.integers import as_sizes
from tfp_selfnorm.utils.types import Array, TfpObject


class Conditions:
    """The shape and the dtype of one condition.

    Args:
      specs: a `tf.TensorSpec` of one condition; for an embedding of several inputs a tuple or dict of them.
    """

    def __init__(self, specs: Any) -> None:
        self.specs = specs

    @property
    def ndims(self) -> Any:
        """The rank of one condition, in the structure of `specs`."""
        return _mapped(lambda spec, _, __: spec.shape.rank, self.specs, self.specs, "")

    def example(self) -> Any:
        """A batch of one condition of zeros; unknown sizes are 1."""

        def zeros(spec, _, __):
            return tf.zeros([1, *(size or 1 for size in spec.shape)], spec.dtype)

        return _mapped(zeros, self.specs, self.specs, "")

    def signature(self) -> Any:
        """Specifications of batches of any size, for `tf.function`.

        Their names are `condition`, or `condition_key` and `condition_0` for the parts of a dict or tuple.
        """

        def batch(spec, _, name):
            # TensorFlow loses the inputs of a signature whose names it would have to change.
            return tf.TensorSpec([None, *spec.shape], spec.dtype, re.sub("[^A-Za-z0-9]", "_", name))

        return _mapped(batch, self.specs, self.specs, "condition", "{}_{}")

    def array(self, conditions: Any, name: str, number: int) -> Any:
        """Returns a batch of conditions as arrays or tensors, in the dtypes of `specs`.

        Args:
          conditions: the conditions.
          name: the name of the argument.
          number: the number of events.

        Raises:
          TypeError: if they are of no form that has conditions, or of another kind of dtype.
          ValueError: if they have another structure or shape, are not finite, or are not one for each event.
        """

        def checked(spec, value, name):
            value = as_array(value, name)
            _check_form(value, spec, name, is_batch=True)
            if len(value) != number:
                raise ValueError(f"`{name}` must have one condition an event, {number}; got {len(value)}.")
            _check_range(value, spec, name)
            value = tf.cast(value, spec.dtype) if tf.is_tensor(value) else cast_array(value, spec.dtype)
            return check_finite(value, name) if spec.dtype.is_floating else value

        return self._checked(checked, conditions, name)

    def tensor(self, condition: Any, name: str = "condition", is_batch: bool = False) -> Any:
        """Returns conditions with any leading dimensions, or a batch, as tensors; raises as `array` does."""

        def checked(spec, value, name):
            value = as_array(value, name)
            _check_form(value, spec, name, is_batch)
            _check_range(value, spec, name)
            return tf.cast(value, spec.dtype)

        return self._checked(checked, condition, name)

    def check_spec(self, element_spec: Any, name: str) -> None:
        """Raises TypeError or ValueError if the specification of batches in a data set does not fit."""

        def check(spec, value, name):
            if not isinstance(value, tf.TensorSpec):
                raise TypeError(f"`{name}` must be dense tensors; got {value}.")
            _check_form(value, spec, name, is_batch=True)

        _mapped(check, self.specs, element_spec, name)

    def checked_in_graph(self, conditions: Any, number: tf.Tensor) -> tuple[Any, dict[str, tf.Tensor]]:
        """Returns a batch of a data set in the dtypes of `specs`, and the problems that it must not have."""
        problems: dict[str, tf.Tensor] = {}

        def checked(spec, value, _):
            value = tf.ensure_shape(tf.cast(value, spec.dtype), [None, *spec.shape])
            tests = {"conditions that are not one an event": tf.equal(tf.shape(value)[0], number)}
            if spec.dtype.is_floating:
                tests["conditions that are not finite"] = tf.reduce_all(tf.math.is_finite(value))
            for problem, is_good in tests.items():
                problems[problem] = problems.get(problem, True) & is_good
            return value

        return _mapped(checked, self.specs, conditions, ""), problems

    def _checked(self, function, conditions, name):
        if conditions is None:
            raise ValueError(
                f"`{name}` must be the conditions, {describe(self.specs)} each; got None. A "
                "ConditionalFlowModel needs them."
            )
        return _mapped(function, self.specs, conditions, name)


def conditions_of(shape: Any, embedding: Callable | None, bijector: TfpObject, dtype: tf.DType) -> Conditions:
    """Finds the form of the conditions of a bijector.

    Args:
      shape: the argument `condition_shape`; `None` takes the inputs of Keras models.
      embedding: the embedding of the conditions, or `None`.
      bijector: the bijector, whose networks take the conditions if there is no embedding.
      dtype: the dtype of the events.

    Raises:
      ValueError: if `shape` is no shape, not that of the inputs, or needed and not given.
    """
    known = _of_layers(bijector, dtype) if embedding is None else _of_inputs(embedding)
    if shape is None:
        if known is None:
            raise ValueError(
                "`condition_shape` must be given, unless the embedding, or the network of a coupling, is a "
                "Keras model with known inputs; got None."
            )
        return Conditions(known)
    given = _given(shape, dtype)
    if known is not None and not _are_compatible(given, known):
        raise ValueError(
            f"`condition_shape` must be as the inputs of the networks, {describe(known)}; got {shape!r}."
        )
    if embedding is None and not isinstance(given, tf.TensorSpec):
        raise ValueError(f"`condition_shape` must be one shape without an embedding; got {shape!r}.")
    return Conditions(known if known is not None else given)


def check_embedded(conditional: Conditional, conditions: Conditions, dtype: tf.DType) -> None:
    """Raises ValueError if an embedding returns another shape than the networks of the bijectors take."""
    known = None if conditional.embedding is None else _of_layers(conditional.bijector, dtype)
    if known is None:
        return
    found = conditional.embedded(conditions.example()).shape[1:]
    if not takes_condition(found, known.shape):
        raise ValueError(
            f"`embedding` must return conditions of shape {tuple(known.shape)}, for which the networks of "
            "the flow were made, for example by the argument `condition_shape` of the builder; got "
            f"{tuple(found)}."
        )


def describe(specs: Any) -> str:
    """The shapes and dtypes in words."""
    if isinstance(specs, dict):
        return "{" + ", ".join(f"{key!r}: {describe(spec)}" for key, spec in specs.items()) + "}"
    if isinstance(specs, tuple):
        return "(" + ", ".join(map(describe, specs)) + ")"
    return f"{specs.dtype.name} of shape {tuple(specs.shape)}"


def _given(shape, dtype):
    if isinstance(shape, tf.TensorSpec):
        return shape
    if isinstance(shape, Mapping):
        return {key: _given(part, dtype) for key, part in shape.items()}
    sizes = as_sizes(shape)
    if sizes is not None:
        return tf.TensorSpec(sizes, dtype)
    if isinstance(shape, (tuple, list)) and shape:
        return tuple(_given(part, dtype) for part in shape)
    raise ValueError(
        f"`condition_shape` must be a shape, a tf.TensorSpec, or a tuple or dict of them; got {shape!r}."
    )


def _of_inputs(network):
    """The specifications of the inputs of a Keras model, or `None`."""
    inputs = getattr(network, "inputs", None)
    if not isinstance(inputs, list):
        return None
    return _specs(inputs[0] if len(inputs) == 1 else network.input)


def _specs(inputs):
    if isinstance(inputs, dict):
        return {key: _specs(part) for key, part in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return tuple(map(_specs, inputs))
    return tf.TensorSpec(inputs.shape[1:], inputs.dtype)


def _of_layers(bijector, dtype):
    """The specification of the conditions of the first layer whose network is a Keras model, or `None`."""
    for layer in bijectors_of((Coupling, LearnedInverse), bijector):
        inputs = getattr(
            layer.encoder if isinstance(layer, LearnedInverse) else layer.network, "inputs", None
        )
        is_alone = (layer.parameters or {}).get("num_conditioning") == 0
        if isinstance(inputs, list) and (len(inputs) == 2 or is_alone):
            return tf.TensorSpec(inputs[-1].shape[1:], dtype)
    return None


def _are_compatible(given, known):
    try:
        tf.nest.assert_same_structure(given, known)
    except (TypeError, ValueError):
        return False
    pairs = zip(tf.nest.flatten(given), tf.nest.flatten(known), strict=True)
    return all(one.shape.is_compatible_with(other.shape) for one, other in pairs)


def _mapped(function, specs, value, name, form="{}[{!r}]"):
    """Applies a function of a specification, a value and its name to each part of a structure."""
    if isinstance(specs, dict):
        if not isinstance(value, Mapping) or set(value) != set(specs):
            found = f"the keys {list(value)}" if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"`{name}` must be a dict with the keys {list(specs)}; got {found}.")
        return {k: _mapped(function, specs[k], value[k], form.format(name, k), form) for k in specs}
    if isinstance(specs, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(specs):
            found = f"{len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
            raise ValueError(f"`{name}` must be a tuple of {len(specs)} arrays; got {found}.")
        pairs = enumerate(zip(specs, value, strict=True))
        return tuple(_mapped(function, spec, v, form.format(name, i), form) for i, (spec, v) in pairs)
    return function(specs, value, name)


def _check_form(value: Array | tf.TensorSpec, spec: tf.TensorSpec, name: str, is_batch: bool = False) -> None:
    """Checks the shape and the dtype of conditions."""
    dtype = _dtype(value)
    is_whole = dtype is not None and (dtype.is_integer or dtype.is_bool)
    if not (is_whole or (dtype is not None and dtype.is_floating and spec.dtype.is_floating)):
        kind = "numbers" if spec.dtype.is_floating else "integers"
        raise TypeError(
            f"`{name}` must be conditions of {kind}; got dtype {getattr(dtype, 'name', value.dtype)}."
        )
    shape = tf.TensorShape(value.shape)
    if shape.rank is None:
        return
    num_leading = shape.rank - spec.shape.rank
    is_right = num_leading == 1 if is_batch else num_leading >= 0
    if not (is_right and shape[num_leading:].is_compatible_with(spec.shape)):
        sizes = "".join(f", {size}" for size in spec.shape)
        raise ValueError(
            f"`{name}` has shape {tuple(shape)}; expected ({'batch' if is_batch else '...'}{sizes}), "
            f"for conditions of shape {tuple(spec.shape)}."
        )


def _dtype(value):
    try:
        return tf.as_dtype(value.dtype)
    except TypeError:
        # Strings and objects of numpy.
        return None


def _check_range(value, spec, name):
    """Raises ValueError if an integer of an array does not fit into the dtype: a cast would wrap around."""
    if not spec.dtype.is_integer or not isinstance(value, np.ndarray) or not value.size:
        return
    lowest, highest = value.min(), value.max()
    if lowest < spec.dtype.min or highest > spec.dtype.max:
        raise ValueError(f"`{name}` must fit into {spec.dtype.name}; got values from {lowest} to {highest}.")
