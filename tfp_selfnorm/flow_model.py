"""`FlowModel`, a Keras model over any TFP distribution."""

import contextlib

import keras
import tensorflow as tf

from tfp_selfnorm.adaptation import check_adapted
from tfp_selfnorm.checks import (
    check_distribution,
    check_inverse_learning,
)
from tfp_selfnorm.fit_data import FitData, naming_the_batch, prepare, prepare_batch, prepare_validation
from tfp_selfnorm.flow_functions import FlowFunctions
from tfp_selfnorm.flow_saving import FlowSaving
from tfp_selfnorm.flow_steps import FlowSteps, MeanFigure
from tfp_selfnorm.integers import check_counts, check_positive_int
from tfp_selfnorm.names import check_keras_name
from tfp_selfnorm.networks import computes_in_float16
from tfp_selfnorm.options import check_bool
from tfp_selfnorm.reconstruction import Reconstruction
from tfp_selfnorm.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.refresh import Refresh
from tfp_selfnorm.tracking import Tracking
from tfp_selfnorm.update_guard import UpdateGuard
from tfp_selfnorm.variable_names import name_variables, unused_name
from tfp_selfnorm.variables import NetworkHolder, adopt, reachable


@keras.saving.register_keras_serializable("tfp_selfnorm")
class FlowModel(FlowFunctions, FlowSaving, FlowSteps, keras.Model):
    """Trains a distribution by maximum likelihood with Keras `fit`, and scores, samples and exports it.

    Takes any TFP distribution with trainable variables. `fit(x)` minimises the mean negative
    log-likelihood, in nats, plus what `inverse_learning` adds. The progress bar shows `nll`; with
    self-normalizing layers `reconstruction` (the mean of `||x - R W x||^2`, summed over the layers; in
    training, where no loss needs it, over the first 8 examples of a batch) and, under tracking,
    `inverse_error` (the relative error of the learned inverses on random probes).

    A training step costs a few products with each kernel; with `gradient="exact"` also an O(D^3) inverse or,
    for a convolution, a block elimination a layer. Each layer's log-det is held in a variable, and refreshed
    outside the compiled step: every `refresh_interval` of the layer, by so many steps `nll` in training lags,
    and at the start of `evaluate` and `predict`, so `val_nll` is exact.

    A step whose loss or gradients are not finite is skipped, and counted by `skipped_updates`.

    Events go in as `(batch, *event_shape)`, in a floating dtype; they are cast to the distribution's.

    >>> flow = dense_flow(event_shape=2, seed=1)
    >>> model = FlowModel(flow)
    >>> model.compile(keras.optimizers.Adam(1e-2))
    >>> x = np.random.default_rng(1).normal(size=[256, 2])
    >>> history = model.fit(x, epochs=2, verbose=0)
    >>> model.log_prob(x).shape, model.sample(3, seed=1).shape
    (TensorShape([256]), TensorShape([3, 2]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021.
    """

    def __init__(
        self,
        distribution,
        inverse_learning: Tracking | Reconstruction | None = Tracking(),  # noqa: B008
        bits_per_dim: bool = False,
        name: str | None = None,
    ):
        """Makes the model; it adopts the variables that the distribution holds, and each variable that its
        `log_prob` reads, as those of a network in a closure. The Keras networks among them become its layers.

        Args:
          distribution: a TFP distribution with a floating dtype and a fully defined event shape.
          inverse_learning: how the learned inverses follow the kernels: `Tracking(...)`,
            `Reconstruction(...)` or `None`; it has no effect without self-normalizing layers.
          bits_per_dim: whether to report bits per dimension too; for densities of pixels.
          name: name of the model.

        Raises:
          TypeError: if `distribution` is no TFP distribution, or of no floating dtype.
          ValueError: if its event shape is unknown, it was made under another strategy, or a layer in it
            maps data to latent by its learned inverse.
        """
        check_distribution(distribution)
        check_inverse_learning(inverse_learning)
        check_keras_name(name)
        check_bool(bits_per_dim, "bits_per_dim")
        super().__init__(name=name, dtype=distribution.dtype.name, autocast=False)
        self.distribution = distribution
        self.inverse_learning = inverse_learning
        found = reachable(distribution)
        layers = found.layers
        self._self_norm = tuple(layers)
        self._tracking = inverse_learning if isinstance(inverse_learning, Tracking) else None
        self._tracked_self_norm = tuple(filter(self._tracking.follows, layers)) if self._tracking else ()
        frozen = [layer.forward_kernel for layer in layers if not self._trains_inverse(layer)]
        frozen = [kernel for kernel in frozen if isinstance(kernel, tf.Variable)]
        self._scales_loss = any(map(computes_in_float16, found.networks))
        keras_networks = [network for network in found.networks if isinstance(network, keras.Layer)]
        self._holders = tuple(map(NetworkHolder, keras_networks))
        self._tf_keras_networks = tuple(n for n in found.networks if not isinstance(n, keras.Layer))
        names = name_variables(found.variables, distribution, found.keras_variables)
        self._adopted = adopt(names, found.keras_variables, found.networks, frozen)
        # These and the state of the training, by the names that files and messages use.
        self._named = dict(self._adopted)
        # Such as the moving statistics of batch normalisation.
        self._moving_variables = [v for v in self._adopted.values() if not v.value.trainable]
        untaught = filter(self._is_untaught, layers)
        self._refresh = Refresh(layers, self._tracked_self_norm, untaught, self._add_named)
        self._guard = UpdateGuard(self._add_state)
        reconstruction = self._tracking.reconstruction if self._tracking else inverse_learning
        self._regularized_layers = tuple(la for la in layers if self._reconstruction_of(la) is not None)
        self._reconstruction_weights = ReconstructionWeights(
            reconstruction or Reconstruction(), self._regularized_layers, self._add_state
        )
        self._nll = MeanFigure("nll")
        self._bits_per_dim = MeanFigure("bits_per_dim") if bits_per_dim else None
        uses_inverse = any(layer.needs_inverse for layer in self._self_norm)
        self._reconstruction = MeanFigure("reconstruction") if uses_inverse else None
        weighs = self._reconstruction_weights.changes
        self._mean_weight = MeanFigure("reconstruction_weight") if weighs else None
        self._inverse_error = MeanFigure("inverse_error") if self._tracked_self_norm else None
        self._skipped_updates = keras.metrics.Sum("skipped_updates")
        self._step = None
        self._is_evaluating = self._evaluation_begins = False
        self.built = True

    def compile(
        self,
        optimizer="adam",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        *,
        max_skipped_updates=10,
    ):
        """Keras's `compile`, without a loss or metrics: the model has its own.

        Args:
          optimizer: a Keras optimizer, or its name.
          loss: must be `None`.
          loss_weights: must be `None`.
          metrics: must be `None`.
          weighted_metrics: must be `None`: the metrics of the model are weighted by `sample_weight`.
          run_eagerly: as Keras's.
          steps_per_execution: as Keras's.
          jit_compile: as Keras's. "auto" on the CPU leaves to XLA the update of large variables alone, by an
            optimizer of Keras; `False` leaves it nothing.
          auto_scale_loss: whether to scale the loss where a coupling network computes in float16.
          max_skipped_updates: training stops with a ValueError after so many steps in a row whose loss or
            gradients are not finite; single ones are skipped and counted.
        """
        given = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        for argument, value in given.items():
            if value is not None:
                raise ValueError(f"`{argument}` must be None: a FlowModel has its own; got {value!r}.")
        check_positive_int(max_skipped_updates, "max_skipped_updates")
        check_positive_int(steps_per_execution, "steps_per_execution")
        if optimizer is None:
            raise ValueError("`optimizer` must be a Keras optimizer, or the name of one; got None.")
        optimizer = keras.optimizers.get(optimizer)
        is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if auto_scale_loss and self._scales_loss and not is_scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        # Keras's own shows 0 where no step was measured.
        self._loss_tracker = MeanFigure("loss")
        # What Keras makes of "auto" it does not tell from `False`.
        self._jit_compile_given = jit_compile
        self._guard.max_skipped, self._guard.fuses = max_skipped_updates, jit_compile is not False
        self._guard.reset()
        self._optimized_variables = None
        self._step = None

    def refresh_log_dets(self):
        """Sets the held log-det of each layer to its exact value.

        Raises:
          ValueError: if one is not finite, naming the layer.
        """
        self._refresh.before_evaluation()

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
        """Keras's `fit`, without targets.

        Args:
          x: events: an array of any library, a `tf.data.Dataset` of batches, or what else Keras takes.
          y: labels; they are ignored, but for `class_weight`.
          batch_size: as Keras's, and so are the arguments that are not named here.
          validation_data: events, in a form that `x` may have, or a tuple or list that begins with them:
            `(x,)`, `(x, y)` or `(x, y, sample_weight)`; `y` may be `None`.
          class_weight: weights of the labels, in place of `sample_weight`.
          sample_weight: one weight an example, 0 or more; weighs the likelihoods, not the regularizer. Data
            sets hold them: `(x, y, sample_weight)`.

        Raises:
          TypeError: if `x` or `validation_data` is of no form that has events, or not floating.
          ValueError: if they are no batches of events; if an array or a batch has values or weights that are
            not finite, saying where; if a kernel becomes singular, naming the layer; if too many updates in
            a row were not finite.
        """
        check_counts(
            batch_size=batch_size,
            epochs=epochs or None,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        data = prepare(x, self.distribution, y, sample_weight, class_weight)
        if validation_data is not None:
            validation_data = prepare_validation(validation_data, self.distribution)
        check_adapted(self.distribution)
        self._step = None
        with naming_the_batch():
            history = super().fit(
                *data[:2],
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                class_weight=class_weight,
                sample_weight=data.sample_weight,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )
        self._check_guard()
        # Keras may have put the averages of the kernels in their place.
        self._refresh.set_inverses()
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
        """Keras's `evaluate`, with exact likelihoods: the log-dets are computed once, at its start.

        Takes events and weights, and raises, as `fit` does.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = FitData(x, y, sample_weight)
        # Within `fit` Keras has made its iterator of the validation data, which are checked.
        if not kwargs.get("_use_cached_eval_dataset", False):
            data = prepare(x, self.distribution, y, sample_weight)
        check_adapted(self.distribution)
        self._evaluation_begins = True
        with naming_the_batch(), self._evaluating():
            return super().evaluate(
                *data[:2],
                batch_size=batch_size,
                verbose=verbose,
                sample_weight=data.sample_weight,
                steps=steps,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`; takes events and weights as `fit` does."""
        check_adapted(self.distribution)
        x, y, sample_weight = prepare_batch(x, self.distribution, y, sample_weight, class_weight)
        return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`, with exact likelihoods; takes events and weights as `fit` does."""
        check_adapted(self.distribution)
        x, y, sample_weight = prepare_batch(x, self.distribution, y, sample_weight)
        self._evaluation_begins = True
        with self._evaluating():
            return super().test_on_batch(x, y, sample_weight, return_dict)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """The exact log density of each event, batch by batch; the log-dets are computed once.

        Takes events, and raises, as `fit` does.
        """
        check_counts(batch_size=batch_size, steps=steps)
        data = prepare(x, self.distribution)
        check_adapted(self.distribution)
        self._evaluation_begins = True
        with naming_the_batch():
            return super().predict(data.x, batch_size, verbose, steps, callbacks)

    def predict_on_batch(self, x):
        """The exact log density of each event of one batch."""
        check_adapted(self.distribution)
        x = prepare_batch(x, self.distribution).x
        self._evaluation_begins = True
        return super().predict_on_batch(x)

    def _add_state(self, initial, name, dtype="float32"):
        """A scalar that no gradient trains, and that files keep."""
        initializer = keras.initializers.Constant(initial)
        # Counts are the same on all replicas, and have no mean.
        aggregation = "mean" if dtype == "float32" else "only_first_replica"
        return self._add_named((), initializer, dtype, trainable=False, aggregation=aggregation, name=name)

    def _add_named(self, *args, name, **kwargs):
        """Keras's `add_weight`, under a name that no variable has: files go by names."""
        name = unused_name(name, self._named)
        self._named[name] = self.add_weight(*args, name=name, **kwargs)
        return self._named[name]

    def _get_own_losses(self):
        # Keras asks each layer of a model for the losses of its last call.
        losses = super()._get_own_losses()
        return losses + [loss for network in self._tf_keras_networks for loss in network.losses]

    @property
    def named_variables(self) -> dict:
        """The variables of the distribution and of its training, by the names that files and messages use.

        >>> model = FlowModel(dense_flow(event_shape=2, num_layers=1))
        >>> list(model.named_variables)[:3]
        ['dense_0_bias', 'dense_0_forward_kernel', 'dense_0_inverse_kernel']
        """
        return dict(self._named)

    @property
    def metrics(self):
        """The figures of the progress bar; none before `compile`: a bigger model is to show none."""
        return super().metrics if self.compiled else []

    def set_weights(self, weights):
        """Keras's `set_weights`."""
        super().set_weights(weights)
        self._refresh.take_weights()

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        # What `tf.train.Checkpoint(model=model)` saves: TensorFlow finds no variables in closures and lists.
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "checkpoint":
            variables = {f"named_variables.{name}": v.value for name, v in self.named_variables.items()}
            children = {**children, **variables}
        return children

    def _names(self, variables):
        names = {id(variable): name for name, variable in self._named.items()}
        return [names[id(variable)] for variable in variables]

    @contextlib.contextmanager
    def _evaluating(self):
        self._is_evaluating = True
        try:
            yield
        finally:
            self._is_evaluating = False

    def _trains_inverse(self, layer):
        """Whether a gradient reaches the layer's forward kernel."""
        if self._tracking and layer.is_matrix:
            return False
        by_likelihood = layer.gradient == "self_norm" and layer.mixture < 1.0
        return by_likelihood or self._reconstruction_of(layer) is not None

    def _is_untaught(self, layer):
        """Whether the layer needs a learned inverse, which can be set, and that neither way of learning
        sees."""
        is_learned = self._tracking or self._reconstruction_of(layer) is not None
        can_be_set = layer.is_matrix and isinstance(layer.forward_kernel, tf.Variable)
        return layer.needs_inverse and can_be_set and not is_learned

    def _reconstruction_of(self, layer):
        return self._tracking.reconstruction_of(layer) if self._tracking else self.inverse_learning
