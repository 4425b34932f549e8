"""The progress bar: the likelihood, and the figures that are out of the ordinary."""

import math
from typing import Any

import keras

# Above this relative error of R as the inverse of W samples begin to suffer.
_LARGE_ERROR = 0.1
_VALIDATION = "val_"


class ShortProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar without the figures that say that all is well.

    It leaves out the loss and the reconstruction error if the loss is the `nll`, a number of skipped updates
    of 0, a small error of the inverses, and the weight of the regularizer. A figure that was shown once
    stays. With `verbose=2` all figures are shown.
    """

    # It does not change the training, so that Keras may call it from another thread.
    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See Keras."""
        super().on_train_batch_end(batch, self._chosen(logs))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """See Keras."""
        super().on_test_batch_end(batch, self._chosen(logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """See Keras."""
        super().on_epoch_end(epoch, self._chosen(logs))

    def on_test_end(self, logs: Any = None) -> None:
        """See Keras."""
        super().on_test_end(self._chosen(logs))

    def _chosen(self, logs):
        if not logs or self.verbose == 2:
            return logs
        self._shown |= {name for name in logs if _is_notable(name, logs)}
        return {name: value for name, value in logs.items() if name in self._shown}


def _is_notable(name, logs):
    prefix = _VALIDATION if name.startswith(_VALIDATION) else ""
    figure, value = name.removeprefix(prefix), logs[name]
    if figure in ("loss", "reconstruction") and f"{prefix}nll" in logs:
        loss, nll = float(logs.get(f"{prefix}loss", math.nan)), float(logs[f"{prefix}nll"])
        return not math.isclose(loss, nll, rel_tol=1e-6)
    if figure == "skipped_updates":
        return value > 0
    if figure == "inverse_error":
        return not value <= _LARGE_ERROR
    return figure != "reconstruction_weight"


def with_short_progress(callbacks: Any, verbose: int | str) -> Any:
    """The callbacks with a `ShortProgress`, unless there is no progress bar, or another one already."""
    if verbose == 0 or isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
    if any(isinstance(callback, keras.callbacks.ProgbarLogger) for callback in given):
        return callbacks
    return [*given, ShortProgress()]
