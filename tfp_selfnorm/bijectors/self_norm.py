"""`SelfNorm`, the base class of the self-normalizing layers: two kernels, and the training scope."""

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.parameters import check_event_shape
from tfp_selfnorm.bijectors.self_normalizing import INVERSIONS, SelfNormalizing
from tfp_selfnorm.inverse_learning.scope import LayerPass, current_terms
from tfp_selfnorm.math import linear
from tfp_selfnorm.utils.options import check_bool, check_choice, check_number
from tfp_selfnorm.utils.types import Parameter


class SelfNorm(SelfNormalizing, tfp.bijectors.AutoCompositeTensorBijector):
    """A linear bijector with a learned inverse: base of `SelfNormDense` and the convolutions.

    `inverse(y) = W y + bias` with `W = inverse_kernel`. `forward(x) = R (x - bias)` with
    `R = forward_kernel`; with `inversion="exact"` it is the solve with W.
    """

    _GRADIENTS: tuple[str, ...]
    _operations: linear.Operations

    def __init__(
        self,
        operations: linear.Operations,
        dtype: tf.DType,
        forward_kernel: Parameter,
        inverse_kernel: Parameter,
        bias: Parameter,
        parameters: dict[str, Any],
    ) -> None:
        """`parameters` are the arguments of the subclass, with the options of all layers."""
        options = {key: parameters[key] for key in ("gradient", "mixture", "inversion", "validate_args")}
        self.check_options(**options)
        self._forward_kernel = forward_kernel
        self._inverse_kernel = inverse_kernel
        self._bias = bias
        gradient = options["gradient"]
        inversion = options["inversion"] or ("learned" if gradient == "self_norm" else "exact")
        super().__init__(operations, gradient, options["mixture"], inversion, parameters, dtype)

    @classmethod
    def check_options(cls, gradient: str, mixture: float, inversion: str | None, validate_args: bool) -> None:
        """Checks the options that all layers have.

        Raises:
          TypeError: if `mixture` is no number, or `validate_args` no bool.
          ValueError: if an option is out of range.
        """
        check_choice(gradient, "gradient", cls._GRADIENTS)
        if inversion is not None:
            check_choice(inversion, "inversion", INVERSIONS, expected="None or one of {}")
        check_number(mixture, "mixture", "in [0, 1]", lambda value: 0.0 <= value <= 1.0)
        check_bool(validate_args, "validate_args")

    @property
    def forward_kernel(self) -> Parameter:
        """R, the kernel of `forward`: latent to data."""
        return self._forward_kernel

    @property
    def inverse_kernel(self) -> Parameter:
        """W, the kernel of `inverse`: data to latent."""
        return self._inverse_kernel

    @property
    def bias(self) -> Parameter:
        """The bias that `inverse` adds to the product with W; `None` for none."""
        return self._bias

    @property
    def identity(self) -> Any:
        """A key for dictionaries, equal for copies of a layer, which share its variables."""
        kernel = self._inverse_kernel
        return "kernel", kernel.ref() if hasattr(kernel, "ref") else id(kernel)

    @property
    def maps(self) -> tuple[tf.Tensor, tf.Tensor]:
        """W and R as tensors."""
        return tf.convert_to_tensor(self._inverse_kernel), tf.convert_to_tensor(self._forward_kernel)

    @property
    def map_variables(self) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """The variables of W and of R."""
        return _variables(self._inverse_kernel), _variables(self._forward_kernel)

    @property
    def log_det_shape(self) -> tf.TensorShape:
        """The shape of the batch of kernels."""
        return self._inverse_kernel.shape[: -self._operations.kernel_ndims]

    def exact_log_det(self, layer_pass: LayerPass | None = None) -> tf.Tensor:
        """`log |det W|` in nats, exact."""
        return self._operations.log_det(tf.convert_to_tensor(self._inverse_kernel))

    def gradient_correction(self) -> tf.Tensor:
        """The exact gradient of `log |det W|` by W minus the approximation that `gradient` names."""
        return self.log_det_gradient("exact") - self.log_det_gradient(self._gradient)

    def log_det_gradient(self, name: str) -> tf.Tensor:
        """The gradient of `log |det W|` by W: "exact", or the approximation with this name."""
        return self._operations.log_det_gradients[name](tf.convert_to_tensor(self._inverse_kernel))

    def _inverse(self, y):
        terms = current_terms(self)
        kernels = self._read_kernels("inverse", terms)
        x = self._apply_kernel(self._check_event(y, "y"), kernels, "inverse", terms)
        x = x if self._bias is None else x + self._bias
        self._pairs.add("inverse", y, x, kernels)
        return x

    def _forward(self, x):
        terms = current_terms(self)
        kernels = self._read_kernels("forward", terms)
        centred = self._check_event(x, "x")
        centred = centred if self._bias is None else centred - self._bias
        if self._inversion == "exact":
            y = self._operations.solve(kernels[0], centred)
        else:
            y = self._apply_kernel(centred, kernels, "forward", terms)
        self._pairs.add("forward", x, y, kernels)
        return y

    def _inverse_log_det_jacobian(self, y):
        made_by_forward = self._pairs.values_by_output("forward", y)
        if made_by_forward is not None:
            return -self._forward_map_log_det(made_by_forward)
        return self._inverse_map_log_det(self._pairs.values_by_input("inverse", y))

    def _forward_log_det_jacobian(self, x):
        made_by_inverse = self._pairs.values_by_output("inverse", x)
        if made_by_inverse is not None:
            return -self._inverse_map_log_det(made_by_inverse)
        return self._forward_map_log_det(self._pairs.values_by_input("forward", x))

    def _check_event(self, x, name):
        check_event_shape(x, self.event_sizes, name, self.name)
        return x

    def _read_kernels(self, direction, terms):
        """The kernel of a direction and the kernel of the other one, as tensors."""
        kernels = self._inverse_kernel, self._forward_kernel
        if direction == "forward" and self._inversion == "learned":
            kernels = kernels[::-1]
        if terms.scope is None:
            # The other kernel has no part here. If it were read, its gradient in a tape would be `None`.
            return (tf.convert_to_tensor(kernels[0]),) * 2
        return tuple(tf.convert_to_tensor(kernel) for kernel in kernels)

    def _apply_kernel(self, x, kernels, direction, terms):
        kernel, other_kernel = kernels
        # TensorFlow may drop the order between a read and a later assignment, if only the gradient of another
        # variable uses the read value. With this dependency every gradient waits for both reads.
        with tf.control_dependencies([kernel, other_kernel]):
            x = tf.identity(x)
        output, error = linear.linear_map(
            self._operations, x, kernel, other_kernel, terms.gradient, terms.mixture, terms.trained_kernels
        )
        if terms.scope is not None:
            terms.scope.record(LayerPass(self, direction, kernel, other_kernel, x, output, error))
        return output

    def _inverse_map_log_det(self, read):
        terms = current_terms(self)
        return self._log_det(read, "inverse", terms, terms.held_log_det)

    def _forward_map_log_det(self, read):
        terms = current_terms(self)
        held = terms.held_log_det
        if self._inversion == "exact":
            # The solve has the plain gradient, with weight 1. Its log-det must have it too.
            gradient = "exact" if terms.gradient == "relative" else terms.gradient
            return -self._log_det(read, "forward", terms._replace(gradient=gradient, mixture=1.0), held)
        return self._log_det(
            read, "forward", terms._replace(correction=None), None if held is None else -held
        )

    def _log_det(self, read, direction, terms, held):
        """The log-det of the map of a direction; `read` has the kernels that its pass read, if known."""
        # A pass outside the scope reads one kernel, and has it in both places.
        if not read or (read[0] is read[1] and terms.scope is not None):
            read = self._read_kernels(direction, terms)
        kernel, other_kernel = read
        return linear.log_det(
            self._operations, kernel, other_kernel, terms.gradient, terms.mixture, held, terms.correction
        )


def _variables(kernel):
    if isinstance(kernel, tfp.util.DeferredTensor):
        return list(kernel.variables)
    return [kernel] if isinstance(kernel, tf.Variable) else []
