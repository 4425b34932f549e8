"""`table_flow`, the builder of flows of tables."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import ChannelSplit, CircularSplineCoupling
from tfp_selfnorm.bijectors.spline import MAX_BINS
from tfp_selfnorm.flows.building import standard_normal_flow
from tfp_selfnorm.flows.coupling_flow import coupling_flow
from tfp_selfnorm.flows.dense_flow import dense_flow
from tfp_selfnorm.flows.networks import dense_network
from tfp_selfnorm.tables.column_map import ColumnMap, check_columns
from tfp_selfnorm.tables.columns import Columns
from tfp_selfnorm.tables.kinds import Periodic
from tfp_selfnorm.utils.integers import check_int, check_positive_int, check_sizes
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.seeds import split_seeds
from tfp_selfnorm.utils.types import Seed, Shape


@keras.saving.register_keras_serializable("tfp_selfnorm")
def table_flow(
    columns: Columns,
    condition_shape: Shape | None = None,
    *,
    flow_builder: Callable[..., Any] | None = None,
    angle_bins: int = 8,
    angle_width: int = 32,
    seed: Seed = None,
    name: str = "table_flow",
    **arguments: Any,
) -> tfp.distributions.TransformedDistribution:
    """A flow of the columns of a table: `log_prob` is of the raw columns, and `sample` gives them.

    From data to latent: the maps of the columns to standardised real numbers, then the flow of a builder.
    Its base is standard normal.

    Periodic columns do not pass the flow of the builder. The density is p(others) p(angles | others): each
    angle has a `CircularSplineCoupling`, whose network sees the other columns and the cosines and sines of
    the angles before it. So the density has no seam on the circles, and integrates to one over a period.

    Args:
      columns: the result of `prepare`.
      condition_shape: shape of a condition, for a builder that takes one, and a `ConditionalFlowModel`.
      flow_builder: `coupling_flow`, `dense_flow`, or a function with their arguments `event_shape`,
        `preprocessing`, `dtype`, `seed` and `name`. `None` is `coupling_flow`; for one column without a
        condition it is `dense_flow` with splines.
      angle_bins: number of bins of the splines of angles.
      angle_width: number of units of the hidden layers in the networks of angles.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.
      **arguments: other arguments of the builder. The dtype is that of the columns.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats, in the units of the columns.

    Raises:
      TypeError: if an argument is unknown or of another type.
      ValueError: if an argument is out of range.

    >>> import numpy as np, tfp_selfnorm as sn
    >>> rng = np.random.default_rng(1)
    >>> table = {"size": rng.lognormal(size=500), "angle": rng.uniform(0, 360, size=500)}
    >>> columns = sn.tables.prepare(table, kinds={"angle": sn.tables.Periodic(360)})
    >>> model = sn.FlowModel.from_builder(sn.tables.table_flow, columns=columns, seed=1)
    >>> model.log_prob([[1.0, 0.0], [1.0, 360.0]]).numpy().round(3)
    array([-6.715, -6.715], dtype=float32)
    """
    check_columns(columns)
    check_optional_name(name)
    for argument in ("event_shape", "preprocessing", "dtype"):
        if argument in arguments:
            raise TypeError(f"`{argument}` of the builder comes from `columns`; got {arguments[argument]!r}.")
    options = {
        "num_bins": check_int(angle_bins, "angle_bins", 2, MAX_BINS),
        "width": check_positive_int(angle_width, "angle_width"),
    }
    num_angles = sum(isinstance(kind, Periodic) for kind in columns.kinds)
    num_others = columns.event_size - num_angles
    is_single = num_others == 1 and condition_shape is None
    flow_builder, arguments = _builder(flow_builder, is_single, arguments)
    arguments = {**arguments, "dtype": tf.as_dtype(columns.dtype)}
    if condition_shape is not None:
        sizes = check_sizes(condition_shape, "condition_shape", "one positive size", lambda s: len(s) == 1)
        arguments, options = arguments | {"condition_shape": sizes}, options | {"condition_size": sizes[0]}
    if not num_angles:
        arguments |= {"preprocessing": columns.preprocessing, "seed": seed, "name": name}
        return flow_builder(columns.event_size, **arguments)
    if arguments.get("base") is not None:
        raise ValueError("`base` must be None with periodic columns: their latents are standard normal.")
    seeds = split_seeds(seed, num_angles + 1, "table_flow")
    angles = [_angle(i, num_others, columns.dtype, seeds[i], **options) for i in range(num_angles)]
    bijectors = [ColumnMap(columns), angles.pop(), *map(_first_channels, reversed(angles))]
    if num_others:
        others = flow_builder(num_others, seed=seeds[num_angles], **arguments).bijector
        bijectors.append(ChannelSplit(others, num_others, name="others"))
    return standard_normal_flow([columns.event_size], bijectors, arguments["dtype"], name, bijectors[0])


def _builder(builder, is_single, arguments):
    """The builder of the flow of the columns that are not periodic, and its arguments."""
    if builder is None:
        # For one column a coupling has nothing to condition on.
        return (
            (dense_flow, {"activation": "spline", **arguments}) if is_single else (coupling_flow, arguments)
        )
    if not callable(builder):
        raise TypeError(f"`flow_builder` must be a function such as `sn.dense_flow`; got {builder!r}.")
    return builder, arguments


def _angle(index, num_others, dtype, seed, num_bins, width, condition_size=0):
    """The coupling of an angle, the last of its channels."""
    # Without an input the network gets a one.
    num_inputs = num_others + 2 * index
    network = dense_network(
        num_inputs if num_inputs or condition_size else 1,
        3 * num_bins + 1,
        width,
        condition_size=condition_size,
        seed=int(seed[0]),
        dtype=dtype,
        name=f"angle_{index}_network",
    )
    return CircularSplineCoupling(network, num_others + index, index, num_bins, name=f"angle_{index}")


def _first_channels(coupling):
    """The coupling, with the angles after its own as they are."""
    size = coupling.parameters["num_conditioning"] + 1
    return ChannelSplit(coupling, size, name=f"{coupling.name}_split")
