"""Uses and faults that people reported in public, each with its report; values are computed apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def gaussian_entropy(x):
    return 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * np.cov(x, rowvar=False, bias=True))[1]


def normal_log_density(z):
    return -0.5 * np.sum(z**2 + np.log(2.0 * np.pi), axis=-1)


def over_a_normal(bijector, size=2):
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(size)), bijector)


def train(distribution, x, steps=100, rate=0.1, batch_size=200, inverse_learning=sn.Tracking()):  # noqa: B008
    model = sn.FlowModel(distribution, inverse_learning)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)))
    model.fit(x, epochs=steps * batch_size // len(x), batch_size=batch_size, verbose=0)
    return model


def nll(model, x):
    return model.evaluate(x, verbose=0, return_dict=True)["nll"]


def mass(log_prob, side=15.0, count=601, center=0.0):
    grid = center + np.linspace(-side, side, count, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    return np.exp(np.float64(log_prob(points))).sum() * np.float64(grid[1] - grid[0]) ** 2


def small_glow():
    keras.utils.set_random_seed(1)
    glow = tfb.Glow(
        output_shape=[4, 4, 2],
        num_glow_blocks=2,
        num_steps_per_block=1,
        coupling_bijector_fn=lambda shape: tfb.GlowDefaultNetwork(shape, num_hidden=4),
        exit_bijector_fn=tfb.GlowDefaultExitNetwork,
        seed=1,
    )
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [32]), glow)


def test_glow_of_tfp_starts_from_the_data_and_not_from_a_sample(rng):
    """tensorflow/probability#1454: NaN in samples of tfb.Glow that Keras trained."""
    x = rng.normal(size=[64, 4, 4, 2]).astype(np.float32)
    expected = -np.mean(small_glow().log_prob(x))
    flow = small_glow()
    model = sn.FlowModel(flow)
    started = [variable for variable in flow.variables if variable.dtype == tf.bool]
    assert [bool(variable) for variable in started] == [False, False]
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(x, batch_size=64, verbose=0).history
    np.testing.assert_allclose(history["nll"], [expected], rtol=1e-5)
    assert [bool(variable) for variable in started] == [True, True]
    assert np.isfinite(model.sample(200, seed=1)).all()


class Counting(tfb.Bijector):
    """The identity; counts its calls in a variable that it has, or makes at the first one."""

    def __init__(self, is_lazy):
        parameters = dict(locals())
        self.calls = None if is_lazy else tf.Variable(5.0, trainable=False)
        super().__init__(forward_min_event_ndims=0, is_constant_jacobian=True, parameters=parameters)

    def _forward(self, x):
        if self.calls is None:
            self.calls = tf.Variable(5.0, trainable=False)
        self.calls.assign_add(1.0)
        return tf.identity(x)

    def _inverse(self, y):
        self.calls.assign_add(1.0)
        return tf.identity(y)

    def _forward_log_det_jacobian(self, x):
        return tf.zeros([], x.dtype)


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_model_is_made_without_a_change_of_any_variable(is_lazy):
    """tensorflow/probability#1454, its cause: the look of the constructor counted as a call."""
    bijector = Counting(is_lazy)
    sn.FlowModel(over_a_normal(bijector))
    assert bijector.calls.numpy() == 5.0


def expected_log_density(norm, layer, x):
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    kernel, scale = layer.inverse_kernel.numpy(), 1.0 / np.sqrt(variance + norm.epsilon)
    z = (x - mean) * scale @ kernel.T + layer.bias.numpy()
    return normal_log_density(z) + np.log(scale).sum() + np.linalg.slogdet(kernel)[1]


@pytest.fixture
def normalised(correlated):
    x = correlated[0] + np.float32([5.0, -2.0])
    norm = tf_keras.layers.BatchNormalization(momentum=0.0)
    layer = sn.SelfNormDense.trainable(2, seed=1)
    model = sn.FlowModel(over_a_normal(tfb.Chain([tfb.BatchNormalization(norm), layer])))
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(x, batch_size=len(x), verbose=0).history
    return x, norm, layer, model, history


def test_batch_normalisation_scores_by_its_moving_statistics(normalised):
    """tensorflow/probability#587: whether batch normalisation over a flow is a density."""
    x, norm, layer, model, history = normalised
    np.testing.assert_allclose(norm.moving_mean, x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, x.var(axis=0), rtol=1e-4)
    expected = expected_log_density(norm, layer, x)
    # The batch of the training step was all of the data.
    np.testing.assert_allclose(history["nll"], [-expected.mean()], rtol=1e-4)
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.predict(x, batch_size=7, verbose=0), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(nll(model, x[:5]), -expected[:5].mean(), rtol=1e-4)
    np.testing.assert_allclose(model.log_prob(x[:1]), expected[:1], rtol=1e-4)
    np.testing.assert_allclose(mass(model.log_prob, center=2.0), 1.0, rtol=1e-3)


def test_scores_and_samples_leave_the_moving_statistics_as_they_are(normalised, tmp_path):
    """tensorflow/probability#587, its kind: each score counted as a step of training."""
    x, norm, _, model, _ = normalised
    before = [np.copy(weight) for weight in norm.get_weights()]
    z = model.encode(x[:3])
    np.testing.assert_allclose(model.decode(z), x[:3], rtol=1e-4)
    assert np.abs(model.sample(2000, seed=1).numpy().mean(axis=0) - [5.0, -2.0]).max() < 0.3
    nll(model, x[:5]), model.predict(x[:5], verbose=0), model.log_prob(x[:5])
    model.export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.log_prob(x[:3]), model.log_prob(x[:3]), rtol=1e-5)
    data = keras.Input([2])
    np.testing.assert_allclose(keras.Model(data, model(data))(x[:3]), model.log_prob(x[:3]), rtol=1e-5)
    watch = sn.callbacks.ExactLikelihood(x[:10])
    watch.set_model(model)
    watch.on_train_begin()
    watch.on_epoch_end(0, {})
    for old, new in zip(before, norm.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def real_nvp_made_anew():
    def shift_and_log_scale(x, size):
        return tf.split(keras.layers.Dense(2 * size)(x), 2, axis=-1)

    return tfb.RealNVP(num_masked=1, shift_and_log_scale_fn=shift_and_log_scale)


def coupling_made_anew():
    return sn.AffineCoupling(lambda x: keras.layers.Dense(2)(x), event_ndims=1)


def variable_made_anew():
    return sn.AffineCoupling(lambda x: tf.Variable([1.0, 2.0]) * x, event_ndims=1)


@pytest.mark.parametrize("make", [real_nvp_made_anew, coupling_made_anew, variable_made_anew])
def test_networks_that_each_call_makes_anew_are_refused(make):
    """tensorflow/probability#1282: a shift_and_log_scale_fn that ends with a new Dense layer."""
    with pytest.raises(ValueError, match="makes variables anew at each call"):
        sn.FlowModel(over_a_normal(make()))


def conditional_flow():
    def masked(name):
        network = tfb.AutoregressiveNetwork(
            params=2,
            event_shape=[2],
            hidden_units=[8],
            activation="tanh",
            conditional=True,
            conditional_event_shape=[1],
        )
        return tfb.MaskedAutoregressiveFlow(network, name=name)

    return over_a_normal(
        tfb.Chain([masked("first"), sn.SelfNormDense.trainable(2, seed=1), masked("second")])
    )


def test_a_model_of_a_conditional_flow_says_that_it_gives_no_condition():
    """tensorflow/probability#1410: "`conditional_input` must be passed as a named argument"."""
    with pytest.raises(ValueError, match="further arguments.*(\n.*)*loop of your own"):
        sn.FlowModel(conditional_flow())


def test_a_conditional_flow_in_a_loop_of_ones_own(rng):
    """tensorflow/probability#1410: conditional masked networks in one chain, each with its condition."""
    condition = rng.integers(0, 2, size=[2000, 1]).astype(np.float32)
    x = rng.normal(size=[2000, 2]) @ np.array([[1.0, 0.4], [0.0, 1.0]]) * (1.0 + condition) + 5.0 * condition
    optimum = np.mean([gaussian_entropy(x[condition[:, 0] == k]) for k in (0, 1)])
    flow, x = conditional_flow(), tf.constant(x, tf.float32)

    def log_prob(x, condition):
        given = {"conditional_input": condition}
        return flow.log_prob(tf.identity(x), bijector_kwargs={"first": given, "second": given})

    log_prob(x, condition)
    tracking, layers = sn.Tracking(), sn.self_norm_layers(flow)
    variables = [v for v in flow.trainable_variables if "forward_kernel" not in v.name]
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 500))

    @tf.function
    def step():
        with tf.GradientTape() as tape, sn.training_scope(tracking):
            loss = -tf.reduce_mean(log_prob(x, condition))
        optimizer.apply(tape.gradient(loss, variables), variables)

    for i in range(500):
        step()
        tracking.follow(layers, i)
    assert optimum - 0.05 < -np.mean(log_prob(x, condition)) < optimum + 0.1
    for k in (0.0, 1.0):
        total = mass(lambda points, k=k: log_prob(points, tf.fill([len(points), 1], k)), center=5.0 * k)
        np.testing.assert_allclose(total, 1.0, rtol=1e-3)
