"""Initial values from data: `adapt` for each `Adaptable`, `whiten` for dense layers."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.adaptable import Adaptable, AllEventsWanted, adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import at_inference, bijectors_of
from tfp_selfnorm.structure.whitened_layers import check_unset, whiten_layers
from tfp_selfnorm.utils.checks import check_events, check_finite, check_is_distribution
from tfp_selfnorm.utils.options import check_bool, check_number
from tfp_selfnorm.utils.types import Array, TfpObject

# Events pass a flow in parts of this many numbers, or of some hundred events where these are more.
_PART_SIZE, _PART_EVENTS = 2**20, 512


def adapt(distribution: TfpObject, x: Array, whitens: bool = False, condition: Any = None) -> None:
    """Sets each `Centering`, `Standardize` and `ActNorm`, in place, and with `whitens` each dense layer.

    This one call gives a flow all of its initial values from data; make it once, before the training. On
    these data the output of a `Centering` has mean 0, and the output of a `Standardize` variance 1 too. The
    output of an `ActNorm` has channels of mean 0 and variance 1 on the first events: 512, or as many as have
    2^20 numbers. These pass the flow once, eagerly and in one batch. Later events pass only the bijectors
    before a `Centering` or a `Standardize`. With `whitens` this is done again after each dense layer. A flow
    without such bijectors is not changed.

    Args:
      distribution: a TFP distribution, for example from `glow_flow`.
      x: events `(batch, *event_shape)`, floating. The error of the mean in a `Centering` costs some D / 2n
        nats, for n events of D numbers: 0.04 for 10,000 images of 28x28 pixels, 0.8 for 512.
      whitens: whether to set each `SelfNormDense` too, as `whiten` does.
      condition: the conditions of the events, if the bijector of the distribution is a `Conditional`.

    Raises:
      TypeError: if `distribution` is no TFP distribution, or `x` is not floating.
      ValueError: if the flow is adapted already, or with `whitens` a fixed dense layer is set; if `x` is not
        finite or does not consist of two events or more; or if a channel does not vary.

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
    x = _checked_events(x, distribution)
    if whitens:
        check_unset(distribution)
        check_finite(x)
    if tf.size(x) < 2 * distribution.event_shape.num_elements():
        raise ValueError(f"`x` must have two events or more to adapt to; got shape {tuple(x.shape)}.")
    new = [part.is_adapted for part in adaptables if not part.has_initial_values()]

    def forget():
        for has_values in new:
            if isinstance(has_values, tf.Variable):
                has_values.assign(False)

    def renew():
        forget()
        _set_adaptables(distribution, x, condition)

    try:
        renew()
        if whitens:
            whiten_layers(distribution, x, condition, shrinkage=None, renew=renew)
    except Exception:
        # If a later bijector refused the data, the earlier ones have no initial values either.
        forget()
        raise


def _check_is_eager(name):
    if not tf.executing_eagerly():
        raise ValueError(f"`{name}` sets variables from data: call it outside of a `tf.function`.")


def _checked_events(x, distribution):
    if isinstance(x, tuple) and any(np.ndim(part) > distribution.event_shape.rank for part in x):
        raise TypeError(f"`x` must be one array of events; got a tuple of {len(x)} arrays. Take one of them.")
    return check_events(x, distribution)


def _set_adaptables(distribution, x, condition):
    flow = at_inference(distribution)
    size = max(_PART_EVENTS, _PART_SIZE // distribution.event_shape.num_elements())
    parts = (slice(i, i + size) for i in range(0, len(x), size))
    first, *others = ((x[part], _part(condition, part, len(x))) for part in parts)
    while (wanted := _adapting_pass(flow, *first)) is not None:
        parts = (_adapting_pass(flow, *part).data for part in others)
        wanted.bijector.set_from_batches(itertools.chain([wanted.data], parts), wanted.is_inverse)


def _part(condition, part, count):
    """The conditions of a slice of `count` events; a condition of all events stays whole."""
    if isinstance(condition, Mapping):
        return {key: _part(value, part, count) for key, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(_part(value, part, count) for value in condition)
    if condition is None:
        return None
    condition = tf.convert_to_tensor(condition)
    return condition[part] if condition.shape[:1] == [count] else condition


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
    the nearest to the identity. If the covariance is ill-conditioned (1e10), as with different units, W
    is `P^-1/2 S^-1`, the nearest for the standardised numbers. A W that was orthogonal, such as a
    permutation, is kept as a factor on the left: the output is rotated. R becomes the inverse of W, and
    the bias `-W m`. Without a bias the mean stays. Then the first layer alone is a Gaussian that fits the
    data; an activation after it bends this Gaussian. Training is epochs ahead. R follows W more closely,
    because no direction of W has to shrink by a factor of a hundred first. Layers of other kinds are not
    changed.

    A number that does not vary gets a deviation of 1, and so does a direction in which the standardised
    numbers do not vary, for example if a column stands there twice. A warning says how many they are. The
    density is right for columns of any units. The steps of an optimizer are not: make the flow with
    `dense_flow(whitening=True)`, or bring columns of large units to a deviation near 1.

    With a shrinkage the events that set a layer have a smaller covariance than I in its output, and new
    events have about I. A later layer would scale them up again. So its statistics are of events to which
    noise is added in the output of the first layer, always the same, which brings their covariance to I. With
    `shrinkage=0` each layer has the statistics of its input. A second call does not keep a rotation.

    Each layer costs some passes of the data, eagerly and in one batch, and some eigendecompositions, O(D^3):
    a later one takes several draws of the noise if there are fewer than ten events for each dimension. With
    no more events than dimensions W is `P^-1/2 S^-1`, and costs O(n D^2) for n events.

    Args:
      distribution: a TFP distribution, for example from `dense_flow`.
      x: events `(batch, *event_shape)`, floating, two or more; ten times as many as the dimensions of a layer
        are good. They should be independent: events that were copied with small changes, as augmentation
        does, seem to be more than they are, and the shrinkage is then too small. Equal events do no harm.
      shrinkage: a number in [0, 1]. `None` chooses it: the Gaussian of four fifths of the data then has the
        largest likelihood on the rest.
      condition: the conditions of the events, if the bijector of the distribution is a `Conditional`.

    Raises:
      TypeError: if `distribution` is no TFP distribution, if `x` is not floating, if `shrinkage` is no
        number, or if the parameters of a layer are no variables.
      ValueError: if `x` does not consist of events; if `shrinkage` is out of range; if the input of a layer
        is not finite or does not vary, or if `shrinkage` is 0 and it has no more events than the layer has
        dimensions, with the name of the layer. No layer has changed then.

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
    whiten_layers(distribution, check_finite(_checked_events(x, distribution)), condition, shrinkage)
