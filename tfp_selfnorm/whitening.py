"""A start from data for the dense self-normalizing layers of a flow."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.checks import check_events
from tfp_selfnorm.training_scope import training_scope

# Of the largest variance: directions that vary less are scaled as if they varied so much.
_SMALLEST_VARIANCE = 1e-8


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
    while (record := _next_pass(distribution, x, done)) is not None:
        _whiten_layer(record.layer, record.input)
        done.add(record.layer.key)


def _next_pass(distribution, x, done):
    """The first pass of a dense layer that is not done, from data to latent; `None` without one."""
    with training_scope(inverse_learning=None) as scope:
        distribution.log_prob(tf.identity(x))
    for record in scope.records:
        layer = record.layer
        is_dense = isinstance(layer, SelfNormDense) and layer.inverse_kernel.shape.rank == 2
        if is_dense and record.direction == "inverse" and layer.key not in done:
            return record
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
