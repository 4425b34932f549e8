"""The layer's own rules: construction, options, shapes, errors."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm import SelfNormDense

EYE = np.eye(3, dtype=np.float32)


def test_trainable_has_named_variables_and_a_seed():
    layer = SelfNormDense.trainable(3, seed=5, name="mix")
    names = {v.name for v in layer.trainable_variables}
    assert names == {"mix_bias:0", "mix_forward_kernel:0", "mix_inverse_kernel:0"}
    np.testing.assert_array_equal(layer.bias, SelfNormDense.trainable(3, seed=5).bias)
    assert SelfNormDense.trainable(3, use_bias=False).bias is None
    assert SelfNormDense.trainable(3, dtype=tf.float64).dtype == tf.float64
    biases = SelfNormDense.trainable(20_000 // 4, bias_stddev=0.5, seed=1).bias
    np.testing.assert_allclose(np.std(biases), 0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("gradient", "inversion"), [("self_norm", "learned"), ("exact", "exact"), ("relative", "exact")]
)
def test_inversion_follows_from_the_gradient(gradient, inversion):
    assert SelfNormDense.trainable(2, gradient=gradient).inversion == inversion


def test_copies_share_variables_and_may_change_options():
    layer = SelfNormDense.trainable(3)
    copy = layer.copy(gradient="relative", mixture=0.25)
    assert copy.forward_kernel is layer.forward_kernel
    assert (copy.gradient, copy.mixture, copy.identity == layer.identity) == ("relative", 0.25, True)


def test_parameter_properties_describe_every_parameter():
    properties = SelfNormDense.parameter_properties()
    assert {name: p.event_ndims for name, p in properties.items()} == {
        "forward_kernel": 2,
        "inverse_kernel": 2,
        "bias": 1,
    }
    np.testing.assert_array_equal(properties["inverse_kernel"].shape_fn([4]), [4, 4])
    layer = SelfNormDense(np.tile(EYE, [2, 1, 1]), np.tile(EYE, [2, 1, 1]))
    assert layer.experimental_batch_shape() == [2]


def test_passes_through_tf_function_as_a_composite():
    layer = SelfNormDense(2.0 * EYE, EYE / 2.0)
    found = tf.function(lambda bijector, x: bijector.forward(x))(layer, tf.ones([2, 3]))
    np.testing.assert_array_equal(found, 2.0 * np.ones([2, 3]))


def test_deferred_parameters_stay_deferred():
    scale = tf.Variable(2.0)
    kernel = tfp.util.DeferredTensor(scale, lambda s: s * tf.eye(3), shape=[3, 3])
    layer = SelfNormDense(EYE / 2.0, kernel)
    scale.assign(4.0)
    np.testing.assert_allclose(layer.inverse(tf.ones([3])), [4.0] * 3)
    np.testing.assert_allclose(layer.exact_log_det(), 3 * np.log(4.0), rtol=1e-6)


@pytest.mark.parametrize("gradient", ["exact", "relative"])
def test_without_a_learned_inverse_no_tape_sees_r(make_layer, gradient):
    """What a tape has seen is what `tfp.math.minimize` and others ask a gradient of."""
    layer = make_layer(3, gradient=gradient)
    with tf.GradientTape() as tape:
        layer.inverse(tf.ones([2, 3], tf.float64))
        layer.inverse_log_det_jacobian(tf.ones([2, 3], tf.float64))
        layer.forward(tf.ones([2, 3], tf.float64))
    seen = {variable.ref() for variable in tape.watched_variables()}
    assert seen == {layer.inverse_kernel.ref(), layer.bias.ref()}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (np.ones([2, 3], np.float32), EYE),
            ValueError,
            r"`forward_kernel` must have square shape.*\(2, 3\)",
        ),
        ((EYE, np.ones(3, np.float32)), ValueError, "`inverse_kernel` must have square shape"),
        ((EYE, np.eye(4, dtype=np.float32)), ValueError, "event sizes of the parameters differ"),
        ((EYE, np.tile(EYE, [2, 1, 1])), ValueError, "The kernels must have the same batch shape"),
        ((EYE, EYE, np.zeros(4, np.float32)), ValueError, "event sizes of the parameters differ"),
        ((EYE, EYE, np.float32(0.0)), ValueError, "`bias`"),
        ((EYE, EYE.astype(int)), TypeError, "`inverse_kernel` must be floating.*got dtype int64"),
        ((EYE, EYE.astype(np.float64)), TypeError, "one dtype"),
    ],
)
def test_wrong_parameters_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        SelfNormDense(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "self-norm"}, "`gradient` must be one of .*'self_norm'.*; got 'self-norm'"),
        ({"inversion": "solve"}, "`inversion` must be None or one of .*; got 'solve'"),
        ({"mixture": -0.1}, r"`mixture` must be in \[0, 1\]; got -0.1"),
        ({"mixture": float("nan")}, "`mixture`"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelfNormDense(EYE, EYE, **options)


@pytest.mark.parametrize("event_size", [0, -1, 2.5, True, None, "3"])
def test_wrong_event_sizes_are_refused(event_size):
    with pytest.raises(ValueError, match="`event_size` must be a positive int"):
        SelfNormDense.trainable(event_size)


def test_wrong_events_are_refused():
    layer = SelfNormDense.trainable(3)
    for method, name in ((layer.forward, "x"), (layer.inverse, "y")):
        with pytest.raises(
            ValueError, match=rf"`{name}` of `self_norm_dense` has shape \(5, 4\); expected \(..., 3\)"
        ):
            method(tf.zeros([5, 4]))
        with pytest.raises(ValueError, match=r"has shape \(\)"):
            method(tf.zeros([]))
        with pytest.raises((TypeError, ValueError), match=r"float32.*int32|int32.*float32"):
            method(tf.zeros([5, 3], tf.int32))


def test_validate_args_follows_a_deferred_kernel():
    scale = tf.Variable(1.0)
    kernel = tfp.util.DeferredTensor(scale, lambda s: s * tf.eye(3), shape=[3, 3])
    layer = SelfNormDense(EYE, kernel, validate_args=True)
    scale.assign(0.0)
    with pytest.raises(ValueError, match="singular to working precision"):
        layer.inverse(tf.zeros([1, 3]))


def test_validate_args_catches_a_singular_kernel():
    singular = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], np.float32)
    with pytest.raises(ValueError, match="`inverse_kernel` of `self_norm_dense` is singular"):
        SelfNormDense(EYE, singular, validate_args=True)
    kernel = tf.Variable(EYE)
    layer = SelfNormDense(EYE, kernel, validate_args=True)
    layer.inverse(tf.zeros([1, 3]))
    kernel.assign(singular)
    with pytest.raises(ValueError, match="singular to working precision"):
        layer.inverse(tf.zeros([1, 3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="singular to working precision"):
        tf.function(layer.inverse)(tf.ones([1, 3]))
