"""The callbacks: what they report is right, and training does not notice them."""

import csv
import importlib.util
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.callbacks import ExactLikelihood, InverseQuality, SampleGrid

tfd, tfb = tfp.distributions, tfp.bijectors
LEVELS = 17


def compiled(distribution, **options):
    """A model that callbacks can be called with; nothing is traced before `fit`."""
    model = sn.FlowModel(distribution)
    model.compile(keras.optimizers.Adam(1e-2), **options)
    return model


def begin(callback, model):
    """What `fit` does before its first step."""
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def pixel_noise(event_shape, loc=None):
    """Independent pixels, of a distribution without self-normalizing layers."""
    loc = tf.Variable(tf.zeros(event_shape) if loc is None else loc)
    noise = tfd.Independent(tfd.Normal(loc, 1.0), len(event_shape))
    return tfd.TransformedDistribution(noise, sn.images.pixel_sigmoid(num_levels=LEVELS))


def dense_images(seed=1):
    return sn.dense_flow((4, 4), num_layers=2, preprocessing=sn.images.pixel_sigmoid(LEVELS), seed=seed)


@pytest.fixture
def events(rng):
    return rng.uniform(0.0, LEVELS, size=[40, 4, 4]).astype(np.float32)


def read_png(path):
    return tf.io.decode_png(tf.io.read_file(str(path))).numpy()


def expected_grid(samples, columns, levels=LEVELS):
    """Cell by cell and pixel by pixel, slowly."""
    number, height, width = samples.shape[:3]
    rows = -(-number // columns)
    grid = np.full([rows * (height + 1) - 1, columns * (width + 1) - 1, 3], 128)
    for i, sample in enumerate(samples):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        for row in range(height):
            for column in range(width):
                values = np.ravel(sample[row, column])
                if np.isfinite(values).all():
                    values = [min(max(math.floor(v), 0), levels - 1) * 255 / (levels - 1) for v in values]
                    colour = np.round(values)
                else:
                    colour = 255, 0, 0
                grid[top + row, left + column] = colour
    return grid


def test_training_is_the_same_to_the_bit_and_the_figures_reach_keras(events, tmp_path):
    """Ten batches an epoch in executions of three: the last of an epoch has one."""

    def run(callbacks):
        keras.utils.set_random_seed(1)
        model = compiled(dense_images(), steps_per_execution=3)
        history = model.fit(events, batch_size=4, epochs=2, verbose=0, callbacks=callbacks).history
        return model, history

    likelihood = ExactLikelihood(events[:7], every=4, batch_size=3)
    quality = InverseQuality()
    table = tmp_path / "log.csv"
    watched, history = run(
        [
            SampleGrid(tmp_path / "{epoch}.png", LEVELS, num_samples=2, exact=True),
            quality,
            likelihood,
            keras.callbacks.CSVLogger(table),
        ]
    )
    plain, plain_history = run([])

    for mine, other in zip(watched.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.path)
    for mine, other in zip(watched.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=mine.path)
    assert {name: history[name] for name in plain_history} == plain_history
    assert history.keys() - plain_history.keys() == {"worst_inverse_error", "exact_nll"}

    # Executions end at 3, 6, 9, 10, 13, 16, 19, 20.
    steps, figures = zip(*likelihood.history, strict=True)
    assert steps == (6, 9, 13, 16, 20)
    assert history["exact_nll"] == [figures[1], figures[4]]
    np.testing.assert_allclose(figures[-1], -np.mean(watched.log_prob(events[:7])), rtol=1e-5)
    assert len(set(figures)) == 5
    assert history["worst_inverse_error"][-1] == max(quality.errors.values())
    assert read_png(tmp_path / "2.png").any()
    rows = list(csv.DictReader(table.open()))
    assert [float(row["exact_nll"]) for row in rows] == history["exact_nll"]
    assert [float(row["worst_inverse_error"]) for row in rows] == history["worst_inverse_error"]


@pytest.mark.parametrize(
    ("event_shape", "columns"), [((4, 5), 3), ((4, 5, 1), 3), ((3, 2, 3), 3)], ids=["plain", "grey", "rgb"]
)
def test_the_grid_shows_the_samples(tmp_path, event_shape, columns):
    model = compiled(pixel_noise(event_shape))
    grid = begin(
        SampleGrid(tmp_path / "new" / "{epoch:03d}.png", LEVELS, num_samples=7, every=2, seed=5), model
    )
    for epoch in range(5):
        if epoch == 4:
            model.distribution.trainable_variables[0].assign_add(np.full(event_shape, 0.5))
        grid.on_epoch_end(epoch, {})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["002.png", "004.png"]
    first, second = (read_png(tmp_path / "new" / name) for name in ("002.png", "004.png"))
    np.testing.assert_array_equal(first, second)
    grid.on_epoch_end(5, {})
    moved = read_png(tmp_path / "new" / "006.png")
    np.testing.assert_array_equal(moved, expected_grid(model.sample(7, seed=5).numpy(), columns))
    assert (moved != first).any()


def test_levels_are_rounded_down_and_clipped(tmp_path, monkeypatch):
    model = compiled(pixel_noise((2, 3)))
    samples = np.array([[[0.0, 0.999, 1.0], [254.9, 255.0, 256.0]], [[-3.0, 300.0, 7.5], [8, 9, 10]]])
    monkeypatch.setattr(model, "sample", lambda *_, **__: tf.constant(samples))
    path = tmp_path / "grid.png"
    begin(SampleGrid(path), model).on_epoch_end(0)
    found = read_png(path)
    levels = [[0, 0, 1, 128, 0, 255, 7], [254, 255, 255, 128, 8, 9, 10]]
    np.testing.assert_array_equal(found, np.repeat(np.array(levels)[..., np.newaxis], 3, axis=-1))
    np.testing.assert_array_equal(found, expected_grid(samples, columns=2, levels=256))


@pytest.mark.parametrize("channels", [(), (1,), (3,)], ids=["plain", "grey", "rgb"])
def test_values_that_are_not_finite_are_red_and_warned_of(tmp_path, monkeypatch, rng, channels):
    samples = rng.uniform(0, LEVELS, size=[6, 3, 4, *channels])
    samples.reshape(6, 3, 4, -1)[[0, 0, 2, 5], [1, 2, 0, 2], [3, 3, 1, 0], -1] = np.nan, 1, -np.inf, np.inf
    model = compiled(pixel_noise((3, 4, *channels)))
    monkeypatch.setattr(model, "sample", lambda *_, **__: tf.constant(samples))
    path = tmp_path / "grid.png"
    with pytest.warns(UserWarning, match="3 of 6 samples after epoch 1 .* not finite.* red"):
        begin(SampleGrid(path, LEVELS), model).on_epoch_end(0)
    found = read_png(path)
    np.testing.assert_array_equal(found, expected_grid(samples, columns=3))
    assert (found == (255, 0, 0)).all(axis=-1).sum() == 3


def test_the_grid_takes_the_exact_inverse_where_asked(tmp_path):
    model = compiled(dense_images())
    layer = sn.self_norm_layers(model.distribution)[0]
    layer.forward_kernel.assign(0.1 * layer.forward_kernel)
    for exact in (False, True):
        path = tmp_path / f"{exact}.png"
        begin(SampleGrid(path, LEVELS, num_samples=4, exact=exact), model).on_epoch_end(0)
        found, samples = read_png(path), model.sample(4, seed=0, exact=exact).numpy()
        np.testing.assert_array_equal(found, expected_grid(samples, columns=2))
    assert (read_png(tmp_path / "False.png") != found).any()


@pytest.mark.parametrize("event_shape", [(16,), (4, 4, 2), (2, 2, 2, 3)])
def test_events_that_are_no_images(tmp_path, event_shape):
    grid = SampleGrid(tmp_path / "grid.png")
    with pytest.raises(ValueError, match=r"images of shape .* got event shape \(" + str(event_shape)[1:-1]):
        begin(grid, compiled(pixel_noise(event_shape)))


def test_a_batch_of_distributions_gives_no_images(tmp_path):
    several = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([5, 4, 4])), 1.0), 2)
    with pytest.raises(ValueError, match=r"got event shape \(4, 4\) and batch shape \(5,\)"):
        begin(SampleGrid(tmp_path / "grid.png"), compiled(several))


@pytest.mark.parametrize("pattern", ["{}.png", "{loss:.2f}.png", "{epoch:q}.png", "{epoch.png"])
def test_patterns_that_only_fail_later(pattern):
    with pytest.raises(ValueError, match="`filepath` may hold the field {epoch} and no other"):
        SampleGrid(pattern)


def test_numbers_out_of_range(events):
    for make, names in (
        (lambda **options: SampleGrid("grid.png", **options), ["num_levels", "num_samples", "every"]),
        (InverseQuality, ["num_probes", "every"]),
        (lambda **options: ExactLikelihood(events, **options), ["every", "batch_size"]),
    ):
        for name in names:
            for value in (0, -1, 2.0, True, None):
                with pytest.raises(ValueError, match=f"`{name}` must be a positive int; got"):
                    make(**{name: value})
    with pytest.raises(ValueError, match="`num_levels` must be 2 or more; got 1"):
        SampleGrid("grid.png", num_levels=1)
    with pytest.raises(ValueError, match="`filepath` or `log_dir` must be given"):
        SampleGrid()


def test_models_without_a_distribution(events):
    model = keras.Sequential([keras.layers.Dense(1)])
    for callback in (SampleGrid("grid.png"), InverseQuality(), ExactLikelihood(events)):
        name = type(callback).__name__
        with pytest.raises(TypeError, match=f"{name} needs a FlowModel; got Sequential"):
            begin(callback, model)


@pytest.fixture
def three_layers(make_layer, make_flow):
    """Two layers of one name with an exact R, and between them one that needs none."""
    layers = [
        make_layer(12, inverse_is_exact=True, name=name, **options)
        for name, options in (("mixing", {}), ("solved", {"gradient": "exact"}), ("mixing", {}))
    ]
    return layers, compiled(make_flow(tfb.Chain(layers), 12))


def test_the_worst_inverse_is_named(three_layers, capsys):
    layers, model = three_layers
    quality = begin(InverseQuality(num_probes=3, verbose=1), model)
    logs = {"nll": 1.0}
    for first, second, worst in ((0.01, 0.3, "mixing_1"), (0.4, 0.3, "mixing")):
        # I - R W = c I has the relative error c on any probe.
        for layer, error in ((layers[0], first), (layers[2], second)):
            layer.forward_kernel.assign((1.0 - error) * np.linalg.inv(layer.inverse_kernel))
        quality.on_epoch_end(0, logs)
        assert quality.errors == pytest.approx({"mixing": first, "mixing_1": second}, rel=1e-9)
        assert quality.worst_layer == worst
        assert logs == {"nll": 1.0, "worst_inverse_error": quality.errors[worst]}
        assert (
            f"Epoch 1: the worst learned inverse, `{worst}`: {max(first, second)}\n"
            in capsys.readouterr().out
        )


def test_the_error_is_that_of_r_w(make_layer, make_flow):
    """Off along one direction, where the two orders of the product differ tenfold."""
    size = 32
    kernel = np.diag(np.r_[10.0, np.ones(size - 1)])
    off = np.zeros([size, size])
    off[1, 0] = 0.1
    layer = make_layer(size)
    layer.inverse_kernel.assign(kernel)
    layer.forward_kernel.assign(np.linalg.inv(kernel) + off)
    expected = np.linalg.norm(off @ kernel) / np.sqrt(size)
    estimates = []
    for seed in range(40):
        quality = begin(InverseQuality(num_probes=size, seed=seed), compiled(make_flow(layer, size)))
        quality.on_epoch_end(0)
        estimates.append(quality.errors["self_norm_dense"] ** 2)
    # The mean of 1280 squares of normals: 4 % of deviation.
    np.testing.assert_allclose(np.mean(estimates), expected**2, rtol=0.16)
    np.testing.assert_allclose(np.linalg.norm(kernel @ off) / np.sqrt(size), 0.1 * expected)
    assert len(set(estimates)) == 40


def test_nan_is_the_worst_inverse(three_layers):
    layers, model = three_layers
    quality = begin(InverseQuality(), model)
    for bad, layer, worst in ((np.inf, layers[0], "mixing"), (np.nan, layers[2], "mixing_1")):
        broken = layer.forward_kernel.numpy()
        broken[3, 4] = bad
        layer.forward_kernel.assign(broken)
        logs = {}
        quality.on_epoch_end(0, logs)
        assert quality.worst_layer == worst
        np.testing.assert_equal(logs["worst_inverse_error"], quality.errors[worst])
        np.testing.assert_equal(quality.errors[worst], bad)


def test_epochs_between_estimates_repeat_the_last(three_layers):
    layers, model = three_layers
    quality = InverseQuality(every=3)
    for expected in ([0.5, 0.5, 1 / 8, 1 / 8, 1 / 8, 1 / 64], [0.5, 0.5, 1 / 8]):
        # Each call of `fit` begins with an estimate of its own.
        begin(quality, model)
        found = []
        for epoch in range(len(expected)):
            layers[0].forward_kernel.assign(
                (1.0 - 0.5 ** (epoch + 1)) * np.linalg.inv(layers[0].inverse_kernel)
            )
            logs = {}
            quality.on_epoch_end(epoch, logs)
            found.append(logs["worst_inverse_error"])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_no_inverse_to_watch():
    for flow in (sn.dense_flow(2, gradient="exact", seed=1), pixel_noise((2, 2))):
        with pytest.raises(ValueError, match="needs a layer with a learned inverse"):
            begin(InverseQuality(), compiled(flow))


def numpy_nll(x, kernel, bias):
    z = x @ kernel.T + bias
    log_prob = -0.5 * (z**2).sum(axis=1) - 0.5 * z.shape[1] * np.log(2 * np.pi)
    return -np.mean(log_prob + np.linalg.slogdet(kernel)[1])


def test_the_likelihood_is_exact_at_every_call(make_layer, make_flow, rng, capsys):
    layer = make_layer(5)
    model = compiled(make_flow(layer, 5))
    x = rng.normal(size=[20, 5])
    likelihood = begin(ExactLikelihood(x, batch_size=7, verbose=1), model)
    kernels = [*(rng.normal(size=[3, 5, 5])), np.zeros([5, 5]), np.full([5, 5], np.nan)]
    for step, kernel in enumerate(kernels):
        layer.inverse_kernel.assign(kernel)
        model.optimizer.iterations.assign(step)
        likelihood.on_train_end()
    steps, figures = zip(*likelihood.history, strict=True)
    assert steps == (0, 1, 2, 3, 4)
    expected = [numpy_nll(x, kernel, layer.bias.numpy()) for kernel in kernels[:3]]
    np.testing.assert_allclose(figures, [*expected, np.inf, np.nan], rtol=1e-12)
    assert f"Step 2: exact NLL {expected[2]:.6g} nats" in capsys.readouterr().out
    # The last weights may be others than the last step's, as with `restore_best_weights`.
    layer.inverse_kernel.assign(kernels[0])
    likelihood.on_train_end()
    assert likelihood.history == [*zip(steps, figures, strict=True)][:4] + [(4, figures[0])]


@pytest.mark.parametrize(
    "make",
    [
        lambda: sn.conv_flow((4, 4, 1), num_blocks=1, layers_per_block=1, seed=1),
        lambda: pixel_noise((4, 4, 1)),
        lambda: tfd.Independent(tfd.Normal(tf.Variable(np.ones([3, 4, 4, 1], np.float32)), 1.0), 3),
    ],
    ids=["conv", "no layers", "batch of distributions"],
)
def test_the_likelihood_of_other_distributions(make, rng):
    distribution = make()
    shape = [1] * distribution.batch_shape.rank + [4, 4, 1]
    x = rng.uniform(0.1, 0.9, size=[5, *shape])
    model = compiled(distribution)
    likelihood = begin(ExactLikelihood(x, batch_size=2), model)
    logs = {}
    likelihood.on_epoch_end(0, logs)
    np.testing.assert_allclose(logs["exact_nll"], -np.mean(model.log_prob(x)), rtol=1e-5)
    assert likelihood.history == [(0, logs["exact_nll"])]


def test_log_dets_are_paid_for_once_an_evaluation(make_layer, make_flow, rng, monkeypatch):
    layers = [make_layer(4), make_layer(4)]
    model = compiled(make_flow(tfb.Chain(layers), 4))
    likelihood = begin(ExactLikelihood(rng.normal(size=[9, 4]), batch_size=2), model)
    likelihood.on_train_end()
    calls = []

    def shifted(layer):
        calls.append(layer)
        return layer.operations.log_det(tf.convert_to_tensor(layer.inverse_kernel)) + 10.0

    monkeypatch.setattr(sn.SelfNormDense, "exact_log_det", shifted)
    model.optimizer.iterations.assign(1)
    likelihood.on_train_end()
    assert len(calls) == 2
    (_, before), (_, after) = likelihood.history
    np.testing.assert_allclose(before - after, 20.0, rtol=1e-12)


def test_the_likelihood_starts_anew_with_another_model(make_layer, make_flow, rng):
    x = rng.normal(size=[6, 3])
    likelihood = ExactLikelihood(x)
    for step in (2, 1):
        layer = make_layer(3)
        layer.inverse_kernel.assign_add(0.3 * rng.normal(size=[3, 3]))
        model = compiled(make_flow(layer, 3))
        model.optimizer.iterations.assign(step)
        begin(likelihood, model).on_train_end()
        ((found_step, nll),) = likelihood.history
        assert found_step == step
        np.testing.assert_allclose(nll, numpy_nll(x, layer.inverse_kernel.numpy(), layer.bias.numpy()))


def test_events_that_have_no_likelihood(events):
    bad = events.copy()
    bad[3, 1, 1] = np.nan
    with pytest.raises(ValueError, match="`x` has values that are not finite in 1 of 40 .* index 3"):
        ExactLikelihood(bad)
    with pytest.raises(TypeError, match="`x` must be an array of a floating dtype; got dtype uint8.*dequant"):
        ExactLikelihood(events.astype(np.uint8))
    with pytest.raises(TypeError, match="`x` must be an array of a floating dtype; got dtype object"):
        ExactLikelihood(tf.data.Dataset.from_tensors(events))
    for empty in (events[:0], np.float32(1.0)):
        with pytest.raises(ValueError, match="`x` must be a batch of events, one or more; got shape"):
            ExactLikelihood(empty)
    model = compiled(dense_images())
    for other in (events[:, 0], events[0]):
        message = r"`x\[0\]` has shape \(4,\); expected a batch of events of shape \(4, 4\)"
        with pytest.raises(ValueError, match=message):
            begin(ExactLikelihood(other), model)


def summaries(folder):
    """Tag, step and tensor of everything that event files hold."""
    records = tf.data.TFRecordDataset([str(path) for path in folder.iterdir()])
    for record in records:
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            yield value.tag, event.step, tf.make_ndarray(value.tensor)


def test_tensorboard(tmp_path, make_layer, make_flow, rng):
    model = compiled(pixel_noise((3, 4)))
    begin(SampleGrid(None, LEVELS, num_samples=5, log_dir=tmp_path / "images"), model).on_epoch_end(6)
    ((tag, step, (width, height, png)),) = summaries(tmp_path / "images")
    assert (tag, step, int(width), int(height)) == ("samples", 7, 14, 7)
    samples = model.sample(5, seed=0).numpy()
    np.testing.assert_array_equal(tf.io.decode_png(png), expected_grid(samples, columns=3))

    x, layer = rng.normal(size=[6, 3]), make_layer(3)
    likelihood = ExactLikelihood(x, log_dir=tmp_path / "scalars")
    model = compiled(make_flow(layer, 3))
    model.optimizer.iterations.assign(12)
    begin(likelihood, model).on_train_end()
    ((tag, step, value),) = summaries(tmp_path / "scalars")
    assert (tag, step) == ("exact_nll", 12)
    np.testing.assert_allclose(value, likelihood.history[0][1], rtol=1e-6)


def test_tensorboard_is_missed_at_once(monkeypatch, tmp_path, events):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make in (SampleGrid, lambda log_dir: ExactLikelihood(events, log_dir=log_dir)):
        with pytest.raises(ImportError, match="`log_dir` needs TensorBoard.*pip install tensorboard"):
            make(log_dir=tmp_path)
