"""Gives the `ActNorm` bijectors of a flow their start, from data."""

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.act_norm import ActNorm, act_norm_mode
from tfp_selfnorm.checks import check_events
from tfp_selfnorm.fit_data import event_batches
from tfp_selfnorm.integers import check_positive_int
from tfp_selfnorm.tree import bijectors_of


def adapt(distribution, x) -> None:
    """Sets each `ActNorm` so that on these data it gives channels of mean 0 and variance 1, in place.

    One pass of the data, eagerly and all at once: each `ActNorm` takes its start from what it is passed.
    A flow without any stays as it is.

    Args:
      distribution: a TFP distribution, such as those of `glow_flow`.
      x: events `(batch, *event_shape)`, floating; some hundreds will do.

    Raises:
      TypeError: if `distribution` is no TFP distribution or `x` is not floating.
      ValueError: if the flow is adapted already, `x` does not consist of events, there are less than two, or
        a channel does not vary.

    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0.0, 1.0), [3]), ActNorm.trainable(3))
    >>> adapt(flow, [[1.0, 2.0, 0.0], [3.0, 8.0, 1.0]])
    >>> flow.bijector.shift.numpy()
    array([2. , 5. , 0.5], dtype=float32)

    References: Kingma & Dhariwal, "Glow", NeurIPS 2018, section 3.1.
    """
    if not isinstance(distribution, tfp.distributions.Distribution):
        raise TypeError(f"`distribution` must be a TFP distribution; got {type(distribution).__name__}.")
    norms = bijectors_of(ActNorm, distribution)
    if norms and is_adapted(distribution):
        raise ValueError("The flow is adapted already: another start would undo its training.")
    x = check_events(x, distribution)
    if tf.size(x) < 2 * distribution.event_shape.num_elements():
        raise ValueError(f"`x` must have two events or more to adapt to; got shape {tuple(x.shape)}.")
    new = [norm.is_adapted for norm in norms if not norm.has_start()]
    try:
        with act_norm_mode("adapt"):
            distribution.log_prob(tf.identity(x))
    except Exception:
        # A start from data that a later one refused is none.
        for started in new:
            if isinstance(started, tf.Variable):
                started.assign(False)
        raise


def is_adapted(distribution) -> bool:
    """Whether every `ActNorm` of a distribution or bijector has its start."""
    return all(norm.has_start() for norm in bijectors_of(ActNorm, distribution, "distribution"))


def check_adapted(distribution) -> None:
    """Raises ValueError if an `ActNorm` has no start."""
    if not is_adapted(distribution):
        raise ValueError(
            "The flow has an `ActNorm` without a start: call `adapt` with some training data before the "
            "model is fitted or evaluated."
        )


def first_events(data, num_examples: int, distribution):
    """The first examples of arrays or batches of any form that `fit` takes, without labels, as one array."""
    check_positive_int(num_examples, "num_examples")
    batches, count = [], 0
    for batch in event_batches(data, distribution, num_examples, "data"):
        batches.append(tf.cast(batch, distribution.dtype))
        count += len(batch)
        if count >= num_examples:
            break
    if not batches:
        raise ValueError("`data` has no batch to adapt to.")
    return tf.concat(batches, axis=0)[:num_examples]
