"""`inverse_errors`: the error of a round trip through each learned inverse."""

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.callbacks.inverse_quality import conditions_of_pairs, learned_layers, probed_errors
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.plot.axes import COLORS, GREY, as_axes, check_axes, distribution_of
from tfp_selfnorm.utils.checks import check_events, check_finite
from tfp_selfnorm.utils.integers import check_int, check_positive_int
from tfp_selfnorm.utils.types import Array, TfpObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def inverse_errors(
    model: TfpObject,
    x: Array | None = None,
    ax: "Axes | None" = None,
    num_probes: int = 32,
    seed: int = 0,
    *,
    condition: Any = None,
) -> "Axes":
    """Draws the error of the learned inverse of each layer, in the order from latent to data.

    Open circles are the errors on random probes, `||I - R W|| / ||I||` (Frobenius norm), which the callback
    `InverseQuality` gives too. With `x` there are filled circles for the error of the round trip of the data:
    the root of the mean of `||h - R W h||^2` over that of `||h||^2`, with the inputs `h` of the layer. 0 is
    exact; an R of zeros has the error 1. Errors below the rounding of the dtype are drawn as the rounding. A
    layer whose error is not finite says so beside its name.

    Args:
      model: a `FlowModel` or a TFP distribution, with layers that need a learned inverse.
      x: events `(number, *event_shape)`, floating; `None` draws the errors on probes alone.
      ax: axes; `None` makes a figure.
      num_probes, seed: see `InverseQuality`.
      condition: for a `ConditionalFlowModel`, the conditions of `x`, and of the probes of each
        `LearnedInverse`.

    Returns:
      The axes. `ax.lines[0].get_xdata()` has the errors on probes, `ax.lines[1].get_xdata()` those of `x`.

    Raises:
      ImportError: if matplotlib is not installed.
      TypeError: if an argument has another type.
      ValueError: if no layer needs a learned inverse, or an argument does not fit.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> model = sn.FlowModel(sn.dense_flow(event_shape=3, seed=1))
    >>> ax = sn.plot.inverse_errors(model, tf.random.normal([100, 3], seed=1))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['dense_0', 'dense_1']
    """
    check_axes(ax)
    distribution = distribution_of(model, "model")
    layers = learned_layers(distribution, "`inverse_errors`")
    num_probes = check_positive_int(num_probes, "num_probes")
    seed = check_int(seed, "seed", -(2**63), 2**63 - 1)
    conditions = conditions_of_pairs(layers, model, condition, "`inverse_errors`")
    errors = [probed_errors(layers, num_probes, seed, conditions)]
    if x is not None:
        errors.append(_errors_of_data(model, distribution, layers, x, condition))
    ax = as_axes(ax, figsize=(6.4, 1.4 + 0.3 * len(layers)))
    smallest = float(np.finfo(distribution.dtype.as_numpy_dtype).eps)
    places = np.arange(len(layers))
    labels = ("random probes", "round trip of the data")
    ax.set(xscale="log", xlabel="relative error of the learned inverse")
    for found, label, fill in zip(errors, labels, ("none", "full"), strict=False):
        values = np.maximum([found[name] for name in layers], smallest)
        ax.plot(values, places, "o", color=COLORS[0], fillstyle=fill, label=label)
    drawn = np.concatenate([line.get_xdata() for line in ax.lines[-len(errors) :]])
    exponents = np.floor(np.log10(drawn[np.isfinite(drawn)]))
    if exponents.size:
        # Whole decades have few and short labels.
        ax.set_xlim(10.0 ** min(exponents), 10.0 ** (max(exponents) + 1.0))
    is_finite = [all(np.isfinite(found[name]) for found in errors) for name in layers]
    names = [name if good else f"{name} (not finite)" for name, good in zip(layers, is_finite, strict=True)]
    ax.set_yticks(places, names)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.grid(axis="y", color=GREY, alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if x is not None:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
    return ax


def _errors_of_data(model, distribution, layers, x, condition):
    """The relative error of the round trip of the inputs of each layer."""
    x = check_finite(check_events(x, distribution))
    with training_scope(None) as scope:
        arguments = {} if condition is None else {"condition": condition}
        model.log_prob(tf.identity(x), **arguments)
    squares = {layer.identity: np.zeros(2) for layer in layers.values()}
    for p in scope.passes:
        if p.layer.identity in squares:
            operations = p.layer.operations
            back = operations.apply(p.other_kernel, p.output)
            parts = [tf.reduce_sum(operations.squared_norm(part)) for part in (p.input - back, p.input)]
            squares[p.layer.identity] += np.array(parts, np.float64)
    return {name: float(np.sqrt(np.divide(*squares[layer.identity]))) for name, layer in layers.items()}
