"""A network inside a flow is treated as Keras treats a layer of a model, held by a bijector or by a
function."""

import functools

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
KEEPS = {
    "held": lambda network: network,
    "closure": lambda network: lambda x: network(x),
    "partial": lambda network: functools.partial(lambda network, x: network(x), network),
    "method": lambda network: Owner(network).call,
    "object": lambda network: Owner(network),
    "tf.function": lambda network: tf.function(lambda x: network(x)),
}


class Owner:
    def __init__(self, network):
        self.networks = {"the one": network}

    def call(self, x):
        return self.networks["the one"](x)

    __call__ = call


@pytest.fixture(params=KEEPS.values(), ids=KEEPS)
def keep(request):
    return request.param


@pytest.fixture
def x(rng):
    return (rng.normal(size=[256, 2]) * [1.0, 3.0] + 1.0).astype(np.float32)


class HasAFunction(Owner):
    @tf.function
    def function(self, x):
        return self.call(x)


def make_network(*layers, seed=1, **options):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input([1]), keras.layers.Dense(8, "tanh", **options), *layers, keras.layers.Dense(2)]
    )


def make_model(network, optimizer="adam"):
    base = tfd.MultivariateNormalDiag(tf.zeros(2))
    coupling = sn.AffineCoupling(network, event_ndims=1)
    flow = tfd.TransformedDistribution(base, tfb.Chain([coupling, sn.SelfNormDense.trainable(2)]))
    model = sn.FlowModel(flow)
    model.compile(optimizer)
    return model


def fit(model, x, **options):
    return model.fit(x, **{"batch_size": 64, "shuffle": False, "verbose": 0, **options}).history


def keras_divides_by():
    """Whether Keras divides an activity loss by the size of a batch, as it does not in 3.10."""
    layer = keras.layers.Dense(1, kernel_initializer="ones", activity_regularizer=keras.regularizers.L1(1.0))
    layer(np.ones([256, 1], np.float32))
    return 256.0 / float(layer.losses[0])


def values(network):
    return [np.copy(weight) for weight in network.get_weights()]


def are_equal(first, second):
    return all(map(np.array_equal, first, second))


def test_a_network_frozen_after_the_model_was_made_stays(keep, x):
    network = make_network()
    model = make_model(keep(network))
    network.trainable = False
    model.compile("adam")
    before = values(network)
    fit(model, x)
    assert are_equal(values(network), before)
    network.trainable = True
    network.layers[0].trainable = False
    model.compile("adam")
    fit(model, x)
    after = values(network)
    assert are_equal(after[:2], before[:2])
    assert not are_equal(after[2:], before[2:])


def test_freezing_the_model_freezes_the_network_and_lets_it_go_again(keep, x):
    network = make_network(keras.layers.Dropout(0.5))
    model = make_model(keep(network))
    model.trainable = False
    assert not model.trainable_variables
    assert not network.trainable_variables
    model.trainable = True
    assert {id(v) for v in network.trainable_variables} < {id(v) for v in model.trainable_variables}


@pytest.mark.parametrize("keep", [KEEPS[name] for name in KEEPS if name != "tf.function"])
def test_every_loss_of_a_network_counts_once(keep, x):
    """Weight regularizer, activity regularizer and add_loss, computed here by numpy."""

    class AddsLoss(keras.layers.Layer):
        def call(self, x):
            self.add_loss(0.5 * tf.reduce_mean(tf.abs(x)))
            return x

    regularizers = {"kernel_regularizer": keras.regularizers.L2(3.0), "activity_regularizer": "l1"}
    network = make_network(AddsLoss(), **regularizers)
    model = make_model(keep(network), keras.optimizers.SGD(0.0))
    history = fit(model, x, batch_size=256)
    kernel, bias = values(network)[:2]
    hidden = np.abs(np.tanh(x[:, :1] @ kernel + bias))
    expected = 3.0 * np.sum(kernel**2) + 0.01 * np.sum(hidden) / keras_divides_by() + 0.5 * np.mean(hidden)
    np.testing.assert_allclose(history["loss"][0] - history["nll"][0], expected, rtol=1e-4)


def test_losses_of_a_network_count_in_a_bigger_model(x):
    network = make_network(kernel_regularizer=keras.regularizers.L2(3.0))
    flow = make_model(network)
    data = keras.Input([2])
    outer = keras.Model(data, flow(data))
    outer.compile(keras.optimizers.SGD(0.0), loss=lambda y, log_prob: -log_prob)
    loss = outer.fit(x, np.zeros(256), batch_size=256, verbose=0).history["loss"][0]
    expected = -np.mean(flow.log_prob(x)) + 3.0 * np.sum(values(network)[0] ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_regularizer_draws_the_weights_where_mathematics_says(x):
    """The density does not depend on the kernel, so only the regularizer moves it: w <- (1 - 2 rate l2) w."""
    network = make_network(kernel_regularizer=keras.regularizers.L2(0.5))
    network.layers[-1].set_weights([np.zeros([8, 2]), np.zeros(2)])
    model = make_model(network, keras.optimizers.SGD(0.1))
    before = values(network)[0]
    fit(model, x, batch_size=256)
    np.testing.assert_allclose(values(network)[0], 0.9 * before, rtol=1e-5)


def test_moving_statistics_are_learned_saved_and_used(keep, x, tmp_path):
    network = make_network(keras.layers.BatchNormalization(momentum=0.0))
    model = make_model(keep(network), keras.optimizers.SGD(0.0))
    # An input of this coupling is the output of a layer that is the identity.
    fit(model, x, batch_size=256)
    kernel, bias = values(network)[:2]
    hidden = np.tanh(x[:, :1] @ kernel + bias)
    moving_mean, moving_variance = values(network)[4:6]
    np.testing.assert_allclose(moving_mean, hidden.mean(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moving_variance, hidden.var(axis=0), rtol=1e-3, atol=1e-4)
    model.save_weights(tmp_path / "flow.weights.h5")
    other_network = make_network(keras.layers.BatchNormalization(momentum=0.0), seed=2)
    other = make_model(keep(other_network))
    other.load_weights(tmp_path / "flow.weights.h5")
    assert are_equal(values(other_network), values(network))
    np.testing.assert_array_equal(other.log_prob(x), model.log_prob(x))


def test_dropout_drops_in_training_alone_and_goes_on_from_a_file(keep, x, tmp_path):
    networks = [make_network(keras.layers.Dropout(0.5)) for _ in range(2)]
    for network in networks:
        network.layers[-1].set_weights([np.ones([8, 2]), np.zeros(2)])
    model, other = (make_model(keep(network)) for network in networks)
    history = fit(model, x, epochs=2)
    assert abs(history["nll"][0] - model.evaluate(x, verbose=0, return_dict=True)["nll"]) > 1e-3
    np.testing.assert_array_equal(model.log_prob(x), model.log_prob(x))
    model.save_weights(tmp_path / "flow.weights.h5")
    fit(other, x)
    other.load_weights(tmp_path / "flow.weights.h5")
    assert fit(other, x) == fit(model, x)
    assert are_equal(values(networks[0]), values(networks[1]))


def test_a_network_of_tf_keras_is_treated_so_too(x):
    regularizer = tf_keras.regularizers.L2(3.0)
    network = tfb.AutoregressiveNetwork(
        params=2, event_shape=[2], hidden_units=[8], kernel_regularizer=regularizer
    )
    flow = tfb.MaskedAutoregressiveFlow(network)(tfd.MultivariateNormalDiag(tf.zeros(2)))
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(0.0))
    history = fit(model, x, batch_size=256)
    kernels = [v.numpy() for v in network.trainable_variables if v.shape.rank == 2]
    expected = 3.0 * sum(np.sum(kernel**2) for kernel in kernels)
    np.testing.assert_allclose(history["loss"][0] - history["nll"][0], expected, rtol=1e-5)
    network.trainable = False
    model.compile(keras.optimizers.SGD(0.1))
    before = values(network)
    with pytest.warns(UserWarning, match="no trainable weights"):
        fit(model, x)
    assert are_equal(values(network), before)


def test_networks_are_layers_of_the_model_and_are_saved_once(x, tmp_path):
    network = make_network()
    model = make_model(lambda x: network(x))
    assert [layer.name for layer in model.layers] == [network.name]
    assert model.count_params() == sum(np.size(v) for v in model.get_weights())
    variables = [id(v.value) for v in model.variables]
    assert len(set(variables)) == len(variables)
    model.save_weights(tmp_path / "flow.weights.h5")
    with h5py.File(tmp_path / "flow.weights.h5") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert sum("kernel" in name for name in names) == 4


def test_networks_that_a_function_names_and_does_not_call_are_left_alone(x):
    unused = make_network(kernel_regularizer=keras.regularizers.L2(1.0))
    networks = {"used": make_network(), "unused": unused}
    model = make_model(lambda x: networks["used"](x))
    assert all(v is not w for v in model.variables for w in unused.variables)
    history = fit(model, x)
    np.testing.assert_allclose(history["loss"], history["nll"], rtol=1e-6)


def test_a_half_precision_network_in_a_closure_has_its_loss_scaled(keep, x):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model(keep(make_network()))
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(fit(model, x)["nll"]).all()


@pytest.mark.parametrize("make", [lambda n: lambda x: n(x), lambda n: n], ids=["closure", "held"])
def test_a_checkpoint_of_tensorflow_holds_all_that_a_file_does(make, x, tmp_path):
    layers = keras.layers.BatchNormalization, lambda: keras.layers.Dropout(0.2)
    model, other = (
        make_model(make(make_network(*(layer() for layer in layers), seed=seed))) for seed in (1, 2)
    )
    fit(model, x, epochs=2)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    other.optimizer.build(other.trainable_variables)
    status = tf.train.Checkpoint(model=other).restore(path)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    for name, variable in other.named_variables.items():
        np.testing.assert_array_equal(variable, model.named_variables[name], err_msg=name)
    np.testing.assert_array_equal(other.log_prob(x), model.log_prob(x))
    assert fit(other, x) == fit(model, x)


def test_a_network_is_called_once_for_a_density_eagerly_too(x):
    """A second call would move the statistics twice, count the loss twice, and drop other units."""
    for options in ({}, {"run_eagerly": True}):
        network = make_network(
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dropout(0.5),
            activity_regularizer="l1",
        )
        model = make_model(network)
        model.compile(keras.optimizers.SGD(0.0), **options)
        history = fit(model, x, batch_size=256)
        kernel, bias, _, _, moving_mean = values(network)[:5]
        hidden = np.tanh(x[:, :1] @ kernel + bias)
        np.testing.assert_allclose(moving_mean, 0.5 * hidden.mean(axis=0), rtol=1e-3, atol=1e-4)
        expected = 0.01 * np.sum(np.abs(hidden)) / keras_divides_by()
        np.testing.assert_allclose(history["loss"][0] - history["nll"][0], expected, rtol=1e-3)


def test_dropout_of_an_eager_step_has_one_mask(x):
    network = make_network(keras.layers.Dropout(0.5))
    outputs = []

    def recorded(inputs):
        outputs.append(network(inputs))
        return outputs[-1]

    model = make_model(recorded)
    outputs.clear()
    model(x, training=True)
    assert len(outputs) == 1


def test_a_network_in_a_method_that_is_a_tf_function_is_found(x):
    network = make_network(kernel_regularizer=keras.regularizers.L2(3.0))
    owner = HasAFunction(network)
    model = make_model(owner.function, keras.optimizers.SGD(0.0))
    history = fit(model, x, batch_size=256)
    expected = 3.0 * np.sum(values(network)[0] ** 2)
    np.testing.assert_allclose(history["loss"][0] - history["nll"][0], expected, rtol=1e-4)


def test_losses_that_a_tf_function_hides_are_named(x):
    network = make_network(activity_regularizer="l1")
    model = make_model(tf.function(lambda x: network(x)))
    with pytest.raises(ValueError, match="adds a loss inside a `tf.function`.*without `tf.function`"):
        fit(model, x)


def test_a_variable_of_two_flows_is_one_variable_of_a_bigger_model(x):
    """Gradient descent takes one step of it, where two wrappers would take two."""
    shift = tf.Variable([0.5, -0.5])
    flows = [
        sn.FlowModel(tfb.Shift(shift)(tfd.MultivariateNormalDiag(tf.fill([2], mean)))) for mean in (0.0, 1.0)
    ]
    data = keras.Input([2])
    outer = keras.Model(data, flows[0](data) + flows[1](data))
    assert len(outer.trainable_variables) == 1
    outer.compile(keras.optimizers.SGD(0.1), loss=lambda y, log_prob: -log_prob)
    outer.fit(x, np.zeros(256), batch_size=256, verbose=0)
    gradient = sum(-np.mean(x - [0.5, -0.5] - mean, axis=0) for mean in (0.0, 1.0))
    np.testing.assert_allclose(shift, [0.5, -0.5] - 0.1 * gradient, rtol=1e-5)
