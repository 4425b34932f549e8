"""Data frames in `fit` and its like: columns are checked by name, and come in the order of the model."""

from typing import Any

from tfp_selfnorm.structure.layers import bijectors_of
from tfp_selfnorm.tables import ColumnMap
from tfp_selfnorm.tables.columns import check_same_names
from tfp_selfnorm.tables.frames import checked_numeric, is_frame
from tfp_selfnorm.utils.types import TfpObject

_PARTS = ("events", "conditions")


class Frames:
    """The columns of the frames that a model takes, for events and for conditions.

    Those of events are the columns of a `ColumnMap` in the flow. Else they are those of the first frame that
    `fit` or `adapt` got. Other data pass as they are.

    Args:
      distribution: the distribution of the model.

    Attributes:
      columns: the `tables.Columns` of the flow, or `None`.
    """

    def __init__(self, distribution: TfpObject) -> None:
        maps = bijectors_of(ColumnMap, distribution, "distribution")
        self.columns = maps[0].columns if maps else None
        self._names: dict[str, list | None] = dict.fromkeys(_PARTS)

    @property
    def names(self) -> dict[str, list]:
        """The names that the model got from frames, if a file can keep them; those of a `ColumnMap` aside."""
        pairs = {part: names for part, names in self._names.items() if names is not None}
        return {part: ns for part, ns in pairs.items() if all(isinstance(name, (str, int)) for name in ns)}

    @names.setter
    def names(self, names: dict[str, list]) -> None:
        self._names = dict.fromkeys(_PARTS) | names

    def remember(self, x: Any, y: Any, has_conditions: bool) -> None:
        """Takes the columns of frames that `fit` or `adapt` accepted, if the model has none."""
        if isinstance(x, (tuple, list)) and any(map(is_frame, x[:2])):
            x, y = (*x, None)[:2]
        for part, value in (("conditions", x), ("events", y)) if has_conditions else (("events", x),):
            if is_frame(value) and self._names[part] is None:
                names = list(value.columns)
                self._names[part] = names if len(set(names)) == len(names) else None

    def pair(self, x: Any, y: Any, has_conditions: bool, names: Any = ("x", "y")) -> tuple[Any, Any]:
        """Does `ordered` for the events, the first of two arguments, or for the conditions and the events."""
        if not has_conditions:
            return self.ordered(x, names[0]), y
        return self.ordered(x, names[0], "conditions"), self.ordered(y, names[1])

    def element(self, data: Any, has_conditions: bool, name: str) -> Any:
        """Does the same for data that may be a tuple or list of arrays."""
        if isinstance(data, (tuple, list)) and any(map(is_frame, data[:2])):
            second = data[1] if len(data) > 1 else None
            names = (f"{name}[0]", f"{name}[1]") if has_conditions else (name, name)
            parts = self.pair(data[0], second, has_conditions, names)
            return (*parts[: len(data)], *data[2:])
        return data if has_conditions else self.ordered(data, name)

    def ordered(self, value: Any, name: str, part: str = "events") -> Any:
        """Returns a frame with its columns in the order of the model, and other data as they are.

        Args:
          value: a frame, or other data.
          name: the name of the argument.
          part: "events" or "conditions".

        Raises:
          TypeError: if a column is not numeric, with its name.
          ValueError: if columns are missing or surplus, with their names; with a `ColumnMap` also if a value
            is not one of its column, or integers came without noise.
        """
        if not is_frame(value):
            return value
        if part == "events" and self.columns is not None:
            return self.columns.events(value, name)
        known = self._names[part]
        if known is not None:
            check_same_names(value.columns, known, name)
            value = value[known]
        return checked_numeric(value, name)
