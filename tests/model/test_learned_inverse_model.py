"""`LearnedInverse` in a `FlowModel`: networks of any kind, frozen decoders, exact figures, and faults."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from network_pairs import NETWORKS, SIZE, Line, matrix, residual

import tfp_selfnorm as sn
from tfp_selfnorm.flows.networks import computes_in_float16

tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.fixture
def x(rng):
    return rng.normal(size=[40, SIZE])


def make_flow(layer, dtype=np.float64):
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(np.zeros(SIZE, dtype)), layer)


def make_model(layer, learning=sn.Tracking(), optimizer="adam", **options):  # noqa: B008
    model = sn.FlowModel(make_flow(layer), learning)
    model.compile(optimizer, run_eagerly=True, **options)
    return model


def fit(model, x, **options):
    options = {"batch_size": 20, "epochs": 1, "shuffle": False, "verbose": 0} | options
    return model.fit(x, **options).history


def exact_log_prob(encode, x, step=1e-6):
    """By the differences of the encoder; of each event alone."""
    columns = [(encode(x + step * unit) - encode(x - step * unit)) / (2 * step) for unit in np.eye(SIZE)]
    log_det = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
    return -0.5 * np.sum(encode(x) ** 2, axis=-1) - 0.5 * SIZE * np.log(2 * np.pi) + log_det


def as_numpy(network):
    return lambda x: np.asarray(network(tf.constant(x)))


@pytest.mark.parametrize("gradient", ["exact", "self_norm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_any_kind_are_trained_and_a_decoder_without_a_gradient_is_frozen(name, gradient, x):
    for learning in (None, sn.Tracking()):
        encoder, decoder = NETWORKS[name]()
        layer = sn.LearnedInverse(encoder, decoder, SIZE, gradient=gradient)
        assert layer.dtype == tf.float64
        parts = [[variable.ref() for variable in variables] for variables in layer.map_variables]
        assert {v.ref() for v in layer.trainable_variables} == {*parts[0], *parts[1]}
        model = make_model(layer, learning)
        before = {v.value.ref(): v.numpy() for v in model.named_variables.values()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Without a teacher the package itself warns.
            warnings.filterwarnings("ignore", message="`inverse_learning=None`: nothing")
            fit(model, x)
        moved = [
            r
            for r, value in before.items()
            if r in [*parts[0], *parts[1]] and (r.deref() != value).numpy().any()
        ]
        trained = [variable.value.ref() for variable in model.trainable_variables]
        expected = parts[0] if learning is None else [*parts[0], *parts[1]]
        assert set(moved) == set(trained) == set(expected)
        assert len(trained) == len(expected)


def test_a_decoder_without_a_gradient_is_frozen_in_a_bigger_model_too(x):
    network = residual(2)
    flow = sn.FlowModel(make_flow(sn.LearnedInverse(residual(1), network, SIZE)), None)
    inputs = keras.Input([SIZE], dtype="float64")
    bigger = keras.Model(inputs, flow(inputs))
    assert len(bigger.trainable_variables) == 4
    # The user's network itself does not change.
    assert len(network.trainable_variables) == 4


def test_an_encoder_that_shares_its_weights_with_the_decoder_is_trained(x):
    encoder = Line(1)

    class Transposed(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = encoder.kernel

        def __call__(self, z):
            return z @ tf.transpose(self.kernel)

    model = make_model(sn.LearnedInverse(encoder, Transposed(), SIZE), None)
    fit(model, x)
    assert len(model.trainable_variables) == 1
    assert not np.allclose(encoder.kernel, matrix(1), atol=1e-6)


def test_a_warning_tells_of_a_decoder_that_nothing_trains(x):
    model = make_model(sn.LearnedInverse(residual(1), residual(2), SIZE), None)
    with pytest.warns(UserWarning, match=r"nothing trains the decoders of \['learned_inverse'\]"):
        fit(model, x)
    fixed, taught = (sn.LearnedInverse(residual(1), g, SIZE) for g in (lambda z: z, residual(2)))
    for layer, learning in [(fixed, None), (taught, sn.Tracking())]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*nothing trains")
            fit(make_model(layer, learning), x)


def test_evaluate_is_the_exact_likelihood_of_each_event(x):
    layer = sn.LearnedInverse(residual(1), residual(2), SIZE, gradient="self_norm")
    model = make_model(layer)
    fit(model, x)
    expected = exact_log_prob(as_numpy(layer.encoder), x)
    np.testing.assert_allclose(model.log_prob(x), expected, atol=1e-8)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-8)
    figures = model.evaluate(x, batch_size=15, verbose=0, return_dict=True)
    np.testing.assert_allclose(figures["nll"], -expected.mean(), rtol=1e-6)
    back = as_numpy(layer.decoder)(as_numpy(layer.encoder)(x))
    np.testing.assert_allclose(figures["reconstruction"], np.mean(np.sum((x - back) ** 2, axis=1)), rtol=1e-6)


@pytest.mark.parametrize("count", [5, 16])
def test_the_held_log_det_is_the_mean_over_the_kept_events(count, x):
    layer = sn.LearnedInverse(residual(1), residual(2), SIZE, gradient="self_norm")
    model = make_model(layer, optimizer=keras.optimizers.SGD(0.0))
    nll = fit(model, np.tile(x[:count], [3, 1]), batch_size=count, epochs=2)["nll"]
    expected = -exact_log_prob(as_numpy(layer.encoder), x[:count]).mean()
    np.testing.assert_allclose(nll[1], expected, rtol=1e-6)
    # Before the first events it is 0.
    held = model.named_variables["held_log_det_learned_inverse"]
    np.testing.assert_allclose(nll[0], expected + float(held) / 3, rtol=1e-5)


def test_a_flow_whose_support_is_without_the_initial_zeros_trains(x):
    layer = sn.LearnedInverse(residual(1), residual(2), SIZE, gradient="self_norm")
    model = make_model(tfb.Chain([tfb.Exp(), layer]), optimizer=keras.optimizers.SGD(0.0))
    nll = fit(model, np.exp(x[:32]), batch_size=16, epochs=2)["nll"]
    assert np.isfinite(nll).all()
    fit(model, np.exp(x[:16]), batch_size=16)
    mean = np.mean(exact_log_prob(as_numpy(layer.encoder), x[:16]) - x[:16].sum(axis=1))
    np.testing.assert_allclose(fit(model, np.exp(x[:16]), batch_size=16)["nll"][0], -mean, rtol=1e-6)


@pytest.mark.parametrize("gradient", ["self_norm", "exact"])
def test_a_batch_without_a_density_is_skipped_and_its_events_are_not_kept(gradient, x):
    """Else the next refresh, or the inverse of a Jacobian that is NaN, would stop the training."""
    layer = sn.LearnedInverse(residual(1), residual(2), SIZE, gradient=gradient)
    model = make_model(tfb.Chain([tfb.Exp(), layer]), sn.Tracking(refresh_every=1))
    data = np.exp(x)
    data[25] = -1.0
    history = fit(model, data, batch_size=10, epochs=2)
    assert history["skipped_updates"] == [1.0, 1.0]
    assert np.isfinite(history["nll"]).all()


@pytest.mark.parametrize("gradient", ["exact", "self_norm"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_network_that_gives_nan_is_named_and_the_weights_stay(part, gradient, x):
    networks = {"encoder": residual(1), "decoder": residual(2)} | {part: lambda y: tf.math.log(y - 100.0)}
    model = make_model(
        sn.LearnedInverse(**networks, event_shape=SIZE, gradient=gradient, name="odd"), max_skipped_updates=2
    )
    before = [v.numpy() for v in model.trainable_variables]
    named = {"encoder": "the output of `odd`", "decoder": "the reconstruction by `odd`"}[part]
    with pytest.raises(ValueError, match=f"first to be not finite was {named}"):
        fit(model, x)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_singular_encoder_is_named_by_the_refresh(x):
    scale = tf.Variable([1.0, 2.0], dtype=tf.float64)
    layer = sn.LearnedInverse(lambda y: y[:, :1] * scale, residual(2), SIZE, gradient="self_norm", name="odd")
    with pytest.raises(ValueError, match="The mean of `log .det J.` of the encoder of `odd` is -inf"):
        fit(make_model(layer, None, optimizer=keras.optimizers.SGD(0.0)), x)


def test_inside_invert_it_is_refused_unless_the_inverse_is_exact(x):
    networks = residual(1), residual(2)
    with pytest.raises(ValueError, match="by its learned inverse, `decoder`.*Exchange its two maps"):
        make_model(tfb.Invert(sn.LearnedInverse(*networks, SIZE)))
    layer = sn.LearnedInverse(*networks, SIZE, gradient="self_norm", inversion="exact")
    model, x = make_model(tfb.Invert(layer)), x[:10]
    fit(model, x)
    y = layer.forward(tf.constant(x)).numpy()
    # The density of x is the one of y, divided by the volume change of the encoder at y.
    log_det = exact_log_prob(as_numpy(layer.encoder), y) - exact_log_prob(lambda e: e + x - y, y)
    expected = -0.5 * np.sum(y**2, axis=1) - np.log(2 * np.pi) - log_det
    np.testing.assert_allclose(model.log_prob(x), expected, atol=1e-7)


def test_each_layer_has_its_own_adaptive_weight(x):
    layers = [
        sn.LearnedInverse(residual(s), residual(s + 1, scale), SIZE, name=f"layer_{s}")
        for s, scale in ((1, 0.3), (3, 0.9))
    ]
    adaptive = sn.AdaptiveWeight(0.0, rate=0.1, momentum=0.0, per_layer=True)
    model = make_model(
        tfb.Chain(layers), sn.Reconstruction(weight=adaptive), optimizer=keras.optimizers.SGD(0.0)
    )
    fit(model, x, batch_size=40)
    latents = as_numpy(layers[0].encoder)(x)
    for layer, inputs in ((layers[0], x), (layers[1], latents)):
        back = as_numpy(layer.decoder)(as_numpy(layer.encoder)(inputs))
        error = np.mean(np.sum((inputs - back) ** 2, axis=1))
        (name,) = (n for n in model.named_variables if "log" in n and "weight" in n and layer.name in n)
        np.testing.assert_allclose(model.named_variables[name], 0.1 * error, rtol=1e-5)


def test_the_callbacks_work_on_it(x, tmp_path):
    layer = sn.LearnedInverse(residual(1), residual(2), SIZE, gradient="self_norm")
    model = make_model(layer)
    exact_likelihood = sn.callbacks.ExactLikelihood(x[:10])
    quality = sn.callbacks.InverseQuality()
    history = fit(model, x, callbacks=[exact_likelihood, quality])
    expected = -exact_log_prob(as_numpy(layer.encoder), x[:10]).mean()
    np.testing.assert_allclose(history["exact_nll"][0], expected, rtol=1e-6)
    assert quality.worst_layer == "learned_inverse"
    assert history["worst_inverse_error"][0] == pytest.approx(
        float(sn.inverse_error(layer, seed=[0, 0])), rel=1e-6
    )


def test_a_grid_of_samples_by_the_decoder_and_by_the_exact_inverse(tmp_path, rng):
    flow = sn.free_form_flow((4, 4, 1), num_layers=1, width=3, depth=1, gradient="self_norm", seed=1)
    model = sn.FlowModel(flow)
    model.compile("adam", run_eagerly=True)
    data = rng.normal(size=[20, 4, 4, 1]).astype(np.float32)
    grids = [sn.callbacks.SampleGrid(str(tmp_path / f"{e}.png"), exact=e) for e in (False, True)]
    model.fit(data, batch_size=20, epochs=1, verbose=0, callbacks=grids)
    assert len(list(tmp_path.glob("*.png"))) == 2
    np.testing.assert_allclose(model.reconstruct(data, exact=True), data, atol=1e-4)


@pytest.mark.parametrize("name", ["residual_network", "coupling_network"])
def test_networks_of_full_precision_need_no_scaled_loss_under_a_mixed_policy(name):
    """The graph of the layers and its inputs have the policy, and compute nothing."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        sizes = {"residual_network": [SIZE], "coupling_network": [(4, 4, 1), 2]}[name]
        network, halves = (getattr(sn, name)(*sizes, width=2, dtype=dtype) for dtype in ("float32", None))
    finally:
        keras.config.set_dtype_policy("float32")
    assert not computes_in_float16(network)
    assert computes_in_float16(halves)


def test_as_a_layer_of_a_bigger_model(x):
    """The bigger model has the exact gradient, and the regularizer of the flow."""
    networks = residual(1, dtype="float32"), residual(2, dtype="float32")
    layer, x = sn.LearnedInverse(*networks, SIZE, gradient="self_norm"), x.astype(np.float32)
    flow = sn.FlowModel(make_flow(layer, np.float32), sn.Reconstruction(weight=3.0))
    inputs = keras.Input([SIZE])
    bigger = keras.Model(inputs, flow(inputs))
    bigger.compile(keras.optimizers.SGD(0.1), loss=lambda _, log_prob: -log_prob, run_eagerly=True)
    before = [v.numpy() for v in bigger.trainable_variables]
    with tf.GradientTape() as tape:
        data = tf.constant(x)
        error = tf.reduce_mean(tf.reduce_sum((data - layer.decoder(layer.encoder(data))) ** 2, axis=1))
        loss = -tf.reduce_mean(flow.distribution.log_prob(tf.identity(data))) + 3.0 * error
    gradients = tape.gradient(loss, [v.value for v in bigger.trainable_variables])
    found = bigger.fit(x, np.zeros(len(x)), batch_size=len(x), verbose=0).history["loss"]
    np.testing.assert_allclose(found, [loss], rtol=1e-6)
    for variable, value, gradient in zip(bigger.trainable_variables, before, gradients, strict=True):
        np.testing.assert_allclose(variable, value - 0.1 * gradient, atol=1e-5)


@pytest.mark.parametrize("kind", [keras.layers.Dropout, keras.layers.BatchNormalization])
def test_dropout_and_moving_statistics_are_at_rest_in_the_density(kind, x):
    """In training they act; the density of an event does not depend on the others, or on chance."""
    layers = [
        keras.Input([SIZE], dtype="float64"),
        keras.layers.Dense(5, "tanh", dtype="float64"),
        kind(**({"rate": 0.5} if kind is keras.layers.Dropout else {}), dtype="float64"),
        keras.layers.Dense(SIZE, dtype="float64"),
    ]
    encoder = keras.Sequential(layers)
    model = make_model(sn.LearnedInverse(encoder, residual(2), SIZE, gradient="self_norm"))
    state = [v.numpy() for v in encoder.non_trainable_variables]
    fit(model, x)
    assert any(
        (v.numpy() != old).any() for v, old in zip(encoder.non_trainable_variables, state, strict=True)
    )
    expected = exact_log_prob(lambda y: encoder(tf.constant(y), training=False).numpy(), x)
    np.testing.assert_allclose(model.log_prob(x), expected, atol=1e-7)
    np.testing.assert_allclose(
        model.evaluate(x, verbose=0, return_dict=True)["nll"], -expected.mean(), rtol=1e-6
    )


def test_exact_log_dets_are_compiled_without_xla(x):
    """XLA has no kernel for them; the training step with the surrogate has none of them."""
    networks = residual(1), residual(2)
    model = sn.FlowModel(make_flow(sn.LearnedInverse(*networks, SIZE, gradient="self_norm")))
    assert model.supports_jit
    model.compile("adam", jit_compile=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), model.log_prob(x), rtol=1e-8)
    assert model.jit_compile
    model = sn.FlowModel(make_flow(sn.LearnedInverse(*networks, SIZE)))
    with pytest.warns(UserWarning, match="Proceeding with `jit_compile=False`"):
        model.compile("adam", jit_compile=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), model.log_prob(x), rtol=1e-8)
