"""Vehicles, buildings, furniture, plants and what stands on a table. Frame and paints: `sdlab.toybox.solids`."""

from __future__ import annotations

import math

import numpy as np

from sdlab.toybox.solids import BLACK, BOTH, DARK, OWN, WHITE, WOOD, Builder, Model, fixed, mixed, turned


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


THINGS: dict[str, Model] = {
    "car": Model(car),
    "house": Model(house, 0.93, variants=2),
    "chair": Model(chair, 0.92),
    "mug": Model(mug, lopsided=True),
    "teapot": Model(teapot, lopsided=True),
    "rocket": Model(rocket),
    "cactus": Model(cactus, 0.97, front=False, lopsided=True),
    "mushroom": Model(mushroom, front=False),
    "tree": Model(tree, front=False),
}
