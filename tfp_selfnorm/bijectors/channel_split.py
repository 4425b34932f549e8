"""`ChannelSplit`: a bijector on some channels, for multi-scale flows and split priors."""

import numpy as np
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.channels import number_of_first_channels
from tfp_selfnorm.bijectors.composite import OptionalComposite
from tfp_selfnorm.utils.compat import CompositeTensor
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_bool

tfb = tfp.bijectors


class ChannelSplit(OptionalComposite):
    """Applies a bijector to the first channels and leaves the rest as they are.

    Nested, it makes multi-scale flows: of what comes from the data the rest meets the base distribution at
    once, the first channels go on. A split prior is an `AffineCoupling` on the side of the data of this.

    The log-det is that of the inner bijector. Shapes: events of the inner bijector's rank, with channels as
    the last dimension; the inner bijector must keep the shape. Dtypes: the inner bijector's. Keyword
    arguments go to the inner bijector. It is a CompositeTensor if the inner bijector is.

    >>> split = ChannelSplit(tfb.Scale(2.0), num_channels=1)
    >>> split.forward([1.0, 1.0, 1.0]).numpy()
    array([2., 1., 1.], dtype=float32)

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 3.6; Kingma & Dhariwal,
    "Glow", NeurIPS 2018.
    """

    _PART = "bijector"

    def __init__(self, bijector, num_channels=None, validate_args=False, name="channel_split"):
        """Makes the bijector.

        Args:
          bijector: a TFP bijector that keeps the shape of its events.
          num_channels: how many channels it gets; `None` for half of an even number.
          validate_args: whether to check at each call that the channels can be split.
          name: name of the ops.

        Raises:
          TypeError: if `bijector` is no TFP bijector.
          ValueError: if it changes the rank of events, or `num_channels` is no positive int.
        """
        parameters = dict(locals())
        check_optional_name(name)
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
        # TFP's cache of this one keeps track of the parts of a pair.
        self._split = tfb.Split(
            2 if num_channels is None else [num_channels, -1], axis=-1, validate_args=validate_args
        )
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

    def __hash__(self):
        # TFP hashes all parameters several times at each look into its cache: here a whole flow, and at each
        # level of nesting anew. Equal bijectors have one name.
        return hash((type(self), self.name))

    def _forward(self, x, **kwargs):
        first, rest = self._parts(x)
        return self._split.inverse([self._bijector.forward(first, **kwargs), rest])

    def _inverse(self, y, **kwargs):
        first, rest = self._parts(y)
        return self._split.inverse([self._bijector.inverse(first, **kwargs), rest])

    def _forward_log_det_jacobian(self, x, **kwargs):
        first, _ = self._parts(x)
        return self._bijector.forward_log_det_jacobian(first, self.forward_min_event_ndims, **kwargs)

    def _inverse_log_det_jacobian(self, y, **kwargs):
        first, _ = self._parts(y)
        return self._bijector.inverse_log_det_jacobian(first, self.inverse_min_event_ndims, **kwargs)

    def _parts(self, value):
        """The channels that the bijector gets, and the others; those of a pair are the same at each call."""
        use = "gives {} channels to its bijector"
        number_of_first_channels(self, value.shape, self._num_channels, "num_channels", use)
        return self._split.forward(value)

    @staticmethod
    def _admits_composite(part):
        return isinstance(part, CompositeTensor)


class _CompositeChannelSplit(ChannelSplit, tfp.bijectors.AutoCompositeTensorBijector):
    """One that functions take as an argument, with the variables of its bijector."""


ChannelSplit._PLAIN, ChannelSplit._COMPOSITE = ChannelSplit, _CompositeChannelSplit
