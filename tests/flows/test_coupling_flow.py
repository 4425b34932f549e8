"""The initial map and the initial networks of `coupling_flow`."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn


@pytest.mark.parametrize("layer", ["self_norm", "lu", "permute"])
def test_the_initial_map_reverses_the_dimensions_once_in_each_layer(layer):
    """Each half changes from the first step on."""
    x = tf.constant([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]])
    for num_layers, expected in (1, x[:, ::-1]), (2, x):
        flow = sn.coupling_flow(3, num_layers=num_layers, width=4, layer=layer, seed=1)
        np.testing.assert_allclose(flow.bijector.inverse(x), expected, atol=0.02)
        np.testing.assert_allclose(flow.bijector.forward(tf.identity(expected)), x, atol=0.02)


def test_initial_networks_are_small():
    """Within 1 / sqrt(number of inputs), biases too; other seeds for each layer, and for biases."""
    network = sn.dense_network(3, 5, width=400, depth=2, condition_size=1, seed=1)
    weights = [weight.numpy() for weight in network.weights]
    for weight, limit in zip(weights[:4], (0.5, 0.5, 0.05, 0.05), strict=True):
        assert 0.9 * limit < np.abs(weight).max() <= limit
    assert abs(np.corrcoef(weights[1] / 0.5, weights[3] / 0.05)[0, 1]) < 0.3
    assert not any(weight.any() for weight in weights[4:])
