"""The base class of the bijectors that are CompositeTensors only if a part of them admits it."""

import inspect

import tensorflow_probability as tfp

from tfp_selfnorm.utils.pickling import by_parameters


class OptionalComposite(tfp.bijectors.Bijector):
    """A bijector with a subclass that is a CompositeTensor; the constructor chooses between the two.

    A class gives the name of its part, the first argument of its constructor, tells whether a part admits a
    CompositeTensor, and names the two classes. Subclasses by users are made as they are.
    """

    _PART: str
    _PLAIN: type
    _COMPOSITE: type
    __reduce__ = by_parameters

    def __init_subclass__(cls, **kwargs):
        """Lets editors and `help` show the arguments of `__init__` instead of those of `__new__`."""
        super().__init_subclass__(**kwargs)
        arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
        cls.__signature__ = inspect.Signature(arguments)

    def __new__(cls, *args, **kwargs):
        """Makes a CompositeTensor if the part admits it."""
        part = args[0] if args else kwargs.get(cls._PART)
        if cls not in (cls._PLAIN, cls._COMPOSITE) or part is None:
            return super().__new__(cls)
        if cls._admits_composite(part):
            return super().__new__(cls._COMPOSITE)
        if cls is cls._PLAIN:
            return super().__new__(cls)
        # A copy of a CompositeTensor with another part.
        return cls._PLAIN(*args, **kwargs)

    @staticmethod
    def _admits_composite(part):
        raise NotImplementedError
