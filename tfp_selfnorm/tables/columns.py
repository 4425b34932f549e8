"""`Columns`: the description of the columns of a table, and the way from tables to arrays and back."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.tables.frames import column_names, numeric_columns
from tfp_selfnorm.tables.kinds import Integer, Kind, Periodic
from tfp_selfnorm.utils.checks import as_array
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.names import plural
from tfp_selfnorm.utils.seeds import map_with_seeds, stateless_seed
from tfp_selfnorm.utils.types import Array, Seed, TfpObject

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, repr=False)
class Columns:
    """The columns of a table: their names and kinds, and the values that standardise them; see `prepare`.

    It consists of plain values, and so is saved with a model whose builder gets it, or its `preprocessing`.

    Attributes:
      names: the names of the columns, in the order of arrays.
      kinds: the kind of each.
      means: the mean of each, after the map to real numbers.
      deviations: the deviation of each, after it.
      dtype: "float32" or "float64".
      reasons: for each column, a reason for its kind.
    """

    names: tuple
    kinds: tuple[Kind, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    dtype: str
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        rows = [
            (str(n), repr(k), reason)
            for n, k, reason in zip(self.names, self.kinds, self.reasons, strict=True)
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [
            f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {reason}".rstrip() for name, kind, reason in rows
        ]
        return "\n".join([f"{plural(len(rows), 'column')} in {self.dtype}:", *lines])

    @property
    def event_size(self) -> int:
        """The number of columns."""
        return len(self.names)

    @property
    def preprocessing(self) -> TfpObject:
        """The bijector from standardised real numbers to the columns, for the builders of flows.

        Raises:
          ValueError: if a column is periodic: the layers of a builder would mix it with the others, and the
            density would have a seam.
        """
        from tfp_selfnorm.tables.column_map import ColumnMap

        periodic = [n for n, kind in zip(self.names, self.kinds, strict=True) if isinstance(kind, Periodic)]
        if periodic:
            raise ValueError(
                f"`preprocessing` is not for periodic columns, {_listed(periodic)}: the layers behind it "
                "would mix them, and the density would have a seam. Use `tables.table_flow(columns)`."
            )
        return ColumnMap(self)

    def to_array(self, table: Any, argument: str = "table") -> np.ndarray:
        """Returns the values of a table, one row an event, with the columns in the order of `names`.

        Args:
          table: a data frame, or a dict from names to arrays. Its columns may stand in another order.
          argument: the name of the table in errors.

        Raises:
          TypeError: if it is neither, or a column is not numeric, with its name.
          ValueError: if a column is missing or surplus; if a value is missing, not finite or not among those
            of its kind, with the column and the row.
        """
        check_same_names(column_names(table, argument), self.names, argument)
        values = numeric_columns(table, self.names)
        for name, kind, column in zip(self.names, self.kinds, values, strict=True):
            check_support(name, kind, column)
        return np.stack(values, axis=-1).astype(self.dtype)

    def events(self, table: Any, argument: str) -> np.ndarray:
        """Does the same as `to_array`, for the argument of a model.

        Raises:
          ValueError: if the integer columns have no noise: the density at whole numbers means nothing.
        """
        array = self.to_array(table, argument)
        is_whole = [np.array_equal(column, np.floor(column)) for column in array.T]
        pairs = zip(self.names, self.kinds, is_whole, strict=True)
        bare = [name for name, kind, whole in pairs if whole and isinstance(kind, Integer)]
        if bare:
            raise ValueError(
                f"`{argument}` has whole numbers without noise in the integer columns {_listed(bare)}. Give "
                f"`columns.dequantize({argument})` instead of the frame."
            )
        return array

    def dequantize(self, table: Any, seed: Seed = None) -> tf.Tensor:
        """Adds noise from U(0, 1) to the integer columns, which then have a continuous density.

        Let k be the integer columns of a row and x the others. The mean over the noise of `log_prob` is a
        lower bound of the log of the probability of k times the density of x given k. The bound is tight if
        the density does not change between k and k + 1. `dequantize_dataset` gives new noise in each epoch.

        Args:
          table: a table as in `to_array`, or an array or tensor of its rows.
          seed: int or stateless TFP seed; `None` for fresh noise.

        Returns:
          A tensor of the rows, in the dtype of the columns.

        Raises:
          TypeError, ValueError: as `to_array` does, or if an array has another number of columns.

        References: Theis et al., "A note on the evaluation of generative models", ICLR 2016, section 3.1.
        """
        is_table = isinstance(table, dict) or hasattr(table, "columns")
        rows = tf.convert_to_tensor(self.to_array(table) if is_table else as_array(table, "table"))
        if rows.shape.rank is not None and rows.shape[-1:] != [self.event_size]:
            raise ValueError(f"`table` must have {self.event_size} columns; got shape {rows.shape}.")
        rows = tf.cast(rows, self.dtype)
        is_integer = tf.constant([isinstance(kind, Integer) for kind in self.kinds])
        noise = tf.random.stateless_uniform(tf.shape(rows), stateless_seed(seed), dtype=rows.dtype)
        # Rounding must give neither the next integer nor the integer, whose logarithm may be infinite.
        lowest, highest = tf.math.nextafter(rows, rows + 1.0), tf.math.nextafter(rows + 1.0, rows)
        return tf.where(is_integer, tf.clip_by_value(rows + noise, lowest, highest), rows)

    def dequantize_dataset(
        self, dataset: tf.data.Dataset, seed: int | None = None, index: int = 0
    ) -> tf.data.Dataset:
        """Adds new noise in each epoch to the rows of a data set, as `dequantize` does.

        Args:
          dataset: data set of rows of `to_array`, or of tuples that have them, batched or not.
          seed: int, or `None`.
          index: the place of the rows in tuples; for a ConditionalFlowModel 1.

        Raises:
          TypeError, ValueError: if an argument is of another type or out of range.
        """

        def add_noise(element, noise_seed):
            if not isinstance(element, tuple):
                return self.dequantize(element, noise_seed)
            return (*element[:index], self.dequantize(element[index], noise_seed), *element[index + 1 :])

        index = check_int(index, "index", 0)
        return map_with_seeds(dataset, add_noise, seed)

    def to_dict(self, samples: Array) -> dict[Any, np.ndarray]:
        """Returns samples of a flow as a dict from names to arrays, with values as the data have them.

        Integer columns are rounded down, to int64. Bounded columns are brought into their interval, and
        periodic ones into one period.

        Raises:
          ValueError: if the last dimension is not the number of columns.
        """
        samples = np.asarray(as_array(samples, "samples"))
        if samples.shape[-1:] != (self.event_size,):
            raise ValueError(
                f"`samples` must have {self.event_size} columns, (..., {self.event_size}); got shape "
                f"{samples.shape}."
            )
        pairs = enumerate(zip(self.names, self.kinds, strict=True))
        return {name: kind.as_data(samples[..., i]) for i, (name, kind) in pairs}

    def to_frame(self, samples: Array) -> "pd.DataFrame":
        """Does the same as `to_dict`, as a data frame of pandas, which must be installed.

        Raises:
          ValueError: if the samples are no table, such as several for each of several conditions.
        """
        import pandas as pd

        columns = self.to_dict(samples)
        shape = (*next(iter(columns.values())).shape, self.event_size)
        if len(shape) != 2:
            raise ValueError(
                f"`samples` must be a table, (number, {self.event_size}); got shape {shape}. Take those "
                "of one condition, `samples[:, i]`, or `to_dict`."
            )
        return pd.DataFrame(columns)


def check_same_names(names: Any, expected: Any, argument: str) -> None:
    """Raises ValueError if names are missing or surplus; their order does not matter."""
    names = list(names)
    missing = [name for name in expected if name not in names]
    surplus = [name for name in names if name not in expected]
    if missing or surplus:
        parts = [
            f"{word} {_listed(found)}" for word, found in (("lacks", missing), ("adds", surplus)) if found
        ]
        raise ValueError(
            f"`{argument}` must have the columns {_listed(expected)}; it {' and '.join(parts)}. Their order "
            "does not matter."
        )


def check_support(name: Any, kind: Kind, values: np.ndarray) -> None:
    """Raises ValueError if a value of a column is not among those of its kind, with the row."""
    is_right = kind.contains(values)
    if not is_right.all():
        bad = np.flatnonzero(~is_right)
        raise ValueError(
            f"The column {name!r} must be {kind.expected()}, as {kind!r}; got {values[bad[0]]:g} in row "
            f"{bad[0]}, and {plural(len(bad), 'such value')} in all. `kinds` of `tables.prepare` sets "
            "another kind."
        )


def _listed(names):
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more
