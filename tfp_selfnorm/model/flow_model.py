"""`FlowModel`, a Keras model over a TFP distribution."""

import os
from collections.abc import Callable, MutableMapping
from typing import Any, Self

import keras
import tensorflow as tf

from tfp_selfnorm.initialization import adapt
from tfp_selfnorm.inverse_learning.base import InverseLearning
from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.model import copying, saving
from tfp_selfnorm.model.export import export_flow
from tfp_selfnorm.model.sampling import SamplingModel
from tfp_selfnorm.model.streams import first_events
from tfp_selfnorm.model.target_training import TargetTraining, check_steps, fit_to_target
from tfp_selfnorm.utils.files import check_suffix, is_local
from tfp_selfnorm.utils.types import Array, Seed, TfpObject


@keras.saving.register_keras_serializable("tfp_selfnorm")
class FlowModel(SamplingModel):
    """Trains a distribution with Keras `fit`, by maximum likelihood; then scores, samples and exports it.

    The loss of `fit(x)` is the mean negative log-likelihood in nats, plus the regularizer of
    `inverse_learning` and the losses of Keras networks in the flow.

    The progress bar shows:

    - `nll`: the mean negative log-likelihood.
    - `reconstruction`, with self-normalizing layers: the mean of `||x - R W x||^2`, summed over them. In
      training the first 8 examples of a batch give it, unless the loss needs it for all.
    - `inverse_error`, under `Tracking`: the relative error of R on random probes.
    - `skipped_updates`: the number of skipped steps. A step is skipped if its loss, its gradients or its
      learning rate are not finite.

    A training step costs a few products with each kernel. With `gradient="exact"` it also costs an O(D^3)
    inverse for each dense layer, or a block elimination for each convolution. The log-det of each layer is
    held in a variable. It is refreshed between the compiled steps: at every `refresh_interval` steps of the
    layer or `refresh_every` of `Tracking`, and when `evaluate` and `predict` begin. So `nll` in training may
    be this many steps old, and `val_nll` is exact. The gradient "circulant" is corrected now and then.

    The model can be a layer of a bigger model. `model(x)` is the log density of each event, with exact values
    and gradients, at O(D^3) for each self-normalizing layer. It adds its regularizer by `add_loss`. For steps
    of O(D^2), open a `training_scope` in the `train_step` of the bigger model. If no regularizer trains R, R
    is refreshed when samples, files and exports need it.

    Events have the shape `(batch, *event_shape)` and a floating dtype. They are cast to the dtype of the
    distribution.

    >>> import keras, numpy as np, tfp_selfnorm as sn
    >>> flow = sn.dense_flow(event_shape=2, seed=1)
    >>> model = sn.FlowModel(flow)
    >>> model.compile(keras.optimizers.Adam(1e-2))
    >>> x = np.random.default_rng(1).normal(size=[256, 2])
    >>> history = model.fit(x, epochs=2, verbose=0)
    >>> model.log_prob(x).shape, model.sample(3, seed=1).shape
    (TensorShape([256]), TensorShape([3, 2]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021.
    """

    # The config of a model from `from_builder`, in terms of JSON.
    _recipe: dict[str, Any] | None = None
    _skips_mismatch = False

    def __init__(
        self,
        distribution: TfpObject,
        inverse_learning: InverseLearning | None = Tracking(),  # noqa: B008
        bits_per_dim: bool = False,
        name: str | None = None,
    ) -> None:
        """Makes the model of a distribution, with all of its variables and Keras networks.

        The model trains and saves each variable that the distribution holds or its `log_prob` reads, also
        inside Python functions. Keras networks become layers of the model.

        Args:
          distribution: a TFP distribution with a floating dtype and a fully defined event shape.
          inverse_learning: how R follows W: `Tracking(...)`, `Reconstruction(...)` or `None`. Without
            self-normalizing layers it has no effect.
          bits_per_dim: whether to show bits per dimension too; for densities of pixels.
          name: name of the model.

        Raises:
          TypeError: if `distribution` is no TFP distribution, or has no floating dtype.
          ValueError: if its event shape is unknown, if it was made under another strategy, or if a layer
            maps data to latent by its learned inverse.
        """
        super().__init__(distribution, inverse_learning, bits_per_dim, name)

    @classmethod
    def from_builder(
        cls,
        builder: Callable[..., TfpObject],
        inverse_learning: InverseLearning | None = Tracking(),  # noqa: B008
        bits_per_dim: bool = False,
        **arguments: Any,
    ) -> Self:
        """Makes the model of the flow `builder(**arguments)`, which can be saved whole.

        `model.save("flow.keras")` keeps the builder and its arguments, the arguments of `compile`, the
        weights, and the state of the training. `keras.models.load_model("flow.keras")` gives a model with the
        same densities, which continues the training. The process that loads must import `tfp_selfnorm`
        first. The builder must keep its random numbers in variables.

        Args:
          builder: a builder of this package. Or your own function that returns a TFP distribution and is
            registered with `keras.saving.register_keras_serializable()`. Its arguments must have other names
            than those of this method.
          inverse_learning, bits_per_dim: see `FlowModel`.
          **arguments: arguments of the builder, with `name`. They may be numbers, strings and None; dtypes,
            shapes, constant arrays and tensors; registered functions; TFP's elementary bijectors with
            constant parameters, such as `images.pixel_sigmoid()`, and chains of them; and lists, tuples and
            dicts of all these.

        Raises:
          TypeError: if the builder is not registered, or an argument is of another kind.

        >>> import tfp_selfnorm as sn
        >>> model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, num_layers=3, seed=1)
        >>> model.get_config()["builder"]
        {'function': 'tfp_selfnorm>dense_flow'}
        """
        return cls.from_config(saving.recipe_of(builder, arguments, inverse_learning, bits_per_dim))

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Makes a model from a `get_config`, with arguments of a subclass; raises ValueError for others."""
        return saving.model_from_config(cls, config, custom_objects)

    def get_config(self) -> dict[str, Any]:
        """Returns the builder and its arguments, in terms of JSON.

        Raises:
          ValueError: if the model was made from a distribution, which has no config.
        """
        return saving.config_of(self)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Does the same as Keras's method, for a result of `get_compile_config`."""
        saving.compile_from_config(self, config)

    def save(
        self, filepath: str | os.PathLike, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any
    ) -> None:
        """Saves a model that `from_builder` made; an earlier file stays until the new one is complete.
        With `zipped=False` Keras writes over an earlier folder.
        Args:
          filepath: a path that ends in `.keras`; with `zipped=False` the path of a folder.
          overwrite, zipped, **kwargs: as in Keras.

        Raises:
          OSError: if the folder does not exist, or the disk is full.
          TypeError, ValueError: if the model was made from a distribution, or for another path or suffix.
        """
        self.get_config()
        is_file = zipped is not False and is_local(filepath)
        if is_file:
            check_suffix(filepath, (".keras",), "for weights alone there is `save_weights`")
        if not (overwrite and is_file):
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        with saving.written_whole(self, filepath, ".keras") as partial:
            return super().save(partial, zipped=zipped, **kwargs)

    def save_weights(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the weights by name; an earlier file stays until the new one is complete.
        With `max_shard_size` Keras writes over earlier shards.
        Args:
          filepath: a path that ends in `.weights.h5`; with `max_shard_size` in `.weights.json`.
          overwrite, **kwargs: as in Keras.

        Raises:
          OSError: if the folder does not exist, or the disk is full.
          TypeError, ValueError: if `filepath` is no path, or has another suffix.
        """
        is_sharded = kwargs.get("max_shard_size") is not None
        check_suffix(filepath, (".weights.json",) if is_sharded else (".weights.h5",))
        if not (overwrite and is_local(filepath) and not kwargs):
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        with saving.written_whole(self, filepath, ".weights.h5") as partial:
            return super().save_weights(partial)

    def load_weights(self, filepath: str | os.PathLike, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights by name; changes nothing if one does not fit.
        The state of another kind of optimizer is left out, with a warning of Keras.

        Args:
          filepath: a `.weights.h5` or a `.keras` file.
          skip_mismatch: whether to load the variables that fit, and to warn of the others by name. If there
            are others, the optimizer keeps its state.
          **kwargs: as in Keras.

        Raises:
          ValueError: if a variable is missing in the file or surplus; if it has another shape or kind, or
            values that are not finite or out of range; or if `filepath` has another suffix.

        Warns:
          UserWarning: if floats are rounded, for example from a float64 file to a float32 flow.
        """
        if not os.path.isdir(filepath):
            check_suffix(filepath, (".weights.h5", ".keras", ".weights.json"))
        if self.optimizer is not None:
            self._build_optimizer()
        self._skips_mismatch = skip_mismatch
        try:
            return super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        finally:
            self._skips_mismatch = False

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Puts each variable into the store under its name."""
        saving.save_variables(self, store)

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Takes each variable from the store by its name; raises and warns as `load_weights` does."""
        saving.load_variables(self, store, self._skips_mismatch)

    def __reduce__(self) -> Any:
        return copying.reduce_model(self) if self._recipe is None else super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copying.deep_copy_model(self, memo)

    def adapt(self, data: Any, num_examples: int = 10_000, whitens: bool = False) -> None:
        """Sets each `Centering`, `Standardize` and `ActNorm`, once, before `fit`; see `tfp_selfnorm.adapt`.

        Args:
          data: events in any form that `fit` takes, such as an array or batches. Labels are ignored.
          num_examples: the number of events to use, from the beginning; they are held in memory.
          whitens: whether to set each `SelfNormDense` too, as `whiten` does.

        Raises as `fit` and `tfp_selfnorm.adapt` do, and ValueError if `whitens` and the model is trained.
        """
        self._check_untrained(whitens)
        x, _ = first_events(self._ordered(data, "data"), num_examples, self.distribution)
        adapt(self.distribution, x, whitens)
        self._frames.remember(data, None, has_conditions=False)

    def log_prob(self, x: Array) -> tf.Tensor:
        """Returns the exact log density of each event in nats; in a `training_scope` its surrogate.

        Log-dets, O(D^3) each, are computed once between two changes of W; under a tape or in a `tf.function`
        in each call.

        Args:
          x: events `(..., *event_shape)`, floating; cast to the dtype of the distribution.

        Raises:
          TypeError: if `x` is not floating.
          ValueError: if its last dimensions are not the event shape.
        """
        return self._density(x, {})

    def fit_to_target(
        self,
        target_log_prob_fn: Callable[[tf.Tensor], tf.Tensor],
        steps_per_epoch: int,
        epochs: int = 1,
        batch_size: int = 256,
        callbacks: Any = None,
        verbose: int | str = "auto",
        *,
        seed: Seed = None,
    ) -> keras.callbacks.History:
        """Trains the flow to have a density that is known up to a factor, by its own samples.

        The loss is the reverse divergence: the mean over samples x of the flow q of
        `log q(x) - target_log_prob_fn(x)`, in nats, plus the losses of Keras networks in the flow. It is
        KL(q || target) - log Z, with the integral Z of the exponential of the target.

        The progress bar and the history show, of all samples of an epoch:

        - `loss`.
        - `log_z`: the importance estimate of log Z, in nats: the log of the mean of exp(target) / q.
        - `ess`: the effective sample size, as a fraction of the samples, in (0, 1]. Near 1 the flow has the
          density of the target. A flow that misses a part of the target, such as a mode, may show 1 too.
        - `skipped_updates`: the number of skipped steps. A step is skipped as in `fit`. A target that is
          infinite or NaN at one sample skips the step.

        The samples come from the exact inverse of W, and so have exact gradients, whatever the `gradient` of
        the layers is. A step costs two LU decompositions of each kernel, O(D^3). The gradient of O(D^2) of a
        `training_scope` is not used: R follows W, and the samples and the density of R would be those of
        another flow than the scored one. The training ends with R = W^-1. Wider convolutions and pairs of
        networks need `inversion="exact"`. Compiled steps are without XLA. Networks are in inference mode.

        Args:
          target_log_prob_fn: function by TensorFlow of events `(batch_size, *event_shape)`, which returns log
            densities `(batch_size,)` in nats, up to a constant.
          steps_per_epoch: number of steps of an epoch, 1 or more.
          epochs: number of epochs. Callbacks act at their ends.
          batch_size: number of samples of a step.
          callbacks, verbose: as in Keras.
          seed: int or stateless TFP seed of the samples.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: if `target_log_prob_fn` is not callable, or returns no tensor of floats.
          ValueError: if a number is no positive int; if the target returns another shape, or is finite at
            no sample or without a gradient; if the distribution has a batch shape or samples without a
            gradient, or a layer needs data to learn its inverse; if a kernel is singular, with the name of
            the layer; if too many steps in a row were skipped.

        >>> import keras
        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> model = sn.FlowModel(sn.dense_flow(event_shape=2, num_layers=1, seed=1))
        >>> model.compile(keras.optimizers.Adam(0.1))
        >>> def target(x):                                           # log Z = log(2 pi / 4) = 0.4516
        ...     return -2.0 * tf.reduce_sum((x - 1.0) ** 2, axis=-1)
        >>> history = model.fit_to_target(target, steps_per_epoch=100, epochs=4, seed=1, verbose=0)
        >>> round(history.history["log_z"][-1], 2), history.history["ess"][-1] > 0.95
        (0.45, True)

        References: Rezende and Mohamed, "Variational inference with normalizing flows", ICML 2015; Kong, "A
        note on importance sampling using standardized weights", 1992.
        """
        check_steps(steps_per_epoch=steps_per_epoch, epochs=epochs, batch_size=batch_size)
        training = TargetTraining(self, target_log_prob_fn, batch_size, seed)
        with self._checks():
            training.check_target()
            no_data = tf.data.Dataset.from_tensors(0).repeat()
            return fit_to_target(training, no_data, steps_per_epoch, epochs, callbacks, verbose)

    def export(self, filepath: str | os.PathLike) -> None:
        """Writes a SavedModel that loads without this package and without TFP.

        Its endpoints take batches of any size:

        - `log_prob(x)`. The log-dets are constants: export again after a change of the weights.
        - `sample(n, seed)`, with a scalar int32 `n` and an int32 `seed` of shape [2].
        - `encode(x)` and `decode(z)`, for a transformed distribution.
        - `sample_exact` and `decode_exact`, if a layer has a learned inverse; `sample` and `decode` use R.

        Each endpoint has gradients, and is a signature for TensorFlow Serving; `log_prob` is the default.

            flow = tf.saved_model.load(filepath)
            flow.log_prob(x), flow.sample(100, [0, 1]), flow.signatures["encode"](x=x)

        Args:
          filepath: folder to write to. It must be empty or absent, and appears when all is written.

        Raises:
          ValueError: if the folder is not empty, or an `ActNorm` has no initial values.
        """
        export_flow(self, filepath)
