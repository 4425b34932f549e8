"""`FlowSaver`, the saving of a flow: as a `.keras` file, if a builder made it, and by named weights.

A new file replaces an earlier one only when it is complete.
"""

import math
import os
import warnings
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from typing import Any, Self

import keras
import tensorflow as tf

from tfp_selfnorm.inverse_learning.base import InverseLearning
from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.model import config_file, copying, weights_file
from tfp_selfnorm.model.serialization import check_bounds, decode, decode_items, encode
from tfp_selfnorm.model.trainer import FlowTrainer
from tfp_selfnorm.utils.files import atomic_path, check_suffix, is_local
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.types import TfpObject

_RANDOM_STATE = "seed_generator_state"


class FlowSaver(FlowTrainer):
    """The saving, loading and copying of a flow; base of `FlowModel`."""

    # The config of a model from `from_builder`, in terms of JSON.
    _recipe: dict[str, Any] | None = None
    _skips_mismatch = False

    @classmethod
    def from_builder(
        cls,
        builder: Callable[..., TfpObject],
        inverse_learning: InverseLearning | None = Tracking(),  # noqa: B008
        bits_per_dim: bool = False,
        **arguments: Any,
    ) -> Self:
        """Makes the model of the flow `builder(**arguments)`, which can be saved whole.

        `model.save("flow.keras")` keeps the builder and its arguments, the arguments of `compile`, the
        weights, and the state of the training. `keras.models.load_model("flow.keras")` gives a model with the
        same densities, which continues the training. The process that loads must import `tfp_selfnorm`
        first. The builder must keep its random numbers in variables.

        Args:
          builder: a builder of this package. Or your own function that returns a TFP distribution and is
            registered with `keras.saving.register_keras_serializable()`. Its arguments must have other names
            than those of this method.
          inverse_learning, bits_per_dim: see `FlowModel`.
          **arguments: arguments of the builder, with `name`. They may be numbers, strings and None; dtypes,
            shapes, constant arrays and tensors; registered functions; TFP's elementary bijectors with
            constant parameters, such as `images.pixel_sigmoid()`, and chains of them; and lists, tuples and
            dicts of all these.

        Raises:
          TypeError: if the builder is not registered, or an argument is of another kind.

        >>> import tfp_selfnorm as sn
        >>> model = sn.FlowModel.from_builder(sn.dense_flow, event_shape=2, num_layers=3, seed=1)
        >>> model.get_config()["builder"]
        {'function': 'tfp_selfnorm>dense_flow'}
        """
        if "name" in arguments and config_file.is_own(builder):
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
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Makes a model from a result of `get_config`; raises ValueError for other configs."""
        check_bounds(config, "config")
        config_file.check(config)
        config = config_file.in_present_words(config)
        # An empty scope would hide the scope of `load_model`.
        scope = keras.saving.custom_object_scope(custom_objects) if custom_objects else nullcontext()
        with scope:
            builder = decode(config["builder"], "builder")
            arguments = decode_items(config["arguments"], "arguments")
            inverse_learning = decode(config["inverse_learning"], "inverse_learning")
        if "name" in arguments and config_file.is_own(builder):
            arguments["name"] = config_file.usable(arguments["name"])
        if not callable(builder):
            raise ValueError(f"`builder` of the saved model is no function: {builder!r}.")
        with config_file.dtype_policy(config["dtype_policy"]):
            flow, name = builder(**arguments), config_file.usable(config.get("name"))
            model = cls(
                flow, inverse_learning=inverse_learning, bits_per_dim=config["bits_per_dim"], name=name
            )
        model._recipe = {key: config[key] for key in config_file.RECIPE}
        if "trainable_variables" in config:
            model._named.train_only(config["trainable_variables"])
        return model

    def get_config(self) -> dict[str, Any]:
        """Returns the builder and its arguments, in terms of JSON.

        Raises:
          ValueError: if the model was made from a distribution, which has no config.
        """
        if self._recipe is None:
            raise ValueError(
                "A FlowModel made from a distribution cannot be saved or cloned whole: make it with "
                "`FlowModel.from_builder`, save its weights with `save_weights` (`save_weights_only=True` in "
                "ModelCheckpoint), or `export` it."
            )
        return {**self._recipe, "name": self.name, "trainable_variables": self._named.trainable_names}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Does the same as Keras's method, for a result of `get_compile_config`."""
        check_bounds(config, "compile_config")
        config = dict(config)
        optimized = config.pop("optimized_variables", None)
        if not (optimized is None or config_file.is_list_of_names(optimized)):
            raise ValueError(f"`optimized_variables` must be a list of names; got {optimized!r}.")
        self.compile(**keras.saving.deserialize_keras_object(config))
        if optimized is not None:
            self._build_optimizer(optimized)

    def save(
        self, filepath: str | os.PathLike, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any
    ) -> None:
        """Saves a model that `from_builder` made; an earlier file stays until the new one is complete.
        With `zipped=False` Keras writes over an earlier folder.
        Args:
          filepath: a path that ends in `.keras`; with `zipped=False` the path of a folder.
          overwrite, zipped, **kwargs: as in Keras.

        Raises:
          OSError: if the folder does not exist, or the disk is full.
          TypeError, ValueError: if the model was made from a distribution, or for another path or suffix.
        """
        self.get_config()
        is_file = zipped is not False and is_local(filepath)
        if is_file:
            check_suffix(filepath, (".keras",), "for weights alone there is `save_weights`")
        if not (overwrite and is_file):
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        with atomic_path(filepath, ".keras", self._file_size()) as partial:
            return super().save(partial, zipped=zipped, **kwargs)

    def save_weights(self, filepath: str | os.PathLike, overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the weights by name; an earlier file stays until the new one is complete.
        With `max_shard_size` Keras writes over earlier shards.
        Args:
          filepath: a path that ends in `.weights.h5`; with `max_shard_size` in `.weights.json`.
          overwrite, **kwargs: as in Keras.

        Raises:
          OSError: if the folder does not exist, or the disk is full.
          TypeError, ValueError: if `filepath` is no path, or has another suffix.
        """
        is_sharded = kwargs.get("max_shard_size") is not None
        check_suffix(filepath, (".weights.json",) if is_sharded else (".weights.h5",))
        if not (overwrite and is_local(filepath) and not kwargs):
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        with atomic_path(filepath, ".weights.h5", self._file_size()) as partial:
            return super().save_weights(partial)

    def load_weights(self, filepath: str | os.PathLike, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights by name; changes nothing if one does not fit.
        The state of another kind of optimizer is left out, with a warning of Keras.

        Args:
          filepath: a `.weights.h5` or a `.keras` file.
          skip_mismatch: whether to load the variables that fit, and to warn of the others by name. If there
            are others, the optimizer keeps its state.
          **kwargs: as in Keras.

        Raises:
          ValueError: if a variable is missing in the file or surplus; if it has another shape or kind, or
            values that are not finite or out of range; or if `filepath` has another suffix.

        Warns:
          UserWarning: if floats are rounded, for example from a float64 file to a float32 flow.
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

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Puts each variable into the store under its name."""
        self._refresh.before_files()
        for name, variable in self._kept_variables().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Takes each variable from the store by its name; raises and warns as `load_weights` does."""
        own = self._kept_variables()
        values, problems = weights_file.read_named(store, own)
        # Files of version 0.1.0 lack the states of random numbers.
        problems = {n: p for n, p in problems.items() if n in store or not n.endswith(_RANDOM_STATE)}
        # The weights of a layer of another model are only a part of a file.
        file = None if getattr(store, "_h5_entry_path", "") else getattr(store, "h5_file", None)
        if file is not None and not problems:
            problems = weights_file.optimizer_problems(file, self.optimizer)
            problems |= weights_file.size_problems(file, self.variables)
        if problems:
            if file is not None:
                # Else Keras would read the state of the optimizer next.
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

    def __reduce__(self) -> Any:
        return copying.reduce_model(self) if self._recipe is None else super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copying.deep_copy_model(self, memo)

    def _kept_variables(self):
        """The variables that a file keeps, by their names in it."""
        return self._named.without(self._guard.transient_state)

    def _report_mismatch(self, problems):
        message = "; ".join(f"`{name}` {problem}" for name, problem in problems.items())
        if not self._skips_mismatch:
            raise ValueError(f"The weights do not fit this model, which was not changed: {message}.")
        warnings.warn(
            f"Some weights were skipped, and the optimizer keeps its state: {message}.", stacklevel=3
        )

    def _file_size(self):
        """An upper bound of the bytes of the weights and of the state of the optimizer in a file."""
        variables = [*self.variables, *(self.optimizer.variables if self.optimizer is not None else [])]
        sizes = [math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables]
        # Names and the tables of the file need some more.
        return 2**16 + 2**12 * len(variables) + sum(sizes)
