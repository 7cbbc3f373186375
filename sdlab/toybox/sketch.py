"""Crude 3D sketches of toybox objects, as a hand draws them in the air with a few felt-tips: where the parts are, but
neither their exact shape nor small ones.

They stand in for the human sketches of the SBP thesis (McAllister 2024, appendix, "3D sketch-to-real"): "structurally
accurate", without detail of geometry or texture. Every part is misplaced and misshaped a little, drawn as loops of
ribbon around it, and has the colour of the nearest felt-tip.
"""

from __future__ import annotations

import numpy as np

from sdlab.toybox.objects import table
from sdlab.toybox.pictures import COLOURS
from sdlab.toybox.solids import Table, turned
from sdlab.toybox.surface import named_in, on_surfaces, paints_of
from sdlab.types import Cloud

SMALLEST = 0.11  # half-extent of a part below which it is left out
MISPLACED, MISSHAPEN, TILTED = 0.05, 0.2, 12.0  # standard deviations: distance, log of the size, degrees
LOOPS = 7  # of ribbon around a part
RIBBON = 0.045  # half its width
THICK = 0.012  # standard deviation of points off the surface
TRIES = 8  # oversampling factor, since points between the ribbons are dropped


def sketch_points(text: str, n: int, rng: np.random.Generator) -> Cloud:
    """Return at most n points on the ribbons of a sketch of the object that `text` names, front on +x.

    Raises ValueError, listing the objects, if it names none.
    """
    name, colour, second, second_colour = named_in(text)
    parts = _drawn_by_hand(table(name, 0, second), rng)
    paints = _felt_tips(paints_of(parts, colour, second_colour))
    points, owners = on_surfaces(parts, TRIES * n, rng)
    kept = rng.permutation(np.flatnonzero(_on_ribbons(points, owners, parts, rng)))[:n]
    at = points[kept] + rng.normal(0, THICK, (len(kept), 3))
    return Cloud(at.astype(np.float32), paints[owners[kept]].astype(np.float32))


def _drawn_by_hand(parts: Table, rng: np.random.Generator) -> Table:
    """Return the larger parts, each a little out of place, size and angle."""
    large = parts.sizes.max(1) >= SMALLEST
    kept = Table(*(column[large] for column in parts))
    k = len(kept.kinds)
    tilts = [turned("xyz"[int(3 * rng.random())], rng.normal(0, TILTED)) for _ in range(k)]
    return kept._replace(
        centres=kept.centres + rng.normal(0, MISPLACED, (k, 3)),
        sizes=kept.sizes * np.exp(rng.normal(0, MISSHAPEN, (k, 3))),
        turns=kept.turns @ np.array(tilts),
    )


def _felt_tips(paints: np.ndarray) -> np.ndarray:
    """Return the nearest colour with a name for each of [K, 3]."""
    tips = np.array(list(COLOURS.values()))
    return tips[np.square(paints[:, None] - tips).sum(2).argmin(1)]


def _on_ribbons(points: np.ndarray, owners: np.ndarray, parts: Table, rng: np.random.Generator) -> np.ndarray:
    """Return which points [n, 3] lie on the loops around their part."""
    kept = np.zeros(len(points), bool)
    for k, (centre, size) in enumerate(zip(parts.centres, parts.sizes, strict=True)):
        own = owners == k
        normals = rng.normal(size=(LOOPS, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        offsets = rng.uniform(-0.6, 0.6, LOOPS) * size.min()
        kept[own] = (np.abs((points[own] - centre) @ normals.T - offsets) < RIBBON).any(1)
    return kept
