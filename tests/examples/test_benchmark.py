"""The benchmark runs at a tiny size, and its steps compute what their names say."""

import csv
import gc
import json
import sys

import cases
import inversion
import log_det
import numpy as np
import pytest
import steps as benchmark
import tensorflow as tf
import timing

import tfp_selfnorm as sn


def tiny_flows():
    return {
        "FC-2, tracked": ((4,), lambda: (sn.dense_flow(4, seed=1), sn.Tracking())),
        "conv-9, smooth leaky ReLU": (
            (4, 4, 1),
            lambda: (
                sn.conv_flow(
                    (4, 4, 1), num_blocks=1, layers_per_block=1, centering=False, gradient="self_norm", seed=1
                ),
                sn.Reconstruction(),
            ),
        ),
    }


def test_the_table(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(benchmark, "QUICK_SIZES", (8,))
    monkeypatch.setattr(benchmark, "QUICK_SHAPES", ((4, 4, 1),))
    monkeypatch.setattr(cases, "flows", tiny_flows)
    parts = ["dense", "conv", "models", "sampling"]
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--output", str(tmp_path), "--parts", *parts])
    benchmark.main()
    assert "seconds in all" in capfd.readouterr().out
    rows = []
    for part in parts:
        with open(tmp_path / f"benchmark_{part}.csv", newline="") as file:
            rows += csv.DictReader(file)
    assert list(dict.fromkeys(row["part"] for row in rows)) == parts
    by_step = {(row["part"], row["step"]): row for row in rows}
    assert float(by_step["dense", cases.THREE]["over_limit"] or 1.0) == 1.0
    assert float(by_step["dense", cases.EXACT_LOG_PROB]["exact_over_this"]) == 1.0
    assert float(by_step["conv", cases.SIX_CONVOLUTIONS]["over_limit"]) == 1.0
    assert all(0.0 < float(row["quartile_1_ms"]) <= float(row["quartile_3_ms"]) for row in rows)
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("shape", "name", "least_mib"),
    [((512,), cases.TRACKED + cases.ADAM, 5.0), ((4, 4, 1), cases.SIX_CONVOLUTIONS, 0.0)],
)
def test_what_a_process_pays(shape, name, least_mib, capfd):
    gc.collect()
    benchmark.in_this_process(shape, name)
    figures = json.loads(capfd.readouterr().out)
    assert figures["first_call_s"] > 0.0
    assert min(figures["later_s"]) > 0.0
    if figures["peak_mib"] is None:
        pytest.skip("TensorFlow does not count its memory on this device")
    # Of 512: W, its two moments, R and a gradient, of 1 MiB each, and not much more.
    assert least_mib <= figures["peak_mib"] < 10.0 + least_mib


def test_large_layers(monkeypatch):
    figures = {name: {"later_s": [0.1, 0.3, 0.2], "peak_mib": 7.4} for name in benchmark.LARGE_STEPS}
    figures[cases.EXACT + cases.ADAM] = {"later_s": [0.8], "peak_mib": None}
    monkeypatch.setattr(benchmark, "of_a_process", lambda shape, name: figures[name])
    rows = {row["step"]: row for row in benchmark.large_rows((8,))}
    assert rows[cases.DENSE + cases.ADAM]["over_limit"] == 1.0
    assert rows[cases.EXACT + cases.ADAM]["over_limit"] == 4.0
    assert [row["median_ms"] for row in rows.values()] == [200.0, 200.0, 200.0, 800.0]
    assert [row["peak_mib"] for row in rows.values()] == [7, 7, 7, ""]


def test_the_steps_with_and_without_held_log_dets_have_the_same_gradients():
    x, layer = cases.batch(5, 6), cases.make_layer(6, "exact")
    held_loss, held = cases.flow_step(layer, None, x)()
    loss, gradients = cases.flow_step(layer, None, x, held=False)()
    log_det = np.linalg.slogdet(layer.inverse_kernel.numpy())[1]
    np.testing.assert_allclose(held_loss, loss + log_det, rtol=1e-5)
    for ours, expected in zip(held, gradients, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_products_and_convolutions_are_the_ones_they_are_named_after():
    x, layer = cases.batch(5, 6), cases.make_layer(6)
    kernel, other = layer.inverse_kernel.numpy(), layer.forward_kernel.numpy()
    z = x.numpy() @ kernel.T
    pulled = z @ other.T @ other
    expected = (z @ kernel, z.T @ x.numpy(), pulled, pulled.T @ z)
    for ours, product in zip(cases.products(6, x, 6)(), expected, strict=True):
        np.testing.assert_allclose(ours, product, rtol=1e-4, atol=1e-4)
    assert len(cases.products(6, x, 3)()) == 2
    gradients, back = cases.convolutions(cases.batch(2, 4, 4, 3))()
    shapes = [[2, 4, 4, 3], [3, 3, 3, 3]]
    assert [g.shape.as_list() for g in gradients] == [g.shape.as_list() for g in back] == shapes


def test_a_refresh_is_shared_by_the_steps_between():
    times = {cases.REFRESH: np.array([10.0, 30.0, 20.0]), cases.TRACKED: np.ones(2), cases.SIX: np.ones(2)}
    shared = cases.with_refreshes(times, interval=20)
    np.testing.assert_allclose(shared[cases.TRACKED], [2.0, 2.0])
    np.testing.assert_allclose(shared[cases.SIX], [1.0, 1.0])
    assert cases.REFRESH not in shared


def test_calls_take_turns_within_their_time():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.measure(calls, repeats=2, seconds=1.0)
    assert "".join(order) == "aabb" + 2 * ("aaaaa" + "bbbbb")
    assert all(values.shape == (2,) for values in times.values())
    assert len(timing.measure({"a": lambda: None}, repeats=9, seconds=0.0)["a"]) == 2
    assert timing.quartiles([1.0, 2.0, 3.0]) == {
        "median_ms": 2.0,
        "quartile_1_ms": 1.5,
        "quartile_3_ms": 2.5,
        "turns": 3,
    }


def test_a_keras_step_trains_too():
    model = cases.keras_dense(4, num_layers=2)
    before = model.trainable_variables[0].numpy()
    assert tf.math.is_finite(cases.compiled_step(model, cases.batch(5, 4))()["loss"])
    assert (model.trainable_variables[0].numpy() != before).any()


def test_iterations_by_the_circulant_inverse(tmp_path, monkeypatch, capfd):
    shape = {"image_shape": (6, 6, 2), "num_blocks": 2, "layers_per_block": 1, "centering": False}
    sn.FlowModel.from_builder(sn.conv_flow, None, gradient="circulant", seed=1, **shape).save(
        tmp_path / "flow.keras"
    )
    options = ["--count", "3", "--repeats", "1", "--csv", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "flow.keras"), *options])
    inversion.main()
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert capfd.readouterr().out.count("exact solve") == 2
    assert [row["image"] for row in rows] == 5 * ["3x3x8"] + 5 * ["6x6x2"]
    methods = ["exact solve", "5x5 centre", "5x5 centre, held", "FFT", "FFT, held"]
    assert [row["method"] for row in rows] == 2 * methods
    for row in rows:
        assert float(row["error"]) < (1e-6 if row["method"] == "exact solve" else 1e-4)
        assert 1 <= int(row["steps"]) <= 4


def test_the_most_steps(rng):
    kernel = tf.constant(rng.normal(size=[3, 3, 2, 2]), tf.float32)
    z = tf.constant(rng.normal(size=[2, 6, 6, 2]), tf.float32)
    found = list(inversion.methods(kernel, z, np.ones([2, 6, 6, 2]), most_steps=2))
    assert [steps for _, steps, _, _ in found] == [1, 2, 2, 2, 2]


def test_estimates_of_log_dets(tmp_path, monkeypatch):
    monkeypatch.setattr(log_det, "_SETTINGS", ((4, 9),))
    options = ["--sizes", "9", "12", "--events", "3", "--csv", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    log_det.main()
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["D"] for row in rows] == ["9", "12"]
    for row in rows:
        assert float(row["exact_ms"]) > 0.0
        assert abs(float(row["mean_error"])) < 5.0 * float(row["its_standard_error"])


def test_the_pair_of_networks_of_a_trained_flow(tmp_path):
    sn.FlowModel.from_builder(
        sn.free_form_flow,
        event_shape=(8, 8, 1),
        preprocessing=sn.images.pixel_sigmoid(17),
        width=4,
        depth=1,
        seed=1,
    ).save(tmp_path / "flow.keras")
    layer, y = log_det.trained_pair(tmp_path / "flow.keras", "digits", 3)
    assert layer.event_sizes == (64,)
    assert y.shape == (3, 64)
