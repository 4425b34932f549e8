"""The base class of the baselines: a linear map of images of one size, and a bias for each channel."""

import abc
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.conv_parameters import check_spatial_shape
from tfp_selfnorm.bijectors.parameters import check_event_shape, ensure_event
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.types import Parameter, Shape


class LinearImageMap(tfp.bijectors.AutoCompositeTensorBijector):
    """`inverse(y) = A y + bias`, `forward(x) = A^-1 (x - bias)`. A subclass has A, A^-1 and the log-det."""

    _DEFAULT_NAME: str

    def __init__(
        self,
        spatial_shape: Shape,
        channels: int,
        bias: Parameter,
        dtype: tf.DType,
        parameters: dict[str, Any],
        validate_args: bool,
        name: str,
    ) -> None:
        self._spatial_shape = check_spatial_shape(spatial_shape, ndims=2)
        self._event_sizes = (*self._spatial_shape, channels)
        check_bool(validate_args, "validate_args")
        self._bias = bias
        super().__init__(
            forward_min_event_ndims=3,
            is_constant_jacobian=True,
            dtype=dtype,
            parameters=parameters,
            validate_args=validate_args,
            name=name,
        )

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """The sizes of an image without its channels."""
        return self._spatial_shape

    @property
    def bias(self) -> Parameter:
        """The bias that `inverse` adds after its linear map; `None` for none."""
        return self._bias

    @abc.abstractmethod
    def _to_latent(self, images):
        """`A y` for images `[B, H, W, C]`."""

    @abc.abstractmethod
    def _to_data(self, images):
        """`A^-1 x` for images `[B, H, W, C]`."""

    @abc.abstractmethod
    def _log_det(self):
        """`log |det A|` in nats."""

    def _inverse(self, y):
        x = self._on_images(self._to_latent, y, "y")
        return x if self._bias is None else x + self._bias

    def _forward(self, x):
        return self._on_images(self._to_data, x if self._bias is None else x - self._bias, "x")

    def _inverse_log_det_jacobian(self, y):
        check_event_shape(y, self._event_sizes, "y", self.name)
        return self._log_det()

    def _forward_log_det_jacobian(self, x):
        check_event_shape(x, self._event_sizes, "x", self.name)
        return -self._log_det()

    def _on_images(self, function, x, name):
        check_event_shape(x, self._event_sizes, name, self.name)
        x = ensure_event(x, self._event_sizes)
        output = function(tf.reshape(x, [-1, *self._event_sizes]))
        return tf.ensure_shape(tf.reshape(output, tf.shape(x)), x.shape)
