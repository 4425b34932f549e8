"""Toy densities in the plane, from which `toy_gallery.py` and others draw points.

    from toy_data import TOYS
    x = TOYS["checkerboard"](1000, seed=0)      # float32 [1000, 2], within about [-4, 4]^2

The same number and seed give the same points. A point is drawn alone: the numbers of two halves, arms or
rings are random as well, so that all points are independent.
"""

import numpy as np


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
    circle = 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = side[:, np.newaxis] * (circle - [1.0, 0.5])
    return _as_points(points + rng.normal(0.0, 0.15, points.shape))


def rings(num_points, seed):
    """Three rings around the origin, each with as many points as it is long, with normal noise."""
    rng = _generator(num_points, seed)
    angle = rng.uniform(0.0, 2.0 * np.pi, num_points)
    radii = np.array([1.0, 2.1, 3.2])
    radius = rng.choice(radii, num_points, p=radii / radii.sum()) + rng.normal(0.0, 0.1, num_points)
    return _as_points(radius[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def spirals(num_points, seed):
    """Two arms that wind one and a half times around the origin, as wide outside as inside."""
    rng = _generator(num_points, seed)
    # The root of a uniform number: outside an arm is longer for the same angle.
    turn = 3.0 * np.pi * np.sqrt(rng.uniform(0.02, 1.0, num_points))
    side = rng.choice([-1.0, 1.0], num_points)
    radius = 3.4 * turn / (3.0 * np.pi)
    points = (side * radius)[:, np.newaxis] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return _as_points(points + rng.normal(0.0, 0.12, points.shape))


TOYS = {"checkerboard": checkerboard, "two_moons": two_moons, "rings": rings, "spirals": spirals}


def _generator(num_points, seed):
    if num_points < 1:
        raise ValueError(f"`num_points` must be 1 or more; got {num_points!r}.")
    return np.random.default_rng(seed)


def _as_points(points):
    return points.astype(np.float32)
