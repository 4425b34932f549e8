"""The benchmark of several libraries: its data, and a run of it with two flows of TensorFlow."""

import csv
import sys

import numpy as np
import one_side
import pytest
import side_by_side
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn

tfb, tfd = tfp.bijectors, tfp.distributions


def test_the_likelihood_of_pixels_is_that_of_tfp(tmp_path):
    side_by_side.write_digits(tmp_path / "digits.npz")
    data = one_side.Digits(tmp_path / "digits.npz", seed=1)
    events = data.validation.astype(np.float64)
    to_pixels = tfb.Chain(
        [sn.images.pixel_sigmoid(17, dtype=tf.float64), tfb.Shift(data._mean), tfb.Scale(data._deviation)]
    )
    base = tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 1.0), 64)
    pixels = tf.identity(to_pixels.forward(events))
    expected = np.mean(tfd.TransformedDistribution(base, to_pixels).log_prob(pixels))
    np.testing.assert_allclose(np.mean(base.log_prob(events)) + data.log_det, expected, rtol=1e-6)
    # The noise is within its grey level, and new in each pass.
    assert np.asarray(pixels).min() >= 0.0
    assert np.asarray(pixels).max() <= 17.0
    first, second = (data.training_events() for _ in range(2))
    np.testing.assert_allclose(first.std(axis=0), 1.0, atol=0.05)
    assert first.shape == second.shape == (12_000, 64)
    assert (first != second).any()


def test_turns_and_trainings(tmp_path, monkeypatch, capfd):
    names = ("ours, exact gradient", "TFP, ScaleMatvecLU, products")
    monkeypatch.setattr(side_by_side, "CASES", [case for case in side_by_side.CASES if case[1] in names])
    monkeypatch.setattr(side_by_side, "FAMILIES", {"dense": side_by_side.Family(1e-3, None, 1e9)})

    def rows_of(part, file, *options):
        options = ["--csv", str(tmp_path / file), "--repeats", "2", *options]
        monkeypatch.setattr(sys, "argv", ["x", part, *options])
        side_by_side.main()
        with open(tmp_path / file, newline="") as opened:
            return list(csv.DictReader(opened))

    rows = rows_of("steps", "table.csv", "--seconds", "0")
    assert [(row["seed"], row["case"]) for row in rows] == [(seed, name) for seed in "12" for name in names]
    assert all(float(row["step_cpu_ms"]) > 0.0 for row in rows)
    # All reach the target after one round. A target of 0 is missed, so that there is no second seed.
    reached = rows_of("fits", "table.csv")[4:]
    assert [row["seed"] for row in reached] == ["1", "1", "2", "2"]
    assert all(float(row["reached_cpu_s"]) > 0.0 and int(row["steps"]) == 120 for row in reached)
    missed = rows_of("fits", "missed.csv", "--target", "0", "--limit", "0.01")
    assert [(row["seed"], row["reached_cpu_s"]) for row in missed] == [("1", ""), ("1", "")]
    assert all(90.0 < float(row["val_nll"]) < 130.0 for row in missed)
    printed = capfd.readouterr().out
    assert "| dense | ours, exact gradient |" in printed
    assert " after " in printed


def test_a_process_that_fails_says_so(capfd):
    process = side_by_side.Process(sys.executable, "no_such_module")
    with pytest.raises(SystemExit, match="ended at"):
        process.ask(task="steps")
    assert "no_such_module" in capfd.readouterr().err
    process.close()
