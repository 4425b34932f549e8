"""Sentences that another test holds in part: the other methods, dtypes, kinds and replicas."""

import dataclasses
import runpy
import sys

import numpy as np
import pytest
import tensorflow as tf
from presets import PRESETS, overridden

import tfp_selfnorm as sn
from tfp_selfnorm.baselines import ConvolutionExponential2D, EmergingConv2D

METHODS = ("forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian")


@pytest.mark.parametrize("method", METHODS)
def test_an_act_norm_without_initial_values_refuses_every_call(method):
    call = getattr(sn.ActNorm.trainable(2), method)
    with pytest.raises(ValueError, match="no initial values yet"):
        call(tf.ones([3, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="no initial values yet"):
        tf.function(call)(tf.ones([3, 2]))
    assert np.isnan(tf.function(call, jit_compile=True)(tf.ones([3, 2]))).all()


@pytest.mark.parametrize("shape", [(2, 8, 1), (4, 4, 2)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", [EmergingConv2D, ConvolutionExponential2D])
def test_baselines_refuse_images_of_another_shape_in_every_method(layer, method, shape):
    with pytest.raises(ValueError, match="has shape"):
        getattr(layer.trainable((4, 4), 1), method)(tf.ones(shape))


@pytest.mark.parametrize("alpha", [1.0, 0.3, 1e-3, 1e-30, 1e-300])
def test_smooth_leaky_relu_inverts_any_float64(alpha):
    magnitudes = np.concatenate([[0.0], np.geomspace(1e-305, 1e307, 400)])
    y = np.concatenate([-magnitudes, magnitudes])
    with np.errstate(over="ignore"):
        # Left of it x is beyond the largest float.
        y = y[(y >= 0.0) | (np.abs(y / alpha) < 1e307)]
    x = sn.SmoothLeakyReLU(tf.constant(alpha, tf.float64)).inverse(tf.constant(y)).numpy()
    softplus = np.logaddexp(0.0, x)
    with np.errstate(over="ignore"):
        slope = alpha + (1.0 - alpha) / (1.0 + np.exp(-x))
    error = np.abs(alpha * x + (1.0 - alpha) * softplus - y)
    assert (error <= 2.0**-48 * (np.abs(y) + np.abs(x) * slope) + 1e-307).all()


@pytest.mark.parametrize("kind", ["data", "symmetric", "inverse_only", "probes"])
def test_the_regularizer_of_a_convolution_trains_nothing_before_it(kind, rng):
    layer = sn.SelfNormConv2D.trainable((4, 4), 2, dtype=tf.float64, seed=1)
    layer.forward_kernel.assign_add(0.1 * rng.normal(size=layer.forward_kernel.shape))
    y = tf.constant(rng.normal(size=[3, 4, 4, 2]))
    with tf.GradientTape() as tape, sn.training_scope(sn.Reconstruction(kind)) as scope:
        tape.watch(y)
        layer.inverse(tf.identity(y))
        loss = scope.reconstruction_loss()
    to_y, to_kernel = tape.gradient(loss, [y, layer.forward_kernel], unconnected_gradients="zero")
    np.testing.assert_array_equal(to_y, np.zeros(y.shape))
    assert np.abs(to_kernel).max() > 1e-3


def test_a_float32_emerging_convolution_substitutes_in_float64(rng):
    """Its rounding is that of the result, not that of sixteen steps in float32."""
    kernels = [
        0.5 * rng.normal(size=[3, 3, 2, 2]) + np.eye(2) * np.eye(3)[1][:, None, None, None] for _ in "12"
    ]
    kernels = [kernel.astype(np.float32) for kernel in kernels]
    x = rng.normal(size=[2, 4, 4, 2]).astype(np.float32)
    single = EmergingConv2D(*kernels, (4, 4)).forward(x)
    double = EmergingConv2D(*(kernel.astype(np.float64) for kernel in kernels), (4, 4)).forward(
        x.astype(np.float64)
    )
    np.testing.assert_allclose(single, double, rtol=2.0**-23, atol=1e-30)


def test_every_preset_is_printed_and_every_part_of_one_can_be_changed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["presets.py"])
    runpy.run_module("presets", run_name="__main__")
    printed = capsys.readouterr().out
    assert not [name for name in PRESETS if name not in printed]
    preset = next(iter(PRESETS.values()))
    for field in dataclasses.fields(preset):
        value = getattr(preset, field.name)
        assert getattr(overridden(preset, {field.name: value}), field.name) == value
