"""Bad input to the parts of multi-scale flows and to the builders: refused, and named."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb = tfp.bijectors


def identity_network(a):
    return tf.concat([a, a], axis=-1)


@pytest.mark.parametrize("size", [0, -2, 2.0, True, None])
def test_wrong_block_sizes(size):
    with pytest.raises(ValueError, match="`block_size` must be a positive int"):
        sn.Squeeze(size)


def test_images_that_do_not_squeeze():
    squeeze = sn.Squeeze()
    with pytest.raises(ValueError, match=r"divisible by its block size, 2; got.*\(5, 4, 1\)"):
        squeeze.forward(tf.ones([2, 5, 4, 1]))
    with pytest.raises(ValueError, match=r"divisible by its block size, 2; got.*\(4, 7, 1\)"):
        squeeze.forward_event_shape([4, 7, 1])
    with pytest.raises(ValueError, match=r"channels divisible by the square.*4.*\(4, 4, 6\)"):
        squeeze.inverse(tf.ones([4, 4, 6]))


def test_odd_channels_do_not_halve():
    x = tf.ones([2, 4, 4, 3])
    with pytest.raises(ValueError, match="`affine_coupling` halves an even number.*4, 3.*num_conditioning"):
        sn.AffineCoupling(identity_network).forward(x)
    with pytest.raises(ValueError, match="`channel_split` halves an even number.*4, 3.*num_channels"):
        sn.ChannelSplit(tfb.Scale(2.0)).forward(x)


def test_too_few_channels():
    x = tf.ones([2, 4, 4, 3])
    with pytest.raises(ValueError, match="keeps 3 channels to condition on and needs more"):
        sn.AffineCoupling(identity_network, num_conditioning=3).inverse(x)
    with pytest.raises(ValueError, match="gives 3 channels to its bijector and needs more"):
        sn.ChannelSplit(tfb.Scale(2.0), num_channels=3).inverse(x)
    with pytest.raises(ValueError, match="gives 0 channels to its bijector and needs more"):
        sn.ChannelSplit(tfb.Scale(2.0)).inverse(x[..., :0])
    unknown = tf.function(sn.AffineCoupling(identity_network).inverse, input_signature=[tf.TensorSpec(None)])
    with pytest.raises(ValueError, match="needs a known number of channels"):
        unknown(x)


def test_wrong_networks():
    with pytest.raises(TypeError, match="`network` must be callable; got int"):
        sn.AffineCoupling(3)
    with pytest.raises(ValueError, match="`network` 'dense' has no weights yet: build it"):
        sn.AffineCoupling(keras.layers.Dense(3, name="dense"))
    with pytest.raises(ValueError, match=r"must return shape \(None, 4, 4, 4\).*got \(1, 4, 4, 2\)"):
        sn.AffineCoupling(lambda a: a).inverse(tf.ones([4, 4, 4]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_conditioning": -1}, "`num_conditioning` must be 0 or more; got -1"),
        ({"event_ndims": 0}, "`event_ndims` must be a positive int; got 0"),
        ({"bound": 0.0}, "`bound` must be positive and finite; got 0.0"),
    ],
)
def test_wrong_coupling_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.AffineCoupling(identity_network, **arguments)


def test_wrong_splits():
    with pytest.raises(TypeError, match="`bijector` must be a TFP bijector; got function"):
        sn.ChannelSplit(identity_network)
    with pytest.raises(ValueError, match="`bijector` must keep the rank"):
        sn.ChannelSplit(tfb.Reshape([2, 2], [4]))
    with pytest.raises(ValueError, match="`num_channels` must be a positive int; got 1.5"):
        sn.ChannelSplit(tfb.Scale(2.0), num_channels=1.5)


def test_wrong_act_norms():
    with pytest.raises(ValueError, match="`channels` must be a positive int; got 0"):
        sn.ActNorm.trainable(0)
    with pytest.raises(ValueError, match=r"must have one shape \(C,\); got \(2,\) and \(3,\)"):
        sn.ActNorm(tf.ones(2), tf.ones(3))
    with pytest.raises(TypeError, match="`shift` must be floating.*got dtype int32"):
        sn.ActNorm(tf.ones(2, tf.int32), tf.ones(2))


@pytest.mark.parametrize("build", [sn.conv_flow, sn.glow_flow])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, 8, 1), r"`image_shape` must be \(height, width, channels\), known.*None"),
        ((8, 8), r"`image_shape` must be \(height, width, channels\), known.*\(8, 8\)"),
        (tf.TensorShape(None), r"`image_shape` must be \(height, width, channels\), known"),
        ((8, 8, 0), r"`image_shape` must be .*positive; got \(8, 8, 0\)"),
        ((10, 8, 1), r"divisible by (4|8) for this number of blocks; got \(10, 8, 1\)"),
        ((8, 9, 1), r"divisible by (4|8) for this number of blocks; got \(8, 9, 1\)"),
    ],
    ids=str,
)
def test_wrong_image_shapes(build, shape, message):
    with pytest.raises(ValueError, match=message):
        build(shape, num_blocks=3)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (sn.conv_flow, {"num_blocks": 0}, "`num_blocks` must be a positive int; got 0"),
        (sn.conv_flow, {"layers_per_block": 1.0}, "`layers_per_block` must be a positive int; got 1.0"),
        (sn.conv_flow, {"kernel_size": 4}, "`kernel_size` must be an odd positive int"),
        (sn.conv_flow, {"activation": "relu"}, "`activation` must be one of"),
        (sn.conv_flow, {"gradient": "relative"}, "`gradient` must be one of"),
        (sn.glow_flow, {"steps_per_block": 0}, "`steps_per_block` must be a positive int; got 0"),
        (sn.glow_flow, {"width": -1}, "`width` must be a positive int; got -1"),
        (
            sn.glow_flow,
            {"layer": "qr"},
            r"`layer` must be one of \('self_norm', 'lu', 'emerging', 'exponential'\); got 'qr'",
        ),
        (sn.glow_flow, {"layer": "lu", "kernel_size": 3}, "`layer` 'lu' needs `kernel_size` 1; got 3"),
    ],
)
def test_wrong_builder_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build((8, 8, 1), **arguments)


@pytest.fixture
def model():
    model = sn.FlowModel(
        sn.glow_flow((4, 4, 1), num_blocks=1, steps_per_block=1, width=2, centering=False, seed=1)
    )
    model.compile("sgd")
    return model


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_model_that_is_not_adapted_refuses_before_it_starts(model, method):
    with pytest.raises(
        ValueError, match="`ActNorm` without initial values: call `adapt` with some training data"
    ):
        getattr(model, method)(np.zeros([8, 4, 4, 1], np.float32), verbose=0)


@pytest.mark.parametrize("method", ["log_prob", "encode", "decode", "reconstruct"])
def test_a_model_that_is_not_adapted_refuses_events(model, method):
    shape = [8, 2, 2, 4] if method == "decode" else [8, 4, 4, 1]
    with pytest.raises(ValueError, match="has no initial values yet: call `adapt` on the flow"):
        getattr(model, method)(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="has no initial values yet: call `adapt` on the flow"):
        model.sample(3)


def test_wrong_data_to_adapt_to(model, rng):
    integers = rng.integers(0, 17, [8, 4, 4, 1])
    with pytest.raises(TypeError, match="`data` must be floating; got dtype int64.*dequantize"):
        model.adapt(integers)
    with pytest.raises(ValueError, match="`data` is an empty data set"):
        model.adapt(tf.data.Dataset.from_tensor_slices(np.zeros([0, 4, 4, 1], np.float32)).batch(2))
    with pytest.raises(ValueError, match="`num_examples` must be a positive int; got 0"):
        model.adapt(integers, num_examples=0)
    with pytest.raises(TypeError, match="`x` must be floating"):
        model.log_prob(integers)
