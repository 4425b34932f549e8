"""The base class of the callbacks."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.flow_model import FlowModel
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.types import TfpObject


class FlowCallback(keras.callbacks.Callback):
    """The base class of the callbacks: finds the distribution, and writes for TensorBoard."""

    def __init__(self, log_dir: str | os.PathLike | None = None) -> None:
        """Makes the folder, so call it after all checks.

        Args:
          log_dir: folder for TensorBoard, or `None`.

        Raises:
          ImportError: if `log_dir` is given and TensorBoard is not installed.
          TypeError: if `log_dir` is no path.
        """
        super().__init__()
        self._writer = _summary_writer(log_dir)

    @property
    def scored_distribution(self) -> TfpObject:
        """The distribution of the model; raises TypeError if the model is no `FlowModel`."""
        if not isinstance(self.model, FlowModel):
            raise TypeError(f"{type(self).__name__} needs a FlowModel; got {type(self.model).__name__}.")
        return self.model.inference_distribution

    def checked_condition(self, condition: Any, number: int | None = None) -> Any:
        """The conditions for the model as tensors, `None` for a model without them.

        Args:
          condition: the argument of the callback.
          number: the number of conditions; `None` for any number.

        Raises:
          TypeError, ValueError: if they do not fit, or the model takes none.
        """
        form = self.model.conditions
        condition = self.model._frames.ordered(condition, "condition", "conditions")
        if form is None:
            if condition is not None:
                raise ValueError(f"`condition` must be None for {type(self.model).__name__}; got conditions.")
            return None
        if number is None:
            return form.tensor(condition)
        return tf.nest.map_structure(tf.convert_to_tensor, form.array(condition, "condition", number))

    def summarize(self, write: Callable, name: str, value: Any, step: int) -> None:
        """Writes the value by a function of `tf.summary`, if there is a folder for TensorBoard."""
        if self._writer is not None:
            with self._writer.as_default():
                write(name, value, step=step)
            self._writer.flush()


def check_path(path: str | os.PathLike, name: str) -> str:
    """Returns the path as a string; raises TypeError if it is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`{name}` must be a path: a string or a pathlib.Path; got {path!r}.")
    return os.fspath(path)


def check_verbose(verbose: bool | int) -> bool | int:
    """Returns a bool or an int; raises ValueError if it is another value or negative."""
    return verbose if isinstance(verbose, (bool, np.bool_)) else check_int(verbose, "verbose", lowest=0)


def _summary_writer(log_dir):
    if log_dir is None:
        return None
    log_dir = check_path(log_dir, "log_dir")
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("`log_dir` needs TensorBoard, which is not installed: `pip install tensorboard`.")
    return tf.summary.create_file_writer(log_dir)
