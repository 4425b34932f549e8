"""`SplineCoupling` against TFP's spline and by integration, with conditions, and its errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
NUM_BINS, BOUND = 4, 3.0


def random_network(rng, num_inputs, num_channels, **options):
    made = sn.dense_network(
        num_inputs, num_channels * (3 * NUM_BINS - 1), width=7, dtype="float64", **options
    )
    made.set_weights([rng.normal(size=weight.shape) for weight in made.weights])
    return made


def make_coupling(network, **options):
    return sn.SplineCoupling(network, num_bins=NUM_BINS, bound=BOUND, **options)


def spline_of(outputs, num_channels):
    """TFP's spline for each event, from the formulas of Durkan et al. in numpy."""
    logits = outputs.reshape([*outputs.shape[:-1], num_channels, -1])

    def sizes(values):
        shares = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        return 2 * BOUND * (1e-3 + (1 - NUM_BINS * 1e-3) * shares)

    slopes = 1e-3 + (1 - 1e-3) * np.log1p(np.exp(logits[..., 2 * NUM_BINS :] + np.log(np.e - 1.0)))
    return tfb.RationalQuadraticSpline(
        sizes(logits[..., :NUM_BINS]), sizes(logits[..., NUM_BINS : 2 * NUM_BINS]), slopes, range_min=-BOUND
    )


def test_the_map_and_its_log_det_are_those_of_tfp(rng):
    network = random_network(rng, 1, 2)
    coupling, y = make_coupling(network, num_conditioning=1), 2.0 * rng.normal(size=[50, 3])
    spline = spline_of(network(y[:, :1]).numpy(), 2)
    x = coupling.inverse(tf.constant(y)).numpy()
    np.testing.assert_allclose(x[:, 1:], spline.forward(y[:, 1:]), rtol=1e-12)
    np.testing.assert_array_equal(x[:, 0], y[:, 0])
    np.testing.assert_allclose(
        coupling.inverse_log_det_jacobian(tf.constant(y)),
        np.sum(spline.forward_log_det_jacobian(y[:, 1:]), axis=1),
        atol=1e-12,
    )


def test_the_density_of_a_scalar_given_a_condition_integrates_to_one(rng):
    network = random_network(rng, 0, 1, condition_size=2)
    coupling = make_coupling(network, num_conditioning=0)
    flow = tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros([1], tf.float64)), coupling)
    grid = np.linspace(-9.0, 9.0, 20001)
    for condition in rng.normal(size=[3, 2]):
        conditions = tf.constant(np.broadcast_to(condition, [len(grid), 2]))
        density = np.exp(
            flow.log_prob(tf.constant(grid[:, np.newaxis]), bijector_kwargs={"condition": conditions})
        )
        assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)


def test_a_coupling_that_keeps_nothing_needs_a_condition(rng):
    coupling = make_coupling(random_network(rng, 0, 1, condition_size=2), num_conditioning=0)
    with pytest.raises(ValueError, match="`spline_coupling` keeps no channels, so that it needs"):
        coupling.inverse(tf.zeros([5, 1], tf.float64))


def test_images(rng):
    network = keras.Sequential(
        [keras.Input([2, 3, 1], dtype="float64"), keras.layers.Conv2D(11, 3, padding="same", dtype="float64")]
    )
    network.set_weights([rng.normal(size=weight.shape) for weight in network.weights])
    coupling, y = make_coupling(network, event_ndims=3), rng.normal(size=[4, 2, 3, 2])
    spline = spline_of(network(y[..., :1]).numpy(), 1)
    np.testing.assert_allclose(coupling.inverse(tf.constant(y))[..., 1:], spline.forward(y[..., 1:]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_bins": 1}, "`num_bins` must be from 2 to 999; got 1"),
        ({"bound": 0.0}, "`bound` must be positive and finite; got 0.0"),
        ({"num_conditioning": -1}, "`num_conditioning` must be 0 or more; got -1"),
        ({"event_ndims": 0}, "`event_ndims` must be a positive int; got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sn.SplineCoupling(tf.identity, **arguments)


def test_a_network_with_another_number_of_outputs_is_refused():
    coupling = sn.SplineCoupling(lambda x: x, name="few")
    with pytest.raises(ValueError, match=r"network of `few` must return shape \(None, 23\), 23 for"):
        coupling.inverse(tf.zeros([5, 2]))
