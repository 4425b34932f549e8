"""Initial values from data: `adapt` for each `Adaptable`, `whiten` for dense layers."""

import contextlib
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.bijectors.adaptable import Adaptable, AllEventsWanted, adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.math.whitening import whitening
from tfp_selfnorm.structure.layers import at_inference, bijectors_of
from tfp_selfnorm.utils.checks import check_events, check_is_distribution
from tfp_selfnorm.utils.options import check_bool, check_number
from tfp_selfnorm.utils.types import Array, TfpObject

# Events pass a flow in parts of this many numbers, or of some hundred events where these are more.
_PART_SIZE, _PART_EVENTS = 2**20, 512
# Of the events by which several layers are whitened.
_THIRDS, _LEAST_EVENTS = tuple(slice(first, None, 3) for first in range(3)), 6


def adapt(distribution: TfpObject, x: Array, whitens: bool = False, condition: Any = None) -> None:
    """Sets each `Centering`, `Standardize` and `ActNorm`, in place, and with `whitens` each dense layer.

    This one call gives a flow all of its initial values from data; make it once, before the training. On
    these data the output of a `Centering` has mean 0, and the output of a `Standardize` variance 1 too. The
    output of an `ActNorm` has channels of mean 0 and variance 1 on the first events: 512, or as many as have
    2^20 numbers. These pass the flow once, eagerly and in one batch. Later events pass only the bijectors
    before a `Centering` or a `Standardize`. A flow without such bijectors is not changed.

    Args:
      distribution: a TFP distribution, for example from `glow_flow`.
      x: events `(batch, *event_shape)`, floating. The error of the mean in a `Centering` costs some D / 2n
        nats, for n events of D numbers: 0.04 for 10,000 images of 28x28 pixels, 0.8 for 512.
      whitens: whether to set each `SelfNormDense` too, as `whiten` does.
      condition: the conditions of the events, if the bijector of the distribution is a `Conditional`.

    Raises:
      TypeError: if `distribution` is no TFP distribution, or `x` is not floating.
      ValueError: if the flow is adapted already, if `x` does not consist of two events or more, or if a
        channel does not vary.

    >>> import tensorflow_probability as tfp, tfp_selfnorm as sn
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0.0, 1.0), [3]), sn.ActNorm.trainable(3))
    >>> sn.adapt(flow, [[1.0, 2.0, 0.0], [3.0, 8.0, 1.0]])
    >>> flow.bijector.shift.numpy()
    array([2. , 5. , 0.5], dtype=float32)

    References: Kingma & Dhariwal, "Glow", NeurIPS 2018, section 3.1.
    """
    _check_is_eager("adapt")
    check_is_distribution(distribution)
    check_bool(whitens, "whitens")
    adaptables = bijectors_of(Adaptable, distribution)
    if adaptables and is_adapted(distribution):
        raise ValueError("The flow is adapted already: other initial values would undo its training.")
    x = check_events(x, distribution)
    if tf.size(x) < 2 * distribution.event_shape.num_elements():
        raise ValueError(f"`x` must have two events or more to adapt to; got shape {tuple(x.shape)}.")
    new = [part.is_adapted for part in adaptables if not part.has_initial_values()]
    try:
        _set_adaptables(distribution, x, condition)
        if whitens:
            whiten(distribution, x, condition=condition)
    except Exception:
        # If a later bijector refused the data, the earlier ones have no initial values either.
        for has_values in new:
            if isinstance(has_values, tf.Variable):
                has_values.assign(False)
        raise


def _check_is_eager(name):
    if not tf.executing_eagerly():
        raise ValueError(f"`{name}` sets variables from data: call it outside of a `tf.function`.")


def _set_adaptables(distribution, x, condition):
    flow = at_inference(distribution)
    size = max(_PART_EVENTS, _PART_SIZE // distribution.event_shape.num_elements())
    parts = (slice(i, i + size) for i in range(0, len(x), size))
    first, *others = ((x[part], _part(condition, part)) for part in parts)
    while (wanted := _adapting_pass(flow, *first)) is not None:
        parts = (_adapting_pass(flow, *part).data for part in others)
        wanted.bijector.set_from_batches(itertools.chain([wanted.data], parts), wanted.is_inverse)


def _part(condition, part):
    """The conditions of some events, by a slice or by their numbers."""
    if isinstance(condition, Mapping):
        return {key: _part(value, part) for key, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(_part(value, part) for value in condition)
    if condition is None:
        return None
    return tf.convert_to_tensor(condition)[part] if isinstance(part, slice) else tf.gather(condition, part)


def _adapting_pass(flow, x, condition):
    """Passes events until a bijector wants all of them; else `None`. Log-dets have no use here."""
    try:
        with training_scope(inverse_learning=None), adaptation_mode("adapt"):
            flow.log_prob(tf.identity(x), **condition_arguments(condition))
    except AllEventsWanted as wanted:
        return wanted
    return None


def is_adapted(distribution: TfpObject) -> bool:
    """Whether each `Centering`, `Standardize` and `ActNorm` in an object of TFP has its initial values.

    Those that a Python function holds are not found.
    """
    return all(part.has_initial_values() for part in bijectors_of(Adaptable, distribution, "distribution"))


def check_adapted(distribution: TfpObject) -> None:
    """Raises ValueError if a `Centering`, `Standardize` or `ActNorm` has no initial values."""
    found = bijectors_of(Adaptable, distribution, "distribution")
    parts = [part for part in found if not part.has_initial_values()]
    if parts:
        names = ", ".join(f"`{part.name}`" for part in parts[:3])
        more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
        raise ValueError(
            f"The flow has a `{type(parts[0]).__name__}` without initial values: call `adapt` with some "
            f"training data before the model is fitted or evaluated. It sets {names}{more}."
        )


def whiten(distribution: TfpObject, x: Array, shrinkage: float | None = None, condition: Any = None) -> None:
    """Sets each `SelfNormDense`, in place: on these data its output has mean 0 and a covariance near I.

    Let m be the mean of the input of a layer, S the deviations of its numbers, C their correlation, and
    `P = (1 - shrinkage) C + shrinkage I`. W becomes `(S P S)^-1/2`. It is symmetric, and of all such matrices
    the nearest to the identity. If the covariance is ill-conditioned (1e10), as with different units, W is
    `P^-1/2 S^-1`, the nearest for the standardised numbers. A W that was orthogonal, such as a permutation,
    is kept as a factor on the left: the output is rotated. R becomes the inverse of W, and the bias `-W m`.
    Without a bias the mean stays. Then the first layer alone is a Gaussian that fits the data. Training is
    epochs ahead. R follows W more closely, because no direction of W has to shrink by a factor of a hundred
    first. Layers of other kinds are not changed.

    A number that does not vary gets a deviation of 1, and so does a direction in which the standardised
    numbers do not vary, for example if a column stands there twice. A warning says how many they are. The
    density is right for columns of any units. The steps of an optimizer are not: bring columns of large units
    to a deviation near 1, before the flow or by a `preprocessing`.

    The events that set a layer have outputs that are too regular: in directions that no event has, the
    outputs are 0, and a later layer would scale these directions up. So the statistics of a later layer are
    of events that passed a first layer set by other events, by two thirds of all in turn. A column gets the
    larger of its two deviations. With `shrinkage=0` each layer has the statistics of its own input. The parts
    are drawn at random, always the same for as many events, so that sources that take turns are in each part.

    Each layer costs one pass of the data, eagerly and in one batch, and some eigendecompositions, O(D^3); the
    first one of several costs four times that. With no more events than dimensions W is `P^-1/2 S^-1`, and
    costs O(n D^2) for n events.

    Args:
      distribution: a TFP distribution, for example from `dense_flow`.
      x: events `(batch, *event_shape)`, floating, two or more; ten times as many as the dimensions of a layer
        are good.
      shrinkage: a number in [0, 1]. `None` chooses it: the Gaussian of four fifths of the data then has the
        largest likelihood on the rest.
      condition: the conditions of the events, if the bijector of the distribution is a `Conditional`.

    Raises:
      TypeError: if `distribution` is no TFP distribution, if `x` is not floating, if `shrinkage` is no
        number, or if the parameters of a layer are no variables.
      ValueError: if `x` does not consist of events; if `shrinkage` is out of range; if the input of a layer
        is not finite or does not vary, or if `shrinkage` is 0 and it has no more events than the layer has
        dimensions, with the name of the layer.

    >>> import numpy as np, tensorflow as tf, tfp_selfnorm as sn
    >>> flow = sn.dense_flow(event_shape=2, num_layers=1)
    >>> x = np.random.default_rng(1).multivariate_normal([5.0, -3.0], [[4.0, 1.9], [1.9, 1.0]], size=1000)
    >>> sn.whiten(flow, x, shrinkage=0.0)
    >>> z = flow.bijector.inverse(tf.constant(x, tf.float32))
    >>> np.allclose(np.cov(z, rowvar=False), np.eye(2), atol=1e-3)
    True

    References: Kessy, Lewin & Strimmer, "Optimal whitening and decorrelation", American Statistician, 2018.
    """
    _check_is_eager("whiten")
    check_is_distribution(distribution)
    if shrinkage is not None:
        check_number(shrinkage, "shrinkage", "in [0, 1], or None", lambda value: 0.0 <= value <= 1.0)
    x, condition = _shuffled(check_events(x, distribution), condition)
    passes = _dense_passes(distribution, x, condition)
    layers = list({layer_pass.layer.identity: layer_pass.layer for layer_pass in passes}.values())
    # With 0 the caller asked for a covariance of I on these events.
    crosses = shrinkage != 0.0 and len(x) >= _LEAST_EVENTS
    first_values: list[Any] = []
    # The input of a layer depends on the layers before it. So each layer is set before the next one.
    for i, layer in enumerate(layers):
        events = _input_of(layer, distribution, x, condition)
        if crosses and i == 0 and len(layers) > 1:
            first_values = _values_without_each_third(layer, events, shrinkage)
        if first_values and i > 0:
            new = np.zeros_like(events)
            for third, values in zip(_THIRDS, first_values, strict=True):
                with _other_values(layers[0], values):
                    new[third] = _input_of(layer, distribution, x[third], _part(condition, third))
            events = _as_spread_as(new, events)
        _whiten_layer(layer, events, shrinkage)


def _shuffled(x, condition):
    """The same order each time. Parts of events that alternate would differ without it, in shrinkages too."""
    order = np.random.default_rng(0).permutation(len(x))
    return tf.gather(x, order), _part(condition, order)


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


def _input_of(layer, distribution, x, condition):
    """The input of the first pass of a layer."""
    passes = _dense_passes(distribution, x, condition)
    return next(np.asarray(p.input) for p in passes if p.layer.identity == layer.identity)


def _values_without_each_third(layer, events, shrinkage):
    """The parameters that two thirds of the events give to the layer, without each third in turn.

    None at all if two thirds do not vary. If the whole does not, the caller finds it.
    """
    found = []
    for third in _THIRDS:
        with _other_values(layer, _values(layer)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _whiten_layer(layer, np.delete(events, third, axis=0), shrinkage)
            except ValueError:
                return []
            found.append(_values(layer))
    return found


@contextlib.contextmanager
def _other_values(layer, values):
    """Gives the parameters of a layer some values, and in the end those of before."""
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


def _as_spread_as(new, seen):
    """Scales up the columns of `new` that have a smaller deviation than in `seen`.

    Of a column that varies in few events alone, two thirds of the events may have none.
    """
    axes = tuple(range(seen.ndim - 1))
    mean, deviation, target = np.mean(new, axis=axes), np.std(new, axis=axes), np.std(seen, axis=axes)
    scaled = mean + (new - mean) * np.maximum(1.0, target / np.where(deviation > 0.0, deviation, 1.0))
    return np.where(deviation > 0.0, scaled, seen)


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
