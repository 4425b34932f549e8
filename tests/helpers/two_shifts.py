"""A builder of two variables of one shape, for tests of saving."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

tfb, tfd = tfp.bijectors, tfp.distributions


@keras.saving.register_keras_serializable("tests")
def two_shifts(names=("first", "second"), size=2):
    """Two variables of one shape, in the order of the names."""
    shifts = [tfb.Shift(tf.Variable(tf.zeros([size]), name=name)) for name in names]
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [size]), tfb.Chain(shifts))


def parts(model):
    return {name: variable.numpy() for name, variable in model.named_variables.items()}
