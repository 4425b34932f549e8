"""How a `FlowModel` is saved and loaded: as a `.keras` file, if a builder made it, and by named weights."""

import math
import os
import warnings
from contextlib import contextmanager, nullcontext

import keras
import tensorflow as tf

from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.model import weights_file
from tfp_selfnorm.model.copying import deep_copy_model, reduce_model
from tfp_selfnorm.model.serialization import check_bounds, decode, encode
from tfp_selfnorm.utils.files import check_suffix, is_local, replacing
from tfp_selfnorm.utils.names import check_keras_name, check_optional_name, usable_name

_RECIPE = ("builder", "arguments", "inverse_learning", "bits_per_dim", "dtype_policy")
_RANDOM_STATE = "seed_generator_state"
_STATE = ("name", "trainable_variables")


class FlowSaving:
    """Saving and loading; files take the place of earlier ones only once they are written whole."""

    # What `from_builder` was given, as JSON.
    _recipe = None
    _skips_mismatch = False

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
        if "name" in arguments and _is_own(builder):
            check_optional_name(arguments["name"])
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
        check_bounds(config, "config")
        _check_config(config)
        # An empty scope would hide the one that `load_model` has opened.
        scope = keras.saving.custom_object_scope(custom_objects) if custom_objects else nullcontext()
        with scope:
            builder = decode(config["builder"], "builder")
            arguments = {
                name: decode(value, f"arguments.{name}") for name, value in config["arguments"].items()
            }
            inverse_learning = decode(config["inverse_learning"], "inverse_learning")
        if "name" in arguments and _is_own(builder):
            arguments["name"] = _usable(arguments["name"])
        if not callable(builder):
            raise ValueError(f"`builder` of the saved model is no function: {builder!r}.")
        with _dtype_policy(config["dtype_policy"]):
            model = cls(
                builder(**arguments),
                inverse_learning=inverse_learning,
                bits_per_dim=config["bits_per_dim"],
                name=_usable(config.get("name")),
            )
        model._recipe = {key: config[key] for key in _RECIPE}
        if "trainable_variables" in config:
            for name, variable in model._adopted.items():
                variable.trainable = name in config["trainable_variables"]
        return model

    def get_config(self):
        """How the model was built, in terms of JSON.

        Raises:
          ValueError: if it was made from a distribution, which has no config.
        """
        if self._recipe is None:
            raise ValueError(
                "A FlowModel made from a distribution cannot be saved or cloned whole: make it with "
                "`FlowModel.from_builder`, save its weights with `save_weights` (`save_weights_only=True` in "
                "ModelCheckpoint), or `export` it."
            )
        trainable = [name for name, variable in self._adopted.items() if variable.trainable]
        return {**self._recipe, "name": self.name, "trainable_variables": trainable}

    def get_compile_config(self):
        """What `compile` was given, and the names of the variables that the optimizer has a state for."""
        config = super().get_compile_config()
        if config:
            config["max_skipped_updates"] = self._guard.max_skipped
            config["jit_compile"] = self._jit_compile_given
            if self.optimizer.built:
                names = self._optimized_variables or self._names(self.trainable_variables)
                config["optimized_variables"] = list(names)
        return config

    def compile_from_config(self, config):
        """Compiles the model as it was when it was saved, and makes the variables that its optimizer had."""
        check_bounds(config, "compile_config")
        config = dict(config)
        optimized = config.pop("optimized_variables", None)
        if not (optimized is None or _is_list_of_names(optimized)):
            raise ValueError(f"`optimized_variables` must be a list of names; got {optimized!r}.")
        self.compile(**keras.saving.deserialize_keras_object(config))
        if optimized is not None:
            self._build_optimizer(optimized)

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Keras's `save`, for models from `from_builder`; an earlier file stays until the new one is whole.

        Args:
          filepath: a path that ends in `.keras`; with `zipped=False` that of a folder.
          overwrite: as Keras's.
          zipped: as Keras's.
          **kwargs: as Keras's.

        Raises:
          FileNotFoundError: if the folder does not exist.
          OSError: if the disk is full.
          TypeError: if `filepath` is no path.
          ValueError: if the model was made from a distribution, or `filepath` has another suffix.
        """
        self.get_config()
        is_file = zipped is not False and is_local(filepath)
        if is_file:
            check_suffix(filepath, (".keras",), "for weights alone there is `save_weights`")
        if not (overwrite and is_file):
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        with replacing(filepath, ".keras", self._file_size()) as partial:
            return super().save(partial, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Keras's `save_weights`, by name; an earlier file stays until the new one is whole.

        Args:
          filepath: a path that ends in `.weights.h5`; with `max_shard_size` in `.weights.json`.
          overwrite: as Keras's.
          **kwargs: as Keras's.

        Raises:
          FileNotFoundError: if the folder does not exist.
          OSError: if the disk is full.
          TypeError: if `filepath` is no path.
          ValueError: if `filepath` has another suffix.
        """
        is_sharded = kwargs.get("max_shard_size") is not None
        check_suffix(filepath, (".weights.json",) if is_sharded else (".weights.h5",))
        if not (overwrite and is_local(filepath) and not kwargs):
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        with replacing(filepath, ".weights.h5", self._file_size()) as partial:
            return super().save_weights(partial)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Keras's `load_weights`, by name; either all fits, or nothing is changed.

        Args:
          filepath: a `.weights.h5` or a `.keras` file.
          skip_mismatch: whether to load the variables that fit, and to warn of the others, by name. The
            optimizer then keeps its own state, if there are others.
          **kwargs: as Keras's.

        Raises:
          ValueError: if a variable is missing in the file, or surplus, of another shape or kind, or has
            values that are not finite or out of range; or if `filepath` has another suffix.

        Warns:
          UserWarning: if floats are rounded, such as those of a float64 file in a float32 flow.
        """
        if not os.path.isdir(filepath):
            check_suffix(filepath, (".weights.h5", ".keras", ".weights.json"))
        if self.optimizer is not None:
            self._build_optimizer()
        self._skips_mismatch = skip_mismatch
        try:
            return super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        finally:
            self._skips_mismatch = False

    def save_own_variables(self, store):
        """Puts each variable into the store under its name."""
        self._refresh.before_files()
        for name, variable in self._own_variables().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store):
        """Takes each variable from the store, by its name; raises and warns as `load_weights` does."""
        own = self._own_variables()
        values, problems = weights_file.read_named(store, own)
        # Files of version 0.1.0 lack the states of random numbers.
        problems = {n: p for n, p in problems.items() if n in store or not n.endswith(_RANDOM_STATE)}
        # As a layer of another model this one has a part of the file.
        file = None if getattr(store, "_h5_entry_path", "") else getattr(store, "h5_file", None)
        if file is not None and not problems:
            problems = weights_file.optimizer_problems(file, self.optimizer)
            problems |= weights_file.size_problems(file, self.variables)
        if problems:
            if file is not None:
                # Keras would go on to the state of the optimizer.
                file.close()
            self._report_mismatch(problems)
        rounded = [f"`{name}`" for name in values if weights_file.loses_digits(values[name], own[name])]
        if rounded:
            warnings.warn(
                f"The file has floats of more digits than the variables here, which round them: "
                f"{', '.join(rounded)}.",
                stacklevel=2,
            )
        for name, value in values.items():
            own[name].assign(value)
        self._refresh.take_weights()

    def _report_mismatch(self, problems):
        message = "; ".join(f"`{name}` {problem}" for name, problem in problems.items())
        if not self._skips_mismatch:
            raise ValueError(f"The weights do not fit this model, which stays as it was: {message}.")
        warnings.warn(
            f"Some weights were skipped, and the optimizer keeps its state: {message}.", stacklevel=3
        )

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
        """All that a file keeps, by the names in it."""
        passing = [id(variable) for variable in self._guard.passing_state]
        return {name: v for name, v in self._named.items() if id(v) not in passing}


def _check_config(config):
    """Raises ValueError unless it has the entries of a config, each of its kind."""
    unknown = set(config) - {*_RECIPE, *_STATE}
    missing = set(_RECIPE) - set(config)
    if unknown or missing or not isinstance(config["arguments"], dict):
        raise ValueError(
            f"The config of a FlowModel must have the entries {_RECIPE}, with the arguments by name, and "
            f"may have {_STATE}; got {config}."
        )
    expected = {
        "bits_per_dim": ("True or False", lambda value: isinstance(value, bool)),
        "dtype_policy": ("the name of a dtype policy", lambda value: isinstance(value, str)),
        "name": ("a name or None", lambda value: value is None or isinstance(value, str)),
        "trainable_variables": ("a list of names", _is_list_of_names),
    }
    for entry, (kind, is_right) in expected.items():
        if entry in config and not is_right(config[entry]):
            raise ValueError(f"`{entry}` of the saved model must be {kind}; got {config[entry]!r}.")


def _is_own(builder):
    return getattr(builder, "__module__", "").startswith("tfp_selfnorm.")


def _usable(name):
    """The name from a file, which may be of a version that did not check names."""
    try:
        check_keras_name(name)
    except ValueError:
        usable = usable_name(name)
        warnings.warn(
            f"TensorFlow takes no name such as {name!r}; it is changed to {usable!r}.", stacklevel=4
        )
        return usable
    return name


def _is_list_of_names(value):
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


@contextmanager
def _dtype_policy(name):
    """Keras's global policy while a network is built."""
    current = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(current)
