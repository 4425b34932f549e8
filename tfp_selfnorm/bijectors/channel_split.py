"""`ChannelSplit`: a bijector on some channels, for multi-scale flows and split priors."""

from typing import Any

import numpy as np
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.channels import number_of_first_channels
from tfp_selfnorm.bijectors.composite import OptionalComposite
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.types import TfpObject

tfb = tfp.bijectors


class ChannelSplit(OptionalComposite):
    """Applies a bijector to the first channels and does not change the others.

    Nested splits make multi-scale flows: on the way from data to latent, the inner bijector maps the first
    channels, and the others are latent at once. For a split prior, put an `AffineCoupling` between the data
    and the split.

    The log-det is the log-det of the inner bijector. Shapes: events with the rank of the inner bijector, with
    channels as the last dimension. The inner bijector must keep the shape. Dtypes: as the inner bijector.
    Keyword arguments go to the inner bijector. A split is a CompositeTensor if the inner bijector is one.

    >>> import tensorflow_probability as tfp
    >>> import tfp_selfnorm as sn
    >>> split = sn.ChannelSplit(tfp.bijectors.Scale(2.0), num_channels=1)
    >>> split.forward([1.0, 1.0, 1.0]).numpy()
    array([2., 1., 1.], dtype=float32)

    References: Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 3.6; Kingma & Dhariwal,
    "Glow", NeurIPS 2018.
    """

    _PART = "bijector"

    def __init__(
        self,
        bijector: TfpObject,
        num_channels: int | None = None,
        validate_args: bool = False,
        name: str = "channel_split",
    ) -> None:
        """Makes the bijector.

        Args:
          bijector: a TFP bijector that keeps the shape of its events.
          num_channels: the number of channels of the inner bijector; `None` for half of an even number.
          validate_args: whether to check at each call that the channels can be split.
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
        self._bijector = bijector
        self._num_channels = num_channels
        # The cache of this bijector finds the parts of a pair again.
        self._split = tfb.Split(
            2 if num_channels is None else [num_channels, -1], axis=-1, validate_args=validate_args
        )
        super().__init__(max(int(ndims), 1), parameters, bijector.dtype, bijector.is_constant_jacobian)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        # Events of the inner bijector have the rank of all events.
        component = tfp.util.BatchedComponentProperties(event_ndims=lambda split, event_ndims: event_ndims)
        return {"bijector": component}

    @property
    def bijector(self) -> TfpObject:
        """The inner bijector, which maps the first channels."""
        return self._bijector

    def __hash__(self) -> int:
        # At each use of its cache, TFP hashes all parameters several times. Here that would be a whole flow,
        # again at each level of nesting. Equal bijectors have equal names.
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
        """The channels of the inner bijector, and the others. Calls for one pair return the same tensors."""
        use = "gives {} channels to its bijector"
        number_of_first_channels(self, value.shape, self._num_channels, "num_channels", use)
        return self._split.forward(value)


class _CompositeChannelSplit(ChannelSplit, tfp.bijectors.AutoCompositeTensorBijector):
    """A split that a `tf.function` takes as an argument, with the variables of the inner bijector."""


ChannelSplit._PLAIN, ChannelSplit._COMPOSITE = ChannelSplit, _CompositeChannelSplit
