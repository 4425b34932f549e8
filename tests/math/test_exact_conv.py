"""Exact log-dets, gradients and solves of convolutions against the dense matrix, pixel by pixel in numpy."""

import dense_convolution as dense
import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm.baselines.math import autoregressive_conv
from tfp_selfnorm.math import conv, exact_conv

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
SIZES = [(1, 1), (3, 3), (5, 5), (3, 5), (7, 1), (1, 3)]
IMAGES = [(6, 5), (7, 7)]
# Smaller than the kernel, narrow, and with a last block that is cut.
SMALL = [
    ((3, 3), (1, 1)),
    ((5, 5), (2, 3)),
    ((7, 1), (2, 4)),
    ((3, 5), (4, 1)),
    ((5, 3), (7, 2)),
    ((5, 5), (5, 9)),
]


def check(kernel, spatial_shape, rng):
    matrix = dense.matrix(kernel, spatial_shape)
    tensor = tf.constant(kernel)
    value, expected = exact_conv.log_det(tensor, spatial_shape), np.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(value, expected, **TOLERANCE)
    gradient = exact_conv.log_det_gradient(tensor, spatial_shape)
    adjoint = np.linalg.inv(matrix).T
    np.testing.assert_allclose(
        gradient, dense.kernel_gradient(adjoint, kernel.shape, spatial_shape), **TOLERANCE
    )
    x = rng.normal(size=[3, *spatial_shape, kernel.shape[-1]])
    z = (x.reshape(3, -1) @ matrix.T).reshape(x.shape)
    np.testing.assert_allclose(conv.convolve(x, kernel), z, **TOLERANCE)
    np.testing.assert_allclose(exact_conv.solve(tensor, tf.constant(z)), x, **TOLERANCE)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("spatial_shape", IMAGES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_the_dense_matrix(sizes, spatial_shape, channels, rng):
    check(dense.random_kernel(rng, sizes, channels), spatial_shape, rng)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("sizes", "spatial_shape"), SMALL, ids=str)
def test_small_images(sizes, spatial_shape, rng):
    check(dense.random_kernel(rng, sizes, 2), spatial_shape, rng)


@pytest.mark.parametrize(("sizes", "spatial_shape"), [*SMALL, ((5, 5), (1, 1)), ((7, 3), (2, 3))], ids=str)
def test_blocks_are_no_larger_than_the_image(sizes, spatial_shape):
    """Larger ones would give the same, at the cost of their order cubed."""
    layout = exact_conv._layout(sizes, spatial_shape)
    system = exact_conv._blocks(tf.zeros([*sizes, 2, 2], tf.float64), layout)
    assert layout.copies * system.diagonal.shape[-1] <= 2 * np.prod(spatial_shape)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_mnist_size(sizes, rng):
    check(dense.random_kernel(rng, sizes, 1), (28, 28), rng)


@pytest.mark.usefixtures("uncompiled")
def test_a_kernel_without_its_centre(rng):
    """No pivot block is regular, and yet the matrix is."""
    kernel = np.zeros([3, 1, 2, 2])
    kernel[0, 0], kernel[2, 0] = np.eye(2) + 0.2 * rng.normal(size=[2, 2, 2])
    check(kernel, (6, 3), rng)
    with pytest.raises(ValueError, match="singular to working precision"):
        exact_conv.log_det(tf.constant(kernel), (7, 3))  # an odd number of lines has no such pairing


def test_derivatives_by_autodiff(rng):
    kernel = tf.constant(dense.random_kernel(rng, (3, 3), 2))
    z = tf.constant(rng.normal(size=[2, 4, 5, 2]))
    weights = rng.normal(size=[2, 4, 5, 2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([kernel, z])
        value = 3.0 * exact_conv.log_det(kernel, (4, 5))
        total = tf.reduce_sum(weights * conv.solve(kernel, z))
    step = 1e-6
    for function, found in (
        (lambda k: 3.0 * np.linalg.slogdet(dense.matrix(k, (4, 5)))[1], tape.gradient(value, kernel)),
        (lambda k: dense_total(k, z, weights), tape.gradient(total, kernel)),
    ):
        for element in [(0, 0, 0, 1), (1, 1, 1, 1), (2, 1, 0, 0), (1, 2, 1, 0)]:
            unit = np.zeros(kernel.shape)
            unit[element] = step
            slope = (function(kernel + unit) - function(kernel - unit)) / (2 * step)
            np.testing.assert_allclose(found[element], slope, rtol=1e-6, atol=1e-6)
    adjoint = np.linalg.solve(dense.matrix(kernel, (4, 5)).T, weights.reshape(2, -1).T).T
    np.testing.assert_allclose(tape.gradient(total, z), adjoint.reshape(z.shape), **TOLERANCE)


@pytest.mark.usefixtures("uncompiled")
def test_second_derivatives_are_refused_and_not_wrong(rng):
    kernel = tf.constant(dense.random_kernel(rng, (3, 3), 1))
    for function in (
        lambda: exact_conv.log_det(kernel, (4, 5)),
        lambda: conv.solve(kernel, tf.ones([1, 4, 5, 1], tf.float64)),
    ):
        with tf.GradientTape() as outer:
            outer.watch(kernel)
            with tf.GradientTape() as inner:
                inner.watch(kernel)
                value = function()
            gradient = inner.gradient(value, kernel)
        with pytest.raises(NotImplementedError, match="differentiable once"):
            outer.gradient(gradient, kernel)


def dense_total(kernel, z, weights):
    x = np.linalg.solve(dense.matrix(kernel, z.shape[1:3]), np.reshape(z, [len(z), -1]).T).T
    return np.sum(weights * x.reshape(z.shape))


@pytest.mark.usefixtures("uncompiled")
def test_a_batch_of_kernels(rng):
    kernels = np.stack([[dense.random_kernel(rng, (3, 3), 2) for _ in range(2)] for _ in range(3)])
    values = exact_conv.log_det(tf.constant(kernels), (4, 5))
    gradients = exact_conv.log_det_gradient(tf.constant(kernels), (4, 5))
    assert values.shape == (3, 2)
    for index in np.ndindex(3, 2):
        matrix = dense.matrix(kernels[index], (4, 5))
        np.testing.assert_allclose(values[index], np.linalg.slogdet(matrix)[1], **TOLERANCE)
        expected = dense.kernel_gradient(np.linalg.inv(matrix).T, kernels.shape[2:], (4, 5))
        np.testing.assert_allclose(gradients[index], expected, **TOLERANCE)


@pytest.mark.usefixtures("uncompiled")
def test_float32_is_computed_in_float64(rng):
    kernel = dense.random_kernel(rng, (3, 3), 1).astype(np.float32)
    value = exact_conv.log_det(tf.constant(kernel), (28, 28))
    assert value.dtype == tf.float32
    exact = np.linalg.slogdet(dense.matrix(kernel.astype(np.float64), (28, 28)))[1]
    np.testing.assert_allclose(value, exact, rtol=2e-7)
    assert exact_conv.log_det_gradient(tf.constant(kernel), (28, 28)).dtype == tf.float32
    assert exact_conv.solve(tf.constant(kernel), tf.ones([1, 28, 28, 1])).dtype == tf.float32


def singular_kernels():
    zero_channel = np.zeros([3, 3, 2, 2])
    zero_channel[..., 0] = 0.5
    shift = np.zeros([3, 3, 1, 1])
    shift[0, 1] = 1.0
    # 1 + 3000 t: regular in exact arithmetic, and its inverse grows like 3000^4 over five pixels.
    growing = np.zeros([3, 3, 1, 1])
    growing[1, :, 0, 0] = [0.0, 1.0, 3000.0]
    return {"zero channel": zero_channel, "shift": shift, "growing": growing}


@pytest.mark.parametrize("kernel", singular_kernels().values(), ids=singular_kernels().keys())
def test_singular_to_working_precision_is_reported(kernel):
    tensor, message = tf.constant(kernel), "convolution with `my kernel` is singular to working precision"
    z = tf.ones([1, 5, 5, kernel.shape[-1]], tf.float64)
    calls = (
        lambda: exact_conv.log_det(tensor, (5, 5), "my kernel"),
        lambda: exact_conv.log_det_gradient(tensor, (5, 5), "my kernel"),
        lambda: exact_conv.solve(tensor, z, "my kernel"),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            tf.function(call)()
    assert np.isnan(tf.function(calls[0], jit_compile=True)())


def test_nan_is_reported():
    with pytest.raises(ValueError, match="singular to working precision.*inf"):
        exact_conv.log_det(tf.fill([3, 3, 1, 1], np.nan), (4, 4))


@pytest.mark.parametrize("error", [np.nan, np.inf, 1e-5])
def test_an_error_that_is_not_small_is_reported(error):
    with pytest.raises(ValueError, match="singular to working precision"):
        exact_conv.checked(tf.ones([]), tf.constant(error, tf.float64), "kernel")


def test_a_substitution_with_nan_is_reported():
    kernel = tf.fill([3, 3, 1, 1], tf.constant(np.nan, tf.float64))
    with pytest.raises(ValueError, match="singular to working precision.*nan"):
        autoregressive_conv.solve(kernel, tf.ones([1, 4, 4, 1], tf.float64))


class Exported(tf.Module):
    def __init__(self, kernel):
        self.kernel = tf.Variable(kernel)

    @tf.function(input_signature=[tf.TensorSpec([None, 6, 5, 2], tf.float64)])
    def compute(self, z):
        return exact_conv.log_det(self.kernel, (6, 5)), conv.solve(self.kernel, z)


def test_inside_a_saved_model(tmp_path, rng):
    kernel = dense.random_kernel(rng, (3, 3), 2)
    tf.saved_model.save(Exported(kernel), tmp_path / "model")
    loaded = tf.saved_model.load(tmp_path / "model")
    matrix = dense.matrix(kernel, (6, 5))
    for count in (1, 4):
        x = rng.normal(size=[count, 6, 5, 2])
        value, found = loaded.compute((x.reshape(count, -1) @ matrix.T).reshape(x.shape))
        np.testing.assert_allclose(value, np.linalg.slogdet(matrix)[1], **TOLERANCE)
        np.testing.assert_allclose(found, x, **TOLERANCE)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (5, 5), (3, 5), (7, 1)], ids=str)
@pytest.mark.parametrize("spatial_shape", [(6, 5), (7, 7), (2, 1)], ids=str)
def test_multiplicity_counts_the_places_of_an_element(sizes, spatial_shape):
    counts = conv.multiplicity(sizes, spatial_shape)
    for element in np.ndindex(*sizes):
        unit = np.zeros([*sizes, 1, 1])
        unit[element] = 1.0
        assert counts[element] == np.count_nonzero(dense.matrix(unit, spatial_shape))
