"""Self-normalizing flows for TensorFlow Probability and Keras."""

from tfp_selfnorm import baselines, bijectors, callbacks, flows, images
from tfp_selfnorm.adaptation import adapt, is_adapted
from tfp_selfnorm.bijectors import (
    ActNorm,
    AffineCoupling,
    ChannelSplit,
    LeakyReLU,
    SelfNormConv1D,
    SelfNormConv2D,
    SelfNormDense,
    SmoothLeakyReLU,
    Squeeze,
    trainable_spline,
)
from tfp_selfnorm.flow_model import FlowModel
from tfp_selfnorm.flows import conv_flow, dense_flow, glow_flow
from tfp_selfnorm.networks import coupling_network
from tfp_selfnorm.reconstruction import Reconstruction
from tfp_selfnorm.reconstruction_weight import AdaptiveWeight, ReconstructionWeights
from tfp_selfnorm.tracking import Tracking, inverse_error, refresh_inverse, sketch_and_project
from tfp_selfnorm.training_scope import training_scope
from tfp_selfnorm.tree import exact, self_norm_layers
from tfp_selfnorm.whitening import whiten

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "AdaptiveWeight",
    "AffineCoupling",
    "ChannelSplit",
    "FlowModel",
    "LeakyReLU",
    "Reconstruction",
    "ReconstructionWeights",
    "SelfNormConv1D",
    "SelfNormConv2D",
    "SelfNormDense",
    "SmoothLeakyReLU",
    "Squeeze",
    "Tracking",
    "adapt",
    "baselines",
    "bijectors",
    "callbacks",
    "conv_flow",
    "coupling_network",
    "dense_flow",
    "exact",
    "flows",
    "glow_flow",
    "images",
    "inverse_error",
    "is_adapted",
    "refresh_inverse",
    "self_norm_layers",
    "sketch_and_project",
    "trainable_spline",
    "training_scope",
    "whiten",
]
