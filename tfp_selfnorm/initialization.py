"""Initial values from data: of each `ActNorm` by `adapt`, of dense layers by `whiten`."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.bijectors.act_norm import ActNorm, act_norm_mode
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import bijectors_of
from tfp_selfnorm.utils.checks import check_events

# Of the largest variance: directions that vary less are scaled as if they varied so much.
_SMALLEST_VARIANCE = 1e-8


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


def whiten(distribution, x) -> None:
    """Sets each `SelfNormDense` so that on these data its output has mean 0 and covariance I, in place.

    With C the covariance of what reaches a layer, and m its mean, W becomes `C^-1/2` (symmetric, of all
    whitening matrices the one nearest to the identity), R its inverse, and the bias `-W m`; without a bias
    the mean stays. The first layer alone is then the Gaussian that fits the data best, and a flow of more
    starts from there: training is ahead by epochs, and the learned inverses follow more closely, since no
    direction of W has to shrink a hundredfold first. Layers of other kinds stay as they are.

    Costs for each layer a pass of the data, eagerly and all at once, and an eigendecomposition, O(D^3).

    Args:
      distribution: a TFP distribution, such as those of `dense_flow`.
      x: events `(batch, *event_shape)`, floating, more than any layer has dimensions; ten times as many are
        good.

    Raises:
      TypeError: if `distribution` is no TFP distribution, `x` is not floating, or a layer's parameters are no
        variables.
      ValueError: if `x` does not consist of events, or what reaches a layer is not finite, does not vary, or
        is not more than it has dimensions, naming the layer.

    >>> flow = dense_flow(event_shape=2, num_layers=1)
    >>> x = np.random.default_rng(1).multivariate_normal([5.0, -3.0], [[4.0, 1.9], [1.9, 1.0]], size=1000)
    >>> whiten(flow, x)
    >>> z = flow.bijector.inverse(tf.constant(x, tf.float32))
    >>> np.allclose(np.cov(z, rowvar=False), np.eye(2), atol=1e-3)
    True

    References: Kessy, Lewin & Strimmer, "Optimal whitening and decorrelation", American Statistician, 2018.
    """
    if not isinstance(distribution, tfp.distributions.Distribution):
        raise TypeError(f"`distribution` must be a TFP distribution; got {type(distribution).__name__}.")
    x = check_events(x, distribution)
    done = set()
    # What reaches a layer depends on those before it: each is set before the next one is reached.
    while (layer_pass := _next_pass(distribution, x, done)) is not None:
        _whiten_layer(layer_pass.layer, layer_pass.input)
        done.add(layer_pass.layer.identity)


def _next_pass(distribution, x, done):
    """The first pass of a dense layer that is not done, from data to latent; `None` without one."""
    with training_scope(inverse_learning=None) as scope:
        distribution.log_prob(tf.identity(x))
    for layer_pass in scope.passes:
        layer = layer_pass.layer
        is_dense = isinstance(layer, SelfNormDense) and layer.inverse_kernel.shape.rank == 2
        if is_dense and layer_pass.direction == "inverse" and layer.identity not in done:
            return layer_pass
    return None


def _whiten_layer(layer, x):
    parameters = [layer.forward_kernel, layer.inverse_kernel]
    parameters += [] if layer.bias is None else [layer.bias]
    if not all(hasattr(value, "assign") for value in parameters):
        raise TypeError(f"The parameters of `{layer.name}` must be tf.Variables for `whiten` to set them.")
    x = np.reshape(np.asarray(x, np.float64), [-1, layer.event_size])
    if len(x) <= layer.event_size:
        raise ValueError(
            f"`x` must have more events than `{layer.name}` has dimensions, {layer.event_size}; got {len(x)}."
        )
    if not np.isfinite(x).all():
        raise ValueError(f"What reaches `{layer.name}` from `x` must be finite; it is not.")
    mean = np.mean(x, axis=0)
    variances, directions = np.linalg.eigh(np.cov(x, rowvar=False).reshape([layer.event_size] * 2))
    if not variances[-1] > 0.0:
        raise ValueError(f"What reaches `{layer.name}` from `x` must vary; it is the same for all events.")
    deviations = np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances[-1]))
    kernel = (directions / deviations) @ directions.T
    layer.inverse_kernel.assign(tf.constant(kernel, layer.dtype))
    layer.forward_kernel.assign(tf.constant((directions * deviations) @ directions.T, layer.dtype))
    if layer.bias is not None:
        layer.bias.assign(tf.constant(-kernel @ mean, layer.dtype))
