"""The base class of the baselines: a linear map of images of one size, and a bias for each channel."""

import abc
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.conv_parameters import check_spatial_shape
from tfp_selfnorm.bijectors.parameters import check_event_shape, ensure_event
from tfp_selfnorm.utils.types import Parameter


class LinearImageMap(CheckedBijector, tfp.bijectors.AutoCompositeTensorBijector):
    """`inverse(y) = A y + bias`, `forward(x) = A^-1 (x - bias)`. A subclass has A, A^-1 and the log-det."""

    def __init__(self, channels: int, bias: Parameter, dtype: tf.DType, parameters: dict[str, Any]) -> None:
        """`parameters` are the arguments of the subclass, with `spatial_shape`."""
        self._spatial_shape = check_spatial_shape(parameters["spatial_shape"], ndims=2)
        self._event_sizes = (*self._spatial_shape, channels)
        self._bias = bias
        super().__init__(3, parameters, dtype)

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
