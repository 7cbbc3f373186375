"""Second objects of the toybox: worn (hat, scarf), underneath (box), alongside (ball). Frame: `sdlab.toybox.solids`.

The second object's parts take their paint from column 1 of `Table.shares`, its own colour. The pair is then moved and
scaled as a whole, so that it fits the image as a single object does.
"""

from __future__ import annotations

import math

import numpy as np

from sdlab.toybox.raytrace import BALL, CONE, CUBE, CYLINDER
from sdlab.toybox.solids import DARK, OWN, WHITE, Builder, Model, Table, turned

SECONDS = ("hat", "scarf", "box", "ball")
REACH = 0.98  # maximum radius about the origin: 2.95 sin(20 degrees) = 1.009 would touch the edge of the image
BALL_RADIUS = 0.4
BALL_BEARING = math.radians(47)  # from +y towards the front; at 0 the ball would be hidden from a camera on -y


def unit_outlines() -> dict[int, np.ndarray]:
    """Return surface points [n, 3] per kind of solid; they underestimate the extent in any direction by at most 2 %."""
    angles = np.arange(24) * (math.pi / 12)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    rim = {z: np.column_stack([circle, np.full(24, z)]) for z in (-1.0, 1.0)}
    rings = [np.column_stack([circle * math.cos(a), np.full(24, math.sin(a))]) for a in angles[:7] - math.pi / 2]
    half = np.concatenate(rings)
    return {
        BALL: np.concatenate([half, -half]),
        CUBE: np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float),
        CYLINDER: np.concatenate([rim[-1.0], rim[1.0]]),
        CONE: np.concatenate([rim[-1.0], [(0.0, 0.0, 1.0)]]),
    }


UNIT_OUTLINES = unit_outlines()


def outline(table: Table) -> np.ndarray:
    """Return points [n, 3] on the surfaces of the parts, dense enough to measure the extent of the whole."""
    parts = zip(table.kinds.tolist(), table.centres, table.sizes, table.turns, strict=True)
    return np.concatenate([(UNIT_OUTLINES[kind] * size) @ turn.T + at for kind, at, size, turn in parts])


def middle(points: np.ndarray) -> np.ndarray:
    """Return the centre [3] of an almost smallest enclosing ball of points [n, 3] (Badoiu and Clarkson 2003)."""
    outer = points[np.unique((points @ UNIT_OUTLINES[BALL].T).argmax(0))]  # the inner points only cost time
    centre = outer.mean(0)
    for step in range(2, 200):
        farthest = outer[np.square(outer - centre).sum(1).argmax()]
        centre = centre + (farthest - centre) / step
    return centre


def hat(b: Builder, place: tuple[float, float, float, float]) -> None:
    """Add a hat with a brim and a dark band; `place` is the brim's centre and the head radius."""
    x, y, z, radius = place
    b.rod((x, y, z), (1.5 * radius, 1.5 * radius, 0.045))
    b.rod((x, y, z + 0.08), (1.04 * radius, 1.04 * radius, 0.05), DARK)
    b.rod((x, y, z + 0.22), (radius, radius, 0.14))


def scarf(b: Builder, place: tuple[float, float, float, float, float]) -> None:
    """Add a scarf: a ring around the neck, a knot and one end in front, the other end down the back.

    The ends stick out so that they show from above.
    """
    x, y, z, radius, lean = place
    turn = turned("y", lean)

    def at(forward: float, up: float) -> tuple[float, float, float]:
        offset = turn @ np.array((forward, 0.0, up))
        return x + float(offset[0]), y, z + float(offset[2])

    b.ball(at(0, 0), (1.12 * radius, 1.12 * radius, 0.15), OWN, turn)
    knot = at(1.08 * radius, -0.02)
    b.ball(knot, (0.1, 0.14, 0.13))
    b.box((knot[0] + 0.1, y, knot[2] - 0.2), (0.05, 0.12, 0.2), OWN, turned("y", -33))
    b.box(at(-1.06 * radius - 0.08, -0.2), (0.05, 0.12, 0.2), OWN, turn @ turned("y", 28))


def box(b: Builder, points: np.ndarray) -> None:
    """Add a box with a lid under the feet, wide enough to show from above around whatever stands on it."""
    floor = float(points[:, 2].min())
    feet = points[points[:, 2] < floor + 0.15]
    x, y = (float(v) for v in (feet.min(0) + feet.max(0))[:2] / 2)
    length, width = (float(v) for v in np.ptp(points[:, :2], axis=0))
    half = min(max(0.56 * math.sqrt(length * width), 0.5), 0.74)
    b.box((x, y, floor - 0.06), (half, half, 0.06))
    b.box((x, y, floor - 0.28), (half - 0.05, half - 0.05, 0.18))


def ball(b: Builder, points: np.ndarray) -> None:
    """Add a ball with a white belt, on the ground to the left and slightly in front."""
    floor = float(points[:, 2].min())
    along = np.array((math.sin(BALL_BEARING), math.cos(BALL_BEARING)))
    level = points[points[:, 2] < floor + 2 * BALL_RADIUS]
    x, y = (float(v) for v in along * (float((level[:, :2] @ along).max()) + BALL_RADIUS + 0.04))
    at = (x, y, floor + BALL_RADIUS)
    b.ball(at, BALL_RADIUS)
    b.rod(at, (1.01 * BALL_RADIUS, 1.01 * BALL_RADIUS, 0.07), WHITE, turned("x", 25) @ turned("y", 25))


def allowed(model: Model) -> tuple[str, ...]:
    """Return which of SECONDS an object can have."""
    wears = {"hat": model.hat is not None, "scarf": model.neck is not None}
    return tuple(second for second in SECONDS if wears.get(second, True))


def compose(main: Table, model: Model, second: str) -> Table:
    """Return `main` (the table of `model`) together with a second object.

    Raises ValueError, listing the second objects available, if this one is not.
    """
    if second not in allowed(model):
        raise ValueError(f"second object {second!r} is not available; this object can have {', '.join(allowed(model))}")
    b = Builder()
    if second == "hat" and model.hat is not None:
        hat(b, model.hat)
    elif second == "scarf" and model.neck is not None:
        scarf(b, model.neck)
    elif second == "box":
        box(b, outline(main) / model.scale)
    else:
        ball(b, outline(main) / model.scale)
    added = b.table(model.scale)
    added = added._replace(shares=added.shares[:, ::-1])
    return fitted(Table(*(np.concatenate(columns) for columns in zip(main, added, strict=True))))


def fitted(table: Table) -> Table:
    """Return the table moved to the origin and, if it extends beyond REACH, scaled down."""
    points = outline(table)
    centre = middle(points).round(2)  # rounded, so that symmetric objects stay symmetric
    scale = min(1.0, REACH / float(np.sqrt(np.square(points - centre).sum(1).max())))
    return table._replace(centres=(table.centres - centre) * scale, sizes=table.sizes * scale)
