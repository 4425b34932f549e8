"""The held error of the circulant gradient: in a scope, and between the steps of a `FlowModel`."""

import warnings

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
@pytest.mark.parametrize(
    ("rate", "spread", "expected_steps", "expected_exact"),
    [
        (1e-6, 1.0, [0, 8, 16], 8),
        (3e-4, 1.0, [0, 8, 16, 24], 8),
        (2e-3, 1.0, [0, 8, 16, 24], 16),
        (3e-4, 1.5, [0, 8, 16, 24], 26),
    ],
    ids=["slow", "fast", "moving", "far"],
)
def test_fit_adds_the_last_error_while_the_approximation_changes_little(
    rate, spread, expected_steps, expected_exact, compiled, kernel, rng
):
    """Some steps of gradient descent, computed apart. The error of a wider kernel changes fast."""
    centre = kernel[1, 1].copy()
    kernel = (spread * kernel).astype(np.float32)
    kernel[1, 1] = centre
    layer = make_layer(kernel)
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [*SHAPE, CHANNELS]), layer)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(rate), **compiled)
    x = rng.normal(size=[10, *SHAPE, CHANNELS]).astype(np.float32)
    rows = np.float64(x).reshape([len(x), -1])
    expected, error, interval = np.float64(kernel), np.zeros(kernel.shape), 8
    steps, num_exact = [], 0
    for step in range(26):
        of_log_det, approximation = exact_gradient(expected), circulant_gradient(expected)
        if step % interval == 0:
            new = of_log_det - approximation
            change = np.linalg.norm(new - error) / np.linalg.norm(of_log_det)
            error, old = new, approximation
            is_steady = change <= 0.05
            interval = 8 if change > 0.01 else interval if change >= 0.0025 else min(2 * interval, 64)
            steps.append(step)
        size = np.linalg.norm(old + error)
        if is_steady and np.linalg.norm(approximation - old) <= 0.1 * size:
            of_log_det = approximation + error
        else:
            num_exact += 1
        d_matrix = dense.matrix(expected, SHAPE) @ rows.T @ rows / len(x)
        of_base = dense.kernel_gradient(d_matrix, kernel.shape, SHAPE)
        expected = expected - rate * (of_base - of_log_det)
        model.train_on_batch(x)
    assert (steps, num_exact) == (expected_steps, expected_exact)
    moved = np.linalg.norm(expected - kernel)
    assert moved > 5e-5
    np.testing.assert_allclose(layer.inverse_kernel, expected, atol=3e-3 * moved)


def between_fits(model, change, x):
    model.train_on_batch(x)
    change(model)
    model.log_prob(x)
    model.train_on_batch(x)


def in_a_callback(model, change, x):
    class Changes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                change(model)

    model.fit(x, batch_size=2, callbacks=[Changes()], verbose=0)


def model_of(kernel, gradient="circulant"):
    layer = make_layer(kernel.astype(np.float32), gradient)
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [*SHAPE, CHANNELS]), layer)
    model = sn.FlowModel(flow, sn.Tracking(refresh_every=1000))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    return model


@pytest.mark.parametrize("route", ["assign", "set_weights", "whole file", "file without corrections"])
@pytest.mark.parametrize("when", [between_fits, in_a_callback])
def test_the_correction_is_that_of_weights_that_other_code_sets(when, route, kernel, rng, tmp_path):
    x = rng.normal(size=[10, *SHAPE, CHANNELS]).astype(np.float32)
    moved = 1.5 * kernel
    model, other = (
        model_of(kernel),
        model_of(moved, "circulant" if route != "file without corrections" else "exact"),
    )
    other.train_on_batch(x)
    other.save_weights(tmp_path / "other.weights.h5")
    changes = {
        "assign": lambda m: m.distribution.bijector.inverse_kernel.assign(moved),
        "set_weights": lambda m: m.set_weights(other.get_weights()),
        "whole file": lambda m: m.load_weights(tmp_path / "other.weights.h5"),
        "file without corrections": lambda m: m.load_weights(
            tmp_path / "other.weights.h5", skip_mismatch=True
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        when(model, changes[route], x)
    held = next(v for name, v in model.named_variables.items() if "gradient_error" in name)
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


@pytest.mark.parametrize("value", [None, "a", tf.zeros([1]), np.zeros([3, 3, 2, 1])])
def test_a_correction_of_another_shape_is_refused(value, kernel):
    layer = make_layer(kernel, "circulant")
    with (
        pytest.raises(
            ValueError, match="`gradient_corrections` must have the shape of the kernel of `self_n"
        ),
        sn.training_scope(None, gradient_corrections={layer: value}),
    ):
        pass
