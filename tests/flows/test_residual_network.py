"""The initial values of `residual_network`."""

import numpy as np

import tfp_selfnorm as sn


def test_the_initial_map_is_the_identity(rng):
    x = rng.normal(size=[7, 3]).astype(np.float32)
    np.testing.assert_array_equal(sn.residual_network(3, width=16, seed=1)(x), x)


def test_blocks_can_begin_to_learn_from_data_that_are_symmetric_about_0(rng):
    """SiLU minus half its argument is even: without biases the odd part of each unit would be linear."""
    network = sn.residual_network(1, width=64, depth=2, seed=1)
    for block in range(2):
        kernel, bias = (w.numpy() for w in network.get_layer(f"residual_network_{block}_first").weights)
        assert 1.0 < np.abs(bias).max() <= 2.0
        assert np.abs(bias.mean()) < 0.5
        x = np.abs(rng.normal(size=[200, 1]))
        odd = _silu(x @ kernel + bias) - _silu(-x @ kernel + bias)
        slopes = odd / x
        assert np.ptp(slopes, axis=0).max() > 0.01


def test_the_seed_makes_each_block():
    one, same, other = (
        sn.residual_network(2, width=4, depth=2, seed=seed).get_weights() for seed in (1, 1, 2)
    )
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
    assert (one[1] != one[5]).any()


def _silu(x):
    return x / (1.0 + np.exp(-x))
