"""Flows in other training than their own: whole trainings beside the known optimum."""

import itertools
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from graphs import op_types

import tfp_selfnorm as sn

SIZE = 3
DATA = np.random.default_rng(3).normal(size=[2048, SIZE])
DATA = (DATA @ (np.random.default_rng(4).normal(size=[SIZE, SIZE]) + 2 * np.eye(SIZE))).astype("float32")
NUM_EPOCHS, BATCH_SIZE = 40, 128
NUM_STEPS = NUM_EPOCHS * len(DATA) // BATCH_SIZE


def gaussian_optimum(x):
    """The negative log-likelihood in nats of the best Gaussian of full covariance."""
    covariance = np.cov(np.float64(x).T, bias=True).reshape(x.shape[1], -1)
    return 0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + x.shape[1])


def decaying_adam(num_steps=NUM_STEPS):
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-2, num_steps))


def minus(_, log_prob):
    return -log_prob


def trained_outer(flow, learning_rate=None, epochs=NUM_EPOCHS):
    """A functional model that consists of the flow, after `fit`, and the history."""
    data = keras.Input([SIZE])
    outer = keras.Model(data, flow(data))
    optimizer = decaying_adam() if learning_rate is None else keras.optimizers.SGD(learning_rate)
    outer.compile(optimizer, loss=minus)
    history = outer.fit(
        DATA,
        np.zeros(len(DATA)),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        shuffle=learning_rate is None,
        verbose=0,
    )
    return outer, history.history


def mean_nll(flow, x=DATA):
    return float(-tf.reduce_mean(flow.log_prob(tf.identity(x))))


def implied_covariance(flow):
    """Of the density: `W^-1 W^-T`."""
    inverse = np.linalg.inv(np.float64(sn.self_norm_layers(flow.distribution)[0].inverse_kernel))
    return inverse @ inverse.T


def test_the_optimum_is_that_of_the_issue():
    np.testing.assert_allclose(gaussian_optimum(DATA), 4.0147, atol=1e-4)


LEARNING = {
    "tracking": (lambda: sn.Tracking(), 1e-4),
    "none": (lambda: None, 1e-4),
    "reconstruction": (lambda: sn.Reconstruction(), 0.05),
    "adaptive": (lambda: sn.Reconstruction(weight=sn.AdaptiveWeight(0.01)), 0.05),
}


@pytest.mark.parametrize("name", LEARNING)
def test_a_layer_of_a_functional_model_ends_at_the_optimum(name):
    learning, tolerance = LEARNING[name]
    flow = sn.FlowModel(sn.dense_flow(SIZE, num_layers=1, seed=1), inverse_learning=learning())
    start = {n: v.numpy() for n, v in flow.named_variables.items() if "weight" in n}
    _, history = trained_outer(flow)
    assert abs(mean_nll(flow) - gaussian_optimum(DATA)) < 0.01
    assert list(history) == ["loss"]
    covariance = implied_covariance(flow)
    # The same latents for both inverses, so that the samples differ by the maps alone.
    samples, exact = flow.sample(20_000, seed=1), flow.sample(20_000, seed=1, exact=True)
    for found, expected, bound in (
        (np.cov(np.transpose(samples)), np.cov(np.transpose(exact)), tolerance),
        (np.cov(np.transpose(exact)), covariance, 0.05),
        (covariance, np.cov(DATA.T), 0.05),
    ):
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)
    moved = [np.any(flow.named_variables[n].numpy() != value) for n, value in start.items()]
    assert moved == ([True] if name == "adaptive" else [])


def test_the_regularizer_counts_in_the_outer_loss(rng):
    """At learning rate 0, over the whole of the data, against numpy."""
    flow = sn.FlowModel(
        sn.dense_flow(SIZE, num_layers=2, seed=1), inverse_learning=sn.Reconstruction(weight=2.5)
    )
    for variable in flow.distribution.trainable_variables:
        variable.assign_add(0.2 * rng.normal(size=variable.shape))
    _, history = trained_outer(flow, learning_rate=0.0, epochs=1)
    regularizer, y = 0.0, np.float64(DATA)
    for i, layer in enumerate(sn.self_norm_layers(flow.distribution)):
        w, r, bias = (
            np.asarray(v, np.float64) for v in (layer.inverse_kernel, layer.forward_kernel, layer.bias)
        )
        regularizer += np.mean(np.sum((y - y @ w.T @ r.T) ** 2, axis=1))
        y = y @ w.T + bias
        if i == 0:
            y = np.float64(sn.SmoothLeakyReLU(tf.constant(0.3, tf.float64)).forward(y))
    assert regularizer > 0.1
    np.testing.assert_allclose(history["loss"][0], mean_nll(flow) + 2.5 * regularizer, rtol=1e-5)
    assert len(flow.losses) == 1


def test_an_adaptive_weight_advances_in_training_alone():
    """By `rate * error` for momentum 0 and tolerance 0."""
    adaptive = sn.AdaptiveWeight(0.0, rate=0.1, momentum=0.0)
    flow = sn.FlowModel(
        sn.dense_flow(SIZE, num_layers=1, seed=1), inverse_learning=sn.Reconstruction(weight=adaptive)
    )
    (layer,) = sn.self_norm_layers(flow.distribution)
    layer.forward_kernel.assign_add(0.3 * tf.ones([SIZE, SIZE]))
    (name,) = (n for n in flow.named_variables if "weight" in n)
    before = flow.named_variables[name].numpy()
    flow(DATA, training=False)
    np.testing.assert_array_equal(flow.named_variables[name], before)
    for count in (1, 2):
        flow(DATA, training=True)
        w, r = np.float64(layer.inverse_kernel), np.float64(layer.forward_kernel)
        error = np.mean(np.sum((DATA - DATA @ w.T @ r.T) ** 2, axis=1))
        assert error > 0.1
        np.testing.assert_allclose(flow.named_variables[name] - before, count * 0.1 * error, rtol=1e-5)


class Halves(keras.Model):
    """Two flows, each of its part of the columns, one of them of two linear layers."""

    def __init__(self, second_learning):
        super().__init__()
        self.first = sn.FlowModel(
            sn.dense_flow(1, num_layers=1, seed=1), inverse_learning=sn.Reconstruction(weight=1.5)
        )
        linear = sn.dense_flow(2, num_layers=2, activation=None, seed=2)
        self.second = sn.FlowModel(linear, inverse_learning=second_learning)

    def call(self, events):
        return self.first(events[:, :1]) + self.second(events[:, 1:])


def fitted_halves(model, optimizer, epochs):
    model.compile(optimizer, loss=minus)
    labels = np.zeros(len(DATA))
    return model.fit(DATA, labels, epochs=epochs, batch_size=BATCH_SIZE, shuffle=False, verbose=0).history


@pytest.mark.parametrize("learning", [sn.Tracking(), sn.Reconstruction(weight=0.5), None], ids=str)
def test_two_flows_of_a_subclassed_model_end_at_the_sum_of_the_optima(learning):
    model = Halves(learning)
    history = fitted_halves(model, decaying_adam(), NUM_EPOCHS)
    parts = ((model.first, DATA[:, :1]), (model.second, DATA[:, 1:]))
    assert abs(sum(mean_nll(*part) for part in parts) - sum(gaussian_optimum(x) for _, x in parts)) < 0.01
    assert list(history) == ["loss"]
    for flow, _ in parts:
        samples, exact = (flow.sample(20_000, seed=1, exact=is_exact) for is_exact in (False, True))
        spread = np.std(exact, axis=0)
        np.testing.assert_allclose(np.std(samples, axis=0), spread, rtol=0.05)
        assert np.mean(np.abs(samples - exact) / spread) < 0.05


def test_the_regularizers_of_two_flows_count_once(rng):
    model = Halves(sn.Reconstruction(weight=0.5))
    flows = (model.first, DATA[:, :1], 1.5), (model.second, DATA[:, 1:], 0.5)
    expected = 0.0
    for flow, x, weight in flows:
        y = np.float64(x)
        for variable in flow.distribution.trainable_variables:
            variable.assign_add(0.3 + 0.2 * rng.normal(size=variable.shape))
        for layer in sn.self_norm_layers(flow.distribution):
            w, r, bias = (np.array(v) for v in (layer.inverse_kernel, layer.forward_kernel, layer.bias))
            error = np.mean(np.sum((y - y @ w.T @ r.T) ** 2, axis=1))
            assert error > 0.01
            expected += weight * error
            y = y @ w.T + bias
        expected += mean_nll(flow, x)
    history = fitted_halves(model, keras.optimizers.SGD(0.0), epochs=1)
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-5)
    evaluated = model.evaluate(DATA, np.zeros(len(DATA)), batch_size=len(DATA), verbose=0)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5)
    assert len(model.losses) == 2


def test_a_loop_without_a_scope_ends_at_the_optimum():
    flow = sn.dense_flow(SIZE, num_layers=1, seed=1)
    optimizer, data = decaying_adam(), tf.constant(DATA)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(x))
        variables = flow.trainable_variables
        gradients = tape.gradient(loss, variables)
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        optimizer.apply_gradients(pairs)
        return len(variables) - len(pairs)

    batches = itertools.cycle(tf.split(data, len(DATA) // BATCH_SIZE))
    for _ in range(NUM_STEPS):
        assert step(next(batches)) == 1  # R has no part in the density
    assert abs(mean_nll(flow) - gaussian_optimum(DATA)) < 0.01


@pytest.mark.parametrize("gradient", ["self_norm", "exact", "relative"])
def test_minimize_without_a_scope_ends_at_the_optimum(gradient):
    flow = sn.dense_flow(SIZE, num_layers=1, gradient=gradient, seed=1)
    data = tf.constant(DATA)
    losses = tfp.math.minimize(
        lambda: -tf.reduce_mean(flow.log_prob(tf.identity(data))), NUM_STEPS, decaying_adam()
    )
    assert abs(losses[-1] - gaussian_optimum(DATA)) < 0.01


class InTheScope(keras.Model):
    """The way in O(D^2): a training step of its own that opens the scope."""

    def __init__(self, flow, tracking):
        super().__init__()
        self.flow, self.tracking = flow, tracking

    def call(self, events):
        return self.flow(events)

    def gradients(self, events):
        with tf.GradientTape() as tape, sn.training_scope(self.tracking):
            loss = -tf.reduce_mean(self(events))
        return tape.gradient(loss, self.trainable_variables)

    def train_step(self, data):
        self.optimizer.apply_gradients(zip(self.gradients(data), self.trainable_variables, strict=True))
        return {"steps": self.optimizer.iterations}


def test_a_scope_around_a_flow_in_a_training_step_costs_no_cube_and_ends_at_the_optimum():
    tracking = sn.Tracking()
    flow = sn.FlowModel(sn.dense_flow(SIZE, num_layers=1, seed=1), inverse_learning=tracking)
    model = InTheScope(flow, tracking)
    cubic = {"LogMatrixDeterminant", "MatrixInverse", "MatrixSolve", "Lu"}
    batch = tf.constant(DATA[:8])
    assert not cubic & op_types(model.gradients, batch)
    assert cubic & op_types(flow, batch)  # outside of a scope
    steps, layers = itertools.count(), sn.self_norm_layers(flow.distribution)
    follow = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: tracking.follow(layers, next(steps))
    )
    model.compile(decaying_adam())
    model.fit(DATA, epochs=NUM_EPOCHS, batch_size=BATCH_SIZE, callbacks=[follow], verbose=0)
    assert next(steps) == NUM_STEPS
    assert abs(mean_nll(flow) - gaussian_optimum(DATA)) < 0.01
    assert sn.inverse_error(layers[0], seed=1) < 1e-2


def test_a_scope_that_would_teach_a_tracked_inverse_in_vain_is_refused():
    """Without an error W trained with an R that no gradient reached: 2.73 nats where 2.32 are right."""
    flow = sn.FlowModel(sn.dense_flow(SIZE, num_layers=1, seed=1))
    with (
        sn.training_scope(),
        pytest.raises(ValueError, match="no gradient reaches `forward_kernel` of `dense_0`"),
    ):
        flow(DATA[:8], training=True)
    for learning in (sn.Tracking(num_probes=3), None):
        with sn.training_scope(learning):
            flow(DATA[:8], training=True)


def on_two_replicas(weight):
    script = pathlib.Path(__file__).parents[1] / "helpers" / "mirrored_layer.py"
    run = subprocess.run([sys.executable, script, weight], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_regularizer_counts_once_on_two_replicas():
    found = on_two_replicas("3.0")
    np.testing.assert_allclose(found["losses"], 3.0 * 0.3**2 * found["squares"], rtol=1e-5)


def test_an_adaptive_weight_on_two_replicas_is_refused():
    assert "on several replicas. There its `AdaptiveWeight` cannot be updated" in on_two_replicas("adaptive")


def test_the_file_of_a_bigger_model_needs_a_builder(tmp_path):
    events = keras.Input([SIZE])
    flow = sn.FlowModel.from_builder(sn.dense_flow, event_shape=SIZE, seed=1)
    keras.Model(events, flow(events)).save(tmp_path / "bigger.keras")
    loaded = keras.models.load_model(tmp_path / "bigger.keras")
    np.testing.assert_allclose(loaded(DATA[:5]), flow.log_prob(DATA[:5]), rtol=1e-5)
    flow = sn.FlowModel(sn.dense_flow(SIZE, seed=1))
    with pytest.raises(ValueError, match="from_builder"):
        keras.Model(events, flow(events)).save(tmp_path / "other.keras")
