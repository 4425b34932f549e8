"""Toy densities in the plane, from which `toy_gallery.py` and others draw points.

    from toy_data import TOYS, log_prob
    x = TOYS["checkerboard"](1000, seed=0)      # float32 [1000, 2], within about [-4, 4]^2
    -log_prob("checkerboard", x).mean()         # the least NLL that a flow can have: the entropy, in nats

The same number and seed give the same points. A point is drawn alone: the numbers of two halves, arms or
rings are random as well, so that all points are independent.
"""

import numpy as np

MOON_NOISE, RING_NOISE, ARM_NOISE = 0.15, 0.1, 0.12
RADII = np.array([1.0, 2.1, 3.2])
# The points along a curve that stand for it in a density; their distance is a tenth of the noise.
_CURVE_POINTS = 1000


def checkerboard(num_points, seed):
    """Uniform over the 8 dark squares, of side 2, of a board on [-4, 4]^2."""
    rng = _generator(num_points, seed)
    column = rng.integers(0, 4, num_points)
    row = 2 * rng.integers(0, 2, num_points) + column % 2
    corner = 2.0 * np.stack([column, row], axis=1) - 4.0
    return _as_points(corner + rng.uniform(0.0, 2.0, [num_points, 2]))


def two_moons(num_points, seed):
    """Two half circles that reach into one another, with normal noise."""
    rng = _generator(num_points, seed)
    angle = rng.uniform(0.0, np.pi, num_points)
    side = rng.choice([-1.0, 1.0], num_points)
    points = side[:, np.newaxis] * _moon(angle)
    return _as_points(points + rng.normal(0.0, MOON_NOISE, points.shape))


def rings(num_points, seed):
    """Three rings around the origin, each with as many points as it is long, with normal noise."""
    rng = _generator(num_points, seed)
    angle = rng.uniform(0.0, 2.0 * np.pi, num_points)
    radius = rng.choice(RADII, num_points, p=RADII / RADII.sum())
    radius = radius + rng.normal(0.0, RING_NOISE, num_points)
    return _as_points(radius[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def spirals(num_points, seed):
    """Two arms that wind one and a half times around the origin, as wide outside as inside."""
    rng = _generator(num_points, seed)
    share = rng.uniform(0.02, 1.0, num_points)
    side = rng.choice([-1.0, 1.0], num_points)
    points = side[:, np.newaxis] * _arm(share)
    return _as_points(points + rng.normal(0.0, ARM_NOISE, points.shape))


def log_prob(name, points):
    """The log density in nats of a toy at points `[number, 2]`: exact, or by a sum along the curves."""
    points = np.asarray(points, np.float64)
    middles = (np.arange(_CURVE_POINTS) + 0.5) / _CURVE_POINTS
    if name == "checkerboard":
        column, row = np.floor((points + 4.0) / 2.0).T
        is_dark = ((column + row) % 2 == 0) & (np.abs(points) <= 4.0).all(axis=1)
        return np.where(is_dark, -np.log(32.0), -np.inf)
    if name == "rings":
        radius = np.linalg.norm(points, axis=1)
        of_rings = _normal(radius[:, np.newaxis] - RADII, RING_NOISE) @ (RADII / RADII.sum())
        return _log(of_rings / (2.0 * np.pi * radius))
    if name == "two_moons":
        return _log_prob_of_curve(points, _moon(np.pi * middles), MOON_NOISE)
    return _log_prob_of_curve(points, _arm(0.02 + 0.98 * middles), ARM_NOISE)


def _moon(angle):
    return 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1) - [1.0, 0.5]


def _arm(share):
    """The root: outside an arm is longer for the same angle."""
    turn = 3.0 * np.pi * np.sqrt(share)
    radius = 3.4 * turn / (3.0 * np.pi)
    return radius[:, np.newaxis] * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _normal(x, deviation):
    return np.exp(-0.5 * np.square(x / deviation)) / (np.sqrt(2.0 * np.pi) * deviation)


def _log_prob_of_curve(points, curve, deviation):
    """The log density of points with normal noise around a curve and its mirror image through the origin."""
    density = 0.0
    for centre in np.concatenate([curve, -curve]):
        density = density + _normal(points[:, 0] - centre[0], deviation) * _normal(
            points[:, 1] - centre[1], deviation
        )
    return _log(density / (2 * len(curve)))


def _log(density):
    with np.errstate(divide="ignore"):
        return np.log(density)


TOYS = {"checkerboard": checkerboard, "two_moons": two_moons, "rings": rings, "spirals": spirals}


def _generator(num_points, seed):
    if num_points < 1:
        raise ValueError(f"`num_points` must be 1 or more; got {num_points!r}.")
    return np.random.default_rng(seed)


def _as_points(points):
    return points.astype(np.float32)
