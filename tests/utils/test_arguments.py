"""Arguments of the public functions: unusual ones have their right effect, bad ones are refused by name."""

import inspect
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from public_functions import EYE, KERNEL, SCHEDULE, a_layer, identity_network

import tfp_selfnorm as sn

tfb = tfp.bijectors
tfd = tfp.distributions

EVENTS = np.random.default_rng(1).normal(size=[20, 2]).astype(np.float32)


def a_flow():
    return sn.dense_flow(2, num_layers=1, seed=1)


def in_scope(inverse_learning=None, log_dets=None, seed=None):
    with sn.training_scope(inverse_learning, log_dets, seed):
        pass


def loss_in_scope(weight=None):
    layer = a_layer()
    with sn.training_scope(sn.Reconstruction()) as scope:
        layer.inverse(tf.ones([3, 2]))
        return scope.reconstruction_loss(weight)


def weights_of(weight):
    return sn.ReconstructionWeights(sn.Reconstruction(weight=weight), [a_layer()])


# What gives the same numbers whether its arguments are of Python or of numpy.
BUILT = {
    "dense_flow": (
        sn.dense_flow,
        {"event_shape": 3, "num_layers": 2, "activation": "spline", "mixture": 0.25, "seed": 1},
    ),
    "conv_flow": (
        sn.conv_flow,
        {"image_shape": (4, 4, 1), "num_blocks": 2, "layers_per_block": 1, "kernel_size": 3}
        | {"centering": False, "seed": 1},
    ),
    "conv_flow, emerging": (
        sn.conv_flow,
        {"image_shape": (4, 4, 1), "num_blocks": 1, "layers_per_block": 2, "layer": "emerging"}
        | {"centering": False, "seed": 1},
    ),
    "glow_flow": (
        sn.glow_flow,
        {"image_shape": (4, 4, 1), "num_blocks": 2, "steps_per_block": 1, "kernel_size": 1, "width": 3}
        | {"act_norm": False, "centering": False, "split_prior": False, "seed": 1},
    ),
    "free_form_flow": (
        sn.free_form_flow,
        {"event_shape": (3,), "num_layers": 2, "width": 4, "depth": 1, "num_probes": 2, "seed": 1},
    ),
    "residual_network": (sn.residual_network, {"event_size": 3, "width": 4, "depth": 1, "seed": 1}),
    "trainable_spline": (sn.trainable_spline, {"event_shape": 3, "num_bins": 4, "bound": 2.5}),
    "ActNorm": (sn.ActNorm.trainable, {"channels": 3}),
    "SelfNormDense": (
        sn.SelfNormDense.trainable,
        {"event_size": 3, "seed": 1, "use_bias": True, "bias_stddev": 0.5, "mixture": 0.25},
    ),
    "SelfNormConv1D": (
        sn.SelfNormConv1D.trainable,
        {"spatial_shape": 4, "channels": 2, "kernel_size": 3, "seed": 1, "use_bias": False, "rotates": True},
    ),
    "SelfNormConv2D": (
        sn.SelfNormConv2D.trainable,
        {
            "spatial_shape": (4, 3),
            "channels": 2,
            "kernel_size": (3, 5),
            "seed": (1, 2),
            "validate_args": True,
        },
    ),
    "EmergingConv2D": (
        sn.baselines.EmergingConv2D.trainable,
        {"spatial_shape": (4, 3), "channels": 2, "kernel_size": 3, "seed": 1, "use_bias": False},
    ),
    "ConvolutionExponential2D": (
        sn.baselines.ConvolutionExponential2D.trainable,
        {"spatial_shape": (4, 3), "channels": 2, "kernel_size": 3, "seed": 1, "max_norm": 0.5},
    ),
    "coupling_network": (
        sn.coupling_network,
        {"input_shape": (4, 4, 1), "num_outputs": 2, "width": 3, "kernel_size": 3, "seed": 1},
    ),
}


def of_numpy(value):
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, tuple):
        return tuple(map(np.int32, value))
    return {int: np.int64, float: np.float64}.get(type(value), lambda same: same)(value)


def without_dimensions(value):
    """Numbers as arrays without dimensions, shapes and pairs as arrays of one."""
    return (
        np.array(value) if isinstance(value, (int, float, tuple)) and not isinstance(value, bool) else value
    )


@pytest.mark.parametrize("converted", [of_numpy, without_dimensions])
@pytest.mark.parametrize(("build", "arguments"), BUILT.values(), ids=BUILT.keys())
def test_arguments_of_numpy_are_those_of_python(build, arguments, converted):
    expected = build(**arguments)
    found = build(**{name: converted(value) for name, value in arguments.items()})
    assert len(found.variables) == len(expected.variables) > 0
    for variable, other in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(variable, other)
    if hasattr(found, "log_prob"):
        x = tf.random.stateless_normal([3, *expected.event_shape], [1, 2])
        np.testing.assert_array_equal(found.log_prob(tf.identity(x)), expected.log_prob(tf.identity(x)))
    elif hasattr(found, "forward"):
        assert found.name == expected.name
        assert str(found.parameters.keys()) == str(expected.parameters.keys())


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: sn.Squeeze(np.int64(2)), tf.ones([2, 2, 1])),
        (lambda: sn.LeakyReLU(np.float32(0.5)), -tf.ones([2])),
        (lambda: sn.SmoothLeakyReLU(np.float32(0.5), validate_args=np.bool_(True)), -tf.ones([2])),
        (lambda: sn.ActNorm([0.0], [1.0], is_adapted=np.bool_(True)), tf.ones([1])),
        (lambda: sn.SelfNormDense(EYE, EYE, mixture=np.float32(0.5)), tf.ones([2])),
        (
            lambda: sn.SelfNormConv2D(KERNEL, KERNEL, np.array([2, 2]), mixture=np.array(0.5)),
            tf.ones([2, 2, 1]),
        ),
        (
            lambda: sn.baselines.ConvolutionExponential2D(KERNEL, np.array([2, 2]), max_norm=np.array(0.5)),
            tf.ones([2, 2, 1]),
        ),
    ],
)
def test_bijectors_of_numpy_arguments_pass_through_a_graph(make, x):
    bijector = make()
    compiled = tf.function(lambda bijector, x: bijector.forward(x))
    np.testing.assert_allclose(compiled(bijector, x), bijector.forward(tf.identity(x)), rtol=1e-6)
    assert bijector.copy().forward(tf.identity(x)).shape == bijector.forward(tf.identity(x)).shape


def test_couplings_and_splits_of_numpy_arguments():
    x = tf.reshape(tf.range(12.0), [2, 6])
    found, expected = (
        sn.ChannelSplit(
            sn.AffineCoupling(identity_network, one, event_ndims=one, bound=half), num_channels=two
        ).inverse(tf.identity(x))
        for one, two, half in ((np.int64(1), np.int32(2), np.float32(0.5)), (1, 2, 0.5))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "seed",
    [[3, 4], (3, 4), np.array([3, 4]), tf.constant([3, 4]), (np.int64(3), 4), [tf.constant(3, tf.int64), 4]],
    ids=str,
)
def test_pairs_as_seeds(seed):
    expected = tf.random.stateless_uniform([5], [3, 4])
    found = sn.images.dequantize(np.zeros(5, np.uint8), seed=seed)
    np.testing.assert_array_equal(found, expected)


def test_integers_as_seeds():
    def noise(seed):
        return sn.images.dequantize(np.zeros(5, np.uint8), seed=seed).numpy()

    for seed in (7, np.int64(7), np.uint8(7), np.array(7)):
        np.testing.assert_array_equal(noise(seed), tf.random.stateless_uniform([5], [0, 7]))
    np.testing.assert_array_equal(noise(-7), tf.random.stateless_uniform([5], [0, -7]))
    # All 64 bits count.
    assert len({noise(seed)[0] for seed in (7, 7 + 2**32, 7 + 2**40, -7 - 2**40, -7)}) == 5
    assert (noise(None) != noise(None)).any()
    assert (noise(tfp.util.SeedStream(1, "salt")) != noise(7)).any()


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64"), tf.float64], ids=str)
def test_names_of_dtypes(dtype):
    assert sn.dense_flow(2, activation="spline", dtype=dtype).dtype == tf.float64
    assert sn.glow_flow((2, 2, 1), num_blocks=1, steps_per_block=1, width=2, dtype=dtype).dtype == tf.float64
    assert sn.free_form_flow(2, num_layers=1, width=2, depth=1, dtype=dtype).dtype == tf.float64
    assert sn.ActNorm.trainable(2, dtype=dtype).dtype == tf.float64
    assert sn.baselines.EmergingConv2D.trainable((2, 2), 1, dtype=dtype).dtype == tf.float64
    assert sn.images.pixel_sigmoid(dtype=dtype).low.dtype == tf.float64
    assert sn.images.dequantize([1], dtype).dtype == tf.float64
    assert sn.coupling_network((2, 2, 1), 2, 2, dtype=dtype).layers[0].compute_dtype == "float64"


@pytest.mark.parametrize(
    "shape", [[2, 3], np.array([2, 3]), tf.TensorShape([2, 3]), tf.constant([2, 3])], ids=str
)
def test_shapes_of_many_kinds(shape):
    assert sn.dense_flow(shape, num_layers=1).event_shape == [2, 3]
    assert sn.trainable_spline(shape).bin_widths.shape == [2, 3, 5]
    assert sn.SelfNormConv2D.trainable(shape, 1).spatial_shape == (2, 3)
    assert sn.images.bits_per_dim(-6.0 * np.log(2.0), shape) == 1.0


def test_shapes_at_the_edge():
    assert sn.trainable_spline(()).bin_widths.shape == [5]
    assert sn.images.bits_per_dim(-np.log(2.0), ()) == 1.0
    assert sn.coupling_network((None, None, 1), 2, 2, kernel_size=(2, 3)).output_shape == (
        None,
        None,
        None,
        2,
    )


def test_weights_of_many_kinds():
    expected = float(loss_in_scope())
    for weight in (2, 2.0, np.float32(2.0), np.int64(2), np.array(2.0), tf.constant(2.0), tf.Variable(2)):
        assert sn.Reconstruction(weight=weight).weight is weight
        np.testing.assert_allclose(loss_in_scope(weight), 2.0 * expected, rtol=1e-6)
    for step in (
        5,
        np.int64(5),
        np.array(5),
        tf.constant(5),
        tf.Variable(5),
        keras.Variable(5, dtype="int64"),
    ):
        np.testing.assert_allclose(weights_of(SCHEDULE).read(step), 0.5, rtol=1e-6)
    assert sn.Tracking(np.int64(4), np.int32(2)) == sn.Tracking(4, 2)


def test_the_slope_of_a_variable_counts_when_arguments_are_validated():
    for bijector in (sn.LeakyReLU, sn.LeakySquareplus, sn.SmoothLeakyReLU):
        assert bijector(tf.Variable(2.0)).negative_slope == 2.0
        assert bijector(tf.Variable(0.5), validate_args=True).negative_slope == 0.5
        slopes = bijector(tf.constant([[0.5], [1.0]]))
        np.testing.assert_allclose(slopes.forward([-5e4, -6e4]), [[-2.5e4, -3e4], [-5e4, -6e4]], rtol=1e-6)


def dense(**options):
    return sn.dense_flow(2, **options)


# Each as the issue reports it, or of its kind.
REFUSED = [
    (sn.Tracking, [2.5], ValueError, "`num_probes` must be a positive int; got 2.5"),
    (sn.Tracking, [8, 1.5], ValueError, "`refresh_every` must be a positive int; got 1.5"),
    (sn.Reconstruction, ["probes", 1.0, 2.5], ValueError, "`num_probes` must be a positive int; got 2.5"),
    (sn.Reconstruction, ["data", np.inf], ValueError, "`weight` must be 0 or more, and finite; got inf"),
    (sn.Reconstruction, ["data", tf.constant(-1.0)], ValueError, "`weight` must be 0 or more, and finite"),
    (sn.Reconstruction, ["data", tf.ones([2])], TypeError, "`weight` must be a scalar of a number"),
    (sn.Reconstruction, ["data", tf.Variable("a")], TypeError, "`weight` must be a scalar of a number"),
    (sn.AdaptiveWeight, ["a"], TypeError, "`tolerance` must be a number; got 'a'"),
    (sn.AdaptiveWeight, [0.1, 1.0, 1e-3, 0.9, "yes"], TypeError, "`per_layer` must be True or False"),
    (sn.AdaptiveWeight, [0.1, 1.0, 1e-3, 0.9, False, 3.0], TypeError, "`bounds` must be a pair of numbers"),
    (sn.trainable_spline, [2, 5, np.inf], ValueError, "`bound` must be positive and finite; got inf"),
    (sn.trainable_spline, [2, 2.5], ValueError, "`num_bins` must be a positive int; got 2.5"),
    (sn.trainable_spline, [2, 1000], ValueError, "`num_bins` must be from 2 to 999; got 1000"),
    (sn.images.pixel_sigmoid, [np.inf], ValueError, "`num_levels` must be a positive int; got inf"),
    (sn.images.pixel_sigmoid, [256, np.nan], ValueError, r"`alpha` must be in \(0, 0.5\); got nan"),
    (sn.LeakyReLU, [tf.Variable(3)], TypeError, "`negative_slope` must be floating.* got dtype int32"),
    (sn.SmoothLeakyReLU, [tf.Variable(3)], TypeError, "`negative_slope` must be floating.* got dtype int32"),
    (sn.LeakyReLU, [tf.Variable(2.0), True], ValueError, "`negative_slope` must be in .*; got <tf.Var"),
    (sn.SmoothLeakyReLU, [tf.Variable([0.5, 0.0]), True], ValueError, "`negative_slope` must be in .*; got"),
    (sn.LeakyReLU, [[]], ValueError, r"`negative_slope` must be in \(0, 1\]; got \[\]"),
    (partial(dense, preprocessing=3), [], TypeError, "`preprocessing` must be .* bijector or None; got 3"),
    (partial(dense, preprocessing=tfb.Exp), [], TypeError, "`preprocessing` must be a TFP bijector or None"),
    (sn.dense_flow, [-1], ValueError, "`event_shape` must be .* of positive sizes.*; got -1"),
    (sn.dense_flow, [2.5], ValueError, "`event_shape` must be .*; got 2.5"),
    (sn.dense_flow, [True], ValueError, "`event_shape` must be .*; got True"),
    (sn.dense_flow, [(2, 0)], ValueError, r"`event_shape` must be .*; got \(2, 0\)"),
    (partial(dense, activation=tf.nn.relu), [], TypeError, "`activation` must return a TFP bijector"),
    (partial(dense, activation=tfb.Exp()), [], ValueError, "`activation` must be .* a function that makes"),
    (sn.conv_flow, [(4, 4.0, 1)], ValueError, r"`image_shape` must be .*; got \(4, 4.0, 1\)"),
    (partial(sn.glow_flow, kernel_size=2), [(4, 4, 1)], ValueError, "`kernel_size` must be an odd"),
    (sn.ActNorm, [EYE[0], EYE[0], tf.Variable(1)], TypeError, "`is_adapted` must be True, or a tf.Variable"),
    (sn.SelfNormDense, [object(), EYE], TypeError, "`forward_kernel` must be a tensor of numbers"),
    (sn.SelfNormDense, [EYE, EYE, []], ValueError, "sizes of the parameters differ: .*`bias` 0"),
    (sn.coupling_network, [(4, 4), 2], ValueError, r"`input_shape` must be \(height, width, channels\)"),
    (sn.coupling_network, [(4, 4, 1), 2, 4, 3, 1, "int8"], TypeError, "`dtype` must be a Keras dtype policy"),
    (sn.images.dequantize, [[1], "float16"], TypeError, "`dtype` must be float32 or float64; got 'float16'"),
    (sn.images.dequantize, [[1], "float32", [1, 2, 3]], TypeError, "`seed` must be an int, a pair.*1, 2, 3"),
    (sn.images.dequantize, [[1], "float32", 2**63], ValueError, "`seed` must have integers of at most 64"),
    (sn.images.bits_per_dim, [1j, 2], TypeError, "`log_prob` must be of real numbers"),
    (sn.refresh_inverse, [tfb.Exp()], TypeError, "`layer` must be .*self-normalizing layers"),
    (sn.sketch_and_project, [None], TypeError, "`layer` must be .*self-normalizing layers.*got None"),
    (sn.is_adapted, [None], TypeError, "`distribution` must be a TFP distribution or bijector; got NoneType"),
    (sn.ReconstructionWeights, [sn.Tracking(), []], TypeError, "`reconstruction` must be a Reconstruction"),
    (loss_in_scope, [-1.0], ValueError, "`weight` must be 0 or more"),
    (loss_in_scope, [{}], ValueError, "`weight` has no weight for the layer `self_norm_dense`"),
    (in_scope, [None, {"dense": 1.0}], TypeError, "`log_dets` must be of self-normalizing layers"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "error", "message"), REFUSED)
def test_bad_arguments_are_refused_by_name(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_bad_options_of_the_functions_of_a_model():
    model = sn.FlowModel(a_flow())
    with pytest.raises(TypeError, match="`exact` must be True or False; got 'yes'"):
        model.sample(3, exact="yes")
    with pytest.raises(TypeError, match="`exact` must be True or False; got None"):
        model.decode(EVENTS, exact=None)
    with pytest.raises(TypeError, match="`seed` must be an int, .* got 'a'"):
        model.sample(3, seed="a")


def test_arguments_are_not_validated_unless_asked_as_in_tfp():
    defaults = [
        inspect.signature(part).parameters["validate_args"].default
        for part in vars(sn).values()
        if inspect.isclass(part) and "validate_args" in inspect.signature(part).parameters
    ]
    assert len(defaults) >= 15
    assert set(defaults) == {False}


def test_kernels_of_dense_layers_are_square_in_their_last_two_dimensions():
    kernels = tf.eye(3, batch_shape=[2, 5], dtype=tf.float64)
    assert sn.SelfNormDense(kernels, kernels).inverse(tf.ones([2, 5, 3], tf.float64)).shape == [2, 5, 3]
    with pytest.raises(ValueError, match=r"`forward_kernel` must have square shape .* got \(5, 4, 3\)"):
        sn.SelfNormDense(tf.ones([5, 4, 3]), tf.eye(3, batch_shape=[5]))
