"""Four tasks of sbibm, by the formulas of the paper (Lueckmann et al., AISTATS 2021, appendix T).

    from sbi_tasks import TASKS
    theta, x = TASKS["slcp"].simulate(1000, np.random.default_rng(0))
    posterior = TASKS["slcp"].reference(x[0], 10_000, np.random.default_rng(1))

The references are drawn from the exact posteriors, but for SLCP, where three of five dimensions are drawn
from a grid and resampled by their weights within its cells.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """`bound` is that of the uniform prior on a cube, and `None` for a normal prior."""

    bound: float | None
    simulate: Callable
    reference: Callable


def _gaussian_linear(number, rng):
    theta = rng.normal(0.0, np.sqrt(0.1), [number, 10])
    return theta, theta + rng.normal(0.0, np.sqrt(0.1), theta.shape)


def _gaussian_linear_posterior(x, number, rng):
    return x / 2 + rng.normal(0.0, np.sqrt(0.05), [number, 10])


def _gaussian_mixture(number, rng):
    theta = rng.uniform(-10.0, 10.0, [number, 2])
    return theta, theta + _mixture_noise(number, rng)


def _mixture_noise(number, rng):
    return rng.normal(size=[number, 2]) * rng.choice([1.0, 0.1], [number, 1])


def _gaussian_mixture_posterior(x, number, rng):
    """The likelihood is symmetric, so that the posterior is that noise around x, cut to the prior."""
    return _until(number, lambda: x + _mixture_noise(number, rng), lambda theta: _inside(theta, 10.0))


def _two_moons(number, rng):
    theta = rng.uniform(-1.0, 1.0, [number, 2])
    return theta, _crescent(number, rng) + _fold(theta)


def _crescent(number, rng):
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, number), rng.normal(0.1, 0.01, number)
    return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)


def _fold(theta):
    return np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], axis=1) / np.sqrt(2.0)


def _two_moons_posterior(x, number, rng):
    """x - crescent is a rotation of theta whose first number has lost its sign; the Jacobian is 1."""

    def propose():
        first, second = (x - _crescent(number, rng)).T
        sum_, difference = first * rng.choice([-1.0, 1.0], number), second
        theta = np.stack([sum_ - difference, sum_ + difference], axis=1) / np.sqrt(2.0)
        theta[first > 0.0] = np.inf
        return theta

    return _until(number, propose, lambda theta: _inside(theta, 1.0))


def _slcp(number, rng):
    theta = rng.uniform(-3.0, 3.0, [number, 5])
    first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    noise = rng.normal(size=[number, 4, 2])
    across = correlation[:, None] * noise[..., 0] + np.sqrt(1 - correlation[:, None] ** 2) * noise[..., 1]
    points = np.stack([first[:, None] * noise[..., 0], second[:, None] * across], axis=-1)
    return theta, (theta[:, None, :2] + points).reshape(number, 8)


def _slcp_posterior(x, number, rng, size=200):
    """Of the covariance by a grid, with the means integrated out; then of the means, cut to the prior.

    The likelihood of the scales has a closed form where the means have no bounds. Rejecting means outside the
    prior makes the joint draw exact.
    """
    points = x.reshape(4, 2)
    mean = points.mean(axis=0)
    scatter = (points - mean).T @ (points - mean)
    edges = 3.0 / size
    scales = (np.arange(size) + 0.5) * edges
    shapes = np.linspace(-3.0, 3.0, size + 1)[:-1] + edges
    grid = np.stack(np.meshgrid(scales, scales, shapes, indexing="ij"), axis=-1).reshape(-1, 3)
    log_weight = _log_marginal(grid, scatter)
    weight = np.exp(log_weight - log_weight.max())

    def propose():
        rows = rng.choice(len(grid), 4 * number, p=weight / weight.sum())
        chosen = grid[rows] + rng.uniform(-0.5, 0.5, [len(rows), 3]) * [edges, edges, 2 * edges]
        ratio = np.exp(_log_marginal(chosen, scatter) - log_weight[rows])
        chosen = chosen[rng.uniform(size=len(rows)) < ratio / np.quantile(ratio, 0.999)]
        first, second, correlation = chosen[:, 0] ** 2, chosen[:, 1] ** 2, np.tanh(chosen[:, 2])
        noise = rng.normal(size=[len(chosen), 2]) / 2.0
        across = correlation * noise[:, 0] + np.sqrt(1 - correlation**2) * noise[:, 1]
        means = mean + np.stack([first * noise[:, 0], second * across], axis=1)
        signs = rng.choice([-1.0, 1.0], [len(chosen), 2])
        return np.concatenate([means, signs * chosen[:, :2], chosen[:, 2:]], axis=1)

    return _until(number, propose, lambda theta: _inside(theta, 3.0))


def _log_marginal(shape, scatter):
    """The log density of four points, up to a constant, with a flat prior of their mean."""
    first, second, correlation = shape[:, 0] ** 2, shape[:, 1] ** 2, np.tanh(shape[:, 2])
    rest = 1 - correlation**2
    trace = scatter[0, 0] / first**2 + scatter[1, 1] / second**2
    trace = (trace - 2 * correlation * scatter[0, 1] / (first * second)) / rest
    return -1.5 * np.log(first**2 * second**2 * rest) - 0.5 * trace


def _inside(theta, bound):
    return (np.abs(theta) < bound).all(axis=1)


def _until(number, propose, accept):
    kept = np.zeros([0, 1])
    while len(kept) < number:
        theta = propose()
        theta = theta[accept(theta)]
        kept = np.concatenate([kept, theta]) if len(kept) else theta
    return kept[:number]


TASKS = {
    "two_moons": Task(1.0, _two_moons, _two_moons_posterior),
    "gaussian_linear": Task(None, _gaussian_linear, _gaussian_linear_posterior),
    "gaussian_mixture": Task(10.0, _gaussian_mixture, _gaussian_mixture_posterior),
    "slcp": Task(3.0, _slcp, _slcp_posterior),
}
