"""`SampleGrid`: pictures of samples."""

import math
import os
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.callbacks.shared import FlowCallback, check_path
from tfp_selfnorm.utils.integers import check_int, check_positive_int
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.seeds import check_seed
from tfp_selfnorm.utils.types import Seed

_RED, _GREY = (255, 0, 0), 128


class SampleGrid(FlowCallback):
    """Draws samples at the end of epochs as one picture: a PNG file, an image in TensorBoard, or both.

    With a `ConditionalFlowModel` each condition has a row of its own, of `num_samples` samples.

    The latents are the same each time, so that epochs can be compared. The samples fill a square, or almost a
    square, row by row, with grey lines between them. A pixel is rounded down to its level, and clipped to
    levels from 0 (black) to `num_levels - 1` (white). Pixels that are not finite are red, and a warning gives
    the number of samples with such pixels. Each picture costs one `model.sample`.

    Args:
      filepath: path of the PNG (RGB), for example `samples/{epoch:03d}.png`. Epochs count from 1. Without
        `{epoch}`, each picture overwrites the last. Missing folders are made.
      num_levels: number of levels of a pixel, 256 for 8-bit images.
      num_samples: number of samples.
      every_epochs: number of epochs from one picture to the next.
      exact: whether to sample by the exact inverse, at O(D^3), instead of the learned inverse.
      seed: int or stateless TFP seed.
      log_dir: folder for TensorBoard, which must be installed. The image is called `samples`.
      condition: for a `ConditionalFlowModel`, a batch of conditions.

    Raises:
      ImportError: if `log_dir` is given and TensorBoard is not installed.
      TypeError: if an argument has another type; when training begins, if the model is no `FlowModel`.
      ValueError: if neither `filepath` nor `log_dir` is given, `filepath` has another field, or a number is
        out of range; when training begins, if the events are no images of shape (height, width),
        (height, width, 1) or (height, width, 3).

    >>> import os
    >>> import tempfile
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> from tfp_selfnorm.callbacks import SampleGrid
    >>> pixels = sn.images.pixel_sigmoid(num_levels=16)
    >>> model = sn.FlowModel(sn.dense_flow((4, 4), num_layers=1, preprocessing=pixels, seed=1))
    >>> model.compile("adam")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grid = SampleGrid(os.path.join(folder, "{epoch:03d}.png"), num_levels=16, num_samples=9)
    ...     history = model.fit(tf.fill([8, 4, 4], 3.5), epochs=2, callbacks=[grid], verbose=0)
    ...     sorted(os.listdir(folder))
    ['001.png', '002.png']
    """

    def __init__(
        self,
        filepath: str | os.PathLike | None = None,
        num_levels: int = 256,
        num_samples: int = 64,
        every_epochs: int = 1,
        exact: bool = False,
        seed: Seed = 0,
        log_dir: str | os.PathLike | None = None,
        *,
        condition: Any = None,
    ) -> None:
        if filepath is None and log_dir is None:
            raise ValueError("`filepath` or `log_dir` must be given, for the pictures; got neither.")
        self.filepath = None if filepath is None else _check_pattern(check_path(filepath, "filepath"))
        self.num_levels = check_int(num_levels, "num_levels", lowest=2)
        self.num_samples = check_positive_int(num_samples, "num_samples")
        self.every_epochs = check_positive_int(every_epochs, "every_epochs")
        self.exact = check_bool(exact, "exact")
        check_seed(seed)
        self.seed, self.condition = seed, condition
        super().__init__(log_dir)

    def on_train_begin(self, logs: dict | None = None) -> None:
        distribution = self.scored_distribution
        batch, event = distribution.batch_shape, distribution.event_shape
        if batch.rank != 0 or not (event.rank == 2 or (event.rank == 3 and event[-1] in (1, 3))):
            raise ValueError(
                "The events must be images of shape (height, width), (height, width, 1) or (height, width, "
                f"3) for SampleGrid; got event shape {tuple(event)} and batch shape {batch}."
            )

        self.checked_condition(self.condition)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        epoch += 1
        if epoch % self.every_epochs:
            return
        samples, columns = self._samples()
        finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
        if not finite.all():
            warnings.warn(
                f"{np.sum(~finite)} of {len(finite)} samples after epoch {epoch} hold values that are not "
                "finite; SampleGrid draws these pixels in red.",
                stacklevel=2,
            )
        grid = image_grid(samples, self.num_levels, columns)
        if self.filepath is not None:
            tf.io.write_file(self.filepath.format(epoch=epoch), tf.io.encode_png(grid))
        self.summarize(tf.summary.image, "samples", grid[np.newaxis], epoch)

    def _samples(self):
        """The samples, and the number of them in a row of the picture; `None` for a square."""
        options = {"seed": self.seed, "exact": self.exact}
        if self.model.conditions is None:
            return self.model.sample(self.num_samples, **options).numpy(), None
        samples = self.model.sample(self.num_samples, self.checked_condition(self.condition), **options)
        ndims = self.scored_distribution.event_shape.rank
        samples = np.reshape(samples, [self.num_samples, -1, *samples.shape[-ndims:]])
        return samples.swapaxes(0, 1).reshape(-1, *samples.shape[2:]), self.num_samples


def image_grid(samples: np.ndarray, num_levels: int, columns: int | None = None) -> np.ndarray:
    """One RGB picture, uint8, of the samples `(number, height, width)`, with 1, 3 or no channels."""
    images = samples if samples.ndim == 4 else samples[..., np.newaxis]
    finite = np.isfinite(images).all(axis=-1, keepdims=True)
    levels = np.floor(np.clip(np.where(finite, images, 0.0), 0.0, num_levels - 1.0))
    # One grey channel is broadcast to the three channels of red.
    colours = np.where(finite, np.rint(levels * (255.0 / (num_levels - 1.0))), _RED).astype(np.uint8)
    number, height, width, _ = colours.shape
    columns = columns or math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    padding = [(0, rows * columns - number), (0, 1), (0, 1), (0, 0)]
    cells = np.pad(colours, padding, constant_values=_GREY).reshape(rows, columns, height + 1, width + 1, 3)
    return cells.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]


def _check_pattern(filepath):
    try:
        filepath.format(epoch=1)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"`filepath` may hold the field {{epoch}} and no other, for example "
            f"'samples/{{epoch:03d}}.png'; got {filepath!r}."
        ) from error
    return filepath
