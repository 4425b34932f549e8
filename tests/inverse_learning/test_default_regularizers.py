"""The regularizer that `Tracking` gives to each kind of layer that cannot be tracked."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
SHAPE = (4, 5, 2)


def scaled_pair(factor):
    """The identity, and a decoder that multiplies by the factor."""
    networks = [
        keras.Sequential(
            [keras.Input(SHAPE), keras.layers.Dense(2, use_bias=False, kernel_initializer="identity")]
        )
        for _ in range(2)
    ]
    networks[1].set_weights([factor * np.eye(2)])
    return sn.LearnedInverse(*networks, SHAPE, gradient="self_norm", name="pair")


def scaled_convolution(factor):
    """The identity, and an R that multiplies by the factor."""
    kernel = np.zeros([3, 3, 2, 2], np.float32)
    kernel[1, 1] = np.eye(2)
    return sn.SelfNormConv2D(
        inverse_kernel=tf.Variable(kernel),
        forward_kernel=tf.Variable(factor * kernel),
        spatial_shape=SHAPE[:2],
        name="convolution",
    )


def losses(learning, x):
    """The regularizers of a chain of both in a model, and in a plain scope."""
    chain = tfb.Chain([scaled_pair(0.7), scaled_convolution(0.9)])
    flow = tfd.TransformedDistribution(tfd.Independent(tfd.Normal(tf.zeros(SHAPE), 1.0), 3), chain)
    model = sn.FlowModel(flow, learning)
    model(x, training=True)
    with sn.training_scope(learning, seed=1) as scope:
        flow.log_prob(tf.identity(x))
        in_scope = scope.reconstruction_loss()
    return [float(tf.add_n(model.losses)), float(in_scope)]


@pytest.fixture
def x(rng):
    return tf.constant(10.0 * rng.normal(size=[200, *SHAPE]), tf.float32)


def test_convolutions_have_latent_probes_and_pairs_the_error_of_the_data(x):
    of_data = float(tf.reduce_mean(tf.reduce_sum(x**2, axis=[1, 2, 3])))
    # The mean square of a probe is the number of dimensions, up to the noise of 8 probes.
    pair, convolution = 3.0 * 0.3**2 * of_data, 10.0 * 0.1**2 * np.prod(SHAPE)
    for loss in losses(sn.Tracking(), x):
        assert loss - pair == pytest.approx(convolution, rel=0.3)


def test_one_regularizer_of_your_own_is_for_both(x):
    of_data = float(tf.reduce_mean(tf.reduce_sum(x**2, axis=[1, 2, 3])))
    for loss in losses(sn.Tracking(reconstruction=sn.Reconstruction(weight=2.0)), x):
        assert loss == pytest.approx(2.0 * (0.3**2 + 0.1**2) * of_data, rel=1e-4)


def test_the_weight_of_a_model_counts_in_a_scope_of_another_weight(x):
    """The scope of a bigger model names the kind, and each model its weight."""
    chain = tfb.Chain([scaled_pair(0.7), scaled_convolution(0.9)])
    flow = tfd.TransformedDistribution(tfd.Independent(tfd.Normal(tf.zeros(SHAPE), 1.0), 3), chain)
    model = sn.FlowModel(flow, sn.Reconstruction(weight=2.0))
    of_data = float(tf.reduce_mean(tf.reduce_sum(x**2, axis=[1, 2, 3])))
    with sn.training_scope(sn.Reconstruction(weight=7.0)):
        model(x, training=True)
        assert float(tf.add_n(model.losses)) == pytest.approx(2.0 * (0.3**2 + 0.1**2) * of_data, rel=1e-4)


def test_the_probes_of_a_layer_of_a_bigger_model_go_by_its_steps(x):
    def loss_after(steps, seed):
        keras.utils.set_random_seed(seed)
        flow = tfd.TransformedDistribution(
            tfd.Independent(tfd.Normal(tf.zeros(SHAPE), 1.0), 3), scaled_convolution(0.9)
        )
        model = sn.FlowModel(flow)
        for step in steps:
            model(step, training=True)
        return float(tf.add_n(model.losses))

    assert loss_after([x], 1) == loss_after([x[:3]], 2)
    assert loss_after([x, x], 3) == loss_after([x, x[:3]], 4) != loss_after([x], 1)


@pytest.mark.parametrize("order", [1, -1], ids=["convolution first", "pair first"])
def test_the_figure_has_the_whole_error_of_a_pair_in_any_order(x, order):
    """The loss has its error for all events. The error of the convolution comes from the first 8."""
    chain = tfb.Chain([scaled_pair(0.7), scaled_convolution(0.9)][::order])
    base = tfd.Independent(tfd.Normal(tf.zeros(SHAPE), 1.0), 3)
    model = sn.FlowModel(tfd.TransformedDistribution(base, chain))
    model.compile(keras.optimizers.SGD(0.0))
    found = model.fit(x, batch_size=200, shuffle=False, verbose=0).history["reconstruction"][0]
    squares = np.sum(np.square(x, dtype=np.float64), axis=(1, 2, 3))
    np.testing.assert_allclose(found, 0.3**2 * np.mean(squares) + 0.1**2 * np.mean(squares[:8]), rtol=1e-5)


@pytest.mark.parametrize("gradient", ["circulant", "exact"])
def test_an_inverse_that_the_gradient_does_not_use_takes_nothing_from_the_likelihood(gradient):
    layer = sn.SelfNormConv2D.trainable(SHAPE[:2], 2, gradient=gradient, inversion="learned", seed=1)
    with tf.GradientTape() as tape, sn.training_scope(sn.Tracking(), seed=1) as scope:
        layer.inverse(tf.ones([3, *SHAPE]))
        loss = scope.reconstruction_loss()
    of_kernel, of_inverse = tape.gradient(loss, [layer.inverse_kernel, layer.forward_kernel])
    assert of_kernel is None or not np.any(of_kernel)
    assert np.any(of_inverse)
