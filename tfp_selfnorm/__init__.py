"""Self-normalizing flows for TensorFlow Probability and Keras.

Words of the documentation:

W: the kernel that maps data to latent, `inverse_kernel` of a layer.
R: the kernel that maps latent to data, `forward_kernel` of a layer: the learned inverse. Training keeps R
    close to the inverse of W.
event: one example of a distribution, for example one image.
pass: one call of `inverse` or `forward` of a layer.
scope: a `training_scope`. Inside it a log-det has a held value, and the gradient that the layer names.
    Outside it the values and gradients are exact.
held log-det: the value of `log |det W|`, in nats, that a scope uses. It was computed some steps before.
refresh: an exact computation of a held log-det, or of R as the inverse of W.
"""

from tfp_selfnorm import baselines, bijectors, callbacks, flows, images, plot, tables
from tfp_selfnorm.bijectors import (
    ActNorm,
    AffineCoupling,
    Centering,
    ChannelSplit,
    CircularSplineCoupling,
    Conditional,
    LeakyReLU,
    LeakySquareplus,
    LearnedInverse,
    SelfNormConv1D,
    SelfNormConv2D,
    SelfNormDense,
    SmoothLeakyReLU,
    SplineAutoregressive,
    SplineCoupling,
    Squeeze,
    Standardize,
    trainable_spline,
)
from tfp_selfnorm.flows import (
    autoregressive_flow,
    conv_flow,
    coupling_flow,
    dense_flow,
    free_form_flow,
    glow_flow,
)
from tfp_selfnorm.flows.autoregressive_network import autoregressive_network
from tfp_selfnorm.flows.networks import coupling_network, dense_network, residual_network
from tfp_selfnorm.initialization import adapt, is_adapted, whiten
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.reconstruction_weight import AdaptiveWeight, ReconstructionWeights
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.inverse_learning.tracking import (
    Tracking,
    inverse_error,
    refresh_inverse,
    sketch_and_project,
)
from tfp_selfnorm.model.conditional_model import ConditionalFlowModel
from tfp_selfnorm.model.flow_model import FlowModel
from tfp_selfnorm.structure.estimates import estimate_log_det, estimate_log_prob
from tfp_selfnorm.structure.layers import exact, self_norm_layers

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "AdaptiveWeight",
    "AffineCoupling",
    "Centering",
    "ChannelSplit",
    "CircularSplineCoupling",
    "Conditional",
    "ConditionalFlowModel",
    "FlowModel",
    "LeakyReLU",
    "LeakySquareplus",
    "LearnedInverse",
    "Reconstruction",
    "ReconstructionWeights",
    "SelfNormConv1D",
    "SelfNormConv2D",
    "SelfNormDense",
    "SmoothLeakyReLU",
    "SplineAutoregressive",
    "SplineCoupling",
    "Squeeze",
    "Standardize",
    "Tracking",
    "adapt",
    "autoregressive_flow",
    "autoregressive_network",
    "baselines",
    "bijectors",
    "callbacks",
    "conv_flow",
    "coupling_flow",
    "coupling_network",
    "dense_flow",
    "dense_network",
    "estimate_log_det",
    "estimate_log_prob",
    "exact",
    "flows",
    "free_form_flow",
    "glow_flow",
    "images",
    "inverse_error",
    "is_adapted",
    "plot",
    "refresh_inverse",
    "residual_network",
    "self_norm_layers",
    "sketch_and_project",
    "tables",
    "trainable_spline",
    "training_scope",
    "whiten",
]
