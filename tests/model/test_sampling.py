"""Samples with their log densities, at temperatures, and of the density that is scored."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_fit_data_errors import refuses

import tfp_selfnorm as sn
from tfp_selfnorm.model.temperature import at_temperature

tfb, tfd = tfp.bijectors, tfp.distributions


def moved(flow, seed=0, size=0.1):
    """The flow, with random kernels R that are no inverses of the random kernels W."""
    rng = np.random.default_rng(seed)
    for variable in flow.trainable_variables:
        variable.assign_add(size * rng.normal(size=variable.shape))
    return flow


def standard_normal(size, dtype=np.float64):
    return tfd.Sample(tfd.Normal(np.zeros([], dtype), np.ones([], dtype)), [size])


def test_by_the_learned_map_the_density_is_that_of_r():
    layer = sn.SelfNormDense.trainable(3, dtype=tf.float64, seed=1)
    model = sn.FlowModel(moved(tfd.TransformedDistribution(standard_normal(3), layer)))
    x, log_prob = model.sample_and_log_prob([4, 2], seed=2)
    kernel, bias = layer.forward_kernel.numpy(), layer.bias.numpy()
    z = x.numpy() @ np.linalg.inv(kernel).T + bias
    expected = -0.5 * np.sum(z**2, axis=-1) - 1.5 * np.log(2 * np.pi) - np.linalg.slogdet(kernel)[1]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)
    assert x.shape == [4, 2, 3]
    assert np.abs(log_prob - model.log_prob(x)).max() > 0.01


FLOWS = {
    "dense": lambda: sn.dense_flow(3, num_layers=3, dtype=tf.float64, seed=1),
    "coupling": lambda: sn.coupling_flow(3, num_layers=2, width=8, dtype=tf.float64, seed=1),
    "conv": lambda: sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, centering=False,
                                 dtype=tf.float64, seed=1),
    "networks": lambda: sn.free_form_flow(2, width=8, num_layers=1, dtype=tf.float64, seed=1),
    "bare": lambda: tfd.MultivariateNormalDiag(np.zeros(3), np.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_of_the_exact_map_the_density_is_the_scored_one(name):
    model = sn.FlowModel(moved(FLOWS[name](), size=0.02))
    for temperature in (1.0, 0.5):
        x, log_prob = model.sample_and_log_prob(5, seed=2, exact=True, temperature=temperature)
        np.testing.assert_array_equal(x, model.sample(5, seed=2, exact=True, temperature=temperature))
        if temperature == 1.0:
            np.testing.assert_allclose(log_prob, model.log_prob(x), rtol=1e-7)
    one, its_log_prob = model.sample_and_log_prob(seed=2, exact=True)
    assert (one.shape, its_log_prob.shape) == (model.distribution.event_shape, [])


def test_in_a_graph_and_with_gradients():
    model = sn.FlowModel(moved(FLOWS["dense"](), size=0.02))
    kernel = sn.self_norm_layers(model.distribution)[0].inverse_kernel

    def gradient():
        with tf.GradientTape() as tape:
            x, log_prob = model.sample_and_log_prob(5, seed=2, exact=True)
            loss = tf.reduce_mean(log_prob + tf.reduce_sum(x**2, axis=-1))
        return loss, tape.gradient(loss, kernel)

    (loss, found), (in_graph, found_in_graph) = gradient(), tf.function(gradient)()
    np.testing.assert_allclose(loss, in_graph, rtol=1e-10)
    np.testing.assert_allclose(found, found_in_graph, rtol=1e-8)
    kernel[0, 1].assign(kernel[0, 1] + 1e-6)
    above = gradient()[0]
    kernel[0, 1].assign(kernel[0, 1] - 2e-6)
    np.testing.assert_allclose(found[0, 1], (above - gradient()[0]) / 2e-6, rtol=1e-5)


def test_conditions():
    flow = sn.coupling_flow(2, 1, num_layers=2, width=8, dtype=tf.float64, seed=1)
    model, condition = sn.ConditionalFlowModel(moved(flow)), np.linspace(-1.0, 1.0, 5)[:, np.newaxis]
    x, log_prob = model.sample_and_log_prob([4, 3], condition, seed=2, exact=True)
    assert (x.shape, log_prob.shape) == ([4, 3, 5, 2], [4, 3, 5])
    np.testing.assert_allclose(log_prob, model.log_prob(x, condition), rtol=1e-8)
    np.testing.assert_array_equal(x, model.sample([4, 3], condition, seed=2, exact=True))
    cold = model.sample(400, condition, seed=2, exact=True, temperature=0.01)
    assert np.std(cold, axis=0).max() < 0.1 * np.std(model.sample(400, condition, seed=2), axis=0).min()
    refuses(ValueError, "`condition`", lambda: model.sample_and_log_prob(3))


BASES = {
    "standard normal": lambda: standard_normal(2),
    "normal": lambda: tfd.Independent(tfd.Normal([1.0, -2.0], [0.5, 2.0]), 1),
    "diagonal": lambda: tfd.MultivariateNormalDiag([1.0, -2.0], [0.5, 2.0]),
    "no location": lambda: tfd.MultivariateNormalDiag(scale_diag=[0.5, 2.0]),
    "triangular": lambda: tfd.MultivariateNormalTriL([1.0, -2.0], [[0.5, 0.0], [1.0, 2.0]]),
    "low rank": lambda: tfd.MultivariateNormalDiagPlusLowRankCovariance(
        [1.0, -2.0], [1.0, 2.0], [[1.0], [1.0]]),
    "Laplace": lambda: tfd.Independent(tfd.Laplace([1.0, -2.0], [0.3, 0.5]), 1),
    "Student t": lambda: tfd.MultivariateStudentTLinearOperator(
        5.0, [1.0, -2.0], tf.linalg.LinearOperatorDiag([0.4, 0.5])),
    "a flow of a flow": lambda: tfd.TransformedDistribution(
        standard_normal(2, np.float32), tfb.Scale([0.5, 2.0])),
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_a_temperature_multiplies_the_deviations_of_the_base(name):
    base = BASES[name]()
    dtype = base.dtype.as_numpy_dtype
    kernel, shift = np.array([[2.0, 1.0], [0.0, 1.0]], dtype), np.array([3.0, 4.0], dtype)
    affine = tfb.Chain([tfb.Shift(shift), tfb.ScaleMatvecTriL(kernel.T)])
    model = sn.FlowModel(tfd.TransformedDistribution(base, affine))
    warm, cold = (np.asarray(model.sample(100, seed=3, temperature=t)) for t in (1.0, 0.25))
    loc = {"standard normal": [0, 0], "no location": [0, 0], "a flow of a flow": [0, 0]}.get(name, [1, -2])
    centre = kernel.T @ np.array(loc) + shift
    np.testing.assert_allclose(cold - centre, 0.25 * (warm - centre), rtol=1e-3, atol=1e-4)


def test_the_deviation_and_the_density_of_a_gaussian_flow():
    """x = A z + b, so that its covariance is T^2 A A^T, in closed form."""
    kernel = np.array([[1.0, 0.0], [0.8, 0.6]])
    layer = sn.SelfNormDense(kernel, np.linalg.inv(kernel))
    model = sn.FlowModel(tfd.TransformedDistribution(standard_normal(2), layer), None)
    for temperature in (0.5, 2.0):
        x, log_prob = model.sample_and_log_prob(20_000, seed=1, temperature=temperature)
        covariance = temperature**2 * kernel @ kernel.T
        expected = tfd.MultivariateNormalTriL(np.zeros(2), np.linalg.cholesky(covariance))
        np.testing.assert_allclose(log_prob, expected.log_prob(x), rtol=1e-8)
        np.testing.assert_allclose(np.cov(x, rowvar=False), covariance, rtol=0.05)


def test_the_density_at_a_temperature_integrates_to_one():
    flow = at_temperature(sn.exact(moved(sn.dense_flow(2, dtype=tf.float64, seed=1), size=0.2)), 0.6)
    side = np.linspace(-8.0, 8.0, 401)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    total = np.sum(np.exp(flow.log_prob(grid))) * (side[1] - side[0]) ** 2
    np.testing.assert_allclose(total, 1.0, rtol=2e-3)
    x, log_prob = sn.FlowModel(flow).sample_and_log_prob(5, seed=1, exact=True)
    np.testing.assert_allclose(log_prob, flow.log_prob(tf.identity(x)), rtol=1e-8)


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_temperatures_that_are_refused(value):
    model = sn.FlowModel(sn.dense_flow(2, seed=1))
    for draw in (model.sample, model.sample_and_log_prob):
        refuses(ValueError, "`temperature` must be positive", lambda: draw(3, temperature=value))  # noqa: B023
        refuses(TypeError, "`temperature` must be a number", lambda: draw(3, temperature="hot"))  # noqa: B023
    refuses(ValueError, "`sample_shape` must be an integer", lambda: model.sample_and_log_prob(-1))
    uniform = tfd.TransformedDistribution(tfd.Sample(tfd.Uniform(0.0, 1.0), [2]), tfb.Scale(2.0))
    model = sn.FlowModel(uniform)
    assert model.sample(3, temperature=1.0).shape == [3, 2]
    refuses(ValueError, "`temperature` must be 1.*Uniform", lambda: model.sample(3, temperature=0.5))


def rows(number, size, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[number, size]) @ (np.eye(size) + 0.5 * rng.normal(size=[size, size]) / np.sqrt(size))
    return (x + 0.3 * np.abs(x)).astype(np.float32)


class Differences(keras.callbacks.Callback):
    """What samples score by the learned map less than by the exact one, with R before and after."""

    def __init__(self):
        super().__init__()
        self.found, self.kernels = [], []

    def measure(self, model):
        kernels = [layer.forward_kernel.numpy() for layer in sn.self_norm_layers(model.distribution)]
        means = [np.mean(model.log_prob(model.sample(2000, seed=3, exact=exact))) for exact in (False, True)]
        after = [layer.forward_kernel.numpy() for layer in sn.self_norm_layers(model.distribution)]
        self.found.append(means[0] - means[1])
        self.kernels.append((kernels, after))

    def on_epoch_end(self, epoch, logs=None):
        self.measure(self.model)


@pytest.mark.parametrize(
    "learning", [sn.Tracking(), sn.Reconstruction(), None], ids=["tracked", "data", "none"]
)
def test_samples_have_the_scored_density_in_callbacks_and_after_fit(learning):
    model, differences = sn.FlowModel(sn.dense_flow(64, seed=1), learning), Differences()
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(rows(2000, 64), batch_size=100, epochs=5, verbose=0, callbacks=[differences])
    for before, after in differences.kernels:
        np.testing.assert_array_equal(before, after)
    differences.measure(model)
    assert np.abs(differences.found).max() < 0.01
    # In the callbacks R is as training left it, and after `fit` it is the inverse.
    layers = sn.self_norm_layers(model.distribution)
    errors = [
        np.linalg.norm(kernel @ layer.inverse_kernel - np.eye(64))
        for kernel, layer in zip(differences.kernels[-2][0], layers, strict=True)
    ]
    assert max(errors) > 0.01
    assert max(float(tf.norm(la.forward_kernel @ la.inverse_kernel - tf.eye(64))) for la in layers) < 1e-3


@pytest.mark.parametrize("learning", [sn.Tracking(), sn.Reconstruction()], ids=["tracked", "data"])
def test_a_file_of_a_callback_gives_a_model_whose_samples_have_the_scored_density(learning, tmp_path):
    path = tmp_path / "flow.weights.h5"
    model = sn.FlowModel(sn.dense_flow(16, seed=1), learning)
    model.compile(keras.optimizers.Adam(1e-2))
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    model.fit(rows(400, 16), batch_size=100, epochs=3, verbose=0, callbacks=[checkpoint])
    loaded, differences = sn.FlowModel(sn.dense_flow(16, seed=1), learning), Differences()
    loaded.load_weights(path)
    differences.measure(loaded)
    assert np.abs(differences.found).max() < 0.01


def test_an_export_in_a_callback_samples_the_scored_density(tmp_path):
    class Export(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.export(tmp_path / "flow")
            self.expected = self.model.sample(5, seed=[0, 7], exact=True)

    model, export = sn.FlowModel(sn.dense_flow(16, seed=1), sn.Tracking(refresh_every=1000)), Export()
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(rows(400, 16), batch_size=100, epochs=1, verbose=0, callbacks=[export])
    served = tf.saved_model.load(tmp_path / "flow")
    np.testing.assert_allclose(served.sample(5, [0, 7]), export.expected, atol=1e-4)


LAYERS = {
    "dense": lambda kernel: sn.SelfNormDense(kernel, tf.Variable(kernel), name="dense_7"),
    "1x1": lambda kernel: sn.SelfNormConv2D(
        kernel[None, None], tf.Variable(kernel[None, None]), (4, 4), name="conv_7"),
    "3x3": lambda kernel: sn.SelfNormConv2D(
        tf.zeros([3, 3, 2, 2]), tf.Variable(tf.zeros([3, 3, 2, 2])), (4, 4), name="conv_7"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_exact_samples_of_a_singular_kernel_name_the_layer(name):
    layer = LAYERS[name](np.array([[1.0, 2.0], [2.0, 4.0]], np.float32))
    shape = [2] if name == "dense" else [4, 4, 2]
    model = sn.FlowModel(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), shape), layer), None)
    for draw in (model.sample, model.sample_and_log_prob):
        refuses(ValueError, layer.name, lambda: draw(2, exact=True))  # noqa: B023
