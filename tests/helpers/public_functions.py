"""Each public function with arguments that it takes, for `test_arguments_sweep.py`."""

import functools

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from matplotlib.figure import Figure

import tfp_selfnorm as sn

tfb = tfp.bijectors
tfd = tfp.distributions

EYE = np.eye(2, dtype=np.float32)
KERNEL = np.zeros([3, 3, 1, 1], np.float32)
KERNEL[1, 1] = 1.0
EVENTS = np.zeros([20, 2], np.float32)
COLUMNS = sn.tables.prepare(
    {"a": [0.5, 1.5, 3.0], "b": [1.0, 2.0, 0.5], "c": [0.1, 0.2, 0.9]}, {"c": sn.tables.Periodic(1)}
)
SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)


def identity_network(a):
    return tf.concat([a, a], axis=-1)


def a_layer():
    return sn.SelfNormDense.trainable(2, seed=1)


def a_coupling():
    return sn.AffineCoupling(identity_network, num_conditioning=0, event_ndims=1)


def a_conditional_flow():
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), a_coupling())


def pair_of_networks():
    return sn.LearnedInverse(tf.identity, tf.identity, 2)


def flow_of_networks():
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), pair_of_networks())


@functools.cache
def a_conditional_model():
    return sn.ConditionalFlowModel(a_conditional_flow(), condition_shape=2)


def some_axes():
    return Figure().subplots()


def in_scope(inverse_learning=None, log_dets=None, seed=None, gradient_corrections=None):
    with sn.training_scope(inverse_learning, log_dets, seed, gradient_corrections):
        pass


def loss_in_scope(weight=None):
    layer = a_layer()
    with sn.training_scope(sn.Reconstruction()) as scope:
        layer.inverse(tf.ones([3, 2]))
        return scope.reconstruction_loss(weight)


def error_in_scope(num_examples=None):
    layer = a_layer()
    with sn.training_scope(sn.Reconstruction()) as scope:
        layer.inverse(tf.ones([3, 2]))
        return scope.reconstruction_error(num_examples)


def weights_of(weight):
    return sn.ReconstructionWeights(sn.Reconstruction(weight=weight), [a_layer()])


IMAGES = {"image_shape": (4, 4, 1), "num_blocks": 1}
PUBLIC = {
    "ActNorm": (sn.ActNorm, lambda: {"shift": [0.0, 0.0], "log_scale": [0.0, 0.0]}),
    "ActNorm.trainable": (sn.ActNorm.trainable, lambda: {"channels": 2}),
    "AdaptiveWeight": (sn.AdaptiveWeight, lambda: {"tolerance": 0.1}),
    "AffineCoupling": (sn.AffineCoupling, lambda: {"network": identity_network}),
    "Centering": (sn.Centering, lambda: {"mean": [0.0, 0.0]}),
    "Centering.trainable": (sn.Centering.trainable, lambda: {"event_shape": 2}),
    "ChannelSplit": (sn.ChannelSplit, lambda: {"bijector": tfb.Scale(2.0)}),
    "CircularSplineCoupling": (sn.CircularSplineCoupling, lambda: {"network": identity_network}),
    "Conditional": (sn.Conditional, lambda: {"bijector": a_coupling()}),
    "ConditionalFlowModel": (
        sn.ConditionalFlowModel,
        lambda: {"distribution": a_conditional_flow(), "condition_shape": 2},
    ),
    "ConvolutionExponential2D": (
        sn.baselines.ConvolutionExponential2D,
        lambda: {"kernel": KERNEL, "spatial_shape": (4, 4)},
    ),
    "ConvolutionExponential2D.trainable": (
        sn.baselines.ConvolutionExponential2D.trainable,
        lambda: {"spatial_shape": (4, 4), "channels": 2},
    ),
    "EmergingConv2D": (
        sn.baselines.EmergingConv2D,
        lambda: {"first_kernel": KERNEL, "second_kernel": KERNEL, "spatial_shape": (4, 4)},
    ),
    "EmergingConv2D.trainable": (
        sn.baselines.EmergingConv2D.trainable,
        lambda: {"spatial_shape": (4, 4), "channels": 2},
    ),
    "ExactLikelihood": (sn.callbacks.ExactLikelihood, lambda: {"x": EVENTS}),
    "FlowModel": (sn.FlowModel, lambda: {"distribution": tfd.Sample(tfd.Normal(0.0, 1.0), [2])}),
    "InverseQuality": (sn.callbacks.InverseQuality, dict),
    "LeakyReLU": (sn.LeakyReLU, dict),
    "LeakySquareplus": (sn.LeakySquareplus, dict),
    "LearnedInverse": (
        sn.LearnedInverse,
        lambda: {"encoder": tf.identity, "decoder": tf.identity, "event_shape": 2},
    ),
    "Reconstruction": (sn.Reconstruction, dict),
    "ReconstructionWeights": (
        sn.ReconstructionWeights,
        lambda: {"reconstruction": sn.Reconstruction(), "layers": [a_layer()]},
    ),
    "ReconstructionWeights.mean": (weights_of(SCHEDULE).mean, lambda: {"step": 1}),
    "ReconstructionWeights.read": (weights_of(SCHEDULE).read, lambda: {"step": 1}),
    "ReconstructionWeights.update": (weights_of(sn.AdaptiveWeight(0.1)).update, lambda: {"errors": {}}),
    "SampleGrid": (sn.callbacks.SampleGrid, lambda: {"filepath": "grid.png"}),
    "SelfNormConv1D": (
        sn.SelfNormConv1D,
        lambda: {"forward_kernel": KERNEL[1], "inverse_kernel": KERNEL[1], "spatial_shape": 4},
    ),
    "SelfNormConv1D.trainable": (sn.SelfNormConv1D.trainable, lambda: {"spatial_shape": 4, "channels": 2}),
    "SelfNormConv2D": (
        sn.SelfNormConv2D,
        lambda: {"forward_kernel": KERNEL, "inverse_kernel": KERNEL, "spatial_shape": (4, 4)},
    ),
    "SelfNormConv2D.trainable": (
        sn.SelfNormConv2D.trainable,
        lambda: {"spatial_shape": (4, 4), "channels": 2},
    ),
    "SelfNormDense": (sn.SelfNormDense, lambda: {"forward_kernel": EYE, "inverse_kernel": EYE}),
    "SelfNormDense.trainable": (sn.SelfNormDense.trainable, lambda: {"event_size": 2}),
    "SmoothLeakyReLU": (sn.SmoothLeakyReLU, dict),
    "SplineAutoregressive": (sn.SplineAutoregressive, lambda: {"network": identity_network}),
    "SplineCoupling": (sn.SplineCoupling, lambda: {"network": identity_network}),
    "Squeeze": (sn.Squeeze, dict),
    "Standardize": (sn.Standardize, lambda: {"mean": [0.0, 0.0], "deviation": [1.0, 1.0]}),
    "Standardize.trainable": (sn.Standardize.trainable, lambda: {"event_shape": 2}),
    "Tracking": (sn.Tracking, dict),
    "Tracking.follow": (sn.Tracking().follow, lambda: {"layers": [a_layer()], "step": 1}),
    "Tracking.measure": (sn.Tracking().measure, dict),
    "Tracking.refresh": (sn.Tracking().refresh, lambda: {"layers": [a_layer()], "step": 1}),
    "Tracking.refresh_interval": (sn.Tracking().refresh_interval, dict),
    "Tracking.regularizer": (sn.Tracking().regularizer, dict),
    "Tracking.tracks": (sn.Tracking().tracks, dict),
    "TrainingScope.reconstruction_error": (error_in_scope, dict),
    "TrainingScope.reconstruction_loss": (loss_in_scope, dict),
    "adapt": (sn.adapt, lambda: {"distribution": sn.dense_flow(2), "x": EVENTS}),
    "autoregressive_flow": (sn.autoregressive_flow, lambda: {"event_shape": 2, "num_layers": 1, "width": 4}),
    "autoregressive_network": (
        sn.autoregressive_network,
        lambda: {"event_size": 2, "num_outputs": 2, "width": 4},
    ),
    "bits_per_dim": (sn.images.bits_per_dim, lambda: {"log_prob": 1.0, "event_shape": 2}),
    "calibration": (
        sn.plot.calibration,
        lambda: {"samples": a_conditional_model(), "y": EVENTS, "x": EVENTS, "ax": some_axes()},
    ),
    "conv_flow": (sn.conv_flow, lambda: IMAGES | {"layers_per_block": 1}),
    "coupling_flow": (sn.coupling_flow, lambda: {"event_shape": 2, "num_layers": 1, "width": 4}),
    "coupling_network": (
        sn.coupling_network,
        lambda: {"input_shape": (4, 4, 1), "num_outputs": 2, "width": 4},
    ),
    "dense_flow": (sn.dense_flow, lambda: {"event_shape": 2}),
    "dense_network": (sn.dense_network, lambda: {"num_inputs": 1, "num_outputs": 2, "width": 4}),
    "density": (
        sn.plot.density,
        lambda: {"flow": tfd.Sample(tfd.Normal(0.0, 1.0), [2]), "limits": (0, 1), "ax": some_axes()},
    ),
    "dequantize": (sn.images.dequantize, lambda: {"images": [1, 2]}),
    "dequantize_dataset": (
        sn.images.dequantize_dataset,
        lambda: {"dataset": tf.data.Dataset.from_tensors(tf.zeros(3, tf.int32))},
    ),
    "estimate_log_det": (
        sn.estimate_log_det,
        lambda: {"layer": pair_of_networks(), "y": EVENTS, "num_steps": 1},
    ),
    "estimate_log_prob": (
        sn.estimate_log_prob,
        lambda: {"distribution": flow_of_networks(), "x": EVENTS, "num_steps": 1},
    ),
    "exact": (sn.exact, dict),
    "free_form_flow": (sn.free_form_flow, lambda: {"event_shape": 2, "width": 4}),
    "glow_flow": (sn.glow_flow, lambda: IMAGES | {"steps_per_block": 1, "width": 4}),
    "images": (sn.plot.images, lambda: {"x": np.zeros([2, 3, 3]), "ax": some_axes()}),
    "inverse_errors": (sn.plot.inverse_errors, lambda: {"model": sn.dense_flow(2), "ax": some_axes()}),
    "label_lines": (sn.plot.label_lines, lambda: {"ax": some_axes()}),
    "learning_curves": (sn.plot.learning_curves, lambda: {"history": {"nll": [1.0]}, "ax": some_axes()}),
    "marginals": (sn.plot.marginals, lambda: {"data": EVENTS, "figure": Figure()}),
    "inverse_error": (sn.inverse_error, lambda: {"layer": a_layer()}),
    "is_adapted": (sn.is_adapted, dict),
    "prepare": (sn.tables.prepare, lambda: {"table": {"a": [0.5, 1.5]}}),
    "pixel_sigmoid": (sn.images.pixel_sigmoid, dict),
    "ranks": (sn.plot.ranks, lambda: {"samples": np.zeros([3, 20, 2]), "y": EVENTS}),
    "samples": (sn.plot.samples, lambda: {"x": EVENTS, "ax": some_axes()}),
    "sbc_ranks": (sn.plot.sbc_ranks, lambda: {"ranks": [1, 2], "num_samples": 9, "ax": some_axes()}),
    "refresh_inverse": (sn.refresh_inverse, dict),
    "residual_network": (sn.residual_network, lambda: {"event_size": 2, "width": 4}),
    "self_norm_layers": (sn.self_norm_layers, dict),
    "sketch_and_project": (sn.sketch_and_project, lambda: {"layer": a_layer()}),
    "table_flow": (sn.tables.table_flow, lambda: {"columns": COLUMNS, "num_layers": 1, "width": 4}),
    "trainable_spline": (sn.trainable_spline, lambda: {"event_shape": 2}),
    "training_scope": (in_scope, dict),
    "whiten": (sn.whiten, lambda: {"distribution": sn.dense_flow(2), "x": EVENTS}),
}
