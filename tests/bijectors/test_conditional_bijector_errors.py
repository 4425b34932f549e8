"""The errors of Conditional: bijectors, embeddings and conditions that do not fit."""

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb = tfp.bijectors


def affine(name="affine"):
    """Shifts and scales both channels by a condition of two numbers alone."""
    return sn.AffineCoupling(
        lambda c: tf.concat([c, c], axis=-1), num_conditioning=0, event_ndims=1, name=name
    )


def of_three_numbers(condition):
    return condition @ tf.ones([3, 2], condition.dtype)


WRONG = {
    "no bijector": (lambda: sn.Conditional(affine), TypeError, "`bijector` must be a TFP bijector"),
    "none takes one": (lambda: sn.Conditional(tfb.Chain([tfb.Exp()])), ValueError, "takes a `condition`"),
    "one name": (
        lambda: sn.Conditional(tfb.Chain([affine("a"), tfb.Scale(2.0, name="a")])),
        ValueError,
        "two parts with the name 'a'",
    ),
    "a structure": (
        lambda: sn.Conditional(tfb.JointMap([affine(), tfb.Exp()])),
        ValueError,
        "must map single tensors",
    ),
    "embedding": (lambda: sn.Conditional(affine(), 3), TypeError, "`embedding` must be callable"),
    "not built": (
        lambda: sn.Conditional(affine(), keras.layers.Dense(2)),
        ValueError,
        "`embedding` .* has no weights yet",
    ),
    "kwargs": (lambda: sn.Conditional(affine(), None, {}), TypeError, "`bijector_kwargs` must be a function"),
    "ndims": (lambda: sn.Conditional(affine(), condition_ndims=-1), ValueError, "`condition_ndims`"),
    "ndims without an embedding": (
        lambda: sn.Conditional(affine(), condition_ndims=(1, 1)),
        ValueError,
        "an int without an embedding",
    ),
    "missing": (
        lambda: sn.Conditional(affine()).inverse(tf.zeros([5, 2])),
        ValueError,
        "needs a `condition`",
    ),
    "another length": (
        lambda: sn.Conditional(affine()).inverse(tf.zeros([5, 2]), condition=tf.zeros([4, 2])),
        ValueError,
        r"leading dimensions of the events, \(5,\)",
    ),
    "more dimensions": (
        lambda: sn.Conditional(affine()).inverse(tf.zeros([5, 2]), condition=tf.zeros([3, 5, 2])),
        ValueError,
        "leading dimensions of the events",
    ),
    "fewer dimensions": (
        lambda: sn.Conditional(affine()).inverse(tf.zeros([5, 2]), condition=1.0),
        ValueError,
        "must have 1 dimensions or more",
    ),
    "a failing embedding": (
        lambda: sn.Conditional(affine(), of_three_numbers).inverse(
            tf.zeros([5, 2]), condition=tf.zeros([5, 4])
        ),
        ValueError,
        r"embedding of `conditional`, called on a condition of shape \(5, 4\), failed",
    ),
}


@pytest.mark.parametrize(("make", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_errors(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
