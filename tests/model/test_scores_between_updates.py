"""`FlowModel.log_prob` computes log-dets once between changes of the weights, and never returns old ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from graphs import op_types

import tfp_selfnorm as sn
from tfp_selfnorm.inverse_learning.known_log_dets import known_log_dets
from tfp_selfnorm.math import dense
from tfp_selfnorm.model.log_det_cache import are_equal


@pytest.fixture
def model():
    return sn.FlowModel(sn.dense_flow(3, seed=1, dtype=tf.float64))


@pytest.fixture
def x(rng):
    return rng.normal(size=[5, 3])


def exact_log_prob(model, x):
    """By numpy, from the weights as they are."""
    z, log_det = x, 0.0
    for i in range(2):
        kernel, bias = (
            model.named_variables[f"dense_{i}_{part}"].numpy() for part in ("inverse_kernel", "bias")
        )
        if i:
            activation = model.distribution.bijector.bijectors[1]
            log_det = log_det + activation.inverse_log_det_jacobian(tf.constant(z), 1).numpy()
            z = activation.inverse(tf.constant(z)).numpy()
        z, log_det = z @ kernel.T + bias, log_det + np.linalg.slogdet(kernel)[1]
    return -0.5 * np.sum(z**2, axis=1) - 1.5 * np.log(2 * np.pi) + log_det


def count_log_dets(monkeypatch):
    calls = []
    original = dense.DenseMap.log_det

    def counted(self, kernel):
        calls.append(1)
        return original(self, kernel)

    monkeypatch.setattr(dense.DenseMap, "log_det", counted)
    return calls


def changed_kernel(model):
    return model.named_variables["dense_0_inverse_kernel"].value


CHANGES = {
    "assign": lambda model: changed_kernel(model).assign(2.0 * changed_kernel(model)),
    "assign_add": lambda model: changed_kernel(model).assign_add(0.1 * np.eye(3)),
    "a slice": lambda model: changed_kernel(model)[0, 0].assign(3.0),
    "scatter": lambda model: changed_kernel(model).scatter_nd_update([[0, 0]], [4.0]),
    "set_weights": lambda model: model.set_weights([1.5 * weight for weight in model.get_weights()]),
    "a compiled function": lambda model: tf.function(
        lambda: changed_kernel(model).assign_sub(np.eye(3) / 3)
    )(),
    "another optimizer": lambda model: keras.optimizers.SGD(0.1).apply(
        [np.ones([3, 3])], [model.named_variables["dense_0_inverse_kernel"]]
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_no_old_value_is_returned(model, x, change):
    for _ in range(3):
        np.testing.assert_allclose(model.log_prob(x), exact_log_prob(model, x), rtol=1e-12)
        change(model)
    np.testing.assert_allclose(model.log_prob(x), exact_log_prob(model, x), rtol=1e-12)


def test_no_old_value_is_returned_after_fit_and_a_checkpoint(model, x, tmp_path):
    model.compile(keras.optimizers.Adam(0.1))
    model.log_prob(x)
    model.fit(x, epochs=2, verbose=0)
    fitted = exact_log_prob(model, x)
    np.testing.assert_allclose(model.log_prob(x), fitted, rtol=1e-12)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    CHANGES["assign"](model)
    assert not np.allclose(model.log_prob(x), fitted)
    tf.train.Checkpoint(model=model).restore(path)
    np.testing.assert_allclose(model.log_prob(x), fitted, rtol=1e-12)


def test_log_dets_are_computed_once_between_changes(monkeypatch, model, x):
    calls = count_log_dets(monkeypatch)
    for _ in range(5):
        model.log_prob(x)
    assert len(calls) == 2
    CHANGES["assign"](model)
    for _ in range(5):
        model.log_prob(x)
    assert len(calls) == 3


def test_scoring_changes_no_weight(model, x):
    CHANGES["assign"](model)
    before = model.get_weights()
    model.log_prob(x)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_compiled_function_keeps_no_value(x):
    """It may be called again with other weights."""
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1)
    function = tf.function(lambda x: layer.inverse_log_det_jacobian(x, 1))
    exact = np.linalg.slogdet(layer.inverse_kernel.numpy())[1]
    with known_log_dets({layer: 5.0}):
        np.testing.assert_allclose(layer.inverse_log_det_jacobian(tf.constant(x), 1), 5.0)
        np.testing.assert_allclose(function(tf.constant(x)), exact, rtol=1e-12)
    np.testing.assert_allclose(layer.inverse_log_det_jacobian(tf.identity(x), 1), exact, rtol=1e-12)


def test_under_a_tape_the_gradients_are_exact(model, x):
    model.log_prob(x)
    kernel = changed_kernel(model)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.log_prob(x))
    gradient = tape.gradient(total, kernel).numpy()
    numeric = np.zeros([3, 3])
    for index in np.ndindex(3, 3):
        values = []
        for step in (1e-6, -1e-6):
            kernel[index].assign(kernel[index] + step)
            values.append(exact_log_prob(model, x).sum())
            kernel[index].assign(kernel[index] - step)
        numeric[index] = (values[0] - values[1]) / 2e-6
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)


def test_a_singular_kernel_has_the_value_that_it_had(model, x):
    changed_kernel(model).assign(np.zeros([3, 3]))
    assert np.isneginf(model.log_prob(x)).all()


def test_an_exported_density_has_constant_log_dets(model, x, tmp_path):
    CHANGES["assign"](model)
    expected = exact_log_prob(model, x)
    model.export(tmp_path / "exported")
    CHANGES["assign"](model)
    served = tf.saved_model.load(tmp_path / "exported")
    events = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(events)
        log_prob = served.log_prob(events)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    assert not {"Lu", "LogMatrixDeterminant"} & op_types(served.log_prob, events)
    gradient = tape.gradient(log_prob, events)
    CHANGES["assign"](model)
    model.named_variables["dense_0_inverse_kernel"].assign(0.25 * changed_kernel(model))
    with tf.GradientTape() as tape:
        tape.watch(events)
        log_prob = model.log_prob(events)
    np.testing.assert_allclose(gradient, tape.gradient(log_prob, events), rtol=1e-9)


def test_weights_that_stay_are_compared_by_their_memory(model):
    kernel = changed_kernel(model)
    old = tf.convert_to_tensor(kernel)
    assert are_equal(old, tf.convert_to_tensor(kernel))
    assert np.may_share_memory(np.asarray(old), np.asarray(tf.convert_to_tensor(kernel)))
    kernel.assign_add(np.eye(3))
    assert not are_equal(old, tf.convert_to_tensor(kernel))
