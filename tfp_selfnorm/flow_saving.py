"""How a `FlowModel` is saved and loaded: as a `.keras` file, if a builder made it, and by named weights."""

import math
from contextlib import contextmanager, nullcontext

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.files import is_local, replacing
from tfp_selfnorm.pickling import deep_copy_model, reduce_model
from tfp_selfnorm.serialization import decode, encode
from tfp_selfnorm.tracking import Tracking

_RECIPE = ("builder", "arguments", "inverse_learning", "bits_per_dim", "dtype_policy")
_STATE = ("name", "trainable_variables")


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
          **arguments: for the builder, `name` included: numbers, strings, None; lists, tuples and dicts of
            such; dtypes, shapes, constant arrays and tensors; registered functions; and TFP's elementary
            bijectors and chains of them with constant parameters, such as `images.pixel_sigmoid()`.

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
            "dtype_policy": keras.config.dtype_policy().name,
        }
        return cls.from_config(recipe)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model anew from what `get_config` returns; raises ValueError if it is not such."""
        unknown = set(config) - {*_RECIPE, *_STATE}
        missing = set(_RECIPE) - set(config)
        if unknown or missing or not isinstance(config["arguments"], dict):
            raise ValueError(
                f"The config of a FlowModel must have the entries {_RECIPE}, with the arguments by name, and "
                f"may have {_STATE}; got {config}."
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
        with _dtype_policy(config["dtype_policy"]):
            model = cls(
                builder(**arguments),
                inverse_learning=inverse_learning,
                bits_per_dim=config["bits_per_dim"],
                name=config.get("name"),
            )
        model._recipe = {key: config[key] for key in _RECIPE}
        if "trainable_variables" in config:
            for variable in model._adopted:
                variable.trainable = variable.name in config["trainable_variables"]
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
        trainable = [variable.name for variable in self._adopted if variable.trainable]
        return {**self._recipe, "name": self.name, "trainable_variables": trainable}

    def get_compile_config(self):
        """What `compile` was given, and the names of the variables that the optimizer has a state for."""
        config = super().get_compile_config()
        if config:
            config["max_skipped_updates"] = self._guard.max_skipped
            config["jit_compile"] = self._jit_compile_given
            if self.optimizer.built:
                trainable = [variable.name for variable in self.trainable_variables]
                config["optimized_variables"] = list(self._optimized_variables or trainable)
        return config

    def compile_from_config(self, config):
        """Compiles the model as it was when it was saved, and makes the variables that its optimizer had."""
        config = dict(config)
        optimized = config.pop("optimized_variables", None)
        self.compile(**keras.saving.deserialize_keras_object(config))
        if optimized is not None:
            self._build_optimizer(optimized)

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

    def load_weights(self, filepath, *args, **kwargs):
        """Keras's `load_weights`, by name; without the weights, the state of the optimizer stays as well.

        Raises:
          ValueError: if a variable is missing in the file, or surplus, or of another shape.
        """
        if self.optimizer is not None:
            self._build_optimizer()
        state = [] if self.optimizer is None else self.optimizer.variables
        values = [variable.numpy() for variable in state]
        try:
            return super().load_weights(filepath, *args, **kwargs)
        except Exception:
            for variable, value in zip(state, values, strict=True):
                variable.assign(value)
            raise

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

    def __reduce__(self):
        return reduce_model(self) if self._recipe is None else super().__reduce__()

    def __deepcopy__(self, memo):
        return deep_copy_model(self, memo)

    def _file_size(self):
        """More bytes than the weights and the state of the optimizer take in a file."""
        variables = [*self.variables, *(self.optimizer.variables if self.optimizer is not None else [])]
        sizes = [math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables]
        # Names and the tables of the file take some more.
        return 2**16 + 2**12 * len(variables) + sum(sizes)

    def _own_variables(self):
        passing = [id(variable) for variable in self._guard.passing_state]
        variables = (*self._trainable_variables, *self._non_trainable_variables)
        return [variable for variable in variables if id(variable) not in passing]


@contextmanager
def _dtype_policy(name):
    """Keras's global policy while a network is built."""
    current = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(current)
