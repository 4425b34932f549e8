"""Bad input to the convolutional layers: refused, and named."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_selfnorm import SelfNormConv2D


def kernel(*shape):
    return np.ones(shape, np.float32)


ONE, TWO = kernel(3, 3, 1, 1), kernel(3, 3, 2, 2)
WRONG = {
    "even size": ((kernel(2, 3, 1, 1),) * 2, {}, r"`forward_kernel` must have odd sizes.*\(2, 3, 1, 1\)"),
    "channels": ((kernel(3, 3, 1, 2),) * 2, {}, r"a known shape \[kh, kw, C, C\]; got \(3, 3, 1, 2\)"),
    "rank": ((kernel(3, 1, 1),) * 2, {}, r"a known shape \[kh, kw, C, C\]; got \(3, 1, 1\)"),
    "two shapes": ((ONE, kernel(5, 5, 1, 1)), {}, "must have the same shape"),
    "unknown image": ((ONE, ONE), {"spatial_shape": (4, None)}, "must be 2 positive ints.*None"),
    "rank of image": ((ONE, ONE), {"spatial_shape": (4,)}, "`spatial_shape` must be 2 positive ints"),
    "unknown rank": ((ONE, ONE), {"spatial_shape": tf.TensorShape(None)}, "`spatial_shape` must be 2"),
    "bias": ((TWO, TWO), {"bias": kernel(3)}, r"`bias` must have shape \(2,\), one for each.*\(3,\)"),
    "gradient": (
        (ONE, ONE),
        {"gradient": "relative"},
        r"one of \('self_norm', 'exact', 'circulant'\); got 'relative'",
    ),
}


@pytest.mark.parametrize(("kernels", "options", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_parameters_are_refused(kernels, options, message):
    with pytest.raises(ValueError, match=message):
        SelfNormConv2D(*kernels, **{"spatial_shape": (4, 4)} | options)


def test_other_dtypes_are_refused():
    integers = np.ones([3, 3, 1, 1], int)
    with pytest.raises(TypeError, match="`forward_kernel` must be floating.*got dtype int64"):
        SelfNormConv2D(integers, integers, (4, 4))
    halves = np.ones([3, 3, 1, 1], np.float16)
    with pytest.raises(TypeError, match="must be floating, float32 or float64; got dtype float16"):
        SelfNormConv2D(halves, halves, (4, 4))
    with pytest.raises(TypeError, match="`forward_kernel` must be a tensor or a tf.Variable; got None"):
        SelfNormConv2D(None, None, (4, 4))
    with pytest.raises(TypeError, match="`mixture` must be a number; got 'x'"):
        SelfNormConv2D(ONE, ONE, (4, 4), mixture="x")
    layer = SelfNormConv2D.trainable((4, 4), 2)
    with pytest.raises((TypeError, ValueError), match=r"float32.*int32|int32.*float32"):
        layer.inverse(tf.ones([4, 4, 2], tf.int32))


@pytest.mark.parametrize("size", [2, 0, -1, 3.0, (3, 4), (3, 3, 3), True])
def test_wrong_kernel_sizes_are_refused(size):
    with pytest.raises(ValueError, match="`kernel_size` must be an odd positive int"):
        SelfNormConv2D.trainable((4, 4), 2, kernel_size=size)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="`channels` must be a positive int; got None"):
        SelfNormConv2D.trainable((4, 4), None)
    layer = SelfNormConv2D.trainable((4, 4), 2)
    with pytest.raises(
        ValueError, match=r"`y` of `self_norm_conv2d` has shape \(4, 4, 3\); expected.*4, 4, 2"
    ):
        layer.inverse(tf.ones([4, 4, 3]))
    unknown = tf.function(layer.inverse, input_signature=[tf.TensorSpec(None)])
    assert unknown(tf.ones([3, 4, 4, 2])).shape == (3, 4, 4, 2)
    compiled = tf.function(layer.inverse, input_signature=[tf.TensorSpec([None] * 4)])
    assert compiled(tf.ones([3, 4, 4, 2])).shape == (3, 4, 4, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        compiled(tf.ones([3, 8, 2, 2]))


def test_a_singular_kernel_is_named():
    arguments = TWO, np.zeros_like(TWO), (4, 4)
    message = "inverse_kernel of mixer.*singular to working precision"
    layer = SelfNormConv2D(*arguments, name="mixer")
    with pytest.raises(ValueError, match=message):
        layer.inverse_log_det_jacobian(tf.ones([4, 4, 2]))
    with pytest.raises(ValueError, match=message):
        SelfNormConv2D(*arguments, validate_args=True, name="mixer")
