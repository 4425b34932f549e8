"""Fits the constants of `step_model.py` to measured steps, and predicts all of them.

The compute constants and the overhead without a strategy come from one device. Under a strategy of one device
only the overhead is fitted, with several replicas only the bytes a second and the latency of the link.
"""

import dataclasses
import math

import numpy as np
from scipy.optimize import nnls
from step_model import Machine, Step, link_bytes, messages, peak_bytes, seconds

ONE, REPLICA, DEVICES, WORKERS = SETTINGS = ("one device", "one replica", "two devices", "two workers")
REFRESH = "refresh"
# Of the rows of these sizes, those with this batch and number of layers are fitted.
FITTED_SIZES, _BATCH, _LAYERS = (64, 512, 2048), 100, 2
# The peaks of all rows of this size are fitted: there the batch and the number of layers differ.
_SIZE_OF_PEAKS = 1024
# The measured steps have no refreshes.
_NEVER = 10**9
_MIB = 2**20
# Nothing held, one kernel, one activation a layer.
_UNITS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
_NO_LINK = {"network": math.inf, "latency": 0.0}


def is_fitted(row):
    """Whether the constants are fitted to the row; the others are a check."""
    has_plain_shape = row["method"] == REFRESH or (row["B"], row["layers"]) == (_BATCH, _LAYERS)
    return row["D"] in FITTED_SIZES and has_plain_shape


def step_of(row):
    """The `Step` of a row."""
    hosts = row["replicas"] if row["setting"] == WORKERS else 1
    shape = row["D"], row["B"], row["layers"], row["replicas"], hosts
    return Step(row["method"], *shape, has_strategy=row["setting"] != ONE, refresh_every=_NEVER)


def constants_of(rows):
    """A `Machine` for each setting of the rows; the setting of one device must be there."""
    chosen = {setting: [r for r in rows if r["setting"] == setting and is_fitted(r)] for setting in SETTINGS}
    products, inverses, memory, overhead = _least_squares(chosen[ONE], _compute_columns)
    base = Machine(_rate(products), _rate(inverses), _rate(memory), overhead)
    machines = {ONE: base}
    if chosen[REPLICA]:
        (overhead,) = _least_squares(chosen[REPLICA], lambda row: [1.0], base, overhead=0.0)
        base = machines[REPLICA] = dataclasses.replace(base, overhead=overhead)
    for setting in (DEVICES, WORKERS):
        if chosen[setting]:
            network, latency = _least_squares(chosen[setting], _link_columns, base, **_NO_LINK)
            machines[setting] = dataclasses.replace(base, network=_rate(network), latency=latency)
    return machines


def predicted_ms(row, machine):
    """Milliseconds of each part of the step of a row, or of a refresh."""
    if row["method"] == REFRESH:
        return {"refreshes": 1e3 * _refresh_operations(row) / machine.inverses}
    return {name: 1e3 * value for name, value in seconds(step_of(row), machine).items()}


def held_of(rows):
    """What a step holds for a while, at its peak: numbers over those of a kernel, and of an activation."""
    rows = [row for row in rows if row["D"] == _SIZE_OF_PEAKS and row["method"] != REFRESH]
    if not rows or any(row["peak_mib"] == "" for row in rows):
        return None
    lasting, *columns = (np.array([predicted_mib(row, held) for row in rows]) for held in _UNITS)
    columns = np.stack(columns, axis=1) - lasting[:, np.newaxis]
    peaks = np.array([row["peak_mib"] for row in rows])
    solution, _ = nnls(columns / peaks[:, np.newaxis], (peaks - lasting) / peaks)
    return tuple(map(float, solution))


def predicted_mib(row, held):
    """The peak of the memory of a row, of all replicas in its process."""
    return _local_replicas(row) * peak_bytes(step_of(row), held) / _MIB


def _local_replicas(row):
    return row["replicas"] if row["setting"] == DEVICES else 1


def _compute_columns(row):
    if row["method"] == REFRESH:
        return [0.0, _refresh_operations(row), 0.0, 0.0]
    step = step_of(row)
    traffic = step.kernel_traffic() + step.activation_traffic()
    return [step.product_operations(), step.inverse_operations(), traffic, 1.0]


def _link_columns(row):
    return [link_bytes(step_of(row)), messages(step_of(row))]


def _refresh_operations(row):
    return Step("tracked", row["D"], layers=1, refresh_every=1).refresh_operations()


def _least_squares(rows, columns_of, base=None, **without):
    """Coefficients of the columns, 0 or more, by least squares of relative errors.

    With a machine they explain what it leaves over without the constants that are given.
    """
    columns = np.array([columns_of(row) for row in rows], float)
    measured = np.array([row["median_ms"] / 1e3 for row in rows])
    known = np.zeros(len(rows))
    if base is not None:
        known = np.array(
            [sum(seconds(step_of(row), dataclasses.replace(base, **without)).values()) for row in rows]
        )
    units = columns.max(axis=0)
    solution, _ = nnls(columns / units / measured[:, np.newaxis], (measured - known) / measured)
    return (solution / units).tolist()


def _rate(seconds_each):
    return 1.0 / seconds_each if seconds_each > 0.0 else math.inf
