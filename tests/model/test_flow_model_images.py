"""FlowModel over the convolutional and multi-scale builders."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from graphs import op_types
from sklearn.datasets import load_digits

import tfp_selfnorm as sn
from tfp_selfnorm.structure.layers import bijectors_of

tfd = tfp.distributions


@pytest.fixture(scope="module")
def digits():
    pixels = load_digits().images.astype(np.uint8)[:600, ..., np.newaxis]
    return sn.images.dequantize(pixels, seed=1).numpy()


def conv(layers_per_block=1, event_shape=(8, 8, 1), **options):
    """Of one layer a block: the time is that of tracing each layer, and of compiling it."""
    options = {"gradient": "self_norm", "preprocessing": sn.images.pixel_sigmoid(17), "seed": 1} | options
    return sn.conv_flow(event_shape, num_blocks=2, layers_per_block=layers_per_block, **options)


def glow(event_shape=(8, 8, 1), **options):
    pixels = sn.images.pixel_sigmoid(17)
    return sn.glow_flow(
        event_shape, num_blocks=2, steps_per_block=1, width=4, preprocessing=pixels, seed=1, **options
    )


WAYS = {
    "conv, paper": (conv, {}, sn.Reconstruction()),
    "conv, default": (conv, {"layers_per_block": 2}, sn.Tracking()),
    "conv, probes": (conv, {}, sn.Reconstruction("probes")),
    "conv, exact": (conv, {"gradient": "exact"}, None),
    "conv, circulant": (conv, {"gradient": "circulant"}, None),
    "conv, splines": (conv, {"activation": "spline"}, sn.Tracking()),
    "glow, paper": (glow, {}, sn.Reconstruction(weight=100.0)),
    "glow, default": (glow, {}, sn.Tracking()),
    "glow, 5x5": (glow, {"kernel_size": 5}, sn.Tracking()),
    "glow, exact": (glow, {"gradient": "exact"}, None),
    "glow, lu": (glow, {"layer": "lu"}, None),
    "glow, plain": (glow, {"act_norm": False, "split_prior": False}, sn.Tracking()),
}


def trained(flow, inverse_learning, data, **compile_options):
    keras.utils.set_random_seed(1)
    model = sn.FlowModel(flow, inverse_learning, bits_per_dim=True)
    training, validation = data[:-100], data[-100:]
    model.adapt(training)
    model.compile(keras.optimizers.Adam(5e-3), **compile_options)
    before = -np.mean(model.log_prob(validation))
    history = model.fit(training, epochs=2, batch_size=50, validation_data=(validation,), verbose=0).history
    return model, before, history


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_fit_lowers_the_exact_likelihood(way, digits):
    make, options, inverse_learning = way
    model, before, history = trained(make(**options), inverse_learning, digits)
    exact = -np.mean(model.log_prob(digits[500:]))
    assert exact < before - 5.0
    np.testing.assert_allclose(history["val_nll"][-1], exact, rtol=1e-5)
    np.testing.assert_allclose(history["val_bits_per_dim"][-1], exact / (64 * np.log(2.0)), rtol=1e-5)
    back = model.reconstruct(digits[500:], exact=True)
    np.testing.assert_allclose(back, digits[500:], atol=5e-3)
    assert model.sample(3, seed=1).shape == (3, 8, 8, 1)


def test_centred_images_train_further(digits):
    centred, _, _ = trained(conv(gradient="exact"), None, digits)
    plain, _, _ = trained(conv(gradient="exact", centering=False), None, digits)
    gains = centred.log_prob(digits[500:]) - plain.log_prob(digits[500:])
    assert np.mean(gains) > 10.0


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("conv, exact", {"jit_compile": True}),
        ("glow, default", {"jit_compile": True}),
        ("conv, default", {"run_eagerly": True}),
    ],
    ids=str,
)
def test_fit_compiled_otherwise_is_the_same(way, options, digits):
    make, flow_options, inverse_learning = WAYS[way]
    flow_options = flow_options | {"event_shape": (4, 4, 1)}
    data = np.concatenate([digits[:100], digits[500:]])[:, 2:6, 2:6]
    results = []
    for compile_options in ({}, options):
        keras.utils.set_random_seed(1)
        model = sn.FlowModel(make(**flow_options), inverse_learning)
        model.adapt(data)
        model.compile(keras.optimizers.Adam(1e-3), **compile_options)
        model.fit(data[:100], batch_size=50, shuffle=False, verbose=0)
        results.append(model.predict(data[100:], batch_size=50, verbose=0))
    np.testing.assert_allclose(*results, rtol=1e-3)


def test_the_default_teaches_a_convolution_its_inverse(digits):
    model, _, history = trained(conv(), sn.Tracking(), digits)
    assert history["val_reconstruction"][-1] < 1.0
    assert history["val_loss"][-1] > history["val_nll"][-1]
    probes, _, _ = trained(conv(), sn.Reconstruction("probes", 10.0, num_probes=8), digits)
    np.testing.assert_allclose(model.log_prob(digits[:5]), probes.log_prob(digits[:5]), rtol=1e-5)
    error = np.sqrt(np.mean((model.reconstruct(digits[500:]) - digits[500:]) ** 2))
    assert error < 2.0


def test_the_start_of_act_norm_is_saved_with_the_weights(digits, tmp_path):
    model, _, _ = trained(glow(), sn.Tracking(), digits[400:], run_eagerly=True)
    model.save_weights(tmp_path / "model.weights.h5")
    other = sn.FlowModel(glow(), sn.Tracking(), bits_per_dim=True)
    other.compile("sgd")
    with pytest.raises(ValueError, match="without initial values"):
        other.predict(digits, verbose=0)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.log_prob(digits[:9]), model.log_prob(digits[:9]))
    with pytest.raises(ValueError, match="adapted already"):
        other.adapt(digits)


def test_adapting_to_a_data_set_takes_its_first_examples(digits):
    arrays, data_sets = (sn.FlowModel(glow()) for _ in range(2))
    arrays.adapt(digits, num_examples=70)
    labelled = tf.data.Dataset.from_tensor_slices((digits, np.arange(len(digits)))).batch(32)
    data_sets.adapt(labelled, num_examples=70)
    np.testing.assert_array_equal(arrays.log_prob(digits[:5]), data_sets.log_prob(digits[:5]))
    data_sets_of_arrays = sn.FlowModel(glow())
    data_sets_of_arrays.adapt(tf.data.Dataset.from_tensor_slices(digits).batch(32), num_examples=70)
    np.testing.assert_array_equal(arrays.log_prob(digits[:5]), data_sets_of_arrays.log_prob(digits[:5]))


def test_keras_trains_the_coupling_networks_and_leaves_frozen_ones(digits):
    flow = glow()
    couplings = bijectors_of(sn.AffineCoupling, flow)
    couplings[0].network.trainable = False
    before = [[w.numpy().copy() for w in coupling.network.weights] for coupling in couplings]
    model, _, _ = trained(flow, sn.Tracking(), digits[400:], run_eagerly=True)
    moved = [
        any(np.any(w.numpy() != old) for w, old in zip(coupling.network.weights, values, strict=True))
        for coupling, values in zip(couplings, before, strict=True)
    ]
    assert moved == [False, *[True] * (len(couplings) - 1)]
    references = [id(v.value) for v in model.variables]
    assert len(references) == len(set(references))
    assert all(id(w.value) in references for coupling in couplings for w in coupling.network.weights)


@pytest.mark.parametrize("way", ["conv, paper", "conv, default", "conv, exact", "glow, default"])
def test_what_is_exact_stays_out_of_the_training_graph(way):
    make, options, inverse_learning = WAYS[way]
    model = sn.FlowModel(make(**options), inverse_learning)
    model.compile("sgd")
    model.optimizer.build(model.trainable_variables)
    batch = ((tf.TensorSpec([None, 8, 8, 1], tf.float32),),)
    for step in (model.train_step, model.test_step, model.predict_step):
        ops = op_types(step, *batch)
        assert "Conv2D" in ops
        assert ("Qr" in ops) == (way == "conv, exact" and step == model.train_step)
    assert "Qr" in op_types(model.log_prob, batch[0][0])


@pytest.mark.parametrize("gradient", ["exact", "circulant"])
def test_a_learned_inverse_that_nothing_trains_is_refused(digits, gradient):
    """Of a wide kernel: the files of 0.1.0 have such layers, and load."""
    model = sn.FlowModel(conv(gradient=gradient, inversion="learned", centering=False), None)
    model.compile("adam")
    message = f"`inversion='learned'` of `block_0_conv_0` .*`gradient='{gradient}'` .*`inversion='exact'`"
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=message):
            train(digits[:50])
    # Without training it does as it did.
    assert np.isfinite(model.log_prob(digits[:5])).all()
    assert np.isfinite(model.evaluate(digits[:50], verbose=0)).all()
    assert model.sample(2, exact=True).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("gradient", ["exact", "circulant"])
def test_a_learned_inverse_that_a_regularizer_trains_is_kept(digits, gradient):
    flow = conv(gradient=gradient, inversion="learned", centering=False)
    model = sn.FlowModel(flow, sn.Reconstruction("probes", weight=10.0))
    model.compile(keras.optimizers.Adam(1e-2))
    layers = sn.self_norm_layers(flow)
    before = [layer.forward_kernel.numpy() for layer in layers]
    model.fit(digits[:500], epochs=2, batch_size=50, verbose=0)
    for layer, old in zip(layers, before, strict=True):
        error = sn.inverse_error(layer, seed=1)
        layer.forward_kernel.assign(old)
        assert error < 0.7 * sn.inverse_error(layer, seed=1)


@pytest.mark.parametrize("options", [{"kernel_size": 1, "inversion": "learned"}, {}], ids=str)
@pytest.mark.parametrize("gradient", ["exact", "circulant"])
def test_what_needs_no_regularizer_is_not_refused(digits, gradient, options):
    """R of a 1x1 kernel is set where it is used; with the default inversion nothing uses R."""
    model = sn.FlowModel(conv(gradient=gradient, centering=False, **options), None)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(digits[:100], batch_size=50, verbose=0)
    np.testing.assert_allclose(model.reconstruct(digits[:5]), digits[:5], atol=0.02)


@pytest.mark.parametrize("frozen", ["inverse_kernel", "forward_kernel"])
def test_a_frozen_kernel_is_not_refused(digits, frozen):
    """W does not leave R behind, or the user sets R."""
    kernels = {
        name: tf.Variable(tf.ones([3, 3, 1, 1]) / 9.0, trainable=name != frozen)
        for name in ("forward_kernel", "inverse_kernel")
    }
    bias = tf.Variable([0.0])
    layer = sn.SelfNormConv2D(
        **kernels, spatial_shape=(8, 8), bias=bias, gradient="circulant", inversion="learned"
    )
    kernels["inverse_kernel"].assign(tf.pad([[[[1.0]]]], [[1, 1], [1, 1], [0, 0], [0, 0]]))
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [8, 8, 1])
    model = sn.FlowModel(tfd.TransformedDistribution(base, layer), None)
    model.compile(keras.optimizers.SGD(1e-9))
    assert np.isfinite(model.train_on_batch(digits[:10])).all()
