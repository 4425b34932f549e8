"""Held log-dets and learned inverses are of the weights that they are used with, whoever changed these."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn


@pytest.fixture
def data(rng):
    return (rng.normal(size=[400, 3]) @ rng.normal(size=[3, 3]) + 2.0).astype(np.float32)


def make_model(learning=None, **options):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), learning or sn.Tracking(refresh_every=7))
    # Far from the weights: the rate is high, and the average slow.
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9), **options)
    return model


def exact_nll(model, x):
    return -float(np.mean(model.log_prob(x)))


def inverse_is_off_by(model):
    layers = sn.self_norm_layers(model.distribution)
    return max(float(tf.norm(la.forward_kernel @ la.inverse_kernel - tf.eye(3))) for la in layers)


class Probe(keras.callbacks.Callback):
    """Collects, at the end of each epoch, what a function of the model returns."""

    def __init__(self, function):
        super().__init__()
        self.function, self.found = function, []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(self.function(self.model))


class ExactAtTheEndOfTests(keras.callbacks.Callback):
    """The exact figure under the weights that an evaluation had."""

    def __init__(self, x):
        super().__init__()
        self.x, self.found = x, []

    def on_test_batch_end(self, batch, logs=None):
        self.found.append(exact_nll(self.model, self.x))


@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_an_evaluation_is_of_the_averages_that_a_callback_puts_in(data, swap_on_epoch):
    model, exact = make_model(), ExactAtTheEndOfTests(data[300:])
    callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch), exact]
    history = model.fit(
        data[:300], batch_size=20, epochs=4, validation_data=(data[300:],), validation_batch_size=100,
        callbacks=callbacks, verbose=0,
    ).history  # fmt: skip
    np.testing.assert_allclose(history["val_nll"], exact.found, rtol=1e-5)
    # The averages are other weights than those of the steps.
    assert abs(history["val_nll"][-1] - history["nll"][-1]) > 1e-3


def test_evaluate_and_predict_see_the_weights_that_their_callbacks_set(data):
    model = make_model()
    model.fit(data, epochs=1, batch_size=20, verbose=0)
    other = [2.0 * weight for weight in model.get_weights()]

    class SetOthers(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            self.model.set_weights(other)

        on_predict_begin = on_test_begin

    found = model.evaluate(data, callbacks=[SetOthers()], verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(found, exact_nll(model, data), rtol=1e-5)
    model.set_weights([0.5 * weight for weight in other])
    log_probs = model.predict(data, callbacks=[SetOthers()], verbose=0)
    np.testing.assert_allclose(log_probs, model.log_prob(data), rtol=1e-4, atol=1e-4)


def test_figures_of_training_after_an_evaluation_are_of_the_weights_of_training(data):
    """The log-dets of the averages would stay until the next refresh, here for an epoch and more."""
    models = [make_model(sn.Tracking(refresh_every=1000)) for _ in range(2)]
    histories = []
    for model, swaps in zip(models, (False, True), strict=True):
        callbacks = [keras.callbacks.SwapEMAWeights()] if swaps else []
        histories.append(
            model.fit(
                data, batch_size=40, epochs=3, shuffle=False, verbose=0, callbacks=callbacks,
                validation_data=(data,),
            ).history
        )  # fmt: skip
    np.testing.assert_allclose(histories[1]["nll"], histories[0]["nll"], rtol=1e-5)
    assert abs(histories[1]["val_nll"][0] - histories[0]["val_nll"][0]) > 1e-3


def test_a_file_saved_in_an_epoch_of_averages_holds_their_inverse(data, tmp_path):
    model = make_model(sn.Tracking(refresh_every=1000))
    path = tmp_path / "flow.weights.h5"
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    exact = Probe(lambda model: (exact_nll(model, data), inverse_is_off_by(model)))
    model.fit(data, batch_size=20, epochs=3, callbacks=[swap, checkpoint, exact], verbose=0)
    loaded = make_model()
    loaded.load_weights(path)
    np.testing.assert_allclose(exact_nll(loaded, data), exact.found[-1][0], rtol=1e-6)
    assert inverse_is_off_by(loaded) < 1e-4
    assert exact.found[-1][1] < 1e-4


def test_a_use_in_between_leaves_the_training_its_inverse(data):
    """A callback puts other weights in, samples, and puts the weights of training back."""

    class SampleOfOthers(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = sn.self_norm_layers(self.model.distribution)[0].inverse_kernel
            kernel.assign(3.0 * kernel)
            self.model.sample(3)
            assert inverse_is_off_by(self.model) < 1e-4
            kernel.assign(kernel / 3.0)

    model, error = make_model(sn.Tracking(num_probes=1, refresh_every=1000)), Probe(inverse_is_off_by)
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(data, batch_size=400, epochs=3, callbacks=[error, SampleOfOthers()], verbose=0)
    assert max(error.found) < 1e-4


@pytest.mark.parametrize("use", ["sample", "decode", "reconstruct", "save_weights", "export"])
def test_the_learned_inverse_is_brought_up_to_date_where_another_optimizer_moved_w(data, use, tmp_path):
    model = make_model()
    model.fit(data, epochs=1, verbose=0)
    assert inverse_is_off_by(model) < 1e-4
    for layer in sn.self_norm_layers(model.distribution):
        layer.inverse_kernel.assign_add(0.3 * tf.ones([3, 3]))
    assert inverse_is_off_by(model) > 0.1
    {
        "sample": lambda: model.sample(2),
        "decode": lambda: model.decode(data[:2]),
        "reconstruct": lambda: model.reconstruct(data[:2]),
        "save_weights": lambda: model.save_weights(tmp_path / "flow.weights.h5"),
        "export": lambda: model.export(tmp_path / "flow"),
    }[use]()
    assert inverse_is_off_by(model) < 1e-4


@pytest.mark.parametrize(
    "learning", [sn.Tracking(1, refresh_every=1000), sn.Reconstruction()], ids=["tracking", "data"]
)
def test_uses_without_a_change_of_w_change_nothing(learning, data):
    """Samples in training, and weights read from a file, find R as it was learned."""
    model = make_model(learning)
    others = Probe(
        lambda model: (inverse_is_off_by(model), model.sample(2, seed=1), inverse_is_off_by(model))
    )
    model.fit(data, batch_size=20, epochs=2, callbacks=[others], verbose=0)
    for before, _, after in others.found:
        assert before == after > 1e-4
    weights = model.get_weights()
    weights[1] = weights[1] + 0.1
    model.set_weights(weights)
    model.sample(2)
    np.testing.assert_array_equal(model.get_weights()[1], weights[1])


def test_a_kernel_without_an_inverse_stops_a_sample_and_no_file(data, tmp_path):
    model = make_model()
    layer = sn.self_norm_layers(model.distribution)[0]
    layer.inverse_kernel.assign(tf.zeros([3, 3]))
    with pytest.raises(ValueError, match="`dense_0` has no inverse"):
        model.sample(2)
    with pytest.warns(UserWarning, match="`dense_0` has no inverse.*saved as it is"):
        model.save_weights(tmp_path / "flow.weights.h5")


def test_an_evaluation_of_the_same_weights_pays_once(data, monkeypatch):
    model, calls = make_model(), []
    exact_log_det = sn.SelfNormDense.exact_log_det
    monkeypatch.setattr(
        sn.SelfNormDense, "exact_log_det", lambda self: calls.append(1) or exact_log_det(self)
    )
    model.evaluate(data, verbose=0)
    model.predict(data, verbose=0)
    assert len(calls) == 2
    sn.self_norm_layers(model.distribution)[1].inverse_kernel[0, 0].assign(3.0)
    found = model.evaluate(data, verbose=0, return_dict=True)["nll"]
    assert len(calls) == 3
    monkeypatch.undo()
    np.testing.assert_allclose(found, exact_nll(model, data), rtol=1e-5)


def fitted(learning, data, gradient="self_norm", steps=300):
    """One layer, fitted to centred data; returns the distance from the optimum in nats, and the warnings."""
    model = sn.FlowModel(sn.dense_flow(3, num_layers=1, gradient=gradient, seed=1), learning)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, steps)))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model.fit(np.tile(data, [steps, 1]), batch_size=len(data), shuffle=False, verbose=0)
    entropy = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * np.cov(data.T, bias=True))[1]
    return exact_nll(model, data) - entropy, [str(warning.message) for warning in found]


def test_a_warning_tells_of_a_gradient_by_an_inverse_that_nothing_teaches(rng):
    """The likelihood alone leaves W and R apart: it does not end at the normal density of the data."""
    data = rng.normal(size=[400, 3]) @ [[1.4, 0.5, 0.0], [0.0, 0.9, 0.3], [0.0, 0.0, 0.6]]
    data = (data - data.mean(axis=0)).astype(np.float32)
    distance, warned = fitted(None, data)
    assert distance > 1.0
    assert any("nothing holds R close" in text and "['dense_0']" in text for text in warned)
    taught = [(sn.Tracking(), "self_norm"), (sn.Reconstruction(), "self_norm"), (None, "exact")]
    for learning, gradient in taught:
        distance, warned = fitted(learning, data, gradient)
        assert abs(distance) < 1e-3
        assert not any("inverse_learning" in text for text in warned)


def test_frozen_layers_and_layers_without_an_inverse_of_their_own_need_no_teacher(data):
    flow = sn.dense_flow(3, num_layers=1, seed=1)
    model = sn.FlowModel(flow, None)
    model.trainable = False
    own = sn.FlowModel(sn.dense_flow(3, num_layers=1, gradient="relative", seed=1), None)
    for chosen in (model, own):
        chosen.compile(keras.optimizers.Adam(0.0))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*nothing holds R")
            chosen.fit(data, verbose=0)
