"""The toy densities, their gallery, and the benchmark of scaling, at a small size."""

import csv

import cases
import numpy as np
import pytest
import scaling
import tensorflow as tf
from test_examples import run_example
from toy_data import TOYS, log_prob


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("toy", TOYS)
def test_toys_are_reproducible_and_bounded(toy):
    points = TOYS[toy](5000, seed=3)
    assert points.shape == (5000, 2)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, TOYS[toy](5000, seed=3))
    assert np.abs(points - TOYS[toy](5000, seed=4)).max() > 1.0
    assert 1.5 < np.abs(points).max() <= 4.0 + 0.5 * (toy != "checkerboard")
    # The second half comes from the same density as the first: there is no order to depend on.
    np.testing.assert_allclose(points[:2500].mean(axis=0), points[2500:].mean(axis=0), atol=0.2)
    assert TOYS[toy](1, seed=0).shape == (1, 2)


@pytest.mark.parametrize("toy", TOYS)
def test_toys_refuse_to_draw_nothing(toy):
    with pytest.raises(ValueError, match=r"`num_points` must be 1 or more; got 0\."):
        TOYS[toy](0, seed=0)


def test_the_checkerboard_fills_its_dark_squares_evenly():
    points = TOYS["checkerboard"](8000, seed=0).astype(np.float64)
    column, row = np.clip(np.floor((points + 4.0) / 2.0), 0, 3).astype(int).T
    assert np.all((column + row) % 2 == 0)
    counts = np.bincount(4 * column + row, minlength=16)
    assert np.abs(counts[counts > 0] - 1000).max() < 150
    assert (counts > 0).sum() == 8


def test_the_rings_have_their_radii():
    radius = np.linalg.norm(TOYS["rings"](6000, seed=0), axis=1)
    nearest = np.abs(radius[:, np.newaxis] - [1.0, 2.1, 3.2])
    assert nearest.min(axis=1).max() < 0.6
    shares = np.bincount(nearest.argmin(axis=1)) / 6000
    np.testing.assert_allclose(shares, np.array([1.0, 2.1, 3.2]) / 6.3, atol=0.03)


@pytest.mark.parametrize("toy", TOYS)
def test_the_densities_of_the_toys(toy):
    """They integrate to 1, and their share of each quarter of the board is the one of the points."""
    side = (np.arange(400) + 0.5) * 0.025 - 5.0
    centres = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    cells = np.exp(log_prob(toy, centres.reshape(-1, 2))).reshape(400, 400) * 0.025**2
    assert cells.sum() == pytest.approx(1.0, abs=1e-6)
    points = TOYS[toy](20_000, seed=5)
    shares = cells.reshape(10, 40, 10, 40).sum(axis=(1, 3))
    drawn = np.histogram2d(*points.T, bins=10, range=[[-5, 5]] * 2)[0] / len(points)
    np.testing.assert_allclose(drawn, shares, atol=0.01)


def test_toy_gallery(tmp_path, monkeypatch, capfd):
    """Trained for one tiny step, the flow has the density of its base, known for the held-out points."""
    arguments = ["--toys", "two_moons", "--couplings", 1, "--bins", 4, "--width", 8, "--steps", 1]
    arguments += ["--pairs", 1, "--free-form-width", 8, "--free-form-steps", 1, "--free-form-rate", 1e-6]
    arguments += ["--points", 500, "--cells", 40, "--learning-rate", 1e-6, "--output", tmp_path]
    run_example("toy_gallery.py", arguments, monkeypatch)
    assert "two_moons" in capfd.readouterr().out
    splines, free_form = read(tmp_path / "toy_gallery.csv")
    assert (splines["toy"], splines["flow"], splines["steps"]) == ("two_moons", "splines", "1")
    assert (free_form["flow"], free_form["held_out_points"]) == ("free_form", "500")
    held_out = TOYS["two_moons"](500, seed=2)
    expected = np.log(2.0 * np.pi) + 0.5 * np.mean(np.sum(held_out**2, axis=1))
    assert float(splines["test_nll"]) == pytest.approx(expected, abs=0.02)
    # It begins as the normal distribution with the moments of the data.
    covariance = np.cov(TOYS["two_moons"](512, seed=1), rowvar=False)
    gaussian = np.log(2.0 * np.pi * np.e) + 0.5 * np.linalg.slogdet(covariance)[1]
    assert float(free_form["test_nll"]) == pytest.approx(gaussian, abs=0.1)
    for row in (splines, free_form):
        assert float(row["entropy"]) == pytest.approx(-log_prob("two_moons", held_out).mean(), abs=1e-4)
        assert float(row["inverse_error"]) < 1e-3
        assert 0.9 < float(row["mass"]) <= 1.0
    assert 10_000 < (tmp_path / "toy_gallery.png").stat().st_size < 300_000


def test_benchmark_scaling(tmp_path, monkeypatch, capfd):
    table, plot = tmp_path / "scaling.csv", tmp_path / "scaling.png"
    arguments = ["--sizes", 16, 32, "--batch", 4, "--repeats", 2, "--csv", table, "--plot", plot]
    run_example("scaling.py", arguments, monkeypatch)
    assert "exponents" in capfd.readouterr().out
    rows = read(table)
    assert {(row["layer"], row["D"], row["event"]) for row in rows} == {
        ("dense", "16", "16"),
        ("dense", "32", "32"),
        ("conv", "16", "4x4x1"),
        ("conv", "32", "4x8x1"),
    }
    assert len(rows) == 2 * 2 * 3
    assert all(0.0 < float(row["quartile_1_ms"]) <= float(row["quartile_3_ms"]) for row in rows)
    assert plot.stat().st_size > 10_000


def test_the_two_exact_steps_of_a_convolution_agree():
    shape = scaling.image_shape(12)
    x = tf.constant(np.random.default_rng(0).normal(size=[4, *shape]), tf.float32)
    layer = cases.make_convolution(shape, "exact")
    layer.inverse_kernel.assign_add(0.1 * np.random.default_rng(1).normal(size=[3, 3, 1, 1]))
    _, ours = cases.flow_step(layer, None, x)()
    _, dense = cases.dense_matrix_step(layer, x)()
    for gradient, expected in zip(ours, dense, strict=True):
        np.testing.assert_allclose(gradient, np.reshape(expected, gradient.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "shape"), [(32, (4, 8, 1)), (4096, (64, 64, 1)), (784, (28, 28, 1)), (7, (1, 7, 1))]
)
def test_images_are_as_square_as_can_be(size, shape):
    assert scaling.image_shape(size) == shape


@pytest.mark.parametrize("exponent", [1.0, 1.5, 3.0])
def test_fitted_exponent_of_a_power_law(exponent):
    sizes = [256, 64, 512, 32, 128]
    times = [1e-4 * size**exponent for size in sizes]
    fitted, start = scaling.fitted_exponent(sizes, times)
    assert fitted == pytest.approx(exponent)
    assert times[sizes.index(start)] > 4.0 * times[sizes.index(32)]


def test_fitted_exponent_leaves_out_the_overhead():
    sizes = np.array([32, 64, 128, 256, 512, 1024, 2048, 4096])
    fitted, start = scaling.fitted_exponent(sizes, 1.0 + 1e-7 * sizes**3.0)
    assert start == 512
    assert 2.8 < fitted < 3.0


def test_no_exponent_where_all_is_overhead():
    assert scaling.fitted_exponent([16, 32, 64], [1.0, 1.1, 1.2]) == (None, None)


def test_methods_that_grow_too_slow_drop_out(monkeypatch):
    class Arguments:
        batch, repeats, seconds, longest_step = 2, 1, 0.1, 1e-9

    makers = scaling.dense_makers
    monkeypatch.setitem(scaling.LAYERS, "dense", lambda size: dict([*makers(size).items()][:1]))
    rows = list(scaling.rows_of("dense", [8, 4], Arguments))
    assert [row["D"] for row in rows] == [4]
