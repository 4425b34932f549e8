"""What linear flows compute, from their variables alone."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfb, tfd = tfp.bijectors, tfp.distributions


def base(size=3):
    return tfd.MultivariateNormalDiag(tf.zeros(size, tf.float64))


def arrays(layer):
    """W, R and the bias."""
    return layer.inverse_kernel.numpy(), layer.forward_kernel.numpy(), layer.bias.numpy()


def affine_map(bijector):
    """The matrix and the offset of what `forward` computes, from the variables alone."""
    if isinstance(bijector, tfb.Chain):
        matrix, offset = np.eye(3), np.zeros(3)
        for part in reversed(bijector.bijectors):
            part_matrix, part_offset = affine_map(part)
            matrix, offset = part_matrix @ matrix, part_matrix @ offset + part_offset
        return matrix, offset
    if isinstance(bijector, tfb.Invert):
        w, _, bias = arrays(bijector.bijector)
        return w, bias
    w, r, bias = arrays(bijector)
    matrix = r if bijector.inversion == "learned" else np.linalg.inv(w)
    return matrix, -matrix @ bias
