"""Collects what a training step needs from every self-normalizing layer that it passes."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import cache_util

from tfp_selfnorm.inverse_learning.base import InverseLearning, as_inverse_learning
from tfp_selfnorm.inverse_learning.layer_checks import check_layers
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction, check_weight
from tfp_selfnorm.inverse_learning.reconstruction_weight import AdaptiveWeight
from tfp_selfnorm.utils.graphs import current_graph
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.seeds import check_seed, stateless_seed

# Of a thread and, in it, of a task of asyncio.
_SCOPE = contextvars.ContextVar("training_scope", default=None)
# Control flow builds its own graphs inside the one that the scope was opened in.
_CONTROL_FLOW_GRAPHS = ("CondBranchFuncGraph", "WhileCondFuncGraph", "WhileBodyFuncGraph")


class LayerPass(NamedTuple):
    """One pass of a layer: the input, the output `kernel @ input`, and the error if the pass computed it.

    `kernel` is the kernel of the direction that was passed, `other_kernel` that of the way back.
    """

    layer: Any
    direction: str
    kernel: tf.Tensor
    other_kernel: tf.Tensor
    input: tf.Tensor
    output: tf.Tensor
    error: tf.Tensor | None


class LayerTerms(NamedTuple):
    """How a layer computes, inside a scope or outside.

    Attributes:
      gradient: of the log-det and the map, see `math.linear`.
      mixture: the weight of the density of the direction that is computed.
      trained_kernels: the kernels that the reconstruction error trains, "both" or "other"; `None` without it.
      held_log_det: value of `log |det W|`, in nats; `None` where it is to be computed.
      scope: the scope, to record the pass; `None` outside.
    """

    gradient: str = "exact"
    mixture: float = 1.0
    trained_kernels: str | None = None
    held_log_det: Any = None
    scope: Any = None


_OUTSIDE = LayerTerms()


class TrainingScope:
    """What `training_scope` yields: the layers passed so far, and the losses that come from them."""

    def __init__(self, inverse_learning, log_dets, seed=None, is_exact=False):
        self.inverse_learning = inverse_learning
        self.learning = as_inverse_learning(inverse_learning)
        self._is_exact = is_exact
        self._seed = seed
        # TFP's cache of the calls in this scope; see `_ScopedCache`.
        self.tfp_cache = cache_util.EphemeralDict()
        self.owner = None
        self.passes: list[LayerPass] = []
        self._log_dets = None
        if log_dets is not None:
            self._log_dets = {layer.identity: value for layer, value in log_dets.items()}
        self._graph = current_graph()

    @property
    def layers(self) -> list:
        """The layers passed so far, each once, in the order of their first pass."""
        return list({p.layer.identity: p.layer for p in self.passes}.values())

    @property
    def sees_passes(self) -> bool:
        """Whether what the layers were passed is within reach here, and not in inner control flow."""
        graph = current_graph()
        return all(getattr(p.input, "graph", graph) is graph for p in self.passes)

    def terms(self, layer) -> LayerTerms:
        """How the layer computes here."""
        regularizer = self.learning.regularizer(layer)
        trained_kernels = None if regularizer is None else regularizer.trained_kernels
        if self._is_exact:
            return LayerTerms(trained_kernels=trained_kernels, scope=self)
        held = 0.0 if self._log_dets is None else self._log_dets.get(layer.identity)
        mixture = self.learning.mixture(layer)
        return LayerTerms(layer.gradient, mixture, trained_kernels, held, self)

    def record(self, layer_pass: LayerPass) -> None:
        self._check_graph(layer_pass.layer)
        self.passes.append(layer_pass)

    def reconstruction_error(self, num_examples: int | None = None) -> tf.Tensor:
        """The mean over the batch of `||x - R W x||^2`, summed over the layers; a figure, not a loss.

        Args:
          num_examples: take the first so many of the batch, for a cheap estimate; `None` takes all.
        """
        if num_examples is not None:
            check_positive_int(num_examples, "num_examples")
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

    def reconstruction_loss(self, weight=None, layers=None) -> tf.Tensor:
        """The regularizer that `inverse_learning` names, summed over the layers passed so far.

        For `Tracking` that is the `Reconstruction` of the layers that cannot be tracked; 0 without any.

        Args:
          weight: in place of the weight of the `Reconstruction`: a float, a scalar tensor, or a mapping from
            layers to such, as `ReconstructionWeights.read` gives it.
          layers: the layers to sum over; `None` takes all that were passed.

        Raises:
          ValueError: if the scope does not learn the inverse, no layer was passed, or the weight depends on
            the step and is not given.
        """
        if self.inverse_learning is None:
            raise ValueError(
                "`reconstruction_loss` needs a scope opened with `inverse_learning=Reconstruction(...)` or "
                "`Tracking(...)`; got None."
            )

        by_layer = weight
        if isinstance(weight, Mapping):
            _check_by_layer(weight, "weight")
            by_layer = {layer.identity: value for layer, value in weight.items()}
        elif weight is not None:
            check_weight(weight)
        seeds = iter(self._split_seed(len(self.passes)))
        keys = None if layers is None else {layer.identity for layer in layers}

        def loss(layer_pass):
            reconstruction, seed = self.learning.regularizer(layer_pass.layer), next(seeds)
            if reconstruction is None or (keys is not None and layer_pass.layer.identity not in keys):
                return tf.zeros([], layer_pass.output.dtype)
            factor = reconstruction.weight if weight is None else by_layer
            if isinstance(factor, dict):
                if layer_pass.layer.identity not in factor:
                    raise ValueError(f"`weight` has none for the layer `{layer_pass.layer.name}`.")
                factor = factor[layer_pass.layer.identity]
            if callable(factor) or isinstance(factor, AdaptiveWeight):
                raise ValueError(
                    f"The weight {factor!r} depends on the step: give `reconstruction_loss` what "
                    "`ReconstructionWeights.read(step)` returns."
                )
            value = reconstruction.loss(layer_pass, seed)
            return tf.cast(factor, value.dtype) * value

        return self._sum_over_passes(loss)

    def exact_log_dets(self) -> list[tf.Tensor]:
        """Each layer's `log |det W|` in nats, in the order of `layers`, at O(D^3) each."""
        return [layer.exact_log_det() for layer in self.layers]

    def _split_seed(self, count):
        if self._seed is None:
            return [None] * count
        return tf.unstack(tfp.random.split_seed(stateless_seed(self._seed), count, salt="training_scope"))

    def _sum_over_passes(self, function):
        if not self.passes:
            raise ValueError(
                "No self-normalizing layer was passed in this `training_scope` by a product with a kernel. "
                "Call `log_prob` on a fresh tensor, `tf.identity(x)`, and trace a `tf.function` inside the "
                "scope, not before; an exact `forward` has no reconstruction error."
            )
        if not self.sees_passes:
            raise ValueError(
                "A layer was passed inside `tf.map_fn`, `tf.while_loop` or `tf.cond`, where its "
                "reconstruction error is out of reach; use `Tracking` there."
            )
        return tf.add_n([function(layer_pass) for layer_pass in self.passes])

    def _check_graph(self, layer) -> None:
        graph = current_graph()
        while type(graph).__name__ in _CONTROL_FLOW_GRAPHS and graph is not self._graph:
            graph = graph.outer_graph
        if graph is not self._graph:
            raise ValueError(
                f"`{layer.name}` was called inside a `tf.function`, and the `training_scope` was opened "
                "outside of it: the function would keep the surrogate log-det for later calls. Open the "
                "scope inside the function."
            )


@contextlib.contextmanager
def training_scope(
    inverse_learning: InverseLearning | None = Reconstruction(),  # noqa: B008
    log_dets: Mapping[Any, Any] | None = None,
    seed=None,
) -> Iterator[TrainingScope]:
    """Within it, self-normalizing layers cost O(D^2): learned gradients, held values of the log-dets.

    Inside the scope each layer's log-det has the gradient that the layer names and the value held for it: 0,
    or the one in `log_dets`. So `log_prob` is a surrogate: its gradient has the learned inverse in place of
    the inverse transpose, and its value is off by a constant if the held values are stale. Outside, the value
    and the gradient of `log_prob` are exact, at O(D^3). The scope acts on the TFP objects that hold the
    layers, in eager code, in `tf.function` and under XLA; it belongs to the thread that opened it, or
    the task of asyncio.

    Args:
      inverse_learning: how the learned inverse follows: `Reconstruction(...)` (its loss comes from
        `scope.reconstruction_loss()`), `Tracking(...)` (tracked layers take the plain gradient, mixture 1),
        or `None`.
      log_dets: mapping from layers to their `log |det W|` in nats. Where it is given, layers that it
        lacks have exact log-dets. `None` holds 0 for all.
      seed: int or stateless TFP seed of what is random in the losses; `None` for fresh numbers.

    Yields:
      A `TrainingScope`.

    Raises:
      RuntimeError: if this thread has a scope open already.
      TypeError: if an argument is of another type.

    Example:

    >>> flow = tfd.TransformedDistribution(
    ...     tfd.MultivariateNormalDiag(tf.zeros(3)), SelfNormDense.trainable(3, seed=1))
    >>> with tf.GradientTape() as tape, training_scope() as scope:
    ...     surrogate = flow.log_prob(tf.identity(tf.ones([5, 3])))
    ...     loss = -tf.reduce_mean(surrogate) + scope.reconstruction_loss()
    >>> [gradient.shape.rank for gradient in tape.gradient(loss, flow.trainable_variables)]
    [1, 2, 2]

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 3.
    """
    as_inverse_learning(inverse_learning)
    check_seed(seed)
    if log_dets is not None:
        _check_by_layer(log_dets, "log_dets")
    with _opened(TrainingScope(inverse_learning, log_dets, seed)) as scope:
        yield scope


def recording_scope(inverse_learning, seed=None):
    """Like `training_scope`, but values and gradients of log-dets stay exact: for regularizers outside it."""
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
    """The scope that this thread, or in it this task of asyncio, has open, or `None`."""
    scope = _SCOPE.get()
    # Tasks begin with the values of the code that made them.
    return scope if scope is not None and scope.owner == _owner() else None


def _owner():
    """The thread, and the task of asyncio that runs in it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task


def current_terms(layer) -> LayerTerms:
    """How the layer computes now: as the open scope says, and exactly outside."""
    scope = current_scope()
    return _OUTSIDE if scope is None else scope.terms(layer)


def _check_by_layer(mapping, name):
    if not isinstance(mapping, Mapping):
        raise TypeError(f"`{name}` must be a mapping from layers to numbers; got {mapping!r}.")
    check_layers(mapping, name)


class _ScopedCache(cache_util.BijectorCache):
    """TFP's cache of pairs and their log-dets, with entries of its own for each scope.

    TFP keeps what all bijectors computed in one place, by their tensors. Without this a call outside, in this
    thread or in another, would get the surrogate log-det of the scope, and the scope an earlier exact one.
    """

    def __get__(self, bijector, bijector_class=None):
        scope = current_scope()
        return cache_util.BijectorCache(
            self._forward_name,
            self._inverse_name,
            bijector,
            bijector_class,
            self.storage if scope is None else scope.tfp_cache,
        )


# The class attribute through which every bijector finds the cache; tried with TFP 0.25.
tfp.bijectors.Bijector._cache = _ScopedCache()
