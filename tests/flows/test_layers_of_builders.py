"""The `layer` of each builder: right log-dets, a step of training, and options that are refused by name."""

import inspect

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb = tfp.bijectors

SHAPES = {sn.dense_flow: (3,), sn.conv_flow: (2, 4, 2), sn.glow_flow: (4, 4, 1)}
SIZES = {
    sn.dense_flow: {"num_layers": 2},
    sn.conv_flow: {"num_blocks": 2, "layers_per_block": 1, "centering": False},
    sn.glow_flow: {"num_blocks": 2, "steps_per_block": 1, "width": 4, "act_norm": False, "centering": False},
}
LAYERS = {
    "dense": (sn.dense_flow, {}),
    "dense, lu": (sn.dense_flow, {"layer": "lu"}),
    "conv, emerging": (sn.conv_flow, {"layer": "emerging"}),
    "conv, exponential": (sn.conv_flow, {"layer": "exponential"}),
    "glow, lu": (sn.glow_flow, {"layer": "lu"}),
    "glow, emerging": (sn.glow_flow, {"layer": "emerging", "kernel_size": 3}),
    "glow, emerging 1x1": (sn.glow_flow, {"layer": "emerging"}),
    "glow, exponential": (sn.glow_flow, {"layer": "exponential", "kernel_size": 3}),
}


def make_flow(name, **options):
    build, arguments = LAYERS[name]
    return build(SHAPES[build], **SIZES[build], **arguments, seed=1, **options)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", LAYERS)
def test_the_log_det_is_that_of_the_jacobian(name, rng):
    flow = make_flow(name, dtype=tf.float64)
    for variable in flow.trainable_variables:
        variable.assign_add(0.05 * rng.normal(size=variable.shape))
    # By W in both directions; without this, the latent would come back through R.
    bijector, shape = sn.exact(flow).bijector, flow.event_shape
    y = tf.constant(rng.normal(size=shape))
    x = bijector.inverse(y)
    sign, expected = np.linalg.slogdet(contract.jacobian(bijector.inverse, y))
    log_det = bijector.inverse_log_det_jacobian(tf.identity(y), len(shape))
    assert sign != 0
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(log_det, expected, rtol=1e-9, atol=1e-9)
    latent = tf.identity(x)
    np.testing.assert_allclose(bijector.forward(latent), y, rtol=1e-7, atol=1e-7)
    forward_log_det = bijector.forward_log_det_jacobian(tf.identity(x), len(x.shape))
    np.testing.assert_allclose(forward_log_det, -expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["dense, lu", "glow, emerging", "glow, exponential"])
def test_a_step_of_training_lowers_the_loss_and_moves_the_layers(name, rng):
    model = sn.FlowModel(make_flow(name))
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    x = 2.0 * rng.normal(size=[16, *model.distribution.event_shape]).astype(np.float32)
    variables = {
        name: variable
        for name, variable in model.named_variables.items()
        if ("dense" in name or "mixing" in name) and not name.endswith("permutation")
    }
    assert len(variables) >= 4
    before = {name: np.array(variable) for name, variable in variables.items()}
    first = float(-tf.reduce_mean(model.log_prob(x)))
    model.train_on_batch(x)
    assert float(-tf.reduce_mean(model.log_prob(x))) < first
    for name, variable in variables.items():
        assert not np.array_equal(before[name], variable), name


def test_lu_starts_as_the_self_normalizing_layer_does(rng):
    x = rng.normal(size=[5, 3])
    log_probs = [make_flow(name, dtype=tf.float64).log_prob(x) for name in ("dense", "dense, lu")]
    np.testing.assert_allclose(log_probs[1], log_probs[0], rtol=1e-12)
    assert sn.self_norm_layers(make_flow("dense, lu")) == []


@pytest.mark.parametrize("layer", ["emerging", "exponential"])
def test_a_glow_mixes_the_channels_from_the_start(layer):
    flow = sn.glow_flow((2, 2, 1), num_blocks=1, steps_per_block=1, width=2, layer=layer, seed=1)
    (mixing,) = [part for part in flow.bijector.bijectors if part.name == "block_0_step_0_mixing"]
    assert [type(part) for part in mixing.bijectors][0] is tfb.ScaleMatvecLU
    with tf.GradientTape() as tape:
        pixel = tf.zeros([1, 1, 4])
        tape.watch(pixel)
        mixed = mixing.inverse(pixel)
    matrix = tape.jacobian(mixed, pixel).numpy().reshape(4, 4)
    # Rows of a rotation, a hundredth off.
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=0.1)
    assert np.abs(matrix - np.diag(np.diag(matrix))).max() > 0.3


@pytest.mark.parametrize("build", SHAPES)
def test_arguments_after_the_shape_are_given_by_name_and_the_common_ones_come_last(build):
    parameters = list(inspect.signature(build).parameters.values())
    assert [p.kind for p in parameters].count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == 1
    last = ["layer", "preprocessing", "dtype", "seed", "name", "layer_options"]
    assert [p.name for p in parameters][-6:] == last
    with pytest.raises(TypeError, match="positional"):
        build(SHAPES[build], 1)


@pytest.mark.parametrize("build", SHAPES)
@pytest.mark.parametrize("option", ["num_layer", "validate_args", "rotates"])
def test_unknown_options_are_refused_before_anything_is_made(build, option):
    made = []

    def record(make, **options):
        made.append(options)
        return make(**options)

    message = (
        f"`{option}` is no argument of `{build.__name__}`, which are .*`preprocessing`.*; and no option of "
        ".*`gradient`, `mixture`, `inversion`"
    )
    with tf.variable_creator_scope(record), pytest.raises(TypeError, match=message):
        build(SHAPES[build], **{option: True})
    assert not made


@pytest.mark.parametrize("value", ["self_norm", "exact", "lu"])
def test_mixing_is_now_layer(value):
    for build in (sn.glow_flow, lambda shape, **options: from_builder(image_shape=shape, **options)):
        with pytest.raises(TypeError, match="`mixing` is no argument .* it is called `layer`"):
            build((4, 4, 1), mixing=value)


def from_builder(**arguments):
    return sn.FlowModel.from_builder(sn.glow_flow, **arguments)


@pytest.mark.parametrize(
    ("build", "layer"),
    [(LAYERS[name][0], LAYERS[name][1]["layer"]) for name in LAYERS if "layer" in LAYERS[name][1]],
)
def test_options_of_the_self_normalizing_layer_are_refused_for_others(build, layer):
    for option, value in {"gradient": "exact", "mixture": 0.5, "inversion": None}.items():
        message = f"`{option}` is an option of `layer` 'self_norm' alone; got {value!r} for '{layer}'"
        with pytest.raises(ValueError, match=message):
            build(SHAPES[build], layer=layer, **{option: value})


@pytest.mark.parametrize(("build", "layer"), [(sn.dense_flow, "emerging"), (sn.conv_flow, "lu")])
def test_unknown_layers(build, layer):
    with pytest.raises(ValueError, match=f"`layer` must be one of .*'self_norm'.*; got '{layer}'"):
        build(SHAPES[build], layer=layer)


@pytest.mark.parametrize("layer", ["self_norm", "lu", "permute"])
def test_mixing_layers_of_couplings_reverse_the_order_at_first(layer):
    """So that each half is changed by every second coupling, whatever the mixing layers learn."""
    flow = sn.coupling_flow(3, num_layers=3, layer=layer, width=4, seed=1)
    x = np.array([[0.5, -1.0, 2.0]], np.float32)
    np.testing.assert_allclose(flow.bijector.inverse(tf.constant(x)), x[:, ::-1], atol=0.02)
    np.testing.assert_allclose(flow.bijector.forward(tf.constant(x)), x[:, ::-1], atol=0.02)


def test_whitening_keeps_the_order_of_mixing_layers(rng):
    """W W^T is I in whitened coordinates, and the reversal stays a factor of W on the left."""
    flow = sn.coupling_flow(2, num_layers=1, width=4, dtype=tf.float64, seed=1)
    (layer,) = sn.self_norm_layers(flow)
    covariance = np.array([[4.0, 1.0], [1.0, 2.0]])
    x = rng.multivariate_normal([3.0, -1.0], covariance, size=500)
    sn.whiten(flow, x, shrinkage=0.0)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(layer.inverse_kernel, root[::-1], rtol=1e-8)
    np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(2), atol=1e-12)
    z = layer.inverse(tf.constant(x)).numpy()
    np.testing.assert_allclose(z.mean(axis=0), [0.0, 0.0], atol=1e-10)
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(2), atol=1e-10)
