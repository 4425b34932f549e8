"""Reads tables: data frames of pandas and its like, and dicts from names to arrays."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfp_selfnorm.utils.names import plural

_ADVICE = (
    "Numbers that were read as text become numbers by `pandas.to_numeric(frame[name], errors='coerce')`, "
    "and other text is missing then. Leave categories out; encode them as numbers, such as "
    "`frame[name].astype('category').cat.codes` or a column of 0 and 1 for each value; or give them to a "
    "ConditionalFlowModel as a condition, by an embedding."
)
_NUMERIC = tuple("biuf")
_READ_TEXTS = 10_000
_DATES = "Dates and times become numbers by `(frame[name] - start) / pandas.Timedelta('1s')`."


def is_frame(value: Any) -> bool:
    """Whether it is a data frame, of pandas or another library: it has named columns."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def column_names(table: Any, name: str = "table") -> list:
    """The names of the columns of a data frame or a dict.

    Raises:
      TypeError: if it is neither.
      ValueError: if it has no columns, or two of one name.
    """
    if not (is_frame(table) or isinstance(table, Mapping)):
        raise TypeError(
            f"`{name}` must be a data frame, or a dict from names to arrays; got {type(table).__name__}."
        )
    names = list(table.columns) if is_frame(table) else list(table)
    if not names:
        raise ValueError(f"`{name}` has no columns.")
    repeated = sorted({str(n) for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(f"`{name}` has several columns of one name: {', '.join(repeated)}.")
    return names


def numeric_columns(table: Any, names: Iterable[Any]) -> list[np.ndarray]:
    """The columns of these names, as float64 arrays of one length.

    Raises:
      TypeError: if columns are not numeric, with their names.
      ValueError: if a column is no vector, the lengths differ, there are no rows, or a value is missing or
        not finite, with the column and the row.
    """
    values = _numeric(table, names, "`table` must have numeric columns")
    first = next(iter(values))
    for name, column in values.items():
        if column.ndim != 1 or len(column) != len(values[first]):
            raise ValueError(
                f"Columns must be vectors of one length; {first!r} has shape {values[first].shape}, and "
                f"{name!r} {column.shape}."
            )
        if not len(column):
            raise ValueError("The table has no rows.")
        rows = np.flatnonzero(~np.isfinite(column))
        if rows.size:
            raise ValueError(
                f"The column {name!r} has {column[rows[0]]} in row {rows[0]}, and "
                f"{plural(rows.size, 'value')} in all that are missing or not finite. Fill them in, or leave "
                "out these rows."
            )
    return list(values.values())


def checked_numeric(table: Any, name: str) -> Any:
    """Returns a frame as it is, or as an array if it has bools beside floats, as `pandas.get_dummies` makes.

    Raises:
      TypeError: if a column is not numeric, with its name.
    """
    names = list(table.columns)
    if len(set(names)) < len(names):
        return table
    columns = _numeric(table, names, f"`{name}` must be floating; got dtype object")
    kinds = {getattr(getattr(table[n], "dtype", None), "kind", "") for n in names}
    return np.stack(list(columns.values()), axis=-1) if {"b", "f"} <= kinds else table


def _numeric(table, names, problem):
    """The columns by name, as arrays of float64."""
    columns = {name: _column(table[name]) for name in names}
    bad = {name: kind for name, (kind, _) in columns.items() if kind is not None}
    if bad:
        listed = ", ".join(
            f"{name!r} ({kind}{_text_of(table[name])})" for name, kind in list(bad.items())[:10]
        )
        advice = _DATES if any("date" in kind or "time" in kind for kind in bad.values()) else _ADVICE
        raise TypeError(f"{problem}. These are not numeric: {listed}. {advice}")
    return {name: column for name, (_, column) in columns.items()}


def _text_of(column):
    """The first text of a column that is no number, such as a decimal comma, in words."""
    if isinstance(column, str) or not np.iterable(column):
        return ""
    texts = ((row, value) for row, value in enumerate(column) if isinstance(value, str))
    found = False
    for row, value in itertools.islice(texts, _READ_TEXTS):
        found = True
        try:
            float(value)
        except ValueError:
            return f", {value[:40]!r} in row {row}"
    return ", numbers as text" if found else ""


def whole_dtype(table: Any, name: Any) -> bool:
    """Whether the dtype of a column is one of integers or bools."""
    return getattr(getattr(table[name], "dtype", None), "kind", "") in tuple("biu")


def _column(column):
    """The kind of a column that is not numeric, or `None`, and its values."""
    kind = getattr(getattr(column, "dtype", None), "kind", None)
    if kind is not None and kind not in _NUMERIC:
        return str(column.dtype), None
    if np.ma.isMaskedArray(column):
        column = np.ma.filled(column.astype(np.float64), np.nan)
    try:
        # An extension dtype of pandas may have missing values that numpy does not know.
        array = column.to_numpy(dtype="float64", na_value=np.nan) if kind else np.asarray(column)
    except (AttributeError, TypeError):
        array = np.asarray(column)
    except ValueError:
        return "rows of several lengths", None
    if array.dtype.kind not in _NUMERIC:
        return str(array.dtype), None
    return None, array.astype(np.float64)
