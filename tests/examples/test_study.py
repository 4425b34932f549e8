"""The studies: their lines are experiments, and what has finished is not run again."""

import json
import subprocess
import sys

import compare
import numpy as np
import pytest
import study
import train
from presets import PRESETS, overridden
from test_train import small_images, tiny

from tfp_selfnorm import initialization


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_line_is_an_experiment_and_no_two_are_the_same(name):
    lines = [overridden(PRESETS[preset], changes) for preset, changes in study.STUDIES[name].values()]
    assert all(line != other for i, line in enumerate(lines) for other in lines[:i])
    folders = {study.folder_of(train.pathlib.Path("x"), label, 1) for label in study.STUDIES[name]}
    assert len(folders) == len(lines)


def finished(folder, seed, preset):
    folder.mkdir(parents=True, exist_ok=True)
    row = {"epoch": 1, "nll": 3.0, "val_nll": 2.0, "seconds": 1.0, "cpu_seconds": 2.0}
    results = {
        "seed": seed,
        "epochs": 1,
        "best_epoch": 1,
        "test_nll": 1.5 + seed,
        **row,
        "date": "2026-01-01",
    }
    script = "examples/experiments/train.py"
    command = f"{script} {preset} --seed {seed} --output {folder} --data-dir {folder} --epochs 1"
    record = {"command": command, "experiment": {"seed": seed, "preset": preset}}
    for name, content in (("results", results), ("metrics", [row]), ("config", record)):
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_runs_are_trained_once_and_put_side_by_side(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command, **options):
        commands.append(command)
        folder = train.pathlib.Path(command[command.index("--output") + 1])
        seed = int(command[command.index("--seed") + 1])
        fails = "fast_relative_fc_mnist" in command and seed == 2
        if not fails:
            finished(folder, seed, command[2])
        return subprocess.CompletedProcess(command, int(fails))

    monkeypatch.setattr(study.subprocess, "run", run)
    arguments = ["dense", "--only", "exact, whitened", "relative", "--seeds", "1", "2", "--epochs", "1"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["study.py", *arguments, "--output", str(tmp_path)])
        study.main()
    assert [command[2] for command in commands] == [
        *(2 * ["fast_exact_fc_mnist", "fast_relative_fc_mnist"]),
        # That one failed, and is tried again.
        "fast_relative_fc_mnist",
    ]
    assert commands[0][-2:] == ["--set", "whiten=true"]
    assert commands[0][commands[0].index("--epochs") + 1] == "1"
    printed = capsys.readouterr().out
    assert "relative, seed 2: ended with 1, see " in printed
    assert "| exact, whitened | 1 | 2 | 3.0 ± 0.7 |" in printed
    table = (tmp_path / "results.csv").read_text()
    assert "python examples/experiments/train.py fast_exact_fc_mnist --seed 1 --epochs 1" in table
    assert str(tmp_path) not in table


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "dense", "--only", "nothing"])
    with pytest.raises(SystemExit, match=r"'dense' has no \['nothing'\]; it has \[.*'tracked, whitening'"):
        study.main()


def test_the_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "--list"])
    study.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(map(len, study.STUDIES.values()))


def test_a_whitened_run_starts_from_the_data(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "load", lambda name, data_dir: small_images())
    whitened = []

    def record(flow, x, *unused, **unused_options):
        whitened.append(np.shape(x))

    monkeypatch.setattr(initialization, "whiten_layers", record)
    train.train(tiny("tracked_fc_mnist", epochs=1, whiten=True), output=tmp_path / "a", verbose=0)
    train.train(tiny("selfnorm_fc_mnist", epochs=1), output=tmp_path / "b", verbose=0)
    assert whitened == [(12, 4, 4, 1)]


def test_commands_are_those_that_anyone_may_give():
    command = "some/place/train.py tracked_fc_mnist --output o --set a=1 b=2 --data-dir d --seed 3"
    assert (
        compare.without_places(command)
        == "python examples/experiments/train.py tracked_fc_mnist --set a=1 b=2 --seed 3"
    )
