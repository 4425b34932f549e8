"""The contract checks over the registry, and the test that they can fail."""

import contract
import numpy as np
import pytest
import tensorflow as tf
from registry import REGISTRY

from tfp_selfnorm import SmoothLeakyReLU

DOUBLE = {"rtol": 1e-9, "atol": 1e-9}
SINGLE = {"rtol": 2e-4, "atol": 2e-4}
# XLA takes seconds to compile them; one flow, "glow_flow", is compiled in any case.
COMPOSED = (
    "channel_split in a channel_split",
    "conv_flow",
    "glow_flow, lu",
    "invert(self_norm_conv2d)",
    "self_norm_conv1d, exact gradient",
    "self_norm_conv2d, 1x1, exact gradient",
    "self_norm_conv2d, exact gradient, 3x5",
)


def make_data(case, batch=(5,), dtype=tf.float64):
    rng = np.random.default_rng(11)
    x = rng.uniform(-3.0, 3.0, [*batch, *(case.latent_shape or case.event_shape)])
    y = rng.uniform(*case.data_range, [*batch, *case.event_shape])
    return tf.constant(x, dtype), tf.constant(y, dtype)


@pytest.fixture(params=REGISTRY.values(), ids=REGISTRY.keys())
def case(request):
    return request.param


@pytest.fixture
def event_ndims(case):
    return len(case.event_shape)


def batch_of(case):
    """A batch of data that broadcasts with the parameters'."""
    return (2, *case.batch_shape) if case.batch_shape else (5,)


@pytest.mark.usefixtures("uncompiled")
def test_directions_are_inverse(case):
    contract.check_inverse(case.made(tf.float64), *make_data(case, batch_of(case)), DOUBLE)


# The operations of convolutions are compiled here, in the next test and in the graphs.
def test_directions_are_inverse_in_float32(case):
    data = make_data(case, batch_of(case), tf.float32)
    contract.check_inverse(case.made(tf.float32), *data, SINGLE)


def test_log_dets_are_those_of_the_jacobians(case, event_ndims):
    # A gradient for each dimension and event.
    batch = (1,) if case.event_shape[0] > 100 else () if case.batch_shape else (2,)
    contract.check_log_dets(case.made(tf.float64), *make_data(case, batch), event_ndims, DOUBLE)


@pytest.mark.usefixtures("uncompiled")
def test_pairs_have_one_log_det(case, event_ndims):
    contract.check_pairs(case.made(tf.float64), *make_data(case, batch_of(case)), event_ndims, DOUBLE)


@pytest.mark.usefixtures("uncompiled")
def test_every_variable_gets_a_gradient(case, event_ndims):
    contract.check_gradients(
        case.made(tf.float64), *make_data(case, batch_of(case)), event_ndims, case.unused
    )


def test_graphs_equal_eager(case, event_ndims):
    contract.check_compiled(
        case.made(tf.float64), *make_data(case, batch_of(case)), event_ndims, DOUBLE, jit_compile=False
    )


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (n in COMPOSED), id=n) for n, c in REGISTRY.items()],
)
def test_xla_equals_eager(case, event_ndims):
    contract.check_compiled(
        case.made(tf.float64),
        *make_data(case, batch_of(case)),
        event_ndims,
        DOUBLE,
        jit_compile=True,
        with_log_dets=case.xla_log_det,
    )


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("batch", "dtype"),
    [((), tf.float64), ((5,), tf.float64), ((2, 3), tf.float64), ((2, 3), tf.float32)],
)
def test_shapes_and_dtypes(case, event_ndims, batch, dtype):
    if case.batch_shape and batch == (5,):
        batch = (5, *case.batch_shape)
    data = make_data(case, batch, dtype)
    contract.check_shapes(case.made(dtype), *data, event_ndims, case.batch_shape)


def test_copies_share_variables(case):
    contract.check_copy(case.made(tf.float32))


class WrongInverse(SmoothLeakyReLU):
    def _inverse(self, y):
        return 1.01 * super()._inverse(y)


class WrongForwardLogDet(SmoothLeakyReLU):
    def _forward_log_det_jacobian(self, x):
        return super()._forward_log_det_jacobian(x) + 0.01


class WrongInverseLogDet(SmoothLeakyReLU):
    def _inverse_log_det_jacobian(self, y):
        return 1.01 * super()._inverse_log_det_jacobian(y)


class NoGradient(SmoothLeakyReLU):
    def _forward(self, x):
        return tf.stop_gradient(super()._forward(x))

    def _forward_log_det_jacobian(self, x):
        return tf.stop_gradient(super()._forward_log_det_jacobian(x))


def test_the_checks_fail_on_wrong_bijectors():
    x, y = make_data(REGISTRY["smooth_leaky_relu"])
    slope = tf.constant(0.3, tf.float64)
    contract.check_inverse(SmoothLeakyReLU(slope), x, y, DOUBLE)
    with pytest.raises(AssertionError):
        contract.check_inverse(WrongInverse(slope), x, y, DOUBLE)
    for wrong in (WrongForwardLogDet, WrongInverseLogDet):
        with pytest.raises(AssertionError):
            contract.check_log_dets(wrong(slope), x, y, 1, DOUBLE)
    with pytest.raises(AssertionError):
        contract.check_gradients(NoGradient(slope), x, y, 1)


def test_the_cache_hides_a_wrong_inverse_which_is_why_the_checks_break_it():
    wrong = WrongInverse(0.3)
    x = tf.constant([1.0, 2.0])
    y = wrong.forward(x)
    np.testing.assert_array_equal(wrong.inverse(y), x)
    assert np.abs(wrong.inverse(tf.identity(y)) - x).max() > 1e-3
