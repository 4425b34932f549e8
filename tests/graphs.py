"""What a graph consists of."""

import re

import tensorflow as tf


def op_types(function, *arguments):
    """The ops of a function's graph, those of nested functions included."""
    graph_def = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def()
    return set(re.findall(r'\bop: "(\w+)"', str(graph_def)))


def captured_by(graph, tensor):
    """Ids of what a function's graph captures from outside that must be read before the tensor is there."""
    waiting, seen = [tensor.op], set()
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting += [*op.control_inputs, *(x.op for x in op.inputs)]
    return {id(outer) for outer, inner in graph.captures if inner.op in seen}
