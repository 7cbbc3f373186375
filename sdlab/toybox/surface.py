"""Point clouds sampled from toybox objects: a starting point for a scene that is already close to the target.

Substitutes for a text-to-3D model or a mesh where neither is available, as in tests or in a workshop without network.
"""

from __future__ import annotations

import math

import numpy as np

from sdlab.toybox.grammar import read
from sdlab.toybox.objects import OBJECTS, table
from sdlab.toybox.pictures import COLOURS
from sdlab.toybox.raytrace import BALL, CONE, CUBE, CYLINDER
from sdlab.toybox.solids import Table
from sdlab.toybox.words import NATURAL
from sdlab.types import Cloud

INSIDE = 1.0 - 1e-6  # of a unit solid, so that points on its surface do not count as inside
TRIES = 8  # oversampling factor, since points inside other parts are dropped
OTHER_COLOUR = "gray"  # of objects with neither a colour word nor a natural colour


def object_points(text: str, n: int, rng: np.random.Generator) -> Cloud:
    """Sample n points evenly from the visible surface of the object that `text` names; radius about 1, front on +x.

    A second object is included if the text names one ("a bear wearing a blue hat"). Raises ValueError, listing the
    objects, if it names none.
    """
    name, colour, second, second_colour = named_in(text)
    parts = table(name, 0, second)
    points, owners = _outside(parts, n, rng)
    return Cloud(points.astype(np.float32), paints_of(parts, colour, second_colour)[owners].astype(np.float32))


def paints_of(parts: Table, colour: str, second_colour: str) -> np.ndarray:
    """Return the colour of each part, [K, 3] in [0, 1], of an object of these colours."""
    own, other = (np.array(COLOURS[c]) for c in (colour, second_colour))
    return np.clip(parts.shares[:, :1] * own + parts.shares[:, 1:] * other + parts.rests, 0, 1)


def named_in(text: str) -> tuple[str, str, str, str]:
    """Return (object, its colour, second object or "", its colour), with natural colours where none is named."""
    said = read(text)
    if not said.object:
        raise ValueError(f"{text!r} names no toybox object; the toybox has {', '.join(OBJECTS)}")
    own = said.colour or NATURAL.get(said.object, (OTHER_COLOUR,))[0]
    return said.object, own, said.second, said.second_colour or (OTHER_COLOUR if said.second else own)


# ---- surfaces of the solids -------------------------------------------------------------------------------------


def _outside(parts: Table, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample n surface points [n, 3] that lie inside no other part, and the index [n] of the part each belongs to."""
    points, owners = on_surfaces(parts, TRIES * n, rng)
    free = np.ones(len(points), bool)
    for k, kind in enumerate(parts.kinds.tolist()):
        local = (points - parts.centres[k]) @ parts.turns[k] / parts.sizes[k]
        free &= ~_inside(kind, local) | (owners == k)
    seen = rng.permutation(np.flatnonzero(free))[:n]
    if len(seen) < n:  # almost everything is hidden: fill up by resampling
        seen = np.concatenate([seen, rng.choice(seen, n - len(seen))])
    return points[seen], owners[seen]


def on_surfaces(parts: Table, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample n points [n, 3] evenly from the surfaces of all parts, and the index [n] of the part each belongs to."""
    areas = np.array([_area(kind, size) for kind, size in zip(parts.kinds.tolist(), parts.sizes, strict=True)])
    owners = np.repeat(np.arange(len(areas)), rng.multinomial(n, areas / areas.sum()))
    points = np.empty((n, 3))
    for k, (kind, size) in enumerate(zip(parts.kinds.tolist(), parts.sizes, strict=True)):
        own = owners == k
        points[own] = _on_surface(kind, size, int(own.sum()), rng) @ parts.turns[k].T + parts.centres[k]
    return points, owners


def _area(kind: int, size: np.ndarray) -> float:
    """Return the surface area of a solid with half-extents `size`; of an ellipsoid by Thomsen's formula, within 1 %."""
    a, b, c = size
    if kind == BALL:
        p = 1.6075
        return 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    if kind == CUBE:
        return 8 * (a * b + a * c + b * c)
    rim = 2 * math.pi * math.sqrt((a * a + b * b) / 2)
    if kind == CYLINDER:
        return 2 * math.pi * a * b + rim * 2 * c
    slant = math.hypot(2 * c, math.sqrt(a * b))
    return math.pi * a * b + rim * slant / 2


def _on_surface(kind: int, size: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sample n points [n, 3] on a solid's surface in its own frame, before rotation and translation."""
    a, b, c = size
    angle = rng.uniform(0, 2 * math.pi, n)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    if kind == BALL:
        return _on_ellipsoid(size, n, rng)
    if kind == CUBE:
        sides = np.array([b * c, a * c, a * b])
        axis = rng.choice(3, n, p=sides / sides.sum())
        points = rng.uniform(-1, 1, (n, 3))
        points[np.arange(n), axis] = rng.choice([-1.0, 1.0], n)
        return points * size
    rim = 2 * math.pi * math.sqrt((a * a + b * b) / 2)
    disc = math.pi * a * b
    if kind == CYLINDER:
        on_cap = rng.random(n) < 2 * disc / (2 * disc + rim * 2 * c)
        z = np.where(on_cap, rng.choice([-1.0, 1.0], n), rng.uniform(-1, 1, n))
        reach = np.where(on_cap, np.sqrt(rng.random(n)), 1.0)
    else:  # cone from the base at z = -1 to the apex at z = 1
        on_cap = rng.random(n) < disc / (disc + rim * math.hypot(2 * c, math.sqrt(a * b)) / 2)
        reach = np.sqrt(rng.random(n))
        z = np.where(on_cap, -1.0, 1 - 2 * reach)
    return np.column_stack([ring * reach[:, None], z]) * size


def _on_ellipsoid(size: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sample n points [n, 3]: unit-sphere points, accepted in proportion to the local stretch of the surface."""
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < n:
        unit = rng.normal(size=(2 * n + 16, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        enlarged = np.linalg.norm(unit / size, axis=1) * size.min()  # in (0, 1]
        kept.append(unit[rng.random(len(unit)) < enlarged])
    return np.concatenate(kept)[:n] * size


def _inside(kind: int, at: np.ndarray) -> np.ndarray:
    """Return whether points [n, 3] lie inside a solid; they are in its own frame, where it is a unit solid."""
    x, y, z = at.T
    around = np.hypot(x, y)
    if kind == BALL:
        return np.square(at).sum(1) < INSIDE
    if kind == CUBE:
        return np.abs(at).max(1) < INSIDE
    if kind == CYLINDER:
        return (around < INSIDE) & (np.abs(z) < INSIDE)
    assert kind == CONE
    return (around < (1 - z) / 2 * INSIDE) & (z > -INSIDE)
