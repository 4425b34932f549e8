"""The graph under construction, and the tensors that it can use."""

from typing import Any

import tensorflow as tf


def current_graph() -> Any:
    """The graph under construction; `None` in eager code."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_within_reach(tensor: tf.Tensor) -> bool:
    """Whether the tensor belongs to the graph under construction, or to a graph around it."""
    graph = current_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None
