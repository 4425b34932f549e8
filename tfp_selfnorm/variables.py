"""Finds every variable that a distribution depends on, and wraps it for Keras."""

import keras
import tensorflow as tf

from tfp_selfnorm.training_scope import training_scope


def adopt_variables(distribution, frozen=()) -> list[keras.Variable]:
    """Wraps every `tf.Variable` reachable from the distribution; the wrapper shares its storage.

    Reachable means held by the distribution, or touched by its `log_prob`: networks in closures and
    templates, which TFP does not see, are found by calling it once.

    Args:
      distribution: a TFP distribution.
      frozen: variables that Keras is not to train, although they are trainable.

    Returns:
      A `keras.Variable` for each, named after the variable, without duplicates.

    Raises:
      ValueError: if a variable belongs to another distribution strategy than the current one.
    """
    frozen_references = {variable.ref() for variable in frozen}
    adopted, names = [], set()
    for variable in _reachable_variables(distribution):
        name = _unused_name(variable.name.split(":")[0].replace("/", "."), names)
        names.add(name)
        trainable = variable.trainable and variable.ref() not in frozen_references
        adopted.append(keras.Variable(variable, trainable=trainable, name=name))
    return adopted


def _reachable_variables(distribution):
    # Networks that make their variables at the first call make them here.
    sample = distribution.sample(1, seed=0)
    with tf.GradientTape() as tape, training_scope(None):
        distribution.log_prob(tf.identity(sample))
    found = {v.ref(): v for v in (*distribution.variables, *tape.watched_variables())}
    for variable in found.values():
        _check_strategy(variable)
    return found.values()


def _check_strategy(variable):
    strategy = tf.distribute.get_strategy()
    if not strategy.extended.variable_created_in_scope(variable):
        raise ValueError(
            f"Variable `{variable.name}` was not made under {type(strategy).__name__}, the current "
            "distribution strategy; make the distribution and the FlowModel under the same "
            "`with strategy.scope():`."
        )


def _unused_name(name, taken):
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
