"""Prints the elements of each all-reduce in the training step of one of two workers, as JSON.

TF_CONFIG=... python tests/helpers/collectives.py METHOD D B LAYERS
"""

import json
import os
import sys

import tensorflow as tf


def sizes_of(nodes):
    """The numbers of elements of the all-reduces among the nodes of a graph."""
    reduces = [node for node in nodes if node.op == "CollectiveReduceV2"]
    shapes = [tf.TensorShape(node.attr["_output_shapes"].list.shape[0]) for node in reduces]
    return [shape.num_elements() for shape in shapes]


def main():
    method, *shape = sys.argv[1], *map(int, sys.argv[2:])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # It must come first: TensorFlow sets up the workers before its first operation.
    from step_times import make_model

    size, batch, layers = shape
    with strategy.scope():
        model = make_model(method, size, layers)

    @tf.function
    def step(x):
        figures = strategy.run(model.train_step, args=(x,))
        # As Keras does after each step.
        return {name: strategy.reduce("MEAN", value, axis=0) for name, value in figures.items()}

    def batches(context):
        return tf.data.Dataset.from_tensors(tf.zeros([batch, size])).repeat()

    data = iter(strategy.distribute_datasets_from_function(batches))
    graph = step.get_concrete_function(next(data)).graph.as_graph_def(add_shapes=True)
    # The branch of an update, not that of a skipped step.
    applied = [function for function in graph.library.function if "cond_true" in function.signature.name]
    found = sizes_of(graph.node) + [n for function in applied for n in sizes_of(function.node_def)]
    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
