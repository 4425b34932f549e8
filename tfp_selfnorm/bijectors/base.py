"""The base class of the bijectors: the arguments and the properties that all of them have."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.parameters import parameter_properties
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_bool


class CheckedBijector(tfp.bijectors.Bijector):
    """A bijector with checked `validate_args` and `name`, for events of known ranks.

    Attributes:
      _DEFAULT_NAME: the name if the constructor gets `None`.
      _PARAMETER_NDIMS: the rank of each tensor in the constructor, without a batch shape.
    """

    _DEFAULT_NAME: str | None = None
    _PARAMETER_NDIMS: ClassVar[Mapping[str, int | Callable]] = {}

    def __init__(
        self,
        event_ndims: int,
        parameters: dict[str, Any],
        dtype: tf.DType | None = None,
        is_constant_jacobian: bool = True,
        inverse_ndims: int | None = None,
    ) -> None:
        """`parameters` are the arguments of the subclass, with `validate_args` and `name`.

        `inverse_ndims` is the rank of the events of `inverse`, if `forward` changes the rank.
        """
        check_optional_name(parameters["name"])
        super().__init__(
            forward_min_event_ndims=event_ndims,
            inverse_min_event_ndims=event_ndims if inverse_ndims is None else inverse_ndims,
            is_constant_jacobian=is_constant_jacobian,
            dtype=dtype,
            parameters=parameters,
            validate_args=check_bool(parameters["validate_args"], "validate_args"),
            name=parameters["name"] or self._DEFAULT_NAME,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return parameter_properties(**cls._PARAMETER_NDIMS)
