"""The sixteen objects of the toybox, built from balls, boxes, cylinders and cones.

Frame of an object: +x is its front, +y its left, +z up, all of it within about 1 of the origin. At 32 pixels
one pixel is about 0.07 here, so whatever must be seen (eyes, beak, belly, lamps) is at least 0.15 wide, and
everything that has a front shows something on the front that the back lacks, and the other way round.

A part's paint is `share * object colour + rest`, which covers fixed colours (share 0), the object's own (rest 0)
and any mixture of the two; so an object is a constant table into which the colour is put at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from sdlab.toybox.raytrace import BALL, CONE, CUBE, CYLINDER

Triple = tuple[float, float, float]


class Paint(NamedTuple):
    share: float
    rest: Triple


class Table(NamedTuple):
    """The K parts of an object: `local_to_world` of part k is turns[k] @ diag(sizes[k]), then + centres[k]."""

    kinds: np.ndarray  # [K]
    centres: np.ndarray  # [K, 3]
    sizes: np.ndarray  # [K, 3] half-extents
    turns: np.ndarray  # [K, 3, 3] rotations
    shares: np.ndarray  # [K, 1]
    rests: np.ndarray  # [K, 3]


def fixed(red: float, green: float, blue: float) -> Paint:
    return Paint(0.0, (red, green, blue))


def mixed(other: Paint, amount: float) -> Paint:
    """The object's colour moved towards a fixed one."""
    red, green, blue = other.rest
    return Paint(1.0 - amount, (red * amount, green * amount, blue * amount))


OWN = Paint(1.0, (0.0, 0.0, 0.0))
BLACK, WHITE = fixed(0.04, 0.04, 0.05), fixed(0.97, 0.97, 0.97)
CREAM, PINK = fixed(0.98, 0.86, 0.66), fixed(0.95, 0.55, 0.6)
WOOD, STEEL, ORANGE = fixed(0.5, 0.32, 0.16), fixed(0.62, 0.64, 0.68), fixed(0.97, 0.52, 0.04)
PALE, DARK = mixed(CREAM, 0.72), mixed(BLACK, 0.4)
BOTH = (-1, 1)


def turned(axis: str, degrees: float) -> np.ndarray:
    """Rotation matrix about one axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "x": ((1, 0, 0), (0, c, -s), (0, s, c)),
        "y": ((c, 0, s), (0, 1, 0), (-s, 0, c)),
        "z": ((c, -s, 0), (s, c, 0), (0, 0, 1)),
    }
    return np.array(rows[axis], float)


class Builder:
    """Collects parts; every method takes centre, half-extents (one number for all three), paint, rotation."""

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
        """Two white eyes with black pupils that look along +x."""
        for side in BOTH:
            self.ball((x, side * apart, z), radius, WHITE)
            self.ball((x + 0.55 * radius, side * apart, z), 0.7 * radius, BLACK)

    def table(self, scale: float) -> Table:
        kinds, centres, sizes, paints, turns = zip(*self.parts, strict=True)
        return Table(
            np.array(kinds, np.int64),
            scale * np.array(centres, float),
            scale * np.array(sizes, float),
            np.array(turns, float),
            np.array([[p.share] for p in paints], float),
            np.array([p.rest for p in paints], float),
        )


def sitting_body(b: Builder, width: float) -> None:
    """Body, pale belly, feet with pale soles and arms of a sitting animal."""
    b.ball((-0.02, 0, -0.36), (0.42 * width, 0.44 * width, 0.44))
    b.ball((0.17, 0, -0.34), (0.29 * width, 0.31 * width, 0.34), PALE)
    for side in BOTH:
        b.ball((0.26, side * 0.3, -0.72), (0.24, 0.16, 0.15))
        b.ball((0.42, side * 0.3, -0.71), (0.11, 0.11, 0.11), PALE)
        b.ball((0.18, side * 0.42, -0.22), (0.12, 0.11, 0.27), OWN, turned("y", -30))


def bear(b: Builder, variant: int) -> None:
    sitting_body(b, 1.0)
    b.ball((0.04, 0, 0.38), (0.40, 0.45, 0.40))
    b.ball((0.36, 0, 0.25), (0.2, 0.23, 0.18), PALE)
    b.ball((0.54, 0, 0.33), (0.08, 0.11, 0.08), BLACK)
    for side in BOTH:
        b.ball((-0.04, side * 0.38, 0.74), (0.10, 0.18, 0.18))
        b.ball((0.05, side * 0.38, 0.74), (0.05, 0.11, 0.11), PALE)
    b.eyes(0.34, 0.2, 0.5, 0.11)
    b.ball((-0.42, 0, -0.48), 0.17, PALE)


def cat(b: Builder, variant: int) -> None:
    sitting_body(b, 0.86)
    b.ball((0.04, 0, 0.34), (0.37, 0.46, 0.37))
    b.ball((0.35, 0, 0.21), (0.13, 0.2, 0.12), mixed(WHITE, 0.7))
    b.ball((0.47, 0, 0.28), (0.06, 0.08, 0.06), PINK)
    for side in BOTH:
        b.cone((0.0, side * 0.29, 0.76), (0.12, 0.19, 0.24), OWN, turned("x", -side * 14))
        b.cone((0.08, side * 0.29, 0.73), (0.08, 0.11, 0.17), PINK, turned("x", -side * 14))
        b.ball((0.33, side * 0.19, 0.43), (0.08, 0.11, 0.11), fixed(0.7, 0.92, 0.2))
        b.ball((0.39, side * 0.19, 0.43), (0.04, 0.05, 0.1), BLACK)
    b.ball((-0.16, 0, -0.2), (0.27, 0.2, 0.42), DARK)
    b.ball((-0.48, 0, -0.3), (0.1, 0.1, 0.46), OWN, turned("y", -24))
    b.ball((-0.67, 0, 0.13), (0.1, 0.1, 0.13), mixed(WHITE, 0.7))


def rabbit(b: Builder, variant: int) -> None:
    sitting_body(b, 0.86)
    b.ball((0.04, 0, 0.22), (0.36, 0.38, 0.34))
    b.ball((0.32, 0, 0.1), (0.15, 0.2, 0.13), mixed(WHITE, 0.7))
    b.ball((0.45, 0, 0.18), (0.06, 0.08, 0.06), PINK)
    for side in BOTH:
        b.ball((-0.04, side * 0.2, 0.74), (0.08, 0.14, 0.36), OWN, turned("x", -side * 10))
        b.ball((0.04, side * 0.2, 0.74), (0.05, 0.08, 0.27), PINK, turned("x", -side * 10))
    b.eyes(0.31, 0.18, 0.33, 0.1)
    b.ball((-0.42, 0, -0.5), 0.22, WHITE)


def duck(b: Builder, variant: int) -> None:
    """Long body, so that the side differs from front and back; beak and pale breast in front, dark tail behind."""
    b.ball((-0.12, 0, -0.3), (0.6, 0.38, 0.36))
    b.ball((0.22, 0, -0.26), (0.31, 0.27, 0.31), mixed(WHITE, 0.75))
    b.cone((-0.74, 0, -0.02), (0.16, 0.2, 0.3), DARK, turned("y", -55))
    b.ball((0.2, 0, 0.32), (0.35, 0.35, 0.36))
    b.ball((0.58, 0, 0.22), (0.27, 0.22, 0.08), ORANGE)
    b.ball((0.5, 0, 0.15), (0.2, 0.17, 0.06), BLACK)
    b.eyes(0.42, 0.19, 0.45, 0.11)
    for side in BOTH:
        b.ball((-0.22, side * 0.33, -0.22), (0.36, 0.12, 0.22), DARK, turned("y", 12))
        b.ball((0.1, side * 0.2, -0.76), (0.24, 0.15, 0.06), ORANGE)
        b.rod((0.0, side * 0.2, -0.65), (0.06, 0.06, 0.1), ORANGE)


def robot(b: Builder, variant: int) -> None:
    b.box((0, 0, -0.2), (0.28, 0.38, 0.33))
    b.box((0.29, 0, -0.14), (0.02, 0.27, 0.2), STEEL)
    b.ball((0.32, -0.12, -0.13), 0.09, fixed(0.9, 0.1, 0.1))
    b.ball((0.32, 0.12, -0.13), 0.09, fixed(0.98, 0.88, 0.1))
    b.box((-0.34, 0, -0.16), (0.1, 0.26, 0.24), DARK)
    for level in (-0.04, -0.26):
        b.box((-0.45, 0, level), (0.02, 0.2, 0.05), fixed(0.98, 0.8, 0.1))
    b.rod((0, 0, 0.16), (0.12, 0.12, 0.06), STEEL)
    b.box((0, 0, 0.45), (0.29, 0.36, 0.26))
    b.box((0.3, 0, 0.31), (0.02, 0.22, 0.06), BLACK)
    b.rod((0, 0, 0.78), (0.035, 0.035, 0.12), STEEL)
    b.ball((0, 0, 0.92), 0.09, fixed(0.9, 0.1, 0.1))
    for side in BOTH:
        b.rod((0.3, side * 0.17, 0.52), (0.11, 0.11, 0.03), fixed(0.2, 0.95, 1.0), turned("y", 90))
        b.ball((0, side * 0.47, 0.04), 0.14, DARK)
        b.rod((0, side * 0.49, -0.22), (0.1, 0.1, 0.28), STEEL)
        b.ball((0, side * 0.49, -0.54), 0.13, DARK)
        b.box((0, side * 0.19, -0.68), (0.12, 0.12, 0.18), STEEL)
        b.box((0.08, side * 0.19, -0.86), (0.22, 0.16, 0.08), DARK)


def person(b: Builder, variant: int) -> None:
    skin = fixed(0.97, 0.76, 0.6) if variant == 0 else fixed(0.56, 0.36, 0.24)
    trousers, hair = fixed(0.16, 0.2, 0.4), fixed(0.22, 0.12, 0.05) if variant == 0 else BLACK
    b.ball((0.02, 0, 0.5), (0.34, 0.34, 0.36), skin)
    b.ball((-0.07, 0, 0.6), (0.35, 0.38, 0.34), hair)
    b.ball((-0.2, 0, 0.42), (0.22, 0.33, 0.33), hair)
    b.eyes(0.29, 0.14, 0.5, 0.09)
    b.ball((0.31, 0, 0.3), (0.05, 0.13, 0.045), fixed(0.75, 0.12, 0.12))
    b.rod((0, 0, -0.06), (0.23, 0.31, 0.27))
    b.ball((0, 0, 0.17), (0.23, 0.31, 0.11))
    b.ball((0.14, 0, 0.12), (0.14, 0.13, 0.12), WHITE)
    for side in BOTH:
        b.ball((0.03, side * 0.4, -0.04), (0.11, 0.11, 0.28), OWN, turned("x", side * 14))
        b.ball((0.05, side * 0.46, -0.32), 0.1, skin)
        b.rod((0, side * 0.15, -0.58), (0.13, 0.13, 0.28), trousers)
        b.ball((0.08, side * 0.15, -0.88), (0.23, 0.13, 0.09), BLACK)


def snowman(b: Builder, variant: int) -> None:
    b.ball((0, 0, -0.48), 0.44, WHITE)
    b.ball((0, 0, 0.06), 0.34, WHITE)
    b.ball((0, 0, 0.52), 0.29, WHITE)
    b.cone((0.42, 0, 0.48), (0.09, 0.09, 0.2), ORANGE, turned("y", 90))
    for side in BOTH:
        b.ball((0.24, side * 0.12, 0.6), 0.08, BLACK)
    b.rod((0, 0, 0.76), (0.36, 0.36, 0.035))
    b.rod((0, 0, 0.9), (0.24, 0.24, 0.14))
    b.rod((0, 0, 0.29), (0.29, 0.29, 0.075))
    for height in (-0.42, -0.08, 0.12):
        b.ball((0.42 if height < -0.2 else 0.31, 0, height), 0.08, BLACK)
    b.box((-0.3, 0, 0.1), (0.05, 0.1, 0.2), OWN, turned("y", 12))


def mug(b: Builder, variant: int) -> None:
    """A pale badge on the front, the handle on the left (+y)."""
    b.rod((0, 0, -0.05), (0.46, 0.46, 0.54))
    b.rod((0, 0, 0.49), (0.39, 0.39, 0.015), fixed(0.25, 0.13, 0.06))
    b.ball((0.4, 0, -0.05), (0.1, 0.22, 0.24), mixed(WHITE, 0.8))
    for k in range(7):
        angle = math.radians(-90 + 30 * k)
        b.ball((0, 0.46 + 0.28 * math.cos(angle), -0.05 + 0.3 * math.sin(angle)), 0.09)


def chair(b: Builder, variant: int) -> None:
    b.box((0, 0, -0.1), (0.44, 0.44, 0.06), DARK)
    b.box((0.02, 0, -0.01), (0.38, 0.38, 0.06))
    b.box((-0.4, 0, 0.42), (0.06, 0.44, 0.46), DARK)
    b.box((-0.33, 0, 0.44), (0.04, 0.34, 0.34))
    for side in BOTH:
        for end in BOTH:
            b.rod((end * 0.36, side * 0.36, -0.54), (0.065, 0.065, 0.38), DARK)


def car(b: Builder, variant: int) -> None:
    glass = fixed(0.55, 0.78, 0.92)
    b.box((0, 0, -0.2), (0.8, 0.38, 0.19))
    b.ball((0.5, 0, -0.1), (0.36, 0.37, 0.2))
    b.box((-0.12, 0, 0.1), (0.44, 0.33, 0.18), glass)
    b.box((-0.53, 0, 0.1), (0.05, 0.34, 0.19))
    b.box((-0.12, 0, 0.28), (0.44, 0.35, 0.05))
    b.box((0.81, 0, -0.27), (0.02, 0.2, 0.08), BLACK)
    b.box((-0.81, 0, -0.27), (0.02, 0.16, 0.07), WHITE)
    for side in BOTH:
        b.ball((0.8, side * 0.26, -0.15), 0.12, fixed(1.0, 0.96, 0.6))
        b.box((-0.81, side * 0.27, -0.1), (0.03, 0.1, 0.08), fixed(0.92, 0.04, 0.04))
        for x in (-0.46, 0.46):
            b.rod((x, side * 0.37, -0.4), (0.21, 0.21, 0.08), BLACK, turned("x", 90))
            b.rod((x, side * 0.42, -0.4), (0.1, 0.1, 0.05), fixed(0.82, 0.82, 0.82), turned("x", 90))


def house(b: Builder, variant: int) -> None:
    """The gable faces front and back; a box on its edge fills the triangle under the roof's two slabs."""
    roof = fixed(0.58, 0.2, 0.13) if variant == 0 else fixed(0.27, 0.29, 0.36)
    glass = fixed(0.55, 0.85, 0.98)
    b.box((0, 0, -0.36), (0.56, 0.5, 0.4))
    b.box((0, 0, 0.04), (0.55, 0.35, 0.35), OWN, turned("x", 45))
    for side in BOTH:
        b.box((0, side * 0.3, 0.32), (0.64, 0.44, 0.05), roof, turned("x", -side * 45))
        b.box((0.57, side * 0.31, -0.25), (0.02, 0.13, 0.14), glass)
        b.box((0, side * 0.51, -0.3), (0.22, 0.02, 0.15), glass)
    b.box((0.57, 0, -0.48), (0.03, 0.14, 0.28), WOOD)
    b.ball((0.56, 0, 0.2), (0.05, 0.12, 0.12), glass)
    b.box((-0.34, 0, 0.62), (0.12, 0.12, 0.26), roof)


def mushroom(b: Builder, variant: int) -> None:
    b.rod((0, 0, -0.45), (0.2, 0.2, 0.4), fixed(0.93, 0.88, 0.76))
    b.ball((0, 0, 0.1), (0.68, 0.68, 0.42))
    b.rod((0, 0, -0.08), (0.62, 0.62, 0.03), fixed(0.9, 0.82, 0.68))
    for k in range(6):
        around, up = math.radians(60 * k), math.radians(24)
        b.ball((0.66 * math.cos(around) * math.cos(up), 0.66 * math.sin(around) * math.cos(up), 0.27), 0.12, WHITE)
        around += math.radians(30)
        if k % 2:
            b.ball((0.36 * math.cos(around), 0.36 * math.sin(around), 0.44), 0.12, WHITE)
    b.ball((0, 0, 0.5), (0.13, 0.13, 0.07), WHITE)


def cactus(b: Builder, variant: int) -> None:
    b.rod((0, 0, -0.66), (0.32, 0.32, 0.24), fixed(0.75, 0.36, 0.2))
    b.rod((0, 0, -0.42), (0.38, 0.38, 0.08), fixed(0.82, 0.44, 0.27))
    b.ball((0, 0, 0.15), (0.25, 0.25, 0.68))
    b.ball((0, 0.34, 0.08), (0.12, 0.24, 0.12))
    b.ball((0, 0.52, 0.28), (0.12, 0.12, 0.28))
    b.ball((0, -0.32, -0.08), (0.12, 0.22, 0.12))
    b.ball((0, -0.47, 0.1), (0.12, 0.12, 0.24))
    b.ball((0, 0, 0.84), 0.14, fixed(0.95, 0.4, 0.6))


def teapot(b: Builder, variant: int) -> None:
    """Spout on the right (-y), handle on the left (+y), a pale flower on the front."""
    b.ball((0, 0, -0.12), (0.5, 0.5, 0.43))
    b.ball((0.39, 0, -0.1), (0.12, 0.18, 0.18), mixed(WHITE, 0.8))
    b.ball((0, 0, 0.28), (0.29, 0.29, 0.09), DARK)
    b.ball((0, 0, 0.43), 0.11, DARK)
    b.rod((0, 0, -0.52), (0.32, 0.32, 0.06), DARK)
    b.cone((0, -0.6, 0.03), (0.15, 0.15, 0.46), OWN, turned("x", 48))
    for k in range(7):
        angle = math.radians(-80 + 27 * k)
        b.ball((0, 0.46 + 0.3 * math.cos(angle), -0.08 + 0.27 * math.sin(angle)), 0.08)


def tree(b: Builder, variant: int) -> None:
    b.rod((0, 0, -0.62), (0.15, 0.15, 0.3), WOOD)
    for height, radius in ((-0.14, 0.62), (0.26, 0.5), (0.62, 0.36)):
        b.cone((0, 0, height), (radius, radius, 0.33))


def rocket(b: Builder, variant: int) -> None:
    b.rod((0, 0, -0.1), (0.3, 0.3, 0.48), fixed(0.92, 0.92, 0.92))
    b.rod((0, 0, -0.38), (0.31, 0.31, 0.1))
    b.cone((0, 0, 0.66), (0.3, 0.3, 0.3))
    b.rod((0.28, 0, 0.12), (0.17, 0.17, 0.05), DARK, turned("y", 90))
    b.rod((0.31, 0, 0.12), (0.12, 0.12, 0.05), fixed(0.3, 0.75, 1.0), turned("y", 90))
    b.cone((0, 0, -0.74), (0.2, 0.2, 0.18), fixed(1.0, 0.6, 0.1), turned("x", 180))
    for k in range(4):
        turn = turned("z", 90 * k + 45)
        x, y, z = (float(v) for v in turn @ np.array((0.4, 0, -0.5)))
        b.box((x, y, z), (0.19, 0.045, 0.22), OWN, turn)


OBJECTS: dict[str, Callable[[Builder, int], None]] = {
    "bear": bear,
    "cat": cat,
    "rabbit": rabbit,
    "duck": duck,
    "robot": robot,
    "person": person,
    "snowman": snowman,
    "car": car,
    "house": house,
    "chair": chair,
    "mug": mug,
    "teapot": teapot,
    "rocket": rocket,
    "cactus": cactus,
    "mushroom": mushroom,
    "tree": tree,
}
# Of whole objects, so that from every side they stay inside the picture at the usual distance.
SCALES = {
    "bear": 0.97,
    "cat": 0.97,
    "rabbit": 0.89,
    "robot": 0.94,
    "person": 0.96,
    "snowman": 0.9,
    "house": 0.93,
    "chair": 0.92,
    "cactus": 0.97,
}
VARIANTS = {"person": 2, "house": 2}  # others have one
# Not their own mirror image: handles, spouts, arms of unequal height. The trainer never flips these.
LOPSIDED = frozenset({"mug", "teapot", "cactus"})


@cache
def table(name: str, variant: int = 0) -> Table:
    """The constant parts of one object; ValueError names the objects there are."""
    if name not in OBJECTS:
        raise ValueError(f"no object {name!r} in the toybox; it has {', '.join(OBJECTS)}")
    builder = Builder()
    OBJECTS[name](builder, variant)
    return builder.table(SCALES.get(name, 1.0))
