"""What a graph consists of."""

import re

import tensorflow as tf


def op_types(function, *arguments):
    """The ops of a function's graph, those of nested functions included."""
    graph_def = tf.function(function).get_concrete_function(*arguments).graph.as_graph_def()
    return set(re.findall(r'\bop: "(\w+)"', str(graph_def)))


def captured_by(graph, tensor):
    """Ids of what a function's graph captures from outside that must be read before the tensor is there.

    An `IdentityN` makes no output wait for the inputs of the others: graph optimisation takes it apart.
    """
    waiting, seen = [(tensor.op, tensor.value_index)], set()
    while waiting:
        op, index = waiting.pop()
        if (op, index) not in seen:
            seen.add((op, index))
            inputs = [op.inputs[index]] if op.type == "IdentityN" else op.inputs
            waiting += [(x.op, x.value_index) for x in inputs] + [(op, 0) for op in op.control_inputs]
    ops = {op for op, _ in seen}
    return {id(outer) for outer, inner in graph.captures if inner.op in ops}


def needed_ops(graph):
    """The ops that a graph runs: its outputs and its effects, and all that they wait for."""
    waiting, seen = [*(output.op for output in graph.outputs), *graph.control_outputs], set()
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting += [*(x.op for x in op.inputs), *op.control_inputs]
    return seen
