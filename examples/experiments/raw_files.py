"""What the examples share in writing figures down."""

import csv
import datetime
import os
import pathlib
import platform

import tensorflow as tf
import tensorflow_probability as tfp


def write_csv(path, rows):
    """Writes dicts that have the same keys, whole or not at all."""
    path = pathlib.Path(path)
    partial = path.with_suffix(".new")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def machine():
    """The date, the machine and the versions, for the head of a table."""
    device = (tf.config.list_physical_devices("GPU") or ["CPU"])[0]
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, {device}, "
        f"TensorFlow {tf.__version__}, TFP {tfp.__version__}"
    )
