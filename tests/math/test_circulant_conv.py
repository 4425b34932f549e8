"""The gradient on the torus against the inverse of its dense matrix, pixel by pixel in numpy."""

import dense_convolution as dense
import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm.math import circulant_conv, conv, exact_conv

CASES = [
    ((3, 3), (4, 5), 2),
    ((3, 3), (1, 4), 2),
    ((5, 3), (3, 2), 1),
    ((1, 3), (4, 4), 3),
    ((7, 1), (2, 3), 2),
    ((1, 1), (3, 2), 3),
]


@pytest.mark.parametrize(("sizes", "spatial_shape", "channels"), CASES)
def test_against_the_dense_matrix_of_the_torus(sizes, spatial_shape, channels, rng):
    kernel = dense.random_kernel(rng, sizes, channels)
    found = circulant_conv.mean_log_det_gradient(tf.constant(kernel), spatial_shape)
    # The damping is 1e-8 of the mean squared singular value.
    np.testing.assert_allclose(found, dense.torus_gradient(kernel, spatial_shape), rtol=1e-6, atol=1e-6)


def test_a_convolution_of_one_pixel_has_the_exact_gradient(rng):
    kernel = dense.random_kernel(rng, (1, 1), 4)
    found = circulant_conv.mean_log_det_gradient(tf.constant(kernel), (5, 7))
    np.testing.assert_allclose(found[0, 0], np.linalg.inv(kernel[0, 0]).T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smallest", [1e-3, 1e-5, 1e-9])
def test_near_a_singular_kernel_of_one_pixel_a_layer_takes_the_exact_gradient(smallest):
    """The damping would take a third of it at 1e-4, and nearly all at 1e-5."""
    kernel = tf.constant(np.diag([1.0, smallest])[np.newaxis, np.newaxis])
    found = conv.ConvMap((1, 1), (4, 5)).log_det_gradients["circulant"](kernel)
    np.testing.assert_allclose(found[0, 0], np.diag([20.0, 20.0 / smallest]), rtol=1e-12)


@pytest.mark.parametrize(("sizes", "channels"), [((3, 3), 1), ((3, 3), 3), ((5, 3), 2)])
def test_it_is_close_to_the_exact_gradient_far_from_singular_kernels(sizes, channels, rng):
    kernel = tf.constant(dense.random_kernel(rng, sizes, channels, noise=0.2))
    counts = conv.multiplicity(sizes, (20, 24))[..., np.newaxis, np.newaxis]
    found = counts * circulant_conv.mean_log_det_gradient(kernel, (20, 24))
    exact = exact_conv.log_det_gradient(kernel, (20, 24))
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_singular_symbols_give_finite_gradients(scale, dtype):
    """The mean of the neighbours: its symbol is 0 at some frequencies, in each block and in all."""
    kernel = np.zeros([3, 3, 2, 2])
    kernel[1, [0, 2]] = 0.5 * np.eye(2)
    for value in (kernel, np.zeros([3, 3, 2, 2]), np.ones([3, 3, 2, 2])):
        found = circulant_conv.mean_log_det_gradient(tf.constant(scale * value, dtype), (4, 6))
        assert found.dtype == dtype
        assert np.isfinite(found).all()
        root_mean_square = np.sqrt(scale**2 * np.square(value).sum() / 2.0)
        if root_mean_square > 0.0:
            # Of s / (s^2 + e) the largest value is 1 / (2 sqrt(e)).
            assert np.abs(found).max() * root_mean_square < 1e4


def test_a_kernel_that_is_not_finite_gives_nan():
    kernel = np.ones([3, 3, 2, 2])
    kernel[0, 0, 0, 0] = np.nan
    assert np.isnan(circulant_conv.mean_log_det_gradient(tf.constant(kernel), (4, 4))).any()


def test_compiled_by_xla_it_is_the_same(rng):
    kernel = tf.constant(dense.random_kernel(rng, (3, 3), 3))
    eager = circulant_conv.mean_log_det_gradient(kernel, (6, 5))
    compiled = tf.function(
        lambda kernel: circulant_conv.mean_log_det_gradient(kernel, (6, 5)), jit_compile=True
    )
    np.testing.assert_allclose(compiled(kernel), eager, rtol=1e-9, atol=1e-12)


def test_large_images_have_a_torus_of_sixteen(rng):
    kernel = dense.random_kernel(rng, (3, 1), 2)
    found = circulant_conv.mean_log_det_gradient(tf.constant(kernel), (100, 3))
    np.testing.assert_allclose(found, dense.torus_gradient(kernel, (14, 3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "length"), [(17, 64), (21, 64), (33, 40)])
def test_a_long_kernel_does_not_lie_over_itself(size, length, rng):
    kernel = dense.random_kernel(rng, (size, 1), 2, noise=0.02)
    found = circulant_conv.mean_log_det_gradient(tf.constant(kernel), (length, 1))
    np.testing.assert_allclose(found, dense.torus_gradient(kernel, (length, 1)), rtol=1e-5, atol=1e-6)
    counts = conv.multiplicity((size, 1), (length, 1))[..., np.newaxis, np.newaxis]
    exact = exact_conv.log_det_gradient(tf.constant(kernel), (length, 1))
    assert np.linalg.norm(counts * found - exact) < 0.05 * np.linalg.norm(exact)
