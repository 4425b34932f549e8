"""`ConditionalFlowModel`, a Keras model of a conditional density p(y | x)."""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import keras
import tensorflow as tf

from tfp_selfnorm.bijectors.conditional import Conditional, condition_arguments
from tfp_selfnorm.initialization import adapt
from tfp_selfnorm.inverse_learning.base import InverseLearning
from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.model import saving
from tfp_selfnorm.model.conditions import check_embedded, conditions_of
from tfp_selfnorm.model.flow_model import FlowModel
from tfp_selfnorm.model.serialization import check_bounds, decode_network, encode_network
from tfp_selfnorm.model.streams import first_events, is_stream
from tfp_selfnorm.model.target_training import TargetTraining, check_steps, fit_to_target
from tfp_selfnorm.model.trainer import FlowTrainer
from tfp_selfnorm.utils.checks import check_distribution, check_events, check_latent
from tfp_selfnorm.utils.integers import check_sample_shape
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import Array, Seed, Shape, TfpObject


@keras.saving.register_keras_serializable("tfp_selfnorm")
class ConditionalFlowModel(FlowModel):
    """Trains a conditional density p(events | condition) with Keras `fit`; then scores and samples it.

    As everywhere in Keras, the input is what is known, the conditions, and the target is what is modelled,
    the events: `fit(conditions, events)`. Data sets consist of `(conditions, events)` or `(conditions,
    events, sample_weight)`. `validation_data`, `evaluate` and the methods for one batch take the same.
    `predict((conditions, events))` returns log densities. The other methods take the events first:
    `log_prob(events, condition)`.

    The bijector of the distribution gets the condition through a `Conditional`, which gives it to all layers
    that take one. The other layers, such as the self-normalizing ones, mix the dimensions between them.

    A condition is an array of one shape. With an `embedding`, a Keras network that trains along, it may be an
    image, a sequence or a label, or a tuple or dict of several arrays. The layers then get the output.
    Integers are cast to floats, unless the embedding has an integer input.

    Loss, figures, steps and files are those of a `FlowModel`. There is no `class_weight`.

    >>> import keras, numpy as np, tfp_selfnorm as sn
    >>> flow = sn.coupling_flow(event_shape=1, condition_shape=1, num_layers=1, width=16, seed=1)
    >>> model = sn.ConditionalFlowModel(flow)
    >>> model.compile(keras.optimizers.Adam(1e-2))
    >>> rng = np.random.default_rng(1)
    >>> x = rng.normal(size=[256, 1])
    >>> y = x + rng.normal(size=[256, 1])
    >>> history = model.fit(x, y, epochs=2, verbose=0)
    >>> model.log_prob(y, x).shape, model.sample(3, condition=x, seed=1).shape
    (TensorShape([256]), TensorShape([3, 256, 1]))
    """

    conditions: Any

    def __init__(
        self,
        distribution: TfpObject,
        condition_shape: Any = None,
        embedding: Callable | None = None,
        bijector_kwargs: Callable[[tf.Tensor], Mapping[str, Any]] | None = None,
        inverse_learning: InverseLearning | None = Tracking(),  # noqa: B008
        bits_per_dim: bool = False,
        name: str | None = None,
    ) -> None:
        """Makes the model.

        Args:
          distribution: a `tfd.TransformedDistribution` without a batch shape. A part of its bijector takes a
            condition, see `Conditional`.
          condition_shape: the shape of one condition; for an embedding of several inputs a tuple or dict of
            shapes. A `tf.TensorSpec` tells the dtype too. `None` takes the shape from the inputs of the
            embedding, or of the network of a coupling, if this is a Keras model with known inputs.
          embedding: a network of the condition, such as a built Keras model.
          bijector_kwargs: a function of the embedded condition, for other layers of TFP; see `Conditional`.
          inverse_learning, bits_per_dim, name: see `FlowModel`.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if no layer takes a condition, if the shape of a condition is not known, or another
            argument does not fit.
        """
        check_distribution(distribution)
        check_latent(distribution)
        if distribution.batch_shape.rank != 0:
            shape = distribution.batch_shape
            raise ValueError(f"`distribution` must have no batch shape for conditions; got {shape}.")
        bijector = distribution.bijector
        is_wrapped = isinstance(bijector, Conditional) and embedding is None and bijector_kwargs is None
        source = bijector.embedding if is_wrapped else embedding
        if not is_wrapped:
            # A bijector without a condition is refused before the shape of conditions is asked for.
            Conditional(bijector, None, bijector_kwargs)
        conditions = conditions_of(condition_shape, source, bijector, distribution.dtype)
        if not is_wrapped:
            conditional = Conditional(bijector, embedding, bijector_kwargs, conditions.ndims)
            check_embedded(conditional, conditions, distribution.dtype)
            distribution = distribution.copy(bijector=conditional)
        FlowTrainer.__init__(self, distribution, inverse_learning, bits_per_dim, name, conditions.example())
        self.conditions = conditions

    @classmethod
    def from_builder(
        cls,
        builder: Callable[..., TfpObject],
        inverse_learning: InverseLearning | None = Tracking(),  # noqa: B008
        bits_per_dim: bool = False,
        embedding: Callable | None = None,
        bijector_kwargs: Callable[[tf.Tensor], Mapping[str, Any]] | None = None,
        **arguments: Any,
    ) -> Self:
        """Makes the model of the flow `builder(**arguments)`, which can be saved whole.

        A `condition_shape` among the arguments is the builder's: with an embedding, the shape of its output.
        The shape of a condition is that of the inputs of the networks, see `ConditionalFlowModel`.

        Args:
          builder, inverse_learning, bits_per_dim, **arguments: see `FlowModel.from_builder`.
          embedding, bijector_kwargs: see `ConditionalFlowModel`. Functions and classes of your own must be
            registered with `keras.saving.register_keras_serializable()`.

        Raises:
          TypeError: if the builder or a function is not registered, or an argument is of another kind.
        """
        recipe = saving.recipe_of(builder, arguments, inverse_learning, bits_per_dim)
        own = {"embedding": embedding, "bijector_kwargs": bijector_kwargs}
        for name, value in own.items():
            encode_network(value, name)
        return saving.model_from_config(cls, recipe | own, None)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        check_bounds(config, "config")
        with keras.saving.custom_object_scope(custom_objects) if custom_objects else contextlib.nullcontext():
            own = {name: decode_network(config.get(name), name) for name in ("embedding", "bijector_kwargs")}
        return super().from_config({**config, **own}, custom_objects)

    def get_config(self) -> dict[str, Any]:
        conditional = self.distribution.bijector
        own = {"embedding": conditional.embedding, "bijector_kwargs": conditional.bijector_kwargs}
        return super().get_config() | {name: encode_network(value, name) for name, value in own.items()}

    def call(  # type: ignore[override]
        self, x: Array, condition: Any = None, training: bool | None = None
    ) -> tf.Tensor:
        """Returns the log density of each event for its condition; see `FlowModel`."""
        return self._score(x, training, self._arguments_of(condition))

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns the log densities of one batch, by the held log-dets."""
        x, condition, _ = keras.utils.unpack_x_y_sample_weight(data)
        if condition is None:
            x, condition = x
        with self._open_scope(is_training=False):
            return self(x, condition=condition, training=False)

    def log_prob(self, events: Array, condition: Any = None) -> tf.Tensor:
        """Returns the exact log density of each event for its condition, in nats.

        Args:
          events: events `(..., *event_shape)`, floating; cast to the dtype of the distribution.
          condition: conditions, whose leading dimensions are the last of those of the events. One condition
            for each event, or for each event of a batch of samples.

        Raises:
          TypeError: if an argument is of another kind of dtype.
          ValueError: if the condition is missing or does not fit, or the events have another shape.
        """
        events = check_events(self._frames.ordered(events, "events"), self.distribution, "events")
        arguments = self._arguments_of(condition)
        return self._density(events, arguments)

    def sample(  # type: ignore[override]
        self,
        n: Shape,
        condition: Any = None,
        seed: Seed = None,
        exact: bool = False,
        temperature: float = 1.0,
    ) -> tf.Tensor:
        """Draws samples for each condition.

        Args:
          n: number of samples for each condition, or a shape.
          condition: one condition, or a batch of them.
          seed, exact, temperature: see `FlowModel.sample`.

        Returns:
          Samples of shape `(n, batch, *event_shape)`; for one condition `(n, *event_shape)`.

        Raises:
          ValueError: if `n` is negative or no integer, if the condition is missing or does not fit, or as
            `FlowModel.sample` does.
        """
        shape, condition = check_sample_shape(n), self._condition(condition)
        with self._naming_singular_layers():
            return self._draw(shape, stateless_seed(seed), exact, condition, temperature)

    def _draw(self, n, seed, exact, condition=None, temperature=1.0):
        flow, shape = self._sampler(exact, temperature), self._shape_of_samples(n, condition)
        return flow.sample(shape, seed=seed, **condition_arguments(condition))

    def sample_and_log_prob(  # type: ignore[override]
        self,
        sample_shape: Shape = (),
        condition: Any = None,
        seed: Seed = None,
        exact: bool = False,
        temperature: float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws samples for each condition, with the log density in nats that they were drawn from.

        See `FlowModel.sample_and_log_prob` for the density, and `sample` for the arguments. With `exact=True`
        the result is `log_prob` of the samples for their conditions.

        Returns:
          Samples of shape `(*sample_shape, batch, *event_shape)`, and log densities `(*sample_shape, batch)`.

        Raises:
          ValueError: as `sample` does.

        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> flow = sn.coupling_flow(event_shape=2, condition_shape=1, num_layers=1, width=16, seed=1)
        >>> model = sn.ConditionalFlowModel(flow)
        >>> x, log_prob = model.sample_and_log_prob(3, condition=tf.zeros([5, 1]), seed=1, exact=True)
        >>> x.shape, log_prob.shape
        (TensorShape([3, 5, 2]), TensorShape([3, 5]))
        """
        shape, condition = check_sample_shape(sample_shape, "sample_shape"), self._condition(condition)
        with self._naming_singular_layers():
            return self._draw_and_score(shape, stateless_seed(seed), exact, condition, temperature)

    def _draw_and_score(self, n, seed, exact, condition=None, temperature=1.0):
        flow, shape = self._sampler(exact, temperature), self._shape_of_samples(n, condition)
        arguments = condition_arguments(condition)
        return flow.experimental_sample_and_log_prob(shape, seed=seed, **arguments)

    def _shape_of_samples(self, n, condition):
        """The numbers of samples, and the leading dimensions of the condition."""
        part, ndims = (tf.nest.flatten(value)[0] for value in (condition, self.conditions.ndims))
        sizes, dynamic = part.shape[: part.shape.rank - ndims].as_list(), tf.shape(part)
        return [*n, *(dynamic[i] if size is None else size for i, size in enumerate(sizes))]

    def fit_to_target(  # type: ignore[override]
        self,
        target_log_prob_fn: Callable[[tf.Tensor, Any], tf.Tensor],
        condition: Any,
        steps_per_epoch: int,
        epochs: int = 1,
        batch_size: int = 64,
        num_samples: int = 8,
        callbacks: Any = None,
        verbose: int | str = "auto",
        *,
        seed: Seed = None,
    ) -> keras.callbacks.History:
        """Trains the flow to have, for each condition, a density that is known up to a factor.

        This is amortized inference: one flow for all conditions. See `FlowModel.fit_to_target`. `log_z` and
        `ess` are means over conditions of the figures of few samples each: `log_z` is too low, the less the
        more samples, and `ess` is at least `1 / num_samples`.

        Args:
          target_log_prob_fn: function of events `(num_samples, batch_size, *event_shape)` and conditions
            `(batch_size, ...)` that returns log densities `(num_samples, batch_size)`.
          condition: a batch of conditions to train for; each step takes some at random.
          batch_size: number of conditions of a step.
          num_samples: number of samples for each condition.
          steps_per_epoch, epochs, callbacks, verbose, seed: see `FlowModel.fit_to_target`.

        Raises:
          TypeError, ValueError: as `FlowModel.fit_to_target` does, or if the conditions do not fit.
        """
        check_steps(
            steps_per_epoch=steps_per_epoch, epochs=epochs, batch_size=batch_size, num_samples=num_samples
        )
        training = TargetTraining(self, target_log_prob_fn, num_samples, seed)
        with self._checks():
            data = training.batches(condition, batch_size)
            training.check_target(next(iter(data)))
            return fit_to_target(training, data, steps_per_epoch, epochs, callbacks, verbose)

    def encode(self, events: Array, condition: Any = None) -> tf.Tensor:
        """Maps events to latents for their conditions; see `FlowModel.encode`. Raises as `log_prob` does."""
        events = check_events(self._frames.ordered(events, "events"), self.distribution, "events")
        condition = self._condition(condition)
        return self.inference_distribution.bijector.inverse(tf.identity(events), condition=condition)

    def decode(  # type: ignore[override]
        self, z: Array, condition: Any = None, exact: bool = False
    ) -> tf.Tensor:
        """Maps latents to events for their conditions; see `FlowModel.decode`."""
        z = check_events(z, self.distribution.distribution, name="z")
        return self._decoded(z, exact, condition=self._condition(condition))

    def reconstruct(  # type: ignore[override]
        self, events: Array, condition: Any = None, exact: bool = False
    ) -> tf.Tensor:
        """Maps events to latents and back. By default the difference from the events is the error of R."""
        return self.decode(self.encode(events, condition), condition, exact)

    def adapt(  # type: ignore[override]
        self, x: Any, y: Any = None, num_examples: int = 10_000, whitens: bool = False
    ) -> None:
        """Sets each `Centering`, `Standardize` and `ActNorm`, once, before `fit`; see `tfp_selfnorm.adapt`.

        Args:
          x: conditions, or a data set of `(conditions, events)`.
          y: events.
          num_examples: the number of events to use, from the beginning; they are held in memory.
          whitens: whether to set each `SelfNormDense` too, as `whiten` does.

        Raises:
          TypeError, ValueError: as `fit` and `tfp_selfnorm.adapt` do, and if `whitens` and it is trained.
        """
        self._check_untrained(whitens)
        data = x if is_stream(x) else self._frames.pair(x, y, has_conditions=True)
        events, condition = first_events(data, num_examples, self.distribution, self.conditions)
        adapt(self.distribution, events, whitens, condition)
        self._frames.remember(x, y, has_conditions=True)

    def _condition(self, condition):
        return self.conditions.tensor(self._frames.ordered(condition, "condition", "conditions"))

    def export(self, filepath: str | os.PathLike) -> None:
        """Writes a SavedModel; see `FlowModel.export`.

        Each endpoint takes a batch of conditions last: `log_prob(x, condition)`, `sample(n, seed,
        condition)`, `encode(x, condition)`, `decode(z, condition)`. Signatures name this input `condition`.
        For an embedding of several inputs they have one input for each: `condition_label` for the key
        "label" of a dict, `condition_0` for the first of a tuple. Characters other than letters and digits
        are `_` there. The endpoints take the dict or tuple itself.
        """
        super().export(filepath)

    def _arguments_of(self, condition):
        return condition_arguments(self._condition(condition))

    def _call_arguments(self, labels):
        return {"condition": labels}

    def _takes_labels(self):
        return True
