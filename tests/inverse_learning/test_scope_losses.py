"""What a training scope adds up: the errors and the losses of the passes."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn


@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
def test_the_error_is_that_of_the_learned_inverse_whatever_the_gradient(make_layer, rng, gradient):
    layer, x = make_layer(3, gradient=gradient), rng.normal(size=[5, 3])
    w, r = layer.inverse_kernel.numpy(), layer.forward_kernel.numpy()
    with tf.GradientTape() as tape, sn.training_scope(sn.Reconstruction()) as scope:
        layer.inverse(tf.constant(x))
        loss = scope.reconstruction_loss()
    residual = x - x @ w.T @ r.T
    np.testing.assert_allclose(loss, np.mean(np.sum(residual**2, axis=-1)), rtol=1e-12)
    d_r = tape.gradient(loss, layer.forward_kernel)
    np.testing.assert_allclose(d_r, -2.0 * residual.T @ (x @ w.T) / 5, rtol=1e-10)


def test_errors_add_up_over_passes_and_train_nothing(make_layer, rng):
    layer, x = make_layer(3), rng.normal(size=[5, 3])
    kernels = [layer.inverse_kernel, layer.forward_kernel]
    w, r = (kernel.numpy() for kernel in kernels)
    once = np.mean(np.sum((x - x @ w.T @ r.T) ** 2, axis=-1))
    with tf.GradientTape(persistent=True) as tape, sn.training_scope() as scope:
        for scale in (1.0, 2.0):
            layer.inverse(tf.constant(scale * x))
        figures = scope.reconstruction_error(), scope.reconstruction_errors()[layer]
    for figure in figures:
        np.testing.assert_allclose(figure, 5.0 * once, rtol=1e-12)
        assert tape.gradient(figure, kernels) == [None, None]


def test_probes_of_a_loss_follow_the_seed_and_differ_by_layer(make_layer):
    layer = make_layer(3)
    copies = [
        sn.SelfNormDense(tf.Variable(layer.forward_kernel), tf.Variable(layer.inverse_kernel))
        for _ in range(2)
    ]
    losses = []
    for seed in (1, 2, 1):
        with sn.training_scope(sn.Reconstruction("probes", num_probes=2), seed=seed) as scope:
            for copy in copies:
                copy.inverse(tf.ones([1, 3], tf.float64))
            weights = (dict(zip(copies, pair, strict=True)) for pair in ((1.0, 0.0), (0.0, 1.0)))
            losses.append([float(scope.reconstruction_loss(weight)) for weight in weights])
            assert scope.reconstruction_loss(0.0) == 0.0
    assert len({*losses[0], *losses[1]}) == 4
    assert losses[2] == losses[0]
