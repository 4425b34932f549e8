"""Walks through nested TFP objects: finds the self-normalizing layers in them and replaces them."""

from collections.abc import Callable
from typing import Any

import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.learned_inverse import LearnedInverse
from tfp_selfnorm.bijectors.self_normalizing import SelfNormalizing
from tfp_selfnorm.utils.checks import kind_of
from tfp_selfnorm.utils.types import TfpObject


def exact(distribution_or_bijector: TfpObject) -> TfpObject:
    """A copy of a distribution or bijector with exact gradients and an exact `forward` in its layers.

    The copy shares the variables, so it is the same model. Its samples are made by the exact inverse of the
    map in `log_prob`, at O(D^3). The original uses the learned inverse, at O(D^2). Layers that a Python
    function makes or holds are not found and do not change.

    Raises:
      TypeError: if the argument is neither a distribution nor a bijector of TFP.

    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormDense.trainable(3)
    >>> sn.exact(layer).inversion, sn.exact(layer).inverse_kernel is layer.inverse_kernel
    ('exact', True)
    """
    _check_object(distribution_or_bijector)
    return _rebuild(
        distribution_or_bijector, lambda layer: layer.copy(gradient="exact", inversion="exact"), {}
    )


def solving_matrices(distribution: TfpObject) -> TfpObject:
    """A copy of a distribution whose layers of matrix kernels map latent to data by a solve with W.

    The copy shares the variables, and the other layers.
    """

    def replace(layer):
        solves = layer.has_matrix_kernels and layer.inversion == "learned"
        return layer.copy(inversion="exact") if solves else layer

    return _rebuild(distribution, replace, {})


def at_inference(distribution: TfpObject) -> TfpObject:
    """A copy of the distribution whose `tfb.BatchNormalization`s use their moving statistics.

    With the statistics of the batch, as in training, the density of an event would depend on the other
    events, and each call would change the moving statistics. The copy shares the variables. Without a
    `tfb.BatchNormalization` it is the distribution itself.
    """

    def replace(bijector):
        # The parameters have the layer only if the user gave one.
        return bijector.copy(batchnorm_layer=bijector.batchnorm, training=False)

    return _rebuild(distribution, replace, {}, tfp.bijectors.BatchNormalization)


def with_surrogate_log_dets(distribution: TfpObject) -> TfpObject:
    """A copy of the distribution whose pairs of networks have held log-dets in a `training_scope`.

    Those with the exact gradient would compute them. The copy shares the variables.
    """
    _check_object(distribution, "distribution")
    return _rebuild(distribution, lambda layer: layer.copy(gradient="self_norm"), {}, LearnedInverse)


def sampling_by_decoders(distribution: TfpObject) -> TfpObject:
    """A copy of the distribution whose pairs of networks map latent to data by their decoders alone.

    An exact solve is no pass that a scope records. The copy shares the variables.
    """
    return _rebuild(distribution, lambda layer: layer.copy(inversion="learned"), {}, LearnedInverse)


def bijectors_of(
    kind: type | tuple[type, ...], distribution_or_bijector: TfpObject, name: str = "distribution_or_bijector"
) -> list:
    """The bijectors of a class anywhere in an object, each once, in the order of the constructors.

    Args:
      kind: the class, or a tuple of classes.
      distribution_or_bijector: the object to search.
      name: name of the object in errors.

    Raises:
      TypeError: if the argument is neither a distribution nor a bijector of TFP.
    """
    _check_object(distribution_or_bijector, name)
    found: list = []
    done: dict = {}

    def collect(bijector):
        found.append(bijector)
        for child in (bijector.parameters or {}).values():
            _rebuild(child, collect, done, kind)
        return bijector

    _rebuild(distribution_or_bijector, collect, done, kind)
    return found


def self_norm_layers(distribution_or_bijector: TfpObject) -> list[SelfNormalizing]:
    """The self-normalizing layers anywhere in an object, each once, in the order of the constructors.

    Raises:
      TypeError: if the argument is neither a distribution nor a bijector of TFP.

    >>> import tensorflow_probability as tfp
    >>> import tfp_selfnorm as sn
    >>> chain = tfp.bijectors.Chain([tfp.bijectors.Exp(), sn.SelfNormDense.trainable(2)])
    >>> [layer.name for layer in sn.self_norm_layers(chain)]
    ['self_norm_dense']
    """
    layers: dict[Any, SelfNormalizing] = {}
    for layer in bijectors_of(SelfNormalizing, distribution_or_bijector):
        # A layer and its copies share the variables, and count once.
        layers.setdefault(layer.identity, layer)
    return list(layers.values())


def _check_object(value, name="distribution_or_bijector"):
    if not _is_tfp_object(value):
        raise TypeError(f"`{name}` must be a TFP distribution or bijector; got {kind_of(value)}.")


def _is_tfp_object(value):
    return isinstance(value, (tfp.distributions.Distribution, tfp.bijectors.Bijector))


def _rebuild(value: Any, replace: Callable, done: dict, kind: Any = SelfNormalizing) -> Any:
    """`value` with `replace` applied to its bijectors of a class; `value` itself if nothing changed.

    `done` maps the ids of the objects to pairs: the object, which keeps its id taken, and its replacement.
    """
    if isinstance(value, kind):
        if id(value) not in done:
            done[id(value)] = value, replace(value)
        return done[id(value)][1]
    if _is_tfp_object(value):
        if id(value) not in done:
            old = dict(value.parameters or {})
            new = {name: _rebuild(child, replace, done, kind) for name, child in old.items()}
            changed = {name: child for name, child in new.items() if child is not old[name]}
            done[id(value)] = value, value.copy(**changed) if changed else value
        return done[id(value)][1]
    if isinstance(value, dict):
        new = {key: _rebuild(child, replace, done, kind) for key, child in value.items()}
        return type(value)(new) if any(new[key] is not value[key] for key in value) else value
    if isinstance(value, (list, tuple)):
        children = [_rebuild(child, replace, done, kind) for child in value]
        if all(child is old for child, old in zip(children, value, strict=True)):
            return value
        return type(value)(*children) if hasattr(value, "_fields") else type(value)(children)
    return value
