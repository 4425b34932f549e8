"""Ranks of values among samples, and how far counts of them vary by chance."""

import numpy as np
import tensorflow as tf


def ranks_among(samples: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value, the number of samples that are smaller: ints in `[0, n]`, of the shape of the values.

    If the values have the distribution of the samples, which is continuous, each rank is equally likely.

    Args:
      samples: array `(n, ...)`.
      values: array `(...)`.
    """
    return np.asarray(np.sum(samples < values, axis=0, dtype=np.int64))


def binomial_interval(number: int, probability: np.ndarray, confidence: float = 0.99) -> np.ndarray:
    """The central interval of binomial counts.

    Args:
      number: number of trials, 1 or more.
      probability: array of probabilities of a success.
      confidence: least probability of the interval.

    Returns:
      Array `(2, ...)`, the least and the largest count.
    """
    tails = np.array([0.5 * (1.0 - confidence), 0.5 * (1.0 + confidence)])
    probability = np.asarray(probability, np.float64)
    tails = tails.reshape([2] + [1] * probability.ndim)
    probability = np.stack([probability, probability])
    low, high = np.zeros(probability.shape, np.int64), np.full(probability.shape, number)
    # The least count with a distribution function of at least the tail.
    while (low < high).any():
        middle = np.minimum((low + high) // 2, number - 1)
        below = tf.math.betainc(number - middle.astype(np.float64), middle + 1.0, 1.0 - probability).numpy()
        is_open, is_enough = low < high, below >= tails
        low = np.where(is_open & ~is_enough, middle + 1, low)
        high = np.where(is_open & is_enough, middle, high)
    return low
