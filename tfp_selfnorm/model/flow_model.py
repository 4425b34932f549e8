"""`FlowModel`, a Keras model over a TFP distribution."""

import keras
import tensorflow as tf

from tfp_selfnorm.flows.networks import computes_in_float16
from tfp_selfnorm.inverse_learning.options import check_inverse_learning
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.model.flow_fit import FlowFit
from tfp_selfnorm.model.flow_functions import FlowFunctions
from tfp_selfnorm.model.flow_steps import FlowSteps, MeanFigure
from tfp_selfnorm.model.refresh import Refresh
from tfp_selfnorm.model.saving import FlowSaving
from tfp_selfnorm.model.update_guard import UpdateGuard
from tfp_selfnorm.structure.names import name_variables, unused_name
from tfp_selfnorm.structure.variables import NetworkHolder, adopt, reachable
from tfp_selfnorm.utils.checks import check_distribution
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_keras_name
from tfp_selfnorm.utils.options import check_bool


@keras.saving.register_keras_serializable("tfp_selfnorm")
class FlowModel(FlowFit, FlowFunctions, FlowSaving, FlowSteps, keras.Model):
    """Trains a distribution by maximum likelihood with Keras `fit`, and scores, samples and exports it.

    Takes a TFP distribution of floats with a known event shape. `fit(x)` minimises the mean negative
    log-likelihood, in nats, plus what `inverse_learning` adds and the losses of networks. The progress bar
    shows `nll`; with self-normalizing layers `reconstruction` (the mean of `||x - R W x||^2`, summed over the
    layers; in training, where no loss needs it, over the first 8 examples of a batch) and, under tracking,
    `inverse_error` (the relative error of the learned inverses on random probes).

    A training step costs a few products with each kernel; with `gradient="exact"` also an O(D^3) inverse or,
    for a convolution, a block elimination a layer. Each layer's log-det is held in a variable, and refreshed
    outside the compiled step: every `refresh_interval` of the layer, by so many steps `nll` in training lags,
    and at the start of `evaluate` and `predict`, so `val_nll` is exact.

    A step whose loss, gradients or learning rate are not finite is skipped, and counted by `skipped_updates`.

    It is a layer of bigger models too: `model(x)` is the log density of each event, with exact values and
    gradients, at O(D^3) for each self-normalizing layer and call, and with its regularizers added by
    `add_loss`. In O(D^2) that takes a `training_scope` in the bigger model's own `train_step`. Learned
    inverses that no regularizer teaches are brought up to date where they are used: by samples, files and
    exports.

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
