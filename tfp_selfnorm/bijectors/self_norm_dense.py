"""`SelfNormDense`, the dense self-normalizing layer."""

from typing import Any, Self

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.parameters import as_parameters, is_checked_now, kernel_variables
from tfp_selfnorm.bijectors.self_norm import SelfNorm
from tfp_selfnorm.math import dense
from tfp_selfnorm.utils.graphs import checked
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bool, check_dtype, check_not_negative
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import DType, Parameter, Seed


class SelfNormDense(SelfNorm):
    """A dense layer that learns its inverse: `inverse(y) = W y + bias`, `forward(x) = R (x - bias)`.

    `W = inverse_kernel` maps data to latent, `R = forward_kernel` latent to data. Training keeps `R` close to
    `W^-1`, by a regularizer or by tracking (see `training_scope`). The gradient of `log |det W|` then has
    `R^T` instead of `W^-T`. A training step costs O(D^2) instead of O(D^3).

    `inverse_log_det_jacobian` is `log |det W|`. `forward_log_det_jacobian` is `log |det R|`, or
    `-log |det W|` with `inversion="exact"`. No log-det assumes that R is the inverse of W. A pair that one
    direction made keeps the log-det of this direction, as in TFP. So `log_prob` is the exact density of W.
    Outside a `training_scope` the values and the gradients of log-dets are exact and cost O(D^3) (LU). Inside
    they have held values and the gradient that the layer names, and cost O(D^2).

    Some bijectors slice their input again for the log-det, for example `tfb.RealNVP` with a `bijector_fn`.
    The layer then does not know the pair. Give layers in such a bijector `inversion="exact"` and
    `mixture=1.0`: every log-det is then the log-det of W.

    Shapes: kernels `[..., D, D]` (both of one shape), bias `[..., D]`, events `[D]`; the batches of kernels
    and data broadcast.
    Dtypes: float32 and float64; one for all. Units: nats.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormDense(forward_kernel=tf.eye(2) / 2.0, inverse_kernel=2.0 * tf.eye(2))
    >>> layer.inverse([1.0, 3.0]).numpy()
    array([2., 6.], dtype=float32)
    >>> round(float(layer.inverse_log_det_jacobian(tf.constant([1.0, 3.0]))), 4)
    1.3863

    References: Keller et al., "Self Normalizing Flows", ICML 2021, sections 3 and 4; for "relative",
    Gresele et al., "Relative gradient optimization of the Jacobian term", NeurIPS 2020.
    """

    _GRADIENTS = ("self_norm", "exact", "relative")

    def __init__(
        self,
        forward_kernel: Parameter,
        inverse_kernel: Parameter,
        bias: Parameter = None,
        gradient: str = "self_norm",
        mixture: float = 0.5,
        inversion: str | None = None,
        validate_args: bool = False,
        name: str = "self_norm_dense",
    ) -> None:
        """Makes the layer from its parameters; `trainable` makes the parameters too.

        Args:
          forward_kernel: R, float `[..., D, D]`: tensor or `tf.Variable`.
          inverse_kernel: W, float `[..., D, D]`: tensor or `tf.Variable`.
          bias: float `[..., D]`, or `None`.
          gradient: the gradient of the likelihood by the kernels, inside a `training_scope`: "self_norm" (R^T
            instead of the inverse transpose), "exact" (one inverse a step), or "relative" (the exact gradient
            times `W^T W`, with no inverse; if `forward` solves with W, its gradients are exact).
          mixture: the weight, in [0, 1], of the log density of the map that is computed; the rest is for that
            of the other map. For `inverse` these are the densities by W and by R (p_f and p_g in the paper).
            "self_norm" uses it inside a `training_scope`. 0.5 is the value of the paper. With 1, W has the
            plain gradient, and only a regularizer trains R.
          inversion: the map of `forward`: "learned" (the product with R, O(D^2)) or "exact" (the solve with
            W, O(D^3)). `None` is "learned" with the gradient "self_norm", and "exact" with the others, for
            which the likelihood does not train R.
          validate_args: whether to check at each call that W is not singular to working precision.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating or the dtypes differ.
          ValueError: if a kernel is not square, the sizes differ, or an option is out of range.
        """
        parameters = dict(locals())
        check_name(name)
        with tf.name_scope(name):
            dtype, forward_kernel, inverse_kernel, bias = as_parameters(
                forward_kernel=forward_kernel, inverse_kernel=inverse_kernel, bias=bias
            )
            _check_shapes(forward_kernel, inverse_kernel, bias)
            super().__init__(dense.DenseMap(), dtype, forward_kernel, inverse_kernel, bias, parameters)

    @classmethod
    def trainable(
        cls,
        event_size: int,
        *,
        dtype: DType = tf.float32,
        seed: Seed = None,
        use_bias: bool = True,
        bias_stddev: float = 1e-3,
        gradient: str = "self_norm",
        mixture: float = 0.5,
        inversion: str | None = None,
        validate_args: bool = False,
        name: str = "self_norm_dense",
    ) -> Self:
        """Makes a layer of `tf.Variable`s with the paper's initial values.

        Initial values: W and R are the identity, the bias is drawn from `N(0, bias_stddev^2)`.

        Args:
          event_size: D, a positive int.
          dtype: float32 or float64.
          seed: int or stateless TFP seed of the bias.
          use_bias: whether there is a bias.
          bias_stddev: standard deviation of the bias, 0 or more.
          gradient: see the constructor.
          mixture: see the constructor.
          inversion: see the constructor.
          validate_args: see the constructor.
          name: name of the layer; its variables are named after it.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if `event_size` is not a positive int, or an option is out of range.

        >>> import tfp_selfnorm as sn
        >>> sn.SelfNormDense.trainable(4, seed=1).inverse_kernel.shape
        TensorShape([4, 4])
        """
        event_size, dtype = check_positive_int(event_size, "event_size"), check_dtype(dtype)
        bias_stddev = check_not_negative(bias_stddev, "bias_stddev")
        cls.check_options(gradient, mixture, inversion, validate_args)
        seed = stateless_seed(seed, salt="self_norm_dense")
        bias = None
        if check_bool(use_bias, "use_bias"):
            noise = tf.random.stateless_normal([event_size], seed, dtype=dtype)
            bias = tf.Variable(bias_stddev * noise, name=f"{name}_bias")
        identity = tf.eye(event_size, dtype=dtype)
        forward_kernel, inverse_kernel = kernel_variables(identity, identity, name)
        return cls(forward_kernel, inverse_kernel, bias, gradient, mixture, inversion, validate_args, name)

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        def square(sample_shape):
            return tf.concat([sample_shape, sample_shape[-1:]], axis=0)

        kernel = tfp.util.ParameterProperties(event_ndims=2, shape_fn=square)
        return {
            "forward_kernel": kernel,
            "inverse_kernel": kernel,
            "bias": tfp.util.ParameterProperties(event_ndims=1),
        }

    @property
    def event_size(self) -> int:
        """D, the size of an event."""
        return self._inverse_kernel.shape[-1]

    @property
    def refresh_interval(self) -> int:
        """The number of steps between two refreshes, which then cost well under a tenth of the steps."""
        return max(20, self.event_size // 8)

    @property
    def event_sizes(self) -> tuple[int, ...]:
        return (self.event_size,)

    def _parameter_control_dependencies(self, is_init):
        if not is_checked_now(self, self._inverse_kernel, is_init):
            return []
        singular_values = tf.linalg.svd(tf.convert_to_tensor(self._inverse_kernel), compute_uv=False)
        smallest = self.event_size * np.finfo(self.dtype.as_numpy_dtype).eps * singular_values[..., :1]
        message = f"`inverse_kernel` of `{self.name}` is singular to working precision."
        regular = tf.reduce_all(singular_values[..., -1:] > smallest)
        return [checked(singular_values, regular, message)]


def _check_shapes(forward_kernel, inverse_kernel, bias):
    sizes = {}
    for name, kernel in (("forward_kernel", forward_kernel), ("inverse_kernel", inverse_kernel)):
        shape = kernel.shape
        if shape.rank is None or shape.rank < 2 or shape[-1] is None or shape[-1] != shape[-2]:
            raise ValueError(f"`{name}` must have square shape [..., D, D]; got {tuple(shape)}.")
        sizes[name] = shape[-1]
    if bias is not None and bias.shape.rank is not None:
        if bias.shape.rank < 1:
            raise ValueError("`bias` must have shape [..., D]; got a scalar.")
        sizes["bias"] = bias.shape[-1]
    if forward_kernel.shape[:-2] != inverse_kernel.shape[:-2]:
        raise ValueError(
            "The kernels must have the same batch shape; got `forward_kernel` "
            f"{tuple(forward_kernel.shape)}, `inverse_kernel` {tuple(inverse_kernel.shape)}."
        )
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"`{name}` {size}" for name, size in sizes.items())
        raise ValueError(f"The event sizes of the parameters differ: {listed}.")
