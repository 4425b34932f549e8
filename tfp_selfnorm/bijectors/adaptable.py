"""`Adaptable`, the base class of the bijectors whose parameters get their initial values from data."""

import abc
import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.bijectors.parameters import check_event_shape
from tfp_selfnorm.utils.graphs import checked
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.types import Parameter

_MODE: contextvars.ContextVar[str | None] = contextvars.ContextVar("adaptation_mode", default=None)


class Adaptable(CheckedBijector, tfp.bijectors.AutoCompositeTensorBijector):
    """A bijector whose variables `adapt` sets from data: base of `ActNorm`, `Centering`, `Standardize`.

    Until then every call raises ValueError. Inside a graph it raises `tf.errors.InvalidArgumentError`; under
    XLA the result is NaN.
    """

    def __init__(
        self, event_ndims: int, parameters: dict[str, Any], dtype: tf.DType, can_adapt: bool
    ) -> None:
        """`parameters` are the arguments of the subclass, with `is_adapted`.

        `can_adapt` says whether the other parameters are variables of a form that `adapt` can set.
        """
        self._is_adapted = is_adapted = parameters["is_adapted"]
        # TFP makes copies with tensors instead of variables.
        is_bool = getattr(is_adapted, "dtype", None) == tf.bool
        is_variable = hasattr(is_adapted, "assign")
        if is_adapted is not True and not (is_bool and (can_adapt or not is_variable)):
            raise TypeError(
                "`is_adapted` must be True, or a tf.Variable of a bool, or a bool tensor. With a variable, "
                f"the other parameters must be variables too, without a batch; got {is_adapted!r}."
            )
        super().__init__(event_ndims, parameters, dtype)

    @property
    def is_adapted(self) -> Parameter:
        """Whether the parameters have their initial values: True, or a bool tensor or `tf.Variable`."""
        return self._is_adapted

    def has_initial_values(self) -> bool:
        """Whether the parameters have their initial values, as a bool of Python; in eager mode."""
        # A variable of a distribution strategy is true in Python, with any value.
        return self._is_adapted is True or bool(tf.reduce_all(self._is_adapted))

    @abc.abstractmethod
    def _set_from(self, data, is_inverse):
        """Assigns initial values from the data of a pass, a float64 array; raises ValueError if it cannot."""

    def _prepare(self, value, sizes, is_inverse):
        """Checks the input of a call, and in the mode "adapt" sets the parameters from that of the first."""
        check_event_shape(value, sizes, "y" if is_inverse else "x", self.name)
        if _MODE.get() != "adapt" or self.has_initial_values():
            return
        if not hasattr(self._is_adapted, "assign"):
            raise TypeError(f"`{self.name}` cannot adapt to data: its parameters are no variables.")
        self._set_from(np.asarray(tf.cast(value, tf.float64)), is_inverse)
        self._is_adapted.assign(True)

    def _checked(self, value):
        """Returns `value` if the parameters have their initial values."""
        if self._is_adapted is True or _MODE.get() == "ignore":
            return value
        message = (
            f"`{self.name}` has no initial values yet: call `adapt` on the flow with training data first."
        )
        return checked(value, tf.reduce_all(self._is_adapted), message)


class AllEventsWanted(BaseException):
    """Ends a pass in the mode "adapt" at a bijector, which needs its input from all events.

    Like `GeneratorExit` it is no error, so that nothing on its way handles it.
    """

    def __init__(self, bijector: "AdaptableToAll", data: np.ndarray, is_inverse: bool) -> None:
        super().__init__()
        self.bijector, self.data, self.is_inverse = bijector, data, is_inverse


class AdaptableToAll(Adaptable):
    """An `Adaptable` that takes its values from all events; they come in batches."""

    def _set_from(self, data, is_inverse):
        raise AllEventsWanted(self, data, is_inverse)

    @abc.abstractmethod
    def set_from_batches(self, batches: Iterable[np.ndarray], is_inverse: bool) -> None:
        """Assigns initial values from the inputs of `forward` or `inverse`, arrays of float64.

        Raises:
          ValueError: if the data are not finite.
        """


def adaptation_flag(name: str) -> tf.Variable:
    """The variable `is_adapted` of a bijector without initial values."""
    check_name(name)
    return tf.Variable(False, trainable=False, name=f"{name}_is_adapted")


def takes_initial_values() -> bool:
    """Whether a pass gives a flow its initial values: it must then see the data as they are."""
    return _MODE.get() in ("adapt", "whiten")


@contextlib.contextmanager
def adaptation_mode(mode: str) -> Iterator[None]:
    """Sets the mode of `Adaptable`s without initial values, in this thread.

    In the mode "adapt" they take initial values from the data of a pass. In the mode "ignore" they compute
    with the values that they have. The mode "whiten" says that other layers take theirs.
    """
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)
