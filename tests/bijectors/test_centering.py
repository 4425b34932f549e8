"""Centering and its mean from data."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_selfnorm as sn
from tfp_selfnorm import initialization
from tfp_selfnorm.math import conv, dense, networks

tfb, tfd = tfp.bijectors, tfp.distributions


def flow_of(bijector, shape, dtype=tf.float64):
    normal = tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype))
    return tfd.TransformedDistribution(tfd.Sample(normal, shape), bijector)


def test_adapt_takes_the_mean_of_each_pixel(rng):
    data = 3.0 + np.arange(12.0).reshape(3, 2, 2) + rng.normal(size=[50, 3, 2, 2])
    flow = flow_of(sn.Centering.trainable([3, 2, 2], dtype=tf.float64), [3, 2, 2])
    assert not sn.is_adapted(flow)
    sn.adapt(flow, data)
    assert sn.is_adapted(flow)
    np.testing.assert_allclose(flow.bijector.mean, data.mean(axis=0), rtol=1e-12)
    expected = stats.norm.logpdf(data - data.mean(axis=0)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(flow.log_prob(tf.constant(data)), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="adapted already"):
        sn.adapt(flow, data)


def test_a_mean_of_each_channel(rng):
    data = rng.normal(size=[50, 3, 2, 2])
    flow = flow_of(sn.Centering.trainable([2], dtype=tf.float64), [3, 2, 2])
    sn.adapt(flow, data)
    np.testing.assert_allclose(flow.bijector.mean, data.mean(axis=(0, 1, 2)), atol=1e-12)
    latents = flow.bijector.inverse(tf.constant(data))
    np.testing.assert_allclose(latents, data - data.mean(axis=(0, 1, 2)), atol=1e-12)
    assert flow.log_prob(tf.constant(data)).shape == [50]


def test_inverted_it_centres_the_output_of_forward(rng):
    data = 4.0 + rng.normal(size=[50, 3])
    flow = flow_of(tfb.Invert(sn.Centering.trainable([3], dtype=tf.float64)), [3])
    sn.adapt(flow, data)
    latents = flow.bijector.inverse(tf.constant(data))
    np.testing.assert_allclose(np.mean(latents, axis=0), 0.0, atol=1e-12)


def test_the_log_det_is_zero_and_the_mean_is_trained():
    centering = sn.Centering(tf.Variable([1.0, 2.0]))
    x = tf.constant([[3.0, 4.0]])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(centering.inverse(x)) + centering.inverse_log_det_jacobian(x)
    np.testing.assert_array_equal(centering.inverse_log_det_jacobian(x), 0.0)
    np.testing.assert_array_equal(centering.forward_log_det_jacobian(x), 0.0)
    np.testing.assert_array_equal(tape.gradient(value, centering.mean), [-1.0, -1.0])


def test_one_call_sets_means_act_norms_and_dense_layers(rng):
    data = rng.multivariate_normal([5.0, -3.0], [[4.0, 1.9], [1.9, 1.0]], size=1000)
    layer = sn.SelfNormDense.trainable(2, dtype=tf.float64)
    parts = [sn.Centering.trainable([2], dtype=tf.float64), sn.ActNorm.trainable(2, dtype=tf.float64), layer]
    flow = flow_of(tfb.Chain(parts), [2])
    sn.adapt(flow, data, whitens=True)
    latents = flow.bijector.inverse(tf.constant(data)).numpy()
    np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=1e-9)
    # Up to the shrinkage that held-out events choose.
    np.testing.assert_allclose(np.cov(latents, rowvar=False), np.eye(2), atol=2e-2)
    np.testing.assert_allclose(parts[0].mean, data.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(parts[1].log_scale, np.log(data.std(axis=0)), rtol=1e-9)


@pytest.mark.parametrize("build", [sn.conv_flow, sn.glow_flow])
def test_builders_centre_images_after_the_preprocessing(build, rng):
    pixels = rng.integers(0, 16, size=[60, 4, 4, 1]) + rng.uniform(size=[60, 4, 4, 1])
    preprocessing = sn.images.pixel_sigmoid(16, dtype=tf.float64)
    options = {"act_norm": False, "width": 2, "steps_per_block": 1} if build is sn.glow_flow else {}
    options |= {"num_blocks": 1, "dtype": tf.float64, "seed": 1}
    flow = build((4, 4, 1), preprocessing=preprocessing, **options)
    with pytest.raises(ValueError, match="`centering` has no initial values yet: call `adapt`"):
        flow.log_prob(tf.constant(pixels))
    model = sn.FlowModel(flow)
    model.compile("adam")
    with pytest.raises(ValueError, match="has a `Centering` without initial values: call `adapt`"):
        model.fit(pixels, verbose=0)
    model.adapt(pixels)
    (centering,) = [part for part in flow.bijector.bijectors if isinstance(part, sn.Centering)]
    logits = preprocessing.inverse(tf.constant(pixels))
    np.testing.assert_allclose(centering.mean, np.mean(logits, axis=0), rtol=1e-9)
    bare = build((4, 4, 1), centering=False, **options)
    centred = bare.log_prob(tf.constant(logits - np.mean(logits, axis=0)))
    log_det = preprocessing.inverse_log_det_jacobian(tf.constant(pixels), event_ndims=3)
    np.testing.assert_allclose(flow.log_prob(tf.constant(pixels)), centred + log_det, rtol=1e-9)


IMAGES = {
    sn.conv_flow: {"image_shape": (4, 4, 2), "num_blocks": 2, "layers_per_block": 2},
    sn.glow_flow: {"image_shape": (4, 4, 2), "num_blocks": 2, "steps_per_block": 1, "width": 3},
}


@pytest.mark.parametrize("build", IMAGES)
def test_a_centred_flow_is_the_flow_without_a_centering_at_centred_data(build, rng):
    options = {**IMAGES[build], "dtype": tf.float64}
    centred, bare = (sn.FlowModel(build(centering=c, **options)) for c in (True, False))
    x = 3.0 + 2.0 * np.arange(32.0).reshape(4, 4, 2) + rng.normal(size=[40, 4, 4, 2])
    centred.adapt(x)
    for name, variable in bare.named_variables.items():
        value = centred.named_variables[name]
        variable.assign(value + 0.1 * rng.normal(size=value.shape) if value.dtype == "float64" else value)
        value.assign(variable)
    mean = np.add.reduce(x) / 40.0
    np.testing.assert_allclose(centred.log_prob(x), bare.log_prob(x - mean), rtol=1e-12)
    np.testing.assert_allclose(centred.encode(x), bare.encode(x - mean), rtol=1e-12, atol=1e-12)
    samples = (model.sample(5, seed=1, exact=True) for model in (centred, bare))
    np.testing.assert_allclose(next(samples) - mean, next(samples), rtol=1e-9, atol=1e-9)


def test_means_are_of_all_events_and_few_of_them_pass_the_layers_behind(rng, monkeypatch):
    monkeypatch.setattr(initialization, "_PART_SIZE", 4 * 2)
    monkeypatch.setattr(initialization, "_PART_EVENTS", 3)
    data, passed = rng.uniform(1.0, 2.0, size=[19, 2]), []

    def counted(x):
        passed.append(len(x))
        return tf.identity(x)

    count = tfb.Inline(counted, counted, lambda x: tf.zeros([], x.dtype), forward_min_event_ndims=1)
    first, second = (sn.Centering.trainable([2], dtype=tf.float64, name=name) for name in "ab")
    norm = sn.ActNorm.trainable(2, dtype=tf.float64)
    sn.adapt(flow_of(tfb.Chain([tfb.Exp(), first, norm, tfb.Invert(second), count]), [2]), data)
    logs = np.log(data)
    np.testing.assert_allclose(first.mean, logs.mean(axis=0), rtol=1e-12)
    centred = logs - logs.mean(axis=0)
    # Parts have 4 events.
    np.testing.assert_allclose(norm.shift, centred[:4].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(norm.log_scale, np.log(centred[:4].std(axis=0)), atol=1e-12)
    scaled = (centred - centred[:4].mean(axis=0)) / centred[:4].std(axis=0)
    np.testing.assert_allclose(second.mean, -scaled.mean(axis=0), atol=1e-12)
    assert passed == [4]


@pytest.mark.parametrize("make", [sn.conv_flow, sn.glow_flow, sn.free_form_flow, sn.dense_flow])
def test_initial_values_cost_no_exact_log_det(make, rng, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("An exact log-det was computed.")

    for owner in (conv.ConvMap, dense.DenseMap, networks):
        monkeypatch.setattr(owner, "log_det", refuse)
    flow, data = make((8, 8, 1), seed=1), rng.normal(size=[20, 8, 8, 1]).astype(np.float32)
    sn.adapt(flow, data)
    with pytest.raises(AssertionError, match="exact log-det"):
        flow.log_prob(data)


def test_a_model_reads_a_bounded_number_of_events(rng):
    values = rng.normal(size=[5, 2]).astype(np.float32)
    taken = []
    endless = (taken.append(i) or np.repeat(values, 1000, axis=0) + i for i in itertools.count())
    model = sn.FlowModel(flow_of(sn.Centering.trainable([2]), [2], tf.float32))
    model.adapt(endless)
    assert taken == [0, 1]
    np.testing.assert_allclose(model.distribution.bijector.mean, values.mean(axis=0) + 0.5, rtol=1e-5)


def test_one_call_of_a_model_whitens_too(rng):
    data = rng.multivariate_normal([5.0, -3.0], [[4.0, 1.9], [1.9, 1.0]], size=300)
    model = sn.FlowModel(sn.dense_flow(2, num_layers=1, dtype=tf.float64, seed=1))
    model.adapt(data, whitens=True)
    latents = model.encode(data).numpy()
    # Up to the shrinkage that held-out events choose.
    np.testing.assert_allclose(np.cov(latents, rowvar=False), np.eye(2), atol=5e-2)


def test_data_that_cannot_whiten_leave_no_initial_values(rng):
    parts = [sn.Centering.trainable([3], dtype=tf.float64), sn.SelfNormDense.trainable(3, dtype=tf.float64)]
    flow = flow_of(tfb.Chain(parts), [3])
    data = rng.normal(size=[20, 3])
    with pytest.raises(ValueError, match="`self_norm_dense` from `x` must vary"):
        sn.adapt(flow, np.ones([20, 3]), whitens=True)
    assert not sn.is_adapted(flow)
    sn.adapt(flow, data, whitens=True)
    np.testing.assert_allclose(parts[0].mean, data.mean(axis=0), atol=1e-12)


def small_model(seed=1):
    model = sn.FlowModel.from_builder(
        sn.conv_flow, image_shape=(2, 2, 1), num_blocks=1, layers_per_block=1, seed=seed
    )
    model.compile("sgd")
    return model


def test_without_adapt_fit_stops_before_it_changes_or_reads_anything(rng):
    model, x = small_model(), rng.normal(size=[8, 2, 2, 1]).astype(np.float32)
    before, batches = model.get_weights(), iter([x, x])
    for method, data in ((model.fit, x), (model.fit, batches), (model.evaluate, batches)):
        with pytest.raises(ValueError, match="call `adapt` with .* is fitted .* It sets `centering`"):
            method(data, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(list(batches)) == 2


def test_the_error_names_the_first_bijectors_and_counts_the_others():
    model = sn.FlowModel(sn.glow_flow((4, 4, 1), num_blocks=1, steps_per_block=4, width=2))
    names = "`centering`, `block_0_step_0_act_norm`, `block_0_step_1_act_norm` and 2 more"
    with pytest.raises(ValueError, match=f"It sets {names}"):
        model.predict(np.zeros([3, 4, 4, 1], np.float32), verbose=0)


@pytest.mark.filterwarnings("error")
def test_a_flow_from_a_file_is_adapted(rng, tmp_path):
    x = (4.0 + rng.normal(size=[8, 2, 2, 1])).astype(np.float32)
    model = small_model()
    model.adapt(x)
    model.fit(x, verbose=0)
    model.save(tmp_path / "flow.keras")
    model.save_weights(tmp_path / "flow.weights.h5")
    loaded, other = keras.models.load_model(tmp_path / "flow.keras"), small_model(seed=2)
    other.load_weights(tmp_path / "flow.weights.h5")
    model.fit(x, verbose=0)
    for again in (loaded, other):
        again.fit(x, verbose=0)
        np.testing.assert_array_equal(again.log_prob(x), model.log_prob(x))


@pytest.mark.filterwarnings("error")
def test_a_training_that_goes_on_has_the_mean_that_it_began_with(rng, tmp_path):
    x = (4.0 + rng.normal(size=[8, 2, 2, 1])).astype(np.float32)
    killed, resumed, whole = (small_model() for _ in range(3))
    for model, data, epochs in ((killed, x, 1), (resumed, x[:4], 2)):
        model.adapt(data)
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        model.fit(x, epochs=epochs, shuffle=False, callbacks=[backup], verbose=0)
    whole.adapt(x)
    whole.fit(x, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(resumed.log_prob(x), whole.log_prob(x))


def test_data_without_a_finite_mean_are_refused():
    flow = flow_of(tfb.Chain([tfb.Log(), sn.Centering.trainable([2])]), [2], tf.float32)
    with pytest.raises(ValueError, match="`centering` cannot adapt: event 0 "):
        sn.adapt(flow, np.full([3, 2], 1000.0, np.float32))
    assert not sn.is_adapted(flow)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sn.Centering(tf.ones([], tf.float32)), ValueError, "`mean` must have a known shape"),
        (lambda: sn.Centering(tf.ones([2], tf.int32)), TypeError, "`mean` must be floating"),
        (lambda: sn.Centering([1.0], is_adapted=False), TypeError, "`is_adapted` must be True, or"),
        (lambda: sn.Centering([1.0], is_adapted=tf.Variable(False)), TypeError, "must be variables too"),
        (lambda: sn.Centering.trainable([2, None]), ValueError, "`event_shape` must be one or more"),
        (lambda: sn.Centering.trainable([]), ValueError, "`event_shape` must be one or more"),
        (lambda: sn.Centering.trainable([2], dtype=tf.int32), TypeError, "`dtype` must be"),
        (lambda: sn.Centering([1.0, 2.0]).inverse(tf.ones([3])), ValueError, r"expected \(..., 2\)"),
        (lambda: sn.conv_flow((4, 4, 1), num_blocks=1, centering=1), TypeError, "`centering` must be"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
