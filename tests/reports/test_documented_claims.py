"""Sentences of the documentation that no other test holds, one test each."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.baselines import ConvolutionExponential2D, EmergingConv2D

tfb, tfd = tfp.bijectors, tfp.distributions
ONE = np.ones([1, 1, 1, 1], np.float32)


@pytest.fixture
def batch_normalized():
    """A flow of a dense layer behind `tfb.BatchNormalization`, with moving statistics of their own."""
    chain = tfb.Chain([tfb.BatchNormalization(), sn.SelfNormDense.trainable(3, seed=1)])
    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(3)), chain)
    flow.log_prob(tf.ones([2, 3]))
    return flow


def moving_statistics(flow):
    return [v.numpy() for v in flow.variables if "moving" in v.name]


@pytest.mark.parametrize("initialize", [sn.adapt, sn.whiten])
def test_initial_values_from_data_leave_other_layers_alone(initialize, batch_normalized, rng):
    before = moving_statistics(batch_normalized)
    assert len(before) == 2
    initialize(batch_normalized, 5.0 + rng.normal(size=[100, 3]))
    for old, new in zip(before, moving_statistics(batch_normalized), strict=True):
        np.testing.assert_array_equal(old, new)


def test_wrong_sizes_of_images_are_refused_by_the_log_dets_of_squeeze_too():
    with pytest.raises(ValueError, match="divisible by its block size"):
        sn.Squeeze().forward_log_det_jacobian(tf.ones([3, 3, 1]))
    with pytest.raises(ValueError, match="square of its block size"):
        sn.Squeeze().inverse_log_det_jacobian(tf.ones([3, 3, 1]))


def test_masked_events_are_refused():
    model = sn.FlowModel(sn.dense_flow(2, seed=1))
    events = np.ma.masked_greater(np.array([[1.0, 2.0], [3.0, 4.0]]), 3.5)
    with pytest.raises(TypeError, match="`x` must have all its values"):
        model.log_prob(events)
    assert model.log_prob(np.ma.array([[1.0, 2.0]])).shape == [1]


@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 3), (2, 3, 4, 5, 6)])
def test_images_of_any_shape_are_dequantized(shape):
    assert sn.images.dequantize(np.zeros(shape, np.uint8)).shape == shape


def test_a_plain_map_of_dequantize_repeats_its_noise_once_a_seed_is_set():
    tf.random.set_seed(1)
    plain = tf.data.Dataset.from_tensors(tf.zeros(3, tf.int32)).map(sn.images.dequantize)
    np.testing.assert_array_equal(*(next(iter(plain)) for _ in range(2)))


def test_whitening_matrices_change_the_numbers_the_least(rng):
    """Of all rotations of the whitened numbers, these correlate the most with the numbers themselves.

    If the units are different, the numbers are standardised first.
    """
    flow = sn.dense_flow(3, num_layers=1, seed=1, dtype=tf.float64)
    x = rng.normal(size=[200, 3]) @ rng.normal(size=[3, 3])
    for units in (np.ones(3), np.array([1.0, 1e4, 1e-4])):
        sn.whiten(flow, x * units, shrinkage=0.0)
        centred = (x - x.mean(axis=0)) / (1.0 if units[1] == 1.0 else x.std(axis=0))
        whitened = flow.bijector.inverse(tf.constant(x * units)).numpy()
        closest = np.sum(centred * whitened)
        for _ in range(20):
            rotation, _ = np.linalg.qr(rng.normal(size=[3, 3]))
            assert np.sum(centred * (whitened @ rotation)) < closest


def test_all_variables_of_a_spline_have_the_initial_value_0():
    assert not any(variable.numpy().any() for variable in sn.trainable_spline((2, 3)).variables)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvolutionExponential2D(ONE, (4, 4), np.ones(1)),
        lambda: EmergingConv2D(ONE, ONE.astype(np.float64), (4, 4)),
        lambda: sn.SelfNormConv2D(ONE, ONE.astype(np.float64), (4, 4)),
    ],
)
def test_convolutions_have_one_dtype(make):
    with pytest.raises(TypeError, match="one dtype"):
        make()


@pytest.mark.parametrize("activation", [sn.LeakyReLU, sn.LeakySquareplus, sn.SmoothLeakyReLU])
def test_activations_take_any_shape(activation):
    for shape in ([], [0], [3, 0], [2, 3, 4, 5, 6]):
        assert activation().inverse(activation().forward(tf.ones(shape)) + 0.0).shape == shape
    unknown = tf.function(activation().inverse, input_signature=[tf.TensorSpec(None)])
    assert unknown(tf.ones([])).shape == []
    assert activation([[0.1], [0.5]]).inverse(tf.ones([3])).shape == (2, 3)


def test_refresh_log_dets_sets_the_held_values():
    model = sn.FlowModel(sn.dense_flow(2, num_layers=1, seed=1))
    (layer,) = sn.self_norm_layers(model.distribution)
    layer.inverse_kernel.assign(3.0 * tf.eye(2))
    model.refresh_log_dets()
    held = model.named_variables["held_log_det_dense_0"]
    np.testing.assert_allclose(held, 2.0 * np.log(3.0), rtol=1e-6)


def test_predict_and_log_prob_compile_for_xla(rng):
    flow, x = sn.dense_flow(2, seed=1), rng.normal(size=[8, 2]).astype(np.float32)
    model = sn.FlowModel(flow)
    model.compile("adam", jit_compile=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), model.log_prob(x), rtol=1e-4)
    log_prob = tf.function(flow.log_prob, jit_compile=True)(tf.constant(x))
    np.testing.assert_allclose(log_prob, model.log_prob(x), rtol=1e-4)


def test_a_condition_may_have_dimensions_of_its_own(rng):
    def network(inputs):
        kept, condition = inputs
        return tf.concat([kept, kept], -1) + tf.reduce_sum(condition, [1, 2, 3])[:, tf.newaxis]

    coupling, condition = sn.AffineCoupling(network, event_ndims=1), rng.normal(size=[5, 4, 4, 2])
    x = tf.constant(rng.normal(size=[5, 2]))
    y = coupling.forward(x, condition=condition)
    np.testing.assert_allclose(coupling.inverse(tf.identity(y), condition=condition), x, rtol=1e-10)


def test_the_scope_has_the_surrogate_and_outside_log_prob_is_exact(rng):
    model = sn.FlowModel(sn.dense_flow(2, num_layers=1, seed=1))
    (layer,) = sn.self_norm_layers(model.distribution)
    layer.inverse_kernel.assign(3.0 * tf.eye(2))
    x = rng.normal(size=[4, 2])
    with sn.training_scope():
        inside = model.log_prob(x)
    np.testing.assert_allclose(model.log_prob(x) - inside, np.full(4, 2.0 * np.log(3.0)), rtol=1e-5)


def test_a_function_takes_a_coupling_of_a_module_as_any_python_object(rng):
    class Network(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(0.3)

        def __call__(self, kept):
            return self.weight * tf.concat([kept, kept], -1)

    network = Network()
    coupling, y = sn.AffineCoupling(network, event_ndims=1), tf.constant(rng.normal(size=[3, 4]), tf.float32)
    inverse = tf.function(lambda bijector, y: bijector.inverse(y))
    for weight in (0.3, -0.7):
        network.weight.assign(weight)
        np.testing.assert_allclose(inverse(coupling, y), coupling.inverse(tf.identity(y)), rtol=1e-6)
