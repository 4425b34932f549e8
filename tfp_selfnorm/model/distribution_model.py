"""`DistributionModel`, a Keras model that owns the variables of a distribution and checks its data."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.initialization import check_adapted
from tfp_selfnorm.model.batches import FitData
from tfp_selfnorm.model.conditions import Conditions
from tfp_selfnorm.model.data import (
    prepare,
    prepare_batch,
    prepare_prediction,
    prepare_validation,
    with_values,
)
from tfp_selfnorm.model.frames import Frames
from tfp_selfnorm.model.named_variables import NamedVariables
from tfp_selfnorm.model.progress import with_short_progress
from tfp_selfnorm.model.streams import raising_named_batches
from tfp_selfnorm.model.summary import print_summary, text_of
from tfp_selfnorm.structure.layers import at_inference
from tfp_selfnorm.structure.names import name_variables
from tfp_selfnorm.structure.wrappers import NetworkHolder, wrap_variables
from tfp_selfnorm.utils.checks import check_distribution
from tfp_selfnorm.utils.compat import flatten_layers
from tfp_selfnorm.utils.integers import check_counts
from tfp_selfnorm.utils.names import check_keras_name
from tfp_selfnorm.utils.types import Array, TfpObject


class DistributionModel(keras.Model):
    """A Keras model of a distribution: base of `FlowTrainer`.

    It owns the variables and networks of the distribution. `fit`, `evaluate`, `predict` and the methods for
    one batch have Keras's parameters. They take data of any form, and check them before any work.
    `_is_evaluating` says that an evaluation runs. `_evaluation_begins` says that none of its batches was
    computed yet.
    """

    # The form of the conditions; `None` for a model without them.
    conditions: Conditions | None = None
    # A copy has the name of the model, also if Keras made it: it is a part of the paths of variables.
    _name_of_copy: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("train_step", "test_step", "predict_step"):
            step = getattr(cls, name)
            if step not in [
                getattr(kind, name) for kind in cls.__bases__ if issubclass(kind, DistributionModel)
            ]:
                setattr(cls, name, with_values(step))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls, *args, **kwargs)
        # For copies. Keras takes no attribute before its constructor.
        object.__setattr__(model, "_arguments", (args, kwargs))
        return model

    def __init__(self, distribution: TfpObject, name: str | None) -> None:
        name = self._name_of_copy or name
        check_distribution(distribution)
        check_keras_name(name)
        super().__init__(name=name, dtype=distribution.dtype.name, autocast=False)
        self.distribution = distribution
        self._frames = Frames(distribution)
        self._is_evaluating = self._evaluation_begins = False

    def __repr__(self) -> str:
        return text_of(self)

    __str__ = __repr__

    def fit(
        self,
        x: Any = None,
        y: Array | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[Any, float] | None = None,
        sample_weight: Array | None = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
    ) -> keras.callbacks.History:
        """Trains the model on events, without targets. Other arguments are as in Keras.

        In a `ConditionalFlowModel`, `x` are the conditions and `y` the events, here, in data sets, in
        `validation_data` and in `evaluate`.

        Args:
          x: events: a dense array that numpy can convert, a `tf.data.Dataset` of batches, or another form of
            Keras. A frame must have the columns of the first one, or of a `tables.ColumnMap`, in any order.
          y: labels, for `class_weight`. A subclass with a `compute_loss`, `train_step` or `test_step` of its
            own gets them too. Labels of strings and labels that are not dense are `None` there.
          verbose: 1 shows the likelihood and the figures out of the ordinary, 2 all, in a line an epoch.
          validation_data: events in a form that `x` may have, or a tuple or list that begins with them:
            `(x,)`, `(x, y)` or `(x, y, sample_weight)`; `y` may be `None`.
          class_weight: weights of the labels, instead of `sample_weight`.
          sample_weight: one weight an example, 0 or more, for the likelihoods, not for the regularizer. The
            loss is the weighted sum divided by the number of examples, as in Keras. `nll` is the weighted
            mean. Data sets hold their weights: `(x, y, sample_weight)`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: if `x` or `validation_data` is of no form that has events, or not floating.
          ValueError: if they are no batches of events; if values or weights are not finite, with their
            place; if a kernel becomes singular, with the name of the layer; if too many steps in a row were
            skipped.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        counts = ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size")
        check_counts(epochs=epochs or None, **{name: arguments[name] for name in counts})
        with self._checks():
            has_conditions, options = self.conditions is not None, self._data_options()
            events, y_in_order = self._frames.pair(x, y, has_conditions)
            data = prepare(events, self.distribution, y_in_order, sample_weight, class_weight, **options)
            self._frames.remember(x, y, has_conditions)
            if validation_data is not None:
                validation_data = self._ordered(validation_data, "validation_data")
                prepared = prepare_validation(validation_data, self.distribution, **self._data_options())
                arguments["validation_data"] = prepared
            arguments["callbacks"] = with_short_progress(callbacks, verbose)
            arguments["shuffle"] = shuffle and not isinstance(data.x, tf.data.Dataset)  # else Keras warns
            history = super().fit(**{**arguments, **data._asdict()})
        self._end_training()
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Array | None = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Array | None = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Returns the figures of events, with exact likelihoods; the log-dets are computed once.

        The arguments are as in Keras. Takes events and weights, and raises, as `fit` does: a
        `ConditionalFlowModel` takes the conditions as `x` and the events as `y`.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = FitData(x, y, sample_weight)
        callbacks = with_short_progress(callbacks, verbose)
        options = {"verbose": verbose, "steps": steps, "callbacks": callbacks, "return_dict": return_dict}
        with self._checks(evaluates=True):
            # Inside `fit` Keras has an iterator of the validation data, which are checked already.
            if not kwargs.get("_use_cached_eval_dataset", False):
                x, y = self._frames.pair(x, y, self.conditions is not None)
                data = prepare(x, self.distribution, y, sample_weight, **self._data_options())
            return super().evaluate(**data._asdict(), batch_size=batch_size, **options, **kwargs)

    def train_on_batch(
        self,
        x: Array,
        y: Array | None = None,
        sample_weight: Array | None = None,
        class_weight: Mapping[Any, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Does one training step; takes events, or conditions and events, and weights as `fit` does."""
        x, y = self._frames.pair(x, y, self.conditions is not None)
        data = prepare_batch(x, self.distribution, y, sample_weight, class_weight, **self._data_options())
        with self._checks():
            return super().train_on_batch(*data, class_weight, return_dict)

    def test_on_batch(
        self,
        x: Array,
        y: Array | None = None,
        sample_weight: Array | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Returns the figures of a batch, with exact likelihoods; takes the arguments of `evaluate`."""
        x, y = self._frames.pair(x, y, self.conditions is not None)
        data = prepare_batch(x, self.distribution, y, sample_weight, **self._data_options())
        with self._checks(evaluates=True):
            return super().test_on_batch(*data, return_dict)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Returns the exact log density of each event, batch by batch; the log-dets are computed once.

        The arguments are as in Keras. Takes events, and raises, as `fit` does. A `ConditionalFlowModel` takes
        `(conditions, events)`.
        """
        check_counts(batch_size=batch_size, steps=steps)
        with self._checks(evaluates=True):
            x = prepare_prediction(self._ordered(x), self.distribution, self.conditions)
            return super().predict(x, batch_size, verbose, steps, callbacks)

    def predict_on_batch(self, x: Array) -> np.ndarray:
        """Returns the exact log density of each event of one batch."""
        x = prepare_prediction(self._ordered(x), self.distribution, self.conditions, prepare_batch)
        with self._checks(evaluates=True):
            return super().predict_on_batch(x)

    def summary(
        self,
        line_length: int | None = None,
        positions: Sequence[float] | None = None,
        print_fn: Callable[[str], Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Sequence[str] | None = None,
    ) -> None:
        """Prints a row for each bijector, from data to latent, a row for the base distribution, and totals.

        A row has the event shapes on the sides of the data and of the latent, and the numbers of trainable
        and other parameters. Each bijector of a chain has its own row. The bijectors inside a `ChannelSplit`
        are indented below it. The totals count shared parameters once.

        Args:
          line_length: length of the lines.
          positions: the ends of the columns, as parts of a line.
          print_fn: function that takes the text; `print` by default.
          expand_nested: whether the parts of other bijectors, such as networks, have rows too.
          show_trainable: whether to add a column that says whether a variable of the row trains.
          layer_range: names of the first and the last row, or regular expressions.

        Raises:
          ValueError: if `positions` do not fit the columns, or `layer_range` matches nothing.

        >>> import tfp_selfnorm as sn
        >>> flow = sn.dense_flow(2, num_layers=1, seed=1)
        >>> sn.FlowModel(flow, name="flow").summary(line_length=72)
        Model: "flow"
        ┏━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━┓
        ┃ Layer (type)             ┃ Event shape       ┃ Trainable ┃     Fixed ┃
        ┡━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━┩
        │ dense_0 (SelfNormDense)  │ (2,) → (2,)       │         6 │         4 │
        ├──────────────────────────┼───────────────────┼───────────┼───────────┤
        │ SampleNormal (Sample of  │ (2,)              │         0 │         0 │
        │ Normal)                  │                   │           │           │
        └──────────────────────────┴───────────────────┴───────────┴───────────┘
         Total params: 10
         Trainable params: 6
         Non-trainable params: 4
         State of the training (held log-dets, counters): 4
        """
        print_summary(self, line_length, positions, print_fn, expand_nested, show_trainable, layer_range)

    @contextlib.contextmanager
    def _checks(self, evaluates=False):
        """Around each method of Keras: checks the flow before data, and explains failures of data sets."""
        check_adapted(self.distribution)
        self._is_evaluating = self._evaluation_begins = evaluates
        try:
            with raising_named_batches():
                yield
        finally:
            self._is_evaluating = False

    def _maybe_symbolic_build(self, *args, **kwargs):
        # Under a strategy Keras builds a model from the mean of the first batch over the replicas. TensorFlow
        # has no mean over several workers of a batch with weights or conditions. This model is built already.
        if not all(layer.built for layer in flatten_layers(self)):
            super()._maybe_symbolic_build(*args, **kwargs)

    def _end_training(self):
        """After each `fit`."""

    def _takes_labels(self):
        """Whether a step has a use for labels."""
        return False

    def _ordered(self, data, name="x"):
        """Data with the columns of frames in the order of the model."""
        return self._frames.element(data, self.conditions is not None, name)

    def _data_options(self):
        return {"keeps_labels": self._takes_labels(), "conditions": self.conditions}

    def _take_variables(self, found, untrained):
        """Makes the model own the variables and networks that were found, for Keras to train and to save.

        Args:
          found: result of `find_layers_and_variables`.
          untrained: variables that get no gradient.
        """
        frozen = [variable.ref() for variable in untrained]
        self._holders = tuple(NetworkHolder(n, frozen) for n in found.networks if isinstance(n, keras.Layer))
        self._tf_keras_networks = tuple(n for n in found.networks if not isinstance(n, keras.Layer))
        names = name_variables(found.variables, self.distribution, found.keras_variables)
        self._flow_variables = wrap_variables(names, found.keras_variables, found.networks, untrained)
        # For example the moving statistics of batch normalisation.
        self._moving_variables = [v for v in self._flow_variables.values() if not v.value.trainable]
        self._named = NamedVariables(self._flow_variables, super().add_weight)

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        """Does the same as Keras's method. The files of the model keep the variable by its name."""
        return self._named.add(*args, name=name or "variable", **kwargs)

    @functools.cached_property
    def inference_distribution(self) -> TfpObject:
        """The distribution that the model scores and samples outside of training.

        It is `distribution` with the moving statistics of each `tfb.BatchNormalization`.
        """
        with tf.init_scope():
            return at_inference(self.distribution)

    def _get_own_losses(self):
        # Keras asks each layer of a model for the losses of its last call.
        losses = super()._get_own_losses()
        return losses + [loss for network in self._tf_keras_networks for loss in network.losses]

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # For `tf.train.Checkpoint(model=model)`: TensorFlow finds no variables in closures and lists.
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "checkpoint":
            variables = {f"named_variables.{name}": v.value for name, v in self._named.all.items()}
            children = {**children, **variables}
        return children

    @property
    def named_variables(self) -> dict[str, keras.Variable]:
        """The variables of the distribution and of its training, by their names in files and messages.

        >>> import tfp_selfnorm as sn
        >>> model = sn.FlowModel(sn.dense_flow(event_shape=2, num_layers=1))
        >>> list(model.named_variables)[:3]
        ['dense_0_bias', 'dense_0_forward_kernel', 'dense_0_inverse_kernel']
        """
        return dict(self._named.all)
