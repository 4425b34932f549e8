"""The counts of the model of a training step are those of graphs and variables; its tables follow from it."""

import csv
import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import scale
import scale_gpus
import step_fit
import step_model
import tensorflow as tf
from graphs import needed_ops
from keras_life import free_ports
from step_model import METHODS, Machine, Step
from step_times import make_model

import tfp_selfnorm as sn

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results"
# Different from each other and from the 8 probes.
SIZE, BATCH = 17, 13
# They hand a tensor on, or are counted apart.
FREE = {
    "AssignVariableOp",
    "Identity",
    "IdentityN",
    "If",
    "MatrixInverse",
    "Placeholder",
    "ReadVariableOp",
    "Reshape",
}


@functools.cache
def graph_of(method, layers):
    model = make_model(method, SIZE, layers)
    return tf.function(model.train_step).get_concrete_function(tf.TensorSpec([BATCH, SIZE])).graph


def operations(op):
    """Multiplications and additions of a product."""
    rows, columns = op.outputs[0].shape
    return 2 * rows * columns * op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]


def passes(graph, *shapes):
    """How often the ops of a graph read or write a tensor of one of the shapes."""
    ops = [op for op in needed_ops(graph) if op.type not in FREE]
    found = [tensor.shape for op in ops for tensor in (*op.inputs, *op.outputs)]
    return sum(shape.rank is not None and tuple(shape) in shapes for shape in found)


CASES = [(method, layers) for method in METHODS for layers in (1, 3)]


@pytest.mark.parametrize(("method", "layers"), CASES)
def test_products_and_inverses_of_a_graph(method, layers):
    ops, step = needed_ops(graph_of(method, layers)), Step(method, SIZE, BATCH, layers)
    assert sum(operations(op) for op in ops if op.type == "MatMul") == step.product_operations()
    inverses = sum(op.type == "MatrixInverse" for op in ops)
    assert 2 * inverses * SIZE**3 == step.inverse_operations()


@pytest.mark.parametrize(("method", "layers"), CASES)
def test_passes_over_memory_of_a_graph(method, layers):
    graph, counts = graph_of(method, layers), METHODS[method]
    for shapes, (each, more) in {
        ((SIZE, SIZE),): counts.kernel_passes,
        ((BATCH, SIZE),): counts.batch_passes,
        ((8, SIZE), (SIZE, 8)): (counts.few_passes, 0),
    }.items():
        assert passes(graph, *shapes) == each * layers + more


def test_passes_over_memory_of_an_update():
    variable = keras.Variable(tf.zeros([SIZE, SIZE]))
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build([variable])

    def update(gradient):
        optimizer.apply([gradient], [variable])

    graph = tf.function(update).get_concrete_function(tf.TensorSpec([SIZE, SIZE])).graph
    in_place = [op for op in needed_ops(graph) if op.type in ("AssignAddVariableOp", "AssignSubVariableOp")]
    of_the_kernel = sum(op.inputs[1].shape.rank == 2 for op in in_place)
    # These ops read and write the variable itself too. The check for finite numbers reads W once more.
    assert passes(graph, (SIZE, SIZE)) + 2 * of_the_kernel + 1 == step_model._UPDATE


@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_variables_and_gradients(method):
    model, step = make_model(method, SIZE, 3), Step(method, SIZE, layers=3)
    variables = [*model.variables, *model.optimizer.variables]
    assert sum(v.value.numpy().nbytes for v in variables) == step.variable_bytes()
    assert sum(v.value.numpy().nbytes for v in model.trainable_variables) == step.gradient_bytes()


@pytest.mark.parametrize("size", [17, 1024])
def test_refreshes_come_at_the_interval_of_the_layer(size):
    interval = sn.SelfNormDense.trainable(size).refresh_interval
    step = Step("tracked", size, layers=3)
    assert step.refresh_operations() == pytest.approx(3 * (2 + 2 / 3) * size**3 / interval)


@pytest.mark.parametrize(("method", "layers"), [("tracked", 2), ("paper", 1)])
def test_all_reduces_of_two_workers(method, layers):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    script = ROOT / "tests" / "helpers" / "collectives.py"
    folders = [str(ROOT), str(ROOT / "examples" / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    processes = []
    for index in range(2):
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        environment = {**os.environ, "TF_CONFIG": task, "PYTHONPATH": os.pathsep.join(folders)}
        command = [sys.executable, str(script), method, "17", "13", str(layers)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
    try:
        printed, _ = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    sizes, step = json.loads(printed.splitlines()[-1]), Step(method, 17, 13, layers, replicas=2, hosts=2)
    assert len(sizes) == step.collectives()
    assert 4 * sum(size for size in sizes if size > 1) == step.reduced_bytes()


MACHINE = Machine(products=8e10, inverses=2e10, memory=7e9, overhead=5e-3)


def made_rows():
    """Rows as the model has them, without noise."""
    machines = {
        step_fit.ONE: MACHINE,
        step_fit.REPLICA: Machine(8e10, 2e10, 7e9, 8e-3),
        step_fit.WORKERS: Machine(8e10, 2e10, 7e9, 8e-3, 1e9, 2e-4),
    }
    for setting, machine in machines.items():
        for method, size, batch, layers in scale.CASES[setting]:
            replicas = 2 if setting == step_fit.WORKERS else 1
            row = {"setting": setting, "method": method, "D": size, "B": batch, "layers": layers}
            row |= {"replicas": replicas, "median_ms": 1.0, "peak_mib": ""}
            if method != step_fit.REFRESH:
                step = step_fit.step_of(row)
                row["peak_mib"] = step_model.peak_bytes(step, (2.0, 3.0)) / 2**20
            yield {**row, "median_ms": sum(step_fit.predicted_ms(row, machine).values())}


def test_a_fit_finds_the_constants(tmp_path, capsys):
    scale.report(list(made_rows()), tmp_path / "table.csv")
    with open(tmp_path / "table_constants.csv", newline="") as file:
        constants = {row["setting"]: row for row in csv.DictReader(file)}
    one, workers = constants["one device"], constants["two workers"]
    assert (one["products_gflops"], one["inverses_gflops"], one["memory_gb_s"]) == ("80.0", "20.0", "7.0")
    assert (one["overhead_ms"], constants["one replica"]["overhead_ms"]) == ("5.0", "8.0")
    assert (workers["link_gb_s"], workers["latency_ms"]) == ("1.0", "0.2")
    assert (one["held_kernels"], one["held_activations"]) == ("2.0", "3.0")
    rows = scale.read(tmp_path / "table.csv")
    np.testing.assert_allclose([row["median_ms"] for row in rows], [row["median_ms"] for row in made_rows()])
    assert "check" in capsys.readouterr().out


def check_same_table(path):
    """Compares a file with the one of the results that has its name; other machines may round otherwise."""
    with open(path, newline="") as file, open(RESULTS / path.name, newline="") as expected_file:
        for row, expected in zip(csv.DictReader(file), csv.DictReader(expected_file), strict=True):
            assert row.keys() == expected.keys()
            for name, text in expected.items():
                try:
                    assert float(row[name]) == pytest.approx(float(text), rel=0.01, abs=0.02), name
                except ValueError:
                    assert row[name] == text


def test_the_predictions_in_the_results_are_those_of_the_model(tmp_path, capsys):
    name = "benchmark_scale_model"
    scale.report(scale.read(RESULTS / f"{name}.csv"), tmp_path / f"{name}.csv")
    check_same_table(tmp_path / f"{name}.csv")
    check_same_table(tmp_path / f"{name}_constants.csv")


def test_the_computed_table_is_that_of_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--csv", str(tmp_path / "computed_scale.csv")])
    scale_gpus.main()
    check_same_table(tmp_path / "computed_scale.csv")


def test_a_quick_measurement(tmp_path, monkeypatch, capsys):
    options = ["measure", "--quick", "--settings", "one device", "--csv", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    scale.main()
    rows = scale.read(tmp_path / "table.csv")
    assert [row["D"] for row in rows] == [8, 8, 8, 64, 64, 64]
    assert all(row["median_ms"] > 0.0 for row in rows)
