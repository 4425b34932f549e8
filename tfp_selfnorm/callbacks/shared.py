"""What the callbacks share."""

import importlib.util
import os

import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.flow_model import FlowModel
from tfp_selfnorm.utils.integers import check_int


def distribution_of(callback):
    """The distribution that its model scores; raises TypeError if that is no `FlowModel`."""
    if not isinstance(callback.model, FlowModel):
        raise TypeError(f"{type(callback).__name__} needs a FlowModel; got {type(callback.model).__name__}.")
    return callback.model.inference_distribution


def check_verbose(verbose):
    """Returns it, if it is a bool or an int, 0 or more; raises ValueError if not."""
    return verbose if isinstance(verbose, (bool, np.bool_)) else check_int(verbose, "verbose", lowest=0)


def check_path(path, name) -> str:
    """Returns it as a string; raises TypeError if it is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`{name}` must be a path: a string or a pathlib.Path; got {path!r}.")
    return os.fspath(path)


def summary_writer(log_dir):
    """A writer for TensorBoard, or `None` without a folder; raises ImportError if it is not installed."""
    if log_dir is None:
        return None
    log_dir = check_path(log_dir, "log_dir")
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("`log_dir` needs TensorBoard, which is not installed: `pip install tensorboard`.")
    return tf.summary.create_file_writer(log_dir)
