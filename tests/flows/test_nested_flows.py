"""The cost of nested flows, counted: it grows with the number of layers, and not faster."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
DEPTHS = [1, 2, 3, 4, 5, 6]


class Counted(tfb.Shift):
    """A shift that counts what it is asked for."""

    calls = []

    def _forward(self, x):
        self.calls.append("forward")
        return super()._forward(x)

    def _inverse(self, y):
        self.calls.append("inverse")
        return super()._inverse(y)

    def _forward_log_det_jacobian(self, x):
        self.calls.append("log_det")
        return super()._forward_log_det_jacobian(x)


def nested(depth):
    """As a Glow is: in each level a chain of a layer and the split of the next level."""
    bijector = Counted(tf.ones([]))
    for level in range(1, depth):
        split = sn.ChannelSplit(
            tfb.Chain([bijector, Counted(1.0)]), num_channels=2**level, name=f"level_{level}"
        )
        bijector = tfb.Chain([split, Counted(1.0)])
    normal = tfd.Sample(tfd.Normal(0.0, 1.0), [2**depth])
    return tfd.TransformedDistribution(normal, bijector)


def glow(num_blocks):
    flow = sn.glow_flow((64, 64, 1), num_blocks=num_blocks, steps_per_block=1, width=2, seed=1)
    sn.adapt(flow, np.random.default_rng(1).normal(size=[4, 64, 64, 1]))
    return flow


@pytest.fixture
def parameterizations(monkeypatch):
    """Counts how often TFP looks at all parameters of a bijector, to hash it or to compare it."""
    calls, original = [], tfb.Bijector._get_parameterization

    def counted(self):
        calls.append(self.name)
        return original(self)

    monkeypatch.setattr(tfb.Bijector, "_get_parameterization", counted)
    return calls


def check_linear(counts):
    """Each level adds no more than the second did, but for a tenth."""
    added = np.diff(counts)
    assert min(counts) > 0
    assert (added <= 1.1 * added[:2].max()).all(), counts


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(("make", "shape"), [(nested, None), (glow, [1, 64, 64, 1])], ids=["splits", "glow"])
def test_a_level_of_nesting_costs_what_the_level_before_did(make, shape, compiled, parameterizations):
    looks, calls = [], []
    for depth in DEPTHS:
        flow = make(depth)
        x = tf.zeros(shape or [3, 2**depth])
        del parameterizations[:], Counted.calls[:]
        (tf.function(flow.log_prob) if compiled else flow.log_prob)(x)
        looks.append(len(parameterizations))
        calls.append(len(Counted.calls))
    check_linear(looks)
    if make is nested:
        # Each of its layers maps once, and gives its log-det once.
        assert calls == [2 * (2 * depth - 1) for depth in DEPTHS]


@pytest.mark.parametrize(
    "make",
    [
        lambda layers: sn.dense_flow(2, num_layers=layers, seed=1),
        lambda layers: sn.conv_flow(
            (2, 2, 1), num_blocks=1, layers_per_block=layers, centering=False, seed=1
        ),
    ],
    ids=["dense_flow", "conv_flow"],
)
def test_a_layer_of_a_chain_costs_what_the_layer_before_did(make, parameterizations):
    looks = []
    for layers in (2, 4, 6, 8):
        flow = make(layers)
        x = tf.zeros([1, *flow.event_shape])
        del parameterizations[:]
        flow.log_prob(x)
        looks.append(len(parameterizations))
    check_linear(looks)


def test_splits_of_one_name_do_not_share_what_they_computed():
    """The hash goes by the name; equality still goes by all parameters."""
    one, other = (sn.ChannelSplit(tfb.Scale(scale), name="split") for scale in (2.0, 3.0))
    same = one.copy()
    assert hash(one) == hash(other) == hash(same)
    assert one == same
    assert one != other
    y = tf.constant([[6.0, 1.0]])
    alive = one.inverse(y)
    assert same.inverse(y) is alive
    np.testing.assert_array_equal(other.inverse(y), [[2.0, 1.0]])
    np.testing.assert_allclose(other.inverse_log_det_jacobian(y), [-np.log(3.0)])
    np.testing.assert_allclose(one.inverse_log_det_jacobian(y), [-np.log(2.0)])


def test_a_pair_inside_a_split_keeps_the_log_det_of_the_map_that_made_it():
    """Two kernels that are no inverses of each other, three levels down."""
    dense = sn.SelfNormDense(tf.constant([[5.0]]), tf.constant([[3.0]]))
    inner = sn.ChannelSplit(dense, num_channels=1, name="inner")
    split = sn.ChannelSplit(tfb.Chain([inner, tfb.Scale(2.0)]), num_channels=2, name="outer")
    y = tf.constant([[6.0, 2.0, 7.0]])
    x = split.inverse(y)
    np.testing.assert_allclose(x, [[9.0, 1.0, 7.0]])
    expected = np.log(3.0) - 2.0 * np.log(2.0)
    np.testing.assert_allclose(split.inverse_log_det_jacobian(y), [expected], rtol=1e-6)
    np.testing.assert_allclose(split.forward_log_det_jacobian(x), [-expected], rtol=1e-6)
    x = tf.constant([[1.0, 1.0, 7.0]])
    y = split.forward(x)
    np.testing.assert_allclose(y, [[10.0, 2.0, 7.0]])
    expected = np.log(5.0) + 2.0 * np.log(2.0)
    np.testing.assert_allclose(split.forward_log_det_jacobian(x), [expected], rtol=1e-6)
    np.testing.assert_allclose(split.inverse_log_det_jacobian(y), [-expected], rtol=1e-6)
