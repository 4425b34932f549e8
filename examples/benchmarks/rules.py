"""The rules, the clock and the file of figures, which are equal for all libraries."""

import csv
import dataclasses
import pathlib
import time


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of one training.

    After `patience` epochs without a better validation NLL the learning rate falls to 0.3 times its value,
    and so on. After three times as many the training ends, or after `limit` CPU seconds or `max_epochs`. The
    weights are those of the best epoch. The clock counts all threads, and compiling.
    """

    batch_size: int = 128
    patience: int = 10
    limit: float = 60.0
    max_epochs: int = 2000
    clip: float = 5.0


FACTOR, PATIENCES = 0.3, 3


class Clock:
    """CPU seconds since it was made."""

    def __init__(self):
        self.start = time.process_time()

    def seconds(self):
        return time.process_time() - self.start


class Rows:
    """A csv file of figures; a row that is there is not computed again."""

    def __init__(self, path, keys):
        self.path, self.keys = pathlib.Path(path), keys
        self.rows = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, **key):
        wanted = [str(key[name]) for name in self.keys]
        return any([row[name] for name in self.keys] == wanted for row in self.rows)

    def add(self, row):
        row = {name: f"{x:.6g}" if isinstance(x, float) else str(x) for name, x in row.items()}
        is_new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
