"""`FlowModel`, a Keras model over any TFP distribution."""

import keras
import tensorflow as tf

from tfp_selfnorm import images
from tfp_selfnorm.adaptation import check_adapted
from tfp_selfnorm.bijectors import AffineCoupling
from tfp_selfnorm.checks import (
    check_distribution,
    check_events,
    check_finite,
    check_inverse_learning,
    naming_the_batch,
    weighted,
    with_dummy_targets,
)
from tfp_selfnorm.flow_functions import FlowFunctions
from tfp_selfnorm.held_log_dets import HeldLogDets
from tfp_selfnorm.reconstruction import Reconstruction
from tfp_selfnorm.tracking import Tracking, inverse_error, refresh_inverse, sketch_and_project
from tfp_selfnorm.training_scope import current_scope, training_scope
from tfp_selfnorm.tree import bijectors_of
from tfp_selfnorm.variables import adopt, reachable

# The reconstruction error on the progress bar is estimated from so many examples where no loss needs it.
_ERROR_EXAMPLES = 8


class FlowModel(FlowFunctions, keras.Model):
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
        """Makes the model; it adopts the variables that the distribution holds, and every trainable
        variable that its `log_prob` touches, as those of a network in a closure.

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
        super().__init__(name=name, dtype=distribution.dtype.name, autocast=False)
        self.distribution = distribution
        self.inverse_learning = inverse_learning
        layers, variables = reachable(distribution)
        self._self_norm = tuple(layers)
        self._tracking = inverse_learning if isinstance(inverse_learning, Tracking) else None
        self._tracked_self_norm = tuple(filter(self._tracking.follows, layers)) if self._tracking else ()
        frozen = [layer.forward_kernel for layer in layers if not self._trains_inverse(layer)]
        frozen = [kernel for kernel in frozen if isinstance(kernel, tf.Variable)]
        for coupling in bijectors_of(AffineCoupling, distribution):
            frozen += coupling.frozen_variables
        self._adopted = adopt(variables, frozen)
        self._held_log_dets = HeldLogDets(layers, self.add_weight)
        self._nll = keras.metrics.Mean("nll")
        self._bits_per_dim = keras.metrics.Mean("bits_per_dim") if bits_per_dim else None
        uses_inverse = any(layer.needs_inverse for layer in self._self_norm)
        self._reconstruction = keras.metrics.Mean("reconstruction") if uses_inverse else None
        self._inverse_error = keras.metrics.Mean("inverse_error") if self._tracked_self_norm else None
        self._step = None
        self.built = True

    def compile(self, optimizer="adam", loss=None, metrics=None, **kwargs):
        """Keras's `compile`, without a loss or metrics: the model has its own."""
        for argument, value in (("loss", loss), ("metrics", metrics)):
            if value is not None:
                raise ValueError(f"`{argument}` must be None: a FlowModel has its own; got {value!r}.")
        super().compile(optimizer=optimizer, **kwargs)
        self._step = None

    def refresh_log_dets(self):
        """Sets the held log-det of each layer to its exact value.

        Raises:
          ValueError: if one is not finite, naming the layer.
        """
        self._held_log_dets.refresh()

    def call(self, x, training=False):
        """The log density of each event: exact, or the surrogate of the training scope that is open."""
        log_prob = self.distribution.log_prob(tf.identity(check_events(x, self.distribution)))
        scope = current_scope()
        if scope is None or not scope.records:
            return log_prob
        if any(self._reconstruction_of(layer) is not None for layer in scope.layers):
            self.add_loss(scope.reconstruction_loss())
        if self._reconstruction is not None and scope.sees_records:
            full = scope.records[0].error is not None or not training
            error = scope.reconstruction_error(None if full else _ERROR_EXAMPLES)
            self._reconstruction.update_state(error, sample_weight=tf.shape(x)[0])
        return log_prob

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean negative log-likelihood, weighted by `sample_weight`, plus the added losses."""
        weights = tf.ones_like(y_pred)
        if sample_weight is not None:
            # One weight an example, whatever the batch shape of the distribution.
            shape = [-1] + [1] * (y_pred.shape.rank - 1)
            weights *= tf.reshape(tf.cast(sample_weight, y_pred.dtype), shape)
        total = tf.reduce_sum(weights)
        nll = -tf.math.divide_no_nan(tf.reduce_sum(weights * y_pred), total)
        self._nll.update_state(nll, sample_weight=total)
        if self._bits_per_dim is not None:
            bits = images.bits_per_dim(-nll, self.distribution.event_shape)
            self._bits_per_dim.update_state(bits, sample_weight=total)
        loss = tf.add_n([nll, *(tf.cast(loss, nll.dtype) for loss in self.losses)])
        # Keras adds the gradients of the replicas up.
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def train_step(self, data):
        """One step of the optimizer, and under tracking one update of each learned inverse."""
        with self._open_scope():
            super().train_step(data)
        for i, layer in enumerate(self._tracked_self_norm):
            step = tf.cast(self.optimizer.iterations.value, tf.int32)
            error = sketch_and_project(layer, self.inverse_learning.num_probes, tf.stack([i, step]))
            self._inverse_error.update_state(error)
        return self.get_metrics_result()

    def test_step(self, data):
        """The figures of one batch, from the held log-dets."""
        with self._open_scope():
            super().test_step(data)
        for i, layer in enumerate(self._tracked_self_norm):
            error = inverse_error(layer, self.inverse_learning.num_probes, seed=i)
            self._inverse_error.update_state(error)
        return self.get_metrics_result()

    def predict_step(self, data):
        """The log densities of one batch, from the held log-dets."""
        with self._open_scope():
            return super().predict_step(data)

    def make_train_function(self, force=False):
        if self.train_function is not None and not force:
            return
        super().make_train_function(force=force)
        compiled_steps = self.train_function

        def train_function(iterator):
            self._refresh_when_due()
            return compiled_steps(iterator)

        self.train_function = train_function

    def fit(self, x=None, *args, **kwargs):
        """Keras's `fit`, without targets.

        Args:
          x: events: an array, a `tf.data.Dataset`, or what else Keras takes. Labels are ignored.
          *args: as Keras's.
          **kwargs: as Keras's; `sample_weight` weighs the likelihoods of examples, not the regularizer.

        Raises:
          ValueError: if an array or a `tf.data.Dataset` has values that are not finite, saying where; if
            a kernel becomes singular or not finite, naming the layer.
        """
        check_adapted(self.distribution)
        validation = kwargs.get("validation_data")
        if validation is not None:
            validation = check_finite(validation, "validation_data")
            kwargs["validation_data"] = with_dummy_targets(validation)
        self._step = None
        with naming_the_batch():
            return super().fit(check_finite(x), *args, **weighted(x, kwargs))

    def evaluate(self, x=None, *args, **kwargs):
        """Keras's `evaluate`, with exact likelihoods: the log-dets are computed once, at its start."""
        check_adapted(self.distribution)
        self.refresh_log_dets()
        with naming_the_batch():
            return super().evaluate(check_finite(x), *args, **weighted(x, kwargs))

    def train_on_batch(self, *args, **kwargs):
        """Keras's `train_on_batch`."""
        check_adapted(self.distribution)
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Keras's `test_on_batch`, with exact likelihoods."""
        check_adapted(self.distribution)
        self.refresh_log_dets()
        return super().test_on_batch(*args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """The exact log density of each event, batch by batch; the log-dets are computed once."""
        check_adapted(self.distribution)
        self.refresh_log_dets()
        with naming_the_batch():
            return super().predict(check_finite(x), *args, **kwargs)

    def predict_on_batch(self, x):
        """The exact log density of each event of one batch."""
        check_adapted(self.distribution)
        self.refresh_log_dets()
        return super().predict_on_batch(x)

    def get_config(self):
        """A distribution has no config: weights and exports are what can be saved."""
        raise ValueError(
            "A FlowModel made from a distribution cannot be saved whole: save its weights with "
            "`save_weights` (`save_weights_only=True` in ModelCheckpoint), or `export` it."
        )

    def _open_scope(self):
        return training_scope(self.inverse_learning, self._held_log_dets.read())

    def _refresh_when_due(self):
        """Host side of the training step: what costs O(D^3) stays out of the compiled graph."""
        if not self._self_norm:
            return
        if self._step is None:
            self._step = int(self.optimizer.iterations.numpy())

        def is_due(layer):
            interval = self._tracking.interval(layer) if self._tracking else layer.refresh_interval
            return self._step % interval < self.steps_per_execution

        for layer in filter(is_due, self._tracked_self_norm):
            refresh_inverse(layer)
        self._held_log_dets.refresh(is_due)
        self._step += self.steps_per_execution

    def _trains_inverse(self, layer):
        """Whether a gradient reaches the layer's forward kernel."""
        if self._tracking and layer.is_matrix:
            return False
        by_likelihood = layer.gradient == "self_norm" and layer.mixture < 1.0
        return by_likelihood or self._reconstruction_of(layer) is not None

    def _reconstruction_of(self, layer):
        return self._tracking.reconstruction_of(layer) if self._tracking else self.inverse_learning
