"""Flows of preprocessed data: their density is 0 outside the range of the preprocessing."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import Conditional
from tfp_selfnorm.bijectors.adaptable import takes_initial_values
from tfp_selfnorm.bijectors.conditional import route_to
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.utils.compat import CompositeTensor, TransformedDistribution

tfd = tfp.distributions


class _DensityOnSupport(TransformedDistribution):
    """A transformed distribution by a chain whose last part, from latent to data, is a preprocessing.

    The support is the range of the preprocessing. An event outside of it has no finite value before the
    preprocessing. Its `log_prob` is -inf, with gradients of 0. A NaN in an event, or in a parameter of the
    preprocessing, gives NaN. A bijector whose inverse is finite there too, such as `tfb.Softsign`, shows no
    border. `adapt` and `whiten` refuse events outside.

    The dtype rounds the map of an extreme latent to the end of the range, where the inverse is infinite: a
    sigmoid in float32 is 1 from 17 on. In samples such a number becomes one inside, at a distance of some
    roundings, if the preprocessing maps each number of an event to the one at its place. An overflow to
    infinity stays.
    """

    def experimental_local_measure(self, y: Any, backward_compat: bool = False, **kwargs: Any) -> Any:
        """The log density of events, -inf outside the support, and the tangent space; see TFP."""
        y = tf.convert_to_tensor(y, dtype_hint=self.dtype)
        if takes_initial_values():
            return super().experimental_local_measure(y, backward_compat, **kwargs)
        is_inside, inner = self._nearest(y, self._kwargs_split_fn(kwargs)[1])
        log_prob, space = super().experimental_local_measure(inner, backward_compat, **kwargs)
        return tf.where(is_inside, log_prob, tf.constant(-float("inf"), log_prob.dtype)), space

    def _nearest(self, y, bijector_kwargs):
        """Whether each event is in the support, and the events with those outside replaced by one inside."""
        preprocessing, arguments = self._preprocessing(bijector_kwargs)
        rank = len(self.event_shape)
        inverse = tf.stop_gradient(preprocessing.inverse(tf.identity(y), **arguments))
        anchor = tf.stop_gradient(preprocessing.forward(tf.zeros_like(inverse), **arguments))
        is_outside = _any(~tf.math.is_finite(inverse), preprocessing.inverse_event_ndims(rank))
        is_broken = _any(tf.math.is_nan(y) | ~tf.math.is_finite(anchor), rank)
        is_inside = ~is_outside | is_broken
        return is_inside, tf.where(
            tf.reshape(is_inside, tf.concat([tf.shape(is_inside), [1] * rank], 0)), y, anchor
        )

    def _preprocessing(self, bijector_kwargs):
        """The last part of the chain, and its arguments."""
        chain = self.bijector
        preprocessing = (chain.bijector if isinstance(chain, Conditional) else chain).bijectors[0]
        return preprocessing, bijector_kwargs.get(preprocessing.name, {})

    def _call_sample_n(self, sample_shape, seed, **kwargs):
        y = super()._call_sample_n(sample_shape, seed, **kwargs)
        return self._inside(y, self._kwargs_split_fn(kwargs)[1])

    def _sample_and_log_prob(self, sample_shape, seed, **kwargs):
        y, log_prob = super()._sample_and_log_prob(sample_shape, seed, **kwargs)
        return self._inside(y, self._kwargs_split_fn(kwargs)[1]), log_prob

    def decoded(self, z: Any, **bijector_kwargs: Any) -> Any:
        """The events of latents."""
        return self._inside(self.bijector.forward(z, **bijector_kwargs), bijector_kwargs)

    def _inside(self, y, bijector_kwargs):
        return _inside(y, len(self.event_shape), *self._preprocessing(bijector_kwargs))

    def copy(self, **override_parameters_kwargs: Any) -> TransformedDistribution:
        """A copy with other parameters."""
        return _made(**{**self.parameters, **override_parameters_kwargs})


def decoded(distribution: tfp.distributions.Distribution, z: Any, **bijector_kwargs: Any) -> Any:
    """The events of latents, in the support if the distribution knows it."""
    if isinstance(distribution, _DensityOnSupport):
        return distribution.decoded(z, **bijector_kwargs)
    return distribution.bijector.forward(z, **bijector_kwargs)


def _inside(y, rank, preprocessing, arguments):
    """Events of a preprocessing, with numbers at the end of its range moved to one inside.

    It changes a number only where the inverse at the same place becomes finite, and an event only if its
    whole inverse is finite after that.
    """
    if not tf.is_tensor(y):
        return y
    original = tf.stop_gradient(tf.identity(y))

    def inverse(values):
        # The minimum changes nothing. It keeps XLA from the simplification of log(exp(z)) to z.
        return preprocessing.inverse(tf.minimum(values, values.dtype.max), **arguments)

    try:
        latent = inverse(original)
    except NotImplementedError:
        return y
    if latent.shape != original.shape:
        return y
    at_end = tf.math.is_finite(original) & ~tf.math.is_finite(latent)
    if tf.executing_eagerly() and not tf.reduce_any(at_end):
        # The same tensor, for TFP's cache.
        return y
    middle = preprocessing.forward(tf.zeros_like(latent), **arguments)
    moved, info = original, np.finfo(original.dtype.as_numpy_dtype)
    # The spacing of numbers at the end, and that at the width of the range, where the end is 0.
    for size in (tf.maximum(tf.abs(original) * info.eps, info.tiny), tf.abs(middle - original) * info.eps):
        for factor in (1.0, 4.0, 16.0):
            if tf.executing_eagerly() and not tf.reduce_any(at_end):
                break
            inner = original + tf.sign(middle - original) * size * factor
            is_inside = tf.math.is_finite(inverse(inner)) & at_end
            moved, at_end = tf.where(is_inside, inner, moved), at_end & ~is_inside
    is_good = tf.math.is_finite(moved) & tf.math.is_finite(inverse(moved))
    is_good = tf.reduce_all(is_good, axis=list(range(-rank, 0)), keepdims=True)
    moved = tf.where(is_good, moved, original)
    return tf.where(tf.equal(moved, original), y, y + tf.stop_gradient(moved - y))


def _any(is_true, rank):
    return tf.reduce_any(is_true, axis=list(range(-rank, 0)))


class _PreprocessedFlow(_DensityOnSupport):
    """A flow of preprocessed data that is no CompositeTensor."""


class _CompositePreprocessedFlow(_DensityOnSupport, tfd.TransformedDistribution):  # type: ignore[name-defined]
    """A flow of preprocessed data that is a CompositeTensor."""


# TFP prints the name of the class.
_PreprocessedFlow.__name__ = _CompositePreprocessedFlow.__name__ = "PreprocessedFlow"


def _made(distribution, bijector, **parameters):
    is_composite = isinstance(distribution, CompositeTensor) and isinstance(bijector, CompositeTensor)
    return (_CompositePreprocessedFlow if is_composite else _PreprocessedFlow)(
        distribution, bijector, **parameters
    )


def preprocessed_flow(
    base: tfp.distributions.Distribution, bijector: tfp.bijectors.Chain, name: str
) -> tfp.distributions.TransformedDistribution:
    """A transformed distribution whose density is 0 outside the range of the first part of the chain.

    A preprocessing with self-normalizing layers, whose passes count in a training scope, or with a condition
    is a part of the flow like any other.
    """
    preprocessing = bijector.bijectors[0]
    if self_norm_layers(preprocessing) or route_to(preprocessing):
        return tfd.TransformedDistribution(base, bijector, name=name)
    return _made(base, bijector, name=name)
