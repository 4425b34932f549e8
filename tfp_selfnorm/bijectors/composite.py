"""The base class of bijectors that are CompositeTensors only if a part of them allows it."""

import inspect
from typing import Any

from tfp_selfnorm.bijectors.base import CheckedBijector
from tfp_selfnorm.utils.compat import CompositeTensor
from tfp_selfnorm.utils.pickling import by_parameters


class OptionalComposite(CheckedBijector):
    """A bijector with a subclass that is a CompositeTensor; the constructor chooses one of the two classes.

    Subclasses by users get no such choice.

    Attributes:
      _PART: name of the part, the first argument of the constructor.
      _PLAIN: the class without a CompositeTensor.
      _COMPOSITE: its subclass that is a CompositeTensor.
    """

    _PART: str
    _PLAIN: type
    _COMPOSITE: type
    __reduce__ = by_parameters

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets editors and `help` show the arguments of `__init__` instead of those of `__new__`."""
        super().__init_subclass__(**kwargs)
        arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
        cls.__signature__ = inspect.Signature(arguments)
        # Of a CompositeTensor TFP would make it from the name of the private class.
        cls._DEFAULT_NAME = next((a.default for a in arguments if a.name == "name"), cls._DEFAULT_NAME)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Makes a CompositeTensor if the part allows it."""
        part = args[0] if args else kwargs.get(cls._PART)
        if cls not in (cls._PLAIN, cls._COMPOSITE) or part is None:
            return super().__new__(cls)
        if cls._allows_composite(part):
            return super().__new__(cls._COMPOSITE)
        if cls is cls._PLAIN:
            return super().__new__(cls)
        # A copy of a CompositeTensor with another part.
        return cls._PLAIN(*args, **kwargs)

    @staticmethod
    def _allows_composite(part: Any) -> bool:
        """Whether a bijector with this part can be a CompositeTensor: if the part is one."""
        return isinstance(part, CompositeTensor)
