"""ConditionalFlowModel.from_builder: conditional densities of `coupling_flow` and `free_form_flow`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfp_selfnorm as sn

BUILDERS = {
    "splines": (sn.coupling_flow, {"num_layers": 2, "num_bins": 4}),
    "affine": (sn.coupling_flow, {"num_layers": 2, "transform": "affine"}),
    "free form": (sn.free_form_flow, {"depth": 1}),
    "free form chain": (sn.free_form_flow, {"num_layers": 2, "depth": 1}),
}
LEARNING = sn.Tracking(reconstruction=sn.Reconstruction(weight=3.0))


def make_model(kind, **options):
    builder, arguments = BUILDERS[kind]
    arguments = {"event_shape": 2, "condition_shape": 3, "width": 8, "seed": 1, **arguments, **options}
    model = sn.ConditionalFlowModel.from_builder(builder, LEARNING, **arguments)
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def moved(model, rng):
    """The model with other weights: with the first ones, no density depends on the condition."""
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    return model


def make_embedding():
    """From an image to three numbers."""
    initializer = keras.initializers.GlorotUniform(seed=1)
    layers = [keras.Input([2, 2, 1]), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(3, "tanh", kernel_initializer=initializer)])


@pytest.fixture
def data(rng):
    x = rng.normal(size=[60, 3]).astype(np.float32)
    return x, (0.5 * x[:, :2] + 0.3 * rng.normal(size=[60, 2])).astype(np.float32)


@pytest.mark.parametrize("kind", BUILDERS)
def test_each_conditional_density_integrates_to_one(kind, rng):
    model, conditions = moved(make_model(kind), rng), rng.normal(size=[2, 3]).astype(np.float32)
    axis = np.linspace(-9.0, 9.0, 121, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    density = np.exp(model.log_prob(np.repeat(grid, 2, axis=1), conditions))
    np.testing.assert_allclose(density.sum(axis=0) * (axis[1] - axis[0]) ** 2, 1.0, atol=0.01)
    assert np.ptp(density, axis=1).max() > 1e-3


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_log_density_is_the_change_of_variables_by_differentiation(kind, data, rng):
    x, y = (tf.constant(part[:8]) for part in data)
    model = moved(make_model(kind), rng)
    with tf.GradientTape() as tape:
        tape.watch(y)
        z = model.encode(y, x)
    log_det = np.linalg.slogdet(tape.batch_jacobian(z, y))[1]
    expected = stats.norm.logpdf(z).sum(axis=-1) + log_det
    np.testing.assert_allclose(model.log_prob(y, x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        model.predict((x.numpy(), y.numpy()), verbose=0), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["splines", "free form"])
def test_a_condition_through_an_embedding_from_fit_to_a_file(kind, data, tmp_path, rng):
    _, y = data
    images = rng.normal(size=[60, 2, 2, 1]).astype(np.float32)
    model = make_model(kind, embedding=make_embedding())
    assert model.conditions.specs.shape == [2, 2, 1]
    model.adapt(images, y, whitens=True)
    before = [weight.numpy() for weight in model.distribution.bijector.embedding.weights]
    history = model.fit(images, y, batch_size=20, epochs=3, verbose=0, validation_data=(images, y)).history
    np.testing.assert_allclose(history["val_nll"][-1], -np.mean(model.log_prob(y, images)), rtol=1e-4)
    for old, weight in zip(before, model.distribution.bijector.embedding.weights, strict=True):
        assert not np.array_equal(old, weight)
    assert model.sample(4, images[:5], seed=1).shape == [4, 5, 2]
    model.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    np.testing.assert_array_equal(loaded.log_prob(y, images), model.log_prob(y, images))


def test_a_process_of_two_modes_and_two_deviations(rng):
    """p(y | x): of mean 1.5 + sin(2 x) with a random sign, and of deviation exp(x / 2) / 3."""

    def draw(number):
        x = rng.uniform(-2.0, 2.0, size=[number, 1])
        sign = np.sign(rng.normal(size=[number, 1]))
        return x, sign * (1.5 + np.sin(2.0 * x)) + np.exp(x / 2.0) / 3.0 * rng.normal(size=[number, 1])

    steps = 1200
    model = sn.ConditionalFlowModel.from_builder(
        sn.coupling_flow,
        event_shape=1,
        condition_shape=1,
        num_layers=2,
        width=32,
        num_bins=12,
        bound=6.0,
        seed=1,
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-2, steps)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=10)
    x, y = draw(100 * steps)
    model.fit(x, y, batch_size=100, epochs=1, verbose=0)
    x, y = draw(20_000)
    mean, deviation = 1.5 + np.sin(2.0 * x), np.exp(x / 2.0) / 3.0
    densities = [stats.norm.logpdf(y, sign * mean, deviation) for sign in (-1.0, 1.0)]
    entropy = np.log(2.0) - np.mean(np.logaddexp(*densities))
    nll = model.evaluate(x, y, batch_size=5000, verbose=0, return_dict=True)["nll"]
    assert -0.01 < nll - entropy < 0.02
    # The quantiles are calibrated, for small and for large x: one dimension is mapped in its order.
    quantiles = stats.norm.cdf(model.encode(y, x))
    for half in (x < 0.0, x >= 0.0):
        assert stats.kstest(quantiles[half], "uniform").statistic < 0.03
    # The samples have both modes of each condition.
    samples = model.sample(4000, [[-1.0], [1.5]], seed=1)[..., 0].numpy()
    for column, point in zip(samples.T, (-1.0, 1.5), strict=True):
        center, width = 1.5 + np.sin(2.0 * point), np.exp(point / 2.0) / 3.0
        assert abs(np.mean(column > 0.0) - 0.5) < 0.05
        np.testing.assert_allclose(np.std(column[column > 0.0]), width, rtol=0.15)
        np.testing.assert_allclose(np.mean(column[column > 0.0]), center, atol=0.1)
