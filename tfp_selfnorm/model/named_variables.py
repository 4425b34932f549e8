"""The variables of a model, by their names in files and messages."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras

from tfp_selfnorm.structure.names import unused_name


class NamedVariables:
    """The variables of a flow and of the state of its training, under unique names.

    Args:
      of_flow: mapping from names to the Keras variables of the flow.
      add_weight: the method of a `keras.Model` that makes a variable.

    Attributes:
      of_flow: as given.
      all: mapping from names to all variables.
    """

    def __init__(self, of_flow: dict[str, keras.Variable], add_weight: Callable[..., keras.Variable]) -> None:
        self.of_flow, self._add_weight = of_flow, add_weight
        self.all = dict(of_flow)

    def add(self, *args: Any, name: str, **kwargs: Any) -> keras.Variable:
        """Makes a variable by `add_weight`, under a name that no other variable has."""
        name = unused_name(name, self.all)
        self.all[name] = self._add_weight(*args, name=name, **kwargs)
        return self.all[name]

    def add_state(self, initial: float, name: str, dtype: str = "float32") -> keras.Variable:
        """Makes a scalar that no gradient trains and that files keep.

        Counts are int64: TensorFlow keeps an int32 variable in the memory of the host, where a step that XLA
        compiles for a GPU cannot reach it.
        """
        initializer = keras.initializers.Constant(initial)
        # Counts are the same on all replicas, and a mean would not be an int. With "none" each replica has
        # its own. Other ways wait in the middle of a pass for the other replicas, and the losses that the
        # layers of a bigger model then add are mixed up.
        aggregation = "mean" if dtype == "float32" else "none"
        return self.add((), initializer, dtype, trainable=False, aggregation=aggregation, name=name)

    def names_of(self, variables: Iterable[keras.Variable]) -> list[str]:
        """Returns the names of variables: of those that layers of a subclass hold, their paths."""
        names = {id(variable): name for name, variable in self.all.items()}
        return [names.get(id(variable), variable.path) for variable in variables]

    def without(self, variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
        """Returns the mapping without some of the variables."""
        left_out = set(map(id, variables))
        return {name: variable for name, variable in self.all.items() if id(variable) not in left_out}

    @property
    def trainable_names(self) -> list[str]:
        """The names of the variables of the flow that train."""
        return [name for name, variable in self.of_flow.items() if variable.trainable]

    def train_only(self, names: Collection[str]) -> None:
        """Lets only the variables of the flow with these names train."""
        for name, variable in self.of_flow.items():
            variable.trainable = name in names
