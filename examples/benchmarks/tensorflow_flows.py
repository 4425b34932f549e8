"""The flows of `side_by_side.py` in TensorFlow: those of this package, and of TFP alone.

A maker takes the number of dimensions, the seed, the rate and the bound of the gradient's norm.
"""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from one_side import BATCH

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

_LEARNING = {
    "tracked": sn.Tracking(),
    "paper": sn.Reconstruction(),
    "none": None,
    "free_form": sn.Tracking(reconstruction=sn.Reconstruction(weight=3.0)),
}
# Events that set initial values.
_EXAMPLES = 1200


class Loop:
    """A loop over compiled steps, each of which takes a batch from an iterator.

    `fit` would end with an exact R, which the paper's way of training does not have.
    """

    def __init__(self, shape, step, log_prob, prepare=None):
        self._shape, self._step, self._log_prob, self._prepare = shape, step, log_prob, prepare

    def train(self, events):
        """A step for each batch, in order."""
        if self._prepare is not None:
            self._prepare(events[:_EXAMPLES].reshape(-1, *self._shape))
            self._prepare = None
        batches = events.reshape(-1, BATCH, *self._shape)
        iterator = iter(tf.data.Dataset.from_tensor_slices(batches))
        for _ in range(len(batches)):
            self._step(iterator)

    def log_prob(self, events):
        """Exact, by numpy's arrays."""
        return self._log_prob(events.reshape(-1, *self._shape)).numpy()


def plain_loop(flow, shape, optimizer):
    """As users of TFP write it."""

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(x))
        optimizer.apply(tape.gradient(loss, flow.trainable_variables), flow.trainable_variables)

    return Loop(shape, lambda batches: step(next(batches)), tf.function(flow.log_prob))


def _image(size):
    side = round(size**0.5)
    return (side, side, 1)


def ours(size, seed, rate, clip, builder, learning="tracked", whitens=False, **options):
    keras.utils.set_random_seed(seed)
    shape = _image(size) if builder == "glow_flow" else (size,)
    flow = getattr(sn, builder)(shape, seed=seed, **options)
    model = sn.FlowModel(flow, _LEARNING[learning])
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=clip))

    def prepare(events):
        model.adapt(events, whitens=whitens)
        model.make_train_function()

    return Loop(shape, lambda batches: model.train_function(batches), model.log_prob, prepare)


def scale_matvec_lu(size, seed, rate, clip, solves):
    """Two `ScaleMatvecLU`; the factors are of the map to data, which then solves with them, or to latents."""
    keras.utils.set_random_seed(seed)

    def layer():
        factors, permutation = tf.linalg.lu(tf.eye(size))
        product = tfb.ScaleMatvecLU(tf.Variable(factors), permutation)
        shift = tfb.Shift(tf.Variable(1e-3 * np.random.normal(size=size).astype(np.float32)))
        return tfb.Chain([shift, tfb.Invert(product) if solves else product])

    to_latents = tfb.Chain([layer(), sn.SmoothLeakyReLU(), layer()])
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    flow = tfd.TransformedDistribution(base, tfb.Invert(to_latents))
    return plain_loop(flow, (size,), keras.optimizers.Adam(rate, global_clipnorm=clip))


def glow(size, seed, rate, clip, num_blocks, steps_per_block, width):
    """`tfb.Glow` with its default networks, which are of tf_keras."""
    keras.utils.set_random_seed(seed)
    bijector = tfb.Glow(
        _image(size),
        num_glow_blocks=num_blocks,
        num_steps_per_block=steps_per_block,
        coupling_bijector_fn=functools.partial(tfb.GlowDefaultNetwork, num_hidden=width),
        exit_bijector_fn=tfb.GlowDefaultExitNetwork,
        seed=seed,
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    flow = tfd.TransformedDistribution(base, bijector)
    return plain_loop(flow, _image(size), keras.optimizers.Adam(rate, global_clipnorm=clip))


MAKERS = {"ours": ours, "scale_matvec_lu": scale_matvec_lu, "glow": glow}
