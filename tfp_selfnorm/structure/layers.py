"""Walks through nested TFP objects: finds the self-normalizing layers in them and replaces them."""

from collections.abc import Callable

import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.self_norm import SelfNorm


def exact(distribution_or_bijector):
    """The same distribution or bijector with exact gradients and an exact `forward` in every layer.

    Shares the variables, so it stays the same model: sampling from it inverts the very map that
    `log_prob` scores, at O(D^3), where the original takes the learned inverse, at O(D^2). Layers that a
    Python function makes at each call are out of reach and stay as they are.

    Raises:
      TypeError: if the argument is neither a distribution nor a bijector of TFP.

    >>> layer = SelfNormDense.trainable(3)
    >>> exact(layer).inversion, exact(layer).inverse_kernel is layer.inverse_kernel
    ('exact', True)
    """
    _check_object(distribution_or_bijector)
    return _rebuild(
        distribution_or_bijector, lambda layer: layer.copy(gradient="exact", inversion="exact"), {}
    )


def at_inference(distribution):
    """The same distribution with each `tfb.BatchNormalization` in it by its moving statistics.

    By those of the batch, as in training, the density of an event would depend on the other events, and each
    call would change the moving statistics. Shares the variables; the very object where nothing changed.
    """

    def replace(bijector):
        # The layer is a parameter only where it was given.
        return bijector.copy(batchnorm_layer=bijector.batchnorm, training=False)

    return _rebuild(distribution, replace, {}, tfp.bijectors.BatchNormalization)


def bijectors_of(kind: type, distribution_or_bijector, name="distribution_or_bijector") -> list:
    """The bijectors of a class anywhere in it, each object once, in the order of the constructors.

    Args:
      kind: the class.
      distribution_or_bijector: where to look.
      name: what errors call it.

    Raises:
      TypeError: if the argument is neither a distribution nor a bijector of TFP.
    """
    _check_object(distribution_or_bijector, name)
    found, done = [], {}

    def collect(bijector):
        found.append(bijector)
        for child in (bijector.parameters or {}).values():
            _rebuild(child, collect, done, kind)
        return bijector

    _rebuild(distribution_or_bijector, collect, done, kind)
    return found


def self_norm_layers(distribution_or_bijector) -> list[SelfNorm]:
    """The self-normalizing layers anywhere in it, each once, in the order of the constructors.

    Raises:
      TypeError: if the argument is neither a distribution nor a bijector of TFP.

    >>> [layer.name for layer in self_norm_layers(tfb.Chain([tfb.Exp(), SelfNormDense.trainable(2)]))]
    ['self_norm_dense']
    """
    layers = {}
    for layer in bijectors_of(SelfNorm, distribution_or_bijector):
        # Copies of a layer share its variables, and count once.
        layers.setdefault(layer.identity, layer)
    return list(layers.values())


def _check_object(value, name="distribution_or_bijector"):
    if not _is_tfp_object(value):
        raise TypeError(f"`{name}` must be a TFP distribution or bijector; got {type(value).__name__}.")


def _is_tfp_object(value):
    return isinstance(value, (tfp.distributions.Distribution, tfp.bijectors.Bijector))


def _rebuild(value, replace: Callable, done: dict, kind: type = SelfNorm):
    """`value` with `replace` applied to its bijectors of a kind; the very object where nothing changed.

    `done` maps the id of each object seen to it (so that the id stays taken) and its replacement.
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
        new = [_rebuild(child, replace, done, kind) for child in value]
        if all(child is old for child, old in zip(new, value, strict=True)):
            return value
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    return value
