"""Real spherical harmonics Y_k with the Condon-Shortley phase, in the order of splat files. Free of torch: processes
that parse files import it.

Colours that depend on the direction of view are made of them, see `sdlab.raster.harmonics`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

COUNTS = (0, 3, 8, 15)  # coefficients per channel beside the constant, by degree
PROBES = 64  # directions at which a rotation is fitted


def terms(x: Any, y: Any, z: Any, degree: int) -> list[Any]:
    """Return Y_k of unit directions with these coordinates, arrays or tensors: COUNTS[degree] of them."""
    found: list[Any] = []
    if degree >= 1:
        c = math.sqrt(3 / (4 * math.pi))
        found += [-c * y, c * z, -c * x]
    if degree >= 2:
        c = math.sqrt(15 / (4 * math.pi))
        about = 2 * z * z - x * x - y * y
        found += [c * x * y, -c * y * z, math.sqrt(5 / (16 * math.pi)) * about, -c * x * z, c / 2 * (x * x - y * y)]
    if degree >= 3:
        a, b, c = (math.sqrt(n / (32 * math.pi)) for n in (35, 21, 210))
        ring = 4 * z * z - x * x - y * y
        found += [
            -a * y * (3 * x * x - y * y),
            2 * c * x * y * z,
            -b * y * ring,
            math.sqrt(7 / (16 * math.pi)) * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -b * x * ring,
            c * z * (x * x - y * y),
            -a * x * (x * x - 3 * y * y),
        ]
    return found


def resized(sh: np.ndarray | None, count: int, degree: int) -> np.ndarray | None:
    """Return coefficients [N, K, 3] of `count` Gaussians as those of another degree: cut off, or with zeros; None for
    degree 0."""
    wanted = COUNTS[degree]
    if not wanted:
        return None
    if sh is not None and sh.shape[1] == wanted:
        return sh.astype(np.float32, copy=False)
    out = np.zeros((count, wanted, 3), np.float32)
    if sh is not None:
        out[:, : sh.shape[1]] = sh[:, :wanted]
    return out


def rotated(sh: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Return coefficients [N, K, 3] after the scene has been turned by `rotation` [3, 3]: each degree mixes within
    itself."""
    degree = COUNTS.index(sh.shape[1])
    if degree == 0 or np.array_equal(rotation, np.eye(3)):
        return sh
    d = np.random.default_rng(0).normal(size=(PROBES, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    seen = d @ rotation  # what was at R^T d is at d now
    after, before = (np.stack(terms(*at.T, degree=degree), 1) for at in (d, seen))
    mixing = np.linalg.lstsq(after, before, rcond=None)[0]  # [K, K]: before = after @ mixing
    return np.einsum("jk,nkc->njc", mixing, sh).astype(sh.dtype)
