"""The search for networks in functions, and the variables of Keras that they read."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.structure.network_search import find_networks

tfd = tfp.distributions


def test_classes_that_a_function_names_are_not_searched():
    class Registry:
        network = keras.layers.Dense(2)

    assert find_networks(lambda x: Registry) == []


def test_the_inside_of_a_network_is_not_searched():
    class Outer(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.function = lambda x: inner(x)

    outer = Outer(keras.layers.Dense(2))
    assert find_networks(lambda x: outer(x)) == [outer]


def test_a_variable_of_a_closure_that_is_not_set_yet_is_passed_over():
    network = keras.layers.Dense(2)

    def function(x):
        return late + network(x)

    assert find_networks(function) == [network]
    late = 1.0


def test_a_network_whose_layers_are_not_all_called_is_a_layer_of_the_model():
    network = keras.Sequential([keras.Input([1]), keras.layers.Dense(2), keras.layers.Dense(4)])
    coupling = sn.AffineCoupling(lambda x: network.layers[0](x), event_ndims=1)
    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2)), coupling)
    model = sn.FlowModel(flow)
    assert [layer.name for layer in model.layers] == [network.name]
