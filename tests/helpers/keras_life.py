"""What a flow lives through under Keras, for every builder: checks, and a table of them.

    python tests/helpers/keras_life.py --csv FILE       # every check of every builder, a table of what passed
    python tests/helpers/keras_life.py --train KIND ... # what the checks run in processes of their own

`test_keras_life.py` runs most of them as tests.
"""

import argparse
import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from life_models import (
    BUILDERS,
    EPOCHS,
    HAS_PROBES,
    check_same_weights,
    fit,
    given,
    images,
    images_with_a_fault,
    log_prob,
    make_model,
)

import tfp_selfnorm as sn


def save_and_load(builder, folder):
    """Reloaded it scores the same to the bit, and training goes on as if nothing had been."""
    model = make_model(builder)
    fit(model, epochs=1)
    model.save(folder / "flow.keras")
    loaded = keras.models.load_model(folder / "flow.keras")
    np.testing.assert_array_equal(log_prob(loaded, images()), log_prob(model, images()))
    check_same_weights(loaded, model.get_weights())
    assert fit(loaded, epochs=2) == fit(model, epochs=2)
    check_same_weights(loaded, model.get_weights())


def weights(builder, folder):
    """A model that started elsewhere scores the same to the bit with the weights of another."""
    model, other = make_model(builder), make_model(builder, seed=2)
    fit(model, epochs=1)
    model.save_weights(folder / "flow.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(folder / "flow.weights.h5")
    np.testing.assert_array_equal(log_prob(other, images()), log_prob(model, images()))
    check_same_weights(other, model.get_weights())


def export(builder, folder):
    """The SavedModel scores, maps, samples and differentiates as the model does, for batches of any size."""
    model = make_model(builder)
    fit(model, epochs=1)
    model.export(folder / "flow")
    loaded = tf.saved_model.load(folder / "flow")
    x = tf.constant(images()[:7])
    condition = given(model, x)
    log_probs = loaded.log_prob(x, *condition), model.log_prob(x, *condition)
    np.testing.assert_allclose(*log_probs, rtol=1e-5, atol=1e-5)
    samples = loaded.sample(5, [1, 2], *condition), model.sample(5, *condition, seed=(1, 2))
    np.testing.assert_allclose(*samples, rtol=1e-4, atol=1e-4)
    latents = model.encode(x, *condition)
    np.testing.assert_allclose(loaded.encode(x, *condition), latents, rtol=1e-4, atol=1e-4)
    events = loaded.decode(latents, *condition), model.decode(latents, *condition)
    np.testing.assert_allclose(*events, rtol=1e-4, atol=1e-4)
    if hasattr(loaded, "decode_exact"):
        np.testing.assert_allclose(loaded.decode_exact(latents, *condition), x, atol=2e-3)
        samples = model.sample(5, *condition, seed=(1, 2), exact=True)
        np.testing.assert_allclose(loaded.sample_exact(5, [1, 2], *condition), samples, atol=2e-3)
    has_learned = any(layer.inversion == "learned" for layer in sn.self_norm_layers(model.distribution))
    assert hasattr(loaded, "decode_exact") == hasattr(loaded, "sample_exact") == has_learned
    gradients = []
    for flow in (loaded, model):
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = flow.log_prob(x, *condition)
        gradients.append(tape.gradient(values, x))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


def sigkill_and_resume(builder, folder):
    """Killed in the middle of an epoch and started again it ends with the weights of an undisturbed run."""
    killed = start_training("resumable", builder, folder / "killed", "--kill")
    assert killed.wait() == -signal.SIGKILL, (folder / "killed" / "log.txt").read_text()[-3000:]
    assert not (folder / "killed" / "weights.npz").exists()
    finish([start_training("resumable", builder, folder / "killed")])
    finish([start_training("resumable", builder, folder / "whole")])
    resumed, whole = (np.load(folder / name / "weights.npz") for name in ("killed", "whole"))
    for name in whole.files:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)


def mirrored(builder, folder):
    """Two replicas of one process stay equal, train as one device does, and skip a batch together."""
    finish([start_training("mirrored", builder, folder)])
    check_same_training(builder, [folder])


def two_workers(builder, folder):
    """Two processes train as one does: the same curve of losses to 1e-5, and a batch skipped together."""
    ports = free_ports(2)
    workers = []
    for index in range(2):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        workers.append(start_training("worker", builder, folder / str(index), TF_CONFIG=task))
    finish(workers)
    check_same_training(builder, [folder / "0", folder / "1"])


def float16(builder, folder):
    """Under Keras's mixed_float16 networks compute in half, with a scaled loss, and nothing else does."""
    check_mixed_precision(builder, "mixed_float16")


def bfloat16(builder, folder):
    """The same under mixed_bfloat16, without a scaled loss."""
    check_mixed_precision(builder, "mixed_bfloat16")


def xla(builder, folder):
    """Compiled by XLA it trains to the same weights."""
    check_compiled_otherwise(builder, jit_compile=True)


def run_eagerly(builder, folder):
    """Not compiled it trains to the same weights."""
    check_compiled_otherwise(builder, run_eagerly=True)


CHECKS = {
    "save/load": save_and_load,
    "weights": weights,
    "export": export,
    "SIGKILL, resume": sigkill_and_resume,
    "Mirrored": mirrored,
    "two workers": two_workers,
    "float16": float16,
    "bfloat16": bfloat16,
    "XLA": xla,
    "run_eagerly": run_eagerly,
}


def check_same_training(builder, folders):
    model = make_model(builder)
    history = fit(model, data=images_with_a_fault())
    assert history["skipped_updates"] == EPOCHS * [1.0]
    for folder in folders:
        other = json.loads((folder / "history.json").read_text())
        assert other["skipped_updates"] == history["skipped_updates"]
        tolerance = 0.05 if builder in HAS_PROBES else 1e-5
        for figure in ("loss", "nll"):
            np.testing.assert_allclose(other[figure], history[figure], rtol=tolerance, err_msg=figure)
        if builder in HAS_PROBES:
            continue
        weights = np.load(folder / "weights.npz")
        check_same_weights(model, [weights[name] for name in weights.files], tolerance=1e-4)


def check_mixed_precision(builder, policy):
    plain = make_model(builder)
    histories = [fit(plain)]
    keras.config.set_dtype_policy(policy)
    try:
        mixed = make_model(builder)
        histories.append(fit(mixed))
    finally:
        keras.config.set_dtype_policy("float32")
    assert log_prob(mixed, images()).dtype == tf.float32
    assert all(variable.dtype == "float32" for variable in mixed.trainable_variables)
    has_networks = builder.startswith(("glow", "coupling", "autoregressive"))
    is_scaled = isinstance(mixed.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (has_networks and policy == "mixed_float16")
    assert sum(histories[1]["skipped_updates"]) == 0
    if has_networks:
        assert histories[1]["nll"] != histories[0]["nll"]
        np.testing.assert_allclose(histories[1]["nll"], histories[0]["nll"], rtol=5e-3)
    else:
        check_same_weights(mixed, plain.get_weights())


def check_compiled_otherwise(builder, **options):
    plain, other = make_model(builder), make_model(builder, **options)
    histories = [fit(model) for model in (plain, other)]
    # XLA has random numbers of its own, and so other probes.
    tolerance = 1e-3 if options.get("jit_compile") else 1e-4
    if options.get("jit_compile") and builder in HAS_PROBES:
        np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=0.05)
        return
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=tolerance)
    check_same_weights(other, plain.get_weights(), tolerance=20.0 * tolerance)


def start_training(kind, builder, folder, *arguments, **environment):
    command = [sys.executable, __file__, "--train", kind, "--builder", builder, "--output", str(folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env=environment)


def finish(processes):
    for process in processes:
        if process.wait(timeout=300) != 0:
            folder = pathlib.Path(process.args[process.args.index("--output") + 1])
            raise RuntimeError(f"A training failed:\n{(folder / 'log.txt').read_text()[-3000:]}")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class KillInSecondEpoch(keras.callbacks.Callback):
    """Ends the process as a machine that fails does."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(kind, builder, folder, kill):
    """One training in this process; leaves its weights and its history in the folder."""
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    make_strategy = {
        "mirrored": lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        "worker": tf.distribute.MultiWorkerMirroredStrategy,
        "resumable": tf.distribute.get_strategy,
    }
    # Of the 4 steps of an epoch 3 at once, so that there is an execution that ends with the data.
    several = kind == "resumable" and builder == "dense_flow"
    options = {"steps_per_execution": 3} if several else {}
    strategy = make_strategy[kind]()
    with strategy.scope():
        model = make_model(builder, **options)
    callbacks = [keras.callbacks.BackupAndRestore(folder / "backup")] if kind == "resumable" else []
    callbacks += [KillInSecondEpoch()] if kill else []
    history = fit(model, data=images_with_a_fault(), callbacks=callbacks)
    for variable in model.variables:
        first, *others = map(np.asarray, strategy.experimental_local_results(variable.value))
        assert len(others) == (kind == "mirrored"), variable.path
        for other in others:
            np.testing.assert_array_equal(other, first, err_msg=variable.path)
    np.savez(folder / "weights.npz", *model.get_weights())
    (folder / "history.json").write_text(json.dumps(history))


def make_table(builders, checks):
    """Runs all; returns a row for each builder: "pass", or why not."""
    rows = []
    for builder in builders:
        row = {"builder": builder}
        for name in checks:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    CHECKS[name](builder, pathlib.Path(folder))
                    row[name] = "pass"
                except Exception as error:
                    row[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{builder:15} {name:16} {row[name]} ({time.perf_counter() - start:.0f} s)", flush=True)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--builders", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--train", choices=("mirrored", "worker", "resumable"))
    parser.add_argument("--builder", choices=BUILDERS)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.builder, arguments.output, arguments.kill)
        return
    rows = make_table(arguments.builders, arguments.checks)
    print(f"\n| builder | {' | '.join(arguments.checks)} |\n|{'---|' * (len(arguments.checks) + 1)}")
    for row in rows:
        print(f"| {' | '.join(row.values())} |")
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
