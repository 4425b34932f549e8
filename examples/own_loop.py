"""A self-normalizing flow without Keras's fit, in O(D^2) a step, compiled.

python examples/own_loop.py
"""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
rng = np.random.default_rng(1)
mixing = rng.normal(size=[5, 5])
data = (rng.laplace(size=[20_000, 5]) @ mixing).astype("float32")  # independent sources, mixed

base = tfd.Sample(tfd.Laplace(0.0, 1.0), 5)
flow = tfd.TransformedDistribution(base, sn.SelfNormDense.trainable(5, seed=1))
sn.whiten(flow, data[:5000])

tracking, layers = sn.Tracking(), sn.self_norm_layers(flow)
# Tracking moves the learned inverse; the optimizer moves all else.
variables = [v for v in flow.trainable_variables if "forward_kernel" not in v.name]
optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 2000))
optimizer.build(variables)


@tf.function
def train_step(x, step):
    with tf.GradientTape() as tape, sn.training_scope(tracking):
        loss = -tf.reduce_mean(flow.log_prob(x))  # the gradient is right, the value leaves out the log-det
    optimizer.apply(tape.gradient(loss, variables), variables)
    tracking.follow(layers, step)


batches = tf.data.Dataset.from_tensor_slices(data).shuffle(len(data), seed=1).repeat().batch(100)
for step, x in enumerate(batches.take(2000)):
    train_step(x, tf.constant(step))
    if step % 200 == 199:
        tracking.refresh(layers, step)
        print(step + 1, "nats:", float(-tf.reduce_mean(flow.log_prob(data))))  # exact outside the scope

entropy = 5 * (1 + np.log(2)) + np.linalg.slogdet(mixing)[1]
print("entropy of the sources and the mixing:", entropy)
