"""Whitening matrices from data, in numpy: a deviation for each column, and a shrunk correlation."""

from typing import NamedTuple

import numpy as np

# Shrinkages to choose from.
_SHRINKAGES = np.concatenate([[0.0], np.logspace(-8.0, 0.0, 33)])
# From this number of dimensions on one part is held out, not each of the parts in turn.
_MANY_DIMENSIONS = 512
_NUM_PARTS = 5
# The largest condition of a covariance whose root is computed.
_MAX_CONDITION = 1e10
# Of the largest variance: smaller ones are rounding errors of the products of events.
_LEAST_VARIANCE = 1e-10


class Whitening(NamedTuple):
    """The map `(x - mean) @ kernel.T`, which has a covariance near I on the data.

    Attributes:
      mean: the mean of each column.
      kernel: for the deviations S of the columns and their shrunk correlation P, the symmetric
        `(S P S)^-1/2`, or `P^-1/2 S^-1` if the condition of `S P S` may be above 1e10.
      inverse_kernel: its inverse.
      shrinkage: the weight of I in P.
      constant_columns: numbers of the columns that do not vary.
      num_dependent: number of directions that do not vary although their columns do.
    """

    mean: np.ndarray
    kernel: np.ndarray
    inverse_kernel: np.ndarray
    shrinkage: float
    constant_columns: list[int]
    num_dependent: int


def whitening(x: np.ndarray, precision: float, shrinkage: float | None = None) -> Whitening:
    """The whitening of events.

    Columns, and directions of the standardised columns, that do not vary get a deviation of 1.

    Args:
      x: finite float64 `[n, D]`, n at least 2.
      precision: relative rounding error of the numbers, such as that of float32.
      shrinkage: weight of I in the correlation, in [0, 1], not 0 if n is at most D; `None` chooses the weight
        whose Gaussian has the largest likelihood on parts of the data that are held out.

    Cost: O(n D^2 + D^3), seven times the O(D^3) up to 512 dimensions, and three times above. With no more
    events than dimensions it is O(n D^2).
    """
    rows = _numbers_of_rows(x) if shrinkage is None else None
    mean = np.mean(x, axis=0)
    x = x - mean
    # Scaled first: squares of numbers such as 1e-170 are 0.
    size = np.max(np.abs(x), axis=0)
    # Rounding of the mean moves the numbers of a constant column too.
    varies = size > 8.0 * precision * np.abs(mean)
    size = np.where(varies, size, 1.0)
    x = np.where(varies, x / size, 0.0)
    deviations = size * np.where(varies, np.sqrt(np.sum(x**2, axis=0) / (len(x) - 1)), 1.0)
    x = x * (size / deviations)

    size, units = deviations, deviations[varies]
    x = x[:, varies]
    variances, directions = _spectrum(x)
    # The variance that rounding alone gives to each direction.
    noise = precision * np.maximum(np.abs(mean[varies]) / units, 1.0)
    is_flat = variances <= 64.0 * np.sum((directions * noise[:, np.newaxis]) ** 2, axis=0) + 1e-14 * len(size)
    num_unseen = len(units) - len(variances)
    if shrinkage is None:
        shrinkage = _best_shrinkage(x @ directions[:, ~is_flat], num_unseen, rows)
    variances = np.where(is_flat, 1.0, (1.0 - shrinkage) * variances + shrinkage)
    spread = np.ptp(np.log(units**2)) + np.ptp(np.log(variances)) if len(units) else 0.0
    if num_unseen == 0 and spread < np.log(_MAX_CONDITION):
        covariance = units[:, np.newaxis] * ((directions * variances) @ directions.T) * units
        variances, directions = np.linalg.eigh(covariance)
        units = np.ones_like(units)
    unseen = shrinkage if num_unseen else 0.0
    return Whitening(
        mean=mean,
        kernel=_embedded(_power(variances, directions, unseen, -0.5) / units, varies),
        inverse_kernel=_embedded(units[:, np.newaxis] * _power(variances, directions, unseen, 0.5), varies),
        shrinkage=float(shrinkage),
        constant_columns=np.flatnonzero(~varies).tolist(),
        num_dependent=int(np.sum(is_flat)),
    )


class MissingNoise:
    """Normal noise that brings the covariance of events to I, in each direction where it is less.

    Args:
      x: `[n, D]`.

    Cost: O(n D^2 + D^3), and O(n D^2) for each draw.
    """

    def __init__(self, x: np.ndarray) -> None:
        self._shape = x.shape
        variances, self._directions = _spectrum(x - np.mean(x, axis=0))
        self._factors = np.sqrt(np.clip(1.0 - variances, 0.0, 1.0)) - 1.0

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Noise for each event, `[n, D]`."""
        noise = generator.normal(size=self._shape)
        return noise + (noise @ self._directions * self._factors) @ self._directions.T


def _spectrum(x):
    """The variances along orthogonal directions, of columns with the mean 0.

    With no more events than columns these are the directions that the events have, and the others are left
    out.
    """
    if len(x) > x.shape[1]:
        return np.linalg.eigh(_covariance(x))
    variances, events = np.linalg.eigh(x @ x.T / (len(x) - 1))
    seen = variances > _LEAST_VARIANCE * variances[-1]
    variances, events = variances[seen], events[:, seen]
    return variances, x.T @ (events / np.sqrt((len(x) - 1) * variances))


def _power(variances, directions, unseen, exponent):
    """A power of a symmetric matrix, with the eigenvalue `unseen` in the directions that are not there."""
    if not unseen:
        return (directions * variances**exponent) @ directions.T
    matrix = (directions * (variances**exponent - unseen**exponent)) @ directions.T
    matrix[np.diag_indices_from(matrix)] += unseen**exponent
    return matrix


def _embedded(matrix, rows):
    """The matrix at some rows and columns of an identity."""
    if rows.all():
        return matrix
    result = np.eye(len(rows))
    result[np.ix_(rows, rows)] = matrix
    return result


def _covariance(x):
    """Of columns with the mean 0."""
    return x.T @ x / (len(x) - 1)


def _numbers_of_rows(x):
    """A number for each event, the same for events that are equal."""
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(hash(row.tobytes()), len(numbers)) for row in x])


def _best_shrinkage(x, num_unseen, rows):
    """The weight of the largest likelihood of held-out parts, with means and correlations of the others.

    No event has a part in `num_unseen` further directions. Events with the same number in `rows` are held out
    together: a copy of an event is not new.

    The twentieth of the events that is farthest from the mean has no vote: one event could outweigh all. Of
    two events nothing can be held out: the weight is 1.
    """
    if (num_rows := np.max(rows) + 1) < 3:
        return 1.0
    distances = np.sum((x - np.mean(x, axis=0)) ** 2, axis=1)
    votes = distances <= np.quantile(distances, 0.95)
    count = 1 if x.shape[1] > _MANY_DIMENSIONS else _NUM_PARTS
    losses = np.zeros(len(_SHRINKAGES))
    # At random, and always the same: every fifth event of five sources in turn is of one source alone.
    parts = np.random.default_rng(0).permutation(num_rows)[rows] % _NUM_PARTS
    for part in range(min(count, num_rows)):
        is_held_out = parts == part
        seen, held_out = x[~is_held_out], x[is_held_out & votes]
        mean = np.mean(seen, axis=0)
        variances, directions = np.linalg.eigh(_covariance(seen - mean))
        squares = np.sum(((held_out - mean) @ directions) ** 2, axis=0)
        for i, weight in enumerate(_SHRINKAGES):
            shrunk = (1.0 - weight) * np.maximum(variances, 0.0) + weight
            with np.errstate(divide="ignore", invalid="ignore"):
                losses[i] += np.sum(len(held_out) * np.log(shrunk) + squares / shrunk)
                losses[i] += len(held_out) * num_unseen * np.log(weight) if num_unseen else 0.0
    return _SHRINKAGES[np.nanargmin(np.where(np.isfinite(losses), losses, np.inf))]
