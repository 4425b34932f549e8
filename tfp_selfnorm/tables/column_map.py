"""`ColumnMap`: the bijector from standardised real numbers to the columns of a table."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import Standardize
from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.parameters import check_event_shape
from tfp_selfnorm.tables.columns import Columns
from tfp_selfnorm.tables.kinds import Periodic, group
from tfp_selfnorm.utils.pickling import by_parameters
from tfp_selfnorm.utils.types import TfpObject

tfb = tfp.bijectors


class ColumnMap(CheckedBijector):
    """Maps real numbers of mean 0 and deviation 1 to the columns of a table: `Columns.preprocessing`.

    `inverse` maps each column to all real numbers, as its kind says, and standardises it by the values of
    `prepare`. It is made of TFP's elementary bijectors. Periodic columns become radians; they stand
    last, and the others keep their order. Both log-dets are closed forms. Nothing trains.

    Shapes: vectors, one number a column. Dtype: that of the columns.
    """

    __reduce__ = by_parameters

    def __init__(self, columns: Columns, validate_args: bool = False, name: str = "column_map") -> None:
        """Makes the bijector.

        Args:
          columns: the description of the columns.
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if `columns` is no `Columns`.
        """
        parameters = dict(locals())
        check_columns(columns)
        self._columns = columns
        dtype = tf.as_dtype(columns.dtype)
        self._chain = _chain(columns, dtype)
        super().__init__(1, parameters, dtype, is_constant_jacobian=False)

    @property
    def columns(self) -> Columns:
        """The description of the columns."""
        return self._columns

    def _forward(self, x):
        check_event_shape(x, [self._columns.event_size], "x", self.name)
        return self._chain.forward(x)

    def _inverse(self, y):
        check_event_shape(y, [self._columns.event_size], "y", self.name)
        return self._chain.inverse(y)

    def _forward_log_det_jacobian(self, x):
        return self._chain.forward_log_det_jacobian(x, event_ndims=1)

    def _inverse_log_det_jacobian(self, y):
        return self._chain.inverse_log_det_jacobian(y, event_ndims=1)


def check_columns(columns: Any) -> None:
    """Raises TypeError if it is no `Columns`."""
    if not isinstance(columns, Columns):
        raise TypeError(
            "`columns` must be the Columns that `tables.prepare` makes of a table; got "
            f"{type(columns).__name__}."
        )


def _chain(columns: Columns, dtype: tf.DType) -> TfpObject:
    kinds = columns.kinds
    # Python sorts stably: columns of a group keep their order.
    grouped = sorted(range(len(kinds)), key=lambda i: group(kinds[i]))
    latent = sorted(range(len(kinds)), key=lambda i: isinstance(kinds[i], Periodic))
    blocks: list[list] = []
    for i in grouped:
        if not blocks or group(blocks[-1][0]) != group(kinds[i]):
            blocks.append([])
        blocks[-1].append(kinds[i])
    maps = [type(block[0]).bijector(block, dtype) for block in blocks]
    merged = maps[0] if len(maps) == 1 else tfb.Blockwise(maps, list(map(len, blocks)), name="kinds")
    mean, deviation = (
        tf.constant([values[i] for i in latent], dtype) for values in (columns.means, columns.deviations)
    )
    parts = [
        *_permutation(np.argsort(grouped), "to_table"),
        merged,
        *_permutation([latent.index(i) for i in grouped], "to_kinds"),
        Standardize(mean, deviation),
    ]
    return tfb.Chain(parts)


def _permutation(order, name):
    is_identity = list(order) == list(range(len(order)))
    return [] if is_identity else [tfb.Permute(tf.constant(order, tf.int32), name=name)]
