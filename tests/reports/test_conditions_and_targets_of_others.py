"""Uses of other libraries' documentation, with conditions and targets, against values computed apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def trained(model, x, y, epochs, rate=1e-2, **options):
    steps = epochs * -(-len(x if y is None else y) // 200)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)))
    model.fit(x, y, epochs=epochs, batch_size=200, verbose=0, **options)
    return model


def fitted_to(target, flow, epochs=3, rate=2e-2):
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, 100 * epochs)))
    history = model.fit_to_target(target, 100, epochs=epochs, seed=1, verbose=0).history
    return model, history["log_z"][-1], history["ess"][-1]


@pytest.mark.parametrize(
    ("builder", "options"),
    [(sn.coupling_flow, {"transform": "affine"}), (sn.autoregressive_flow, {"num_bins": 4})],
    ids=["coupling_flow", "autoregressive_flow"],
)
def test_posterior_of_a_linear_gaussian_simulator(builder, options, rng):
    """The first tutorial of sbi: parameters from a prior, observations with noise, an amortized posterior."""
    matrix = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
    theta = rng.normal(size=[4000, 2])
    x = theta @ matrix.T + 0.5 * rng.normal(size=[4000, 3])
    flow = builder(2, 3, num_layers=2, width=32, seed=1, **options)
    model = trained(sn.ConditionalFlowModel(flow), x, theta, epochs=20)
    covariance = np.linalg.inv(np.eye(2) + matrix.T @ matrix / 0.25)
    observed = np.array([[0.5, 1.0, -1.0], [0.0, 0.0, 0.0]])
    mean = observed @ matrix @ covariance / 0.25
    samples, log_prob = model.sample_and_log_prob(5000, observed, seed=1, exact=True)
    exact = tfd.MultivariateNormalTriL(np.float32(mean), np.float32(np.linalg.cholesky(covariance)))
    # KL(flow || posterior), whose samples are of the flow.
    assert np.all(np.mean(log_prob - exact.log_prob(samples), axis=0) < 0.05)
    np.testing.assert_allclose(np.mean(samples, axis=0), mean, atol=0.1)


def test_a_square_of_the_dimension_before(rng):
    """The data of TFP's `AutoregressiveNetwork`: a normal number about a quarter of the square of another."""

    def draw(number):
        second = 2.0 * rng.normal(size=number)
        first = rng.normal(size=number) + second**2 / 4.0
        log_density = stats.norm.logpdf(second, 0.0, 2.0) + stats.norm.logpdf(first, second**2 / 4.0)
        return np.stack([first, second], axis=1), log_density

    flow = sn.autoregressive_flow(2, num_layers=2, bound=12.0, seed=1)
    model = trained(sn.FlowModel(flow), draw(100_000)[0], None, epochs=3)
    x, log_density = draw(20_000)
    assert -0.005 < np.mean(log_density - model.log_prob(x)) < 0.02
    samples = model.sample(20_000, seed=1).numpy()
    np.testing.assert_allclose(samples.mean(axis=0), [1.0, 0.0], atol=0.06)
    np.testing.assert_allclose(np.cov(samples.T), [[3.0, 0.0], [0.0, 4.0]], atol=0.25)


def test_posterior_of_sets_of_any_size(rng):
    """BayesFlow's amortization over the number of observations, padded, with a mask as a second input."""
    values, mask = keras.Input([None], name="values"), keras.Input([None], name="mask")
    total = keras.layers.Lambda(lambda parts: tf.reduce_sum(parts[0] * parts[1], -1, keepdims=True))
    number = keras.layers.Lambda(lambda part: tf.reduce_sum(part, -1, keepdims=True) / 10.0)(mask)
    merged = keras.layers.Concatenate()([total([values, mask]), number])
    embedding = keras.Model({"values": values, "mask": mask}, keras.layers.Dense(8, "silu")(merged))
    sizes = rng.integers(1, 11, size=6000)
    mean = rng.normal(size=[6000, 1])
    given = {
        "values": mean + rng.normal(size=[6000, 10]),
        "mask": (np.arange(10) < sizes[:, np.newaxis]).astype(float),
    }
    flow = sn.coupling_flow(1, 8, num_layers=1, transform="affine", width=32, seed=1)
    model = trained(sn.ConditionalFlowModel(flow, embedding=embedding), given, mean, epochs=20)
    total = np.sum(given["values"] * given["mask"], axis=1)
    exact = stats.norm.logpdf(mean[:, 0], total / (sizes + 1), 1 / np.sqrt(sizes + 1))
    assert abs(np.mean(model.log_prob(mean, given) - exact)) < 0.03
    longer = {name: np.pad(part, [[0, 0], [0, 5]], constant_values=0.0) for name, part in given.items()}
    np.testing.assert_allclose(
        model.log_prob(mean, longer), model.log_prob(mean, given), rtol=1e-4, atol=1e-5
    )


def test_evidence_of_a_model_with_constraints():
    """TFP's tutorial of variational inference: constraining bijectors; a Gamma prior of a Poisson rate."""
    counts, shape, rate = np.array([3.0, 4.0, 1.0]), 2.0, 1.0

    def joint(x):
        log_prior = tfd.Gamma(shape, rate).log_prob(x[:, 0])
        return log_prior + tf.reduce_sum(tfd.Poisson(x).log_prob(tf.constant(counts, tf.float32)), axis=-1)

    flow = sn.dense_flow(1, num_layers=2, activation="spline", preprocessing=tfb.Exp(), seed=1)
    model, log_z, ess = fitted_to(joint, flow)
    posterior = tfd.Gamma(shape + counts.sum(), rate + len(counts))
    x = np.float32([[2.0], [2.5], [3.0]])
    # log p(x, counts) - log p(x | counts), which is the same at each x.
    expected = joint(x).numpy() - posterior.log_prob(x[:, 0]).numpy()
    np.testing.assert_allclose(log_z, expected, atol=0.01)
    assert ess > 0.95
    np.testing.assert_allclose(model.log_prob(x), posterior.log_prob(x[:, 0]), atol=0.1)
    assert np.isneginf(model.log_prob([[-0.5]]))


def test_evidence_of_a_pinned_joint_distribution():
    """TFP's linear mixed models: `experimental_pin`, whose evidence is that of a normal distribution."""
    joint = tfd.JointDistributionNamedAutoBatched(
        {"a": tfd.Normal(0.0, 1.0), "b": tfd.Normal(1.0, 2.0), "y": lambda a, b: tfd.Normal(a + b, 0.5)}
    )
    pinned = joint.experimental_pin(y=2.0)
    flow = sn.dense_flow(2, num_layers=1, seed=1)
    _, log_z, ess = fitted_to(
        lambda x: pinned.unnormalized_log_prob(a=x[:, 0], b=x[:, 1]), flow, epochs=3, rate=0.05
    )
    np.testing.assert_allclose(log_z, tfd.Normal(1.0, np.sqrt(5.25, dtype="f")).log_prob(2.0), atol=0.01)
    assert ess > 0.9


@pytest.mark.parametrize("name", ["couplings", "dense"])
def test_the_normalising_constant_of_a_shifted_banana(name):
    """As in normflows' examples of reverse divergence: a banana times e^3, whose integral is pi e^3."""
    flows = {
        "couplings": lambda: sn.coupling_flow(2, num_layers=4, width=32, seed=1),
        "dense": lambda: sn.dense_flow(2, num_layers=8, activation="spline", seed=1),
    }
    _, log_z, ess = fitted_to(
        lambda x: 3.0 - 0.5 * x[:, 0] ** 2 - 2.0 * (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2,
        flows[name](),
        epochs=15,
    )
    np.testing.assert_allclose(log_z, 3.0 + np.log(np.pi), atol=0.01)
    assert ess > 0.9


def test_the_density_of_one_condition_has_the_integral_one(rng):
    """Zuko's `flow(c)`: for one condition a density over a grid, and samples of other temperatures."""
    flow = sn.coupling_flow(2, 1, num_layers=2, width=16, seed=1)
    model = sn.ConditionalFlowModel(flow)
    grid = np.stack(np.meshgrid(*[np.linspace(-9, 9, 361)] * 2), axis=-1).reshape([-1, 2])
    for condition in ([-3.0], [0.5]):
        given = np.broadcast_to(condition, [len(grid), 1])
        np.testing.assert_allclose(np.sum(np.exp(model.log_prob(grid, given))) * 0.05**2, 1.0, atol=1e-3)
        x, log_prob = model.sample_and_log_prob(2000, condition, seed=1, exact=True, temperature=0.7)
        given = np.broadcast_to(condition, [2000, 1])
        z = model.encode(x, given)
        scaled = tfd.MultivariateNormalDiag(tf.zeros(2), [0.7, 0.7])
        base = tfd.MultivariateNormalDiag(tf.zeros(2))
        expected = model.log_prob(x, given) - base.log_prob(z) + scaled.log_prob(z)
        np.testing.assert_allclose(log_prob, expected, atol=1e-3)
        # The integral of the first density is the mean of its ratio to the second.
        assert 0.5 < np.mean(np.exp(model.log_prob(x, given) - log_prob)) <= 1.0


def test_own_steps_and_weights_of_a_subclass(rng):
    """Keras's guide to custom `train_step`s: it gets (conditions, events), and weights count."""
    seen = []

    class Watched(sn.ConditionalFlowModel):
        def train_step(self, data):
            events, condition, weights = keras.utils.unpack_x_y_sample_weight(data)
            seen.append((events.shape[1:], condition.shape[1:], weights is not None))
            return super().train_step(data)

    x, y = rng.normal(size=[100, 3]), rng.normal(size=[100, 2])
    weights = (np.arange(100) < 50).astype(float)
    model = Watched(sn.coupling_flow(2, 3, num_layers=1, transform="affine", width=8, seed=1))
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(x, y, sample_weight=weights, batch_size=100, validation_split=0.3, verbose=0).history
    assert seen[0] == ([2], [3], True)
    log_prob = model.log_prob(y, x).numpy()
    np.testing.assert_allclose(history["nll"][0], -np.mean(log_prob[:50]), rtol=1e-5)
    np.testing.assert_allclose(history["loss"][0], -np.sum(log_prob[:50]) / 70, rtol=1e-5)
