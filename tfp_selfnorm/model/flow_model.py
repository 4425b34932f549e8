"""`FlowModel`, a Keras model over a TFP distribution."""

import contextlib
import functools
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.initialization import adapt
from tfp_selfnorm.model.export import export_flow
from tfp_selfnorm.model.saving import FlowSaver
from tfp_selfnorm.model.streams import first_events
from tfp_selfnorm.structure.layers import exact
from tfp_selfnorm.utils.checks import check_events, check_latent
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import Array, Seed, Shape


@keras.saving.register_keras_serializable("tfp_selfnorm")
class FlowModel(FlowSaver):
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
    be this many steps old, and `val_nll` is exact.

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
      ValueError: if its event shape is unknown, if it was made under another strategy, or if a layer maps
        data to latent by its learned inverse.

    References: Keller et al., "Self Normalizing Flows", ICML 2021.
    """

    def adapt(self, data: Any, num_examples: int = 512) -> None:
        """Sets the initial values of each `ActNorm` from data, once, before `fit`; see `tfp_selfnorm.adapt`.

        Args:
          data: events in any form that `fit` takes, such as an array or a batched `tf.data.Dataset`. Labels
            are ignored.
          num_examples: the number of events to use, from the beginning; they pass the flow in one batch.

        Raises:
          TypeError: if the events are not floating.
          ValueError: if the flow is adapted already, if `data` does not consist of events, or if a channel
            does not vary.
        """
        adapt(self.distribution, first_events(data, num_examples, self.distribution))

    def log_prob(self, x: Array) -> tf.Tensor:
        """Returns the exact log density of each event in nats, at O(D^3) for each self-normalizing layer.

        Inside an open `training_scope` it is the surrogate of the scope.

        Args:
          x: events `(..., *event_shape)`, floating; cast to the dtype of the distribution.

        Raises:
          TypeError: if `x` is not floating.
          ValueError: if its last dimensions are not the event shape.
        """
        return self.inference_distribution.log_prob(tf.identity(check_events(x, self.distribution)))

    def sample(self, n: Shape, seed: Seed = None, exact: bool = False) -> tf.Tensor:
        """Draws samples.

        Args:
          n: number of samples, or a shape.
          seed: int or stateless TFP seed. The same seed gives the same latents for both values of `exact`.
          exact: whether to map latent to data by the exact inverse of W, at O(D^3), instead of R. The samples
            then have the density that `log_prob` gives.

        Raises:
          ValueError: if `n` is negative or no integer; with `exact`, if a kernel is singular, with the name
            of the layer.
        """
        shape = np.atleast_1d(np.asarray(n, dtype=int if np.size(n) == 0 else None))
        if shape.dtype.kind not in "iu" or (shape < 0).any():
            raise ValueError(f"`n` must be an integer or a shape, 0 or more; got {n!r}.")
        with self._naming_singular_layers():
            return self._flow(exact).sample(n, seed=stateless_seed(seed))

    def encode(self, x: Array) -> tf.Tensor:
        """Maps data to latent; raises as `log_prob` does, and TypeError if the distribution has no latent."""
        check_latent(self.distribution)
        x = check_events(x, self.distribution)
        return self.inference_distribution.bijector.inverse(tf.identity(x))

    def decode(self, z: Array, exact: bool = False) -> tf.Tensor:
        """Maps latent to data, by R or by the exact inverse of W; raises as `encode` does."""
        check_latent(self.distribution)
        z = check_events(z, self.distribution.distribution, name="z")
        with self._naming_singular_layers():
            return self._flow(exact).bijector.forward(tf.identity(z))

    def reconstruct(self, x: Array, exact: bool = False) -> tf.Tensor:
        """Maps data to latent and back. By default the difference from `x` is the error of R."""
        return self.decode(self.encode(x), exact)

    def export(self, filepath: str | os.PathLike) -> None:
        """Writes a SavedModel that loads without this package and without TFP.

        Its endpoints take batches of any size:

        - `log_prob(x)`.
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

    @contextlib.contextmanager
    def _naming_singular_layers(self):
        try:
            yield
        except tf.errors.InvalidArgumentError:
            # For a singular kernel this raises an error with its name.
            self.refresh_log_dets()
            raise

    def _flow(self, exact):
        if check_bool(exact, "exact"):
            return self._exact_distribution
        if tf.executing_eagerly():
            # Another optimizer or a callback may have changed the kernels.
            self._refresh.before_use()
        return self.inference_distribution

    @functools.cached_property
    def _exact_distribution(self):
        # The first call may be inside a graph, which must not own the constants of the parts.
        with tf.init_scope():
            return exact(self.inference_distribution)

    def refresh_log_dets(self) -> None:
        """Sets the held log-det of each layer to its exact value.

        Raises:
          ValueError: if a value is not finite, with the name of the layer.
        """
        self._refresh.before_evaluation()
