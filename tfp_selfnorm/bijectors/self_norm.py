"""What the self-normalizing layers share: two kernels, two directions, and the training scope."""

import abc
import weakref

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.math.dense import GRADIENTS
from tfp_selfnorm.reconstruction import Reconstruction
from tfp_selfnorm.training_scope import Record, current_scope

INVERSIONS = ("learned", "exact")


class SelfNorm(tfp.bijectors.AutoCompositeTensorBijector):
    """A linear bijector with a learned inverse; base of `SelfNormDense`.

    `inverse(y) = W y + bias` with `W = inverse_kernel`; `forward(x) = R (x - bias)` with
    `R = forward_kernel`, or the solve with W where `inversion="exact"`.
    """

    def __init__(
        self,
        forward_kernel,
        inverse_kernel,
        bias,
        gradient,
        mixture,
        inversion,
        event_ndims,
        dtype,
        parameters,
        validate_args,
        name,
    ):
        _check_options(gradient, mixture, inversion)
        self._forward_kernel = forward_kernel
        self._inverse_kernel = inverse_kernel
        self._bias = bias
        self._gradient = gradient
        self._mixture = float(mixture)
        self._inversion = inversion or ("learned" if gradient == "self_norm" else "exact")
        self._passes = _Passes()
        super().__init__(
            forward_min_event_ndims=event_ndims,
            is_constant_jacobian=True,
            dtype=dtype,
            parameters=parameters,
            validate_args=validate_args,
            name=name,
        )

    @property
    def forward_kernel(self):
        """R, the kernel of `forward`: latent to data."""
        return self._forward_kernel

    @property
    def inverse_kernel(self):
        """W, the kernel of `inverse`: data to latent."""
        return self._inverse_kernel

    @property
    def bias(self):
        """What `inverse` adds after its kernel; `None` for none."""
        return self._bias

    @property
    def gradient(self) -> str:
        """Which gradient the log-det has: "self_norm", "exact" or "relative"."""
        return self._gradient

    @property
    def mixture(self) -> float:
        """The weight of the direction that is computed in the self-normalizing objective."""
        return self._mixture

    @property
    def inversion(self) -> str:
        """What `forward` computes: "learned" (the product with R) or "exact" (the solve with W)."""
        return self._inversion

    @property
    def key(self):
        """Hashable; equal for copies of a layer, which share its variables."""
        kernel = self._inverse_kernel
        return kernel.ref() if hasattr(kernel, "ref") else id(kernel)

    @property
    def needs_inverse(self) -> bool:
        """Whether the gradient or `forward` depends on R being close to the inverse of W."""
        return self._gradient == "self_norm" or self._inversion == "learned"

    def exact_log_det(self):
        """`log |det W|` in nats, exact; O(D^3)."""
        return self._log_det_value(tf.convert_to_tensor(self._inverse_kernel))

    @abc.abstractmethod
    def apply_kernel(self, kernel, x):
        """The plain map `kernel @ x`, with its ordinary gradient."""

    @abc.abstractmethod
    def squared_norm(self, x):
        """The squared norm of each event."""

    @abc.abstractmethod
    def _check_event(self, x, name):
        """Raises ValueError if `x` does not have the event shape of the layer."""

    @abc.abstractmethod
    def _map(self, x, kernel, other_kernel, mixture, reconstruction):
        """Returns `kernel @ x` and, with a reconstruction, its error; with the layer's gradient."""

    @abc.abstractmethod
    def _solve(self, x):
        """The exact inverse of the product with W."""

    @abc.abstractmethod
    def _log_det(self, kernel, other_kernel, gradient, mixture, value):
        """`log |det kernel|` with the gradient named; `value=None` computes the value."""

    @abc.abstractmethod
    def _log_det_value(self, kernel):
        """`log |det kernel|`, exact."""

    def _inverse(self, y):
        self._check_event(y, "y")
        kernels = self._read_kernels("inverse")
        x = self._pass_kernel(y, *kernels, "inverse")
        x = x if self._bias is None else x + self._bias
        self._passes.add("inverse", y, x, kernels)
        return x

    def _forward(self, x):
        self._check_event(x, "x")
        kernels = self._read_kernels("forward")
        centred = x if self._bias is None else x - self._bias
        if self._inversion == "exact":
            y = self._solve(centred)
        else:
            y = self._pass_kernel(centred, *kernels, "forward")
        self._passes.add("forward", x, y, kernels)
        return y

    def _inverse_log_det_jacobian(self, y):
        # TFP asks for the log-det of a pair at either end; it is that of the map that made the pair.
        made_by_forward = self._passes.kernels_by_output("forward", y)
        if made_by_forward is not None:
            return -self._forward_map_log_det(made_by_forward)
        return self._inverse_map_log_det(self._passes.kernels_by_input("inverse", y))

    def _forward_log_det_jacobian(self, x):
        made_by_inverse = self._passes.kernels_by_output("inverse", x)
        if made_by_inverse is not None:
            return -self._inverse_map_log_det(made_by_inverse)
        return self._forward_map_log_det(self._passes.kernels_by_input("forward", x))

    def _read_kernels(self, direction):
        """The kernel of a direction and the one of the way back, as tensors."""
        kernels = self._inverse_kernel, self._forward_kernel
        if direction == "forward" and self._inversion == "learned":
            kernels = kernels[::-1]
        return tuple(tf.convert_to_tensor(kernel) for kernel in kernels)

    def _pass_kernel(self, x, kernel, other_kernel, direction):
        # Graph optimisation may drop the order between a read and a later assignment where the value read
        # only enters another variable's gradient. Behind this, every gradient waits for both reads.
        with tf.control_dependencies([kernel, other_kernel]):
            x = tf.identity(x)
        scope = current_scope()
        if scope is None:
            return self._map(x, kernel, other_kernel, self._mixture, None)[0]
        learning = scope.inverse_learning
        wants_error = isinstance(learning, Reconstruction) and learning.needs_error
        output, error = self._map(
            x, kernel, other_kernel, scope.mixture(self), learning if wants_error else None
        )
        scope.record(Record(self, direction, kernel, other_kernel, x, output, error))
        return output

    def _inverse_map_log_det(self, kernels):
        scope = current_scope()
        return self._log_det(
            *(kernels or self._read_kernels("inverse")),
            self._gradient,
            self._mixture if scope is None else scope.mixture(self),
            None if scope is None else scope.held_log_det(self),
        )

    def _forward_map_log_det(self, kernels):
        kernels = kernels or self._read_kernels("forward")
        scope = current_scope()
        held = None if scope is None else scope.held_log_det(self)
        if self._inversion == "exact":
            # The solve has the whole and ordinary gradient, so its log-det has too.
            gradient = "exact" if self._gradient == "relative" else self._gradient
            return -self._log_det(*kernels, gradient, 1.0, held)
        mixture = self._mixture if scope is None else scope.mixture(self)
        return self._log_det(*kernels, self._gradient, mixture, None if held is None else -held)


class _Passes:
    """Remembers, while their tensors live, which direction made a pair, and in graphs with which kernels.

    There a direction and its log-det share one read of each variable. In eager mode a variable may have
    changed since, and is read again. All references are weak.
    """

    def __init__(self):
        self._entries = {}

    def add(self, direction, x, output, kernels):
        kernels = () if tf.executing_eagerly() else tuple(map(weakref.ref, kernels))
        entries, keys = self._entries, ((direction, "input", id(x)), (direction, "output", id(output)))

        def forget(_):
            for key in keys:
                entries.pop(key, None)

        # The pair goes when either end does.
        for key, tensor in zip(keys, (x, output), strict=True):
            entries[key] = weakref.ref(tensor, forget), kernels

    def kernels_by_input(self, direction, x):
        """The kernels of the pass that took `x`; empty if they must be read, `None` without a pass."""
        return self._kernels((direction, "input", id(x)), x)

    def kernels_by_output(self, direction, output):
        """The same for the pass that returned `output`."""
        return self._kernels((direction, "output", id(output)), output)

    def _kernels(self, key, tensor):
        reference, kernels = self._entries.get(key, (lambda: None, ()))
        if reference() is not tensor:
            return None
        kernels = tuple(kernel() for kernel in kernels)
        return () if any(kernel is None for kernel in kernels) else kernels


def _check_options(gradient, mixture, inversion):
    if gradient not in GRADIENTS:
        raise ValueError(f"`gradient` must be one of {GRADIENTS}; got {gradient!r}.")
    if inversion is not None and inversion not in INVERSIONS:
        raise ValueError(f"`inversion` must be None or one of {INVERSIONS}; got {inversion!r}.")
    if not 0.0 <= mixture <= 1.0:
        raise ValueError(f"`mixture` must be in [0, 1]; got {mixture!r}.")
