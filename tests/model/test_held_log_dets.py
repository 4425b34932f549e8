"""The log-dets that are held between refreshes: exact, of each layer, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn
from tfp_selfnorm.inverse_learning.base import InverseLearning, as_inverse_learning
from tfp_selfnorm.model.refresh import Refresh


@pytest.fixture
def layers(rng):
    """Layers of one name; the second has a batch of kernels."""
    kernels = np.eye(3) + 0.3 * rng.normal(size=[3, 3]), np.eye(3) + 0.3 * rng.normal(size=[2, 3, 3])
    return [sn.SelfNormDense(tf.Variable(kernel), tf.Variable(kernel)) for kernel in kernels]


def exact(layer):
    return np.linalg.slogdet(layer.inverse_kernel.numpy())[1]


def test_each_layer_has_its_own_in_its_dtype_and_shape(layers):
    held = Refresh(layers, as_inverse_learning(None), keras.Model().add_weight, None)
    held.before_evaluation()
    log_dets = held.read(is_training=True)["log_dets"]
    assert len(log_dets) == 2
    for layer in layers:
        np.testing.assert_allclose(log_dets[layer], exact(layer), rtol=1e-12)


def test_only_what_is_due_is_refreshed(layers):
    class SecondIsDue(InverseLearning):
        def refresh_interval(self, layer):
            return 7 if layer is layers[1] else 8

    held = Refresh(layers, SecondIsDue(), keras.Model().add_weight, None)
    held.before_steps(tf.Variable(7), 1)
    np.testing.assert_array_equal(held.read(is_training=True)["log_dets"][layers[0]], 0.0)
    np.testing.assert_allclose(
        held.read(is_training=True)["log_dets"][layers[1]], exact(layers[1]), rtol=1e-12
    )


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_one_bad_kernel_of_a_batch_is_reported_and_held_nowhere(layers, bad):
    held = Refresh(layers, as_inverse_learning(None), keras.Model().add_weight, None)
    held.before_evaluation()
    before = held.read(is_training=True)["log_dets"][layers[1]].numpy()
    layers[1].inverse_kernel[1].assign(np.full([3, 3], bad))
    with pytest.raises(ValueError, match="of `self_norm_dense` is .* singular or not finite"):
        held.before_evaluation()
    np.testing.assert_array_equal(held.read(is_training=True)["log_dets"][layers[1]], before)
