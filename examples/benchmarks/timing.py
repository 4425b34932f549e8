"""Times of calls in turns, so that a machine whose speed drifts is fair to all, and memory in use.

A call on a GPU returns before its computing ends, so each time includes a wait for the device.
"""

import time

import numpy as np
import tensorflow as tf

# Shorter calls are repeated within a turn, so that each finds its own data in the caches.
_CALLS_A_TURN, _SECONDS_OF_A_LONG_CALL = 5, 0.1


wait = tf.test.experimental.sync_devices


def measure(calls, repeats, seconds):
    """Milliseconds of each call, an array of its turns for each, after a warm-up.

    Args:
      calls: dict from names to functions of no arguments.
      repeats: the most turns of a call.
      seconds: what the turns of one call may take, but for the 2 that each has at least.
    """
    turns, counts = {}, {}
    for name, call in calls.items():
        call()
        wait()
        start = time.perf_counter()
        call()
        wait()
        once = time.perf_counter() - start
        counts[name] = 1 if once > _SECONDS_OF_A_LONG_CALL else _CALLS_A_TURN
        turns[name] = int(np.clip(seconds / (once * counts[name]), min(2, repeats), repeats))
    times = {name: [] for name in calls}
    for turn in range(max(turns.values())):
        for name in [name for name in calls if turn < turns[name]]:
            start = time.perf_counter()
            for _ in range(counts[name]):
                calls[name]()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start) / counts[name])
    return {name: np.array(values) for name, values in times.items()}


def quartiles(values):
    """The columns of a table for the turns of one call."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {
        "median_ms": round(median, 4),
        "quartile_1_ms": round(low, 4),
        "quartile_3_ms": round(high, 4),
        "turns": len(values),
    }


def memory_in_use(key, reset=False):
    """MiB by TensorFlow's own count; `None` where it has none, as on CPUs without oneDNN."""
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    try:
        if reset:
            tf.config.experimental.reset_memory_stats(device)
        return tf.config.experimental.get_memory_info(device)[key] / 2**20
    except ValueError:
        return None
