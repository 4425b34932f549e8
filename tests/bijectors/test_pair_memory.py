"""What a bijector remembers of its passes, and for how long."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_selfnorm as sn
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


@pytest.mark.parametrize("inversion", ["learned", "exact"])
@pytest.mark.parametrize("at", ["input", "output"])
@pytest.mark.parametrize("direction", ["inverse", "forward"])
def test_a_graph_has_the_held_log_det_of_the_map_and_the_kernels_of_the_pass(
    make_layer, direction, at, inversion
):
    """The kernels change after the pass. The value stays the held one, and the gradient that of the pass."""
    layer = make_layer(3, mixture=0.3, inversion=inversion)
    w, r = layer.inverse_kernel.numpy(), layer.forward_kernel.numpy()
    x, new = tf.constant([[1.0, -2.0, 0.5]], tf.float64), 2.0 * np.eye(3)

    @tf.function
    def scored(x):
        with tf.GradientTape() as tape, sn.training_scope(None, {layer: tf.constant(7.0, tf.float64)}):
            y = getattr(layer, direction)(x)
            for kernel in (layer.inverse_kernel, layer.forward_kernel):
                kernel.assign(new)
            own_log_det = getattr(layer, f"{direction}_log_det_jacobian")
            opposite = {"inverse": layer.forward_log_det_jacobian, "forward": layer.inverse_log_det_jacobian}
            log_det = own_log_det(x) if at == "input" else -opposite[direction](y)
        return log_det, tape.gradient(log_det, [layer.inverse_kernel, layer.forward_kernel])

    log_det, gradients = scored(x)
    sign, of_kernel, of_other = 1.0, 0.3 * r.T, -0.7 * w.T
    if direction == "forward" and inversion == "learned":
        sign, of_kernel, of_other = -1.0, -0.7 * r.T, 0.3 * w.T
    elif direction == "forward":
        # The solve trains W alone.
        sign, of_kernel, of_other = -1.0, -r.T, None
    np.testing.assert_allclose(log_det, sign * 7.0, rtol=1e-12)
    np.testing.assert_allclose(gradients[0], of_kernel, rtol=1e-12)
    assert (gradients[1] is None) == (of_other is None)
    if of_other is not None:
        np.testing.assert_allclose(gradients[1], of_other, rtol=1e-12)


@pytest.mark.parametrize("direction", ["inverse", "forward"])
def test_a_held_log_det_of_a_pass_outside_the_scope_reads_both_kernels(make_layer, direction):
    """The pass has read one kernel alone, which must not stand for the other one."""
    layer = make_layer(3, mixture=0.3)
    w, r = layer.inverse_kernel.numpy(), layer.forward_kernel.numpy()

    @tf.function
    def scored(x):
        with tf.GradientTape() as tape:
            getattr(layer, direction)(x)
            with sn.training_scope(None, {layer: tf.constant(7.0, tf.float64)}):
                log_det = getattr(layer, f"{direction}_log_det_jacobian")(x)
        return log_det, tape.gradient(log_det, [layer.inverse_kernel, layer.forward_kernel])

    log_det, (of_w, of_r) = scored(tf.constant([[1.0, -2.0, 0.5]], tf.float64))
    is_inverse = direction == "inverse"
    np.testing.assert_allclose(log_det, 7.0 if is_inverse else -7.0, rtol=1e-12)
    np.testing.assert_allclose(of_w, (0.3 if is_inverse else -0.7) * r.T, rtol=1e-12)
    np.testing.assert_allclose(of_r, (-0.7 if is_inverse else 0.3) * w.T, rtol=1e-12)


def test_an_eager_pass_has_no_values_for_a_graph():
    passes, x, z, kernel = PairMemory(), tf.ones([2]), tf.zeros([2]), tf.ones([])
    passes.add("inverse", x, z, (kernel,))

    @tf.function
    def compute():
        return tf.constant(passes.values_by_input("inverse", x) == ())

    assert compute()


def test_a_pass_is_found_with_the_tensors_of_its_condition_only():
    a, b = tf.ones([2]), tf.ones([2])
    conditions = [None, a, b, {"a": a, "b": b}, {"a": b, "b": a}, [[1.0, 2.0]], np.ones([2])]
    for i, condition in enumerate(conditions):
        passes, x, z = PairMemory(), tf.ones([2]), tf.zeros([2])
        passes.add("inverse", x, z, condition=condition)
        for j, other in enumerate(conditions):
            is_same = i == j
            assert (passes.values_by_input("inverse", x, other) is not None) == is_same
            assert (passes.values_by_output("inverse", z, other) is not None) == is_same
            assert (passes.input_by_output("inverse", z, other) is x) == is_same
        # The structure may be another object of the same tensors.
        if isinstance(condition, dict):
            assert passes.input_by_output("inverse", z, dict(condition)) is x
