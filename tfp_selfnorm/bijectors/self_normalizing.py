"""`SelfNormalizing`, the base class of the layers with a learned inverse."""

import abc
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.pair_memory import PairMemory
from tfp_selfnorm.math.linear import Maps
from tfp_selfnorm.utils.pickling import by_parameters

INVERSIONS = ("learned", "exact")


class SelfNormalizing(CheckedBijector):
    """A bijector with a learned inverse: base of the linear layers and of `LearnedInverse`.

    `inverse` maps data to latent. `forward` maps latent to data by the learned inverse, or by the exact one.
    """

    __reduce__ = by_parameters

    def __init__(
        self,
        maps: Maps,
        gradient: str,
        mixture: float,
        inversion: str,
        parameters: dict[str, Any],
        dtype: tf.DType | None = None,
        is_constant_jacobian: bool = True,
    ) -> None:
        """`parameters` are the arguments of the subclass, with `validate_args` and `name`."""
        self._operations = maps
        self._gradient, self._mixture, self._inversion = gradient, float(mixture), inversion
        self._pairs = PairMemory()
        super().__init__(maps.event_ndims, parameters, dtype, is_constant_jacobian)

    @property
    def gradient(self) -> str:
        """The gradient of the log-det inside a `training_scope`: "self_norm", "exact", or another name."""
        return self._gradient

    @property
    def mixture(self) -> float:
        """The weight of the log density of the map that is computed: for `inverse`, of that by W."""
        return self._mixture

    @property
    def inversion(self) -> str:
        """The map of `forward`: "learned" or "exact"."""
        return self._inversion

    @property
    def operations(self) -> Maps:
        """The maps of the two directions, and norms of events."""
        return self._operations

    @property
    def needs_inverse(self) -> bool:
        """Whether the gradient or `forward` depends on a good learned inverse."""
        return self._gradient == "self_norm" or self._inversion == "learned"

    @property
    def has_matrix_kernels(self) -> bool:
        """Whether the maps are products with matrices. One of them can then be the inverse of the other."""
        return self._operations.has_matrix_kernels

    @property
    def has_gradient_correction(self) -> bool:
        """Whether the gradient of the log-det is an approximation by W alone, whose error can be held."""
        return False

    @property
    @abc.abstractmethod
    def identity(self) -> Any:
        """A key for dictionaries, equal for copies of a layer, which share its variables."""

    @property
    @abc.abstractmethod
    def maps(self) -> tuple[Any, Any]:
        """The maps of `inverse` and of the learned `forward`, for `operations.apply`."""

    @property
    @abc.abstractmethod
    def map_variables(self) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """The variables of `inverse`, without a bias, and of the learned `forward`."""

    @abc.abstractmethod
    def exact_log_det(self, layer_pass: Any = None) -> tf.Tensor:
        """The exact log-det of `inverse` in nats; a mean over the events of a pass if it depends on them."""

    @property
    @abc.abstractmethod
    def log_det_shape(self) -> tf.TensorShape:
        """The shape of a held log-det: of a batch of kernels."""

    @property
    @abc.abstractmethod
    def refresh_interval(self) -> int:
        """The number of steps between two refreshes, which then cost little beside the steps."""

    @property
    @abc.abstractmethod
    def event_sizes(self) -> Sequence[int]:
        """The sizes of an event."""
