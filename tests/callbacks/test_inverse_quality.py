"""The worst inverse is found, and named."""

import numpy as np
import pytest
import tensorflow_probability as tfp
from watched_models import begin, compiled, pixel_noise

import tfp_selfnorm as sn
from tfp_selfnorm.callbacks import InverseQuality

tfb = tfp.bijectors


@pytest.fixture
def three_layers(make_layer, make_flow):
    """Two layers of one name with an exact R, and between them one that needs none."""
    layers = [
        make_layer(12, inverse_is_exact=True, name=name, **options)
        for name, options in (("mixing", {}), ("solved", {"gradient": "exact"}), ("mixing", {}))
    ]
    return layers, compiled(make_flow(tfb.Chain(layers), 12))


def test_the_worst_inverse_is_named(three_layers, capsys):
    layers, model = three_layers
    quality = begin(InverseQuality(num_probes=3, verbose=1), model)
    logs = {"nll": 1.0}
    for first, second, worst in ((0.01, 0.3, "mixing_1"), (0.4, 0.3, "mixing")):
        # I - R W = c I has the relative error c on any probe.
        for layer, error in ((layers[0], first), (layers[2], second)):
            layer.forward_kernel.assign((1.0 - error) * np.linalg.inv(layer.inverse_kernel))
        quality.on_epoch_end(0, logs)
        assert quality.errors == pytest.approx({"mixing": first, "mixing_1": second}, rel=1e-9)
        assert quality.worst_layer == worst
        assert logs == {"nll": 1.0, "worst_inverse_error": quality.errors[worst]}
        assert (
            f"Epoch 1: the worst learned inverse, `{worst}`: {max(first, second)}\n"
            in capsys.readouterr().out
        )


def test_the_error_is_that_of_r_w(make_layer, make_flow):
    """Off along one direction, where the two orders of the product differ tenfold."""
    size = 32
    kernel = np.diag(np.r_[10.0, np.ones(size - 1)])
    off = np.zeros([size, size])
    off[1, 0] = 0.1
    layer = make_layer(size)
    layer.inverse_kernel.assign(kernel)
    layer.forward_kernel.assign(np.linalg.inv(kernel) + off)
    expected = np.linalg.norm(off @ kernel) / np.sqrt(size)
    estimates = []
    for seed in range(40):
        quality = begin(InverseQuality(num_probes=size, seed=seed), compiled(make_flow(layer, size)))
        quality.on_epoch_end(0)
        estimates.append(quality.errors["self_norm_dense"] ** 2)
    # The mean of 1280 squares of normals: 4 % of deviation.
    np.testing.assert_allclose(np.mean(estimates), expected**2, rtol=0.16)
    np.testing.assert_allclose(np.linalg.norm(kernel @ off) / np.sqrt(size), 0.1 * expected)
    assert len(set(estimates)) == 40


def test_nan_is_the_worst_inverse(three_layers):
    layers, model = three_layers
    quality = begin(InverseQuality(), model)
    for bad, layer, worst in ((np.inf, layers[0], "mixing"), (np.nan, layers[2], "mixing_1")):
        broken = layer.forward_kernel.numpy()
        broken[3, 4] = bad
        layer.forward_kernel.assign(broken)
        logs = {}
        quality.on_epoch_end(0, logs)
        assert quality.worst_layer == worst
        np.testing.assert_equal(logs["worst_inverse_error"], quality.errors[worst])
        np.testing.assert_equal(quality.errors[worst], bad)


def test_epochs_between_estimates_repeat_the_last(three_layers):
    layers, model = three_layers
    quality = InverseQuality(every_epochs=3)
    for expected in ([0.5, 0.5, 1 / 8, 1 / 8, 1 / 8, 1 / 64], [0.5, 0.5, 1 / 8]):
        # Each call of `fit` begins with an estimate of its own.
        begin(quality, model)
        found = []
        for epoch in range(len(expected)):
            layers[0].forward_kernel.assign(
                (1.0 - 0.5 ** (epoch + 1)) * np.linalg.inv(layers[0].inverse_kernel)
            )
            logs = {}
            quality.on_epoch_end(epoch, logs)
            found.append(logs["worst_inverse_error"])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_no_inverse_to_watch():
    for flow in (sn.dense_flow(2, gradient="exact", seed=1), pixel_noise((2, 2))):
        with pytest.raises(ValueError, match="needs a layer with a learned inverse"):
            begin(InverseQuality(), compiled(flow))
