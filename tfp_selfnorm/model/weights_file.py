"""Checks the declarations of a file of weights before it is read, and the values before they are used."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

# Other data of a file, such as the states of metrics, have fewer elements than this or than a variable.
_SMALL = 2**20


def read_named(
    store: Mapping[str, Any], variables: dict[str, keras.Variable]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the values of variables.

    Args:
      store: the argument of Keras for `load_own_variables`, or a dict.
      variables: Keras variables by name.

    Returns:
      The values by name, and the problems of the other variables by name.
    """
    saved = list(store.keys())
    problems = {name: "is missing in the file" for name in variables if name not in saved}
    problems |= {name: "is surplus in the file" for name in saved if name not in variables}
    values = {}
    for name in [name for name in variables if name not in problems]:
        # The store of Keras reads a whole value at once. If it has several files, one of them is open.
        group = getattr(store, "_h5_entry_group", store)
        values[name], problem = _read(group if name in group else store, name, variables[name])
        if problem is not None:
            problems[name] = problem
    return {name: values[name] for name in variables if name not in problems}, problems


def loses_digits(value: np.ndarray, variable: keras.Variable) -> bool:
    """Whether the floats of a variable have fewer bytes than the floats of a value from a file."""
    return _kind(_dtype(value)) == "floating" and _dtype(value).size > _dtype(variable).size


def optimizer_problems(file: h5py.File, optimizer: keras.optimizers.Optimizer | None) -> dict[str, str]:
    """Returns problems of the state of an optimizer in an HDF5 file, by the names of its variables."""
    problems: dict[str, str] = {}
    path = "optimizer"
    while optimizer is not None:
        group, variables = file.get(f"{path}/vars", {}), optimizer.variables
        # Keras skips a state with another number of variables, with a warning.
        for i, variable in enumerate(variables if len(group) == len(variables) else ()):
            _, problem = _read(group, str(i), variable)
            if problem is not None:
                problems[f"{path}/{variable.name}"] = problem
        optimizer, path = getattr(optimizer, "inner_optimizer", None), f"{path}/inner_optimizer"
    return problems


def size_problems(file: h5py.File, variables: Sequence[keras.Variable]) -> dict[str, str]:
    """Returns problems of other datasets that are larger than each variable, by name."""
    limit = max([_SMALL, *(math.prod(variable.shape) for variable in variables)])
    problems: dict[str, str] = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith(("vars/", "optimizer/")):
            sizes = [math.prod(shape) for shape in (item.shape, item.chunks) if shape is not None]
            if max(sizes, default=0) > limit:
                problems[name] = f"has shape {item.shape} in the file, larger than any variable here"

    file.visititems(visit)
    return problems


def _read(group, name, variable):
    """The value of the name, and its problem as a value of the variable, or `None`."""
    if isinstance(group, h5py.Group):
        # A link may lead to another file.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return None, "is missing in the file"
        dataset = group[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            return None, "is no dataset of the file"
    else:
        dataset = np.asarray(group[name])
    problem = _declared_problem(dataset, variable)
    if problem is not None:
        return None, problem
    value = np.asarray(dataset)
    if _dtype(dataset) == tf.bfloat16:
        value = value.view(tf.bfloat16.as_numpy_dtype)
    return value, _value_problem(value, variable)


def _declared_problem(dataset, variable):
    """The problem of a dataset or array as a value of a variable, by its shape and dtype alone; or `None`."""
    shape, expected = dataset.shape, tuple(variable.shape)
    if shape != expected:
        return f"has shape {shape} in the file and {expected} here"
    if _kind(_dtype(dataset)) != _kind(_dtype(variable)):
        return f"has dtype {_dtype(dataset).name} in the file and {_dtype(variable).name} here"
    # HDF5 reads whole chunks.
    chunks = getattr(dataset, "chunks", None) or ()
    if math.prod(chunks) > max(math.prod(shape), _SMALL):
        return f"has shape {shape} in the file, in pieces of {chunks}"
    return None


def _value_problem(value, variable):
    """The problem of an array of the right kind and shape as a value of a variable; or `None`."""
    dtype = _dtype(variable).as_numpy_dtype
    with np.errstate(over="ignore", invalid="ignore"):
        cast = value.astype(dtype, copy=False)
    if _kind(_dtype(variable)) != "floating":
        bad = cast != value
    else:
        bad = ~np.isfinite(cast)
        if bad.any():
            # For example the mask of a distribution, which is not finite from the beginning.
            bad &= cast != variable.numpy()
    if not bad.any():
        return None
    index = tuple(map(int, np.argwhere(bad)[0]))
    if value.dtype.kind in "iub" or np.isfinite(value[index]):
        return f"has the value {value[index]} at {index}, beyond the range of {_dtype(variable).name}"
    return f"has the value {value[index]} at {index}"


def _dtype(value):
    """A dtype of TensorFlow; for bytes and objects it is string."""
    # Keras marks the dtypes that HDF5 does not have.
    marked = getattr(value, "attrs", {}).get("dtype")
    try:
        return tf.as_dtype("bfloat16" if isinstance(marked, str) and marked == "bfloat16" else value.dtype)
    except TypeError:
        return tf.string


def _kind(dtype):
    kinds = {"bool": dtype.is_bool, "integer": dtype.is_integer, "floating": dtype.is_floating}
    return next((kind for kind, is_it in kinds.items() if is_it), dtype.name)
