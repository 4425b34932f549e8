"""Writes a flow as a SavedModel that needs neither this package nor TFP."""

import contextlib
import os
import pathlib

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.initialization import check_adapted
from tfp_selfnorm.inverse_learning.known_log_dets import known_log_dets
from tfp_selfnorm.structure.layers import bijectors_of, self_norm_layers
from tfp_selfnorm.utils.checks import has_latent
from tfp_selfnorm.utils.files import atomic_path
from tfp_selfnorm.utils.names import check_keras_name, check_optional_name


def export_flow(model: keras.Model, filepath: str | os.PathLike) -> None:
    """Exports a `FlowModel`; see `FlowModel.export`."""
    folder = pathlib.Path(filepath)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`filepath` must be an empty or absent folder; {str(folder)!r} is neither.")
    check_adapted(model.distribution)
    _check_names(model)
    model._refresh.before_files()
    # Measures R, if it is not known: in the graphs of the endpoints it cannot be.
    model._refresh.inverses.are_exact()
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, signature) in _endpoints(model).items():
        archive.add_endpoint(name, function, signature)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as partial:
        archive.write_out(str(partial), verbose=False)


def _check_names(model):
    """Raises ValueError if TFP objects or variables have names that a graph cannot have."""
    objects = [model.distribution, *bijectors_of(tfp.bijectors.Bijector, model.distribution)]
    for value in objects:
        name, kind = (value.parameters or {}).get("name"), type(value).__name__.lstrip("_")
        check_optional_name(name, f" of a {kind}")
    for variable in model.variables:
        check_keras_name(variable.value.name.rpartition(":")[0], f" of the variable `{variable.name}`")


def _endpoints(model):
    """Functions and their signatures, by name; the first is the default of TensorFlow Serving."""
    distribution = model.distribution
    events = tf.TensorSpec([None, *distribution.event_shape], distribution.dtype, "x")
    count, seed = tf.TensorSpec([], tf.int32, "n"), tf.TensorSpec([2], tf.int32, "seed")
    # The condition is the last argument of each function.
    given = [] if model.conditions is None else [model.conditions.signature()]
    endpoints = {"log_prob": (_scorer(model), [events, *given])}
    has_learned = any(layer.inversion == "learned" for layer in self_norm_layers(distribution))
    kinds = {"": False, "_exact": True} if has_learned else {"": False}
    for suffix, exact in kinds.items():
        endpoints[f"sample{suffix}"] = _sampler(model, exact), [count, seed, *given]
    if has_latent(distribution):
        base = distribution.distribution
        latent = tf.TensorSpec([None, *base.event_shape], base.dtype, "z")
        endpoints["encode"] = model.encode, [events, *given]
        for suffix, exact in kinds.items():
            endpoints[f"decode{suffix}"] = _decoder(model, exact), [latent, *given]
    return endpoints


def _scorer(model):
    """The density, with the log-dets of the exported weights as constants. Their gradients are exact."""
    log_dets: dict = {}
    # With a singular kernel the exported function computes each log-det, and so reports it.
    with contextlib.suppress(ValueError):
        log_dets = {layer: value.numpy() for layer, value in model._log_dets.read().items()}

    def log_prob(*arguments):
        with known_log_dets(log_dets):
            return model.log_prob(*arguments)

    return log_prob


def _sampler(model, exact):
    # `sample` of the models checks `n`, which has no value yet.
    return lambda n, seed, condition=None: model._draw([n], seed, exact, condition)


def _decoder(model, exact):
    if model.conditions is None:
        return lambda z: model.decode(z, exact)
    return lambda z, condition: model.decode(z, condition, exact)
