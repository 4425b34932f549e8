"""`SampleGrid`, pictures of samples."""

import math
import os
import warnings

import numpy as np
import tensorflow as tf

from tfp_selfnorm.callbacks.shared import FlowCallback, check_path
from tfp_selfnorm.utils.integers import check_int, check_positive_int
from tfp_selfnorm.utils.seeds import check_seed
from tfp_selfnorm.utils.types import Seed

_RED, _GREY = (255, 0, 0), 128


class SampleGrid(FlowCallback):
    """Draws samples at the end of epochs, as one picture: a PNG file, an image in TensorBoard, or both.

    The latents are the same each time, so that epochs can be compared. Samples are laid out by rows, in a
    square or nearly, with grey lines between. A pixel is rounded down to its level, and levels from 0 to
    `num_levels - 1` are drawn from black to white; what is outside is clipped. Pixels that are not finite
    are red, and a warning says how many samples hold any. Costs one `model.sample`.

    Args:
      filepath: where to write the PNG (RGB), as in `samples/{epoch:03d}.png`, where epochs count from 1;
        without `{epoch}` it is written over. Missing folders are made.
      num_levels: number of levels of a pixel, 256 for 8-bit images.
      num_samples: how many samples to draw.
      every_epochs: epochs from one picture to the next.
      exact: whether to sample by the exact inverse, at O(D^3), in place of the learned one.
      seed: int or stateless TFP seed.
      log_dir: folder for TensorBoard (which must be installed); the image is called `samples`.

    Raises:
      ImportError: if `log_dir` is given and TensorBoard is not installed.
      TypeError: if an argument is of another type; at the start of training, if the model is no `FlowModel`.
      ValueError: if neither `filepath` nor `log_dir` is given, `filepath` holds another field, or a number is
        out of range; at the start of training, if the events are no images of shape (height, width),
        (height, width, 1) or (height, width, 3).

    >>> import os, tempfile, tensorflow as tf, tfp_selfnorm as sn
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
    ) -> None:
        if filepath is None and log_dir is None:
            raise ValueError("`filepath` or `log_dir` must be given: where to write the samples.")
        filepath = None if filepath is None else _check_pattern(check_path(filepath, "filepath"))
        num_levels = check_int(num_levels, "num_levels", lowest=2)
        num_samples = check_positive_int(num_samples, "num_samples")
        check_seed(seed)
        super().__init__(log_dir, every_epochs=every_epochs, exact=exact)
        self.filepath, self.num_levels, self.num_samples, self.seed = filepath, num_levels, num_samples, seed

    def on_train_begin(self, logs: dict | None = None) -> None:
        distribution = self.distribution
        batch, event = distribution.batch_shape, distribution.event_shape
        if batch.rank != 0 or not (event.rank == 2 or (event.rank == 3 and event[-1] in (1, 3))):
            raise ValueError(
                "The events must be images of shape (height, width), (height, width, 1) or (height, width, "
                f"3) for SampleGrid; got event shape {tuple(event)} and batch shape {batch}."
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        epoch += 1
        if epoch % self.every_epochs:
            return
        samples = self.model.sample(self.num_samples, seed=self.seed, exact=self.exact).numpy()
        finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
        if not finite.all():
            warnings.warn(
                f"{np.sum(~finite)} of {len(finite)} samples after epoch {epoch} hold values that are not "
                "finite; SampleGrid draws these pixels in red.",
                stacklevel=2,
            )
        grid = _grid(samples, self.num_levels)
        if self.filepath is not None:
            tf.io.write_file(self.filepath.format(epoch=epoch), tf.io.encode_png(grid))
        self.summarize(tf.summary.image, "samples", grid[np.newaxis], epoch)


def _grid(samples, num_levels):
    """The samples, `(number, height, width)` with 1, 3 or no channels, as one picture of RGB in uint8."""
    images = samples if samples.ndim == 4 else samples[..., np.newaxis]
    finite = np.isfinite(images).all(axis=-1, keepdims=True)
    levels = np.floor(np.clip(np.where(finite, images, 0.0), 0.0, num_levels - 1.0))
    # Broadcasts one channel of grey, too, to the three of red.
    colours = np.where(finite, np.rint(levels * (255.0 / (num_levels - 1.0))), _RED).astype(np.uint8)
    number, height, width, _ = colours.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    padding = [(0, rows * columns - number), (0, 1), (0, 1), (0, 0)]
    cells = np.pad(colours, padding, constant_values=_GREY).reshape(rows, columns, height + 1, width + 1, 3)
    return cells.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]


def _check_pattern(filepath):
    try:
        filepath.format(epoch=1)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"`filepath` may hold the field {{epoch}} and no other, as in 'samples/{{epoch:03d}}.png'; got "
            f"{filepath!r}."
        ) from error
    return filepath
