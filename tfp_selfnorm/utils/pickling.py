"""Pickles and copies of bijectors and distributions: made anew from their parameters."""

import copyreg
from collections.abc import Callable
from typing import Any

import tensorflow_probability as tfp

from tfp_selfnorm.utils.types import TfpObject

_TFP_TYPES = (tfp.bijectors.Bijector, tfp.distributions.Distribution)


def by_parameters(value: TfpObject) -> tuple[Callable, tuple[type, dict[str, Any]]]:
    """The result of `__reduce__` for a TFP object: its class and the arguments of its constructor.

    A copy does not get the other attributes of the object, such as traces of earlier calls.
    """
    return _made_anew, (type(value), dict(value.parameters))


def _made_anew(kind, parameters):
    return kind(**parameters)


def _register_tfp():
    """Makes TFP's classes whose `__new__` requires arguments, such as `tfb.Invert`, picklable."""
    for public in (*vars(tfp.bijectors).values(), *vars(tfp.distributions).values()):
        if isinstance(public, type) and issubclass(public, _TFP_TYPES):
            # If a part is no composite tensor, such a class makes an object of a private base class.
            for kind in public.__mro__:
                if issubclass(kind, _TFP_TYPES) and public.__new__ is not object.__new__:
                    copyreg.pickle(kind, by_parameters)


_register_tfp()
