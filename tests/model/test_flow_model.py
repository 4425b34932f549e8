"""FlowModel trains, scores, samples: over our layers and over anything of TFP's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from graphs import op_types
from scipy import stats

import tfp_selfnorm as sn

tfd, tfb = tfp.distributions, tfp.bijectors
MIXING = np.array([[1.0, 0.9], [0.0, 0.3]])


@pytest.fixture
def data(rng):
    return (rng.normal(size=[640, 2]) @ MIXING.T).astype(np.float32)


def real_nvp():
    template = tfb.real_nvp_default_template(hidden_layers=[8])
    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)),
        tfb.Chain([tfb.RealNVP(1, shift_and_log_scale_fn=template), tfb.Permute([1, 0])]),
    )


def masked_autoregressive_flow():
    network = tfb.AutoregressiveNetwork(params=2, hidden_units=[8], activation="tanh")
    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)), tfb.MaskedAutoregressiveFlow(network)
    )


def multivariate_normal():
    scale = tfp.util.TransformedVariable(tf.eye(2), tfb.FillScaleTriL())
    return tfd.MultivariateNormalTriL(tf.Variable(tf.zeros(2)), scale)


def keras_network_in_a_closure():
    network = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])

    def shift_and_log_scale(x, output_units, **kwargs):
        return tf.split(network(x), 2, axis=-1)

    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)), tfb.RealNVP(1, shift_and_log_scale_fn=shift_and_log_scale)
    )


def mixture_of_flows():
    return tfd.Mixture(
        tfd.Categorical(logits=tf.Variable(tf.zeros(2))), [sn.dense_flow(2, seed=seed) for seed in (1, 2)]
    )


WAYS = {
    "reconstruction": ("self_norm", sn.Reconstruction()),
    "symmetric": ("self_norm", sn.Reconstruction("symmetric")),
    "probes": ("self_norm", sn.Reconstruction("probes")),
    "inverse_only": ("self_norm", sn.Reconstruction("inverse_only")),
    "tracking": ("self_norm", sn.Tracking()),
    "exact": ("exact", None),
    "relative": ("relative", None),
}
COMPILED = {"default": {}, "xla": {"jit_compile": True}, "eager": {"run_eagerly": True}}


def trained(distribution, data, inverse_learning=sn.Tracking(), epochs=3, rate=2e-2, **compile_options):  # noqa: B008
    keras.utils.set_random_seed(1)
    model = sn.FlowModel(distribution, inverse_learning)
    model.compile(keras.optimizers.Adam(rate), **compile_options)
    before = float(-tf.reduce_mean(model.log_prob(data)))
    history = model.fit(
        data[:512], epochs=epochs, batch_size=64, validation_data=(data[512:],), verbose=0
    ).history
    return model, before, history


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize("way", WAYS)
def test_fit_lowers_the_exact_likelihood(data, way, options):
    gradient, inverse_learning = WAYS[way]
    flow = sn.dense_flow(2, gradient=gradient, seed=1)
    model, before, history = trained(flow, data, inverse_learning, **options)
    assert history["nll"][-1] < before - 0.1
    exact = -np.mean(model.log_prob(data[512:]))
    np.testing.assert_allclose(history["val_nll"][-1], exact, rtol=1e-5)
    if inverse_learning is not None:
        assert history["val_reconstruction"][-1] < 0.1


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize(
    "make",
    [
        real_nvp,
        masked_autoregressive_flow,
        multivariate_normal,
        keras_network_in_a_closure,
        mixture_of_flows,
    ],
)
def test_fit_takes_any_distribution_of_tfp(data, make, options):
    model, before, history = trained(make(), data, **options)
    assert model.trainable_variables
    assert history["nll"][-1] < before - 0.1
    np.testing.assert_allclose(history["val_nll"][-1], -np.mean(model.log_prob(data[512:])), rtol=1e-5)
    assert ("reconstruction" in history) == (make is mixture_of_flows)


@pytest.mark.parametrize("weight", [0.7, None])
def test_every_step_is_the_papers(rng, weight):
    """Steps of plain SGD against the formulas, regularizer included, in numpy.

    Many steps, since what this once caught was a race: grappler let a kernel be assigned before it was
    read for the other's gradient.
    """
    flow = sn.dense_flow(3, num_layers=1, dtype=tf.float64, seed=1)
    (layer,) = sn.self_norm_layers(flow)
    for variable in layer.trainable_variables:
        variable.assign_add(0.3 * rng.normal(size=variable.shape))
    rate = 0.01
    model = sn.FlowModel(flow, None if weight is None else sn.Reconstruction("data", weight=weight))
    model.compile(keras.optimizers.SGD(rate))
    for _ in range(100):
        w, r, bias = (v.numpy() for v in (layer.inverse_kernel, layer.forward_kernel, layer.bias))
        x = rng.normal(size=[8, 3])
        model.train_on_batch(tf.constant(x))
        z = x @ w.T
        d_z, residual = -(z + bias), x - z @ r.T
        d_w = 0.5 * (d_z.T @ x / 8 + r.T) + 2.0 * (weight or 0.0) * (residual @ r).T @ x / 8
        d_r = 0.5 * (-(d_z @ w).T @ z / 8 - w.T) + 2.0 * (weight or 0.0) * residual.T @ z / 8
        np.testing.assert_allclose(layer.inverse_kernel, w + rate * d_w, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(layer.forward_kernel, r + rate * d_r, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(layer.bias, bias + rate * d_z.mean(axis=0), rtol=1e-6, atol=1e-9)


def test_tracking_follows_the_moving_kernel(data):
    flow = sn.dense_flow(2, seed=1)
    model, _, history = trained(flow, data, sn.Tracking(num_probes=2), epochs=5)
    assert all(0.0 < error < 0.2 for error in history["inverse_error"])
    for layer in sn.self_norm_layers(flow):
        np.testing.assert_allclose(layer.forward_kernel @ layer.inverse_kernel, np.eye(2), atol=0.05)
        assert np.abs(layer.inverse_kernel - np.eye(2)).max() > 0.1


@pytest.mark.parametrize("way", WAYS)
def test_no_log_det_is_computed_in_the_training_graph(way):
    gradient, inverse_learning = WAYS[way]
    flow = sn.dense_flow(4, gradient=gradient, seed=1)
    model = sn.FlowModel(flow, inverse_learning)
    model.compile("sgd")
    model.optimizer.build(model.trainable_variables)
    batch = ((tf.TensorSpec([None, 4], tf.float32),),)
    log_det_ops = {"LogMatrixDeterminant", "MatrixDeterminant", "Lu", "Svd", "Qr"}
    for step in (model.train_step, model.test_step, model.predict_step):
        ops = op_types(step, *batch)
        assert "MatMul" in ops
        assert not ops & log_det_ops
        assert ("MatrixInverse" in ops) == (way == "exact" and step == model.train_step)
    assert "LogMatrixDeterminant" in op_types(model.log_prob, tf.TensorSpec([None, 4], tf.float32))


def test_a_model_without_trainable_weights_is_only_measured(data):
    model = sn.FlowModel(sn.dense_flow(2, seed=1))
    for variable in model.trainable_variables:
        variable.trainable = False
    model.compile("adam")
    weights = model.get_weights()
    with pytest.warns(UserWarning, match="no trainable weights"):
        history = model.fit(data, epochs=1, batch_size=len(data), verbose=0).history
    np.testing.assert_allclose(history["nll"], -np.mean(model.log_prob(data)), rtol=1e-5)
    for variable, value in zip(model.variables, weights, strict=True):
        if "held_log_det" not in variable.name:
            np.testing.assert_allclose(variable, value, atol=1e-6)


def test_adopted_variables_are_the_distributions_own(data):
    flow = sn.dense_flow(2, seed=1)
    tracked = sn.FlowModel(flow)
    assert len(tracked.trainable_variables) == 4  # W and bias of two layers; tracking moves R
    assert len(sn.FlowModel(flow, sn.Reconstruction()).trainable_variables) == 6
    names = [v.name for v in tracked.variables if v.name.startswith("dense")]
    assert sorted(names) == [
        f"dense_{i}_{part}" for i in (0, 1) for part in ("bias", "forward_kernel", "inverse_kernel")
    ]
    shared = {v.name: v.value for v in tracked.variables if v.name.startswith("dense")}
    assert all(any(value is variable for variable in flow.variables) for value in shared.values())
    assert len(sn.FlowModel(tfd.TransformedDistribution(flow, flow.bijector)).trainable_variables) == 4


def test_freezing_a_variable_keeps_it(data):
    flow = sn.dense_flow(2, seed=1)
    model = sn.FlowModel(flow)
    next(v for v in model.variables if v.name == "dense_0_inverse_kernel").trainable = False
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(data, epochs=1, verbose=0)
    first, second = sn.self_norm_layers(flow)
    np.testing.assert_array_equal(first.inverse_kernel, np.eye(2))
    assert np.abs(second.inverse_kernel - np.eye(2)).max() > 0.1


def test_keras_training_options_work(data, tmp_path):
    flow = sn.dense_flow(2, seed=1)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(1e-2, global_clipnorm=1.0, use_ema=True), steps_per_execution=4)
    checkpoint = tmp_path / "best.weights.h5"
    history = model.fit(
        tf.data.Dataset.from_tensor_slices(data).batch(50),
        validation_data=tf.data.Dataset.from_tensor_slices(data).batch(64),
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping("val_nll", mode="min", patience=4, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(
                checkpoint, "val_nll", mode="min", save_best_only=True, save_weights_only=True
            ),
            keras.callbacks.ReduceLROnPlateau("val_loss"),
        ],
    ).history
    assert history["nll"][-1] < history["nll"][0]
    best = -np.mean(model.log_prob(data))
    np.testing.assert_allclose(best, min(history["val_nll"]), rtol=1e-4)
    other = sn.FlowModel(sn.dense_flow(2, seed=2))
    other.load_weights(checkpoint)
    assert other.log_prob(data).shape == [640]


def test_encode_decode_and_reconstruct(make_layer, make_flow, rng):
    layer = make_layer(3)
    model = sn.FlowModel(make_flow(layer, 3))
    x = rng.normal(size=[5, 3])
    w, r, bias = (v.numpy() for v in (layer.inverse_kernel, layer.forward_kernel, layer.bias))
    z = x @ w.T + bias
    np.testing.assert_allclose(model.encode(x), z, rtol=1e-9)
    np.testing.assert_allclose(model.decode(z), (z - bias) @ r.T, rtol=1e-9)
    np.testing.assert_allclose(model.reconstruct(x), x @ w.T @ r.T, rtol=1e-9)
    assert np.abs(model.reconstruct(x) - x).max() > 1e-2
    np.testing.assert_allclose(model.decode(z, exact=True), x, rtol=1e-9)
    np.testing.assert_allclose(model.reconstruct(x, exact=True), x, rtol=1e-9)


def test_samples_follow_the_seed_and_the_inverse_that_is_asked_for(make_layer, make_flow):
    layer = make_layer(3)
    model = sn.FlowModel(make_flow(layer, 3))
    learned, exact = model.sample(6, seed=3), model.sample(6, seed=3, exact=True)
    np.testing.assert_array_equal(learned, model.sample(6, seed=3))
    assert not np.array_equal(learned, model.sample(6, seed=4))
    w, r, bias = (v.numpy() for v in (layer.inverse_kernel, layer.forward_kernel, layer.bias))
    z = np.linalg.solve(r, learned.numpy().T).T + bias
    np.testing.assert_allclose(exact @ w.T + bias, z, rtol=1e-8)
    assert model.sample((2, 4)).shape == [2, 4, 3]
    assert model.sample(0).shape == [0, 3]
    assert model.sample(()).shape == [3]


def test_a_sample_of_the_learned_inverse_is_scored_by_w(make_layer, make_flow):
    """TFP's cache would return the latent that the sample was made from."""
    layer = make_layer(3)
    model = sn.FlowModel(make_flow(layer, 3))
    sample = model.sample(6, seed=3)
    w, bias = layer.inverse_kernel.numpy(), layer.bias.numpy()
    expected = stats.norm.logpdf(sample @ w.T + bias).sum(axis=-1) + np.linalg.slogdet(w)[1]
    np.testing.assert_allclose(model.log_prob(sample), expected, rtol=1e-9)
    np.testing.assert_allclose(model.encode(sample), sample @ w.T + bias, rtol=1e-9)


def test_a_flow_learns_the_gaussian_that_made_the_data(rng):
    x = (rng.normal(size=[4096, 2]) @ MIXING.T).astype(np.float32)
    flow = sn.dense_flow(2, num_layers=1, seed=1)
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(3e-2))
    model.fit(x, epochs=12, batch_size=256, verbose=0)
    entropy = stats.multivariate_normal([0, 0], MIXING @ MIXING.T).entropy()
    fitted = stats.multivariate_normal([0, 0], np.cov(x.T)).logpdf(x)
    np.testing.assert_allclose(model.log_prob(x).numpy().mean(), fitted.mean(), atol=0.02)
    np.testing.assert_allclose(-model.log_prob(x).numpy().mean(), entropy, atol=0.05)
    np.testing.assert_allclose(np.cov(model.sample(50_000, seed=1).numpy().T), np.cov(x.T), atol=0.08)


def coupling_with(layer):
    """RealNVP knows the layer through a function only, and asks for its log-det at new tensors."""
    return tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)),
        tfb.RealNVP(1, bijector_fn=lambda x, output_units, **kwargs: tfb.Chain([tfb.Shift(0.9 * x), layer])),
    )


@pytest.mark.parametrize("inverse_learning", [sn.Tracking(), sn.Reconstruction()], ids=repr)
def test_layers_that_only_a_function_knows_are_found(data, inverse_learning):
    hidden = sn.SelfNormDense.trainable(1, inversion="exact", mixture=1.0, seed=1, name="hidden")
    flow = coupling_with(hidden)
    assert sn.self_norm_layers(flow) == []
    data = data[:, ::-1].copy() * [[2.0, 0.2]]
    model, before, history = trained(flow, data.astype(np.float32), inverse_learning, epochs=10, rate=3e-2)
    assert history["nll"][-1] < before - 0.1
    np.testing.assert_allclose(history["val_nll"][-1], -np.mean(model.log_prob(data[512:])), rtol=1e-5)
    np.testing.assert_allclose(hidden.forward_kernel @ hidden.inverse_kernel, [[1.0]], atol=0.05)
    spread = np.std(data[:512, 1] - 0.9 * data[:512, 0])
    np.testing.assert_allclose(hidden.inverse_kernel, [[1.0 / spread]], rtol=0.1)


@pytest.mark.parametrize("options", [{}, {"inversion": "exact"}])
def test_a_learned_inverse_that_only_a_function_knows_is_refused(options):
    hidden = sn.SelfNormDense.trainable(1, name="hidden", **options)
    with pytest.raises(ValueError, match=r"`hidden` is made or held by a function.*inversion='exact'"):
        sn.FlowModel(coupling_with(hidden))


def test_kernels_made_anew_at_each_call_are_scored_exactly(data):
    log_scale = tf.Variable(0.5)

    def bijector_fn(x, output_units, **kwargs):
        kernel = tf.exp(log_scale) * tf.eye(1)
        return sn.SelfNormDense(1.0 / kernel, kernel, gradient="exact")

    flow = tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag(tf.zeros(2)), tfb.RealNVP(1, bijector_fn=bijector_fn)
    )
    model = sn.FlowModel(flow, None)
    model.compile("sgd")
    found = model.evaluate(data, verbose=0, return_dict=True)["nll"]
    np.testing.assert_allclose(found, -np.mean(model.log_prob(data)), rtol=1e-5)
