"""`training_scope`: inside it layers take learned gradients and held log-dets, and record their passes."""

import asyncio
import contextlib
import contextvars
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import (
    InverseLearning,
    as_corrections,
    as_inverse_learning,
    by_identity,
)
from tfp_selfnorm.inverse_learning.known_log_dets import known_log_det
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction, check_weight
from tfp_selfnorm.inverse_learning.reconstruction_weight import AdaptiveWeight
from tfp_selfnorm.utils.compat import CacheStorage, is_control_flow, scope_bijector_caches
from tfp_selfnorm.utils.graphs import current_graph
from tfp_selfnorm.utils.integers import check_counts
from tfp_selfnorm.utils.seeds import check_seed, split_seeds
from tfp_selfnorm.utils.types import Seed

# Each thread, and each asyncio task in a thread, has its own.
_SCOPE: contextvars.ContextVar["TrainingScope | None"] = contextvars.ContextVar(
    "training_scope", default=None
)


class LayerPass(NamedTuple):
    """One pass of a layer: the input, the output without a bias, and the error if the pass computed it.

    `kernel` is the kernel of the direction of the pass, `other_kernel` the kernel of the other direction. A
    `LearnedInverse` has functions in their place. `layer.operations.apply` takes both.
    """

    layer: Any
    direction: str
    kernel: Any
    other_kernel: Any
    input: tf.Tensor
    output: tf.Tensor
    error: tf.Tensor | None


class LayerTerms(NamedTuple):
    """How a layer computes, inside a scope or outside.

    Attributes:
      gradient: the name of the gradient of the log-det and the map, see `math.linear`.
      mixture: the weight of the density of the direction of the pass, in the gradient.
      trained_kernels: the kernels that the reconstruction error trains, "both" or "other"; `None` without
        an error.
      held_log_det: the held value of `log |det W|` in nats; `None` if the layer must compute it.
      correction: a held correction of the gradient of the log-det by W; `None` for none.
      scope: the scope that records the pass; `None` outside.
    """

    gradient: str = "exact"
    mixture: float = 1.0
    trained_kernels: str | None = None
    held_log_det: Any = None
    correction: Any = None
    scope: Any = None


class TrainingScope:
    """The object that `training_scope` yields: the passes in the scope, and their losses.

    Args:
      inverse_learning: the way in which R follows W, or `None`.
      log_dets: mapping from layers to held values of `log |det W|`; `None` holds 0 for all.
      seed: seed of the random numbers in the losses.
      is_exact: whether values and gradients stay exact inside the scope.
      gradient_corrections: mapping from layers to held corrections; `None` for none.
    """

    def __init__(
        self,
        inverse_learning: InverseLearning | None,
        log_dets: Mapping[Any, Any] | None,
        seed: Seed = None,
        is_exact: bool = False,
        gradient_corrections: Mapping[Any, Any] | None = None,
    ) -> None:
        self.inverse_learning = inverse_learning
        self.learning = as_inverse_learning(inverse_learning)
        self._is_exact = is_exact
        self._seed = seed
        # TFP stores the results of bijectors by their tensors. With one storage for all calls, a call outside
        # would get the surrogate log-det of the scope, and the scope an earlier exact one.
        self.cache_storage = CacheStorage()
        self.owner: tuple | None = None
        self.passes: list[LayerPass] = []
        self._log_dets = None if log_dets is None else by_identity(log_dets, "log_dets")
        self._corrections = as_corrections(gradient_corrections)
        self._graph = current_graph()

    @property
    def layers(self) -> list:
        """The layers that the scope has recorded, each once, in the order of their first pass."""
        return list({p.layer.identity: p.layer for p in self.passes}.values())

    @property
    def sees_passes(self) -> bool:
        """Whether the tensors of the passes can be used here. Those inside control flow cannot."""
        graph = current_graph()
        return all(getattr(p.input, "graph", graph) is graph for p in self.passes)

    def terms(self, layer: Any) -> LayerTerms:
        """How the layer computes in this scope."""
        regularizer = self.learning.regularizer(layer)
        trained_kernels = None if regularizer is None else regularizer.trained_kernels
        if self._is_exact:
            return LayerTerms(trained_kernels=trained_kernels, scope=self)
        held = 0.0 if self._log_dets is None else self._log_dets.get(layer.identity)
        mixture, correction = self.learning.mixture(layer), self._corrections.get(layer.identity)
        return LayerTerms(layer.gradient, mixture, trained_kernels, held, correction, self)

    def record(self, layer_pass: LayerPass) -> None:
        """Adds a pass.

        Raises:
          ValueError: if the layer is called inside a `tf.function` and the scope was opened outside of it.
        """
        graph = current_graph()
        # Control flow builds its own graphs inside the graph of the scope.
        while is_control_flow(graph) and graph is not self._graph:
            graph = graph.outer_graph
        if graph is not self._graph:
            raise ValueError(
                f"`{layer_pass.layer.name}` was called inside a `tf.function`, and the `training_scope` was "
                "opened outside of it. The function would keep the surrogate log-det for later calls. Open "
                "the scope inside the function."
            )
        self.passes.append(layer_pass)

    def reconstruction_error(self, num_examples: int | None = None) -> tf.Tensor:
        """The mean over the batch of `||x - R W x||^2`, summed over the layers. It trains nothing.

        Args:
          num_examples: number of examples at the start of the batch to use, for a cheap estimate; `None`
            uses all.
        """
        check_counts(num_examples=num_examples)
        return self._sum_over_passes(
            lambda layer_pass: tf.stop_gradient(Reconstruction.error(layer_pass, num_examples))
        )

    def reconstruction_errors(self) -> dict:
        """The mean over the batch of `||x - R W x||^2` of each layer, for `ReconstructionWeights.update`."""
        errors = {}
        for layer in self.layers:
            passes = [p for p in self.passes if p.layer.identity == layer.identity]
            errors[layer] = tf.stop_gradient(tf.add_n([Reconstruction.error(p) for p in passes]))
        return errors

    def reconstruction_loss(self, weight: Any = None, layers: Iterable | None = None) -> tf.Tensor:
        """The regularizer that `inverse_learning` names, summed over the layers that the scope has recorded.

        For `Tracking` it is the `Reconstruction` of the layers that cannot be tracked; 0 if there are none.

        Args:
          weight: a weight to use instead of the weight of the `Reconstruction`: a float, a scalar tensor, or
            a mapping from layers to these, as `ReconstructionWeights.read` returns it.
          layers: the layers to sum over; `None` takes all recorded layers.

        Raises:
          ValueError: if the scope has `inverse_learning=None` or no recorded layer, or the weight depends on
            the step and `weight` is not given.
        """
        if self.inverse_learning is None:
            raise ValueError(
                "`reconstruction_loss` needs a scope opened with `inverse_learning=Reconstruction(...)` or "
                "`inverse_learning=Tracking(...)`; got None."
            )

        by_layer = weight
        if isinstance(weight, Mapping):
            by_layer = by_identity(weight, "weight")
        elif weight is not None:
            check_weight(weight)
        seeds: Iterator = itertools.repeat(None)
        if self._seed is not None:
            seeds = iter(split_seeds(self._seed, len(self.passes), salt="training_scope"))
        chosen = None if layers is None else {layer.identity for layer in layers}

        def loss(layer_pass):
            reconstruction, seed = self.learning.regularizer(layer_pass.layer), next(seeds)
            if reconstruction is None or (chosen is not None and layer_pass.layer.identity not in chosen):
                return tf.zeros([], layer_pass.output.dtype)
            factor = reconstruction.weight if weight is None else by_layer
            if isinstance(factor, dict):
                if layer_pass.layer.identity not in factor:
                    raise ValueError(f"`weight` has no weight for the layer `{layer_pass.layer.name}`.")
                factor = factor[layer_pass.layer.identity]
            if callable(factor) or isinstance(factor, AdaptiveWeight):
                raise ValueError(
                    f"The weight {factor!r} depends on the step: pass the result of "
                    "`ReconstructionWeights.read(step)` to `reconstruction_loss`."
                )
            value = reconstruction.loss(layer_pass, seed)
            return tf.cast(factor, value.dtype) * value

        return self._sum_over_passes(loss)

    def pass_seed(self) -> Any:
        """A seed for the random numbers of the next pass on this replica; `None` if the scope has no seed."""
        if self._seed is None:
            return None
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        return split_seeds(self._seed, 1, f"training_scope_pass_{len(self.passes)}")[0] + [replica, 0]

    def exact_log_dets(self) -> list[tf.Tensor]:
        """Each layer's exact log-det in nats, in the order of `layers`, at O(D^3) each.

        For a linear layer it is `log |det W|`, for a `LearnedInverse` the mean over the events of its passes.
        """
        log_dets = []
        for layer in self.layers:
            passes = [p for p in self.passes if p.layer.identity == layer.identity]
            log_dets.append(tf.add_n([layer.exact_log_det(p) for p in passes]) / len(passes))
        return log_dets

    def _sum_over_passes(self, function):
        if not self.passes:
            raise ValueError(
                "No self-normalizing layer was called with a kernel product in this `training_scope`. Call "
                "`log_prob` on a fresh tensor, `tf.identity(x)`. Trace a `tf.function` inside the scope, not "
                "before. An exact `forward` has no reconstruction error."
            )
        if not self.sees_passes:
            raise ValueError(
                "A layer was called inside `tf.map_fn`, `tf.while_loop` or `tf.cond`. There its "
                "reconstruction error is not available; use `Tracking`."
            )
        return tf.add_n([function(layer_pass) for layer_pass in self.passes])


@contextlib.contextmanager
def training_scope(
    inverse_learning: InverseLearning | None = Reconstruction(),  # noqa: B008
    log_dets: Mapping[Any, Any] | None = None,
    seed: Seed = None,
    gradient_corrections: Mapping[Any, Any] | None = None,
) -> Iterator[TrainingScope]:
    """Makes self-normalizing layers cost O(D^2), by learned gradients and held values of the log-dets.

    Inside the scope the log-det of a layer has the gradient that the layer names. Its value is the held one:
    0, or the value in `log_dets`. So `log_prob` is a surrogate: its gradient uses the learned inverse instead
    of the inverse transpose, and its value is off by a constant if the held values are stale. Outside the
    scope, the value and the gradient of `log_prob` are exact, at O(D^3).

    The scope acts on all TFP objects that hold the layers, in eager code, in `tf.function` and under XLA. It
    belongs to the thread, or the asyncio task, that opened it.

    Args:
      inverse_learning: the way in which R follows W: `Reconstruction(...)`, whose loss is
        `scope.reconstruction_loss()`; `Tracking(...)`, under which tracked layers take the plain gradient,
        mixture 1; or `None`.
      log_dets: mapping from layers to their `log |det W|` in nats. A layer that the mapping lacks has an
        exact log-det. `None` holds 0 for all.
      seed: int or stateless TFP seed of the random numbers in the losses; `None` for fresh numbers.
      gradient_corrections: mapping from layers with the gradient "circulant" to their
        `gradient_correction()`, of present or recent weights, which is added to the gradient.

    Yields:
      A `TrainingScope`.

    Raises:
      RuntimeError: if this thread has a scope open already.
      TypeError: if an argument has a wrong type.
      ValueError: if a layer of `gradient_corrections` takes no correction, or one of another shape.

    >>> import tensorflow as tf
    >>> import tensorflow_probability as tfp
    >>> import tfp_selfnorm as sn
    >>> flow = tfp.distributions.TransformedDistribution(
    ...     tfp.distributions.MultivariateNormalDiag(tf.zeros(3)), sn.SelfNormDense.trainable(3, seed=1))
    >>> with tf.GradientTape() as tape, sn.training_scope() as scope:
    ...     surrogate = flow.log_prob(tf.identity(tf.ones([5, 3])))
    ...     loss = -tf.reduce_mean(surrogate) + scope.reconstruction_loss()
    >>> [gradient.shape.rank for gradient in tape.gradient(loss, flow.trainable_variables)]
    [1, 2, 2]

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 3.
    """
    check_seed(seed)
    scope = TrainingScope(inverse_learning, log_dets, seed, gradient_corrections=gradient_corrections)
    with _opened(scope):
        yield scope


def recording_scope(
    inverse_learning: InverseLearning | None, seed: Seed = None
) -> contextlib.AbstractContextManager[TrainingScope]:
    """A scope with exact values and gradients of log-dets. It only records passes, for regularizers."""
    return _opened(TrainingScope(inverse_learning, None, seed, is_exact=True))


@contextlib.contextmanager
def _opened(scope):
    if current_scope() is not None:
        raise RuntimeError(
            "A `training_scope` is already open in this thread; scopes do not nest. "
            "Use the open one, or leave it first."
        )
    scope.owner = _owner()
    _SCOPE.set(scope)
    try:
        yield scope
    finally:
        _SCOPE.set(None)


def current_scope() -> TrainingScope | None:
    """The open scope of this thread or asyncio task, or `None`."""
    scope = _SCOPE.get()
    # A new task inherits the values of its maker.
    return scope if scope is not None and scope.owner == _owner() else None


def _owner():
    """The thread, and the asyncio task that runs in it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task


def current_terms(layer: Any) -> LayerTerms:
    """How the layer computes now: by the terms of the open scope, or exactly outside of one."""
    scope = current_scope()
    return LayerTerms(held_log_det=known_log_det(layer)) if scope is None else scope.terms(layer)


def _current_storage():
    scope = current_scope()
    return None if scope is None else scope.cache_storage


scope_bijector_caches(_current_storage)
