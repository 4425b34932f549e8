"""How a `FlowModel` is saved and loaded: as a `.keras` file, if a builder made it, and by named weights."""

import math
from contextlib import nullcontext

import keras
import numpy as np

from tfp_selfnorm.files import is_local, replacing
from tfp_selfnorm.serialization import decode, encode
from tfp_selfnorm.tracking import Tracking

_CONFIG = ("builder", "arguments", "inverse_learning", "bits_per_dim", "name")


class FlowSaving:
    """Saving and loading; files take the place of earlier ones only once they are written whole."""

    # What `from_builder` was given, as JSON.
    _recipe = None

    @classmethod
    def from_builder(cls, builder, inverse_learning=Tracking(), bits_per_dim=False, **arguments):  # noqa: B008
        """Makes the model of the flow `builder(**arguments)`, so that it can be saved whole.

        `model.save("flow.keras")` then keeps how it was built and compiled, its weights, and the state of its
        training; `keras.models.load_model("flow.keras")` gives a model that scores and trains on as this one,
        in a process that has imported `tfp_selfnorm`. What a builder draws at random, it must keep in
        variables.

        Args:
          builder: a builder of this package, or a function of yours that returns a TFP distribution and is
            registered with `keras.saving.register_keras_serializable()`.
          inverse_learning: see `FlowModel`.
          bits_per_dim: see `FlowModel`.
          **arguments: for the builder: numbers, strings, None; lists, tuples and dicts of such; dtypes,
            shapes, constant arrays and tensors; registered functions; and TFP's elementary bijectors and
            chains of them with constant parameters, such as `images.pixel_sigmoid()`.

        Raises:
          TypeError: if the builder is not registered, or an argument is of another kind.

        >>> model = FlowModel.from_builder(dense_flow, event_shape=2, num_layers=3, seed=1)
        >>> model.get_config()["builder"]
        {'function': 'tfp_selfnorm>dense_flow'}
        """
        recipe = {
            "builder": encode(builder, "builder"),
            "arguments": {name: encode(value, name) for name, value in arguments.items()},
            "inverse_learning": encode(inverse_learning, "inverse_learning"),
            "bits_per_dim": bool(bits_per_dim),
        }
        return cls.from_config(recipe)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model anew from what `get_config` returns; raises ValueError if it is not such."""
        unknown = set(config) - set(_CONFIG)
        missing = set(_CONFIG[:-1]) - set(config)
        if unknown or missing or not isinstance(config["arguments"], dict):
            raise ValueError(
                f"The config of a FlowModel must have the entries {_CONFIG}, with the arguments by name; got "
                f"{config}."
            )
        # An empty scope would hide the one that `load_model` has opened.
        scope = keras.saving.custom_object_scope(custom_objects) if custom_objects else nullcontext()
        with scope:
            builder = decode(config["builder"], "builder")
            arguments = {
                name: decode(value, f"arguments.{name}") for name, value in config["arguments"].items()
            }
            inverse_learning = decode(config["inverse_learning"], "inverse_learning")
        if not callable(builder):
            raise ValueError(f"`builder` of the saved model is no function: {builder!r}.")
        distribution = builder(**arguments)
        model = cls(distribution, inverse_learning, config["bits_per_dim"], config.get("name"))
        model._recipe = {key: config[key] for key in _CONFIG[:-1]}
        return model

    def get_config(self):
        """How the model was built, in terms of JSON.

        Raises:
          ValueError: if it was made from a distribution, which has no config.
        """
        if self._recipe is None:
            raise ValueError(
                "A FlowModel made from a distribution cannot be saved whole: make it with "
                "`FlowModel.from_builder`, save its weights with `save_weights` (`save_weights_only=True` in "
                "ModelCheckpoint), or `export` it."
            )
        return {**self._recipe, "name": self.name}

    def get_compile_config(self):
        """What `compile` was given."""
        config = super().get_compile_config()
        return {**config, "max_skipped_updates": self._max_skipped_updates} if config else config

    def compile_from_config(self, config):
        """Compiles the model as it was when it was saved, and makes the variables of the optimizer."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Keras's `save`, for models from `from_builder`; an earlier file stays until the new one is whole.

        Raises:
          FileNotFoundError: if the folder does not exist.
          OSError: if the disk is full.
          ValueError: if the model was made from a distribution.
        """
        self.get_config()
        if not (
            overwrite and is_local(filepath) and str(filepath).endswith(".keras") and zipped is not False
        ):
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        with replacing(filepath, ".keras", self._file_size()) as partial:
            return super().save(partial, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Keras's `save_weights`, by name; an earlier file stays until the new one is whole.

        Raises:
          FileNotFoundError: if the folder does not exist.
          OSError: if the disk is full.
        """
        if not (overwrite and is_local(filepath) and str(filepath).endswith(".weights.h5") and not kwargs):
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        with replacing(filepath, ".weights.h5", self._file_size()) as partial:
            return super().save_weights(partial)

    def save_own_variables(self, store):
        """Puts each variable into the store under its name."""
        for variable in self._own_variables():
            store[variable.name] = variable.numpy()

    def load_own_variables(self, store):
        """Takes each variable from the store, by its name, or leaves all as they are.

        Raises:
          ValueError: if a variable is missing in the store, or surplus, or of another shape.
        """
        own = {variable.name: variable for variable in self._own_variables()}
        saved = {name: np.asarray(store[name]) for name in store.keys()}  # noqa: SIM118
        problems = [f"`{name}` is missing in the file" for name in own if name not in saved]
        problems += [f"`{name}` is surplus in the file" for name in saved if name not in own]
        problems += [
            f"`{name}` has shape {saved[name].shape} in the file and {tuple(variable.shape)} here"
            for name, variable in own.items()
            if name in saved and saved[name].shape != tuple(variable.shape)
        ]
        if problems:
            raise ValueError(f"The weights are those of another model: {'; '.join(problems)}.")
        for name, variable in own.items():
            variable.assign(saved[name])

    def _file_size(self):
        """More bytes than the weights and the state of the optimizer take in a file."""
        optimizer = getattr(self, "optimizer", None)
        variables = [*self.variables, *(optimizer.variables if optimizer is not None else [])]
        # Eight bytes suffice for any dtype; names and the tables of the file take some more.
        return 2**16 + sum(8 * math.prod(variable.shape) + 2**13 for variable in variables)

    def _own_variables(self):
        return [*self._trainable_variables, *self._non_trainable_variables]
