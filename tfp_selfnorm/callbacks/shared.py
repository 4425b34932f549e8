"""What the callbacks share."""

import importlib.util
import os

import tensorflow as tf

from tfp_selfnorm.flow_functions import FlowFunctions


def distribution_of(callback):
    """The distribution of its model; raises TypeError if that is no `FlowModel`."""
    if not isinstance(callback.model, FlowFunctions):
        raise TypeError(f"{type(callback).__name__} needs a FlowModel; got {type(callback.model).__name__}.")
    return callback.model.distribution


def summary_writer(log_dir):
    """A writer for TensorBoard, or `None` without a folder; raises ImportError if it is not installed."""
    if log_dir is None:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("`log_dir` needs TensorBoard, which is not installed: `pip install tensorboard`.")
    return tf.summary.create_file_writer(os.fspath(log_dir))
