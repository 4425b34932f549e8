"""Bijectors, one a file."""

from tfp_selfnorm.bijectors.leaky_relu import LeakyReLU
from tfp_selfnorm.bijectors.self_norm import SelfNorm
from tfp_selfnorm.bijectors.self_norm_dense import SelfNormDense
from tfp_selfnorm.bijectors.smooth_leaky_relu import SmoothLeakyReLU
from tfp_selfnorm.bijectors.spline import trainable_spline

__all__ = ["LeakyReLU", "SelfNorm", "SelfNormDense", "SmoothLeakyReLU", "trainable_spline"]
