"""`Conditional`: gives one condition to all bijectors inside it that take one."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.network_call import check_network, keras_weights, with_one_batch_dimension
from tfp_selfnorm.bijectors.pair_memory import PairMemory, keeping_values
from tfp_selfnorm.inverse_learning.scope import current_scope
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.pickling import by_parameters
from tfp_selfnorm.utils.types import Array, TfpObject

tfb = tfp.bijectors


class Conditional(CheckedBijector):
    """Gives one condition to all bijectors inside it that take one, such as the couplings of a chain.

    Both directions and their log-dets take the argument `condition`:

        flow.log_prob(x, bijector_kwargs={"condition": condition})

    A bijector takes a condition if its `_forward` has a parameter of this name: `AffineCoupling`,
    `SplineCoupling`, `CircularSplineCoupling`, `LearnedInverse`, and bijectors of your own. They are found
    inside chains and other compositions of TFP, inside `tfp.bijectors.Invert`, and inside a `ChannelSplit`.
    The other bijectors get none. A scale and shift by a network of the condition alone is an `AffineCoupling`
    with `num_conditioning=0`.

    An `embedding` is a network of the condition, for example of an image or of a set. The bijectors get its
    output instead of the condition. In a graph it is computed once for a pass and its log-det.

    For other bijectors with arguments, `bijector_kwargs` maps the embedded condition to TFP's dictionary, for
    example `lambda c: {"maf": {"conditional_input": c}}` for a `tfp.bijectors.MaskedAutoregressiveFlow` named
    `maf` in a chain.

    A condition has leading dimensions, the last of those of the events, then `condition_ndims` dimensions of
    its own. For events with more leading dimensions, such as a shape of samples, the embedded condition is
    repeated. Floats are cast to the dtype of the events after the embedding.

    Shapes and dtypes: as the inner bijector.

    >>> import tensorflow as tf
    >>> import tensorflow_probability as tfp
    >>> import tfp_selfnorm as sn
    >>> coupling = sn.AffineCoupling(lambda c: tf.concat([c, c], axis=-1), num_conditioning=0, event_ndims=1)
    >>> bijector = sn.Conditional(tfp.bijectors.Chain([tfp.bijectors.Scale(2.0), coupling]))
    >>> bijector.inverse(tf.zeros([5, 2]), condition=tf.ones([5, 2])).shape
    TensorShape([5, 2])
    """

    _DEFAULT_NAME = "conditional"
    __reduce__ = by_parameters

    def __init__(
        self,
        bijector: TfpObject,
        embedding: Callable | None = None,
        bijector_kwargs: Callable[[tf.Tensor], Mapping[str, Any]] | None = None,
        condition_ndims: Any = 1,
        validate_args: bool = False,
        name: str = "conditional",
    ) -> None:
        """Makes the bijector.

        Args:
          bijector: a TFP bijector of single tensors.
          embedding: a callable from conditions with one batch dimension to a tensor with one, such as a built
            Keras model. Its weights are among the `variables`, as those of a coupling's network.
          bijector_kwargs: a function from the embedded condition to further arguments of `bijector`, in TFP's
            form.
          condition_ndims: the rank of one condition. For an embedding of several inputs: a tuple or dict of
            ranks. A condition then is a tuple or dict of arrays.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if no bijector takes a condition, if two parts of a chain have one name and not the same
            arguments, or if a Keras embedding is not built.
        """
        parameters = dict(locals())
        if not isinstance(bijector, tfb.Bijector):
            raise TypeError(f"`bijector` must be a TFP bijector; got {type(bijector).__name__}.")
        ndims = bijector.forward_min_event_ndims, bijector.inverse_min_event_ndims
        if not all(isinstance(number, (int, np.integer)) for number in ndims):
            raise ValueError(
                f"`bijector` must map single tensors; {bijector.name!r} maps a structure of them."
            )
        self._embedding: Any = None if embedding is None else check_network(embedding, "embedding")
        if bijector_kwargs is not None and not callable(bijector_kwargs):
            raise TypeError(
                f"`bijector_kwargs` must be a function of the condition; got {bijector_kwargs!r}."
            )
        self._bijector, self._bijector_kwargs = bijector, bijector_kwargs
        self._condition_ndims = _checked_ndims(condition_ndims, embedding)
        self._route = route_to(bijector)
        if self._route is None and bijector_kwargs is None:
            raise ValueError(
                "`bijector` must have a part that takes a `condition`, such as an `AffineCoupling`, or "
                f"`bijector_kwargs` must be given; {bijector.name!r} has none."
            )
        # TFP finds variables in attributes. It does not search a Keras network.
        self._embedding_variables = [weight.value for weight in keras_weights(embedding)]
        self._passes, self._structure = PairMemory(), None
        super().__init__(
            int(ndims[0]), parameters, bijector.dtype, is_constant_jacobian=False, inverse_ndims=int(ndims[1])
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        component = tfp.util.BatchedComponentProperties(event_ndims=lambda owner, event_ndims: event_ndims)
        return {"bijector": component}

    @property
    def bijector(self) -> TfpObject:
        """The inner bijector."""
        return self._bijector

    @property
    def embedding(self) -> Callable | None:
        """The network of the condition, or `None`."""
        return self._embedding

    @property
    def bijector_kwargs(self) -> Callable | None:
        """The function that makes further arguments of the inner bijector, or `None`."""
        return self._bijector_kwargs

    @property
    def condition_ndims(self) -> Any:
        """The rank of one condition, or a structure of ranks."""
        return self._condition_ndims

    def __hash__(self) -> int:
        # As in `ChannelSplit`: without it, TFP hashes a whole flow at each use of its cache.
        return hash((type(self), self.name))

    @property
    def _is_permutation(self):
        return self._bijector._is_permutation

    @property
    def _parts_interact(self):
        return self._bijector._parts_interact

    def _forward_event_shape(self, input_shape):
        return self._bijector.forward_event_shape(input_shape)

    def _forward_event_shape_tensor(self, input_shape):
        return self._bijector.forward_event_shape_tensor(input_shape)

    def _inverse_event_shape(self, output_shape):
        return self._bijector.inverse_event_shape(output_shape)

    def _inverse_event_shape_tensor(self, output_shape):
        return self._bijector.inverse_event_shape_tensor(output_shape)

    # Without an argument of this name TFP would ask the inner bijector for its dtype with the condition.
    def _forward_dtype(self, input_dtype, condition=None):
        return self._bijector.forward_dtype(input_dtype)

    def _inverse_dtype(self, output_dtype, condition=None):
        return self._bijector.inverse_dtype(output_dtype)

    def _forward(self, x, condition=None):
        return self._pass("forward", x, condition)

    def _inverse(self, y, condition=None):
        return self._pass("inverse", y, condition)

    def _forward_log_det_jacobian(self, x, condition=None):
        return self._log_det("forward", "inverse", x, condition)

    def _inverse_log_det_jacobian(self, y, condition=None):
        return self._log_det("inverse", "forward", y, condition)

    def _pass(self, direction, value, condition):
        kwargs = self._kwargs(direction, value, condition)
        output = getattr(self._bijector, direction)(value, **kwargs)
        values = tf.nest.flatten(kwargs)
        can_remember = all(map(tf.is_tensor if tf.executing_eagerly() else tf.is_symbolic_tensor, values))
        with _keeping_in_scope():
            self._passes.add(direction, value, output, values if can_remember else (), condition)
        return output

    def _log_det(self, direction, opposite, value, condition):
        """The log-det of the map that made the pair with an end at this value."""
        made_by = self._passes.input_by_output(opposite, value, condition)
        if made_by is not None:
            # The inner bijector knows the pair too, but only with the same arguments.
            return -self._log_det_of_map(opposite, made_by, condition)
        return self._log_det_of_map(direction, value, condition)

    def _log_det_of_map(self, direction, value, condition):
        with _keeping_in_scope():
            values = self._passes.values_by_input(direction, value, condition)
        if values:
            kwargs = tf.nest.pack_sequence_as(self._structure, values)
        else:
            kwargs = self._kwargs(direction, value, condition)
        if direction == "forward":
            return self._bijector.forward_log_det_jacobian(value, self.forward_min_event_ndims, **kwargs)
        return self._bijector.inverse_log_det_jacobian(value, self.inverse_min_event_ndims, **kwargs)

    def _kwargs(self, direction, value, condition):
        """The arguments of the inner bijector."""
        if condition is None:
            raise ValueError(f"`{self.name}` needs a `condition`; got None.")
        ndims = self.forward_min_event_ndims if direction == "forward" else self.inverse_min_event_ndims
        condition = _with_leading(self._embedded(condition), value, value.shape.rank - ndims, self.name)
        kwargs = _filled(self._route, condition)
        if self._bijector_kwargs is not None:
            kwargs = _merged(kwargs, self._bijector_kwargs(condition))
        # It is the same for all conditions.
        self._structure = tf.nest.map_structure(lambda part: None, kwargs)
        return kwargs

    def embedded(self, condition: Any) -> tf.Tensor:
        """The condition, or its embedding."""
        return self._embedded(condition)[0]

    def _embedded(self, condition):
        """The condition, or its embedding, and the number of its leading dimensions."""
        if self._embedding is None:
            condition = _as_tensor(condition, self._condition_ndims, self.name)
            return condition, condition.shape.rank - self._condition_ndims
        try:
            tf.nest.assert_same_structure(self._condition_ndims, condition)
        except (TypeError, ValueError):
            raise ValueError(
                f"The condition of `{self.name}` must have the structure of `condition_ndims`, "
                f"{self._condition_ndims}; got a {type(condition).__name__}."
            ) from None
        parts = tf.nest.map_structure(
            lambda part, ndims: _as_tensor(part, ndims, self.name), condition, self._condition_ndims
        )
        flat = tf.nest.map_structure(
            lambda part, ndims: with_one_batch_dimension(part, part.shape.rank - ndims),
            parts,
            self._condition_ndims,
        )
        output = self._call_embedding(flat)
        part, ndims = (tf.nest.flatten(value)[0] for value in (parts, self._condition_ndims))
        num_leading = part.shape.rank - ndims
        if num_leading != 1:
            shape = tf.concat([tf.shape(part)[:num_leading], tf.shape(output)[1:]], axis=0)
            static = part.shape[:num_leading].concatenate(output.shape[1:])
            output = tf.ensure_shape(tf.reshape(output, shape), static)
        return output, num_leading

    def _call_embedding(self, condition):
        try:
            return tf.convert_to_tensor(self._embedding(condition))
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            shapes = ", ".join(str(part.shape) for part in tf.nest.flatten(condition))
            raise ValueError(
                f"The embedding of `{self.name}`, called on a condition of shape {shapes}, failed: {error}"
            ) from error


def _keeping_in_scope():
    """In a scope eager passes keep the embedding too: layers that pass twice would count twice."""
    return contextlib.nullcontext() if current_scope() is None else keeping_values()


def condition_arguments(condition: Any) -> dict[str, Any]:
    """The arguments that give a condition to the methods of a distribution with a `Conditional`."""
    return {} if condition is None else {"bijector_kwargs": {"condition": condition}}


def _checked_ndims(condition_ndims, embedding):
    if embedding is None and tf.nest.is_nested(condition_ndims):
        raise ValueError(
            f"`condition_ndims` must be an int without an embedding; got {condition_ndims!r}. Conditions of "
            "several arrays need an embedding."
        )
    return tf.nest.map_structure(lambda ndims: check_int(ndims, "condition_ndims", 0), condition_ndims)


def route_to(bijector: tfp.bijectors.Bijector) -> Any:
    """The places of the condition in the arguments: True, a dict by the names of parts, or `None`."""
    if "condition" in inspect.signature(bijector._forward).parameters:
        return True
    # A `Blockwise` is a chain, but its arguments are those of the bijectors that were given.
    parts = (bijector.parameters or {}).get("bijectors", getattr(bijector, "bijectors", None))
    if parts is None:
        inner = getattr(bijector, "bijector", None)
        return route_to(inner) if isinstance(inner, tfb.Bijector) else None
    routes: dict[str, Any] = {}
    for part in tf.nest.flatten(parts):
        route = route_to(part)
        if routes.setdefault(part.name, route) != route:
            raise ValueError(
                f"`bijector` has two parts with the name {part.name!r} in {bijector.name!r}, which do not "
                "take the same arguments. Give them different names."
            )
    return {name: route for name, route in routes.items() if route is not None} or None


def _filled(route, condition):
    if route is True:
        return {"condition": condition}
    return {name: _filled(part, condition) for name, part in (route or {}).items()}


def _merged(kwargs, others):
    """Dictionaries of arguments as one; of two values for one name, the second."""
    merged = dict(kwargs)
    for name, value in others.items():
        has_both = isinstance(value, Mapping) and isinstance(kwargs.get(name), Mapping)
        merged[name] = _merged(kwargs[name], value) if has_both else value
    return merged


def _as_tensor(condition: Array, ndims: int, owner: str) -> tf.Tensor:
    condition = tf.convert_to_tensor(condition)
    if condition.shape.rank is None or condition.shape.rank < ndims:
        raise ValueError(
            f"The condition of `{owner}` must have {ndims} dimensions or more; got shape {condition.shape}."
        )
    return condition


def _with_leading(embedded, value, num_leading, owner):
    """An embedded condition with the leading dimensions of the events, in their dtype if it is floating."""
    condition, own = embedded
    condition = tf.cast(condition, value.dtype) if condition.dtype.is_floating else condition
    missing, leading = num_leading - own, value.shape[:num_leading]
    if missing < 0 or not condition.shape[:own].is_compatible_with(leading[missing:]):
        raise ValueError(
            f"The condition of `{owner}` must begin with the leading dimensions of the events, {leading}, or "
            f"with the last of them; got {condition.shape[:own]}."
        )
    if not missing:
        return condition
    shape = tf.concat([tf.shape(value)[:missing], tf.shape(condition)], axis=0)
    return tf.ensure_shape(tf.broadcast_to(condition, shape), leading[:missing].concatenate(condition.shape))
