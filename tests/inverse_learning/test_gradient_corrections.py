"""The held error of the circulant gradient: in a scope, and between the steps of a `FlowModel`."""

import dense_convolution as dense
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.math import circulant_conv, conv

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE, CHANNELS = (5, 4), 2


def make_layer(kernel, gradient="circulant", **options):
    """The layer of a kernel, whose learned inverse is some other kernel."""
    variables = tf.Variable(0.3 * conv.flip(tf.constant(kernel))), tf.Variable(kernel)
    return sn.SelfNormConv2D(*variables, SHAPE, gradient=gradient, **options)


def exact_gradient(kernel):
    inverse = np.linalg.inv(dense.matrix(kernel, SHAPE))
    return dense.kernel_gradient(inverse.T, kernel.shape, SHAPE)


def circulant_gradient(kernel):
    counts = conv.multiplicity(kernel.shape[:2], SHAPE)[..., np.newaxis, np.newaxis]
    return counts * circulant_conv.mean_log_det_gradient(tf.constant(kernel), SHAPE).numpy()


def log_det_gradient(layer, method, **scope):
    """By the kernel W, inside a scope."""
    with tf.GradientTape() as tape, sn.training_scope(None, **scope):
        log_det = tf.reduce_sum(getattr(layer, method)(tf.zeros([3, *SHAPE, CHANNELS], tf.float64)))
    return tape.gradient(log_det, layer.inverse_kernel)


@pytest.fixture
def kernel(rng):
    return dense.random_kernel(rng, (3, 3), CHANNELS)


@pytest.mark.parametrize(
    ("method", "sign"), [("inverse_log_det_jacobian", 1.0), ("forward_log_det_jacobian", -1.0)]
)
def test_with_its_correction_the_gradient_is_exact(method, sign, kernel):
    layer = make_layer(kernel)
    corrected = log_det_gradient(layer, method, gradient_corrections={layer: layer.gradient_correction()})
    expected = sign * exact_gradient(kernel)
    np.testing.assert_allclose(corrected, expected, rtol=1e-9, atol=1e-9)
    assert np.linalg.norm(log_det_gradient(layer, method) - expected) > 0.01 * np.linalg.norm(expected)


def test_a_stale_correction_is_added_to_the_gradient_of_the_present_weights(kernel, rng):
    layer = make_layer(kernel)
    stale = layer.gradient_correction()
    np.testing.assert_allclose(
        stale, exact_gradient(kernel) - circulant_gradient(kernel), rtol=1e-8, atol=1e-8
    )
    moved = kernel + 0.05 * rng.normal(size=kernel.shape)
    layer.inverse_kernel.assign(moved)
    found = log_det_gradient(layer, "inverse_log_det_jacobian", gradient_corrections={layer: stale})
    expected = circulant_gradient(moved) + exact_gradient(kernel) - circulant_gradient(kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_the_map_of_the_learned_inverse_has_no_correction(kernel):
    """The correction belongs to W, and this log-det to R."""
    layer = make_layer(kernel, inversion="learned")
    with (
        tf.GradientTape(persistent=True) as tape,
        sn.training_scope(None, gradient_corrections={layer: layer.gradient_correction()}),
    ):
        log_det = tf.reduce_sum(layer.forward_log_det_jacobian(tf.zeros([3, *SHAPE, CHANNELS], tf.float64)))
    assert tape.gradient(log_det, layer.inverse_kernel) is None
    np.testing.assert_allclose(
        tape.gradient(log_det, layer.forward_kernel),
        circulant_gradient(layer.forward_kernel.numpy()),
        rtol=1e-8,
    )


@pytest.mark.parametrize("compiled", [{"run_eagerly": True}, {}, {"jit_compile": True}], ids=str)
def test_fit_adds_a_running_mean_of_the_corrections_at_the_refreshes(compiled, kernel, rng):
    """Three steps of gradient descent, computed apart: refreshed before the first and before the third."""
    kernel, rate = kernel.astype(np.float32), 1e-3
    layer = make_layer(kernel)
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [*SHAPE, CHANNELS]), layer)
    model = sn.FlowModel(flow, sn.Tracking(refresh_every=2))
    model.compile(keras.optimizers.SGD(rate), **compiled)
    x = rng.normal(size=[10, *SHAPE, CHANNELS]).astype(np.float32)
    expected, mean = np.float64(kernel), 0.0
    for step in range(3):
        if step % 2 == 0:
            correction = exact_gradient(expected) - circulant_gradient(expected)
            mean = 0.9 * mean + 0.1 * correction
        matrix = dense.matrix(expected, SHAPE)
        rows = np.float64(x).reshape([len(x), -1])
        d_matrix = matrix @ rows.T @ rows / len(x)
        of_base = dense.kernel_gradient(d_matrix, kernel.shape, SHAPE)
        expected = expected - rate * (of_base - circulant_gradient(expected) - mean)
        model.train_on_batch(x)
    moved = np.abs(expected - kernel)
    assert moved.max() > 0.01
    np.testing.assert_allclose(layer.inverse_kernel, expected, atol=1e-5 * moved.max() + 1e-6)


def test_the_correction_follows_weights_that_are_set_between_two_fits(kernel, rng):
    layer = make_layer(kernel.astype(np.float32))
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [*SHAPE, CHANNELS]), layer)
    model = sn.FlowModel(flow, sn.Tracking(refresh_every=1000))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    x = rng.normal(size=[10, *SHAPE, CHANNELS]).astype(np.float32)
    model.train_on_batch(x)
    layer.inverse_kernel.assign_add(0.05 * rng.normal(size=kernel.shape).astype(np.float32))
    model.log_prob(x)
    model.train_on_batch(x)
    held = next(v for name, v in model.named_variables.items() if "correction" in name)
    moved = np.float64(layer.inverse_kernel)
    np.testing.assert_allclose(held, exact_gradient(moved) - circulant_gradient(moved), atol=1e-4)


@pytest.mark.parametrize("gradient", ["self_norm", "exact"])
def test_a_layer_without_a_correction_is_refused(gradient, kernel):
    layer = make_layer(kernel, gradient)
    with (
        pytest.raises(
            ValueError, match=f"`gradient_corrections` must be .*got `self_norm_conv2d` with '{gradient}'"
        ),
        sn.training_scope(None, gradient_corrections={layer: tf.zeros(kernel.shape)}),
    ):
        pass
    assert not sn.SelfNormConv2D.trainable((4, 4), 2, 1, gradient="circulant").has_gradient_correction
