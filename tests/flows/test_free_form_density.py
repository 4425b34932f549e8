"""The density of a pair of networks: a distribution as far as the decoder is the inverse of the encoder."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn


def integral(flow, half_width, num_cells):
    """Over a square around the origin, by the midpoint rule."""
    side = 2.0 * half_width / num_cells
    centers = np.linspace(-half_width + side / 2, half_width - side / 2, num_cells, dtype=np.float32)
    points = np.stack(np.meshgrid(centers, centers), axis=-1).reshape([-1, 2])
    log_prob = tf.function(flow.log_prob, input_signature=[tf.TensorSpec([None, 2])])
    return sum(np.exp(log_prob(chunk)).sum() for chunk in np.split(points, 10)) * side**2


def error_of_inverse(flow):
    return float(sn.inverse_error(sn.self_norm_layers(flow)[1]))


def test_the_density_of_a_trained_flow_integrates_to_one(rng):
    first, noise = rng.normal(size=[2, 500])
    x = np.stack([first, 0.5 * (first**2 - 1.0) + 0.3 * noise], axis=1).astype(np.float32)
    flow = sn.free_form_flow(2, num_layers=1, width=32, depth=1, seed=1)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.04, 90)))
    history = model.fit(x, batch_size=500, epochs=90, verbose=0).history
    # It left the initial normal distribution far behind; the entropy of the data is 1.63 nats.
    assert history["nll"][0] > 2.5
    assert history["nll"][-1] < 1.9
    assert integral(flow, 8.0, 160) == pytest.approx(1.0, abs=0.01)
    assert history["reconstruction"][-1] < 0.01
    assert error_of_inverse(flow) < 0.5


def test_the_density_of_random_networks_does_not_and_the_inverse_error_says_so(rng):
    """As documented: an encoder that maps several events to one latent counts them all."""
    flow = sn.free_form_flow(2, num_layers=1, width=16, depth=2, seed=1)
    layer = sn.self_norm_layers(flow)[1]
    assert integral(flow, 8.0, 100) == pytest.approx(1.0, abs=1e-4)
    assert error_of_inverse(flow) < 1e-6
    rng = np.random.default_rng(2)
    for network in (layer.encoder, layer.decoder):
        network.set_weights([rng.normal(size=weight.shape) for weight in network.weights])
    assert abs(integral(flow, 16.0, 300) - 1.0) > 0.2
    assert error_of_inverse(flow) > 1.0
