"""Looks at what a file of weights declares before it is read, and at the values before they are used."""

import math

import h5py
import numpy as np
import tensorflow as tf

# What a file holds besides weights, such as the states of metrics, is smaller than this or than a variable.
_SMALL = 2**20


def read_named(store, variables: dict) -> tuple[dict, dict]:
    """The values of variables from a store of Keras, or a dict, by name, and the problems of those without.

    Args:
      store: what Keras gives to `load_own_variables`.
      variables: Keras variables by name.
    """
    saved = list(store.keys())
    problems = {name: "is missing in the file" for name in variables if name not in saved}
    problems |= {name: "is surplus in the file" for name in saved if name not in variables}
    values = {}
    for name in [name for name in variables if name not in problems]:
        # What Keras's store returns, it has read. Of several files it has one open.
        group = getattr(store, "_h5_entry_group", store)
        values[name], problem = _read(group if name in group else store, name, variables[name])
        if problem is not None:
            problems[name] = problem
    return {name: values[name] for name in variables if name not in problems}, problems


def loses_digits(value, variable) -> bool:
    """Whether the variable is of floats of fewer bytes than the value from a file."""
    return _kind(_dtype(value)) == "floating" and _dtype(value).size > _dtype(variable).size


def optimizer_problems(file, optimizer) -> dict:
    """Problems of the state that an optimizer would read from an HDF5 file, by names of its variables."""
    problems, path = {}, "optimizer"
    while optimizer is not None:
        group, variables = file.get(f"{path}/vars", {}), optimizer.variables
        # Keras leaves out a state of another number of variables, with a warning.
        for i, variable in enumerate(variables if len(group) == len(variables) else ()):
            _, problem = _read(group, str(i), variable)
            if problem is not None:
                problems[f"{path}/{variable.name}"] = problem
        optimizer, path = getattr(optimizer, "inner_optimizer", None), f"{path}/inner_optimizer"
    return problems


def size_problems(file, variables) -> dict:
    """Datasets, beside weights and the state of an optimizer, that are larger than any of the variables."""
    limit, problems = max([_SMALL, *(math.prod(variable.shape) for variable in variables)]), {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith(("vars/", "optimizer/")):
            sizes = [math.prod(shape) for shape in (item.shape, item.chunks) if shape is not None]
            if max(sizes, default=0) > limit:
                problems[name] = f"has shape {item.shape} in the file, larger than any variable here"

    file.visititems(visit)
    return problems


def _read(group, name, variable):
    """The value of the name, and why it is none of the variable or `None`."""
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
    """Why a dataset, or an array, is no value of a variable, by its shape and its dtype alone."""
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
    """Why an array of the right kind and shape is no value of a variable."""
    dtype = _dtype(variable).as_numpy_dtype
    with np.errstate(over="ignore", invalid="ignore"):
        cast = value.astype(dtype, copy=False)
    if _kind(_dtype(variable)) != "floating":
        bad = cast != value
    else:
        bad = ~np.isfinite(cast)
        if bad.any():
            # Such as the mask of a distribution, which is so from its start.
            bad &= cast != variable.numpy()
    if not bad.any():
        return None
    index = tuple(map(int, np.argwhere(bad)[0]))
    if value.dtype.kind in "iub" or np.isfinite(value[index]):
        return f"has the value {value[index]} at {index}, beyond the range of {_dtype(variable).name}"
    return f"has the value {value[index]} at {index}"


def _dtype(value):
    """A TensorFlow dtype; that of bytes and objects is a string."""
    # Keras marks what HDF5 has no dtype for.
    marked = getattr(value, "attrs", {}).get("dtype")
    try:
        return tf.as_dtype("bfloat16" if isinstance(marked, str) and marked == "bfloat16" else value.dtype)
    except TypeError:
        return tf.string


def _kind(dtype):
    kinds = {"bool": dtype.is_bool, "integer": dtype.is_integer, "floating": dtype.is_floating}
    return next((kind for kind, is_it in kinds.items() if is_it), dtype.name)
