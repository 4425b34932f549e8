"""Which tensors of graphs are within reach."""

import tensorflow as tf


def current_graph():
    """The graph that is being built; `None` in eager code."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_within_reach(tensor) -> bool:
    """Whether a tensor of a graph belongs to the one that is being built, or to one around it."""
    graph = current_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None
