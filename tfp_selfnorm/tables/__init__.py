"""Tables of columns: the kind of each column, the map of columns to all real numbers, and flows of them."""

from tfp_selfnorm.tables.column_map import ColumnMap
from tfp_selfnorm.tables.columns import Columns
from tfp_selfnorm.tables.kinds import Bounded, HeavyTailed, Integer, Periodic, Positive, Real
from tfp_selfnorm.tables.prepare import prepare
from tfp_selfnorm.tables.table_flow import table_flow

__all__ = [
    "Bounded",
    "ColumnMap",
    "Columns",
    "HeavyTailed",
    "Integer",
    "Periodic",
    "Positive",
    "Real",
    "prepare",
    "table_flow",
]
