"""Parts of a file far away from all the rest: scanners and exporters leave some, and they would decide its size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdlab.meshes.parts import Part

STRAY, BULK = 5.0, 0.95  # something is stray at STRAY times the distance within which a share BULK lies


def near(distances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return which of N things are not stray, from their distances [N] to the middle and their weights [N]."""
    order = np.argsort(distances)
    sums = np.cumsum(weights[order])
    bulk = float(distances[order][np.searchsorted(sums, BULK * sums[-1])])
    return distances <= STRAY * bulk if bulk > 0 else np.ones(len(distances), bool)


def told(count: int, total: int, what: str, one: str, more: str) -> str:
    """Return a remark on `count` of `total` things, with the verb for one or for more."""
    return f"{count:,} of {total:,} {what} {one if count == 1 else more}"


def left_out(count: int, total: int, what: str) -> str:
    """Return the remark on stray things."""
    far = f"more than {STRAY:g} times as far out as the rest and"
    return told(count, total, what, f"lies {far} is left out", f"lie {far} are left out")


def without_stray_faces(parts: Sequence[Part]) -> tuple[tuple[Part, ...], list[str]]:
    """Return parts without the faces far away, weighted by area, and a remark on those."""
    corners = np.concatenate([p.vertices[p.faces] for p in parts])
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    if not areas.sum() > 0:
        return tuple(parts), []
    centres = corners.mean(1)
    middle = np.array([_median(centres[:, i], areas) for i in range(3)])
    kept = near(np.linalg.norm(corners - middle, axis=2).max(1), areas)
    if kept.all():
        return tuple(parts), []
    ends = np.cumsum([len(p.faces) for p in parts])[:-1]
    chosen = ((p, good) for p, good in zip(parts, np.split(kept, ends), strict=True) if good.any())
    fewer = (p._replace(faces=p.faces[good], rgbs=p.rgbs[good], uvs=p.uvs[good]) for p, good in chosen)
    return tuple(fewer), [left_out(int((~kept).sum()), len(kept), "faces")]


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted median of values [N]."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(sums, sums[-1] / 2)])
