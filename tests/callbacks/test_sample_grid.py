"""Sample grids show the samples."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from watched_models import LEVELS, begin, compiled, dense_images, expected_grid, pixel_noise, read_png

import tfp_selfnorm as sn
from tfp_selfnorm.callbacks import SampleGrid

tfd = tfp.distributions


@pytest.mark.parametrize(
    ("event_shape", "columns"), [((4, 5), 3), ((4, 5, 1), 3), ((3, 2, 3), 3)], ids=["plain", "grey", "rgb"]
)
def test_the_grid_shows_the_samples(tmp_path, event_shape, columns):
    model = compiled(pixel_noise(event_shape))
    grid = begin(
        SampleGrid(tmp_path / "new" / "{epoch:03d}.png", LEVELS, num_samples=7, every_epochs=2, seed=5), model
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
