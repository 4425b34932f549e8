"""Names by which files and optimizers tell variables apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from two_shifts import parts, two_shifts

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.fixture
def data(rng):
    return rng.normal(size=[40, 2]).astype(np.float32)


def test_reordered_variables_of_one_shape_find_their_values_and_momenta(tmp_path, data):
    model = sn.FlowModel.from_builder(two_shifts)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(data, epochs=1, verbose=0)
    first, second = model.distribution.bijector.bijectors
    first.shift.assign([1.0, 2.0])
    momenta = dict(zip([v.name for v in model.trainable_variables], model.optimizer.momentums, strict=True))
    momenta["first"].assign([5.0, 6.0])
    model.save_weights(tmp_path / "flow.weights.h5")
    other = sn.FlowModel.from_builder(two_shifts, names=["second", "first"])
    other.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "flow.weights.h5")
    now_second, now_first = other.distribution.bijector.bijectors
    np.testing.assert_array_equal(now_first.shift, [1.0, 2.0])
    np.testing.assert_array_equal(now_second.shift, second.shift)
    momenta = dict(zip([v.name for v in other.trainable_variables], other.optimizer.momentums, strict=True))
    np.testing.assert_array_equal(momenta["first"], [5.0, 6.0])


def test_variables_of_one_name_are_told_apart_by_where_they_stand():
    names = [variable.name for variable in sn.FlowModel(two_shifts(["shift", "shift"])).trainable_variables]
    assert names == ["shift.bijector.bijectors.0.shift", "shift.bijector.bijectors.1.shift"]


class Line(tf.Module):
    """A network with two variables of one shape, under attributes of given names."""

    def __init__(self, first, second):
        super().__init__()
        self.attributes = first, second
        for value, name in enumerate(self.attributes):
            setattr(self, name, tf.Variable(tf.fill([2], float(value))))

    def __call__(self, x):
        first, second = (getattr(self, name) for name in self.attributes)
        return x * first[0] + second


def coupled(network, size=2):
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    return tfd.TransformedDistribution(base, sn.AffineCoupling(network, 1, event_ndims=1))


def test_a_renamed_attribute_of_a_network_does_not_swap(tmp_path):
    model = sn.FlowModel(coupled(Line("a", "b")))
    assert [v.name for v in model.trainable_variables] == ["bijector.network.a", "bijector.network.b"]
    model.save_weights(tmp_path / "flow.weights.h5")
    reordered = Line("b", "a")
    sn.FlowModel(coupled(reordered)).load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(reordered.a, [0.0, 0.0])
    with pytest.raises(
        ValueError, match="`bijector.network.z` is missing in the file; `bijector.network.a` is"
    ):
        sn.FlowModel(coupled(Line("z", "b"))).load_weights(tmp_path / "flow.weights.h5")


def test_named_bijectors_in_another_order_find_unnamed_variables(tmp_path):
    def shifts(names):
        parts = [tfb.Shift(tf.Variable([0.0, 0.0]), name=name) for name in names]
        return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), tfb.Chain(parts)), parts

    flow, (_, up) = shifts(["down", "up"])
    up.shift.assign([1.0, 2.0])
    sn.FlowModel(flow).save_weights(tmp_path / "flow.weights.h5")
    flow, (up, down) = shifts(["up", "down"])
    sn.FlowModel(flow).load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(up.shift, [1.0, 2.0])
    np.testing.assert_array_equal(down.shift, [0.0, 0.0])


class Custom(keras.Model):
    def __init__(self):
        super().__init__()
        self.last, self.hidden = (
            keras.layers.Dense(2),
            [keras.layers.Dense(3), keras.layers.BatchNormalization()],
        )

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.last(x)


def sequential():
    return keras.Sequential([keras.Input([1]), keras.layers.Dense(3), keras.layers.Dense(2)])


def functional():
    x = keras.Input([1])
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(keras.layers.Dense(3)(x))))


def custom():
    network = Custom()
    network(tf.zeros([1, 1]))
    return network


def in_a_closure():
    layers = keras.layers.Dense(3), keras.layers.Dense(2)
    return lambda x: layers[1](layers[0](x))


@pytest.mark.parametrize("make", [sequential, functional, custom, in_a_closure])
def test_names_do_not_count_what_was_built_before(make, tmp_path):
    model = sn.FlowModel(coupled(make()))
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    model.save_weights(tmp_path / "flow.weights.h5")
    other = sn.FlowModel(coupled(make()))
    other.load_weights(tmp_path / "flow.weights.h5")
    assert parts(other).keys() == parts(model).keys()
    for name, value in parts(model).items():
        np.testing.assert_array_equal(parts(other)[name], value, err_msg=name)


def test_weights_of_networks_go_by_their_attributes_and_layers():
    names = list(sn.FlowModel(coupled(custom())).named_variables)
    path = "bijector.network"
    assert names[:8] == [
        *(f"{path}.hidden.0.{part}" for part in ("bias", "kernel")),
        *(f"{path}.hidden.1.{part}" for part in ("beta", "gamma", "moving_mean", "moving_variance")),
        *(f"{path}.last.{part}" for part in ("bias", "kernel")),
    ]


def test_state_of_the_package_makes_way_for_names_of_the_user(tmp_path):
    model = sn.FlowModel(two_shifts(["skipped_in_a_row", "training_steps"]))
    names = [variable.name for variable in model.variables]
    assert len(set(names)) == len(names)
    model.save_weights(tmp_path / "flow.weights.h5")
    model.load_weights(tmp_path / "flow.weights.h5")


def test_variables_are_in_the_order_of_their_numbers():
    names = [f"block_{i}" for i in (10, 2, 1)]
    model = sn.FlowModel(two_shifts(names))
    assert [variable.name for variable in model.trainable_variables] == ["block_1", "block_2", "block_10"]


def test_builders_give_each_variable_a_name_of_its_own():
    flows = [
        sn.dense_flow(2, num_layers=3, activation="spline"),
        sn.conv_flow((4, 4, 1), num_blocks=2, layers_per_block=2, activation="spline"),
        sn.glow_flow((4, 4, 1), steps_per_block=2, width=4),
        sn.glow_flow((4, 4, 1), steps_per_block=2, width=4, layer="lu"),
    ]
    for flow in flows:
        names = [variable.name for variable in flow.variables]
        assert len(set(names)) == len(names)


def test_names_of_hidden_networks_do_not_depend_on_the_call_that_made_them(data, tmp_path):
    """The first call builds the networks: from data to latent in log_prob, from latent to data in sample."""

    def make():
        def coupling(units):
            network = keras.Sequential([keras.layers.Dense(units, "tanh"), keras.layers.Dense(2)])
            return tfb.RealNVP(1, shift_and_log_scale_fn=lambda x, *_, **__: tf.split(network(x), 2, axis=-1))

        parts = [coupling(4), tfb.Permute([1, 0]), coupling(4), tfb.Permute([1, 0])]
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), tfb.Chain(parts))

    first, second = make(), make()
    first.sample(1)
    second.log_prob(data)
    model, other = sn.FlowModel(first), sn.FlowModel(second)
    assert list(model.named_variables) == list(other.named_variables)
    model.save_weights(tmp_path / "flow.weights.h5")
    other.load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(other.log_prob(data), model.log_prob(data))


def test_names_in_templates_do_not_depend_on_the_call_that_made_them(data, tmp_path):
    def make():
        templates = [tfb.real_nvp_default_template(hidden_layers=[4]) for _ in range(2)]
        first, second = (tfb.RealNVP(1, shift_and_log_scale_fn=template) for template in templates)
        parts = [first, tfb.Permute([1, 0]), second, tfb.Permute([1, 0])]
        return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), tfb.Chain(parts))

    first, second = make(), make()
    first.sample(1)
    second.log_prob(data)
    model, other = sn.FlowModel(first), sn.FlowModel(second)
    model.save_weights(tmp_path / "flow.weights.h5")
    other.load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(other.log_prob(data), model.log_prob(data))
