"""Circular spline couplings: densities of angles without a seam."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm.bijectors.spline import spline_of_logits

tfb, tfd = tfp.bijectors, tfp.distributions
NUM_BINS = 4


def random_network(rng, num_inputs, num_angles=1, condition_size=0, scale=1.0):
    network = sn.dense_network(
        num_inputs, (3 * NUM_BINS + 1) * num_angles, width=8, condition_size=condition_size, dtype="float64"
    )
    network.set_weights([scale * rng.normal(size=weight.shape) for weight in network.weights])
    return network


def flow_of(coupling, size, dtype=tf.float64):
    normal = tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype))
    return tfd.TransformedDistribution(tfd.Sample(normal, [size]), coupling)


@pytest.mark.parametrize("latent", [5.2, 5.5, 6.0, -5.5])
def test_latents_far_out_are_angles_at_the_ends(rng, latent):
    """In float32 the sum of the bins may end below pi, before the positions of such latents."""
    logits = np.concatenate([rng.normal(size=[300, 23]), np.full([300, 1], -7.0), np.zeros([300, 1])], axis=1)
    logits[:, 8:16] *= 2.0
    coupling = sn.CircularSplineCoupling(lambda x: tf.constant(logits, tf.float32), num_conditioning=0)
    z = tf.fill([300, 1], latent)
    with tf.GradientTape() as tape:
        tape.watch(z)
        angles = coupling.forward(z)
        log_det = coupling.forward_log_det_jacobian(z)
    assert np.isfinite(log_det).all()
    assert np.isfinite(tape.gradient(angles, z)).all()
    assert (np.abs(np.abs(angles) - np.pi) < 1e-2).all()
    end = tf.constant(np.pi * np.sign(latent), tf.float32, [300])
    mapped, log_slope = spline_of_logits(
        "forward",
        end,
        *tf.split(tf.constant(logits[:, :23], tf.float32), [8, 8, 7], axis=-1),
        np.pi,
        tf.constant(logits[:, 23:24], tf.float32),
    )
    np.testing.assert_allclose(mapped, end, rtol=1e-6)
    assert np.isfinite(log_slope).all()


def test_it_is_the_shifted_spline_of_durkan(rng):
    """The density of angles is the slope of the spline, over 2 pi, wherever the shift puts its ends."""
    network, y = random_network(rng, 1, scale=0.5), rng.uniform(-np.pi, np.pi, size=[200, 2])
    coupling = sn.CircularSplineCoupling(network, num_conditioning=1, num_bins=NUM_BINS)
    logits = network(y[:, :1]).numpy()

    def knots(values):
        shares = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        return -np.pi + 2 * np.pi * np.cumsum([0.0, *(1e-3 + (1 - NUM_BINS * 1e-3) * shares)])

    slopes = 1e-3 + (1 - 1e-3) * np.log1p(np.exp(logits[:, 2 * NUM_BINS : -1] + np.log(np.e - 1.0)))
    moved = np.angle(np.exp(1j * (y[:, 1] - logits[:, -1])))
    position, slope = np.zeros([2, 200])
    for i in range(200):
        x, v = knots(logits[i, :NUM_BINS]), knots(logits[i, NUM_BINS : 2 * NUM_BINS])
        d = np.array([slopes[i, -1], *slopes[i, :-1], slopes[i, -1]])
        k = np.searchsorted(x, moved[i]) - 1
        s, t = (v[k + 1] - v[k]) / (x[k + 1] - x[k]), (moved[i] - x[k]) / (x[k + 1] - x[k])
        below = s + (d[k + 1] + d[k] - 2 * s) * t * (1 - t)
        position[i] = v[k] + (v[k + 1] - v[k]) * (s * t**2 + d[k] * t * (1 - t)) / below
        slope[i] = s**2 * (d[k + 1] * t**2 + 2 * s * t * (1 - t) + d[k] * (1 - t) ** 2) / below**2
    expected = stats.norm.ppf(0.5 + position / (2 * np.pi))
    np.testing.assert_allclose(coupling.inverse(tf.constant(y))[:, 1], expected, rtol=1e-9, atol=1e-12)
    log_prob = flow_of(coupling, 2).log_prob(tf.constant(y))
    log_density = np.log(slope) - np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(y[:, 0]) + log_density, atol=1e-9)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_there_is_no_seam_and_the_density_integrates_to_one(rng, dtype):
    coupling = sn.CircularSplineCoupling(
        random_network(rng, 0, condition_size=2, scale=0.3), 0, num_bins=NUM_BINS
    )
    flow = flow_of(coupling, 1, dtype)
    step = 2 * np.pi / 20000
    grid = tf.constant(-np.pi + step * np.arange(20000), dtype)
    for condition in rng.normal(size=[3, 2]):
        shift = float(coupling.network(condition[None])[0, -1])
        arguments = {"bijector_kwargs": {"condition": tf.constant([condition] * 20000, dtype)}}
        density = np.exp(flow.log_prob(grid[:, None], **arguments))
        np.testing.assert_allclose(density.sum() * step, 1.0, rtol=1e-3)
        # Both sides of the cut of the data, and of the ends of the spline; float32 has steps of 2e-7.
        sides = np.array([-np.pi, np.pi, shift + np.pi - 3e-6, shift + np.pi, shift - np.pi + 3e-6])
        arguments = {"bijector_kwargs": {"condition": tf.constant([condition] * 5, dtype)}}
        log_density = flow.log_prob(tf.constant(sides[:, None], dtype), **arguments).numpy()
        np.testing.assert_allclose(log_density[0], log_density[1], atol=2e-3)
        np.testing.assert_allclose(log_density[2:4], log_density[4], atol=2e-3)


def test_conditioning_angles_count_modulo_2_pi(rng):
    coupling = sn.CircularSplineCoupling(random_network(rng, 3), 2, num_angles=1, num_bins=NUM_BINS)
    flow, y = flow_of(coupling, 3), rng.uniform(-np.pi, np.pi, size=[20, 3])
    turned = y + 2 * np.pi * np.array([0, 1, -3])
    change = stats.norm.logpdf(turned[:, 1]) - stats.norm.logpdf(y[:, 1])
    difference = flow.log_prob(tf.constant(turned)) - flow.log_prob(tf.constant(y))
    np.testing.assert_allclose(difference, change, atol=1e-9)


def test_gradients_near_the_ends_are_those_of_the_density(rng):
    """The latent is near 7 there; its part in the log density cancels to rounding."""
    network = random_network(rng, 1)
    flow = flow_of(sn.CircularSplineCoupling(network, 1, num_bins=NUM_BINS), 2)
    shift = float(network(np.zeros([1, 1]))[0, -1])
    for distance in (1e-3, 1e-9, 0.0):
        y = tf.constant([[0.0, shift + np.pi - distance]], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(y)
            log_prob = flow.log_prob(y)
        gradient = tape.gradient(log_prob, y)[0, 1]
        points = y + np.array([[0.0, -1e-6 - distance], [0.0, -1e-5 - distance]])
        values = flow.log_prob(points)
        if distance > 0.0:
            np.testing.assert_allclose(gradient, (values[0] - values[1]) / 9e-6, rtol=2e-2, atol=1e-4)
        assert np.isfinite(gradient)


def test_a_von_mises_of_two_modes_trains_to_its_entropy(rng):
    """In float32, with the weight at the cut; the entropy is by quadrature."""
    grid = np.linspace(-np.pi, np.pi, 4001)
    density = 0.5 * stats.vonmises.pdf(grid, 4.0, loc=np.pi) + 0.5 * stats.vonmises.pdf(grid, 2.0, loc=0.5)
    entropy = -np.trapezoid(density * np.log(density), grid)
    picks = rng.uniform(size=4000) < 0.5
    y = np.where(
        picks,
        stats.vonmises.rvs(4.0, loc=np.pi, size=4000, random_state=1),
        stats.vonmises.rvs(2.0, loc=0.5, size=4000, random_state=2),
    )
    y = y[:, None].astype(np.float32)
    model = sn.FlowModel(
        flow_of(sn.CircularSplineCoupling(sn.dense_network(1, 25, 8, seed=1), 0), 1, tf.float32)
    )
    model.compile("adam")
    model.optimizer.learning_rate = 1e-2
    history = model.fit(y, epochs=10, batch_size=200, verbose=0)
    expected = -np.mean(
        np.log(0.5 * stats.vonmises.pdf(y, 4.0, loc=np.pi) + 0.5 * stats.vonmises.pdf(y, 2.0, loc=0.5))
    )
    assert abs(expected - entropy) < 0.05
    assert model.evaluate(y, verbose=0, return_dict=True)["nll"] < expected + 0.02, history.history["nll"]
    samples = model.sample(4000, seed=1).numpy()
    assert np.abs(samples).max() <= np.float32(np.pi)
    np.testing.assert_allclose(np.mean(np.exp(1j * samples)), np.mean(np.exp(1j * y)), atol=0.06)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sn.CircularSplineCoupling(tf.identity, 1, num_angles=2), "`num_angles` must be at most"),
        (lambda: sn.CircularSplineCoupling(tf.identity, 1, num_bins=1), "`num_bins` must be"),
        (lambda: sn.CircularSplineCoupling(tf.identity, 1).inverse(tf.zeros([4, 2])), "25 for each of 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
