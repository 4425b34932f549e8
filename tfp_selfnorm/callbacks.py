"""Keras callbacks that watch a `FlowModel` train: its samples, its learned inverses, its exact likelihood."""

import importlib.util
import math
import os
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.checks import check_events, check_finite
from tfp_selfnorm.flow_functions import FlowFunctions
from tfp_selfnorm.integers import check_positive_int
from tfp_selfnorm.tracking import inverse_error
from tfp_selfnorm.training_scope import training_scope
from tfp_selfnorm.tree import self_norm_layers
from tfp_selfnorm.variables import unused_name

_RED, _GREY = (255, 0, 0), 128


class SampleGrid(keras.callbacks.Callback):
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
      every: epochs from one picture to the next.
      exact: whether to sample by the exact inverse, at O(D^3), in place of the learned one.
      seed: int or stateless TFP seed.
      log_dir: folder for TensorBoard (which must be installed); the image is called `samples`.

    Raises:
      ImportError: if `log_dir` is given and TensorBoard is not installed.
      TypeError: at the start of training, if the model is no `FlowModel`.
      ValueError: if neither `filepath` nor `log_dir` is given, `filepath` holds another field, or a number is
        out of range; at the start of training, if the events are no images of shape (height, width),
        (height, width, 1) or (height, width, 3).

    >>> import os, tempfile
    >>> from tfp_selfnorm.callbacks import SampleGrid
    >>> flow = dense_flow((4, 4), num_layers=1, preprocessing=pixel_sigmoid(num_levels=16), seed=1)
    >>> model = FlowModel(flow)
    >>> model.compile("adam")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grid = SampleGrid(os.path.join(folder, "{epoch:03d}.png"), num_levels=16, num_samples=9)
    ...     history = model.fit(tf.fill([8, 4, 4], 3.5), epochs=2, callbacks=[grid], verbose=0)
    ...     sorted(os.listdir(folder))
    ['001.png', '002.png']
    """

    def __init__(
        self, filepath=None, num_levels=256, num_samples=64, every=1, exact=False, seed=0, log_dir=None
    ):
        super().__init__()
        if filepath is None and log_dir is None:
            raise ValueError("`filepath` or `log_dir` must be given: where to write the samples.")
        if check_positive_int(num_levels, "num_levels") < 2:
            raise ValueError(f"`num_levels` must be 2 or more; got {num_levels!r}.")
        self.filepath = None if filepath is None else _check_pattern(os.fspath(filepath))
        self.num_levels = num_levels
        self.num_samples = check_positive_int(num_samples, "num_samples")
        self.every = check_positive_int(every, "every")
        self.exact = exact
        self.seed = seed
        self._writer = _summary_writer(log_dir)

    def on_train_begin(self, logs=None):
        distribution = _distribution_of(self)
        batch, event = distribution.batch_shape, distribution.event_shape
        if batch.rank != 0 or not (event.rank == 2 or (event.rank == 3 and event[-1] in (1, 3))):
            raise ValueError(
                "The events must be images of shape (height, width), (height, width, 1) or (height, width, "
                f"3) for SampleGrid; got event shape {tuple(event)} and batch shape {batch}."
            )

    def on_epoch_end(self, epoch, logs=None):
        epoch += 1
        if epoch % self.every:
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
        if self._writer is not None:
            with self._writer.as_default():
                tf.summary.image("samples", grid[np.newaxis], step=epoch)
            self._writer.flush()


class InverseQuality(keras.callbacks.Callback):
    """Estimates at the end of epochs how far each learned inverse is off, and names the worst layer.

    The error of a layer is `||I - R W|| / ||I||` (Frobenius norm), with W from data to latent and R back:
    what random probes, the same each time, lose on the way there and back. 0 is exact, and 1 no better than
    an R of zeros. Of a batch of kernels it is the largest, of a convolution that of its map, zero padding
    included. Costs O(n D^2) a layer for n probes.

    `logs` get the largest error as `worst_inverse_error`, for Keras's own callbacks behind this one in the
    list (EarlyStopping takes `mode="min"`); an epoch without an estimate, where `every` is more than 1,
    repeats the last. Values that are not finite are reported as they are, and NaN counts as the worst.

    Args:
      num_probes: probes of a layer; at most D, or 8 images of a convolution wider than 1x1, are used.
      every: epochs from one estimate to the next; the first epoch has one too.
      seed: int that the probes depend on.
      verbose: whether to print a line with each estimate.

    Attributes:
      errors: dict from the names of the layers that need their learned inverse, made unique, to the errors.
      worst_layer: the name of the layer with the largest error.

    Raises:
      TypeError: at the start of training, if the model is no `FlowModel`.
      ValueError: if a number is not positive; at the start of training, if no layer needs a learned inverse.

    >>> from tfp_selfnorm.callbacks import InverseQuality
    >>> model = FlowModel(dense_flow(3, seed=1))
    >>> model.compile("adam")
    >>> quality = InverseQuality()
    >>> history = model.fit(tf.zeros([8, 3]), callbacks=[quality], verbose=0)
    >>> list(quality.errors), history.history["worst_inverse_error"][0] < 0.1
    (['dense_0', 'dense_1'], True)
    """

    def __init__(self, num_probes=32, every=1, seed=0, verbose=0):
        super().__init__()
        self.num_probes = check_positive_int(num_probes, "num_probes")
        self.every = check_positive_int(every, "every")
        self.seed = seed
        self.verbose = verbose
        self.errors, self.worst_layer, self._layers = {}, None, {}

    def on_train_begin(self, logs=None):
        self.errors, self.worst_layer, self._layers = {}, None, {}
        for layer in self_norm_layers(_distribution_of(self)):
            if layer.needs_inverse:
                self._layers[unused_name(layer.name, self._layers)] = layer
        if not self._layers:
            raise ValueError(
                "InverseQuality needs a layer with a learned inverse; the distribution has none."
            )

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 or not self.errors:
            self.errors = {
                name: float(inverse_error(layer, self.num_probes, seed=[self.seed, i]))
                for i, (name, layer) in enumerate(self._layers.items())
            }
            # To argmax, NaN is the largest.
            self.worst_layer = list(self.errors)[np.argmax(list(self.errors.values()))]
            if self.verbose:
                worst = self.errors[self.worst_layer]
                print(f"\nEpoch {epoch + 1}: the worst learned inverse, `{self.worst_layer}`: {worst:.3g}")
        if logs is not None:
            logs["worst_inverse_error"] = self.errors[self.worst_layer]


class ExactLikelihood(keras.callbacks.Callback):
    """Computes the exact mean negative log-likelihood of given events while the model trains, in nats.

    That is every `every` steps of the optimizer, and at the end of training; with `steps_per_execution`, at
    the end of the execution that the step falls into. Training goes on as it would without, to the bit. Each
    time costs one exact log-det a layer (O(D^3) if dense) and O(D^2) an event; the first compiles.

    At the end of an epoch `logs` get the last figure as `exact_nll`, for Keras's own callbacks behind this
    one in the list (EarlyStopping takes `mode="min"`); the first epoch has one in any case. A figure that is
    not finite is reported as it is.

    Args:
      x: events `(number, *event_shape)`, an array of a floating dtype.
      every: steps from one figure to the next.
      batch_size: how many events to take at a time.
      log_dir: folder for TensorBoard (which must be installed); the scalar is called `exact_nll`.
      verbose: whether to print a line with each figure.

    Attributes:
      history: list of `(step, nll)`, `optimizer.iterations` and nats; further calls of `fit` add to it. The
        last entry is of the weights that training ends with, averaged or restored ones if so.

    Raises:
      ImportError: if `log_dir` is given and TensorBoard is not installed.
      TypeError: if `x` is not floating; at the start of training, if the model is no `FlowModel`.
      ValueError: if `x` is empty or not finite, or a number is not positive; at the start of training, if
        `x` does not consist of events; in training, if the kernel of a convolution is singular.

    >>> from tfp_selfnorm.callbacks import ExactLikelihood
    >>> model = FlowModel(dense_flow(3, seed=1))
    >>> model.compile("adam")
    >>> likelihood = ExactLikelihood(np.zeros([50, 3]), every=2)
    >>> history = model.fit(tf.zeros([40, 3]), batch_size=8, callbacks=[likelihood], verbose=0)
    >>> [step for step, nll in likelihood.history]
    [2, 4, 5]
    """

    def __init__(self, x, every=100, batch_size=100, log_dir=None, verbose=0):
        super().__init__()
        self.x = _check_array(x)
        self.every = check_positive_int(every, "every")
        self.batch_size = check_positive_int(batch_size, "batch_size")
        self.verbose = verbose
        self.history = []
        self._writer = _summary_writer(log_dir)
        self._layers, self._mean_nll, self._step = [], None, 0

    def set_model(self, model):
        if model is not self.model:
            self.history, self._mean_nll = [], None
        super().set_model(model)

    def on_train_begin(self, logs=None):
        distribution = _distribution_of(self)
        check_events(self.x[0], distribution, name="x[0]")
        if self._mean_nll is None:
            self._layers = self_norm_layers(distribution)
            self._mean_nll = _compiled_mean_nll(distribution, self._layers, self.x)
        self._step = self._iterations()

    def on_train_batch_end(self, batch, logs=None):
        # Keras's number of the batch counts whole executions, also where the data end within one.
        step = self._iterations()
        if step // self.every > self._step // self.every:
            self._evaluate()
        self._step = step

    def on_epoch_end(self, epoch, logs=None):
        if not self.history:
            self._evaluate()
        if logs is not None:
            logs["exact_nll"] = self.history[-1][1]

    def on_train_end(self, logs=None):
        if self.history and self.history[-1][0] == self._iterations():
            # Averaged or restored weights may have taken the place of the last step's.
            self.history.pop()
        self._evaluate()

    def _evaluate(self):
        step = self._iterations()
        log_dets = [layer.exact_log_det() for layer in self._layers]
        batches = [self.x[i : i + self.batch_size] for i in range(0, len(self.x), self.batch_size)]
        nll = sum(len(batch) * float(self._mean_nll(batch, log_dets)) for batch in batches) / len(self.x)
        self.history.append((step, nll))
        if self.verbose:
            print(f"\nStep {step}: exact NLL {nll:.6g} nats")
        if self._writer is not None:
            with self._writer.as_default():
                tf.summary.scalar("exact_nll", nll, step=step)
            self._writer.flush()

    def _iterations(self):
        return int(self.model.optimizer.iterations.numpy())


def _compiled_mean_nll(distribution, layers, x):
    """The mean NLL of a batch like those of `x`, as a function of it and of the layers' log-dets."""
    events = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    log_dets = [
        tf.TensorSpec(layer.inverse_kernel.shape[: -layer.operations.kernel_ndims], layer.dtype)
        for layer in layers
    ]

    @tf.function(input_signature=(events, log_dets))
    def mean_nll(batch, log_dets):
        with training_scope(None, dict(zip(layers, log_dets, strict=True))):
            log_prob = distribution.log_prob(tf.identity(tf.cast(batch, distribution.dtype)))
        return -tf.reduce_mean(log_prob)

    return mean_nll


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


def _distribution_of(callback):
    if not isinstance(callback.model, FlowFunctions):
        raise TypeError(f"{type(callback).__name__} needs a FlowModel; got {type(callback.model).__name__}.")
    return callback.model.distribution


def _check_pattern(filepath):
    try:
        filepath.format(epoch=1)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"`filepath` may hold the field {{epoch}} and no other, as in 'samples/{{epoch:03d}}.png'; got "
            f"{filepath!r}."
        ) from error
    return filepath


def _check_array(x):
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"`x` must be an array of a floating dtype; got dtype {x.dtype}. Cast it, or for integer pixels "
            "use `tfp_selfnorm.images.dequantize`."
        )
    if x.size == 0 or x.ndim == 0:
        raise ValueError(f"`x` must be a batch of events, one or more; got shape {x.shape}.")
    return check_finite(x)


def _summary_writer(log_dir):
    if log_dir is None:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("`log_dir` needs TensorBoard, which is not installed: `pip install tensorboard`.")
    return tf.summary.create_file_writer(os.fspath(log_dir))
