"""Animals and figures of the toybox: everything with a face. Frame and paints: `sdlab.toybox.solids`."""

from __future__ import annotations

from sdlab.toybox.solids import (
    BLACK,
    BOTH,
    DARK,
    ORANGE,
    OWN,
    PALE,
    PINK,
    STEEL,
    WHITE,
    Builder,
    Model,
    fixed,
    mixed,
    turned,
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


ANIMALS: dict[str, Model] = {
    "bear": Model(bear, 0.97),
    "cat": Model(cat, 0.97),
    "rabbit": Model(rabbit, 0.89),
    "duck": Model(duck),
    "robot": Model(robot, 0.94),
    "person": Model(person, 0.96, variants=2),
    "snowman": Model(snowman, 0.9),
}
