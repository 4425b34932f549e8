"""Finds every layer and variable that a distribution depends on, and wraps variables for Keras."""

import keras
import tensorflow as tf

from tfp_selfnorm.bijectors.act_norm import act_norm_mode
from tfp_selfnorm.training_scope import training_scope
from tfp_selfnorm.tree import self_norm_layers
from tfp_selfnorm.variable_names import name_variables


def reachable(distribution) -> tuple[list, list]:
    """The self-normalizing layers and the variables that the distribution depends on, each once.

    That is what it holds and what its `log_prob` touches: networks in closures and templates, and layers
    made by them, which TFP does not see, are found by calling it once.

    Raises:
      ValueError: if a variable belongs to another distribution strategy than the current one, or a layer
        that only a function knows learns its inverse.
    """
    with act_norm_mode("ignore"):
        # Networks that make their variables at the first call make them here.
        sample = distribution.sample(1, seed=0)
        with tf.GradientTape() as tape, training_scope(None) as scope:
            distribution.log_prob(tf.identity(sample))
    held = self_norm_layers(distribution)
    layers = {layer.key: layer for layer in (*held, *scope.layers)}
    for layer in layers.values():
        _check_hidden(layer, is_hidden=all(layer.key != other.key for other in held))
    for record in scope.records:
        _check_direction(record)
    variables = {v.ref(): v for v in distribution.variables}
    # Under a distribution strategy the tape names the copies on the devices.
    local = tf.distribute.get_strategy().experimental_local_results
    copies = {copy.ref() for v in variables.values() for copy in local(v)}
    variables |= {v.ref(): v for v in tape.watched_variables() if v.ref() not in copies}
    for variable in variables.values():
        _check_strategy(variable)
    return list(layers.values()), list(variables.values())


def adopt(variables, distribution, frozen=()) -> list[keras.Variable]:
    """Wraps each `tf.Variable` for Keras, sharing its storage, in the order of their names.

    Args:
      variables: the variables.
      distribution: what they were found in, which names them; see `name_variables`.
      frozen: those that Keras is not to train, although they are trainable.
    """
    frozen_references = {variable.ref() for variable in frozen}
    return [
        keras.Variable(
            variable, trainable=variable.trainable and variable.ref() not in frozen_references, name=name
        )
        for name, variable in name_variables(variables, distribution).items()
    ]


def _check_direction(record):
    """Inside tfb.Invert the roles are exchanged: R would be scored, and W the one that learns to follow."""
    if record.direction == "forward":
        raise ValueError(
            f"`{record.layer.name}` maps data to latent by its learned inverse, `forward_kernel`, as it does "
            "inside tfb.Invert. Exchange its two kernels instead, or make it with `inversion='exact'`."
        )


def _check_hidden(layer, is_hidden):
    """Bijectors such as tfb.RealNVP ask for log-dets at new tensors, in the direction from latent to data."""
    has_one_log_det = layer.inversion == "exact" and (layer.gradient != "self_norm" or layer.mixture == 1.0)
    if is_hidden and not has_one_log_det:
        raise ValueError(
            f"`{layer.name}` is made or held by a function, such as the `bijector_fn` of tfb.RealNVP, which "
            "may ask for the log-det of its learned inverse in place of its own; make it with "
            "`inversion='exact', mixture=1.0`."
        )


def _check_strategy(variable):
    strategy = tf.distribute.get_strategy()
    if not strategy.extended.variable_created_in_scope(variable):
        raise ValueError(
            f"Variable `{variable.name}` was not made under {type(strategy).__name__}, the current "
            "distribution strategy; make the distribution and the FlowModel under the same "
            "`with strategy.scope():`."
        )
