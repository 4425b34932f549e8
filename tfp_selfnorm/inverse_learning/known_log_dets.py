"""Known values of log-dets, for densities outside of a `training_scope`."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tfp_selfnorm.inverse_learning.base import by_identity
from tfp_selfnorm.utils.compat import is_control_flow
from tfp_selfnorm.utils.graphs import current_graph


class _Known(NamedTuple):
    log_dets: dict
    graph: Any


_KNOWN: contextvars.ContextVar[_Known | None] = contextvars.ContextVar("known_log_dets", default=None)


@contextlib.contextmanager
def known_log_dets(log_dets: Mapping[Any, Any]) -> Iterator[None]:
    """Lets layers take these values of `log |det W|`, in nats, outside of a scope; gradients stay exact.

    Another graph that is made inside, such as a `tf.function` of a network, may be used again with other
    weights. It computes its log-dets.

    Args:
      log_dets: mapping from layers to the exact log-dets of their present weights.
    """
    token = _KNOWN.set(_Known(by_identity(log_dets, "log_dets"), current_graph()))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def known_log_det(layer: Any) -> Any:
    """The known value of a layer, or `None`."""
    known = _KNOWN.get()
    if known is None:
        return None
    graph = current_graph()
    while is_control_flow(graph) and graph is not known.graph:
        graph = graph.outer_graph
    return known.log_dets.get(layer.identity) if graph is known.graph else None
