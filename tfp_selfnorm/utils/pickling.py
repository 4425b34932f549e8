"""Pickles and copies of bijectors and distributions: made anew from their parameters."""

import copyreg

import tensorflow_probability as tfp

_TFP_TYPES = (tfp.bijectors.Bijector, tfp.distributions.Distribution)


def by_parameters(value):
    """What `__reduce__` returns for a TFP object: its class and the arguments of its constructor.

    What an object keeps beside them, such as traces of earlier calls, is not for a copy.
    """
    return _made_anew, (type(value), dict(value.parameters))


def _made_anew(kind, parameters):
    return kind(**parameters)


def _register_tfp():
    """TFP's classes whose `__new__` asks for arguments, such as `tfb.Invert`, have no pickles otherwise."""
    for public in (*vars(tfp.bijectors).values(), *vars(tfp.distributions).values()):
        if isinstance(public, type) and issubclass(public, _TFP_TYPES):
            # Of parts that are no composite tensors such a class makes an object of a private base class.
            for kind in public.__mro__:
                if issubclass(kind, _TFP_TYPES) and public.__new__ is not object.__new__:
                    copyreg.pickle(kind, by_parameters)


_register_tfp()
