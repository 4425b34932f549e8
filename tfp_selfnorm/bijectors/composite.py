"""What the bijectors share that are CompositeTensors only where their parts are."""

import inspect


def with_constructor_signature(cls):
    """A class decorator: editors and `help` show the arguments of `__init__`, and not those of `__new__`."""
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    cls.__signature__ = inspect.Signature(arguments)
    return cls
