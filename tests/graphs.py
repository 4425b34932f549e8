"""What a graph consists of."""

import re

import tensorflow as tf


def op_types(function, *arguments):
    """The ops of a function's graph, those of nested functions included."""
    graph_def = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def()
    return set(re.findall(r'\bop: "(\w+)"', str(graph_def)))
