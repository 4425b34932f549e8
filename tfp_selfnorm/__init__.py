"""Self-normalizing flows for TensorFlow Probability and Keras."""

from tfp_selfnorm import bijectors, flows, images
from tfp_selfnorm.bijectors import LeakyReLU, SelfNormDense, SmoothLeakyReLU, trainable_spline
from tfp_selfnorm.flow_model import FlowModel
from tfp_selfnorm.flows import dense_flow
from tfp_selfnorm.reconstruction import Reconstruction
from tfp_selfnorm.tracking import Tracking, inverse_error, refresh_inverse, sketch_and_project
from tfp_selfnorm.training_scope import training_scope
from tfp_selfnorm.tree import exact, self_norm_layers

__version__ = "0.1.0"

__all__ = [
    "FlowModel",
    "LeakyReLU",
    "Reconstruction",
    "SelfNormDense",
    "SmoothLeakyReLU",
    "Tracking",
    "bijectors",
    "dense_flow",
    "exact",
    "flows",
    "images",
    "inverse_error",
    "refresh_inverse",
    "self_norm_layers",
    "sketch_and_project",
    "trainable_spline",
    "training_scope",
]
