"""`SamplingModel`, the samples of a flow and its maps between data and latent."""

import contextlib
import functools
from typing import Any

import tensorflow as tf

from tfp_selfnorm.flows.support import decoded
from tfp_selfnorm.model.temperature import at_temperature
from tfp_selfnorm.model.trainer import FlowTrainer
from tfp_selfnorm.structure.layers import exact as with_exact_layers
from tfp_selfnorm.structure.layers import solving_matrices
from tfp_selfnorm.utils.checks import check_events, check_latent
from tfp_selfnorm.utils.integers import check_sample_shape
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import Array, Seed, Shape, TfpObject


class SamplingModel(FlowTrainer):
    """Draws samples, and maps between data and latent; base of `FlowModel`."""

    def sample(self, n: Shape, seed: Seed = None, exact: bool = False, temperature: float = 1.0) -> tf.Tensor:
        """Draws samples.

        Dense layers and 1x1 convolutions map latents by the inverse of W: `fit` ends with R = W^-1, and
        samples cost O(D^2). Between the steps of `fit`, where R lags behind, for example in a callback, these
        layers solve with W at O(D^3), and R does not change. So does an export that is made there. A
        `tf.function` of your own keeps the way that was right when it was traced. An R that you gave is used
        as it is. Wider convolutions and pairs of networks use their learned inverse, which is approximate.

        Args:
          n: number of samples, or a shape.
          seed: int or stateless TFP seed. The same seed gives the same latents for both values of `exact`,
            and at each temperature the same deviations of the latents, times the temperature.
          exact: whether all layers map latent to data by the exact inverse of W, at O(D^3). The samples then
            have the density that `log_prob` gives.
          temperature: number by which deviations of the latents from their location are multiplied. Below 1,
            samples are more typical and less varied. The base distribution must be of a family with a
            location, such as normal, Student t, Laplace or logistic.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if `n` is negative or no integer; if `temperature` is not positive and finite, or the
            base distribution has no location; if a kernel is singular, with the name of the layer; if the
            exact solve of a pair of networks fails for a latent, for the whole call.

        References: for the temperature, Kingma and Dhariwal, "Glow", NeurIPS 2018, section 6.
        """
        check_sample_shape(n)
        with self._naming_singular_layers():
            return self._draw(n, stateless_seed(seed), exact, temperature=temperature)

    def _draw(self, n, seed, exact, condition=None, temperature=1.0):
        return self._sampler(exact, temperature).sample(n, seed=seed)

    def sample_and_log_prob(
        self, sample_shape: Shape = (), seed: Seed = None, exact: bool = False, temperature: float = 1.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws samples, with the log density in nats that they were drawn from.

        The samples are those of `sample` with the same arguments. The density is that of the map from latent
        to data that makes them: the log density of the latents, minus the log-det of this map. Both are
        exact, and have exact gradients outside a `training_scope`.

        - With `exact=True` it is the scored density: the result is `log_prob` of the samples, without the
          way back to the latents. An exception are samples that are rounded at an end of the range of the
          preprocessing, for example by a sigmoid in float32: `log_prob` sees the rounded sample, the result
          here belongs to its latent.
        - With `exact=False` it is the density of the learned map: of R, not of W. The two differ as far as
          R is not the inverse of W. After `fit` they differ by rounding for dense layers.
        - At another temperature it is the density of the flow of the scaled base distribution.

        If the distribution is no `tfd.TransformedDistribution`, for example a mixture of flows, the density
        is the scored one in both cases.

        Costs: as `sample`, and O(D^3) for the log-det of each self-normalizing layer, once for all samples.

        Args:
          sample_shape: number of samples, or a shape.
          seed, exact, temperature: see `sample`.

        Returns:
          Samples `(*sample_shape, *event_shape)`, and log densities `(*sample_shape)`.

        Raises:
          TypeError, ValueError: as `sample` does.

        >>> import numpy as np
        >>> import tfp_selfnorm as sn
        >>> model = sn.FlowModel(sn.dense_flow(event_shape=2, seed=1))
        >>> x, log_prob = model.sample_and_log_prob(5, seed=1, exact=True)
        >>> np.testing.assert_allclose(log_prob, model.log_prob(x), rtol=1e-4)
        >>> model.sample_and_log_prob(5, seed=1, temperature=0.7)[1].shape
        TensorShape([5])

        References: `tfd.Distribution.experimental_sample_and_log_prob` is TFP's method of this kind.
        """
        check_sample_shape(sample_shape, "sample_shape")
        with self._naming_singular_layers():
            return self._draw_and_score(sample_shape, stateless_seed(seed), exact, temperature=temperature)

    def _draw_and_score(self, n, seed, exact, condition=None, temperature=1.0):
        return self._sampler(exact, temperature).experimental_sample_and_log_prob(n, seed=seed)

    def encode(self, x: Array) -> tf.Tensor:
        """Maps data to latent, by the `inverse` of the bijector of the flow.

        It is the map that `log_prob` scores, with W of each layer. Cost: one pass of the flow.

        Args:
          x: events `(..., *event_shape)`, floating; a data frame where `fit` got one.

        Returns:
          Latents `(..., *model.distribution.distribution.event_shape)`. Outside the support they are not
          finite. Those of data of the flow have the base distribution, a standard normal in the flows of the
          builders.

        Raises:
          TypeError: if the distribution has no bijector, or `x` is not floating.
          ValueError: if the last dimensions of `x` are not the event shape, or the flow needs `adapt` first.

        >>> import tensorflow as tf
        >>> import tfp_selfnorm as sn
        >>> model = sn.FlowModel(sn.dense_flow(2, seed=1))
        >>> z = model.encode([[0.5, -1.0]])
        >>> z.shape, bool(tf.reduce_all(abs(model.decode(z) - [[0.5, -1.0]]) < 1e-4))
        (TensorShape([1, 2]), True)
        """
        check_latent(self.distribution)
        x = check_events(self._frames.ordered(x, "x"), self.distribution)
        return self.inference_distribution.bijector.inverse(tf.identity(x))

    def decode(self, z: Array, exact: bool = False) -> tf.Tensor:
        """Maps latent to data, by the `forward` of the bijector of the flow.

        Each layer maps by its learned inverse R, in one pass, or by the exact inverse of W. The exact inverse
        costs O(D^3) for a dense layer, and an exact solve for a convolution or a `LearnedInverse`. A number
        that the dtype rounds to the end of the range of the preprocessing becomes one inside.

        Args:
          z: latents `(..., *model.distribution.distribution.event_shape)`, floating.
          exact: whether to map by the exact inverse of each W. By default R maps, except in layers with
            `inversion="exact"`. After `fit` the two differ in wide convolutions and `LearnedInverse`s only.

        Returns:
          Events `(..., *event_shape)`, with the leading dimensions of `z`.

        Raises:
          TypeError: if the distribution has no bijector, or `z` is not floating.
          ValueError: if the last dimensions of `z` do not fit, the flow needs `adapt` first, a W that is
            inverted is singular, or the solve of a `LearnedInverse` does not converge.
        """
        check_latent(self.distribution)
        z = check_events(z, self.distribution.distribution, name="z")
        return self._decoded(z, exact)

    def _decoded(self, z, exact, **bijector_kwargs):
        with self._naming_singular_layers():
            return decoded(self._flow(exact), tf.identity(z), **bijector_kwargs)

    def reconstruct(self, x: Array, exact: bool = False) -> tf.Tensor:
        """Maps data to latent and back, `decode(encode(x), exact)`.

        By default the difference from `x` is the error of all R together. With `exact=True` it is the
        rounding error of the flow; or, if the encoder of a `LearnedInverse` maps several events to one
        latent, the distance to another of them. Arguments, cost and errors are those of `encode` and
        `decode`.
        """
        return self.decode(self.encode(x), exact)

    @contextlib.contextmanager
    def _naming_singular_layers(self):
        try:
            yield
        except tf.errors.InvalidArgumentError:
            # For a singular kernel this raises an error with its name.
            self.refresh_log_dets()
            raise

    def _sampler(self, exact: bool, temperature: float) -> TfpObject:
        """The distribution that draws samples."""
        flow = self._flow(exact)
        if not exact and not self._refresh.inverses.are_exact():
            flow = self._solving_distribution
        return at_temperature(flow, temperature)

    def _flow(self, exact: bool) -> TfpObject:
        if check_bool(exact, "exact"):
            return self._exact_distribution
        if tf.executing_eagerly():
            # Another optimizer or a callback may have changed the kernels.
            self._refresh.before_use()
        return self.inference_distribution

    @functools.cached_property
    def _exact_distribution(self) -> Any:
        # The first call may be inside a graph, which must not own the constants of the parts.
        with tf.init_scope():
            return with_exact_layers(self.inference_distribution)

    @functools.cached_property
    def _solving_distribution(self) -> Any:
        with tf.init_scope():
            return solving_matrices(self.inference_distribution)
