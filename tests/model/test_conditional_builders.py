"""ConditionalFlowModel.from_builder: conditional densities of the builders that take a condition."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm import initialization

tfb, tfd = tfp.bijectors, tfp.distributions

BUILDERS = {
    "splines": (sn.coupling_flow, {"num_layers": 2, "num_bins": 4}),
    "affine": (sn.coupling_flow, {"num_layers": 2, "transform": "affine"}),
    "autoregressive": (sn.autoregressive_flow, {"num_layers": 2, "num_bins": 4, "depth": 2}),
    "free form": (sn.free_form_flow, {"depth": 1}),
    "free form chain": (sn.free_form_flow, {"num_layers": 2, "depth": 1}),
}


def make_model(kind, **options):
    builder, arguments = BUILDERS[kind]
    arguments = {"event_shape": 2, "condition_shape": 3, "width": 8, "seed": 1, **arguments, **options}
    model = sn.ConditionalFlowModel.from_builder(builder, **arguments)
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


@pytest.mark.parametrize("form", ["array", "list", "dict"])
def test_adapt_gives_each_part_of_the_events_its_conditions(form, data, monkeypatch):
    x, y = data
    monkeypatch.setattr(initialization, "_PART_SIZE", 10 * 2)
    monkeypatch.setattr(initialization, "_PART_EVENTS", 5)
    shift = sn.AffineCoupling(lambda c: tf.concat([c[:, :2], 0.0 * c[:, :2]], axis=-1), 0, 1)
    centering = sn.Centering.trainable([2])
    chain = tfb.Chain([shift, centering])
    options = {"embedding": lambda c: c["x"], "condition_ndims": {"x": 1}} if form == "dict" else {}
    flow = tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(0.0, 1.0), [2]), sn.Conditional(chain, **options)
    )
    sn.adapt(flow, y, condition={"array": x, "list": x.tolist(), "dict": {"x": x}}[form])
    np.testing.assert_allclose(centering.mean, (y + x[:, :2]).mean(axis=0), rtol=1e-5, atol=1e-6)


def test_the_log_dets_of_kept_events_are_for_their_conditions(data):
    """The held log-det of a free-form layer: a mean over the first 16 events, without a skipped batch."""
    x, y = data
    model = make_model("free form", gradient="self_norm")
    model.compile(keras.optimizers.SGD(0.0))
    model.train_on_batch(x[:16], y[:16])
    # It has no density, and is not kept.
    model.train_on_batch(x[16:32], np.where(np.arange(16)[:, np.newaxis] == 0, np.nan, y[16:32]))
    held = {name: variable for name, variable in model.named_variables.items() if "for_log_dets" in name}
    assert set(held) == {"examples_for_log_dets", "conditions_for_log_dets"}
    np.testing.assert_array_equal(held["examples_for_log_dets"], y[:16])
    np.testing.assert_array_equal(held["conditions_for_log_dets"], x[:16])
    for weight in model.trainable_variables:
        weight.assign_add(0.1 * tf.ones_like(weight))
    model.refresh_log_dets()
    layer = model.distribution.bijector.bijector.bijectors[-1]
    with sn.training_scope(None) as scope:
        model.distribution.log_prob(tf.constant(y[:16]), bijector_kwargs={"condition": tf.constant(x[:16])})
    log_dets = dict(zip([part.name for part in scope.layers], scope.exact_log_dets(), strict=True))
    held_log_det = model.named_variables[f"held_log_det_{layer.name}"]
    np.testing.assert_allclose(held_log_det, log_dets[layer.name], rtol=1e-5)


def draw_two_modes(rng, number):
    """Conditions, events, log densities. The modes are at 1.5 + sin(2 x) and its negative."""
    x = rng.uniform(-2.0, 2.0, size=[number, 1])
    mean, deviation = 1.5 + np.sin(2.0 * x), np.exp(x / 2.0) / 3.0
    y = np.sign(rng.normal(size=[number, 1])) * mean + deviation * rng.normal(size=[number, 1])
    densities = [stats.norm.logpdf(y, sign * mean, deviation) for sign in (-1.0, 1.0)]
    return x, y, np.logaddexp(*densities) - np.log(2.0)


def fit_splines(builder, steps, batch_size, rate, draw, **arguments):
    model = sn.ConditionalFlowModel.from_builder(
        builder, condition_shape=1, num_bins=12, bound=6.0, seed=1, **arguments
    )
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(schedule), steps_per_execution=10)
    x, y, _ = draw(steps * batch_size)
    model.fit(x, y, batch_size=batch_size, epochs=1, verbose=0)
    return model


def excess_over_entropy(model, x, y, log_densities):
    nll = model.evaluate(x, y, batch_size=5000, verbose=0, return_dict=True)["nll"]
    return nll + np.mean(log_densities)


@pytest.mark.parametrize("builder", [sn.coupling_flow, sn.autoregressive_flow])
def test_a_process_of_two_modes_and_many_deviations(builder, rng):
    options = {"event_shape": 1, "num_layers": 2, "depth": 2, "width": 32}
    model = fit_splines(builder, 1800, 100, 1e-2, lambda n: draw_two_modes(rng, n), **options)
    x, y, log_densities = draw_two_modes(rng, 20_000)
    assert -0.01 < excess_over_entropy(model, x, y, log_densities) < 0.02
    # The quantiles are calibrated, for small and for large x: one dimension is mapped in its order.
    quantiles = stats.norm.cdf(model.encode(y, x))
    for half in (x < 0.0, x >= 0.0):
        assert stats.kstest(quantiles[half], "uniform").statistic < 0.03
    # The samples have both modes of each condition.
    samples = model.sample(4000, [[-1.0], [1.5]], seed=1)[..., 0].numpy()
    for column, point in zip(samples.T, (-1.0, 1.5), strict=True):
        upper = column[column > 0.0]
        assert abs(len(upper) / len(column) - 0.5) < 0.05
        np.testing.assert_allclose(np.mean(upper), 1.5 + np.sin(2.0 * point), atol=0.1)
        np.testing.assert_allclose(np.std(upper), np.exp(point / 2.0) / 3.0, rtol=0.15)


@pytest.mark.parametrize(
    ("builder", "options"),
    [(sn.coupling_flow, {"num_layers": 4}), (sn.autoregressive_flow, {"num_layers": 2})],
)
def test_two_mixed_dimensions_of_two_modes_and_many_deviations(builder, options, rng):
    """A rotation mixes the process above and a normal one of deviation exp(-x / 2) / 3."""

    def draw(number):
        x, first, log_densities = draw_two_modes(rng, number)
        second = np.exp(-x / 2.0) / 3.0 * rng.normal(size=x.shape)
        log_densities += stats.norm.logpdf(second, 0.0, np.exp(-x / 2.0) / 3.0)
        return x, np.concatenate([first, second], axis=1) @ [[0.8, 0.6], [-0.6, 0.8]], log_densities

    model = fit_splines(builder, 6000, 256, 5e-3, draw, event_shape=2, width=64, **options)
    assert -0.01 < excess_over_entropy(model, *draw(20_000)) < 0.02
