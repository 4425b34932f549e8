"""The guard by itself: which updates it lets through, and when it speaks."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm.model.update_guard import UpdateGuard


class Guarded:
    """A variable of ones, whose steps of rate 1 are guarded."""

    def __init__(self, max_skipped=2, scale=None):
        def add_state(initial, name, dtype):
            return keras.Variable(initial, dtype=dtype, name=name, trainable=False)

        self.guard, self.variable = UpdateGuard(add_state), keras.Variable(np.ones(2, np.float32))
        self.guard.max_skipped = max_skipped
        self.optimizer = keras.optimizers.SGD(1.0)
        if scale is not None:
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer, initial_scale=scale)
        self.optimizer.build([self.variable])

    def step(self, gradient, loss=0.0):
        """Whether the step was right."""
        if isinstance(gradient, (int, float)):
            gradient = tf.fill([2], float(gradient))
        arguments = [gradient], {"variable": self.variable}, tf.constant(loss), []
        return bool(self.guard.apply(self.optimizer, *arguments))


@pytest.mark.parametrize("gradients", [(np.nan, np.nan), (np.nan, np.nan, 1.0)])
def test_after_a_run_nothing_is_applied_until_the_check_has_raised(gradients):
    guarded = Guarded(max_skipped=2)
    assert [guarded.step(gradient) for gradient in gradients] == [False] * len(gradients)
    np.testing.assert_array_equal(guarded.variable, [1.0, 1.0])
    assert int(guarded.guard.steps) == len(gradients)
    with pytest.raises(ValueError, match="2 updates in a row were not finite and so skipped, from step 7 on"):
        guarded.guard.check(7)
    assert guarded.step(1.0)
    np.testing.assert_array_equal(guarded.variable, [0.0, 0.0])


def test_a_good_step_ends_a_run():
    guarded = Guarded(max_skipped=2)
    assert [guarded.step(gradient) for gradient in (np.nan, 0.25, np.inf, 0.25)] == [False, True] * 2
    guarded.guard.check(4)
    np.testing.assert_array_equal(guarded.variable, [0.5, 0.5])


@pytest.mark.parametrize("scale", [None, 4.0])
def test_a_loss_that_is_not_finite_stops_finite_and_overflown_gradients(scale):
    guarded = Guarded(scale=scale, max_skipped=9)
    for gradient, loss in itertools.product((1.0, np.inf), (np.nan, np.inf)):
        assert not guarded.step(gradient, loss)
    np.testing.assert_array_equal(guarded.variable, [1.0, 1.0])
    if scale is not None:
        assert float(guarded.optimizer.dynamic_scale) == scale


def test_the_squares_are_those_without_the_scale_of_the_loss():
    guarded = Guarded(scale=2.0**70)
    assert guarded.step(2.0**69)
    np.testing.assert_array_equal(guarded.variable, [0.5, 0.5])
    assert not Guarded(scale=4.0).step(2.0**69)


def test_sparse_gradients_are_looked_at_too():
    guarded = Guarded()
    for value, is_right in ((np.nan, False), (1.0, True)):
        gradient = tf.IndexedSlices(tf.constant([value]), tf.constant([1]), tf.constant([2]))
        assert guarded.step(gradient) == is_right
    np.testing.assert_array_equal(guarded.variable, [1.0, 0.0])
