"""Sketch-and-project and the exact refresh."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn
from tfp_selfnorm.math import dense


def test_an_update_never_moves_away_from_the_inverse(rng):
    cases, shrunk = 0, []
    for size in (1, 2, 5, 12):
        for _ in range(250):
            kernel = rng.normal(size=[size, size]) + rng.uniform(0, 2) * np.eye(size)
            other = rng.normal(size=[size, size]) * rng.uniform(0.1, 10)
            probes = rng.normal(size=[size, rng.integers(1, size + 1)])
            inverse = np.linalg.inv(kernel)
            updated, _ = dense.sketch_and_project(*map(tf.constant, (other, kernel, probes)))
            before, after = (np.linalg.norm(k - inverse) for k in (other, updated))
            condition = np.linalg.cond(kernel)
            assert after <= before * (1 + 1e-12 * condition)
            shrunk.append(after < before)
            cases += 1
    assert cases == 1000
    assert np.mean(shrunk) > 0.99


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("large", [7, 8], ids=["large", "small"])
def test_the_update_is_the_nearest_matrix_that_maps_every_u_to_its_r(rng, monkeypatch, large, batch):
    monkeypatch.setattr(dense, "_LARGE", large)
    size, count = 7, 3
    kernel, other = np.eye(size) + 0.3 * rng.normal(size=[2, *batch, size, size])
    probes = rng.normal(size=[*batch, size, count])
    updated, error = dense.sketch_and_project(*map(tf.constant, (other, kernel, probes)))
    r = np.swapaxes(np.eye(size) - other @ kernel, -1, -2) @ probes
    u = kernel @ r
    np.testing.assert_allclose(updated, other + (r - other @ u) @ np.linalg.pinv(u), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(updated @ u, r, rtol=1e-9, atol=1e-9)
    norms = [np.linalg.norm(a, axis=(-2, -1)) for a in (r, probes)]
    np.testing.assert_allclose(error, norms[0] / norms[1], rtol=1e-10)


def test_probes_turn_to_where_the_error_is(rng):
    """As many random directions as these would leave most of an error of low rank."""
    size, rank, count = 60, 2, 6
    kernel = np.eye(size) + 0.3 * rng.normal(size=[size, size]) / np.sqrt(size)
    error = 0.1 * rng.normal(size=[size, rank]) @ rng.normal(size=[rank, size])
    other, probes = np.linalg.inv(kernel) + error, rng.normal(size=[size, count])
    updated, _ = dense.sketch_and_project(*map(tf.constant, (other, kernel, probes)))
    u = kernel @ probes
    by_random = other + (probes - other @ u) @ np.linalg.pinv(u)
    before, after, random = (np.linalg.norm(np.eye(size) - r @ kernel) for r in (other, updated, by_random))
    assert after < 0.5 * before
    assert random > 0.8 * before


def test_directions_of_small_errors_are_learned_beside_those_of_large_ones():
    """The ridge of the step is of the size of rounding for each probe, not for the largest alone."""
    other, identity = np.diag([0.0, 1.0 - 1e-9, 3.0]), np.eye(3)
    updated, _ = dense.sketch_and_project(*map(tf.constant, (other, identity, identity)))
    np.testing.assert_allclose(updated, identity, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_an_error_nothing_changes(dtype):
    probes = np.ones([4, 2], dtype)
    updated, error = dense.sketch_and_project(
        2.0 * np.eye(4, dtype=dtype), 0.5 * np.eye(4, dtype=dtype), probes
    )
    np.testing.assert_array_equal(updated, 2.0 * np.eye(4))
    assert error == 0.0


def test_repeated_updates_converge(make_layer):
    layer = make_layer(16)
    for step in range(200):
        sn.sketch_and_project(layer, num_probes=4, seed=step)
    np.testing.assert_allclose(
        layer.forward_kernel, np.linalg.inv(layer.inverse_kernel.numpy()), rtol=1e-8, atol=1e-8
    )
    assert sn.inverse_error(layer) < 1e-8


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_the_update_compiles(make_layer, rng, jit_compile):
    layer = make_layer(5)
    arguments = (layer.forward_kernel, layer.inverse_kernel, tf.constant(rng.normal(size=[5, 3])))
    compiled = tf.function(dense.sketch_and_project, jit_compile=jit_compile)(*arguments)
    for found, expected in zip(compiled, dense.sketch_and_project(*arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Drawing and assigning too; XLA has random numbers of its own.
    update = tf.function(lambda: sn.sketch_and_project(layer, 3, seed=4), jit_compile=jit_compile)
    inverse, before = np.linalg.inv(layer.inverse_kernel.numpy()), layer.forward_kernel.numpy()
    assert update() > 0.0
    assert np.linalg.norm(layer.forward_kernel - inverse) < 0.99 * np.linalg.norm(before - inverse)


def test_more_probes_than_dimensions_find_the_inverse_at_once():
    layer = sn.SelfNormDense(tf.Variable(tf.eye(3)), tf.constant([[2.0, 1, 0], [1, 3, 0.5], [1, 0, 3]]))
    sn.sketch_and_project(layer, num_probes=100, seed=1)
    np.testing.assert_allclose(
        layer.forward_kernel, np.linalg.inv(layer.inverse_kernel.numpy()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: sn.SelfNormDense.trainable(3, seed=1), 3),
        (lambda: sn.SelfNormConv2D.trainable((4, 4), 2, kernel_size=1, seed=1), 2),
        (lambda: sn.SelfNormConv2D.trainable((4, 4), 2, kernel_size=3, seed=1), 8),
    ],
    ids=["dense", "1x1", "3x3"],
)
def test_more_probes_than_the_limit_are_as_many_as_the_limit(make, limit, rng):
    layer = make()
    layer.forward_kernel.assign_add(0.3 * rng.normal(size=layer.forward_kernel.shape))
    fewer, most, more = (sn.inverse_error(layer, n, seed=1) for n in (limit - 1, limit, 50))
    assert more == most
    assert fewer != most


def test_refresh_sets_the_inverse_and_names_a_singular_layer(make_layer):
    layer = make_layer(6)
    sn.refresh_inverse(layer)
    np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(6), atol=1e-12)
    for bad in (np.ones([6, 6]), np.full([6, 6], np.nan)):
        layer.inverse_kernel.assign(bad)
        with pytest.raises(ValueError, match="`self_norm_dense` has no inverse"):
            sn.refresh_inverse(layer)


def test_inverse_error_estimates_the_relative_distance(make_layer):
    layer = make_layer(12)
    product = layer.forward_kernel.numpy() @ layer.inverse_kernel.numpy()
    expected = np.linalg.norm(np.eye(12) - product) / np.sqrt(12)
    estimates = [sn.inverse_error(layer, num_probes=12, seed=seed) for seed in range(200)]
    np.testing.assert_allclose(np.mean(estimates), expected, rtol=0.05)


def test_the_schedule_of_an_own_loop(make_layer):
    layers = [make_layer(4), make_layer(4)]
    tracking = sn.Tracking(num_probes=2, refresh_every=5)
    np.testing.assert_array_equal(tracking.follow(layers, step=0), [0.0, 0.0])
    for layer in layers:
        assert sn.inverse_error(layer) < 1e-12
        layer.inverse_kernel.assign_add(0.1 * np.eye(4))
    errors = tracking.follow(layers, step=1)
    assert errors.shape == [2]
    assert min(errors) > 1e-3
    tracking.follow(layers, step=5)
    assert max(sn.inverse_error(layer) for layer in layers) < 1e-12
    assert sn.Tracking().refresh_interval(layers[0]) == 20
    assert sn.Tracking().refresh_interval(sn.SelfNormDense.trainable(784)) == 98


def test_each_layer_and_each_step_has_probes_of_its_own(make_layer):
    layer = make_layer(5)
    copies = [
        sn.SelfNormDense(tf.Variable(layer.forward_kernel), tf.Variable(layer.inverse_kernel))
        for _ in range(2)
    ]
    start, results = layer.forward_kernel.numpy(), []
    for step, seed in ((1, 0), (2, 0), (1, 7)):
        for copy in copies:
            copy.forward_kernel.assign(start)
        sn.Tracking(num_probes=2).follow(copies, step, seed)
        results += [copy.forward_kernel.numpy() for copy in copies]
    for i, one in enumerate(results):
        assert all(np.abs(one - other).max() > 1e-3 for other in results[:i])
    for copy in copies:
        copy.forward_kernel.assign(start)
    sn.Tracking(num_probes=2).follow(copies, 1, 0)
    np.testing.assert_array_equal(copies[1].forward_kernel, results[1])


@pytest.mark.parametrize("inversion", ["learned", "exact"])
@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
def test_each_layer_that_uses_its_learned_inverse_is_followed(make_layer, gradient, inversion):
    layer = make_layer(3, gradient=gradient, inversion=inversion)
    before, inverse = layer.forward_kernel.numpy(), np.linalg.inv(layer.inverse_kernel.numpy())
    sn.Tracking().follow([layer], step=0)
    is_used = gradient == "self_norm" or inversion == "learned"
    np.testing.assert_allclose(layer.forward_kernel, inverse if is_used else before, rtol=1e-12)


def test_the_schedule_passes_by_layers_without_a_learned_inverse():
    exact = sn.SelfNormDense(tf.eye(2), tf.Variable(tf.eye(2)), gradient="exact")
    for layers in ([], [exact]):
        assert sn.Tracking().follow(layers, step=1).shape == [0]


def test_each_kernel_of_a_batch_is_tracked(rng):
    kernels = np.eye(3) + 0.3 * rng.normal(size=[4, 3, 3])
    layer = sn.SelfNormDense(tf.Variable(np.zeros_like(kernels)), tf.Variable(kernels))
    np.testing.assert_allclose(sn.inverse_error(layer, seed=1), 1.0)
    layer.forward_kernel.assign(np.linalg.inv(kernels) + [[[0.0]], [[0.0]], [[0.1]], [[0.0]]])
    assert sn.inverse_error(layer, seed=1) > 0.01
    for step in range(80):
        sn.sketch_and_project(layer, 2, seed=step)
    np.testing.assert_allclose(layer.forward_kernel, np.linalg.inv(kernels), atol=1e-6)


def test_tracking_refuses(make_layer):
    with pytest.raises(ValueError, match="num_probes"):
        sn.Tracking(num_probes=0)
    with pytest.raises(ValueError, match="refresh_every"):
        sn.Tracking(refresh_every=0)
    with pytest.raises(TypeError, match="`reconstruction` must be a Reconstruction or None; got 3.0"):
        sn.Tracking(reconstruction=3.0)
    with pytest.raises(TypeError, match=r"`forward_kernel`.*tf.Variable"):
        sn.sketch_and_project(sn.SelfNormDense(tf.eye(2), tf.eye(2)))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_an_error_that_is_nan_in_one_kernel_of_a_batch_is_nan(jit_compile):
    """By itself XLA's maximum on the CPU passes NaN over."""
    kernels = np.stack([np.eye(2), np.full([2, 2], np.nan), np.eye(2)]).astype(np.float32)
    layer = sn.SelfNormDense(
        tf.Variable(kernels), tf.Variable(np.stack(3 * [2.0 * np.eye(2, dtype=np.float32)]))
    )
    compiled = tf.function(lambda: sn.inverse_error(layer, seed=1), jit_compile=jit_compile)
    assert np.isnan(compiled())
    compiled = tf.function(lambda: sn.sketch_and_project(layer, seed=1), jit_compile=jit_compile)
    assert np.isnan(compiled())
