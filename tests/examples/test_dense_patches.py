"""The picture of dense flows on colour patches, from small runs and patches."""

import sys

import dense_patches
import matplotlib.figure
import numpy as np
from data_sets import DataSet
from raw_files import write_csv

import tfp_selfnorm as sn


def test_the_picture_has_the_figures_of_the_files(tmp_path, monkeypatch):
    steps = [
        {"step": step, "size": size, "median_ms": 1000.0 * k * size}
        for k, step in enumerate(dense_patches.STEPS, 1)
        for size in (48, 12)
    ]
    write_csv(tmp_path / "steps.csv", steps)
    curves = [
        {"label": f"{method}, {side}x{side}", "seed": 1, "seconds": 10.0 * epoch, "val_nll": side / epoch}
        for method in ("tracked", "exact gradient")
        for side in (2, 4)
        for epoch in (1, 2)
    ]
    write_csv(tmp_path / "curves.csv", [*curves, {**curves[0], "seed": 2, "val_nll": 1e9}])
    patches = np.random.default_rng(1).integers(256, size=[9, 4, 4, 3]).astype(np.uint8)
    monkeypatch.setattr(dense_patches, "SIDES", (2, 4))
    monkeypatch.setattr(dense_patches, "load", lambda name: DataSet(patches, patches, patches, 256))
    preprocessing = sn.images.pixel_sigmoid(256)
    model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=(4, 4, 3), preprocessing=preprocessing)
    (tmp_path / "tracked__4x4_seed1").mkdir()
    model.save(tmp_path / "tracked__4x4_seed1" / "best.keras")

    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    command = ["--runs", str(tmp_path), "--steps", str(tmp_path / "steps.csv"), "--output", "x.png"]
    monkeypatch.setattr(sys, "argv", ["dense_patches.py", *command])
    dense_patches.main()

    axes = drawn[0].axes
    found = {line.get_label(): np.transpose(line.get_data()).tolist() for line in axes[0].lines}
    assert found == {
        "a Keras Dense": [[12, 12.0], [48, 48.0]],
        "tracked": [[12, 24.0], [48, 96.0]],
        "exact gradient": [[12, 36.0], [48, 144.0]],
    }
    found = {line.get_label(): np.transpose(line.get_data()) for line in axes[1].lines}
    assert list(found) == [f"{m}, D = {size}" for size in (12, 48) for m in ("tracked", "exact gradient")]
    expected = [[10.0, 4 / 48 / np.log(2.0)], [20.0, 2 / 48 / np.log(2.0)]]
    np.testing.assert_allclose(found["exact gradient, D = 48"], expected)
    np.testing.assert_array_equal(
        axes[2].images[0].get_array(), sn.plot.images(patches).images[0].get_array()
    )
    assert axes[3].images[0].get_array().shape == axes[2].images[0].get_array().shape
