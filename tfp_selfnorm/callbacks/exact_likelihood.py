"""`ExactLikelihood`, the likelihood of given events between epochs."""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.callbacks.shared import FlowCallback
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.utils.checks import check_events, check_finite
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.types import Array


class ExactLikelihood(FlowCallback):
    """Computes the exact mean negative log-likelihood of given events while the model trains, in nats.

    That is after every so many steps of the optimizer, and at the end of training; with
    `steps_per_execution`, at the end of the execution that the step falls into. Training goes on as it would
    without, to the bit. Each time costs one exact log-det a layer (O(D^3) if dense) and O(D^2) an event; the
    first compiles.

    At the end of an epoch `logs` get the last figure as `exact_nll`, for Keras's own callbacks behind this
    one in the list (EarlyStopping takes `mode="min"`); the first epoch has one in any case. A figure that is
    not finite is reported as it is.

    Args:
      x: events `(number, *event_shape)`, an array of a floating dtype.
      every_steps: steps from one figure to the next.
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

    >>> import numpy as np, tensorflow as tf, tfp_selfnorm as sn
    >>> from tfp_selfnorm.callbacks import ExactLikelihood
    >>> model = sn.FlowModel(sn.dense_flow(3, seed=1))
    >>> model.compile("adam")
    >>> likelihood = ExactLikelihood(np.zeros([50, 3]), every_steps=2)
    >>> history = model.fit(tf.zeros([40, 3]), batch_size=8, callbacks=[likelihood], verbose=0)
    >>> [step for step, nll in likelihood.history]
    [2, 4, 5]
    """

    def __init__(
        self,
        x: Array,
        every_steps: int = 100,
        batch_size: int = 100,
        log_dir: str | os.PathLike | None = None,
        verbose: bool | int = 0,
    ) -> None:
        x, batch_size = _check_array(x), check_positive_int(batch_size, "batch_size")
        super().__init__(log_dir, every_steps=every_steps, verbose=verbose)
        self.x, self.batch_size = x, batch_size
        self.history: list[tuple[int, float]] = []
        self._layers: list = []
        self._mean_nll: Any = None
        self._step = 0

    def set_model(self, model: keras.Model) -> None:
        if model is not self.model:
            self.history, self._mean_nll = [], None
        super().set_model(model)

    def on_train_begin(self, logs: dict | None = None) -> None:
        distribution = self.distribution
        check_events(self.x[0], distribution, name="x[0]")
        if self._mean_nll is None:
            self._layers = self_norm_layers(distribution)
            self._mean_nll = _compiled_mean_nll(distribution, self._layers, self.x)
        self._step = self._iterations()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # Keras's number of the batch counts whole executions, also where the data end within one.
        step = self._iterations()
        if step // self.every_steps > self._step // self.every_steps:
            self._evaluate()
        self._step = step

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if not self.history:
            self._evaluate()
        if logs is not None:
            logs["exact_nll"] = self.history[-1][1]

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.history and self.history[-1][0] == self._iterations():
            # Averaged or restored weights may have taken the place of the last step's.
            self.history.pop()
        self._evaluate()

    def _evaluate(self):
        step = self._iterations()
        log_dets = [layer.exact_log_det() for layer in self._layers]
        batches = [self.x[i : i + self.batch_size] for i in range(0, len(self.x), self.batch_size)]
        nll = sum((len(b) * float(self._mean_nll(b, log_dets)) for b in batches), 0.0) / len(self.x)
        self.history.append((step, nll))
        if self.verbose:
            print(f"\nStep {step}: exact NLL {nll:.6g} nats")
        self.summarize(tf.summary.scalar, "exact_nll", nll, step)

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
