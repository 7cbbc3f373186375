"""Turn, centre and scale points and Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sdlab import harmonics
from sdlab.meshes.read import fitting
from sdlab.shapes import Cloud, RawSplats

PROBES = 2000  # points sampled to estimate the spacing


def from_y_up(found: Cloud | RawSplats) -> Cloud | RawSplats:
    """Rotate from y up, front +z: (x, y, z) of glTF is (z, x, y) here, 120 degrees about (1, 1, 1)."""
    return _rotated(found, (0.5, 0.5, 0.5, 0.5))


def to_y_up(found: RawSplats) -> RawSplats:
    """Undo `from_y_up`: (x, y, z) here is (y, z, x) of glTF."""
    turned = _rotated(found, (0.5, -0.5, -0.5, -0.5))
    assert isinstance(turned, RawSplats)
    return turned


def turned(found: Cloud | RawSplats, degrees: float) -> Cloud | RawSplats:
    """Rotate about the vertical, counter-clockwise seen from above."""
    half = math.radians(degrees) / 2
    return _rotated(found, (math.cos(half), 0.0, 0.0, math.sin(half)))


def _rotated(found: Cloud | RawSplats, q: tuple[float, float, float, float]) -> Cloud | RawSplats:
    """Rotate by the unit quaternion `q` (wxyz): positions, and the orientations and harmonics of Gaussians."""
    w, x, y, z = q
    rows = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )
    if isinstance(found, Cloud):
        return found._replace(points=found.points @ rows.T)
    sh = None if found.sh is None else harmonics.rotated(found.sh, rows)
    return found._replace(means=found.means @ rows.T, quats=found.quats @ times(q).astype(np.float32).T, sh=sh)


def times(q: Sequence[float]) -> np.ndarray:
    """Return the matrix [4, 4] by which a quaternion wxyz is multiplied with `q` from the left: q b = times(q) @ b."""
    w, x, y, z = q
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])


def fitted(found: Cloud | RawSplats, radius: float) -> Cloud | RawSplats:
    """Centre the bounding box at the origin and scale so that the farthest point lies at `radius`."""
    at = found.points if isinstance(found, Cloud) else found.means
    middle, factor = fitting(at, radius)
    at = ((at - middle) * factor).astype(np.float32)
    if isinstance(found, Cloud):
        return found._replace(points=at)
    return found._replace(means=at, log_scales=(found.log_scales + math.log(factor)).astype(np.float32))


def spacing(points: np.ndarray, rng: np.random.Generator) -> float:
    """Return the median distance of points [n, 3] to their nearest neighbours; 0 for a single point."""
    n = len(points)
    if n < 2:
        return 0.0
    probes = rng.permutation(n)[:PROBES]
    points = points.astype(np.float64)  # the squares below cancel, which costs precision
    nearest = np.empty(len(probes))
    square = np.square(points).sum(1)
    for first in range(0, len(probes), 50):  # in blocks: the distance matrix is 50 x n
        rows = probes[first : first + 50]
        squared = square[rows, None] + square - 2 * points[rows] @ points.T
        squared[np.arange(len(rows)), rows] = np.inf
        nearest[first : first + 50] = np.sqrt(np.maximum(squared.min(1), 0))
    return float(np.median(nearest))
