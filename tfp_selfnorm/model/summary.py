"""The table of `FlowModel.summary`: bijectors, from data to latent, and the base distribution."""

import math
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import rich.console
import rich.table
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import ChannelSplit, Conditional
from tfp_selfnorm.bijectors.adaptable import adaptation_mode
from tfp_selfnorm.bijectors.conditional import condition_arguments

tfb = tfp.bijectors
tfd = tfp.distributions


def text_of(model: keras.Model) -> str:
    """A model in a line."""
    number = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return (
        f"<{type(model).__name__} {model.name!r} of {model.distribution.name!r}: events "
        f"{model.distribution.event_shape}, {number:,} trainable parameters>"
    )


class Row(NamedTuple):
    """A bijector or another part of a flow, with all variables in it."""

    name: str
    kind: str
    shapes: str
    variables: list
    level: int = 0


def print_summary(
    model: keras.Model,
    line_length: int | None,
    positions: Sequence[float] | None,
    print_fn: Callable[[str], Any] | None,
    expand_nested: bool,
    show_trainable: bool,
    layer_range: Sequence[str] | None,
) -> None:
    """Prints the table and the totals; see `FlowModel.summary`."""
    wrapped = {variable.value.ref(): variable for variable in model.weights}
    of_flow = {variable.value.ref() for variable in model._flow_variables.values()}
    condition = None if model.conditions is None else model.conditions.example()
    rows = _all_rows(model.distribution, expand_nested, of_flow, condition)

    def counts(variables):
        """The numbers of parameters that train, and of others."""
        references = {variable.ref() for variable in variables}
        trains = {ref: wrapped.get(ref, ref.deref()).trainable for ref in references}
        return [_size(ref.deref() for ref in references if trains[ref] == flag) for flag in (True, False)]

    line_length = line_length or min(88 + 12 * show_trainable, shutil.get_terminal_size().columns - 4)
    table = _table(positions, line_length, show_trainable)
    for row in _in_range(rows, layer_range):
        numbers = counts(row.variables)
        name = "   " * row.level + "└ " * (row.level > 0) + f"{row.name} ({row.kind})"
        trains = "-" if not row.variables else "Y" if numbers[0] else "N"
        table.add_row(name, row.shapes, *(f"{number:,}" for number in numbers), *[trains] * show_trainable)
    trainable, fixed = counts(ref.deref() for ref in _references(rows) | of_flow)
    totals = {"Total params": trainable + fixed, "Trainable params": trainable, "Non-trainable params": fixed}
    state = (variable.value for reference, variable in wrapped.items() if reference not in of_flow)
    totals["State of the training (held log-dets, counters)"] = _size(state)
    if model.optimizer is not None and model.optimizer.built:
        totals["Optimizer params"] = _size(variable.value for variable in model.optimizer.variables)
    lines = [f'Model: "{model.name}"', table, *(f" {name}: {number:,}" for name, number in totals.items())]
    console = rich.console.Console(width=line_length, markup=False, highlight=False, color_system=None)
    with console.capture() as text:
        console.print(*lines, sep="\n")
    (print_fn or print)(text.get())


def _all_rows(distribution, expand_nested, of_flow, condition):
    """The rows of a distribution, with each variable of a flow."""
    rows = _flow_rows(distribution, expand_nested, frozenset(), condition)
    if of_flow - _references(rows):
        # A Python function holds some of them. A call of it finds them.
        rows = _flow_rows(distribution, expand_nested, of_flow, condition)
    if hidden := of_flow - _references(rows):
        rows.append(Row("others", "held by functions", "", [ref.deref() for ref in hidden]))
    return rows


def _size(variables):
    return sum(variable.shape.num_elements() for variable in variables)


def _flow_rows(distribution, expand_nested, hidden, condition):
    """The bijectors of a distribution, from data to latent, and its base distribution.

    Args:
      distribution: a TFP distribution.
      expand_nested: whether the parts of a bijector, or of a base distribution, have rows too.
      hidden: references of variables to find by a call of each bijector.
      condition: a batch of one condition, or `None`.
    """
    with adaptation_mode("ignore"):
        value = distribution.sample(1, seed=0, **condition_arguments(condition)) if hidden else None
        rows, shape = [], distribution.event_shape
        # Subclasses, such as tfd.MultivariateNormalDiag, are bases.
        while _class_name(distribution) in ("TransformedDistribution", "PreprocessedFlow"):
            walk = _Walk(shape, value, hidden, expand_nested)
            walk.condition = condition
            walk.pass_through(distribution.bijector)
            rows += walk.rows
            shape, value, distribution = walk.shape, walk.value, distribution.distribution
    rows.append(Row(distribution.name, _kind(distribution), _format(shape), list(distribution.variables)))
    return rows + (_nested_rows(distribution, 1) if expand_nested else [])


class _Walk:
    """Makes rows from data to latent; carries the event shape and, to find hidden variables, an event."""

    condition: Any = None

    def __init__(self, shape: Any, value: Any, hidden: Any, expand_nested: bool, level: int = 0) -> None:
        self.shape, self.value = shape, value
        self.rows: list[Row] = []
        self._hidden, self._expand_nested, self._level = hidden, expand_nested, level

    def pass_through(self, bijector, inverted=False):
        if _class_name(bijector) == "Invert":
            self.pass_through(bijector.bijector, not inverted)
        elif _class_name(bijector) == "Chain":
            for part in reversed(bijector.bijectors) if inverted else bijector.bijectors:
                self.pass_through(part, inverted)
        elif isinstance(bijector, Conditional) and self.value is None:
            if isinstance(embedding := bijector.embedding, keras.Layer):
                variables = [weight.value for weight in embedding.weights]
                self.rows.append(Row(embedding.name, "embedding", "", variables, self._level))
            self.pass_through(bijector.bijector, inverted)
        else:
            self._add(bijector, inverted)

    def _add(self, bijector, inverted):
        shape, value, variables = self.shape, self.value, list(bijector.variables)
        self.shape = (bijector.forward_event_shape if inverted else bijector.inverse_event_shape)(shape)
        if value is not None:
            given = {"condition": self.condition} if isinstance(bijector, Conditional) else {}
            with tf.GradientTape() as tape:
                function = bijector.forward if inverted else bijector.inverse
                self.value = function(tf.nest.map_structure(tf.identity, value), **given)
            variables += [v for v in tape.watched_variables() if v.ref() in self._hidden]
        kind = f"Invert({_class_name(bijector)})" if inverted else _class_name(bijector)
        shapes = f"{_format(shape)} → {_format(self.shape)}"
        self.rows.append(Row(bijector.name, kind, shapes, variables, self._level))
        if isinstance(bijector, ChannelSplit):
            number = bijector.parameters["num_channels"] or shape[-1] // 2
            shape = tf.TensorShape([*shape[:-1], number])
            value = None if value is None else value[..., :number]
            inner = _Walk(shape, value, self._hidden, self._expand_nested, self._level + 1)
            inner.pass_through(bijector.bijector, inverted)
            self.rows += inner.rows
        elif self._expand_nested:
            self.rows += _nested_rows(bijector, self._level + 1)


def _nested_rows(owner, level):
    """Rows, without shapes, of the bijectors, distributions and Keras layers that an owner holds."""
    rows = []
    parts = owner.layers if isinstance(owner, keras.Model) else tf.nest.flatten(owner.parameters)
    for part in parts:
        if isinstance(part, (tfb.Bijector, tfd.Distribution)):
            variables = list(part.variables)
        elif isinstance(part, keras.layers.Layer):
            variables = [weight.value for weight in part.weights]
        else:
            continue
        rows.append(Row(part.name, _kind(part), "", variables, level))
        if not isinstance(part, keras.layers.Layer) or isinstance(part, keras.Model):
            rows += _nested_rows(part, level + 1)
    return rows


def _class_name(part):
    """The public name: some classes have a private twin, which is a CompositeTensor or is none."""
    return type(part).__name__.removeprefix("_Composite").removeprefix("_")


def _kind(part):
    """The class; for wrappers such as `tfd.Sample` also the class of the inner distribution."""
    inner = getattr(part, "distribution", None) if isinstance(part, (tfd.Sample, tfd.Independent)) else None
    return _class_name(part) + (f" of {_kind(inner)}" if inner is not None else "")


def _format(shape):
    shapes = tf.nest.flatten(tf.nest.map_structure(lambda part: tuple(tf.TensorShape(part)), shape))
    return str(tuple(shape)) if isinstance(shape, tf.TensorShape) else str(shapes)


def _references(rows):
    return {variable.ref() for row in rows for variable in row.variables}


def _table(positions, line_length, show_trainable):
    header = ["Layer (type)", "Event shape", "Trainable", "Fixed"]
    positions = positions or [0.38, 0.66, 0.83, 1.0]
    if show_trainable:
        header.append("Trains")
        positions = [0.9 * position for position in positions] + [1.0] if len(positions) == 4 else positions
    if len(positions) != len(header):
        raise ValueError(f"`positions` must be {len(header)} numbers, one a column; got {positions!r}.")
    ends = [int(position * line_length) for position in positions]
    # Without the border and a space on each side.
    widths = [end - begin - 3 for begin, end in zip([0, *ends], ends, strict=False)]
    if min(widths) < 1:
        raise ValueError(f"`line_length` {line_length} is too small for the positions {positions}.")
    align: Any = ["left", "left", "right", "right", "center"]
    columns = [
        rich.table.Column(name, justify=justify, width=width)
        for name, justify, width in zip(header, align, widths, strict=False)
    ]
    return rich.table.Table(*columns, width=line_length, show_lines=True)


def _in_range(rows, layer_range):
    """The rows from the first name that matches to the last, with their nested rows."""
    if layer_range is None:
        return rows
    if len(layer_range) != 2 or not all(isinstance(name, str) for name in layer_range):
        raise ValueError(
            f"`layer_range` must be two names, or regular expressions of them; got {layer_range!r}."
        )
    found = [[i for i, row in enumerate(rows) if re.match(name, row.name)] for name in layer_range]
    if not all(found):
        raise ValueError(
            f"`layer_range` {layer_range!r} matches no bijector; there are {[row.name for row in rows]}."
        )
    first, last = sorted([min(found[0]), max(found[1])])
    level = rows[last].level
    while last + 1 < len(rows) and rows[last + 1].level > level:
        last += 1
    return rows[first : last + 1]
