"""The data of the experiments: their splits, and batches of them."""

import data_sets
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from data_sets import batches
from sklearn import datasets


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mnist", (28, 28, 1)),
        ("fashion_mnist", (28, 28, 1)),
        ("cifar10", (32, 32, 3)),
        ("downsampled_imagenet/32x32", (32, 32, 3)),
    ],
)
def test_data_of_tfds(name, shape, tmp_path):
    splits = []

    def as_dataset(self, split, **kwargs):
        splits.append(split)
        return tf.data.Dataset.from_tensors({"image": tf.ones(shape, tf.uint8)}).repeat(len(splits))

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        data = data_sets.load(name, tmp_path)
    held_out = 20_000 if "imagenet" in name else 10_000
    tested = "validation" if "imagenet" in name else "test"
    assert splits == [f"train[:-{held_out}]", f"train[-{held_out}:]", tested]
    assert [part.shape for part in (data.train, data.validation, data.test)] == [
        (count, *shape) for count in (1, 2, 3)
    ]
    assert data.train.dtype == np.uint8
    assert data.num_levels == 256


@pytest.mark.parametrize(
    ("name", "side", "counts"),
    [
        ("photo_patches", 32, (20_000, 2_000, 2_000)),
        ("photo_patches/16", 16, (20_000, 2_000, 2_000)),
        # One column of each strip, 364 rows, two photographs.
        ("photo_patches/64", 64, (20_000, 728, 728)),
    ],
)
def test_patches_of_photographs(name, side, counts):
    data, again = data_sets.load(name), data_sets.load(name)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    assert [part.shape for part in splits.values()] == [(count, side, side, 3) for count in counts]
    assert data.train.dtype == np.uint8
    assert data.num_levels == 256
    for part, other in ((data.train, again.train), (data.validation, again.validation)):
        np.testing.assert_array_equal(part, other)
    photographs = datasets.load_sample_images().images
    for split, part in splits.items():
        for patch in part[:5]:
            # Where its first pixels are in a photograph.
            found = [
                (photograph, row, column)
                for photograph in photographs
                for row, column in np.argwhere(
                    (photograph[: 1 - side, : 1 - side] == patch[0, 0]).all(axis=-1)
                )
                if (photograph[row : row + side, column : column + side] == patch).all()
            ]
            assert any(
                first <= column and column + side <= last
                for _, _, column in found
                for first, last in data_sets._STRIPS[split]
            )
    strips = sorted(strip for strips in data_sets._STRIPS.values() for strip in strips)
    assert all(last <= first for (_, last), (first, _) in zip(strips, strips[1:], strict=False))
    assert [strips[0][0], strips[-1][1]] == [0, photographs[0].shape[1]]


def read(data):
    return np.concatenate(list(data.as_numpy_iterator()))


def test_batches_are_shuffled_and_dequantised_anew_in_each_epoch():
    pictures = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    two = read(batches(pictures, 4, seed=1, epochs=range(2), training=True)).reshape(2, 12)
    assert [sorted(epoch) for epoch in np.floor(two).tolist()] == [list(range(12))] * 2
    assert (np.floor(two[0]) != np.floor(two[1])).any()
    noise = [epoch[np.argsort(epoch)] - np.arange(12) for epoch in two]
    assert np.unique(noise).size == 24
    # As a run that begins with the second epoch sees it.
    np.testing.assert_array_equal(
        read(batches(pictures, 4, seed=1, epochs=range(1, 2), training=True)).ravel(), two[1]
    )
    other = read(batches(pictures, 4, seed=2, epochs=range(1), training=True)).ravel()
    assert (other != two[0]).any()


def test_an_epoch_of_fewer_steps_is_the_first_part_of_a_whole_one():
    pictures = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    whole = read(batches(pictures, 3, seed=1, epochs=range(2), training=True)).reshape(2, 12)
    part = batches(pictures, 3, seed=1, epochs=range(2), training=True, steps=2)
    assert int(part.cardinality()) == 4
    np.testing.assert_array_equal(read(part).reshape(2, 6), whole[:, :6])
    with pytest.raises(ValueError, match="`steps` must be from 1 to those of all events, 4; got 5"):
        batches(pictures, 3, seed=1, training=True, steps=5)


def test_batches_for_evaluation_are_in_order_whole_and_the_same_each_time():
    pictures = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    data = batches(pictures, 4, seed=1)
    np.testing.assert_array_equal(np.floor(read(data)).ravel(), np.arange(10))
    np.testing.assert_array_equal(read(data), read(data))
    assert int(data.cardinality()) == 3


def test_points_stay_as_they_are():
    points = np.random.default_rng(0).normal(size=[6, 2]).astype(np.float32)
    np.testing.assert_array_equal(read(batches(points, 3, seed=1)), points)


def test_augmentation_mirrors_and_moves_by_a_pixel():
    picture = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    seen = np.floor(read(batches(np.repeat(picture, 600, 0), 600, 1, training=True, augment=True)))
    expected = set()
    for mirrored in (picture[0], picture[0, :, ::-1]):
        padded = np.pad(mirrored, [(1, 1), (1, 1), (0, 0)], mode="edge")
        expected |= {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    assert {image.astype(np.uint8).tobytes() for image in seen} == expected


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be from 1 to the number of events, 3; got 4"):
        batches(np.zeros([3, 2], np.float32), 4, seed=1)
