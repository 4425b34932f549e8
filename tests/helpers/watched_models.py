"""Models for the tests of callbacks, and what a sample grid must look like."""

import math

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfd = tfp.distributions
LEVELS = 17


def compiled(distribution, **options):
    """A model that callbacks can be called with; nothing is traced before `fit`."""
    model = sn.FlowModel(distribution)
    model.compile(keras.optimizers.Adam(1e-2), **options)
    return model


def begin(callback, model):
    """What `fit` does before its first step."""
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def pixel_noise(event_shape, loc=None):
    """Independent pixels, of a distribution without self-normalizing layers."""
    loc = tf.Variable(tf.zeros(event_shape) if loc is None else loc)
    noise = tfd.Independent(tfd.Normal(loc, 1.0), len(event_shape))
    return tfd.TransformedDistribution(noise, sn.images.pixel_sigmoid(num_levels=LEVELS))


def dense_images(seed=1):
    return sn.dense_flow((4, 4), num_layers=2, preprocessing=sn.images.pixel_sigmoid(LEVELS), seed=seed)


def read_png(path):
    return tf.io.decode_png(tf.io.read_file(str(path))).numpy()


def expected_grid(samples, columns, levels=LEVELS):
    """Cell by cell and pixel by pixel, slowly."""
    number, height, width = samples.shape[:3]
    rows = -(-number // columns)
    grid = np.full([rows * (height + 1) - 1, columns * (width + 1) - 1, 3], 128)
    for i, sample in enumerate(samples):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        for row in range(height):
            for column in range(width):
                values = np.ravel(sample[row, column])
                if np.isfinite(values).all():
                    values = [min(max(math.floor(v), 0), levels - 1) * 255 / (levels - 1) for v in values]
                    colour = np.round(values)
                else:
                    colour = 255, 0, 0
                grid[top + row, left + column] = colour
    return grid
