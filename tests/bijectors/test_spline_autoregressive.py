"""`SplineAutoregressive` and its network against TFP's splines, and by integration over the plane."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_spline_coupling import BOUND, NUM_BINS, spline_of

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
PARAMETERS = 3 * NUM_BINS - 1


def random_network(rng, size, scale=1.0, **options):
    options = {"width": 9, "depth": 2, "dtype": "float64"} | options
    made = sn.autoregressive_network(size, size * PARAMETERS, **options)
    made.set_weights([scale * rng.normal(size=weight.shape) for weight in made.weights])
    return made


def make_layer(network):
    return sn.SplineAutoregressive(network, num_bins=NUM_BINS, bound=BOUND)


@pytest.mark.parametrize(("width", "condition_size"), [(40, 0), (40, 2), (3, 0)])
def test_outputs_depend_on_all_dimensions_before_and_on_no_other(rng, width, condition_size):
    size = 6
    network = sn.autoregressive_network(
        size, 2 * size, width, 2, condition_size=condition_size, seed=1, dtype="float64"
    )
    # Positive, so that no path is dead or cancels another one.
    network.set_weights([rng.uniform(0.1, 1.0, size=weight.shape) for weight in network.weights])
    x = tf.constant(rng.uniform(size=[1, size + condition_size]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        parts = tf.split(x, [size, condition_size], axis=-1)
        outputs = network(parts if condition_size else parts[0])
    reached = tape.jacobian(outputs, x)[0, :, 0].numpy().reshape(size, 2, -1) != 0
    before = np.tri(size, k=-1, dtype=bool)
    if width == 3:
        # Three units cannot tell five degrees apart.
        assert not np.any(reached.any(axis=1) & ~before)
        assert reached[1:].any(axis=-1).all()
    else:
        np.testing.assert_array_equal(reached[:, 0, :size], before)
        np.testing.assert_array_equal(reached[:, 1, :size], before)
    assert reached[:, :, size:].all()


def test_each_dimension_has_the_spline_of_tfp(rng):
    network = random_network(rng, 3)
    layer, y = make_layer(network), 2.0 * rng.normal(size=[50, 3])
    spline = spline_of(network(y).numpy(), 3)
    z = layer.inverse(tf.constant(y))
    np.testing.assert_allclose(z, spline.forward(y), rtol=1e-12)
    np.testing.assert_allclose(
        layer.inverse_log_det_jacobian(tf.constant(y)),
        np.sum(spline.forward_log_det_jacobian(y), axis=1),
        atol=1e-12,
    )
    np.testing.assert_allclose(layer.forward(tf.identity(z)), y, atol=1e-9)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_of_the_samples_in_graphs_are_those_of_the_inverse_map(jit_compile, rng):
    layer, z = make_layer(random_network(rng, 3, scale=0.5)), tf.constant(rng.normal(size=[1, 3]))

    @tf.function(jit_compile=jit_compile)
    def samples_and_jacobian(z):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(z)
            y = layer.forward(z)
            parts = [tf.reduce_sum(y[:, i]) for i in range(3)]
        return y, tf.stack([tape.gradient(part, z)[0] for part in parts])

    y, jacobian = samples_and_jacobian(z)
    with tf.GradientTape() as tape:
        tape.watch(y)
        back = layer.inverse(tf.identity(y))
    np.testing.assert_allclose(jacobian @ tape.jacobian(back, y)[0, :, 0], np.eye(3), atol=1e-9)


def test_the_density_in_the_plane_integrates_to_one_for_each_condition(rng):
    layer = make_layer(random_network(rng, 2, scale=0.4, condition_size=2))
    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(2, tf.float64)), layer)
    axis = np.linspace(-7.0, 7.0, 701)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for condition in rng.normal(size=[2, 2]):
        conditions = tf.constant(np.broadcast_to(condition, grid.shape))
        density = np.exp(flow.log_prob(tf.constant(grid), bijector_kwargs={"condition": conditions}))
        density = density.reshape(701, 701)
        assert np.trapezoid(np.trapezoid(density, axis), axis) == pytest.approx(1.0, abs=1e-3)


def test_the_network_is_made_again_from_its_configuration(rng):
    network = random_network(rng, 3, condition_size=1)
    again = keras.Model.from_config(network.get_config())
    again.set_weights(network.get_weights())
    inputs = [rng.normal(size=[5, 3]), rng.normal(size=[5, 1])]
    np.testing.assert_array_equal(again(inputs), network(inputs))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`num_outputs` must be a multiple of `event_size`, 2; got 3"):
        sn.autoregressive_network(2, 3)
    layer = sn.SplineAutoregressive(lambda x: x, name="few")
    with pytest.raises(
        ValueError, match=r"network of `few` must return shape \(None, 46\), 23 for each of 2"
    ):
        layer.inverse(tf.zeros([5, 2]))
    with pytest.raises(ValueError, match="`few` needs a known number of channels"):
        tf.function(layer.inverse).get_concrete_function(tf.TensorSpec([5, None]))
