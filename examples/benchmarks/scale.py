"""Checks the model of a training step (`step_model.py`) against measured steps.

    python examples/benchmarks/scale.py measure --csv FILE        # some minutes on two quiet cores
    python examples/benchmarks/scale.py table --csv FILE          # fits and predicts again
    python examples/benchmarks/scale.py measure --quick --csv FILE

Each replica computes by one thread, pinned to a core. The settings are one device without a strategy, a
`MirroredStrategy` of one device, one of two devices in one process, and a `MultiWorkerMirroredStrategy` of
two processes on this machine.

A row has the median and the quartiles of the milliseconds of a step without refreshes. The cases of a setting
take turns. A refresh is what the host does between two steps for one layer. The peak is what TensorFlow holds
more than before the model was made. It counts its memory with oneDNN alone, so oneDNN is on, and it leaves
out tensors below 256 KiB, so there is no peak for small D.

The constants of the machine are fitted to D = 64, 512 and 2048, with B = 100 and two layers, by least
squares of relative errors. All other rows are a check: the fit has not seen them. What a step holds for a
while is fitted to the peaks at D = 1024, and checked by the others. Both commands add the predictions to the
file, and write the constants beside it.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import socket
import subprocess
import sys

from shared import machine, write_csv
from step_fit import (
    DEVICES,
    ONE,
    REFRESH,
    REPLICA,
    SETTINGS,
    WORKERS,
    constants_of,
    held_of,
    is_fitted,
    predicted_mib,
    predicted_ms,
)

_SIZES = (64, 512, 1024, 2048)
# Method, D, B and layers.
_PLAIN = [[method, size, 100, 2] for size in _SIZES for method in ("tracked", "paper")]
_VARIED = [["tracked", 1024, 400, 2], ["tracked", 1024, 100, 4]]
_EXACT = [["exact", size, 100, 2] for size in _SIZES]
_LARGE = [[method, 4096, 100, 2] for method in ("tracked", "paper")]
CASES = {
    ONE: [*_PLAIN, *_EXACT, *_LARGE, *_VARIED, *([REFRESH, size, 0, 1] for size in _SIZES[1:])],
    REPLICA: [*_PLAIN, *_VARIED],
    DEVICES: [*_PLAIN, *_VARIED],
    WORKERS: [*_PLAIN, *_VARIED],
}
QUICK_CASES = [[method, size, 100, 2] for size in (8, 64) for method in ("tracked", "paper", "exact")]
_CORES = {ONE: [1], REPLICA: [1], DEVICES: [0, 1]}
_NUMBERS = {"D": int, "B": int, "layers": int, "replicas": int, "median_ms": float, "peak_mib": float}


def free_ports(count):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def start(setting, cases, cores, **environment):
    """A process on some cores that prints the rows of the cases as JSON."""
    script = str(pathlib.Path(__file__).with_name("step_times.py"))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1", **environment}

    def pin():
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)] for core in cores})

    return subprocess.Popen(
        [sys.executable, script, setting, json.dumps(cases)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=pin if hasattr(os, "sched_setaffinity") else None,
    )


def processes_of(setting, cases):
    """The processes of a setting: one, or one for each worker."""
    if setting != WORKERS:
        return [start(setting, cases, _CORES[setting])]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(2)]
    return [start(setting, cases, [i], TF_CONFIG=json.dumps(task)) for i, task in enumerate(tasks)]


def measure(setting, cases, pauses=False):
    """Yields the rows of a setting, from processes of its own."""
    processes = processes_of(setting, cases)
    try:
        for process in processes:
            while (line := process.stdout.readline()) != "ready\n":
                if not line:
                    raise SystemExit(f"A process of the setting {setting!r} failed.")
        if pauses:
            input(f"Ready for {setting}. Enter: ")
        for process in processes:
            print(file=process.stdin, flush=True)
        for _ in cases:
            for process in processes[1:]:
                process.stdout.readline()
            yield json.loads(processes[0].stdout.readline())
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def read(path):
    """The measured columns of a file, as numbers."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({name: kind(row[name]) for name, kind in _NUMBERS.items() if row[name] != ""})
    return [{name: row[name] for name in list(row)[: list(row).index("peak_mib") + 1]} for row in rows]


def with_predictions(rows, constants):
    """The rows with the columns of the model."""
    held = {setting: held_of([row for row in rows if row["setting"] == setting]) for setting in constants}
    for row in rows:
        parts = predicted_ms(row, constants[row["setting"]])
        total = sum(parts.values())
        predicted = {
            "use": "fit" if is_fitted(row) else "check",
            "predicted_ms": round(total, 2),
            "predicted_over_measured": round(total / row["median_ms"], 3),
            "predicted_mib": "",
            "mib_ratio": "",
        }
        if held[row["setting"]] is not None and row["method"] != REFRESH and row["peak_mib"] != "":
            mib = predicted_mib(row, held[row["setting"]])
            predicted |= {"predicted_mib": round(mib, 2), "mib_ratio": round(mib / row["peak_mib"], 3)}
        of_step = ("products", "inverses", "kernels", "activations", "all-reduce", "overhead")
        yield {**row, **predicted, **{f"{name}_ms": round(parts.get(name, 0.0), 3) for name in of_step}}


def constant_rows(rows, constants):
    """The constants of each setting, with what a step holds for a while at its peak."""
    for setting, values in constants.items():
        held = held_of([row for row in rows if row["setting"] == setting])
        kernels, activations = ("", "") if held is None else (round(float(x), 2) for x in held)
        yield {
            "setting": setting,
            "products_gflops": round(values.products / 1e9, 1),
            "inverses_gflops": round(values.inverses / 1e9, 1),
            "memory_gb_s": round(values.memory / 1e9, 2),
            "overhead_ms": round(1e3 * values.overhead, 2),
            "link_gb_s": "" if math.isinf(values.network) else round(values.network / 1e9, 3),
            "latency_ms": round(1e3 * values.latency, 3),
            "held_kernels": kernels,
            "held_activations": activations,
        }


def report(rows, path):
    """Fits, prints predicted beside measured, and writes both files."""
    constants = constants_of(rows)
    table, path = list(with_predictions(rows, constants)), pathlib.Path(path)
    print(
        f"{'setting':12}{'method':9}{'D':>5}{'B':>5}{'L':>3}{'ms':>9}{'model':>9}{'ratio':>7}{'MiB':>9}{'model':>9}"
    )
    for row in table:
        print(
            f"{row['setting']:12}{row['method']:9}{row['D']:5}{row['B']:5}{row['layers']:3}{row['median_ms']:9.2f}"
            f"{row['predicted_ms']:9.2f}{row['predicted_over_measured']:7.2f}{row['peak_mib']!s:>9}"
            f"{row['predicted_mib']!s:>9}  {row['use']}"
        )
    write_csv(path, table)
    of_machine = list(constant_rows(rows, constants))
    write_csv(path.with_name(f"{path.stem}_constants.csv"), of_machine)
    for row in of_machine:
        print(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("measure", "table"))
    parser.add_argument("--csv", required=True)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--pause", action="store_true", help="wait for Enter before each setting is timed")
    arguments = parser.parse_args()
    print(machine())
    rows = read(arguments.csv) if pathlib.Path(arguments.csv).exists() else []
    for setting in arguments.settings if arguments.command == "measure" else ():
        rows = [row for row in rows if row["setting"] != setting]
        rows += measure(setting, QUICK_CASES if arguments.quick else CASES[setting], arguments.pause)
        write_csv(arguments.csv, rows)
    report(sorted(rows, key=lambda row: SETTINGS.index(row["setting"])), arguments.csv)


if __name__ == "__main__":
    main()
