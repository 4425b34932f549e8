"""`FlowModel`, a Keras model over a TFP distribution."""

import contextlib
import functools
import os

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.initialization import adapt
from tfp_selfnorm.inverse_learning.base import InverseLearning
from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.model import copying, saving
from tfp_selfnorm.model.export import export_flow
from tfp_selfnorm.model.streams import first_events
from tfp_selfnorm.model.trainer import FlowTrainer
from tfp_selfnorm.structure.layers import exact
from tfp_selfnorm.utils.checks import check_events, check_latent
from tfp_selfnorm.utils.files import check_suffix, is_local
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.seeds import stateless_seed


@keras.saving.register_keras_serializable("tfp_selfnorm")
class FlowModel(FlowTrainer):
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

    # The config of a model from `from_builder`, in terms of JSON.
    _recipe = None
    _skips_mismatch = False

    def __init__(
        self,
        distribution,
        inverse_learning: InverseLearning | None = Tracking(),  # noqa: B008
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
        super().__init__(distribution, inverse_learning, bits_per_dim, name)

    @classmethod
    def from_builder(cls, builder, inverse_learning=Tracking(), bits_per_dim=False, **arguments):  # noqa: B008
        """Makes the model of the flow `builder(**arguments)`, so that it can be saved whole.

        `model.save("flow.keras")` then keeps how it was built and compiled, its weights, and the state of its
        training; `keras.models.load_model("flow.keras")` gives a model that scores and trains on as this one,
        in a process that has imported `tfp_selfnorm`. What a builder draws at random, it must keep in
        variables.

        Args:
          builder: a builder of this package, or a function of yours that returns a TFP distribution and is
            registered with `keras.saving.register_keras_serializable()`.
          inverse_learning: see `FlowModel`.
          bits_per_dim: see `FlowModel`.
          **arguments: for the builder, `name` included: numbers, strings, None; lists, tuples and dicts of
            such; dtypes, shapes, constant arrays and tensors; registered functions; and TFP's elementary
            bijectors and chains of them with constant parameters, such as `images.pixel_sigmoid()`.

        Raises:
          TypeError: if the builder is not registered, or an argument is of another kind.

        >>> model = FlowModel.from_builder(dense_flow, event_shape=2, num_layers=3, seed=1)
        >>> model.get_config()["builder"]
        {'function': 'tfp_selfnorm>dense_flow'}
        """
        return cls.from_config(saving.recipe_of(builder, arguments, inverse_learning, bits_per_dim))

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model anew from the result of `get_config`; raises ValueError if it is not such."""
        return saving.model_from_config(cls, config, custom_objects)

    def get_config(self):
        """How the model was built, in terms of JSON.

        Raises:
          ValueError: if it was made from a distribution, which has no config.
        """
        return saving.config_of(self)

    def compile_from_config(self, config):
        """Keras's `compile_from_config`."""
        saving.compile_from_config(self, config)

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Keras's `save`, for models from `from_builder`; an earlier file stays until the new one is whole.

        Args:
          filepath: a path that ends in `.keras`; with `zipped=False` that of a folder.
          overwrite, zipped, **kwargs: as Keras's.

        Raises:
          OSError: if the folder does not exist, or the disk is full.
          TypeError: if `filepath` is no path.
          ValueError: if the model was made from a distribution, or `filepath` has another suffix.
        """
        self.get_config()
        is_file = zipped is not False and is_local(filepath)
        if is_file:
            check_suffix(filepath, (".keras",), "for weights alone there is `save_weights`")
        if not (overwrite and is_file):
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        with saving.written_whole(self, filepath, ".keras") as partial:
            return super().save(partial, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Keras's `save_weights`, by name; an earlier file stays until the new one is whole.

        Args:
          filepath: a path that ends in `.weights.h5`; with `max_shard_size` in `.weights.json`.
          overwrite, **kwargs: as Keras's.

        Raises:
          OSError: if the folder does not exist, or the disk is full.
          TypeError: if `filepath` is no path.
          ValueError: if `filepath` has another suffix.
        """
        is_sharded = kwargs.get("max_shard_size") is not None
        check_suffix(filepath, (".weights.json",) if is_sharded else (".weights.h5",))
        if not (overwrite and is_local(filepath) and not kwargs):
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        with saving.written_whole(self, filepath, ".weights.h5") as partial:
            return super().save_weights(partial)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Keras's `load_weights`, by name; either all fits, or nothing is changed.

        Args:
          filepath: a `.weights.h5` or a `.keras` file.
          skip_mismatch: whether to load the variables that fit, and to warn of the others, by name. The
            optimizer then keeps its own state, if there are others.
          **kwargs: as Keras's.

        Raises:
          ValueError: if a variable is missing in the file, or surplus, of another shape or kind, or has
            values that are not finite or out of range; or if `filepath` has another suffix.

        Warns:
          UserWarning: if floats are rounded, such as those of a float64 file in a float32 flow.
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

    def save_own_variables(self, store):
        """Puts each variable into the store under its name."""
        saving.save_variables(self, store)

    def load_own_variables(self, store):
        """Takes each variable from the store, by its name; raises and warns as `load_weights` does."""
        saving.load_variables(self, store, self._skips_mismatch)

    def __reduce__(self):
        return copying.reduce_model(self) if self._recipe is None else super().__reduce__()

    def __deepcopy__(self, memo):
        return copying.deep_copy_model(self, memo)

    def adapt(self, data, num_examples=512):
        """Gives each `ActNorm` of the flow its start from data, once, before `fit`; see `tfp_selfnorm.adapt`.

        Args:
          data: events in any form that `fit` takes, such as an array or a batched `tf.data.Dataset`; labels
            are ignored.
          num_examples: how many events to take, from the beginning; they pass the flow at once.

        Raises:
          TypeError: if the events are not floating.
          ValueError: if the flow is adapted already, `data` does not consist of events, or a channel does not
            vary.
        """
        adapt(self.distribution, first_events(data, num_examples, self.distribution))

    def log_prob(self, x):
        """The exact log density of each event, in nats; O(D^3) for each self-normalizing layer.

        Args:
          x: events `(..., *event_shape)`, floating; cast to the distribution's dtype.

        Raises:
          TypeError: if `x` is not floating.
          ValueError: if its last dimensions are not the event shape.
        """
        return self.inference_distribution.log_prob(tf.identity(check_events(x, self.distribution)))

    def sample(self, n, seed=None, exact=False):
        """Samples `n` events.

        Args:
          n: number of samples, or a shape.
          seed: int or stateless TFP seed; the same seed gives the same latents for both inverses.
          exact: whether to invert what `log_prob` scores, at O(D^3), in place of the learned inverse.

        Raises:
          ValueError: if `n` is negative or no integer, or for `exact` a kernel is singular, naming the layer.
        """
        shape = np.atleast_1d(np.asarray(n, dtype=int if np.size(n) == 0 else None))
        if shape.dtype.kind not in "iu" or (shape < 0).any():
            raise ValueError(f"`n` must be an integer or a shape, 0 or more; got {n!r}.")
        with self._naming_singular_layers():
            return self._flow(exact).sample(n, seed=stateless_seed(seed))

    def encode(self, x):
        """Maps data to latent, by `distribution.bijector.inverse`; raises as `log_prob` does, and
        TypeError if the distribution has no latent.
        """
        check_latent(self.distribution)
        x = check_events(x, self.distribution)
        return self.inference_distribution.bijector.inverse(tf.identity(x))

    def decode(self, z, exact=False):
        """Maps latent to data, by the learned inverse or the exact one; raises as `encode` does."""
        check_latent(self.distribution)
        z = check_events(z, self.distribution.distribution, name="z")
        with self._naming_singular_layers():
            return self._flow(exact).bijector.forward(tf.identity(z))

    def reconstruct(self, x, exact=False):
        """Maps data to latent and back: equal to `x` as far as the learned inverse is one."""
        return self.decode(self.encode(x), exact)

    def export(self, filepath):
        """Writes a SavedModel that loads where neither this package nor TFP is installed.

        Endpoints: `log_prob(x)`, for batches of any size; `sample(n, seed)` with a scalar int32 `n` and an
        int32 `seed` of shape [2]; for a transformed distribution `encode(x)` and `decode(z)`; and, where a
        layer has a learned inverse, by which `sample` and `decode` go, `sample_exact` and `decode_exact`.
        Each keeps its gradients, and is a signature for TensorFlow Serving; `log_prob` is the default one.

            flow = tf.saved_model.load(filepath)
            flow.log_prob(x), flow.sample(100, [0, 1]), flow.signatures["encode"](x=x)

        Args:
          filepath: folder to write to; it must be empty or absent, and appears once all is written.

        Raises:
          ValueError: if the folder is not empty, or an `ActNorm` has no start.
        """
        export_flow(self, filepath)

    @contextlib.contextmanager
    def _naming_singular_layers(self):
        try:
            yield
        except tf.errors.InvalidArgumentError:
            # That fails for a singular kernel, and names it.
            self.refresh_log_dets()
            raise

    def _flow(self, exact):
        if check_bool(exact, "exact"):
            return self._exact_distribution
        if tf.executing_eagerly():
            # Another optimizer, or a callback, may have changed the kernels.
            self._refresh.before_use()
        return self.inference_distribution

    @functools.cached_property
    def _exact_distribution(self):
        # The first call may come from inside a graph, which must not own the constants of its parts.
        with tf.init_scope():
            return exact(self.inference_distribution)

    def refresh_log_dets(self):
        """Sets the held log-det of each layer to its exact value.

        Raises:
          ValueError: if one is not finite, naming the layer.
        """
        self._refresh.before_evaluation()
