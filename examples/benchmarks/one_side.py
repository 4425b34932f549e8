"""One side of `side_by_side.py`: a process with one library that times and trains flows when it is told to.

It reads a request a line, as JSON, and answers with a line. Between its turns it waits and computes nothing.
It needs numpy alone; `tensorflow_flows` and `torch_flows` make the flows, each in its own environment.
"""

import importlib
import json
import sys
import time

import numpy as np

BATCH = 100
# Steps before the first time is taken, and the most in a turn.
_WARM_UP, _MOST_STEPS = 2, 500
# As in `tfp_selfnorm.images.pixel_sigmoid`.
_ALPHA = 1e-6
# Passes through the digits between two validations.
_PASSES = 10


class Digits:
    """Logits of dequantised digits, standardised.

    Args:
      path: an npz file with the integers `train` and `validation`, `[number, pixels]`, and `num_levels`.
      seed: int, of the noise and the order.
    """

    def __init__(self, path, seed):
        with np.load(path) as arrays:
            self._train, self._levels = arrays["train"], int(arrays["num_levels"])
            held_out = arrays["validation"]
        self._rng = np.random.default_rng(seed)
        first, _ = self._logits(np.repeat(self._train, _PASSES, axis=0), np.random.default_rng(1))
        self._mean, self._deviation = first.mean(axis=0), first.std(axis=0)
        logits, log_det = self._logits(held_out, np.random.default_rng(2))
        self.validation = self._scaled(logits)
        # The log-det of all that the flow does not see.
        self.log_det = log_det.mean() - np.log(self._deviation).sum()

    def training_events(self):
        """Some passes, with new noise and in a new order, in whole batches."""
        count = len(self._train) // BATCH * BATCH
        rows = np.concatenate([self._rng.permutation(len(self._train))[:count] for _ in range(_PASSES)])
        return self._scaled(self._logits(self._train[rows], self._rng)[0])

    def _logits(self, pixels, rng):
        shares = _ALPHA + (1 - 2 * _ALPHA) * (pixels + rng.uniform(size=pixels.shape)) / self._levels
        slopes = (1 - 2 * _ALPHA) / self._levels / (shares * (1 - shares))
        return np.log(shares) - np.log1p(-shares), np.log(slopes).sum(axis=1)

    def _scaled(self, logits):
        return ((logits - self._mean) / self._deviation).astype(np.float32)


class Side:
    """The tasks. Flows that were timed are kept for the next turn."""

    def __init__(self, make):
        self._make, self._timed = make, {}

    def steps(self, size, maker, options, rules, seconds):
        """Milliseconds of a step on normal events, over some seconds; of the processor, as all times here."""
        key = json.dumps([size, maker, options])
        if key not in self._timed:
            flow = self._make[maker](size, seed=1, **rules, **options)
            events = np.random.default_rng(0).normal(size=[_MOST_STEPS * BATCH, size]).astype(np.float32)
            warm_up = events[: _WARM_UP * BATCH]
            flow.train(warm_up)
            start = time.process_time()
            flow.train(warm_up)
            each = (time.process_time() - start) / _WARM_UP
            self._timed[key] = flow, events[: int(np.clip(seconds / each, 2, _MOST_STEPS)) * BATCH]
        flow, events = self._timed[key]
        start = time.process_time()
        flow.train(events)
        return {"step_cpu_ms": 1e3 * (time.process_time() - start) / (len(events) // BATCH)}

    def fit(self, path, seed, maker, options, rules, target, limit):
        """Trains on the digits until the exact validation NLL is at the target, or the CPU seconds are over.

        The seconds are those of making and compiling the flow and of its steps, not of the validations.
        """
        data = Digits(path, seed)
        seconds, num_steps, best, flow = 0.0, 0, np.inf, None
        while best > target and seconds < limit:
            events = data.training_events()
            start = time.process_time()
            flow = flow or self._make[maker](events.shape[1], seed=seed, **rules, **options)
            flow.train(events)
            seconds += time.process_time() - start
            num_steps += len(events) // BATCH
            nll = -float(np.mean(flow.log_prob(data.validation))) - data.log_det
            if not np.isfinite(nll):
                break
            best = min(best, nll)
        reached = seconds if best <= target else None
        return {"reached_cpu_s": reached, "steps": num_steps, "val_nll": best, "cpu_s": seconds}


def main():
    answers, sys.stdout = sys.stdout, sys.stderr
    side = Side(importlib.import_module(sys.argv[1]).MAKERS)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(side, request.pop("task"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
