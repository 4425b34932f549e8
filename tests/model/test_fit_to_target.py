"""`fit_to_target`: training on a density that is known up to a factor."""

import contextlib
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_fit_data_errors import refuses

import tfp_selfnorm as sn
from tfp_selfnorm.model.target_figures import ImportanceFigures
from tfp_selfnorm.utils.seeds import stateless_seed

tfb, tfd = tfp.bijectors, tfp.distributions
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
MEAN, LOG_Z = np.array([1.0, -2.0]), 3.0


def gaussian(x):
    distribution = tfd.MultivariateNormalTriL(MEAN, np.linalg.cholesky(COVARIANCE))
    return distribution.log_prob(x) + LOG_Z


def banana(x):
    """x_1 has the deviation 1, and x_2 the deviation 1/4 about (x_1^2 - 1) / 2."""
    return -0.5 * x[:, 0] ** 2 - 8.0 * (x[:, 1] - 0.5 * x[:, 0] ** 2 + 0.5) ** 2


def log_z_by_quadrature():
    first, second = np.linspace(-6.0, 6.0, 601), np.linspace(-3.0, 20.0, 2301)
    grid = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    return np.log(np.sum(np.exp(banana(grid))) * (first[1] - first[0]) * (second[1] - second[0]))


def make_model(layer_options=None, learning=sn.Tracking(), rate=0.02, **options):  # noqa: B008
    flow = sn.dense_flow(2, num_layers=1, dtype=tf.float64, seed=1, **(layer_options or {}))
    model = sn.FlowModel(flow, learning)
    model.compile(keras.optimizers.Adam(rate), **options)
    return model


@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_a_factor_of_the_target_changes_log_z_alone(shift):
    """Each epoch has the figures of its own samples, whatever the constant is."""

    def train(target):
        return make_model().fit_to_target(target, 5, epochs=3, batch_size=50, seed=1, verbose=0).history

    plain, shifted = train(gaussian), train(lambda x: gaussian(x) + shift)
    np.testing.assert_allclose(np.subtract(shifted["log_z"], shift), plain["log_z"], atol=1e-9)
    np.testing.assert_allclose(shifted["ess"], plain["ess"], rtol=1e-9)


@pytest.mark.parametrize(
    "learning", [sn.Tracking(), sn.Reconstruction(), None], ids=["tracked", "data", "none"]
)
@pytest.mark.parametrize("gradient", ["self_norm", "relative"])
def test_a_gaussian_target(learning, gradient):
    """The optimum is known: W^-1 W^-T is the covariance, log Z is the constant, and all weights are equal."""
    model = make_model({"gradient": gradient}, learning, keras.optimizers.schedules.CosineDecay(0.1, 600))
    history = model.fit_to_target(gaussian, 100, epochs=6, batch_size=200, seed=1, verbose=0).history
    assert set(history) == {"loss", "log_z", "ess", "skipped_updates"}
    np.testing.assert_allclose(history["log_z"][-1], LOG_Z, atol=2e-3)
    np.testing.assert_allclose(history["loss"][-1], -LOG_Z, atol=0.01)
    assert 0.98 < history["ess"][-1] <= 1.0
    # The learned inverse is the inverse when the training ends.
    for exact in (False, True):
        x = model.sample(20_000, seed=2, exact=exact)
        np.testing.assert_allclose(np.mean(x, axis=0), MEAN, atol=0.05)
        np.testing.assert_allclose(np.cov(x, rowvar=False), COVARIANCE, atol=0.08)
    layer = sn.self_norm_layers(model.distribution)[0]
    if layer.needs_inverse:
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(2), atol=1e-8)


STEPS = {
    "smooth leaky ReLU": lambda: sn.dense_flow(2, num_layers=2, dtype=tf.float64, seed=1),
    "spline": lambda: sn.dense_flow(2, num_layers=2, activation="spline", dtype=tf.float64, seed=1),
    "couplings": lambda: sn.coupling_flow(2, num_layers=2, width=8, dtype=tf.float64, seed=1),
    "exact networks": lambda: sn.free_form_flow(
        2, num_layers=1, width=8, inversion="exact", dtype=tf.float64, seed=1),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_along_the_gradient_of_the_divergence(name):
    """By differences of the divergence of the samples of the step. R is not in it."""
    flow, rate, difference = STEPS[name](), 1e-3, 1e-5
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.SGD(rate))
    seed = tf.random.experimental.stateless_fold_in(stateless_seed(3, "fit_to_target"), 0)

    def divergence():
        x, log_prob = sn.exact(flow).experimental_sample_and_log_prob(50, seed=seed)
        return float(tf.reduce_mean(log_prob - gaussian(x)))

    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit_to_target(gaussian, 1, batch_size=50, seed=3, verbose=0).history
    steps = [old - variable.numpy() for old, variable in zip(before, model.trainable_variables, strict=True)]
    model.set_weights([*before, *model.get_weights()[len(before) :]])
    np.testing.assert_allclose(history["loss"][0], divergence(), rtol=1e-6)
    learned = [v.ref() for layer in sn.self_norm_layers(flow) for v in layer.map_variables[1]]
    moved = [
        (variable, step)
        for variable, step in zip(model.trainable_variables, steps, strict=True)
        if variable.value.ref() not in learned
    ]
    for variable, step in moved[:: max(1, len(moved) // 6)]:
        old, index = variable.numpy(), (0,) * len(variable.shape)
        values = []
        for sign in (1.0, -1.0):
            changed = old.copy()
            changed[index] += sign * difference
            variable.assign(changed)
            values.append(divergence())
        variable.assign(old)
        expected = rate * (values[0] - values[1]) / (2.0 * difference)
        np.testing.assert_allclose(step[index], expected, rtol=1e-4, atol=1e-9, err_msg=variable.name)


FLOWS = {
    "couplings": (lambda: sn.coupling_flow(2, num_layers=4, width=32, seed=1), 1e-2),
    "dense": (lambda: sn.dense_flow(2, num_layers=8, activation="spline", seed=1), 2e-2),
}


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_z_of_a_banana(name):
    make_flow, rate = FLOWS[name]
    model, num_epochs = sn.FlowModel(make_flow()), 20
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, 100 * num_epochs)))
    history = model.fit_to_target(banana, 100, epochs=num_epochs, seed=1, verbose=0).history
    expected = log_z_by_quadrature()
    np.testing.assert_allclose(expected, np.log(0.5 * np.pi), atol=1e-6)
    np.testing.assert_allclose(history["log_z"][-1], expected, atol=0.01)
    assert history["ess"][-1] > 0.9


BAD = {
    "no function": (3, TypeError, "must be a function"),
    "array": (lambda x: np.sum(x, axis=-1), TypeError, "must return a tensor of floats"),
    "integers": (lambda x: tf.zeros(len(x), tf.int32), TypeError, "tensor of floats.*int32"),
    "None": (lambda x: None, TypeError, "tensor of floats.*None"),
    "events": (lambda x: -(x**2), ValueError, r"the shape \(256,\); got \(256, 2\)"),
    "scalar": (lambda x: tf.reduce_sum(x), ValueError, r"the shape \(256,\); got \(\)"),
    "NaN": (
        lambda x: np.nan * x[:, 0],
        ValueError,
        "it is nan at the first of 256 samples, and finite at none",
    ),
    "outside": (lambda x: tf.math.log(0.0 * x[:, 0]), ValueError, "it is -inf .* `preprocessing`"),
    "no gradient": (lambda x: tf.stop_gradient(x[:, 0]), ValueError, "has no gradient"),
}


@pytest.fixture(scope="module")
def small():
    return make_model()


@pytest.mark.parametrize("name", BAD)
def test_targets_that_are_refused(small, name):
    target, kind, message = BAD[name]
    before = small.get_weights()
    refuses(kind, f"`target_log_prob_fn`.*{message}", lambda: small.fit_to_target(target, 5, verbose=0))
    for old, new in zip(before, small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("value", [0, -1, 2.5, "a", None])
def test_numbers_that_are_refused(small, value):
    for name in ("steps_per_epoch", "epochs", "batch_size"):
        arguments = {"steps_per_epoch": 2, "verbose": 0} | {name: value}
        message = f"`{name}` must be a positive int"
        refuses(ValueError, message, lambda: small.fit_to_target(gaussian, **arguments))  # noqa: B023


def test_flows_that_are_refused():
    def training(flow):
        model = sn.FlowModel(flow)
        model.compile("adam")
        return lambda: model.fit_to_target(lambda x: tf.zeros(len(x)), 1, verbose=0)

    refuses(ValueError, "`compile`", lambda: sn.FlowModel(sn.dense_flow(2)).fit_to_target(gaussian, 1))
    images = sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, centering=False, seed=1)
    refuses(ValueError, "conv_0`.*`inversion='exact'`", training(images))
    refuses(ValueError, "`inversion='exact'`", training(sn.free_form_flow(2, width=4, seed=1)))
    refuses(ValueError, "no batch shape", training(tfd.MultivariateNormalDiag(np.zeros([3, 2], np.float32))))
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.Variable([0.0, 0.0])), tfd.MultivariateNormalDiag(tf.Variable(tf.eye(2)))
    )
    refuses(ValueError, "samples with a gradient", training(mixture))
    singular = sn.dense_flow(2, num_layers=1, seed=1)
    sn.self_norm_layers(singular)[0].inverse_kernel.assign(tf.ones([2, 2]))
    refuses(ValueError, "`dense_0`.*singular", training(singular))


def test_steps_that_are_not_finite_are_skipped_and_reported():
    """With 2 of 256 samples left of -2.6 in a normal distribution, some steps meet one and some do not."""
    model = make_model(rate=1e-6)
    fails = lambda x: tf.where(x[:, 0] < -2.6, np.float64(np.nan), gaussian(x))  # noqa: E731
    history = model.fit_to_target(fails, 20, batch_size=100, seed=1, verbose=0).history
    assert 0 < history["skipped_updates"][0] < 20
    assert np.isfinite([history[name][0] for name in ("loss", "log_z", "ess")]).all()
    model = make_model(rate=1e-6, max_skipped_updates=3)
    step = model._guard.steps

    def fails_later(x):
        return gaussian(x) + tf.where(tf.convert_to_tensor(step) < 4, np.float64(0.0), np.float64(np.nan))

    message = "3 updates in a row.*first to be not finite was `target_log_prob_fn` of the samples"
    refuses(ValueError, message, lambda: model.fit_to_target(fails_later, 20, batch_size=10, verbose=0))


def test_callbacks_the_progress_bar_and_seeds(tmp_path):
    class Uses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            x = self.model.sample(500, seed=1)
            np.testing.assert_allclose(x, self.model.sample(500, seed=1, exact=True), atol=1e-6)
            nll = self.model.evaluate(x, verbose=0, return_dict=True)["nll"]
            np.testing.assert_allclose(nll, -np.mean(self.model.log_prob(x)), rtol=1e-5)

    results, text = [], io.StringIO()
    for seed in (1, 1, 2):
        model = make_model(rate=0.05, steps_per_execution=2)
        callbacks = [
            Uses(),
            keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e6),
            keras.callbacks.ModelCheckpoint(tmp_path / "flow.weights.h5", save_weights_only=True),
        ]
        with contextlib.redirect_stdout(text):
            history = model.fit_to_target(
                gaussian, 10, epochs=5, batch_size=20, callbacks=callbacks, seed=seed, verbose=2
            )
        assert isinstance(history, keras.callbacks.History)
        assert history.epoch == [0, 1]
        results.append(model.get_weights())
    assert all(f"{name}: " in text.getvalue() for name in ("loss", "log_z", "ess"))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert np.abs(results[0][1] - results[2][1]).max() > 1e-6
    loaded = make_model()
    loaded.load_weights(tmp_path / "flow.weights.h5")
    np.testing.assert_array_equal(loaded.sample(5, seed=1), model.sample(5, seed=1))


def test_training_on_data_before_and_after(small):
    x = np.random.default_rng(0).normal(size=[200, 2])
    model = make_model()
    histories = [
        model.fit(x, epochs=1, verbose=0).history,
        model.fit_to_target(gaussian, 5, batch_size=20, verbose=0).history,
        model.fit(x, epochs=2, verbose=0).history,
    ]
    assert set(histories[0]) == set(histories[2]) != set(histories[1])
    found = model.evaluate(x, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(found, -np.mean(model.log_prob(x)), rtol=1e-6)


def test_the_estimate_of_a_small_integral():
    """Keras resets metrics to 0 before each epoch, and the sums of weights are kept as logs."""
    figures = ImportanceFigures()
    for _ in range(2):
        figures.reset_state()
        figures.update_state(tf.constant([-20.0, -20.0 + np.log(3.0)]), tf.constant(True))
        result = figures.result()
        np.testing.assert_allclose(result["log_z"], -20.0 + np.log(2.0), rtol=1e-6)
        np.testing.assert_allclose(result["ess"], 0.8, rtol=1e-6)


def test_amortized_over_conditions():
    """p(x | c) of x ~ N(0, 1), c | x ~ N(x, 1): N(c / 2, 1 / 2), and Z is the normal density of c."""
    flow = sn.coupling_flow(1, 1, num_layers=1, transform="affine", width=16, seed=1)
    model = sn.ConditionalFlowModel(flow)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 400)))
    conditions = np.random.default_rng(0).normal(size=[1000, 1]) * np.sqrt(2.0)

    def joint(x, c):
        return tfd.Normal(0.0, 1.0).log_prob(x[..., 0]) + tfd.Normal(x, 1.0).log_prob(c)[..., 0]

    refuses(ValueError, "`condition`", lambda: model.fit_to_target(joint, None, 2))
    refuses(ValueError, "`condition`", lambda: model.fit_to_target(joint, np.zeros([5, 3]), 2))
    refuses(ValueError, r"the shape \(8, 64\)", lambda: model.fit_to_target(lambda x, c: x, conditions, 2))
    history = model.fit_to_target(joint, conditions, 100, epochs=4, seed=1, verbose=0).history
    expected = np.mean(tfd.Normal(0.0, np.sqrt(2.0)).log_prob(conditions))
    np.testing.assert_allclose(history["log_z"][-1], expected, atol=0.02)
    assert history["ess"][-1] > 0.97
    given = np.array([[-1.0], [0.0], [2.0]])
    x = model.sample(10_000, given, seed=1)[..., 0]
    np.testing.assert_allclose(np.mean(x, axis=0), [-0.5, 0.0, 1.0], atol=0.05)
    np.testing.assert_allclose(np.std(x, axis=0), np.sqrt(0.5), atol=0.05)
