"""`DistributionModel`, a Keras model that owns what a distribution holds, and takes data of its events."""

import contextlib

import keras

from tfp_selfnorm.initialization import check_adapted
from tfp_selfnorm.model.batches import FitData
from tfp_selfnorm.model.data import prepare, prepare_batch, prepare_validation
from tfp_selfnorm.model.named_variables import NamedVariables
from tfp_selfnorm.model.streams import raising_named_batches
from tfp_selfnorm.model.summary import print_summary
from tfp_selfnorm.structure.names import name_variables
from tfp_selfnorm.structure.variables import NetworkHolder, wrap_variables
from tfp_selfnorm.utils.checks import check_distribution
from tfp_selfnorm.utils.integers import check_counts
from tfp_selfnorm.utils.names import check_keras_name


class DistributionModel(keras.Model):
    """A Keras model of a distribution: base of `FlowTrainer`.

    It owns the variables and networks of the distribution. `fit`, `evaluate`, `predict` and the methods of
    one batch have Keras's parameters, take data of any form, and name what is wrong with them before any
    work. `_is_evaluating` says whether an evaluation runs, and `_evaluation_begins` that none of its batches
    was seen yet.
    """

    def __init__(self, distribution, name):
        check_distribution(distribution)
        check_keras_name(name)
        super().__init__(name=name, dtype=distribution.dtype.name, autocast=False)
        self.distribution = distribution
        self._is_evaluating = self._evaluation_begins = False

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Keras's `fit`, without targets; the arguments that are not named here are Keras's.

        Args:
          x: events: an array of any library, a `tf.data.Dataset` of batches, or another form of Keras's.
          y: labels; they are ignored, but for `class_weight`.
          validation_data: events, in a form that `x` may have, or a tuple or list that begins with them:
            `(x,)`, `(x, y)` or `(x, y, sample_weight)`; `y` may be `None`.
          class_weight: weights of the labels, instead of `sample_weight`.
          sample_weight: one weight an example, 0 or more; weighs the likelihoods, not the regularizer. As
            with Keras's losses the weighted sum is divided by the number of examples; `nll` is the weighted
            mean. Data sets hold them: `(x, y, sample_weight)`.

        Raises:
          TypeError: if `x` or `validation_data` is of no form that has events, or not floating.
          ValueError: if they are no batches of events; if an array or a batch has values or weights that are
            not finite, saying where; if a kernel becomes singular, naming the layer; if too many updates in
            a row were not finite.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        counts = ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size")
        check_counts(epochs=epochs or None, **{name: arguments[name] for name in counts})
        data = prepare(x, self.distribution, y, sample_weight, class_weight)
        if validation_data is not None:
            arguments["validation_data"] = prepare_validation(validation_data, self.distribution)
        with self._checks():
            self._begin_training()
            history = super().fit(**{**arguments, **data._asdict()})
        self._end_training()
        return history

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Keras's `evaluate`, with exact likelihoods: the log-dets are computed once, when it begins.

        Takes events and weights, and raises, as `fit` does.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = FitData(x, y, sample_weight)
        # Within `fit` Keras has made its iterator of the validation data, which are checked.
        if not kwargs.get("_use_cached_eval_dataset", False):
            data = prepare(x, self.distribution, y, sample_weight)
        options = {"verbose": verbose, "steps": steps, "callbacks": callbacks, "return_dict": return_dict}
        with self._checks(evaluates=True):
            return super().evaluate(**data._asdict(), batch_size=batch_size, **options, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`; takes events and weights as `fit` does."""
        data = prepare_batch(x, self.distribution, y, sample_weight, class_weight)
        with self._checks():
            return super().train_on_batch(*data, class_weight, return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`, with exact likelihoods; takes events and weights as `fit` does."""
        data = prepare_batch(x, self.distribution, y, sample_weight)
        with self._checks(evaluates=True):
            return super().test_on_batch(*data, return_dict)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """The exact log density of each event, batch by batch; the log-dets are computed once.

        Takes events, and raises, as `fit` does.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = prepare(x, self.distribution)
        with self._checks(evaluates=True):
            return super().predict(data.x, batch_size, verbose, steps, callbacks)

    def predict_on_batch(self, x):
        """The exact log density of each event of one batch."""
        data = prepare_batch(x, self.distribution)
        with self._checks(evaluates=True):
            return super().predict_on_batch(data.x)

    def summary(
        self,
        line_length=None,
        positions=None,
        print_fn=None,
        expand_nested=False,
        show_trainable=False,
        layer_range=None,
    ):
        """Prints a row for each bijector, from data to latent, and the base distribution, with the totals.

        A row has the event shape on the side of the data and of the latent, and the numbers of parameters
        that Keras trains and does not. Chains are taken apart, and what is inside a `ChannelSplit` is
        indented below it. The totals count shared parameters once.

        Args:
          line_length: length of the lines.
          positions: where the columns end, as parts of a line.
          print_fn: function that gets the text; `print` by default.
          expand_nested: whether other bijectors' parts, such as networks, have rows too.
          show_trainable: whether to add a column: whether anything in the row trains.
          layer_range: names of the first and the last row, or regular expressions.

        Raises:
          ValueError: if `positions` do not fit the columns, or `layer_range` matches nothing.

        >>> FlowModel(dense_flow(2, num_layers=1, seed=1), name="flow").summary(line_length=72)
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
        """Around each method of Keras: looks at the flow before it, and explains failures of data sets."""
        check_adapted(self.distribution)
        self._is_evaluating = self._evaluation_begins = evaluates
        try:
            with raising_named_batches():
                yield
        finally:
            self._is_evaluating = False

    def _begin_training(self):
        """Before each `fit`."""

    def _end_training(self):
        """After each `fit`."""

    def _take_variables(self, found, untrained):
        """Makes the model own the variables and networks that were found, for Keras to train and to save.

        Args:
          found: from `find_layers_and_variables`.
          untrained: variables that no gradient is to reach.
        """
        is_keras = {id(network): isinstance(network, keras.Layer) for network in found.networks}
        self._holders = tuple(NetworkHolder(n) for n in found.networks if is_keras[id(n)])
        self._tf_keras_networks = tuple(n for n in found.networks if not is_keras[id(n)])
        names = name_variables(found.variables, self.distribution, found.keras_variables)
        self._flow_variables = wrap_variables(names, found.keras_variables, found.networks, untrained)
        # Such as the moving statistics of batch normalisation.
        self._moving_variables = [v for v in self._flow_variables.values() if not v.value.trainable]
        self._named = NamedVariables(self._flow_variables, self.add_weight)

    def _get_own_losses(self):
        # Keras asks each layer of a model for the losses of its last call.
        losses = super()._get_own_losses()
        return losses + [loss for network in self._tf_keras_networks for loss in network.losses]

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # What `tf.train.Checkpoint(model=model)` saves: TensorFlow finds no variables in closures and lists.
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "checkpoint":
            variables = {f"named_variables.{name}": v.value for name, v in self._named.all.items()}
            children = {**children, **variables}
        return children

    @property
    def named_variables(self) -> dict:
        """The variables of the distribution and of its training, by the names that files and messages use.

        >>> model = FlowModel(dense_flow(event_shape=2, num_layers=1))
        >>> list(model.named_variables)[:3]
        ['dense_0_bias', 'dense_0_forward_kernel', 'dense_0_inverse_kernel']
        """
        return dict(self._named.all)
