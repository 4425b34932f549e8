"""The variables of a model, by the names that files and messages use."""

import keras

from tfp_selfnorm.structure.names import unused_name


class NamedVariables:
    """The variables of a flow, and those of the state of its training, under names that are unique.

    Args:
      of_flow: mapping from names to the Keras variables of the flow.
      add_weight: the method of a `keras.Model` that makes a variable.

    Attributes:
      of_flow: as given.
      all: mapping from names to all variables.
    """

    def __init__(self, of_flow, add_weight):
        self.of_flow, self._add_weight = of_flow, add_weight
        self.all = dict(of_flow)

    def add(self, *args, name, **kwargs):
        """Makes a variable as `add_weight` does, under a name that no variable has."""
        name = unused_name(name, self.all)
        self.all[name] = self._add_weight(*args, name=name, **kwargs)
        return self.all[name]

    def add_state(self, initial, name, dtype="float32"):
        """Makes a scalar that no gradient trains, and that files keep."""
        initializer = keras.initializers.Constant(initial)
        # Counts are the same on all replicas, and have no mean.
        aggregation = "mean" if dtype == "float32" else "only_first_replica"
        return self.add((), initializer, dtype, trainable=False, aggregation=aggregation, name=name)

    def names_of(self, variables) -> list:
        """The names of variables."""
        names = {id(variable): name for name, variable in self.all.items()}
        return [names[id(variable)] for variable in variables]

    def without(self, variables) -> dict:
        """The mapping, without some of the variables."""
        left_out = set(map(id, variables))
        return {name: variable for name, variable in self.all.items() if id(variable) not in left_out}

    @property
    def trainable_names(self) -> list:
        """The names of the flow's variables that train."""
        return [name for name, variable in self.of_flow.items() if variable.trainable]

    def train_only(self, names) -> None:
        """Lets the flow's variables of these names train, and no other."""
        for name, variable in self.of_flow.items():
            variable.trainable = name in names
