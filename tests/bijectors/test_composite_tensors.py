"""Bijectors as TensorFlow's CompositeTensors: into and out of functions, loops and conditions."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def keras_network(outputs=4):
    """From two numbers."""
    layers = [keras.layers.Dense(3, "tanh"), keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input([2]), *layers])


class Module(tf.Module):
    def __init__(self):
        self.weight = tf.Variable(tf.ones([2, 4]))

    def __call__(self, kept):
        return kept @ self.weight


def scaled(kept):
    return tf.concat([kept, kept], axis=-1)


def glow():
    flow = sn.glow_flow((4, 4, 1), num_blocks=2, steps_per_block=1, width=2, seed=1)
    sn.adapt(flow, np.random.default_rng(1).normal(size=[10, 4, 4, 1]))
    for variable in flow.trainable_variables:
        variable.assign_add(tf.random.stateless_normal(variable.shape, [1, 2], stddev=0.1))
    return flow.bijector


MAKERS = {
    "coupling": lambda: sn.AffineCoupling(keras_network(), event_ndims=1),
    "coupling of a function": lambda: sn.AffineCoupling(scaled, event_ndims=1),
    "split": lambda: sn.ChannelSplit(sn.SelfNormDense.trainable(2, seed=1)),
    "chain": lambda: tfb.Chain(
        [
            sn.AffineCoupling(keras_network(), event_ndims=1, name="other"),
            sn.ChannelSplit(sn.ActNorm(tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0]))),
        ]
    ),
    "glow": glow,
}


@pytest.fixture(params=MAKERS, scope="module")
def bijector(request):
    return MAKERS[request.param]()


def data_for(bijector):
    shape = (2, 4, 4, 1) if bijector.inverse_min_event_ndims == 3 else (3, 4)
    return tf.constant(np.random.default_rng(2).normal(size=shape), tf.float32)


def outputs(bijector, y):
    return bijector.inverse(tf.identity(y)), bijector.inverse_log_det_jacobian(tf.identity(y))


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_they_go_into_and_out_of_functions(bijector):
    assert isinstance(bijector, tf.__internal__.CompositeTensor)
    y = data_for(bijector)
    expected = outputs(bijector, y)
    check_same(tf.function(outputs)(bijector, y), expected)
    check_same(outputs(tf.function(lambda value: value)(bijector), y), expected)

    @tf.function
    def loop(value):
        return tf.while_loop(lambda i, _: i < 2, lambda i, v: (i + 1, v), (0, value))[1]

    check_same(outputs(loop(bijector), y), expected)
    branch = tf.function(lambda is_first: tf.cond(is_first, lambda: bijector, lambda: bijector))
    check_same(outputs(branch(tf.constant(True)), y), expected)
    flat = tf.nest.flatten(bijector, expand_composites=True)
    assert {id(v) for v in bijector.variables} <= {id(v) for v in flat}
    check_same(outputs(tf.nest.pack_sequence_as(bijector, flat, expand_composites=True), y), expected)


def test_a_function_traces_once_for_copies(bijector):
    traced = []

    @tf.function
    def inverse(value, y):
        traced.append(1)
        return value.inverse(y)

    y = data_for(bijector)
    for value in (bijector, bijector, bijector.copy()):
        inverse(value, y)
    assert len(traced) == 1


def test_the_gradients_are_those_outside(bijector):
    y = data_for(bijector)

    def gradients(value, y):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(value.inverse(tf.identity(y)) ** 2)
        return tape.gradient(total, value.trainable_variables, unconnected_gradients="zero")

    expected = gradients(bijector, y)
    assert len(expected) == len(bijector.trainable_variables)
    check_same(tf.function(gradients)(bijector, y), expected)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.function(lambda v, y: v.inverse(y) ** 2)(bijector, y))
    check_same(tape.gradient(total, bijector.trainable_variables, unconnected_gradients="zero"), expected)


def test_a_function_follows_the_variables():
    coupling = MAKERS["coupling"]()
    inverse = tf.function(lambda value, y: value.inverse(y))
    y = data_for(coupling)
    inverse(coupling, y)
    coupling.network.layers[-1].bias.assign([1.0, 2.0, 0.0, 0.0])
    check_same([inverse(coupling, y)], [coupling.inverse(tf.identity(y))])


def test_a_function_can_train_a_flow_that_it_is_given():
    coupling = MAKERS["coupling"]()
    y = data_for(coupling)
    before = coupling.inverse(tf.identity(y))

    @tf.function
    def step(value):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(value.inverse(y) ** 2)
        for variable, gradient in zip(
            value.trainable_variables, tape.gradient(loss, value.trainable_variables), strict=True
        ):
            variable.assign_sub(0.01 * gradient)
        return loss

    losses = [step(coupling) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert np.abs(coupling.inverse(tf.identity(y)) - before).max() > 1e-3


def test_a_network_computes_with_the_values_that_it_is_given():
    """Also beside the network with its own, for one tensor: TFP's cache must tell them apart."""
    network = keras.Sequential([keras.Input([2]), keras.layers.Dense(4, kernel_initializer="ones")])
    coupling = sn.AffineCoupling(network, event_ndims=1)
    doubled = tf.nest.map_structure(lambda value: 2.0 * value, coupling, expand_composites=True)
    y = tf.constant([[0.5, 0.25, 1.0, 2.0]])
    for one, scale in ((coupling, 1.0), (doubled, 2.0), (doubled.copy(name="copy"), 2.0)):
        h = scale * 0.75
        expected = np.exp(2.0 * np.tanh(h / 2.0)) * np.array([[1.0, 2.0]]) + h
        np.testing.assert_allclose(one.inverse(y)[:, 2:], expected, rtol=1e-6)
    assert coupling != doubled
    assert coupling == coupling.copy()
    np.testing.assert_array_equal(network.layers[0].kernel, np.ones([2, 4]))


def doubled_coupling():
    coupling = MAKERS["coupling"]()
    return tf.nest.map_structure(lambda value: 2.0 * value, coupling, expand_composites=True)


def test_copies_keep_the_values_that_they_are_given():
    doubled = doubled_coupling()
    y = data_for(doubled)
    for other in (doubled.copy(), copy.copy(doubled), pickle.loads(pickle.dumps(doubled))):
        check_same([other.inverse(tf.identity(y))], [doubled.inverse(tf.identity(y))])
    assert doubled == doubled.copy() != sn.AffineCoupling(doubled.network, event_ndims=1)


@pytest.mark.parametrize("network", [keras_network(), scaled, Module()], ids=["keras", "function", "module"])
def test_a_copy_with_another_network_computes_with_that_one(network):
    new = doubled_coupling().copy(network=network)
    expected = sn.AffineCoupling(network, event_ndims=1)
    assert type(new) is type(expected)
    assert new.parameters.keys() == expected.parameters.keys()
    y = data_for(new)
    check_same([new.inverse(tf.identity(y))], [expected.inverse(tf.identity(y))])


class Calls(keras.layers.Layer):
    """Counts its calls, as layers count their moving statistics."""

    def build(self, input_shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return keras.ops.tile(x, [1, 2])


def test_what_a_network_assigns_is_kept():
    coupling = sn.AffineCoupling(keras.Sequential([keras.Input([2]), Calls()]), event_ndims=1)
    inverse = tf.function(lambda value, y: value.inverse(y))
    for _ in range(3):
        inverse(coupling, tf.ones([3, 4]))
    assert coupling.network.layers[0].count == 3.0


@pytest.mark.parametrize("wrap", [lambda b: b, tfb.Invert, lambda b: tfb.Chain([b]), sn.ChannelSplit])
@pytest.mark.parametrize(("network", "count"), [(keras_network(), 4), (Module(), 1)], ids=["keras", "module"])
def test_whatever_holds_it_sees_its_variables(network, count, wrap):
    coupling = sn.AffineCoupling(network, event_ndims=1)
    assert isinstance(coupling, sn.AffineCoupling)
    own = {id(getattr(v, "value", v)) if count == 4 else id(v) for v in network.trainable_variables}
    assert {id(variable) for variable in wrap(coupling).trainable_variables} == own
    assert coupling.parameters["network"] is network
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [8]), wrap(coupling))
    assert len(flow.trainable_variables) == count


def test_without_a_way_to_give_variables_there_is_no_composite_tensor():
    coupling = sn.AffineCoupling(Module(), event_ndims=1)
    real_nvp = tfb.RealNVP(1, shift_and_log_scale_fn=lambda a, units: (a, a))
    for bijector in (coupling, sn.ChannelSplit(coupling), sn.ChannelSplit(real_nvp)):
        assert not isinstance(bijector, tf.__internal__.CompositeTensor)
        assert isinstance(bijector, (sn.AffineCoupling, sn.ChannelSplit))
    # A copy is of the kind that its parameters make.
    assert isinstance(coupling.copy(network=keras_network()), tf.__internal__.CompositeTensor)
    composite = MAKERS["coupling"]()
    assert not isinstance(composite.copy(network=Module()), tf.__internal__.CompositeTensor)
    split = MAKERS["split"]()
    assert not isinstance(split.copy(bijector=real_nvp), tf.__internal__.CompositeTensor)
    assert isinstance(split.copy(name="copy"), tf.__internal__.CompositeTensor)


def test_a_deep_copy_has_a_network_of_its_own():
    coupling = MAKERS["coupling"]()
    other = copy.deepcopy(coupling)
    y = data_for(coupling)
    check_same([other.inverse(y)], [coupling.inverse(tf.identity(y))])
    other.network.layers[-1].bias.assign(tf.ones([4]))
    assert np.abs(other.inverse(tf.identity(y)) - coupling.inverse(tf.identity(y))).max() > 0.1


@pytest.mark.parametrize(
    "make", [lambda: sn.ActNorm(tf.ones(3), tf.zeros(3)), lambda: sn.ActNorm.trainable(3)]
)
def test_act_norm_passes_what_tfp_asks_of_all_bijectors(make):
    norm = make()
    assert norm.experimental_batch_shape(x_event_ndims=1) == []
    np.testing.assert_array_equal(norm.experimental_batch_shape_tensor(y_event_ndims=3), [])
    assert [p.instance_event_ndims(norm) for p in norm.parameter_properties().values()] == [1, 1, 0]
    assert norm.inverse_dtype() == norm.forward_dtype() == tf.float32
    constant = norm._convert_variables_to_tensors()
    assert constant.has_initial_values() == norm.has_initial_values()
    base = tfd.Sample(tfd.Normal([0.0, 5.0], 1.0), [3])
    flow = tfd.TransformedDistribution(base, norm)
    np.testing.assert_array_equal(flow.batch_shape_tensor(), [2])
    assert flow[1].batch_shape == []
    if norm.has_initial_values():
        # exp(0) y = x + 1 around 5, of each channel
        expected = -0.5 * 3 * (4.0**2 + np.log(2.0 * np.pi))
        np.testing.assert_allclose(flow[1].log_prob(2.0 * tf.ones([3])), expected, rtol=1e-6)
        np.testing.assert_allclose(flow.log_prob(2.0 * tf.ones([3]))[1], expected, rtol=1e-6)
    else:
        with pytest.raises(ValueError, match="has no initial values yet"):
            flow[1].log_prob(tf.ones([3]))
        with pytest.raises(TypeError, match="cannot adapt to data: its parameters are no variables"):
            sn.adapt(flow[1], tf.constant(np.random.default_rng(1).normal(size=[9, 3]), tf.float32))
