"""Toybox objects without a face: vehicles, buildings, furniture, tableware, plants. Frame: `sdlab.toybox.solids`.

The object's own colour covers most of every side and of the top. Fixed-colour markings come as two tones that contrast
with each other (red lamps on a black band, a yellow flame in a black eye), so that one of them shows on any colour.
"""

from __future__ import annotations

import math
from itertools import pairwise

from sdlab.toybox.solids import (
    BLACK,
    BOTH,
    CREAM,
    DARK,
    OWN,
    PALE,
    STEEL,
    WHITE,
    WOOD,
    Builder,
    Model,
    Paint,
    fixed,
    mixed,
    turned,
)

GLASS, NIGHT = fixed(0.6, 0.85, 0.98), fixed(0.12, 0.16, 0.3)  # window panes; portholes
LAMP, RED, GOLD = fixed(1.0, 0.95, 0.55), fixed(0.93, 0.05, 0.05), fixed(0.98, 0.76, 0.12)
BRICK, LEAF, RIM = fixed(0.66, 0.27, 0.2), fixed(0.2, 0.55, 0.15), fixed(0.84, 0.85, 0.87)
SHADED = mixed(BLACK, 0.22)
ALONG_X, ALONG_Y = turned("y", 90), turned("x", 90)  # for rods; half-extents are then given as (z, y, x) and (x, z, y)


def wheels(b: Builder, places: tuple[float, ...], apart: float, height: float, radius: float) -> None:
    """Add a black wheel left and right at each x, and an axle whose ends form the bright hubs."""
    for x in places:
        for side in BOTH:
            b.rod((x, side * apart, height), (radius, radius, 0.08), BLACK, ALONG_Y)
        b.rod((x, 0, height), (0.5 * radius, 0.5 * radius, apart + 0.1), RIM, ALONG_Y)


def tail_lamps(b: Builder, x: float, z: float, width: float) -> None:
    """Add a black band across the back, with red lamps at its ends and a number plate in the middle."""
    b.box((x, 0, z), (0.02, width, 0.12), BLACK)
    b.box((x - 0.015, 0, z), (0.02, 0.38 * width, 0.075), WHITE)
    for side in BOTH:
        b.box((x - 0.02, side * 0.7 * width, z), (0.03, 0.22 * width, 0.085), RED)


def car(b: Builder, variant: int) -> None:
    """Wide and low; long bonnet and sloping windscreen in front, a steep hatch in the object's colour behind."""
    b.box((0, 0, -0.1), (0.84, 0.43, 0.18))
    b.box((0.53, 0, 0.07), (0.3, 0.39, 0.05), OWN, turned("y", 6))
    b.box((-0.24, 0, 0.22), (0.42, 0.35, 0.17), GLASS)
    b.box((0.2, 0, 0.18), (0.06, 0.35, 0.23), GLASS, turned("y", -40))
    b.box((-0.27, 0, 0.4), (0.4, 0.38, 0.05))
    b.box((-0.2, 0, 0.21), (0.05, 0.365, 0.17))
    b.box((-0.68, 0, 0.22), (0.08, 0.38, 0.22), OWN, turned("y", 14))
    b.box((-0.76, 0, 0.25), (0.03, 0.25, 0.11), GLASS, turned("y", 14))
    b.box((0.85, 0, -0.08), (0.02, 0.2, 0.1), BLACK)
    tail_lamps(b, -0.85, -0.06, 0.42)
    for end in BOTH:
        b.box((end * 0.86, 0, -0.24), (0.05, 0.45, 0.045), STEEL)
    for side in BOTH:
        b.ball((0.83, side * 0.31, -0.05), (0.07, 0.13, 0.13), LAMP)
    wheels(b, (-0.5, 0.5), 0.4, -0.28, 0.22)


def bus(b: Builder, variant: int) -> None:
    """A tall box: one large windscreen below a sign in front, a small window high up behind, four on each side."""
    b.box((0, 0, 0.06), (0.86, 0.36, 0.4))
    b.box((0, 0, 0.47), (0.8, 0.3, 0.05))
    b.box((0, 0, -0.1), (0.865, 0.365, 0.04), WHITE)
    for x in (-0.63, -0.23, 0.17, 0.57):
        b.box((x, 0, 0.2), (0.15, 0.37, 0.14), GLASS)
    b.box((0.86, 0, 0.14), (0.02, 0.29, 0.16), GLASS)
    b.box((0.87, 0, 0.39), (0.02, 0.24, 0.06), BLACK)
    b.box((0.88, 0, 0.39), (0.02, 0.18, 0.025), LAMP)
    b.box((-0.86, 0, 0.27), (0.02, 0.18, 0.09), GLASS)
    tail_lamps(b, -0.87, -0.1, 0.36)
    for x in (-0.45, 0.35):
        b.box((x, 0, 0.53), (0.17, 0.2, 0.04), WHITE)
    for end in BOTH:
        b.box((end * 0.87, 0, -0.3), (0.03, 0.37, 0.05), SHADED)
    for side in BOTH:
        b.ball((0.86, side * 0.25, -0.18), (0.05, 0.1, 0.1), LAMP)
    wheels(b, (-0.52, 0.52), 0.33, -0.36, 0.18)


def train(b: Builder, variant: int) -> None:
    """A steam locomotive: a black door with a big lamp in front, the driver's cab and the coal behind."""
    b.box((-0.08, 0, -0.27), (0.76, 0.26, 0.07), SHADED)
    b.rod((0.14, 0, 0.0), (0.31, 0.31, 0.58), OWN, ALONG_X)
    b.rod((0.2, 0, 0.0), (0.325, 0.325, 0.03), GOLD, ALONG_X)
    b.rod((0.71, 0, 0.0), (0.23, 0.23, 0.03), BLACK, ALONG_X)
    b.ball((0.73, 0, 0.0), (0.1, 0.15, 0.15), LAMP)
    b.rod((0.5, 0, 0.38), (0.11, 0.11, 0.14), BLACK)
    b.cone((0.5, 0, 0.46), (0.21, 0.21, 0.22), BLACK, turned("x", 180))
    b.ball((0.0, 0, 0.3), (0.14, 0.14, 0.15), GOLD)
    b.box((-0.55, 0, 0.12), (0.24, 0.36, 0.4))
    b.box((-0.53, 0, 0.27), (0.13, 0.37, 0.13), GLASS)
    b.box((-0.79, 0, 0.32), (0.02, 0.2, 0.1), GLASS)
    b.box((-0.55, 0, 0.54), (0.32, 0.42, 0.05))
    b.box((-0.82, 0, -0.12), (0.1, 0.36, 0.18))
    b.ball((-0.83, 0, 0.07), (0.1, 0.3, 0.12), BLACK)
    b.box((0.7, 0, -0.25), (0.05, 0.34, 0.07))
    b.box((0.7, 0, -0.4), (0.17, 0.17, 0.09), STEEL, turned("z", 45))
    for side in BOTH:
        b.ball((-0.92, side * 0.22, -0.14), (0.05, 0.1, 0.1), RED)
    wheels(b, (-0.52, -0.1, 0.32), 0.3, -0.36, 0.2)


def airplane(b: Builder, variant: int) -> None:
    """Propeller and cockpit in front, tall fin and tailplane behind."""
    b.ball((0, 0, 0), (0.86, 0.23, 0.24))
    b.ball((0.12, 0, -0.05), (0.25, 0.96, 0.055))
    b.ball((-0.74, 0, 0.08), (0.16, 0.42, 0.045))
    b.box((-0.74, 0, 0.3), (0.13, 0.035, 0.22), OWN, turned("y", -22))
    b.box((-0.78, 0, 0.41), (0.13, 0.04, 0.05), WHITE, turned("y", -22))
    b.ball((0.26, 0, 0.2), (0.26, 0.15, 0.15), GLASS)
    for x in (-0.36, -0.16):
        b.rod((x, 0, 0.07), (0.065, 0.065, 0.222), NIGHT, ALONG_Y)
    for side in BOTH:
        b.box((0.84, 0, 0), (0.02, 0.05, 0.34), BLACK, turned("x", side * 45))
        b.box((0.12, side * 0.74, -0.05), (0.2, 0.06, 0.05), WHITE)
        b.rod((0.24, side * 0.26, -0.2), (0.04, 0.04, 0.14), STEEL)
        b.rod((0.24, side * 0.26, -0.34), (0.12, 0.12, 0.06), BLACK, ALONG_Y)
    b.ball((0.86, 0, 0), (0.13, 0.1, 0.1), GOLD)


def boat(b: Builder, variant: int) -> None:
    """A round hull; the bow is a cone tilted so that its upper edge is level. A lifebuoy hangs on the flat stern."""
    b.rod((-0.24, 0, -0.3), (0.25, 0.37, 0.54), OWN, ALONG_X)
    b.cone((0.6, 0, -0.2), (0.25, 0.37, 0.4), OWN, turned("y", 73))
    b.box((-0.24, 0, -0.1), (0.56, 0.4, 0.045), WHITE)
    b.cone((0.62, 0, -0.1), (0.045, 0.4, 0.36), WHITE, ALONG_X)
    b.box((-0.24, 0, -0.06), (0.52, 0.34, 0.04))
    b.cone((0.59, 0, -0.06), (0.04, 0.34, 0.31), OWN, ALONG_X)
    b.box((-0.1, 0, 0.11), (0.32, 0.26, 0.18), WHITE)
    b.box((0.23, 0, 0.14), (0.02, 0.2, 0.09), NIGHT)
    for x in (-0.25, 0.05):
        b.rod((x, 0, 0.12), (0.09, 0.09, 0.272), NIGHT, ALONG_Y)
    b.box((-0.1, 0, 0.32), (0.39, 0.33, 0.05))
    b.rod((-0.18, 0, 0.5), (0.15, 0.15, 0.16))
    b.rod((-0.18, 0, 0.68), (0.16, 0.16, 0.055), BLACK)
    b.rod((-0.79, 0, -0.3), (0.19, 0.19, 0.04), WHITE, ALONG_X)
    b.rod((-0.81, 0, -0.3), (0.15, 0.15, 0.04), RED, ALONG_X)
    b.rod((-0.82, 0, -0.3), (0.08, 0.08, 0.04), WHITE, ALONG_X)
    b.rod((-0.7, 0, 0.12), (0.025, 0.025, 0.22), WOOD)
    b.box((-0.83, 0, 0.27), (0.13, 0.02, 0.09), RED)


def rocket(b: Builder, variant: int) -> None:
    """A large window in front, a ladder behind; fins left, right and behind, so that the side view shows one."""
    b.ball((0, 0, 0.14), (0.37, 0.37, 0.84))
    b.rod((0, 0, 0.62), (0.307, 0.307, 0.04), WHITE)
    b.rod((0, 0, -0.36), (0.31, 0.31, 0.045), WHITE)
    b.rod((0.31, 0, 0.22), (0.22, 0.22, 0.09), WHITE, ALONG_X)
    b.rod((0.34, 0, 0.22), (0.15, 0.15, 0.08), NIGHT, ALONG_X)
    b.ball((0.41, 0, 0.28), (0.03, 0.05, 0.05), WHITE)
    b.box((-0.33, 0, 0.16), (0.07, 0.14, 0.34), WHITE)
    for level in (-0.04, 0.16, 0.36):
        b.box((-0.36, 0, level), (0.06, 0.14, 0.04), BLACK)
    for degrees in (90, 180, 270):
        out = turned("z", degrees)
        x, y = float(out[0, 0]), float(out[1, 0])
        b.box((0.42 * x, 0.42 * y, -0.46), (0.24, 0.05, 0.21), OWN, out @ turned("y", 35))
        b.box((0.6 * x, 0.6 * y, -0.66), (0.07, 0.06, 0.2), OWN, out)
    b.rod((0, 0, -0.68), (0.2, 0.2, 0.09), BLACK)
    b.cone((0, 0, -0.84), (0.17, 0.17, 0.12), fixed(1.0, 0.6, 0.1), turned("x", 180))


def house(b: Builder, variant: int) -> None:
    """Gables front and back; the door with its step in front, a full-height chimney behind."""
    trim = WHITE if variant == 0 else NIGHT
    door, chimney = (WOOD, BRICK) if variant == 0 else (WHITE, STEEL)
    b.box((0, 0, -0.36), (0.56, 0.5, 0.36))
    b.box((0, 0, 0.0), (0.55, 0.353, 0.353), OWN, turned("x", 45))
    for side in BOTH:
        b.box((0, side * 0.3, 0.26), (0.64, 0.46, 0.055), trim, turned("x", -side * 45))
        b.box((0, side * 0.315, 0.275), (0.57, 0.42, 0.06), OWN, turned("x", -side * 45))
        b.box((0.57, side * 0.32, -0.27), (0.02, 0.13, 0.15), trim)
        b.box((0.58, side * 0.32, -0.27), (0.02, 0.09, 0.11), GLASS)
    for x in (-0.26, 0.26):
        b.box((x, 0, -0.28), (0.16, 0.515, 0.15), trim)
        b.box((x, 0, -0.28), (0.12, 0.52, 0.11), GLASS)
    b.box((0.57, 0, -0.42), (0.03, 0.17, 0.31), trim)
    b.box((0.59, 0, -0.44), (0.03, 0.12, 0.28), door)
    b.box((0.68, 0, -0.7), (0.12, 0.22, 0.04), STEEL)
    b.rod((0.55, 0, 0.15), (0.13, 0.13, 0.03), trim, ALONG_X)
    b.rod((0.56, 0, 0.15), (0.09, 0.09, 0.03), GLASS, ALONG_X)
    b.box((-0.62, 0, 0.0), (0.11, 0.15, 0.72), chimney)
    b.box((-0.62, 0, 0.73), (0.13, 0.17, 0.04), BLACK)


def castle(b: Builder, variant: int) -> None:
    """A gate between two tall roofed towers in front; low towers, lit windows and a banner behind."""
    b.box((0, 0, -0.34), (0.5, 0.5, 0.32))
    for side in BOTH:
        b.rod((0.5, side * 0.5, -0.14), (0.2, 0.2, 0.54))
        b.cone((0.5, side * 0.5, 0.62), (0.25, 0.25, 0.24), DARK)
        b.rod((-0.5, side * 0.5, -0.26), (0.19, 0.19, 0.42))
        b.rod((-0.5, side * 0.5, 0.18), (0.23, 0.23, 0.07))
        b.box((0.7, side * 0.5, 0.1), (0.03, 0.05, 0.12), BLACK)
        b.box((0, side * 0.5, 0.04), (0.12, 0.04, 0.06))
        b.box((-0.51, side * 0.23, -0.3), (0.02, 0.06, 0.11), LAMP)
        b.box((-0.5, side * 0.14, 0.04), (0.05, 0.08, 0.06))
    b.box((-0.51, 0, -0.28), (0.02, 0.13, 0.24), WHITE)
    b.box((-0.53, 0, -0.26), (0.02, 0.08, 0.19), RED)
    b.box((0, 0, -0.24), (0.05, 0.515, 0.13), BLACK)
    b.box((0.5, 0, -0.42), (0.06, 0.24, 0.24), WHITE)
    b.rod((0.5, 0, -0.2), (0.24, 0.24, 0.06), WHITE, ALONG_X)
    b.box((0.52, 0, -0.42), (0.06, 0.17, 0.24), BLACK)
    b.rod((0.52, 0, -0.2), (0.17, 0.17, 0.06), BLACK, ALONG_X)
    b.box((-0.12, 0, 0.1), (0.24, 0.24, 0.3))
    b.box((-0.12, 0, 0.42), (0.28, 0.28, 0.06))
    b.rod((-0.12, 0, 0.64), (0.025, 0.025, 0.2), WOOD)
    b.box((-0.26, 0, 0.76), (0.14, 0.02, 0.09), RED)


def chair(b: Builder, variant: int) -> None:
    """Pale cushions on the seat and on the front of the backrest; black slats behind."""
    b.box((0, 0, -0.12), (0.44, 0.44, 0.07))
    b.box((0.03, 0, -0.04), (0.34, 0.32, 0.06), PALE)
    for side in BOTH:
        b.box((-0.4, side * 0.38, 0.38), (0.065, 0.07, 0.52))
        b.rod((0.36, side * 0.36, -0.54), (0.075, 0.075, 0.38))
        b.rod((-0.38, side * 0.37, -0.54), (0.075, 0.075, 0.38))
    b.box((-0.38, 0, 0.4), (0.05, 0.36, 0.46))
    b.box((-0.33, 0, 0.48), (0.04, 0.24, 0.22), PALE)
    b.box((-0.4, 0, 0.86), (0.07, 0.42, 0.08))
    for level in (0.16, 0.4, 0.64):
        b.box((-0.43, 0, level), (0.03, 0.3, 0.065), BLACK)


def sofa(b: Builder, variant: int) -> None:
    """Two seats with pale pillows in front; a plain back with a dark rail."""
    b.box((0.02, 0, -0.28), (0.42, 0.8, 0.14))
    b.box((-0.36, 0, 0.06), (0.13, 0.76, 0.42))
    b.rod((-0.36, 0, 0.46), (0.14, 0.14, 0.76), OWN, ALONG_Y)
    for side in BOTH:
        b.box((0.02, side * 0.78, -0.12), (0.45, 0.12, 0.26))
        b.rod((0.02, side * 0.78, 0.14), (0.14, 0.14, 0.46), OWN, ALONG_X)
        b.ball((0.47, side * 0.78, 0.14), (0.03, 0.09, 0.09), DARK)
        b.box((0.1, side * 0.33, -0.09), (0.37, 0.31, 0.07), SHADED)
        b.box((-0.14, side * 0.4, 0.18), (0.08, 0.2, 0.2), PALE, turned("y", -18) @ turned("x", 12 * side))
        for end in BOTH:
            b.rod((end * 0.34, side * 0.72, -0.48), (0.06, 0.06, 0.08), BLACK)
    b.box((-0.5, 0, -0.2), (0.02, 0.74, 0.06), BLACK)


def bar(b: Builder, start: tuple[float, float], end: tuple[float, float], radius: float) -> None:
    """Add a rod with a rounded end between two points (y, z) of the plane x = 0."""
    y, z = end[0] - start[0], end[1] - start[1]
    middle = (0.0, 0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1]))
    b.rod(middle, (radius, radius, 0.5 * math.hypot(y, z)), OWN, turned("x", -math.degrees(math.atan2(y, z))))
    b.ball((0.0, *end), radius)


def handle(b: Builder, y: float, z: float, width: float, height: float, radius: float) -> None:
    """Add half a ring on the left (+y)."""
    angles = [math.radians(-85 + 34 * k) for k in range(6)]
    points = [(y + width * math.cos(a), z + height * math.sin(a)) for a in angles]
    for start, end in pairwise(points):
        bar(b, start, end, radius)


def mug(b: Builder, variant: int) -> None:
    """A red heart on a white badge in front, the handle on the left (+y)."""
    b.rod((0, -0.12, -0.03), (0.48, 0.48, 0.6))
    b.rod((0, -0.12, 0.57), (0.41, 0.41, 0.012), SHADED)
    b.rod((0, -0.12, 0.58), (0.33, 0.33, 0.012), fixed(0.25, 0.13, 0.06))
    handle(b, 0.34, -0.03, 0.34, 0.34, 0.085)
    b.ball((0.42, -0.12, -0.02), (0.1, 0.34, 0.36), WHITE)
    for side in BOTH:
        b.ball((0.49, -0.12 + side * 0.09, 0.05), (0.06, 0.12, 0.12), RED)
    b.box((0.48, -0.12, -0.04), (0.06, 0.12, 0.12), RED, turned("x", 45))


def teapot(b: Builder, variant: int) -> None:
    """Spout on the right (-y), handle on the left (+y), a white flower on the front."""
    b.ball((0, 0, -0.12), (0.54, 0.54, 0.46))
    b.ball((0, 0, 0.3), (0.31, 0.31, 0.1), SHADED)
    b.ball((0, 0, 0.45), 0.11, GOLD)
    b.rod((0, 0, -0.56), (0.33, 0.33, 0.06), SHADED)
    bar(b, (-0.4, -0.26), (-0.67, -0.06), 0.15)
    bar(b, (-0.65, -0.1), (-0.76, 0.16), 0.11)
    bar(b, (-0.76, 0.16), (-0.88, 0.27), 0.085)
    handle(b, 0.46, -0.08, 0.36, 0.29, 0.075)
    for k in range(5):
        angle = math.radians(90 + 72 * k)
        b.ball((0.49, 0.17 * math.cos(angle), -0.11 + 0.17 * math.sin(angle)), (0.07, 0.115, 0.115), WHITE)
    b.ball((0.53, 0, -0.11), (0.06, 0.1, 0.1), GOLD)


def clock(b: Builder, variant: int) -> None:
    """An alarm clock at ten past ten, with equal hands, so that it is mirror-symmetric. A gold key behind."""
    b.rod((0, 0, -0.12), (0.6, 0.6, 0.25), OWN, ALONG_X)
    b.rod((0.2, 0, -0.12), (0.43, 0.43, 0.07), WHITE, ALONG_X)
    for side in BOTH:
        b.box((0.28, side * 0.12, 0.0), (0.02, 0.04, 0.19), BLACK, turned("x", -side * 52))
        b.box((0.27, side * 0.36, -0.12), (0.02, 0.05, 0.035), BLACK)
        b.box((0.27, 0, -0.12 + side * 0.36), (0.02, 0.035, 0.05), BLACK)
        b.ball((0, side * 0.36, 0.55), (0.25, 0.25, 0.2), OWN, turned("x", -side * 32))
        b.rod((0, side * 0.4, -0.72), (0.09, 0.09, 0.14), OWN, turned("x", side * 30))
        b.ball((-0.36, side * 0.12, -0.12), (0.04, 0.13, 0.1), GOLD)
    b.rod((0, 0, 0.58), (0.04, 0.04, 0.16), STEEL)
    b.ball((0, 0, 0.76), 0.08, STEEL)
    b.rod((-0.26, 0, -0.12), (0.42, 0.42, 0.03), SHADED, ALONG_X)
    b.rod((-0.3, 0, -0.12), (0.05, 0.05, 0.08), GOLD, ALONG_X)


def lamp(b: Builder, variant: int) -> None:
    """A table lamp: the shade is ten slabs leaning inwards, and its light shows above and below."""
    b.rod((0, 0, -0.84), (0.38, 0.38, 0.06), SHADED)
    b.ball((0, 0, -0.5), (0.28, 0.28, 0.32))
    b.rod((0, 0, -0.14), (0.08, 0.08, 0.14), GOLD)
    for k in range(10):
        out = turned("z", 36 * k)
        b.box((0.46 * float(out[0, 0]), 0.46 * float(out[1, 0]), 0.38), (0.03, 0.19, 0.42), OWN, out @ turned("y", -20))
    b.rod((0, 0, 0.77), (0.38, 0.38, 0.03))
    b.rod((0, 0, 0.79), (0.2, 0.2, 0.03), LAMP)
    b.rod((0, 0, -0.02), (0.63, 0.63, 0.035), PALE)
    b.ball((0, 0, -0.03), (0.22, 0.22, 0.14), LAMP)


def pumpkin(b: Builder, variant: int) -> None:
    """Eight ribs; a lantern face in front, stalk and leaf bent backwards."""
    for k in range(8):
        angle = math.radians(45 * k)
        at = (0.32 * math.cos(angle), 0.32 * math.sin(angle), -0.12)
        b.ball(at, (0.46, 0.33, 0.56), OWN if k % 2 == 0 else SHADED, turned("z", 45 * k))
    b.rod((-0.05, 0, 0.5), (0.11, 0.11, 0.18), LEAF, turned("y", -24))
    b.ball((-0.42, 0, 0.46), (0.32, 0.25, 0.06), LEAF, turned("y", -38))
    for side in BOTH:
        b.cone((0.66, side * 0.25, 0.08), (0.1, 0.18, 0.17), BLACK, turned("z", side * 20))
        b.cone((0.72, side * 0.25, 0.06), (0.08, 0.1, 0.1), LAMP, turned("z", side * 20))
        b.ball((0.63, side * 0.24, -0.23), (0.14, 0.19, 0.12), BLACK, turned("x", side * 24))
        b.ball((0.7, side * 0.22, -0.23), (0.12, 0.14, 0.06), LAMP, turned("x", side * 24))
    b.box((0.72, 0, -0.29), (0.06, 0.14, 0.11), BLACK)
    b.box((0.77, 0, -0.3), (0.05, 0.13, 0.055), LAMP)


def cactus(b: Builder, variant: int) -> None:
    """Arms of different heights left and right, a pink flower on top."""
    b.rod((0, 0, -0.74), (0.29, 0.29, 0.2), BRICK)
    b.rod((0, 0, -0.5), (0.36, 0.36, 0.08), BRICK)
    b.rod((0, 0, 0.08), (0.29, 0.29, 0.54))
    b.ball((0, 0, 0.6), 0.29)
    b.ball((0, 0.4, 0.02), (0.15, 0.24, 0.15))
    b.ball((0, 0.58, 0.26), (0.15, 0.15, 0.34))
    b.ball((0, -0.38, -0.14), (0.14, 0.24, 0.14))
    b.ball((0, -0.54, 0.04), (0.14, 0.14, 0.29))
    b.ball((0, 0, 0.88), (0.14, 0.14, 0.1), fixed(0.95, 0.4, 0.6))
    for k in range(4):
        for level in (-0.16, 0.14, 0.44):
            angle = math.radians(90 * k + (45 if level == 0.14 else 10))
            b.ball((0.29 * math.cos(angle), 0.29 * math.sin(angle), level), 0.045, CREAM)


def mushroom(b: Builder, variant: int) -> None:
    """The cap is a dome on a wide rim."""
    b.rod((0, 0, -0.46), (0.22, 0.22, 0.36), CREAM)
    b.ball((0, 0, -0.76), (0.3, 0.3, 0.15), CREAM)
    b.ball((0, 0, 0.02), (0.8, 0.8, 0.33))
    b.ball((0, 0, 0.2), (0.64, 0.64, 0.44))
    b.rod((0, 0, -0.22), (0.6, 0.6, 0.04), mixed(CREAM, 0.5))
    for k in range(6):
        angle = math.radians(60 * k + 30)
        b.ball((0.64 * math.cos(angle), 0.64 * math.sin(angle), 0.2), 0.13, WHITE)
        if k % 2:
            b.ball((0.34 * math.cos(angle + math.pi / 6), 0.34 * math.sin(angle + math.pi / 6), 0.55), 0.13, WHITE)


def tree(b: Builder, variant: int) -> None:
    b.rod((0, 0, -0.74), (0.15, 0.15, 0.22), WOOD)
    layers: tuple[tuple[float, float, Paint], ...] = ((-0.24, 0.7, SHADED), (0.14, 0.57, OWN), (0.56, 0.42, OWN))
    for height, radius, paint in layers:
        b.cone((0, 0, height), (radius, radius, 0.36), paint)


THINGS: dict[str, Model] = {
    "car": Model(car, 0.94),
    "bus": Model(bus, 0.95),
    "train": Model(train, 0.88),
    "airplane": Model(airplane, 0.93),
    "boat": Model(boat, 0.95),
    "rocket": Model(rocket, 0.89),
    "house": Model(house, 0.91, variants=2),
    "castle": Model(castle, 0.89),
    "chair": Model(chair, 0.87),
    "sofa": Model(sofa, 0.91),
    "mug": Model(mug, 1.08, lopsided=True),
    "teapot": Model(teapot, 0.97, lopsided=True),
    "clock": Model(clock),
    "lamp": Model(lamp, front=False),
    "pumpkin": Model(pumpkin, 1.06),
    "cactus": Model(cactus, front=False, lopsided=True),
    "mushroom": Model(mushroom, 1.05, front=False),
    "tree": Model(tree, front=False),
}
