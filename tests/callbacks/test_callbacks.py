"""What all callbacks share: training does not notice them, and TensorBoard and the log get their figures."""

import csv
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from watched_models import LEVELS, begin, compiled, dense_images, expected_grid, pixel_noise, read_png

from tfp_selfnorm.callbacks import ExactLikelihood, InverseQuality, SampleGrid


def test_training_is_the_same_to_the_bit_and_the_figures_reach_keras(events, tmp_path):
    """Ten batches an epoch in executions of three: the last of an epoch has one."""

    def run(callbacks):
        keras.utils.set_random_seed(1)
        model = compiled(dense_images(), steps_per_execution=3)
        history = model.fit(events, batch_size=4, epochs=2, verbose=0, callbacks=callbacks).history
        return model, history

    likelihood = ExactLikelihood(events[:7], every_steps=4, batch_size=3)
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


def test_numbers_out_of_range(events):
    for make, names in (
        (lambda **options: SampleGrid("grid.png", **options), ["num_levels", "num_samples", "every_epochs"]),
        (InverseQuality, ["num_probes", "every_epochs"]),
        (lambda **options: ExactLikelihood(events, **options), ["every_steps", "batch_size"]),
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
