"""Outside a scope every gradient is that of the value: central differences of both directions."""

import contract
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from dense_convolution import random_kernel
from registry import REGISTRY

import tfp_selfnorm as sn

tfd = tfp.distributions
STEP = 1e-5
TOLERANCE = {"rtol": 1e-6, "atol": 1e-8}
WITH_VARIABLES = [name for name, case in REGISTRY.items() if case.make(tf.float64).trainable_variables]
DIRECTIONS = ["inverse", "forward"]


def move_learned_inverses(bijector, rng):
    """Takes each R far off the inverse of W; it stays regular. Networks are no inverses to begin with."""
    for layer in filter(lambda layer: hasattr(layer, "forward_kernel"), sn.self_norm_layers(bijector)):
        kernel = layer.forward_kernel
        noise = rng.normal(size=kernel.shape)
        kernel.assign_add(0.3 * noise / np.linalg.norm(noise, axis=(-2, -1), keepdims=True))


def density(bijector, latent_shape, batch_shape=()):
    loc = tf.zeros([*batch_shape, *latent_shape], tf.float64)
    base = tfd.Independent(tfd.Normal(loc, tf.ones([], tf.float64)), len(latent_shape))
    return tfd.TransformedDistribution(base, bijector)


def value_of(bijector, direction, latent_shape, event_ndims, batch_shape=()):
    """A scalar function of a point that depends on the map and on its log-det."""
    flow = density(bijector, latent_shape, batch_shape)

    def value(point):
        if direction == "inverse":
            return tf.reduce_sum(flow.log_prob(contract.fresh(point)))
        image = tf.reduce_sum(tf.sin(bijector.forward(contract.fresh(point))))
        log_det = bijector.forward_log_det_jacobian(contract.fresh(point), event_ndims)
        return image + tf.reduce_sum(log_det)

    return value


def gradients_of(value, variables, point):
    with tf.GradientTape() as tape:
        tape.watch(point)
        result = value(point)
    zero = tf.UnconnectedGradients.ZERO
    return tape.gradient(result, [*variables, point], unconnected_gradients=zero)


def check_slopes(value, variables, point, found, rng):
    """Along one random direction for each variable, in all of its entries at once, and for the point."""
    place = tf.Variable(point)
    for variable, gradient in zip([*variables, place], found, strict=True):
        direction, start = rng.normal(size=variable.shape), variable.numpy()
        direction /= np.linalg.norm(direction)
        values = []
        for sign in (1.0, -1.0):
            variable.assign(start + sign * STEP * direction)
            values.append(value(place.value()).numpy())
        variable.assign(start)
        slope = (values[0] - values[1]) / (2 * STEP)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, **TOLERANCE, err_msg=variable.name)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", WITH_VARIABLES)
def test_gradients_are_finite_differences(name, direction, rng):
    case = REGISTRY[name]
    bijector = case.make(tf.float64)
    move_learned_inverses(bijector, rng)
    latent_shape = case.latent_shape or case.event_shape
    if direction == "inverse":
        limits, shape = case.data_range, case.event_shape
    else:
        limits, shape = (-2.0, 2.0), latent_shape
    point = tf.constant(rng.uniform(*limits, size=[2, *case.batch_shape, *shape]))
    value = value_of(bijector, direction, latent_shape, len(case.event_shape), case.batch_shape)
    variables = bijector.trainable_variables
    check_slopes(value, variables, point, gradients_of(value, variables, point), rng)


MIXTURES = [0.0, 0.3, 1.0]
OPTIONS = [
    *(
        {"mixture": mixture, "inversion": inversion}
        for mixture in MIXTURES
        for inversion in ("learned", "exact")
    ),
    *({"gradient": "exact", "inversion": inversion} for inversion in ("learned", "exact")),
]
RELATIVE = [{"gradient": "relative", "inversion": inversion} for inversion in ("learned", "exact")]
LAYERS = {"dense": ((), None), "conv2d": ((3, 3), (3, 4)), "conv1d": ((5,), (6,)), "1x1": ((1, 1), (2, 3))}


def make_layer(kind, rng, **options):
    """Random kernels that have nothing to do with one another."""
    sizes, spatial_shape = LAYERS[kind]
    kernels = [tf.Variable(random_kernel(rng, sizes, 3)) for _ in range(2)]
    bias = tf.Variable(rng.normal(size=[3]))
    if kind == "dense":
        return sn.SelfNormDense(*kernels, bias, **options)
    layer = sn.SelfNormConv1D if len(sizes) == 1 else sn.SelfNormConv2D
    return layer(*kernels, spatial_shape, bias, **options)


def value_of_layer(layer, direction, rng):
    shape, ndims = layer.event_sizes, layer.forward_min_event_ndims
    return value_of(layer, direction, shape, ndims), tf.constant(rng.normal(size=[2, *shape]))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind in LAYERS for options in OPTIONS + (RELATIVE if kind == "dense" else [])],
    ids=str,
)
def test_no_option_of_a_layer_changes_its_gradient(kind, options, direction, rng):
    layer = make_layer(kind, rng, **options)
    value, point = value_of_layer(layer, direction, rng)
    variables = layer.trainable_variables
    check_slopes(value, variables, point, gradients_of(value, variables, point), rng)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("kind", "jit_compile"), [("dense", False), ("conv2d", False), ("1x1", False), ("1x1", True)]
)
def test_a_compiled_gradient_is_exact_too(kind, direction, jit_compile, rng):
    layer = make_layer(kind, rng)
    value, point = value_of_layer(layer, direction, rng)
    variables = layer.trainable_variables
    gradients = tf.function(lambda x: gradients_of(value, variables, x), jit_compile=jit_compile)
    check_slopes(value, variables, point, gradients(point), rng)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_check_fails_on_the_learned_gradients_of_the_scope(kind, direction, rng):
    layer = make_layer(kind, rng)
    value, point = value_of_layer(layer, direction, rng)
    variables = layer.trainable_variables
    with sn.training_scope(None, {}):
        learned = gradients_of(value, variables, point)
    with pytest.raises(AssertionError):
        check_slopes(value, variables, point, learned, rng)
