"""ConditionalFlowModel: p(y | x) by formulas of their own, by integration, and by Keras's methods."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def regression(dtype="float32", **options):
    """Events of two dimensions whose mean and scale are an affine map of three numbers."""
    network = keras.Sequential(
        [
            keras.Input([3], dtype=dtype),
            keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(seed=1), dtype=dtype),
        ]
    )
    zero = tf.zeros([], dtype)
    base = tfd.Sample(tfd.Normal(zero, 1.0), [2])
    affine = sn.AffineCoupling(network, num_conditioning=0, event_ndims=1)
    return sn.ConditionalFlowModel(tfd.TransformedDistribution(base, affine), **options), network


def expected_log_prob(network, y, x):
    """By numpy."""
    kernel, bias = (np.asarray(weight, np.float64) for weight in network.weights)
    shift, h = np.split(x @ kernel + bias, 2, axis=-1)
    log_scale = 2.0 * np.tanh(h / 2.0)
    return (stats.norm.logpdf(np.exp(log_scale) * y + shift) + log_scale).sum(axis=-1)


def mixed(seed=1, **options):
    """A flow with self-normalizing layers between couplings."""
    flow = sn.coupling_flow(2, 3, num_layers=2, num_bins=4, width=8, seed=seed)
    return sn.ConditionalFlowModel(flow, **options)


@pytest.fixture
def data(rng):
    x = rng.normal(size=[40, 3])
    return x, 0.5 * x[:, :2] + 0.3 * rng.normal(size=[40, 2])


def test_every_way_to_a_density_is_the_formula(data):
    x, y = data
    model, network = regression()
    model.compile(run_eagerly=True)
    expected = expected_log_prob(network, y, x)
    weights = np.arange(40.0)
    np.testing.assert_allclose(model.log_prob(y, x), expected, **TOLERANCE)
    np.testing.assert_allclose(model(y.astype(np.float32), condition=x), expected, **TOLERANCE)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    for given in ((x, y), [x, y], batches, iter([(x[:20], y[:20]), (x[20:], y[20:])])):
        np.testing.assert_allclose(model.predict(given, batch_size=16, verbose=0), expected, **TOLERANCE)
    np.testing.assert_allclose(model.predict_on_batch((x, y)), expected, **TOLERANCE)
    weighted = batches.unbatch().batch(40).map(lambda x, y: (x, y, tf.range(40)))
    for figures in (
        model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True),
        model.evaluate(weighted, verbose=0, return_dict=True),
        model.test_on_batch(x, y, weights, return_dict=True),
    ):
        np.testing.assert_allclose(figures["nll"], -np.average(expected, weights=weights), rtol=1e-4)


def test_samples_and_latents_follow_the_formula(data):
    x, y = data
    model, network = regression()
    kernel, bias = (weight.numpy() for weight in network.weights)
    shift, h = np.split(x @ kernel + bias, 2, axis=-1)
    scale = np.exp(2.0 * np.tanh(h / 2.0))
    z = model.encode(y, x)
    np.testing.assert_allclose(z, scale * y + shift, **TOLERANCE)
    np.testing.assert_allclose(model.decode(z, x), y, **TOLERANCE)
    np.testing.assert_allclose(model.reconstruct(y, x), y, **TOLERANCE)
    samples = model.sample(2000, x[:4], seed=1)
    assert samples.shape == [2000, 4, 2]
    np.testing.assert_allclose(np.mean(samples, axis=0), -shift[:4] / scale[:4], atol=0.15)
    np.testing.assert_allclose(np.std(samples, axis=0) * scale[:4], 1.0, atol=0.1)
    assert model.sample((2, 3), x[:4], seed=1).shape == [2, 3, 4, 2]
    assert model.sample(5, x[0], seed=1).shape == [5, 2]
    # Each density of a sample is for the condition of its row.
    log_prob = model.log_prob(samples[:2], x[:4])
    for i in range(2):
        np.testing.assert_allclose(log_prob[i], expected_log_prob(network, samples[i], x[:4]), **TOLERANCE)


@pytest.mark.parametrize("form", ["arrays", "data set", "weights", "generator"])
def test_fit_takes_the_step_of_the_formula(form, data):
    """One step of gradient descent, against a tape on the same formula."""
    x, y = (part.astype(np.float32) for part in data)
    weights = np.ones(40, np.float32)
    (model, network), (_, other) = regression(), regression()
    model.compile(keras.optimizers.SGD(0.1))
    batches = tf.data.Dataset.from_tensors((x, y))
    options = {"epochs": 1, "verbose": 0, "validation_data": (x, y)}
    if form == "arrays":
        history = model.fit(x, y, batch_size=40, **options)
    elif form == "data set":
        history = model.fit(batches, **options)
    elif form == "weights":
        history = model.fit(
            batches.map(lambda x, y: (x, y, weights)), **options | {"validation_data": batches}
        )
    else:
        history = model.fit(iter([(x, y)]), **options)
    with tf.GradientTape() as tape:
        shift, h = tf.split(other(x), 2, axis=-1)
        log_scale = 2.0 * tf.tanh(h / 2.0)
        log_prob = tfd.Normal(0.0, 1.0).log_prob(tf.exp(log_scale) * y + shift) + log_scale
        loss = -tf.reduce_mean(tf.reduce_sum(log_prob, axis=-1))
    for variable, gradient in zip(other.weights, tape.gradient(loss, other.weights), strict=True):
        variable.assign_sub(0.1 * gradient)
    for one, expected in zip(network.weights, other.weights, strict=True):
        np.testing.assert_allclose(one, expected, **TOLERANCE)
    np.testing.assert_allclose(history.history["nll"][0], loss, rtol=1e-5)
    expected = -np.mean(expected_log_prob(network, y, x))
    np.testing.assert_allclose(history.history["val_nll"][0], expected, rtol=1e-4)


def test_double_precision_is_kept(data):
    x, y = data
    model, network = regression("float64")
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    expected = expected_log_prob(network, y, x)
    for given in ((x, y), tf.data.Dataset.from_tensors((x, y))):
        np.testing.assert_allclose(model.predict(given, verbose=0), expected, rtol=1e-12)
    seen = []
    model.call = lambda x, condition, training=None: seen.append((x, condition)) or tf.reduce_sum(x, axis=-1)
    model.evaluate(x, y, batch_size=40, verbose=0)
    np.testing.assert_array_equal(seen[0][0], y)
    np.testing.assert_array_equal(seen[0][1], x)


@pytest.mark.parametrize("layer", ["self_norm", "lu"])
def test_each_density_integrates_to_one(layer, rng):
    flow = sn.coupling_flow(2, 3, num_layers=2, num_bins=4, width=8, layer=layer, seed=1)
    model = sn.ConditionalFlowModel(flow)
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    axis = np.linspace(-9.0, 9.0, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    conditions = rng.normal(size=[3, 3])
    density = np.exp(model.log_prob(np.repeat(grid, 3, axis=1), conditions))
    np.testing.assert_allclose(density.sum(axis=0) * (axis[1] - axis[0]) ** 2, 1.0, atol=0.01)
    assert np.ptp(density, axis=1).max() > 1e-3


def test_r_follows_and_exact_samples_have_the_density(data):
    x, y = data
    model = mixed()
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, y, epochs=1, batch_size=20, verbose=0)
    learned, exact = (model.sample(3, x, seed=1, exact=flag) for flag in (False, True))
    assert learned.shape == [3, 40, 2]
    np.testing.assert_allclose(learned, exact, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.reconstruct(y, x), y, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.predict((x, y), verbose=0), model.log_prob(y, x), rtol=1e-4, atol=1e-4)


def with_network_of_pairs(**options):
    """An embedding of a label and of numbers."""
    label, numbers = keras.Input([], dtype="int32", name="label"), keras.Input([3], name="numbers")
    merged = keras.layers.Concatenate()([keras.layers.Embedding(5, 2)(label), numbers])
    embedding = keras.Model({"label": label, "numbers": numbers}, keras.layers.Dense(3)(merged))
    return sn.ConditionalFlowModel(
        sn.coupling_flow(2, 3, num_layers=1, width=8, seed=1), None, embedding, **options
    )


def test_an_embedding_of_several_inputs_trains_along(data):
    x, y = data
    model = with_network_of_pairs()
    model.compile(keras.optimizers.Adam(1e-2))
    condition = {"label": np.arange(40) % 5, "numbers": x}
    before = {name: variable.numpy() for name, variable in model.named_variables.items()}
    embedding = [name for name in before if ".embedding." in name]
    assert len(embedding) == 3
    batches = tf.data.Dataset.from_tensor_slices((condition, y)).batch(20)
    # The last layer of a new coupling is zero. After one step it is not.
    model.fit(condition, y, epochs=2, batch_size=20, verbose=0, validation_data=batches)
    for name in embedding:
        assert not np.array_equal(model.named_variables[name], before[name])
    log_prob = model.log_prob(y, condition)
    for given in ((condition, y), batches):
        np.testing.assert_allclose(model.predict(given, verbose=0), log_prob, **TOLERANCE)
    assert model.sample(3, condition, seed=1).shape == [3, 40, 2]
    other = condition | {"label": (np.arange(40) + 1) % 5}
    assert not np.allclose(model.log_prob(y, other), log_prob)


def test_an_embedding_of_sequences_of_any_length(rng):
    embedding = keras.Sequential([keras.Input([None, 2]), keras.layers.SimpleRNN(3)])
    model = sn.ConditionalFlowModel(
        sn.coupling_flow(2, 3, num_layers=1, width=8, seed=1), embedding=embedding
    )
    model.compile("adam", run_eagerly=True)
    for length in (3, 5):
        x, y = rng.normal(size=[6, length, 2]), rng.normal(size=[6, 2])
        model.fit(x, y, verbose=0)
        assert model.log_prob(y, x).shape == [6]
        assert model.sample(2, x).shape == [2, 6, 2]


def test_adapt_and_whiten_take_conditions(data):
    x, y = data
    _, network = regression()
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [2])
    chain = tfb.Chain([sn.AffineCoupling(network, 0, 1), sn.ActNorm.trainable(2)])
    for form in ("arrays", "data set"):
        norm = sn.ActNorm.trainable(2)
        chain = tfb.Chain([sn.AffineCoupling(network, 0, 1), norm])
        model = sn.ConditionalFlowModel(tfd.TransformedDistribution(base, chain))
        with pytest.raises(ValueError, match="without initial values"):
            model.predict((x, y))
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
        model.adapt(*((x, y) if form == "arrays" else (batches,)), num_examples=30)
        z = model.encode(y[:30], x[:30]).numpy()
        np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(z.std(axis=0), 1.0, atol=1e-4)
    model = mixed()
    sn.whiten(model.distribution, y, condition=x)
    assert np.isfinite(model.log_prob(y, x)).all()


def test_a_learned_inverse_takes_a_condition(rng):
    def network(seed):
        y, x = keras.Input([9]), keras.Input([9])
        hidden = keras.layers.Dense(9, kernel_initializer=keras.initializers.Orthogonal(seed=seed))(y)
        return keras.Model([y, x], keras.layers.Add()([hidden, x]))

    base = tfd.Sample(tfd.Normal(0.0, 1.0), [9])
    layer = sn.LearnedInverse(network(1), network(2), event_shape=9)
    model = sn.ConditionalFlowModel(
        tfd.TransformedDistribution(base, layer), inverse_learning=sn.Reconstruction()
    )
    model.compile(keras.optimizers.Adam(1e-3))
    x, y = rng.normal(size=[40, 9]), rng.normal(size=[40, 9])
    history = model.fit(x, y, batch_size=20, epochs=2, verbose=0, validation_data=(x, y)).history
    np.testing.assert_allclose(history["val_nll"][-1], -np.mean(model.log_prob(y, x)), rtol=1e-4)


def test_copies_and_a_bigger_model(data):
    x, y = data
    model, _ = regression()
    expected = model.log_prob(y, x)
    np.testing.assert_array_equal(copy.deepcopy(model).log_prob(y, x), expected)
    events, condition = keras.Input([2]), keras.Input([3])
    bigger = keras.Model([events, condition], model(events, condition=condition))
    np.testing.assert_allclose(bigger.predict([y, x], verbose=0), expected, **TOLERANCE)


def test_the_summary_has_a_row_for_each_part(capsys):
    mixed().summary(line_length=100)
    with_network_of_pairs().summary(line_length=100)
    text = capsys.readouterr().out
    for part in ("coupling_0", "mixing_1", "embedding"):
        assert part in text


def test_the_conditional_likelihood_reaches_the_entropy(rng):
    """p(y | x): normal of mean 1.5 + sin(2 x) and deviation exp(x / 2) / 3."""

    def draw(number):
        x = rng.uniform(-2.0, 2.0, size=[number, 1])
        return x, 1.5 + np.sin(2.0 * x) + np.exp(x / 2.0) / 3.0 * rng.normal(size=[number, 1])

    flow = sn.coupling_flow(1, 1, num_layers=2, transform="affine", width=32, seed=1)
    model = sn.ConditionalFlowModel(flow)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 600)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=10)
    model.fit(*draw(60_000), batch_size=100, epochs=1, verbose=0)
    x, y = draw(20_000)
    entropy = -np.mean(stats.norm.logpdf(y, 1.5 + np.sin(2.0 * x), np.exp(x / 2.0) / 3.0))
    excess = model.evaluate(x, y, batch_size=5000, verbose=0, return_dict=True)["nll"] - entropy
    assert -0.01 < excess < 0.02
