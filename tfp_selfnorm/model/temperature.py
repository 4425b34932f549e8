"""The temperature of samples: a flow with a scaled base distribution."""

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.checks import has_latent
from tfp_selfnorm.utils.options import check_positive
from tfp_selfnorm.utils.types import TfpObject

tfb, tfd = tfp.bijectors, tfp.distributions

# Families with a location `loc`, on the whole line or space, and symmetric about it. Normal distributions of
# vectors are transformed ones of standard normal numbers.
_SYMMETRIC = (
    tfd.Cauchy,
    tfd.Laplace,
    tfd.Logistic,
    tfd.MultivariateNormalDiagPlusLowRankCovariance,
    tfd.MultivariateStudentTLinearOperator,
    tfd.Normal,
    tfd.StudentT,
)


def at_temperature(distribution: TfpObject, temperature: float) -> TfpObject:
    """The distribution with its base distribution scaled about its location, as z = loc + T (z - loc).

    It is exact: a normal distribution gets the scale times T, and log densities are those of the scaled one.
    The base distribution of a flow of flows is the innermost one.

    Args:
      distribution: a distribution, or a transformed one.
      temperature: T, positive.

    Raises:
      TypeError: if `temperature` is no number.
      ValueError: if it is not positive and finite, or not 1 and the base distribution is of no family with a
        location.

    References: Kingma and Dhariwal, "Glow", NeurIPS 2018, section 6.
    """
    temperature = check_positive(temperature, "temperature")
    return distribution if temperature == 1.0 else _scaled(distribution, temperature)


def _scaled(distribution, temperature):
    if isinstance(distribution, _SYMMETRIC):
        scale = tfb.Scale(tf.constant(temperature, distribution.dtype))
        if distribution.loc is not None:
            shift = tfb.Shift(distribution.loc)
            scale = tfb.Chain([shift, scale, tfb.Invert(shift)])
        return tfd.TransformedDistribution(distribution, scale)
    if not (has_latent(distribution) or isinstance(distribution, (tfd.Independent, tfd.Sample))):
        families = ", ".join(family.__name__ for family in _SYMMETRIC)
        raise ValueError(
            "`temperature` must be 1 for this base distribution, which has no location to scale deviations "
            f"from; got {temperature} for a {type(distribution).__name__}. Normal distributions, {families} "
            "and independent ones of these have one."
        )
    inner = _scaled(distribution.distribution, temperature)
    if "distribution" in distribution.parameters:
        return distribution.copy(distribution=inner)
    return tfd.TransformedDistribution(inner, distribution.bijector)
