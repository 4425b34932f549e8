"""The data of the examples: images of TFDS, scikit-learn's digits and photographs, and 2-D toy densities.

All of a data set is held in memory, images as bytes (downsampled ImageNet: 4 GB). Batches are a function of
the seed, the epoch and the step alone, so that a training which was killed goes on with the data it would
have seen.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from toy_data import TOYS

from tfp_selfnorm import images

# Of the paper: how many training examples are kept for validation, and which split is tested.
PAPER_SPLITS = {
    "mnist": (10_000, "test"),
    "fashion_mnist": (10_000, "test"),
    "cifar10": (10_000, "test"),
    "downsampled_imagenet/32x32": (20_000, "validation"),
}
_TOY_SIZES = (50_000, 10_000, 10_000)
_SHIFT = 1
# The sides of the patches of photographs, the vertical strips of pixels that they are cut from, and how many
# there are at most.
_PATCH_SIDES = {"photo_patches": 32, **{f"photo_patches/{side}": side for side in (16, 32, 64)}}
_STRIPS = {
    "train": ((0, 192), (256, 448), (512, 640)),
    "validation": ((192, 256),),
    "test": ((448, 512),),
}
_PATCHES = {"train": 20_000, "validation": 2_000, "test": 2_000}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Three arrays of events; `num_levels` is the number of grey levels of images, and else `None`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    num_levels: int | None

    @property
    def event_shape(self):
        return self.train.shape[1:]


def load(name, data_dir=None):
    """The data set of that name: `digits`, `photo_patches`, one of `toy_data.TOYS`, or one of TFDS.

    The patches are 32x32, of `photo_patches/16` and `photo_patches/64` 16x16 and 64x64. TFDS may download.
    """
    if name in TOYS:
        splits = [TOYS[name](size, seed).astype(np.float32) for seed, size in enumerate(_TOY_SIZES)]
        return DataSet(*splits, num_levels=None)
    if name == "digits":
        return _digits()
    if name in _PATCH_SIDES:
        return _photo_patches(_PATCH_SIDES[name])
    return _of_tfds(name, data_dir)


def batches(events, batch_size, seed, epochs=range(1), training=False, augment=False, steps=None):
    """A `tf.data.Dataset` of float32 batches, images dequantised, over one epoch or more.

    For training each epoch is shuffled anew, without a smaller last batch, and has noise of its own; else the
    events come in order, with the same noise whenever they are read again.

    Args:
      events: `[number, *event_shape]`, integers for images.
      batch_size: number of events in a batch, no more than there are.
      seed: int.
      epochs: range of the epochs to go through, one after the other.
      training: whether the batches are for training.
      augment: whether to mirror images and move them by a pixel at most, as the paper does for CIFAR-10.
      steps: number of batches of an epoch, at most all of them, which is the default.
    """
    count = len(events)
    if not 1 <= batch_size <= count:
        raise ValueError(f"`batch_size` must be from 1 to the number of events, {count}; got {batch_size}.")
    all_steps = count // batch_size if training else -(-count // batch_size)
    steps = all_steps if steps is None else steps
    if not 1 <= steps <= all_steps:
        raise ValueError(f"`steps` must be from 1 to those of all events, {all_steps}; got {steps}.")
    events = tf.constant(events)

    def epoch_of(epoch):
        key = tf.stack([seed, tf.cast(epoch, tf.int32)])
        order = tf.range(count)
        if training:
            order = tf.random.experimental.stateless_shuffle(order, key)

        def batch_of(step):
            rows = order[step * batch_size : (step + 1) * batch_size]
            step_key = tf.random.experimental.stateless_fold_in(key, step)
            return _prepared(tf.gather(events, rows), step_key, augment)

        return tf.data.Dataset.range(steps, output_type=tf.int32).map(batch_of, num_parallel_calls=1)

    data = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(epoch_of)
    return data.apply(tf.data.experimental.assert_cardinality(steps * len(epochs))).prefetch(2)


def _prepared(events, key, augment):
    if augment:
        events = _augmented(events, tf.random.experimental.stateless_fold_in(key, 1))
    return images.dequantize(events, seed=key) if events.dtype.is_integer else events


def _augmented(pictures, key):
    """Mirrored at random, and moved by a pixel at most; what comes in repeats the edge."""
    flips, shifts = tf.unstack(tf.random.experimental.stateless_split(key, 2))
    count, height, width = tf.shape(pictures)[0], pictures.shape[1], pictures.shape[2]
    mirror = tf.random.stateless_uniform([count, 1, 1, 1], flips) < 0.5
    pictures = tf.where(mirror, tf.reverse(pictures, axis=[2]), pictures)
    moves = tf.random.stateless_uniform([count, 2], shifts, -_SHIFT, _SHIFT + 1, dtype=tf.int32)
    rows = tf.clip_by_value(tf.range(height) + moves[:, :1], 0, height - 1)
    columns = tf.clip_by_value(tf.range(width) + moves[:, 1:], 0, width - 1)
    pictures = tf.gather(pictures, rows, axis=1, batch_dims=1)
    return tf.gather(pictures, columns, axis=2, batch_dims=1)


def _digits():
    from sklearn import datasets

    pictures = datasets.load_digits().images.astype(np.uint8)[..., np.newaxis]
    pictures = pictures[np.random.default_rng(0).permutation(len(pictures))]
    return DataSet(pictures[:1297], pictures[1297:1547], pictures[1547:], num_levels=17)


def _photo_patches(side):
    """Random colour patches of scikit-learn's two photographs.

    Training, validation and test patches come from vertical strips that share no pixel. No patch comes twice.
    """
    from sklearn import datasets

    photographs = np.stack(datasets.load_sample_images().images)
    windows = np.lib.stride_tricks.sliding_window_view(photographs, (side, side), axis=(1, 2))
    rng = np.random.default_rng(0)
    splits = {}
    for name, strips in _STRIPS.items():
        columns = np.concatenate([np.arange(first, last - side + 1) for first, last in strips])
        shape = len(photographs), windows.shape[1], len(columns)
        chosen = rng.choice(np.prod(shape), min(_PATCHES[name], np.prod(shape)), replace=False)
        photograph, row, column = np.unravel_index(chosen, shape)
        patches = windows[photograph, row, columns[column]]
        splits[name] = np.ascontiguousarray(np.moveaxis(patches, 1, -1))
    return DataSet(**splits, num_levels=256)


def _of_tfds(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises as many kinds as there are ways to be offline.
        raise SystemExit(
            f"TFDS could not load or download {name!r}: {type(error).__name__}: {error}\n"
            "If the data set is prepared already, name its folder with --data-dir. Without a network, "
            f"--dataset digits needs no download, nor does any of {', '.join(TOYS)}."
        ) from None
    if "image" not in builder.info.features:
        raise SystemExit(f"{name!r} has no feature named 'image'; it has {list(builder.info.features)}.")
    if name in PAPER_SPLITS:
        held_out, test = PAPER_SPLITS[name]
    else:
        test = "test" if "test" in builder.info.splits else "validation"
        held_out = builder.info.splits["train"].num_examples // 6
    splits = [f"train[:-{held_out}]", f"train[-{held_out}:]", test]
    return DataSet(*(_read(tfds, builder, split) for split in splits), num_levels=256)


def _read(tfds, builder, split):
    data = builder.as_dataset(split=split).map(lambda example: example["image"]).batch(1000)
    return np.concatenate(list(tfds.as_numpy(data)))
