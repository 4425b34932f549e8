"""The update compiled by XLA is the optimizer's own."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn
from tfp_selfnorm.model import fused_update

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "adam, clipped, on a schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(0.0, 5, warmup_target=1e-2, warmup_steps=2),
        global_clipnorm=0.5,
    ),
    "adamw with averages": lambda: keras.optimizers.AdamW(1e-2, use_ema=True, ema_overwrite_frequency=3),
    "sgd with momentum": lambda: keras.optimizers.SGD(1e-2, momentum=0.9, nesterov=True),
}


class OwnAdam(keras.optimizers.Adam):
    """Of a user, who may do what XLA cannot."""

    def update_step(self, gradient, variable, learning_rate):
        tf.print("updated")
        super().update_step(gradient, variable, learning_rate)


@pytest.fixture
def fused_from(monkeypatch):
    return lambda size: monkeypatch.setattr(fused_update, "_LARGE_VARIABLE", size)


@pytest.fixture
def x():
    return np.random.default_rng(2).normal(size=[40, 3]).astype(np.float32)


def fitted(x, optimizer, **options):
    keras.utils.set_random_seed(1)
    model = sn.FlowModel(sn.dense_flow(3, num_layers=2, seed=1))
    model.compile(optimizer, **options)
    model.fit(x, epochs=2, batch_size=10, shuffle=False, verbose=0)
    return model


def is_compiled(model):
    """Whether something in the training step is for XLA."""
    batches = iter(tf.data.Dataset.from_tensors(np.ones([10, 3], np.float32)).repeat())
    traced = tf.function(lambda: model.train_step(next(batches))).get_concrete_function()
    return re.search(r'"_XlaMustCompile"\s+value {\s+b: true', str(traced.graph.as_graph_def())) is not None


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_and_state_are_those_of_the_plain_update(make, x, fused_from):
    fused_from(10**9)
    plain = fitted(x, make())
    assert not is_compiled(plain)
    fused_from(1)
    fused = fitted(x, make())
    assert is_compiled(fused)
    for ours, expected in zip(
        [*fused.variables, *fused.optimizer.variables],
        [*plain.variables, *plain.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"steps_per_execution": 3}, {"jit_compile": True}], ids=str)
def test_with_the_options_of_compile(options, x, fused_from):
    plain = fitted(x, keras.optimizers.Adam(1e-2), **options)
    fused_from(1)
    fused = fitted(x, keras.optimizers.Adam(1e-2), **options)
    for ours, expected in zip(fused.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_bad_step_is_skipped(x, fused_from):
    fused_from(1)
    model = fitted(x, keras.optimizers.Adam(1e-2))
    before = [variable.numpy() for variable in model.trainable_variables]
    assert model.train_on_batch(np.full([5, 3], 1e30, np.float32), return_dict=True)["skipped_updates"] == 1
    for variable, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_optimizers_of_users_and_scaled_losses_are_left_alone(x, fused_from, capfd):
    fused_from(1)
    assert not is_compiled(fitted(x, OwnAdam(1e-2)))
    assert "updated" in capfd.readouterr().err
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2))
    assert not is_compiled(fitted(x, scaled))


def test_eager_steps_are_left_alone(x, fused_from):
    fused_from(1)
    eager, compiled = (fitted(x, keras.optimizers.Adam(1e-2), run_eagerly=e) for e in (True, False))
    for ours, expected in zip(eager.trainable_variables, compiled.trainable_variables, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_no_xla_where_none_is_wanted_nor_after_saving(x, fused_from, tmp_path):
    fused_from(1)
    for options, expected in (({"jit_compile": False}, False), ({}, True)):
        model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=3, num_layers=2, seed=1)
        model.compile(keras.optimizers.Adam(1e-2), **options)
        model.fit(x, epochs=1, verbose=0)
        model.save(tmp_path / "flow.keras")
        assert [is_compiled(m) for m in (model, keras.models.load_model(tmp_path / "flow.keras"))] == [
            expected,
            expected,
        ]


def test_small_variables_do_not_pay_for_compiling(x):
    assert not is_compiled(fitted(x, keras.optimizers.Adam(1e-2)))
