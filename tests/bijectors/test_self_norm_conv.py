"""SelfNormConv2D and SelfNormConv1D against the dense matrix and the paper's formulas in numpy."""

import contextlib

import dense_convolution as dense
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm import Reconstruction, SelfNormConv1D, SelfNormConv2D, training_scope

tfd = tfp.distributions
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
CASES = {
    "1x1": ((1, 1), (6, 5), 3),
    "3x3": ((3, 3), (6, 5), 3),
    "3x5": ((3, 5), (4, 3), 1),
    "7x1": ((7, 1), (5, 2), 2),
    "1-D, length 1": ((3,), (1,), 2),
    "1-D, length 2": ((5,), (2,), 2),
    "1-D, length 17": ((5,), (17,), 2),
}
MIXTURES = [0.5, 0.3, 1.0]
SCOPES = {
    "held 0": lambda layer: training_scope(None),
    "held log-det": lambda layer: training_scope(None, {layer: layer.exact_log_det()}),
    "outside": lambda layer: contextlib.nullcontext(),
}


def make_layer(rng, sizes, spatial_shape, channels, is_inverse=False, **options):
    """Random kernels; R is off the inverse unless asked."""
    if is_inverse:
        kernel, other = dense.invertible_pair(rng, sizes, channels)
    else:
        kernel, other = (dense.random_kernel(rng, sizes, channels) for _ in range(2))
    layer = SelfNormConv1D if len(sizes) == 1 else SelfNormConv2D
    bias = tf.Variable(rng.normal(size=[channels]))
    return layer(tf.Variable(other), tf.Variable(kernel), spatial_shape, bias, **options)


def matrices(layer):
    """W and R as dense matrices, and the bias of each pixel."""
    kernels = layer.inverse_kernel.numpy(), layer.forward_kernel.numpy()
    bias = np.tile(layer.bias.numpy(), int(np.prod(layer.spatial_shape)))
    return *(dense.matrix(kernel, layer.spatial_shape) for kernel in kernels), bias


def data(rng, layer, batch=(4,)):
    return rng.normal(size=[*batch, *layer.event_sizes])


def rows(x, layer):
    return np.reshape(x, [-1, int(np.prod(layer.event_sizes))])


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_both_directions_and_log_dets(case, batch, rng):
    layer = make_layer(rng, *case)
    w, r, bias = matrices(layer)
    y = data(rng, layer, batch)
    ndims = layer.forward_min_event_ndims
    np.testing.assert_allclose(rows(layer.inverse(y), layer), rows(y, layer) @ w.T + bias, **TOLERANCE)
    np.testing.assert_allclose(rows(layer.forward(y), layer), (rows(y, layer) - bias) @ r.T, **TOLERANCE)
    for found, matrix in (
        (layer.inverse_log_det_jacobian(tf.identity(y), ndims), w),
        (layer.forward_log_det_jacobian(tf.identity(y), ndims), r),
    ):
        np.testing.assert_allclose(found, np.linalg.slogdet(matrix)[1], **TOLERANCE)
    exact = sn.exact(layer)
    solution = np.linalg.solve(w, (rows(y, layer) - bias).T).T
    np.testing.assert_allclose(rows(exact.forward(tf.identity(y)), layer), solution, **TOLERANCE)
    np.testing.assert_allclose(
        exact.forward_log_det_jacobian(tf.identity(y), ndims), -np.linalg.slogdet(w)[1], **TOLERANCE
    )


def paper_gradients(layer, y, mixture):
    """Of the mean log-likelihood: mixture (d_z x^T + R^T) and -(1 - mixture) (d_x z'^T + W^T), on kernels."""
    w, r, bias = matrices(layer)
    x = rows(y, layer)
    product = x @ w.T
    d_z = -(product + bias) / len(x)
    d_x = d_z @ w
    shape, spatial_shape = layer.inverse_kernel.shape, layer.spatial_shape
    return (
        dense.kernel_gradient(mixture * (d_z.T @ x + r.T), shape, spatial_shape),
        dense.kernel_gradient(-(1 - mixture) * (d_x.T @ product + w.T), shape, spatial_shape),
        np.sum(d_z.reshape(-1, shape[-1]), axis=0),
        d_x,
    )


def flow_over(layer):
    normal = tfd.Normal(tf.zeros([], tf.float64), tf.ones([], tf.float64))
    return tfd.TransformedDistribution(tfd.Sample(normal, layer.event_sizes), layer)


def likelihood_gradients(layer, y, scale=1.0):
    y = tf.constant(y)
    with tf.GradientTape() as tape:
        tape.watch(y)
        total = scale * tf.reduce_mean(flow_over(layer).log_prob(tf.identity(y)))
    return tape.gradient(total, [layer.inverse_kernel, layer.forward_kernel, layer.bias, y])


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("scope", ["held 0", "held log-det"])
def test_gradients_are_the_papers(case, mixture, scope, rng):
    layer = make_layer(rng, *case, mixture=mixture)
    y = data(rng, layer)
    with SCOPES[scope](layer):
        found = likelihood_gradients(layer, y)
    expected = paper_gradients(layer, y, mixture)
    assert (found[1] is None) == (mixture == 1.0)
    for i, (gradient, formula) in enumerate(zip(found, expected, strict=True)):
        if mixture == 1.0 and i == 1:
            continue
        np.testing.assert_allclose(np.reshape(gradient, formula.shape), formula, **TOLERANCE)


def exact_gradient(layer, y):
    """Of the mean log-likelihood, for W: `d_z x^T + W^-T` on kernels."""
    w, _, bias = matrices(layer)
    x = rows(y, layer)
    d_z = -(x @ w.T + bias) / len(x)
    shape = layer.inverse_kernel.shape
    return dense.kernel_gradient(d_z.T @ x + np.linalg.inv(w).T, shape, layer.spatial_shape)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("mixture", MIXTURES)
def test_outside_of_a_scope_gradients_are_exact(case, mixture, rng):
    layer = make_layer(rng, *case, mixture=mixture)
    y = data(rng, layer)
    found, papers = likelihood_gradients(layer, y), paper_gradients(layer, y, mixture)
    np.testing.assert_allclose(found[0], exact_gradient(layer, y), **TOLERANCE)
    assert found[1] is None
    np.testing.assert_allclose(found[2], papers[2], **TOLERANCE)
    np.testing.assert_allclose(rows(found[3], layer), papers[3], **TOLERANCE)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("scope", SCOPES)
def test_a_scaled_loss_scales_the_log_det_too(rng, scope):
    layer = make_layer(rng, (3, 3), (4, 5), 2)
    y = data(rng, layer)
    with SCOPES[scope](layer):
        found = (likelihood_gradients(layer, y, scale) for scale in (1.0, 128.0))
        for one, many in zip(*found, strict=True):
            assert (one is None) == (many is None)
            if one is not None:
                np.testing.assert_allclose(128.0 * np.array(one), many, rtol=1e-12)


@pytest.mark.usefixtures("uncompiled")
def test_the_exact_gradient(case, rng):
    layer = make_layer(rng, *case, gradient="exact")
    assert layer.inversion == "exact"
    y = data(rng, layer)
    found = likelihood_gradients(layer, y)
    expected = exact_gradient(layer, y)
    np.testing.assert_allclose(found[0], expected, **TOLERANCE)
    assert found[1] is None
    with training_scope(None):
        np.testing.assert_allclose(likelihood_gradients(layer, y)[0], expected, **TOLERANCE)


@pytest.mark.parametrize("scope", ["held 0", "held log-det"])
def test_the_circulant_gradient(case, scope, rng):
    layer = make_layer(rng, *case, gradient="circulant", mixture=0.3)
    assert layer.inversion == "exact"
    y = data(rng, layer)
    w, _, bias = matrices(layer)
    x = rows(y, layer)
    d_z = -(x @ w.T + bias) / len(x)
    kernel, spatial_shape = layer.inverse_kernel.numpy(), layer.spatial_shape
    of_map = dense.kernel_gradient(d_z.T @ x, kernel.shape, spatial_shape)
    # The counts of an element in the matrix of the convolution.
    ones = np.ones_like(kernel[..., :1, :1])
    counts = dense.kernel_gradient(dense.matrix(ones, spatial_shape), ones.shape, spatial_shape)
    of_log_det = counts * dense.torus_gradient(kernel, spatial_shape)
    with SCOPES[scope](layer):
        found = likelihood_gradients(layer, y)
    # It is damped by 1e-8 of the mean squared singular value.
    np.testing.assert_allclose(found[0], of_map + of_log_det, rtol=1e-5, atol=1e-5)
    assert found[1] is None
    np.testing.assert_allclose(found[2], np.sum(d_z.reshape(-1, kernel.shape[-1]), axis=0), **TOLERANCE)
    np.testing.assert_allclose(rows(found[3], layer), d_z @ w, **TOLERANCE)
    np.testing.assert_allclose(likelihood_gradients(layer, y)[0], exact_gradient(layer, y), **TOLERANCE)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (3, 1), (5,)], ids=str)
def test_with_the_true_inverse_the_self_normalizing_gradient_is_exact(sizes, rng):
    """In kernels whose inverse is a kernel of the same size; half of it, since the other half is p_g's."""
    spatial_shape = (4, 5)[: len(sizes)]
    layer = make_layer(rng, sizes, spatial_shape, 4, is_inverse=True)
    w, r, _ = matrices(layer)
    np.testing.assert_allclose(w @ r, np.eye(len(w)), atol=1e-12)
    exact = dense.kernel_gradient(np.linalg.inv(w).T, layer.inverse_kernel.shape, spatial_shape)
    y = tf.constant(data(rng, layer, ()))
    with tf.GradientTape() as tape, training_scope(None):
        value = layer.inverse_log_det_jacobian(tf.identity(y), layer.forward_min_event_ndims)
    np.testing.assert_allclose(tape.gradient(value, layer.inverse_kernel), 0.5 * exact, **TOLERANCE)


@pytest.mark.parametrize("kind", ["data", "inverse_only", "symmetric"])
def test_reconstruction_gradients_by_finite_differences(kind, rng):
    layer = make_layer(rng, (3, 3), (3, 4), 2, mixture=1.0)
    y, step = data(rng, layer), 1e-6
    with tf.GradientTape() as tape, training_scope(Reconstruction(kind, weight=3.0)) as scope:
        layer.inverse(tf.constant(y))
        loss = scope.reconstruction_loss()
    kernels = [layer.inverse_kernel, layer.forward_kernel]
    found = tape.gradient(loss, kernels, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    w, r, _ = matrices(layer)
    x = rows(y, layer)
    z = x @ w.T

    def error(w_kernel, r_kernel):
        w, r = (dense.matrix(kernel, (3, 4)) for kernel in (w_kernel, r_kernel))
        if kind == "inverse_only":
            return np.mean(np.sum((x - z @ r.T) ** 2, axis=1))
        first = np.mean(np.sum((x - x @ w.T @ r.T) ** 2, axis=1))
        if kind == "data":
            return first
        return 0.5 * first + 0.5 * np.mean(np.sum((z - z @ r.T @ w.T) ** 2, axis=1))

    values = [kernel.numpy() for kernel in kernels]
    np.testing.assert_allclose(loss, 3.0 * error(*values), rtol=1e-12)
    for i in range(2):
        for element in [(0, 0, 0, 1), (1, 1, 1, 1), (2, 1, 0, 0)]:
            up, down = ([v.copy() for v in values] for _ in range(2))
            up[i][element] += step
            down[i][element] -= step
            slope = 3.0 * (error(*up) - error(*down)) / (2 * step)
            np.testing.assert_allclose(found[i][element], slope, rtol=1e-6, atol=1e-6)


def test_initial_values_are_the_papers():
    layer = SelfNormConv2D.trainable((8, 8), channels=3, kernel_size=(3, 5), dtype=tf.float64, seed=1)
    w, r = layer.inverse_kernel.numpy(), layer.forward_kernel.numpy()
    np.testing.assert_array_equal(r, w[::-1, ::-1].transpose(0, 1, 3, 2))
    w[1, 2] -= np.eye(3)
    np.testing.assert_allclose(np.std(w), 0.01 / np.sqrt(15 * 3), rtol=0.15)
    np.testing.assert_array_equal(layer.bias, np.zeros(3))
    rotation = SelfNormConv2D.trainable((8, 8), channels=5, kernel_size=1, dtype=tf.float64, seed=1)
    w = rotation.inverse_kernel.numpy()[0, 0]
    np.testing.assert_allclose(w @ w.T, np.eye(5), atol=1e-12)
    assert np.abs(w - np.eye(5)).max() > 0.1
    np.testing.assert_array_equal(rotation.forward_kernel[0, 0], w.T)
    wide = SelfNormConv2D.trainable((8, 8), channels=5, kernel_size=3, rotates=True, dtype=tf.float64, seed=1)
    w, r = wide.inverse_kernel.numpy(), wide.forward_kernel.numpy()
    np.testing.assert_array_equal(w[1, 1], rotation.inverse_kernel[0, 0])
    np.testing.assert_array_equal(r[1, 1], w[1, 1].T)
    w[1, 1] = r[1, 1] = 0.0
    assert not w.any()
    assert not r.any()
    near_identity = SelfNormConv2D.trainable((8, 8), channels=5, kernel_size=1, rotates=False, seed=1)
    assert 0.0 < np.abs(near_identity.inverse_kernel[0, 0] - np.eye(5)).max() < 0.03
    again, other = (SelfNormConv1D.trainable(8, 3, seed=seed) for seed in (1, 2))
    same = SelfNormConv1D.trainable(8, 3, seed=1)
    np.testing.assert_array_equal(again.inverse_kernel, same.inverse_kernel)
    assert np.any(again.inverse_kernel != other.inverse_kernel)


@pytest.mark.parametrize("sizes", [(1, 1), (1,)], ids=str)
def test_tracking_follows_a_kernel_of_size_one(sizes, rng):
    layer = make_layer(rng, sizes, (4, 5)[: len(sizes)], 3)
    sn.sketch_and_project(layer, num_probes=3, seed=1)
    assert sn.inverse_error(layer, seed=2) < 1e-6
    layer.inverse_kernel.assign_add(0.1 * rng.normal(size=layer.inverse_kernel.shape))
    assert sn.inverse_error(layer, seed=2) > 1e-3
    sn.refresh_inverse(layer)
    w, r, _ = matrices(layer)
    np.testing.assert_allclose(r @ w, np.eye(len(w)), atol=1e-12)


def test_a_wider_kernel_keeps_its_mixture_under_tracking(rng):
    """No tracking follows its R: the gradient of the likelihood does."""
    layer = make_layer(rng, (3, 3), (4, 5), 2, mixture=0.3)
    y, kernels, found = tf.constant(data(rng, layer)), [layer.inverse_kernel, layer.forward_kernel], []
    for learning in (sn.Tracking(), None):
        with tf.GradientTape() as tape, training_scope(learning):
            x = layer.inverse(y)
            value = tf.reduce_sum(layer.inverse_log_det_jacobian(y)) - 0.5 * tf.reduce_sum(x**2)
        found.append(tape.gradient(value, kernels))
    for tracked, plain in zip(*found, strict=True):
        np.testing.assert_allclose(tracked, plain, rtol=1e-12)
    assert np.abs(found[0][1]).max() > 0.1


def test_tracking_leaves_wider_kernels_to_the_regularizer(rng):
    layer = make_layer(rng, (3, 3), (4, 5), 2)
    y, before = tf.constant(data(rng, layer)), layer.forward_kernel.numpy()
    for update in (sn.sketch_and_project, sn.refresh_inverse):
        with pytest.raises(TypeError, match="wider than 1x1"):
            update(layer)
    assert sn.Tracking().follow([layer], step=0).shape == [0]
    np.testing.assert_array_equal(layer.forward_kernel, before)
    losses = []
    for learning in (sn.Tracking(reconstruction=Reconstruction(weight=2.0)), Reconstruction(weight=2.0)):
        with training_scope(learning) as scope:
            layer.inverse(tf.identity(y))
            losses.append(scope.reconstruction_loss())
    np.testing.assert_array_equal(*losses)
    w, r, _ = matrices(layer)
    probes = np.linalg.norm(np.eye(len(w)) - r @ w) / np.sqrt(len(w))
    np.testing.assert_allclose(sn.inverse_error(layer, seed=1), probes, rtol=0.3)
