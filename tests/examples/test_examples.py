"""The examples run, at a small size."""

import argparse
import csv
import pathlib
import runpy
import subprocess
import sys

import convolution
import demo
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tfp_selfnorm as sn

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def run_example(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    (path,) = EXAMPLES.rglob(name)
    runpy.run_path(str(path), run_name="__main__")


def test_demo_on_digits(tmp_path, monkeypatch, capfd):
    run_example("demo.py", ["--epochs", 1, "--steps-per-epoch", 20, "--output", tmp_path], monkeypatch)
    printed = capfd.readouterr().out
    for method in ("self_norm, paper", "self_norm, tracked", "exact gradient"):
        assert printed.count(method) == 2  # a heading and a row of the table
    difference = float(printed.split("largest difference:")[1].split()[0])
    assert difference < 1e-3
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def test_demo_with_another_model(tmp_path, monkeypatch, capfd):
    arguments = ["--model", "glow", "--methods", "self_norm, tracked", "--epochs", 1, "--output", tmp_path]
    run_example("demo.py", [*arguments, "--layers", 1, "--steps-per-epoch", 5], monkeypatch)
    assert float(capfd.readouterr().out.split("largest difference:")[1].split()[0]) < 1e-2
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def test_every_method_of_the_convolutional_demo_makes_its_model():
    arguments = argparse.Namespace(model="conv", layers=1, seed=1)
    for method, gradient in (("self_norm, paper", "self_norm"), ("exact gradient", "exact")):
        model = demo.make_model(method, (8, 8, 1), 17, arguments)
        layers = sn.self_norm_layers(model.distribution)
        assert [(type(layer), layer.gradient) for layer in layers] == 3 * [(sn.SelfNormConv2D, gradient)]
        assert isinstance(model.inverse_learning, sn.Reconstruction) == (gradient == "self_norm")


def test_demo_on_a_data_set_of_tfds(tmp_path, monkeypatch, capfd):
    sizes = {"train": 1560, "test": 70}
    splits = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
        for name, size in sizes.items()
    }

    def random_images(self, split):
        size = {"train[:-260]": 1300, "train[-260:]": 260, "test": 70}[split]
        images = np.random.default_rng(0).integers(0, 256, [size, 28, 28, 1], dtype=np.uint8)
        return tf.data.Dataset.from_tensor_slices({"image": images})

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda self: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", random_images)
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", splits)
    arguments = [
        "--dataset",
        "kmnist",
        "--data-dir",
        tmp_path / "data",
        "--epochs",
        1,
        "--steps-per-epoch",
        10,
    ]
    methods = ["--methods", "self_norm, tracked", "--output", tmp_path / "out"]
    run_example("demo.py", [*arguments, *methods], monkeypatch)
    printed = capfd.readouterr().out
    assert "images (28, 28, 1), 256 grey levels, 1300 train, 260 validation, 70 test" in printed
    assert "largest difference:" in printed


def test_demo_says_what_to_do_where_tfds_cannot_download(tmp_path, monkeypatch):
    def offline(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(
        SystemExit, match=r"could not load or download 'mnist'.*\n.*--data-dir.*--dataset digits"
    ):
        run_example(
            "demo.py", ["--dataset", "mnist", "--data-dir", tmp_path, "--output", tmp_path], monkeypatch
        )


def test_benchmark_convolution(tmp_path, monkeypatch, capfd):
    """Of a tiny flow: tracing the one of the benchmark takes a minute."""
    table = tmp_path / "table.csv"
    pixels = sn.images.pixel_sigmoid(17)
    flow = sn.conv_flow(
        (4, 4, 1), num_blocks=1, layers_per_block=1, centering=False, preprocessing=pixels, seed=1
    )
    x = sn.images.dequantize(np.random.default_rng(0).integers(0, 17, [100, 4, 4, 1], np.uint8), seed=0)
    monkeypatch.setattr(convolution, "trained_flow", lambda layers, steps: (flow, x))
    arguments = ["--shapes", "4x4x2", "--repeats", 2, "--csv", table]
    monkeypatch.setattr(sys, "argv", ["convolution.py", *map(str, arguments)])
    convolution.main()
    assert "sampling, 28x28x1" in capfd.readouterr().out
    with open(table, newline="") as file:
        figures = {(row["quantity"], row["method"]): float(row["value"]) for row in csv.DictReader(file)}
    assert {method for quantity, method in figures if quantity == "log_det value"} == {
        "block elimination",
        "dense, tf slogdet",
        "dense, numpy slogdet",
    }
    differences = {key: value for key, value in figures.items() if key[0].endswith("difference")}
    assert len(differences) == 4
    assert max(differences.values()) < 1e-8
    for space in ("pixels", "logits", "latents"):
        assert figures[f"{space} rms error", "exact inverse"] < 1e-3
        assert np.isfinite(figures[f"{space} max error", "learned inverse"])


def test_the_wheel_works_in_another_folder(tmp_path):
    """Without the checkout on the path: what is not packaged is missed."""
    root = EXAMPLES.parent
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, root], check=True)
    (wheel,) = tmp_path.glob("tfp_selfnorm-*.whl")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            tmp_path / "site",
            wheel,
        ],
        check=True,
    )
    check = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import tfp_selfnorm as sn; "
        f"assert sn.__file__.startswith({str(tmp_path)!r}), sn.__file__; "
        "print(sn.dense_flow(3, seed=1).log_prob([0.0, 0.0, 0.0]).shape)"
    )
    subprocess.run([sys.executable, "-I", "-c", check], check=True, cwd=tmp_path)
    assert (tmp_path / "site/tfp_selfnorm/py.typed").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_short_example(name, tmp_path, monkeypatch, capfd):
    """Each is short enough to be copied, and runs from an empty folder."""
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    run_example(name, [], monkeypatch)
    printed = capfd.readouterr().out.strip()
    if name == "own_loop.py":
        *_, nll, entropy = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines()]
        assert abs(nll - entropy) < 0.02
