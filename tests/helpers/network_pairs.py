"""Pairs of networks in the plane, of every kind that `LearnedInverse` takes."""

import numpy as np
import tensorflow as tf
import tf_keras

import tfp_selfnorm as sn

SIZE = 2


def matrix(seed):
    return np.eye(SIZE) + 0.2 * np.random.default_rng(seed).normal(size=[SIZE, SIZE])


class Line(tf.Module):
    def __init__(self, seed):
        super().__init__()
        self.kernel = tf.Variable(matrix(seed))

    def __call__(self, y):
        return y @ self.kernel + 0.1 * tf.tanh(y)


class Pair:
    """An object with both networks, as an autoencoder has them."""

    def __init__(self):
        self.lines = [tf.Variable(matrix(seed)) for seed in (1, 2)]

    def encode(self, y):
        return y @ self.lines[0] + 0.1 * tf.tanh(y)

    def decode(self, z):
        return z @ self.lines[1] - 0.1 * tf.tanh(z)


def residual(seed, scale=0.3, dtype="float64"):
    network = sn.residual_network(SIZE, width=4, depth=1, dtype=dtype)
    rng = np.random.default_rng(seed)
    network.set_weights([scale * rng.normal(size=weight.shape) for weight in network.weights])
    return network


def tf_keras_network(seed):
    layer = tf_keras.layers.Dense(SIZE, kernel_initializer="identity", dtype="float64")
    return tf_keras.Sequential([tf_keras.Input([SIZE], dtype="float64"), layer])


def closure(seed):
    kernel = tf.Variable(matrix(seed))
    return lambda y: y @ kernel + 0.1 * tf.tanh(y)


def wrapped(seed):
    network = residual(seed)
    return lambda y: network(y)


def pair_of(make):
    return lambda: (make(1), make(2))


def methods():
    pair = Pair()
    return pair.encode, pair.decode


NETWORKS = {
    "functions with variables": pair_of(closure),
    "functions with networks": pair_of(wrapped),
    "methods of one object": methods,
    "tf.Module": pair_of(Line),
    "tf_keras": pair_of(tf_keras_network),
    "keras": pair_of(residual),
}
