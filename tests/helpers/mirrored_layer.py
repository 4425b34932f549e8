"""Prints the losses of a flow that is a layer of a bigger model on two replicas, as JSON.

The regularizer alone is the loss. Its decoder multiplies by 0.7 where the encoder is the identity.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn


def make_flow(weight):
    networks = [
        keras.Sequential(
            [keras.Input([4]), keras.layers.Dense(4, use_bias=False, kernel_initializer="identity")]
        )
        for _ in range(2)
    ]
    networks[1].set_weights([0.7 * np.eye(4)])
    layer = sn.LearnedInverse(*networks, event_shape=4, gradient="self_norm")
    flow = tfp.distributions.TransformedDistribution(
        tfp.distributions.MultivariateNormalDiag(tf.zeros(4)), layer
    )
    return sn.FlowModel(flow, sn.Reconstruction(weight=weight))


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    weight = sn.AdaptiveWeight(tolerance=0.1) if sys.argv[1] == "adaptive" else float(sys.argv[1])
    x = np.random.default_rng(0).normal(size=[32, 4]).astype(np.float32)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        flow, events = make_flow(weight), keras.Input([4])
        model = keras.Model(events, flow(events))
        model.compile(keras.optimizers.SGD(0.0), loss=lambda y, log_prob: 0.0 * log_prob)
    try:
        history = model.fit(x, np.zeros(32), batch_size=32, epochs=2, verbose=0).history
    except ValueError as error:
        print(json.dumps(str(error)))
        return
    losses = [*history["loss"], model.evaluate(x, np.zeros(32), verbose=0)]
    print(json.dumps({"losses": losses, "squares": float(np.mean(np.sum(x**2, axis=1)))}))


if __name__ == "__main__":
    main()
