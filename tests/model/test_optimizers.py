"""What Keras's optimizers can do beyond a step: averages, accumulation, clipping."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn


@pytest.fixture
def data(rng):
    return rng.normal(size=[40, 3]).astype(np.float32)


def fit(optimizer, data, batch_size=10, inverse_learning=None, gradient="exact", epochs=1):
    model = sn.FlowModel(sn.dense_flow(3, gradient=gradient, seed=1), inverse_learning)
    model.compile(optimizer)
    model.fit(data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model


def test_accumulated_gradients_are_those_of_a_larger_batch(data):
    accumulated = fit(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), data, batch_size=10)
    larger = fit(keras.optimizers.SGD(0.1), data, batch_size=20)
    for variable, other in zip(accumulated.trainable_variables, larger.trainable_variables, strict=True):
        np.testing.assert_allclose(variable, other, atol=1e-6)


def test_gradients_are_clipped(data):
    start = sn.FlowModel(sn.dense_flow(3, seed=1)).get_weights()
    model = fit(keras.optimizers.SGD(1.0, global_clipnorm=0.01), 10.0 * data, batch_size=40)
    moved = [new - old for new, old in zip(model.get_weights(), start, strict=False)]
    count = len(model.trainable_variables)
    np.testing.assert_allclose(np.sqrt(sum(np.sum(change**2) for change in moved[:count])), 0.01, rtol=1e-4)


class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append([variable.numpy() for variable in self.model.trainable_variables])


def test_averaged_weights_have_their_inverse_and_their_log_dets(data):
    model = sn.FlowModel(sn.dense_flow(3, seed=1), sn.Tracking())
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    record = Record()
    model.fit(data, batch_size=10, shuffle=False, verbose=0, callbacks=[record])
    # Keras's average starts from the first step's result.
    for i, variable in enumerate(model.trainable_variables):
        average = record.steps[0][i]
        for step in record.steps[1:]:
            average = 0.5 * average + 0.5 * step[i]
        assert np.abs(average - record.steps[-1][i]).max() > 1e-4
        np.testing.assert_allclose(variable, average, atol=1e-6)
    for layer in sn.self_norm_layers(model.distribution):
        kernels = layer.forward_kernel.numpy(), layer.inverse_kernel.numpy()
        np.testing.assert_allclose(np.matmul(*kernels), np.eye(3), atol=1e-5)
    nll = model.evaluate(data, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(nll, -np.mean(model.log_prob(data)), rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer])
def test_a_schedule_that_has_ended_is_reported(data, wrap):
    model = sn.FlowModel(sn.dense_flow(data.shape[1], num_layers=1, seed=1))
    schedules = keras.optimizers.schedules
    warm_up = schedules.CosineDecay(0.0, 2, warmup_target=0.1, warmup_steps=2)
    model.compile(wrap(keras.optimizers.SGD(warm_up)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(data, batch_size=len(data), epochs=4, verbose=0)
    before = [np.array(weight) for weight in model.trainable_weights]
    with pytest.warns(UserWarning, match="The learning rate is 0"):
        model.fit(data, batch_size=len(data), verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


class EveryThird(keras.optimizers.schedules.LearningRateSchedule):
    """It is 0 at the steps 0, 3, 6 and so on."""

    def __call__(self, step):
        return tf.where(step % 3 == 0, 0.0, 0.01)


@pytest.mark.parametrize("rate", [EveryThird(), 0.0, lambda: 0.0])
def test_a_rate_that_is_0_now_and_then_or_on_purpose_is_none(data, rate):
    model = sn.FlowModel(sn.dense_flow(data.shape[1], num_layers=1, seed=1))
    model.compile(keras.optimizers.SGD(rate))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The learning rate is 0")
        for _ in range(2):
            model.fit(data, batch_size=len(data) // 3, steps_per_epoch=3, verbose=0)
