"""Private names of other packages, each with its reason.

Tried with TensorFlow 2.21, TFP 0.25, Keras 3.15 and tf_keras 2.21.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow.python.eager import record
from tensorflow.python.ops import control_flow_util
from tensorflow.python.ops.template import Template as Template
from tensorflow_probability.python.internal import cache_util

# A value of several tensors, such as a bijector, that a `tf.function` takes and returns. TensorFlow has no
# public name for it.
CompositeTensor = tf.__internal__.CompositeTensor
# The cache of a bijector whose passes compute the log-det too, as TFP's `FFJORD` does. TFP keeps it private.
BijectorCacheWithGreedyAttrs = cache_util.BijectorCacheWithGreedyAttrs
# The class of all transformed distributions. `tfd.TransformedDistribution` leaves out those that are no
# CompositeTensors, and TFP keeps their base private.
TransformedDistribution = tfp.distributions.TransformedDistribution.__bases__[0]
# The storage of a cache of bijectors. TFP has no public name for it.
CacheStorage = cache_util.EphemeralDict
# The `experimental_attributes` of a `tf.function` that stays a call in the graph. TensorFlow documents none.
NOT_INLINED = {"_noinline": True}
_CONTROL_FLOW_GRAPHS = ("CondBranchFuncGraph", "WhileCondFuncGraph", "WhileBodyFuncGraph")


def could_record_gradients() -> bool:
    """Whether a gradient tape is open. TensorFlow has no public name for it."""
    return record.could_possibly_record()


def is_step_of_many_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a step runs under several workers. The mode of the strategy has no public name."""
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return is_multi_worker and strategy.extended._in_multi_worker_mode()


def is_control_flow(graph: Any) -> bool:
    """Whether it is the graph of a branch or a loop body. TensorFlow's classes of these are private."""
    return type(graph).__name__ in _CONTROL_FLOW_GRAPHS


def is_compiled_by_xla() -> bool:
    """Whether a function with `jit_compile=True` is being traced. TensorFlow has no public name for it."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def template_function(template: Template) -> Callable:
    """The function of a `tf.compat.v1.make_template`. `Template` itself and this attribute are private."""
    return template._func


def variables_by_path(module: tf.Module) -> list[tuple[tuple, tf.Variable]]:
    """Pairs of the attributes on the way to a variable, and the variable. Public names tell no way."""
    return list(module._flatten(predicate=lambda part: isinstance(part, tf.Variable), with_path=True))


def flatten_layers(layer: Any) -> list:
    """The layers at any depth inside a Keras layer. Keras has no public name for it, except for models."""
    return list(layer._flatten_layers(include_self=False))


def add_sublayer(owner: Any, layer: Any) -> None:
    """Makes a Keras layer a part of another one, without an attribute: Keras's saving follows attributes."""
    owner._tracker.add_to_store("layers", layer)


def scope_bijector_caches(current_storage: Callable[[], Any]) -> None:
    """Lets all bijectors use the storage that a function returns at each call; `None` is TFP's own.

    TFP stores the results of all bijectors in one place, by their tensors. The only way to replace it is the
    private class attribute through which each bijector finds its cache.
    """

    class ScopedCache(cache_util.BijectorCache):
        def __get__(self, bijector: Any, bijector_class: type | None = None) -> Any:
            cache, storage = super().__get__(bijector, bijector_class), current_storage()
            if storage is not None:
                cache.storage = storage
            return cache

    tfp.bijectors.Bijector._cache = ScopedCache()


def schedule_of(optimizer: Any) -> Any:
    """The schedule of the learning rate of a Keras optimizer, or `None`.

    The public `learning_rate` is the value at the present step. The schedule is in a private attribute alone
    (Keras 3.10 and 3.15). It is a callable with a `get_config`, which no variable and no lambda is.
    """
    schedule = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)
    return schedule if callable(schedule) and hasattr(schedule, "get_config") else None
