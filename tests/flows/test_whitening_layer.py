"""`dense_flow(whitening=True)`: a fixed dense layer in front, set from data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn
from tfp_selfnorm.inverse_learning.base import is_fixed

SIZE = 4
LEARNING = {"tracking": sn.Tracking(), "reconstruction": sn.Reconstruction(), "none": None}


def flow_with(kernel, **options):
    """A flow in float64 whose fixed layer has this kernel, and the values of the trained layers in numpy."""
    flow = sn.dense_flow(SIZE, whitening=True, dtype=tf.float64, seed=1, **options)
    fixed, *trained = sn.self_norm_layers(flow)
    fixed.inverse_kernel.assign(kernel)
    fixed.forward_kernel.assign(np.linalg.inv(kernel))
    return flow, fixed, trained


def numpy_log_prob(flow, x):
    """The log density of a flow of two layers, from its kernels."""
    fixed, first, second = sn.self_norm_layers(flow)
    kernels = [np.asarray(layer.inverse_kernel) for layer in (fixed, first, second)]
    biases = [np.asarray(layer.bias) for layer in (fixed, first, second)]
    y = (x @ kernels[0].T + biases[0]) @ kernels[1].T + biases[1]
    slope = 0.3 + 0.7 / (1.0 + np.exp(-y))
    z = (0.3 * y + 0.7 * np.logaddexp(0.0, y)) @ kernels[2].T + biases[2]
    log_dets = sum(np.linalg.slogdet(kernel)[1] for kernel in kernels)
    normal = -0.5 * np.sum(z**2, axis=1) - 0.5 * SIZE * np.log(2.0 * np.pi)
    return normal + np.sum(np.log(slope), axis=1) + log_dets


@pytest.fixture
def kernel(rng):
    return 2.0 * np.eye(SIZE) + rng.normal(size=[SIZE, SIZE])


def test_the_density_is_that_of_the_products(rng, kernel):
    flow, fixed, _ = flow_with(kernel)
    fixed.bias.assign(rng.normal(size=SIZE))
    x = rng.normal(size=[50, SIZE])
    np.testing.assert_allclose(flow.log_prob(tf.constant(x)), numpy_log_prob(flow, x), rtol=1e-10)
    samples = flow.sample(7, seed=1)
    np.testing.assert_allclose(
        flow.log_prob(tf.identity(samples)), numpy_log_prob(flow, samples.numpy()), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("learning", "gradient"), [(name, g) for name in LEARNING for g in ("self_norm", "exact")]
)
def test_training_leaves_it_as_it_is(rng, kernel, learning, gradient):
    if learning == "none" and gradient == "self_norm":
        gradient = "relative"
    flow, fixed, trained = flow_with(kernel, gradient=gradient)
    model = sn.FlowModel(flow, LEARNING[learning])
    model.compile(keras.optimizers.SGD(1e-3))
    x = rng.normal(size=[64, SIZE])
    expected = -numpy_log_prob(flow, x).mean()
    before = [v.numpy() for v in (fixed.inverse_kernel, fixed.forward_kernel, fixed.bias)]
    starts = [layer.inverse_kernel.numpy() for layer in trained]
    # One step: the figure is that of the weights before it, by the held log-det of the fixed layer too.
    history = model.fit(x, batch_size=64, epochs=1, verbose=0).history
    np.testing.assert_allclose(history["nll"], [expected], rtol=1e-6)
    model.fit(x, batch_size=16, epochs=8, verbose=0)
    for variable, value in zip((fixed.inverse_kernel, fixed.forward_kernel, fixed.bias), before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert all(
        (layer.inverse_kernel.numpy() != start).any() for layer, start in zip(trained, starts, strict=True)
    )
    found = model.evaluate(x, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(found, -numpy_log_prob(flow, x).mean(), rtol=1e-6)
    assert found < expected


def test_the_log_det_follows_a_kernel_that_is_assigned_between_two_trainings(rng, kernel):
    flow, fixed, _ = flow_with(kernel)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(0.0))
    x = rng.normal(size=[64, SIZE])
    model.fit(x, batch_size=64, verbose=0)
    fixed.inverse_kernel.assign(3.0 * kernel)
    history = model.fit(x, batch_size=64, verbose=0).history
    np.testing.assert_allclose(history["nll"], [-numpy_log_prob(flow, x).mean()], rtol=1e-6)
    # R belongs to the new kernel as well, so that samples have the density that is scored.
    np.testing.assert_allclose(model.reconstruct(x), x, atol=1e-6)


def test_the_log_det_follows_a_callback_within_the_interval(rng, kernel):
    flow, fixed, _ = flow_with(kernel)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(0.0))
    x = rng.normal(size=[80, SIZE])

    class Assign(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                fixed.inverse_kernel.assign(3.0 * kernel)

    # 20 steps an epoch, the refresh interval of a small layer.
    history = model.fit(x, batch_size=4, epochs=3, verbose=0, callbacks=[Assign()]).history
    np.testing.assert_allclose(history["nll"][1:], 2 * [-numpy_log_prob(flow, x).mean()], rtol=1e-6)
    np.testing.assert_allclose(fixed.forward_kernel, np.linalg.inv(3.0 * kernel), rtol=1e-10)


@pytest.mark.parametrize("learning", LEARNING.values())
def test_a_fixed_layer_without_its_inverse_gets_it_before_training(rng, kernel, learning):
    flow, fixed, _ = flow_with(kernel, gradient="self_norm" if learning else "exact")
    fixed.forward_kernel.assign(2.0 * np.eye(SIZE))
    model = sn.FlowModel(flow, learning)
    model.compile(keras.optimizers.SGD(1e-4))
    model.fit(rng.normal(size=[64, SIZE]), verbose=0)
    np.testing.assert_allclose(fixed.forward_kernel, np.linalg.inv(kernel), rtol=1e-10)
    samples, drawn = model.sample_and_log_prob(50, seed=1)
    np.testing.assert_allclose(drawn, numpy_log_prob(flow, np.asarray(samples)), rtol=1e-6)


def test_its_log_det_is_computed_once(rng, kernel, monkeypatch):
    flow, _, _ = flow_with(kernel)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(1e-3))
    x, calls = rng.normal(size=[64, SIZE]), []
    exact = sn.SelfNormDense.exact_log_det
    monkeypatch.setattr(
        sn.SelfNormDense, "exact_log_det", lambda layer, *a: calls.append(layer.name) or exact(layer, *a)
    )
    for _ in range(3):
        model.train_on_batch(x)
    model.fit(x, batch_size=1, verbose=0)
    assert calls.count("whitening") == 1
    assert calls.count("dense_0") > 1


def test_no_inverse_is_learned_where_nothing_trains(kernel):
    _, fixed, trained = flow_with(kernel)
    for learning in (sn.Tracking(), sn.Reconstruction()):
        assert learning.regularizer(fixed) is None
        assert not learning.tracks(fixed)
        assert all(learning.teaches_inverse(layer) for layer in trained)
    before = fixed.forward_kernel.numpy()
    errors = sn.Tracking().follow([fixed, *trained], step=0)
    assert errors.shape == [2]
    np.testing.assert_array_equal(fixed.forward_kernel, before)


@pytest.mark.parametrize("number", [30, 5000])
def test_adapt_whitens_by_the_fixed_layer_alone(rng, number):
    size = 20
    x = rng.normal(size=[number, size]) @ rng.normal(size=[size, size]) + 5.0
    flow = sn.dense_flow(size, whitening=True, dtype=tf.float64, seed=1)
    sn.adapt(flow, x, whitens=True)
    fixed, first, _ = sn.self_norm_layers(flow)
    plain = sn.dense_flow(size, dtype=tf.float64, seed=1)
    sn.adapt(plain, x, whitens=True)
    np.testing.assert_array_equal(fixed.inverse_kernel, sn.self_norm_layers(plain)[0].inverse_kernel)
    # With the noise that its shrinkage leaves out, its output is white: nothing is left for the next layer.
    np.testing.assert_allclose(first.inverse_kernel, np.eye(size), atol=0.2 if number == 30 else 1e-3)


def test_the_whole_model_comes_back_from_its_file(tmp_path, rng):
    x = np.float32(rng.normal(size=[200, SIZE]) @ rng.normal(size=[SIZE, SIZE]))
    model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=SIZE, whitening=True, seed=1)
    model.adapt(x, whitens=True)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(x, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    np.testing.assert_array_equal(loaded.sample(5, seed=1), model.sample(5, seed=1))
    fixed, *trained = sn.self_norm_layers(loaded.distribution)
    trains = [v.trainable for layer in (fixed, *trained) for v in (layer.inverse_kernel, layer.bias)]
    assert trains == [False, False, True, True, True, True]


def test_whitening_is_a_bool():
    with pytest.raises(TypeError, match="`whitening` must be"):
        sn.dense_flow(SIZE, whitening="yes")


class FrozenNetwork(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(np.eye(SIZE), trainable=False)

    def __call__(self, x):
        return x + tf.tanh(x @ self.kernel)


def test_a_layer_is_fixed_where_its_log_det_is_a_constant_that_no_training_changes():
    """A pair of frozen networks is none: its log-det changes with the events."""
    assert not is_fixed(sn.SelfNormDense.trainable(SIZE))
    kernels = [tf.Variable(np.eye(SIZE), trainable=False) for _ in range(2)]
    assert is_fixed(sn.SelfNormDense(*kernels))
    pair = sn.LearnedInverse(FrozenNetwork(), FrozenNetwork(), SIZE)
    assert all(pair.map_variables)
    assert not is_fixed(pair)


def test_a_layer_that_is_set_or_trained_after_is_not_set_again(rng):
    x = (rng.normal(size=[100, SIZE]) @ rng.normal(size=[SIZE, SIZE])).astype(np.float32)
    model = sn.FlowModel(sn.dense_flow(SIZE, whitening=True, seed=1))
    model.compile("adam")
    with pytest.warns(UserWarning, match=r"The fixed layers \['whitening'\] are still the identity"):
        model.fit(x, verbose=0)
    fresh = sn.dense_flow(SIZE, whitening=True, seed=1)
    sn.adapt(fresh, x, whitens=True)
    before = fresh.log_prob(x)
    with pytest.raises(ValueError, match="adapted already: `whitening` has its values.*call `whiten`"):
        sn.adapt(fresh, 2.0 * x, whitens=True)
    np.testing.assert_array_equal(fresh.log_prob(x), before)
    sn.whiten(fresh, 2.0 * x)
    assert np.abs(fresh.log_prob(x) - before).max() > 0.1


@pytest.mark.filterwarnings("error")
def test_a_trained_model_keeps_its_weights(rng):
    x = rng.normal(size=[100, SIZE]).astype(np.float32)
    conditional = sn.ConditionalFlowModel(
        sn.coupling_flow(SIZE, 1, num_layers=2, num_bins=4, width=8, seed=1)
    )
    models = sn.FlowModel(sn.dense_flow(SIZE, seed=1)), conditional
    for model, data in zip(models, ((x,), (x[:, :1], x)), strict=True):
        model.compile("adam")
        model.adapt(*data, whitens=True)
        model.fit(*data, verbose=0)
        before = [variable.numpy() for variable in model.distribution.trainable_variables]
        with pytest.raises(ValueError, match="undo the training of this model.*call `tfp_selfnorm.whiten"):
            model.adapt(*data, whitens=True)
        model.adapt(*data)
        for variable, value in zip(model.distribution.trainable_variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)


def test_a_trained_model_under_a_strategy_keeps_its_weights(rng):
    x = rng.normal(size=[64, SIZE]).astype(np.float32)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = sn.FlowModel(sn.dense_flow(SIZE, whitening=True, seed=1))
        model.compile("adam")
    with pytest.warns(UserWarning, match="still the identity"):
        model.fit(x, verbose=0)
    with pytest.raises(ValueError, match="undo the training of this model"):
        model.adapt(x, whitens=True)
