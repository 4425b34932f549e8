"""`LearnedInverse`: any two networks, one of which learns the inverse of the other."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.network_call import (
    call_network,
    check_network,
    dtype_of,
    flat_condition,
    gradient_of_training,
    network_variables,
    variables_of,
    with_one_batch_dimension,
)
from tfp_selfnorm.bijectors.parameters import check_event_shape
from tfp_selfnorm.bijectors.self_normalizing import INVERSIONS, SelfNormalizing
from tfp_selfnorm.inverse_learning.scope import LayerPass, current_terms
from tfp_selfnorm.math import networks
from tfp_selfnorm.math.linear import largest
from tfp_selfnorm.utils.graphs import checked
from tfp_selfnorm.utils.integers import check_positive_int, check_sizes
from tfp_selfnorm.utils.options import check_choice
from tfp_selfnorm.utils.types import Array, Shape

# The residual of the exact `forward` to reach, and this number of times it is an error.
_TOLERANCES = {tf.float64: 1e-10}
_TOLERANCE, _ERROR_FACTOR = 1e-5, 100.0


class LearnedInverse(SelfNormalizing):
    """Two networks: an encoder f, data to latent, and a decoder g, which learns to be its inverse.

        inverse(y) = f(y)        forward(x) = g(x), or the solution y of f(y) = x with `inversion="exact"`

    The networks may be of any kind that keeps the event shape. Nothing makes f invertible. The regularizer
    does it, `||y - g(f(y))||^2` (see `Reconstruction`), as far as it is small on the data. `log_prob` is the
    exact change of variables, and a density only where f is invertible. Elsewhere it has too much mass, and
    its likelihood is too good: with errors of 0.2 to 0.6 flows in the plane had masses from 0.99 to 1.39. The
    guide on networks shows how to measure the mass. If it is not 1, take a chain of smaller pairs, a larger
    weight, 3 to 10, or a lower rate.

    Inside a `training_scope`, above 8 dimensions by default, the log-det has the surrogate gradient of
    Draxler et al.: the Jacobian of g in place of the inverse Jacobian of f, by one product with each. Its
    value is held, as in the linear layers: here a mean over some events, and 0 before the first. A step costs
    about four passes of both networks, O(D) times less than the exact log-det.
    Outside the scope, `log_prob` and its gradient are exact: D products with the Jacobian of f for each
    event, and O(D^3) for its log-det. The log-det of `forward` is that of g.

    The exact `forward` is Broyden's method from the decoder, and a step of Newton's method: some ten passes,
    and O(D^3). Its gradient is exact; it is differentiable once. All compiles for XLA, which computes the
    exact log-det by a QR decomposition, at some times the cost. For an estimate with a standard error, for
    large D, see `estimate_log_det`.

    The input of the networks has one batch dimension, `[B, *event_shape]`. The output for an event must not
    depend on other events, or on the call. In training mode batch normalization makes it depend on the other
    events: the exact log-det is wrong then, and the surrogate is right in the mean. The density outside of
    training is right. With a `condition` each network gets a list, `[events, condition]`; see
    `AffineCoupling`. It has the sample and batch dimensions of the events, and does not broadcast over them.

    Shapes: events of `event_shape`. Dtypes: float32 or float64, as the networks. Units: nats.

    >>> import keras
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> encoder, decoder = (
    ...     keras.Sequential([keras.Input([2]), keras.layers.Dense(2, kernel_initializer="identity")])
    ...     for _ in range(2))
    >>> layer = sn.LearnedInverse(encoder, decoder, event_shape=2)
    >>> z = tf.identity(layer.inverse(tf.ones([5, 2])))  # otherwise TFP's cache returns the input itself
    >>> layer.forward(z).shape, len(layer.trainable_variables)
    (TensorShape([5, 2]), 4)
    >>> layer.inverse_log_det_jacobian(tf.ones([2])).numpy()
    np.float32(0.0)

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 2; Draxler et al., "Free-form
    flows: make any architecture a normalizing flow", AISTATS 2024, equations 8 to 10; Broyden, "A class of
    methods for solving nonlinear simultaneous equations", 1965, his second method.
    """

    _DEFAULT_NAME = "learned_inverse"
    _PARAMETER_NDIMS: ClassVar[dict] = {}

    def __init__(
        self,
        encoder: Callable,
        decoder: Callable,
        event_shape: Shape,
        gradient: str | None = None,
        inversion: str = "learned",
        num_probes: int = 1,
        validate_args: bool = False,
        name: str = "learned_inverse",
    ) -> None:
        """Makes the bijector.

        Args:
          encoder: a callable from data to latent, such as a built Keras model.
          decoder: a callable from latent to data.
          event_shape: the shape of events, an int or a list of ints.
          gradient: the gradient of the log-det inside a `training_scope`: "self_norm" (the surrogate) or
            "exact" (of the Jacobian). `None` is "exact" up to 8 dimensions, where it costs little, without a
            batch normalization.
          inversion: the map of `forward`: "learned" (the decoder) or "exact" (the inverse of the encoder).
          num_probes: number of probes for each event, for "self_norm".
          validate_args: has no effect.
          name: name of the ops.

        Raises:
          TypeError: if a network is not callable, if the networks have several dtypes or one that is not
            float32 or float64, or if `validate_args` is no bool.
          ValueError: if a Keras network is not built, or its output has another shape; if the encoder has a
            batch normalization with `gradient="exact"`; or if another argument is out of range.
        """
        parameters = dict(locals())
        self._event_sizes = tuple(check_sizes(event_shape, "event_shape", "positive ints", bool))
        self._encoder = check_network(encoder, "encoder", self._event_sizes)
        self._decoder = check_network(decoder, "decoder", self._event_sizes)
        if gradient is not None:
            check_choice(gradient, "gradient", ("self_norm", "exact"), expected="None or one of {}")
        check_choice(inversion, "inversion", INVERSIONS)
        self._num_probes = check_positive_int(num_probes, "num_probes")
        variables = [network_variables(network, self._event_sizes) for network in (encoder, decoder)]
        # TFP finds variables in attributes. It does not search a Keras network or a function.
        self._encoder_variables, self._decoder_variables = (
            [] if isinstance(network, tf.Module) else found
            for network, found in zip((encoder, decoder), variables, strict=True)
        )
        super().__init__(
            networks.NetworkMaps(len(self._event_sizes)),
            gradient_of_training(gradient, encoder, bool(np.prod(self._event_sizes) <= networks.SMALL)),
            1.0,
            inversion,
            parameters,
            dtype_of(*variables[0], *variables[1]),
            is_constant_jacobian=False,
        )

    @property
    def encoder(self) -> Callable:
        """The network from data to latent."""
        return self._encoder

    @property
    def decoder(self) -> Callable:
        """The network from latent to data."""
        return self._decoder

    @property
    def num_probes(self) -> int:
        """The number of probes for each event."""
        return self._num_probes

    @property
    def needs_inverse(self) -> bool:
        """Yes: the exact `forward` begins at the decoder too."""
        return True

    @property
    def identity(self) -> Any:
        """A key for dictionaries, equal for copies of a layer, which share its networks."""
        return "networks", id(self._encoder), id(self._decoder)

    @property
    def maps(self) -> tuple[networks.ConditionedMap, networks.ConditionedMap]:
        """The encoder and the decoder."""
        return self._map("inverse"), self._map("forward")

    def maps_given(self, condition: Array) -> tuple[networks.ConditionedMap, networks.ConditionedMap]:
        """The encoder and the decoder for a batch of conditions, which events take in turn."""
        example = tf.zeros([len(condition)], self.dtype or tf.float32)
        condition = flat_condition(condition, example, 1, self.name)
        return self._map("inverse", condition), self._map("forward", condition)

    @property
    def map_variables(self) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """The variables of the encoder and of the decoder."""
        return variables_of(self._encoder, self._encoder_variables), variables_of(
            self._decoder, self._decoder_variables
        )

    @property
    def log_det_shape(self) -> tf.TensorShape:
        """The held log-det is one number."""
        return tf.TensorShape([])

    @property
    def refresh_interval(self) -> int:
        """The number of steps between two refreshes of the held log-det."""
        return max(100, int(np.prod(self._event_sizes)))

    @property
    def event_sizes(self) -> Sequence[int]:
        """The sizes of an event."""
        return self._event_sizes

    def exact_log_det(self, layer_pass: LayerPass | None = None) -> tf.Tensor:
        """The mean over the events of a pass of `log |det J|` in nats, of the encoder."""
        if layer_pass is None:
            raise ValueError(f"The log-det of `{self.name}` depends on the events: give a pass of the layer.")
        function = layer_pass.kernel
        log_det = networks.log_det(function.function, layer_pass.input, *function.conditions)
        return tf.reduce_mean(log_det) * (1.0 if layer_pass.direction == "inverse" else -1.0)

    def _inverse(self, y, condition=None):
        return self._pass("inverse", y, condition)

    def _forward(self, x, condition=None):
        if self._inversion == "learned":
            return self._pass("forward", x, condition)
        flat, conditions = self._flat(x, condition, "x")
        encode, decode = self._map("inverse"), self._map("forward")
        tolerance = _TOLERANCES.get(flat.dtype, _TOLERANCE)
        y, residual = networks.solve(encode.function, decode.function, flat, *conditions, tolerance=tolerance)
        message = f"`forward` of `{self.name}` has not converged. The decoder is too far from the inverse of "
        message += "the encoder, or the encoder is not invertible. The largest residual is"
        # A latent that is not finite is NaN in the data, and no fault of the maps.
        is_finite = tf.reduce_all(tf.math.is_finite(flat), axis=list(range(1, flat.shape.rank)))
        worst = largest(tf.where(is_finite, residual, tf.zeros_like(residual)))
        y = tf.reshape(checked(y, worst <= _ERROR_FACTOR * tolerance, message, worst), tf.shape(x))
        self._pairs.add("forward", x, y, condition=condition)
        return y

    def _pass(self, direction, x, condition):
        """The map of a direction; in a scope with its surrogate log-det and its reconstruction error."""
        terms = current_terms(self)
        flat, conditions = self._flat(x, condition, "y" if direction == "inverse" else "x")
        maps = [self._map(d, *conditions) for d in (direction, _OPPOSITE[direction])]
        if terms.scope is None:
            output, surrogate = maps[0](flat), None
        else:
            output, surrogate, error = self._trained_pass(maps, flat, terms)
            terms.scope.record(LayerPass(self, direction, maps[0], maps[1], flat, output, error))
        output = tf.reshape(output, tf.shape(x))
        self._pairs.add(direction, x, output, [] if surrogate is None else [surrogate], condition)
        return output

    def _trained_pass(self, maps, x, terms):
        function, inverse = maps
        trains, surrogate, error, count = terms.trained_kernels, None, None, tf.shape(x)[0]
        if self._num_probes > 1 and terms.gradient == "self_norm":
            # The maps repeat their conditions in this order too.
            x = tf.tile(x, [self._num_probes] + [1] * len(self._event_sizes))

        def latent(output):
            # The error trains the two maps, and nothing before them.
            return function(tf.stop_gradient(x)) if trains == "both" else tf.stop_gradient(output)

        if terms.gradient == "self_norm":
            probes = tfp.random.rademacher(tf.shape(x), x.dtype, seed=terms.scope.pass_seed())
            output, surrogate, back = networks.surrogate_pass(function, inverse, x, latent, probes)
            surrogate = tf.reduce_mean(tf.reshape(surrogate, [self._num_probes, count]), axis=0)
        else:
            output = function(x)
            back = None if trains is None else inverse(latent(output))
        if trains is not None:
            error = self._operations.squared_norm(tf.stop_gradient(x[:count]) - back[:count])
        return output[:count], surrogate, error

    def _inverse_log_det_jacobian(self, y, condition=None):
        return self._log_det("inverse", y, condition)

    def _forward_log_det_jacobian(self, x, condition=None):
        return self._log_det("forward", x, condition)

    def _log_det(self, direction, x, condition):
        opposite = _OPPOSITE[direction]
        made_by = self._pairs.input_by_output(opposite, x, condition)
        if made_by is not None:
            return -self._log_det_of_map(opposite, made_by, condition)
        return self._log_det_of_map(direction, x, condition)

    def _log_det_of_map(self, direction, x, condition):
        """The log-det at the input of a direction."""
        terms = current_terms(self)
        if direction == "forward" and self._inversion == "exact":
            return -self._exact_log_det("inverse", self.forward(x, condition=condition), condition)
        if terms.scope is None or terms.gradient == "exact":
            return self._exact_log_det(direction, x, condition)
        surrogate = next(iter(self._pairs.values_by_input(direction, x, condition) or ()), None)
        if surrogate is None:
            flat, conditions = self._flat(x, condition, "x")
            maps = [self._map(d, *conditions) for d in (direction, _OPPOSITE[direction])]
            surrogate = self._trained_pass(maps, flat, terms._replace(trained_kernels=None))[1]
        if terms.held_log_det is None:
            value = self._exact_log_det(direction, x, condition)
        else:
            value = terms.held_log_det if direction == "inverse" else -terms.held_log_det
        surrogate = tf.reshape(surrogate, self._leading(x))
        return surrogate + tf.stop_gradient(tf.cast(value, x.dtype) - surrogate)

    def _exact_log_det(self, direction, x, condition):
        flat, conditions = self._flat(x, condition, "x")
        log_det = networks.log_det(self._map(direction).function, flat, *conditions)
        return tf.reshape(log_det, self._leading(x))

    def _leading(self, x):
        return tf.shape(x)[: tf.rank(x) - len(self._event_sizes)]

    def _flat(self, x, condition, name):
        """The events and the conditions, with one batch dimension."""
        check_event_shape(x, self._event_sizes, name, self.name)
        if x.dtype not in (tf.float32, tf.float64):
            raise TypeError(f"`{name}` of `{self.name}` must be float32 or float64; got {x.dtype.name}.")
        if x.shape.rank is None:
            if condition is not None:
                raise ValueError(f"`{name}` of `{self.name}` must have a known rank, with a condition.")
            return tf.reshape(x, [-1, *self._event_sizes]), ()
        num_leading = x.shape.rank - len(self._event_sizes)
        flat = with_one_batch_dimension(x, num_leading)
        flat = tf.ensure_shape(flat, [None, *self._event_sizes])
        if condition is None:
            return flat, ()
        return flat, (flat_condition(condition, x, num_leading, self.name),)

    def _map(self, direction, *conditions):
        return networks.ConditionedMap(functools.partial(self._call, direction), conditions)

    def _call(self, direction, x, *conditions):
        if 0 in x.shape:
            # Some layers of Keras do not take empty batches.
            return tf.zeros_like(x)
        networks_of = {"inverse": ("encoder", self._encoder), "forward": ("decoder", self._decoder)}
        argument, network = networks_of[direction]
        output = call_network(network, network, [x, *conditions] if conditions else x, self.name, argument)
        if output.dtype != x.dtype or not output.shape.is_compatible_with(x.shape):
            raise ValueError(
                f"The {argument} of `{self.name}` must keep the shape and the dtype of events, "
                f"{tuple(x.shape)} {x.dtype.name}; got {tuple(output.shape)} {output.dtype.name}."
            )
        # Forward mode has no `tf.ensure_shape`.
        output.set_shape(x.shape)
        return output


_OPPOSITE = {"inverse": "forward", "forward": "inverse"}
