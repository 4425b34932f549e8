"""The runner of experiments: its data, every preset, resumption, and what it writes."""

import csv
import dataclasses
import json
import sys

import compare
import numpy as np
import pytest
import tensorflow_datasets as tfds
import train
from data_sets import DataSet, batches
from presets import PRESETS, overridden

import tfp_selfnorm as sn

# What makes a preset small, by its builder.
TINY = {
    # There are fewer images than pixels.
    "dense_flow": {"flow.num_layers": 2, "whiten": False},
    "conv_flow": {"flow.num_blocks": 2, "flow.layers_per_block": 1},
    "glow_flow": {"flow.num_blocks": 2, "flow.steps_per_block": 1, "flow.width": 4},
    "free_form_flow": {"flow.width": 8, "flow.depth": 1, "whiten": False, "repeats": 1},
}
OFFICIAL = [
    "selfnorm_fc_mnist",
    "exact_fc_mnist",
    "selfnorm_cnn_mnist",
    "exact_cnn_mnist",
    "emerging_cnn_mnist",
    "exponential_cnn_mnist",
    "conv1x1_glow_mnist",
    "selfnorm_glow_mnist",
    "geco_selfnorm_glow_mnist",
    "conv1x1_glow_cifar",
    "selfnorm_glow_cifar",
    "conv1x1_glow_imagenet",
    "selfnorm_glow_imagenet",
    "relative_fc_mnist",
]


def small_images(channels=1, seed=0):
    rng = np.random.default_rng(seed)
    arrays = (rng.integers(0, 256, [count, 4, 4, channels], dtype=np.uint8) for count in (12, 5, 6))
    return DataSet(*arrays, num_levels=256)


@pytest.fixture
def on_small_images(monkeypatch):
    monkeypatch.setattr(train, "load", lambda name, data_dir: small_images(1 if "mnist" in name else 3))


def tiny(name="tracked_fc_mnist", **changes):
    preset = PRESETS[name]
    return overridden(preset, {**TINY[preset.builder], "batch_size": 4, **changes})


def test_the_presets_of_the_published_code_are_there():
    assert set(OFFICIAL) <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_takes_training_steps(name):
    preset = tiny(name)
    data = small_images(1 if "mnist" in preset.dataset else 3)
    model = preset.make_model(data, seed=1)
    events = list(batches(data.train, 4, seed=1, training=True, augment=preset.augment))
    model.adapt(events[0])
    # Eager: tracing them all takes minutes.
    model.compile(preset.make_optimizer(steps_per_epoch=3), run_eagerly=True)
    before = [variable.numpy() for variable in model.trainable_variables]
    for batch in events:
        assert np.isfinite(model.train_on_batch(batch)).all()
    assert any(
        (variable.numpy() != old).any()
        for variable, old in zip(model.trainable_variables, before, strict=True)
    )


def test_an_epoch_repeats_the_training_examples_and_few_others_are_scored():
    data = small_images()
    few = tiny("dense_digits", repeats=3, num_validation=2, num_test=4).portions(data)
    np.testing.assert_array_equal(few.train, np.concatenate(3 * [data.train]))
    np.testing.assert_array_equal(few.validation, data.validation[:2])
    np.testing.assert_array_equal(few.test, data.test[:4])
    assert few.num_levels == 256
    whole = tiny().portions(data)
    assert [len(part) for part in (whole.train, whole.validation, whole.test)] == [12, 5, 6]


def test_a_free_form_run_tells_how_good_its_inverses_are(on_small_images, tmp_path):
    results = train.train(tiny("free_form_mnist", epochs=1), output=tmp_path, verbose=0)
    assert 0.0 < results["jacobian_error"] < 0.1
    assert 0.0 < results["test_reconstruction"] < 0.1
    assert not train.inverse_errors(sn.dense_flow(2, seed=1))


def test_what_a_run_writes(on_small_images, tmp_path):
    results = train.train(tiny("selfnorm_fc_mnist", epochs=1), output=tmp_path, verbose=0)
    assert np.isfinite(results["test_nll"])
    assert results["epochs"] == results["best_epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "metrics.csv",
        "metrics.json",
        "results.json",
        "best.keras",
        "epoch_00001.keras",
        "curves.png",
        "samples",
    }


def test_a_preset_on_the_mocked_mnist_of_tfds(tmp_path):
    with tfds.testing.mock_data(num_examples=8):
        results = train.train(tiny(epochs=1), output=tmp_path, data_dir=tmp_path / "data", verbose=0)
    assert np.isfinite(results["test_bits_per_dim"])


@pytest.mark.parametrize("steps", [None, 2])
def test_a_killed_run_goes_on_as_if_it_had_not_been(on_small_images, monkeypatch, tmp_path, steps):
    preset = tiny(epochs=4, steps_per_epoch=steps)
    whole = train.train(preset, output=tmp_path / "whole", verbose=0)

    def kill(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Checkpoints, "on_epoch_begin", kill)
        with pytest.raises(KeyboardInterrupt):
            train.train(preset, output=tmp_path / "killed", verbose=0)
    assert len(train.read_rows(tmp_path / "killed" / "metrics.csv")) == 2
    resumed = train.train(preset, output=tmp_path / "killed", verbose=0)
    figures = ("epochs", "best_epoch", "val_nll", "test_nll")
    assert [resumed[name] for name in figures] == [whole[name] for name in figures]
    # And a third time, when nothing is left to do.
    assert train.train(preset, output=tmp_path / "killed", verbose=0)["test_nll"] == whole["test_nll"]


def test_figures_without_their_checkpoint_are_trained_again(on_small_images, tmp_path):
    preset = tiny(epochs=1)
    train.train(preset, output=tmp_path, verbose=0)
    # Nothing is left to do, and no model is loaded.
    model, rows = train.resume(tmp_path, 1)
    assert model is None
    assert [row["epoch"] for row in rows] == [1]
    train.checkpoint(tmp_path, 1).unlink()
    model, rows = train.resume(tmp_path, 1)
    assert model is None
    assert rows == []


def test_an_epoch_of_few_steps_takes_these_alone(on_small_images, tmp_path, monkeypatch):
    seen = []
    fit = sn.FlowModel.fit

    def counted(model, data, **options):
        result = fit(model, data, **options)
        seen.append(int(model.optimizer.iterations))
        return result

    monkeypatch.setattr(sn.FlowModel, "fit", counted)
    train.train(tiny(epochs=3, steps_per_epoch=2), output=tmp_path, verbose=0)
    assert seen == [6]


def test_the_time_limit_ends_training_after_a_whole_epoch(on_small_images, tmp_path, capfd):
    results = train.train(tiny(epochs=5), output=tmp_path, time_limit=1e-3, verbose=0)
    assert results["epochs"] == 1
    assert "time limit of 0.001 s" in capfd.readouterr().out


def test_another_run_is_not_written_over(on_small_images, tmp_path):
    train.train(tiny(epochs=1), output=tmp_path, verbose=0)
    with pytest.raises(SystemExit, match=r"holds another run: seed, learning_rate differ"):
        train.train(tiny(epochs=1, learning_rate=0.5), seed=2, output=tmp_path, verbose=0)


def test_changes_of_presets():
    preset = overridden(
        PRESETS["tracked_fc_mnist"],
        {"flow.num_layers": 3, "inverse_learning.num_probes": 8, "learning_rate": 0.5},
    )
    assert preset.flow == {"num_layers": 3, "activation": "smooth_leaky_relu"}
    assert preset.inverse_learning == sn.Tracking(num_probes=8)
    assert preset.learning_rate == 0.5
    assert PRESETS["tracked_fc_mnist"].flow["num_layers"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0}, "no `rate` to set: Preset has one of .* named 'rate'"),
        ({"inverse_learning.weight": 1.0}, "no `inverse_learning.weight` to set: Tracking has one of"),
        ({"schedule": "linear"}, "`schedule` must be one of .*'cosine'.*; got 'linear'"),
        ({"builder": "cnn"}, "`builder` must be one of .*'conv_flow'"),
        ({"epochs": 0}, "`epochs` must be positive; got 0"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be positive, or None; got 0"),
        ({"warmup_epochs": -1}, "`warmup_epochs` must be 0 or more, or None; got -1"),
        ({"inverse_learning.num_probes": 0}, "`num_probes` must be a positive int; got 0"),
    ],
)
def test_wrong_changes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        overridden(PRESETS["tracked_fc_mnist"], changes)


def rates(**changes):
    preset = dataclasses.replace(PRESETS["tracked_fc_mnist"], learning_rate=1.0, **changes)
    schedule = preset.make_optimizer(steps_per_epoch=10)._learning_rate
    return [float(schedule(step)) for step in (0, 5, 10, 20, 60, 99, 100)]


def test_schedules():
    np.testing.assert_allclose(
        rates(epochs=10, schedule="constant", warmup_epochs=1), [0, 0.5, 1, 1, 1, 1, 1]
    )
    np.testing.assert_allclose(rates(epochs=10, schedule="constant", warmup_epochs=0), [1] * 7)
    half_cosine = [0.5 + 0.5 * np.cos(np.pi * (step - 5) / 95) for step in (5, 10, 20, 60, 99, 100)]
    np.testing.assert_allclose(
        rates(epochs=10, schedule="cosine", warmup_epochs=None), [0, *half_cosine], atol=1e-6
    )


def run_main(module, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def test_command_line_and_comparison(tmp_path, monkeypatch, capfd):
    settings = ["dataset=two_moons", "batch_size=5000", "flow.activation=spline", "--verbose", 0]
    for seed in (1, 2):
        arguments = ["tracked_fc_mnist", "--epochs", 2, "--seed", seed, "--output", tmp_path / f"run_{seed}"]
        run_main(train, [*arguments, "--set", *settings], monkeypatch)
    assert (tmp_path / "run_1" / "samples.png").stat().st_size > 5_000
    assert "--seed 1" in json.loads((tmp_path / "run_1/config.json").read_text())["command"]
    capfd.readouterr()
    run_main(compare, [f"moons={tmp_path}/run_*", "--output", tmp_path / "out"], monkeypatch)
    printed = capfd.readouterr().out
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        results = [float(row["test_nll"]) for row in csv.DictReader(file)]
    mean, deviation = np.mean(results), np.abs(results[0] - results[1]) / np.sqrt(2)
    assert f"| moons | 2 | 2 | {mean:.1f} ± {deviation:.1f} | - |" in printed
    assert len((tmp_path / "out" / "curves.csv").read_text().splitlines()) == 5
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5_000


def test_command_line_refuses_what_it_cannot_run(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no `rate` to set"):
        run_main(train, ["tracked_fc_mnist", "--set", "rate=1"], monkeypatch)
    with pytest.raises(SystemExit, match="--set takes path=value; got 'rate'"):
        run_main(train, ["tracked_fc_mnist", "--set", "rate"], monkeypatch)
    with pytest.raises(SystemExit, match="No finished run fits"):
        run_main(compare, [f"a={tmp_path}/none*"], monkeypatch)
    with pytest.raises(SystemExit, match="a label and a pattern"):
        run_main(compare, ["runs"], monkeypatch)
