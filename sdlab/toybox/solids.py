"""Vocabulary for defining toybox objects: balls, boxes, cylinders and cones, their paints, and the tables they become.

An object's frame has +x as its front, +y as its left and +z up, and everything lies within about 1 of the origin. At 64
pixels one pixel is about 0.035, so anything that must be visible (eyes, beak, belly, lamps) is at least 0.1 wide. Every
object with a front shows something there that the back lacks, and vice versa.

A part's paint is `share * object colour + rest`. That covers fixed colours (share 0), the object's own colour (rest 0)
and any mixture, so an object is a constant table into which the colour is inserted at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdlab.toybox.raytrace import BALL, CONE, CUBE, CYLINDER

Triple = tuple[float, float, float]


class Paint(NamedTuple):
    """Colour of a part: share * object colour + rest."""

    share: float
    rest: Triple


class Table(NamedTuple):
    """The K parts of an object: part k maps local to world by turns[k] @ diag(sizes[k]), followed by + centres[k]."""

    kinds: np.ndarray  # [K]
    centres: np.ndarray  # [K, 3]
    sizes: np.ndarray  # [K, 3] half-extents
    turns: np.ndarray  # [K, 3, 3] rotations
    shares: np.ndarray  # [K, 2] share of the object's colour, and of the second object's
    rests: np.ndarray  # [K, 3] RGB added to the shares


def fixed(red: float, green: float, blue: float) -> Paint:
    """Return a paint of a fixed colour, RGB in [0, 1]."""
    return Paint(0.0, (red, green, blue))


def mixed(other: Paint, amount: float) -> Paint:
    """Return the object's colour blended towards a fixed one by `amount` in [0, 1]."""
    red, green, blue = other.rest
    return Paint(1.0 - amount, (red * amount, green * amount, blue * amount))


OWN = Paint(1.0, (0.0, 0.0, 0.0))
BLACK, WHITE = fixed(0.04, 0.04, 0.05), fixed(0.97, 0.97, 0.97)
CREAM, PINK = fixed(0.98, 0.86, 0.66), fixed(0.95, 0.55, 0.6)
WOOD, STEEL, ORANGE = fixed(0.5, 0.32, 0.16), fixed(0.62, 0.64, 0.68), fixed(0.97, 0.52, 0.04)
PALE, DARK = mixed(CREAM, 0.72), mixed(BLACK, 0.4)
BOTH = (-1, 1)


def turned(axis: str, degrees: float) -> np.ndarray:
    """Return the rotation matrix [3, 3] about one axis ("x", "y" or "z")."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "x": ((1, 0, 0), (0, c, -s), (0, s, c)),
        "y": ((c, 0, s), (0, 1, 0), (-s, 0, c)),
        "z": ((c, -s, 0), (s, c, 0), (0, 0, 1)),
    }
    return np.array(rows[axis], float)


@dataclass(frozen=True)
class Model:
    """How one object is built, and what the captions and the judge need to know about it."""

    build: Callable[[Builder, int], None]  # (builder, variant)
    scale: float = 1.0  # keeps it inside the image from every side at the usual distance
    variants: int = 1
    front: bool = True  # front, side and back are clearly different
    lopsided: bool = False  # not mirror-symmetric (handles, spouts): the trainer never flips it
    hat: tuple[float, float, float, float] | None = None  # position of a hat: x, y, z of the brim's centre, head radius
    neck: tuple[float, float, float, float, float] | None = None  # of a scarf: x, y, z, radius, forward lean (degrees)


class Builder:
    """Collects an object's parts; shapes take centre, half-extents (one number for all three), paint and rotation."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Triple, Triple, Paint, np.ndarray]] = []

    def add(self, kind: int, at: Triple, size: Triple | float, paint: Paint, turn: np.ndarray | None) -> None:
        extents = size if isinstance(size, tuple) else (size, size, size)
        self.parts.append((kind, at, extents, paint, np.eye(3) if turn is None else turn))

    def ball(self, at: Triple, size: Triple | float, paint: Paint = OWN, turn: np.ndarray | None = None) -> None:
        self.add(BALL, at, size, paint, turn)

    def box(self, at: Triple, size: Triple | float, paint: Paint = OWN, turn: np.ndarray | None = None) -> None:
        self.add(CUBE, at, size, paint, turn)

    def rod(self, at: Triple, size: Triple | float, paint: Paint = OWN, turn: np.ndarray | None = None) -> None:
        self.add(CYLINDER, at, size, paint, turn)

    def cone(self, at: Triple, size: Triple | float, paint: Paint = OWN, turn: np.ndarray | None = None) -> None:
        self.add(CONE, at, size, paint, turn)

    def eyes(self, x: float, apart: float, z: float, radius: float) -> None:
        """Add two white eyes with black pupils looking along +x."""
        for side in BOTH:
            self.ball((x, side * apart, z), radius, WHITE)
            self.ball((x + 0.55 * radius, side * apart, z), 0.7 * radius, BLACK)

    def table(self, scale: float) -> Table:
        """Return the collected parts as a table, scaled about the origin."""
        kinds, centres, sizes, paints, turns = zip(*self.parts, strict=True)
        return Table(
            np.array(kinds, np.int64),
            scale * np.array(centres, float),
            scale * np.array(sizes, float),
            np.array(turns, float),
            np.array([(p.share, 0.0) for p in paints], float),
            np.array([p.rest for p in paints], float),
        )
