"""Bijectors, one a file."""

from tfp_selfnorm.bijectors.act_norm import ActNorm
from tfp_selfnorm.bijectors.affine_coupling import AffineCoupling
from tfp_selfnorm.bijectors.centering import Centering
from tfp_selfnorm.bijectors.channel_split import ChannelSplit
from tfp_selfnorm.bijectors.circular_spline_coupling import CircularSplineCoupling
from tfp_selfnorm.bijectors.conditional import Conditional
from tfp_selfnorm.bijectors.leaky_relu import LeakyReLU
from tfp_selfnorm.bijectors.leaky_squareplus import LeakySquareplus
from tfp_selfnorm.bijectors.learned_inverse import LearnedInverse
from tfp_selfnorm.bijectors.self_norm import SelfNorm
from tfp_selfnorm.bijectors.self_norm_conv import SelfNormConv1D, SelfNormConv2D
from tfp_selfnorm.bijectors.self_norm_dense import SelfNormDense
from tfp_selfnorm.bijectors.self_normalizing import SelfNormalizing
from tfp_selfnorm.bijectors.smooth_leaky_relu import SmoothLeakyReLU
from tfp_selfnorm.bijectors.spline import trainable_spline
from tfp_selfnorm.bijectors.spline_autoregressive import SplineAutoregressive
from tfp_selfnorm.bijectors.spline_coupling import SplineCoupling
from tfp_selfnorm.bijectors.squeeze import Squeeze
from tfp_selfnorm.bijectors.standardize import Standardize

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Centering",
    "ChannelSplit",
    "CircularSplineCoupling",
    "Conditional",
    "LeakyReLU",
    "LeakySquareplus",
    "LearnedInverse",
    "SelfNorm",
    "SelfNormConv1D",
    "SelfNormConv2D",
    "SelfNormDense",
    "SelfNormalizing",
    "SmoothLeakyReLU",
    "SplineAutoregressive",
    "SplineCoupling",
    "Squeeze",
    "Standardize",
    "trainable_spline",
]
