"""What a bijector remembers of its passes, and for how long."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm.bijectors.pair_memory import PairMemory


def test_a_pass_is_known_by_either_end_of_its_direction():
    passes, x, z = PairMemory(), tf.ones([2]), tf.zeros([2])
    passes.add("inverse", x, z, (tf.ones([]),))
    assert passes.values_by_input("inverse", x) == passes.values_by_output("inverse", z) == ()
    for unknown in (
        passes.values_by_output("inverse", x),
        passes.values_by_input("inverse", z),
        passes.values_by_input("forward", x),
        passes.values_by_output("forward", z),
        passes.values_by_input("inverse", tf.identity(x)),
    ):
        assert unknown is None


@pytest.mark.parametrize("dies", ["input", "output"])
def test_a_pass_is_forgotten_when_either_end_is_gone(dies):
    passes, ends = PairMemory(), {"input": tf.ones([2]), "output": tf.zeros([2])}
    passes.add("inverse", ends["input"], ends["output"])
    del ends[dies]
    assert not passes._entries
    for end, find in (("input", passes.values_by_input), ("output", passes.values_by_output)):
        assert end == dies or find("inverse", ends[end]) is None


def test_values_are_kept_in_graphs_as_far_as_they_reach():
    passes, found = PairMemory(), {}

    @tf.function
    def compute(x):
        z, kernel = 2.0 * x, 3.0 * x
        passes.add("inverse", x, z, (kernel,))
        found["same graph"] = passes.values_by_input("inverse", x)[0] is kernel

        def branch():
            found["inner graph"] = passes.values_by_output("inverse", z)[0] is kernel
            inner = 4.0 * x
            passes.add("forward", x, inner, (inner,))
            found["kept"] = inner
            return inner

        total = tf.cond(x > 0.0, branch, lambda: x)
        found["outer graph"] = passes.values_by_input("forward", x) == ()
        return total

    compute(tf.ones([]))
    found.pop("kept")
    assert found == {"same graph": True, "inner graph": True, "outer graph": True}


def test_a_graph_scores_with_the_kernel_of_the_pass(make_layer):
    layer = make_layer(3)
    before = np.linalg.slogdet(layer.inverse_kernel)[1]

    @tf.function
    def scored(x):
        layer.inverse(x)
        layer.inverse_kernel.assign(2.0 * np.eye(3))
        return layer.inverse_log_det_jacobian(x)

    np.testing.assert_allclose(scored(tf.ones([2, 3], tf.float64)), before, rtol=1e-12)


def test_an_eager_pass_has_no_values_for_a_graph():
    passes, x, z, kernel = PairMemory(), tf.ones([2]), tf.zeros([2]), tf.ones([])
    passes.add("inverse", x, z, (kernel,))

    @tf.function
    def compute():
        return tf.constant(passes.values_by_input("inverse", x) == ())

    assert compute()
