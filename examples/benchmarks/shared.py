"""What the benchmarks take from the experiments beside them."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "experiments"))

from data_sets import batches, load  # noqa: E402
from raw_files import machine, write_csv  # noqa: E402

__all__ = ["batches", "load", "machine", "write_csv"]
