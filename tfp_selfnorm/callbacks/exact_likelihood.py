"""`ExactLikelihood`: the exact likelihood of given events during training."""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.conditional import condition_arguments
from tfp_selfnorm.callbacks.shared import FlowCallback, check_verbose
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.utils.checks import check_events, check_finite
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.types import Array


class ExactLikelihood(FlowCallback):
    """Computes the exact mean negative log-likelihood of given events during training, in nats.

    It does so each `every_steps` steps of the optimizer, and at the end of training. With
    `steps_per_execution` it waits for the end of the execution. The results of training do not change, to the
    bit. Each value costs one exact log-det for each layer (O(D^3) if dense) and O(D^2) for each event. The
    first one compiles the function.

    At the end of an epoch `logs` get the last value as `exact_nll`. Keras's callbacks after this one in the
    list can use it (EarlyStopping with `mode="min"`). The first epoch always has a value. Values that are not
    finite are reported unchanged.

    Args:
      x: events `(number, *event_shape)`, an array of a floating dtype.
      every_steps: number of steps from one value to the next.
      batch_size: number of events in a batch.
      log_dir: folder for TensorBoard, which must be installed. The scalar is called `exact_nll`.
      verbose: whether to print a line with each value.
      condition: for a `ConditionalFlowModel`, the conditions of the events.

    Attributes:
      history: list of `(step, nll)`: `optimizer.iterations`, and the value in nats. Further calls of `fit`
        add to it. The last entry is the value of the final weights, also if these are averaged or restored.

    Raises:
      ImportError: if `log_dir` is given and TensorBoard is not installed.
      TypeError: if `x` is not floating; when training begins, if the model is no `FlowModel`.
      ValueError: if `x` is empty or not finite, or a number is not positive; when training begins, if `x`
        holds no events of the model, or `condition` does not fit; during training, if the kernel of a
        convolution is singular.

    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
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
        condition: Any = None,
    ) -> None:
        self.x = _check_array(x)
        self.batch_size = check_positive_int(batch_size, "batch_size")
        self.every_steps = check_positive_int(every_steps, "every_steps")
        self.verbose = check_verbose(verbose)
        self.condition, self._checked_condition = condition, None
        super().__init__(log_dir)
        self.history: list[tuple[int, float]] = []
        self._layers: list = []
        self._mean_nll: Any = None
        self._step = 0

    def set_model(self, model: keras.Model) -> None:
        if model is not self.model:
            self.history, self._mean_nll = [], None
        super().set_model(model)

    def on_train_begin(self, logs: dict | None = None) -> None:
        distribution = self.scored_distribution
        check_events(self.x[0], distribution, name="x[0]")
        self._checked_condition = self.checked_condition(self.condition, len(self.x))
        if self._mean_nll is None:
            self._layers = [la for la in self_norm_layers(distribution) if la.is_constant_jacobian]
            self._mean_nll = _compiled_mean_nll(distribution, self._layers, self.x, self.model.conditions)
        self._step = self._iterations()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # The argument `batch` counts whole executions, also if the data end within an execution.
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
            # Other callbacks may have averaged or restored the weights since the last step.
            self.history.pop()
        self._evaluate()

    def _evaluate(self):
        step = self._iterations()
        log_dets = [layer.exact_log_det() for layer in self._layers]
        nll = sum(self._nll_from(i, log_dets) for i in range(0, len(self.x), self.batch_size)) / len(self.x)
        self.history.append((step, nll))
        if self.verbose:
            print(f"\nStep {step}: exact NLL {nll:.6g} nats")
        self.summarize(tf.summary.scalar, "exact_nll", nll, step)

    def _nll_from(self, begin, log_dets):
        """The sum over the batch that begins at an event."""
        end, condition = begin + self.batch_size, self._checked_condition
        given: list = []
        if condition is not None:
            given = [tf.nest.map_structure(lambda part: part[begin:end], condition)]
        batch = self.x[begin:end]
        return len(batch) * float(self._mean_nll(batch, log_dets, *given))

    def _iterations(self):
        return int(self.model.optimizer.iterations.numpy())


def _compiled_mean_nll(distribution, layers, x, conditions):
    """A function of events, the log-dets of the layers, and conditions: the mean NLL of the batch."""
    events = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    log_dets = [tf.TensorSpec(layer.log_det_shape, layer.dtype) for layer in layers]

    given = () if conditions is None else (conditions.signature(),)

    @tf.function(input_signature=(events, log_dets, *given))
    def mean_nll(batch, log_dets, condition=None):
        with training_scope(None, dict(zip(layers, log_dets, strict=True))):
            x = tf.identity(tf.cast(batch, distribution.dtype))
            log_prob = distribution.log_prob(x, **condition_arguments(condition))
        return -tf.reduce_mean(log_prob)

    return mean_nll


def _check_array(x):
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"`x` must be an array of a floating dtype; got dtype {x.dtype}. Cast the array. For integer "
            "pixels, use `tfp_selfnorm.images.dequantize`."
        )
    if x.size == 0 or x.ndim == 0:
        raise ValueError(f"`x` must be a batch of events, one or more; got shape {x.shape}.")
    return check_finite(x)
