"""`ChannelSplit`: a bijector on some channels, for multi-scale flows and split priors."""

import numpy as np
import tensorflow_probability as tfp

from tfp_selfnorm.integers import check_positive_int
from tfp_selfnorm.options import check_bool

tfb = tfp.bijectors


class ChannelSplit(tfb.Bijector):
    """Applies a bijector to the first channels and leaves the rest as they are.

    Nested, it makes multi-scale flows: of what comes from the data the rest meets the base distribution at
    once, the first channels go on. A split prior is an `AffineCoupling` on the side of the data of this.

    The log-det is that of the inner bijector. Shapes: events of the inner bijector's rank, with channels as
    the last dimension; the inner bijector must keep the shape. Dtypes: the inner bijector's. Keyword
    arguments go to the inner bijector.

    >>> split = ChannelSplit(tfb.Scale(2.0), num_channels=1)
    >>> split.forward([1.0, 1.0, 1.0]).numpy()
    array([2., 1., 1.], dtype=float32)

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 3.6; Kingma & Dhariwal,
    "Glow", NeurIPS 2018.
    """

    def __init__(self, bijector, num_channels=None, validate_args=False, name="channel_split"):
        """Makes the bijector.

        Args:
          bijector: a TFP bijector that keeps the shape of its events.
          num_channels: how many channels it gets; `None` for half of an even number.
          validate_args: passed on to the parts.
          name: name of the ops.

        Raises:
          TypeError: if `bijector` is no TFP bijector.
          ValueError: if it changes the rank of events, or `num_channels` is no positive int.
        """
        parameters = dict(locals())
        if not isinstance(bijector, tfb.Bijector):
            raise TypeError(f"`bijector` must be a TFP bijector; got {type(bijector).__name__}.")
        ndims = bijector.forward_min_event_ndims
        if not isinstance(ndims, (int, np.integer)) or ndims != bijector.inverse_min_event_ndims:
            raise ValueError(f"`bijector` must keep the rank of events; {bijector.name!r} does not.")
        if num_channels is not None:
            num_channels = check_positive_int(num_channels, "num_channels")
        check_bool(validate_args, "validate_args")
        self._bijector = bijector
        self._num_channels = num_channels
        # Composed of TFP's parts, whose cache keeps track of the parts of a pair.
        split = tfb.Split(2 if num_channels is None else [num_channels, -1], axis=-1)
        self._both = tfb.JointMap([bijector, tfb.Identity()])
        self._parts = tfb.Chain([tfb.Invert(split), self._both, split], validate_args=validate_args)
        super().__init__(
            forward_min_event_ndims=max(ndims, 1),
            is_constant_jacobian=bijector.is_constant_jacobian,
            dtype=bijector.dtype,
            parameters=parameters,
            validate_args=validate_args,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype):
        # The inner bijector's events have the rank of the whole.
        component = tfp.util.BatchedComponentProperties(event_ndims=lambda split, event_ndims: event_ndims)
        return {"bijector": component}

    @property
    def bijector(self):
        """What the first channels go through."""
        return self._bijector

    def _forward(self, x, **kwargs):
        self._check_channels(x)
        return self._parts.forward(x, **self._nested(kwargs))

    def _inverse(self, y, **kwargs):
        self._check_channels(y)
        return self._parts.inverse(y, **self._nested(kwargs))

    def _forward_log_det_jacobian(self, x, **kwargs):
        ndims = self.forward_min_event_ndims
        return self._parts.forward_log_det_jacobian(x, ndims, **self._nested(kwargs))

    def _inverse_log_det_jacobian(self, y, **kwargs):
        ndims = self.inverse_min_event_ndims
        return self._parts.inverse_log_det_jacobian(y, ndims, **self._nested(kwargs))

    def _nested(self, kwargs):
        """Compositions of TFP hand keyword arguments down by the names of their parts."""
        return {self._both.name: {self._bijector.name: kwargs}} if kwargs else {}

    def _check_channels(self, value):
        shape, first = value.shape, self._num_channels
        if shape.rank is None or shape.rank < self.forward_min_event_ndims or shape[-1] is None:
            raise ValueError(f"`{self.name}` needs a known number of channels; got shape {shape}.")
        if first is None and shape[-1] % 2:
            raise ValueError(
                f"`{self.name}` halves an even number of channels; got shape {tuple(shape)}. For others say "
                "`num_channels`."
            )
        if first is not None and first >= shape[-1]:
            raise ValueError(
                f"`{self.name}` gives {first} channels to its bijector and needs more; got {tuple(shape)}."
            )
