"""What a flow does apart from its training: score, sample, encode, decode, adapt, export."""

import contextlib
import functools

import numpy as np
import tensorflow as tf

from tfp_selfnorm.initialization import adapt
from tfp_selfnorm.model.export import export_flow
from tfp_selfnorm.model.streams import first_events
from tfp_selfnorm.model.summary import print_summary
from tfp_selfnorm.structure.layers import at_inference, exact
from tfp_selfnorm.utils.checks import check_events, check_latent
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.seeds import stateless_seed


class FlowFunctions:
    """The functions of `self.distribution`, each on fresh tensors: TFP's cache would hide a wrong inverse."""

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
    def inference_distribution(self):
        """What the model scores and samples outside of training: `distribution`, unless batches count in it.

        A `tfb.BatchNormalization` then goes by its moving statistics, whatever its `training` says.
        """
        with tf.init_scope():
            return at_inference(self.distribution)

    @functools.cached_property
    def _exact_distribution(self):
        # The first call may come from inside a graph, which must not own the constants of its parts.
        with tf.init_scope():
            return exact(self.inference_distribution)
