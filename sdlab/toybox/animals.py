"""Toybox objects with a face: animals, person, robot, snowman. Coordinate frame and paints: `sdlab.toybox.solids`.

They differ first in outline (sitting, standing, squatting, upright; ears, trunk, beak, tail), then in fixed markings.
All of them are mirror-symmetric. No object relies on dark markings alone: some markings are white or pale, so
that they also show on a black object. The back of each object shows something that the front lacks.
"""

from __future__ import annotations

from sdlab.toybox.solids import (
    BLACK,
    BOTH,
    ORANGE,
    OWN,
    PALE,
    PINK,
    STEEL,
    WHITE,
    Builder,
    Model,
    Paint,
    fixed,
    mixed,
    turned,
)

WHITISH = mixed(WHITE, 0.75)
SHADE = mixed(BLACK, 0.22)  # no darker, or large wings would look gray on a white object and brown on an orange one
ROSE = fixed(1.0, 0.7, 0.72)
YELLOW = fixed(0.98, 0.8, 0.1)


def sitting_body(b: Builder, width: float) -> None:
    """Add the body, pale belly, arms, and feet with pale soles of a sitting toy."""
    b.ball((-0.02, 0, -0.36), (0.42 * width, 0.44 * width, 0.44))
    b.ball((0.17, 0, -0.34), (0.29 * width, 0.31 * width, 0.34), PALE)
    for side in BOTH:
        b.ball((0.28, side * 0.3, -0.7), (0.26, 0.17, 0.17))
        b.ball((0.45, side * 0.3, -0.68), (0.11, 0.12, 0.12), PALE)
        b.ball((0.16, side * 0.44 * width, -0.2), (0.13, 0.12, 0.28), OWN, turned("y", -30))


def legs(b: Builder, front: float, back: float, apart: float, radius: float, top: float, paw: Paint) -> None:
    """Add four legs that end at z = -0.78, with paws pointing forward."""
    for side in BOTH:
        for x in (front, back):
            b.rod((x, side * apart, (top - 0.72) / 2), (radius, radius, (top + 0.72) / 2))
            b.ball((x + 0.04, side * apart, -0.7), (radius + 0.06, radius + 0.02, 0.11), paw)


def bear(b: Builder, variant: int) -> None:
    sitting_body(b, 1.0)
    b.ball((0.04, 0, 0.36), (0.40, 0.46, 0.40))
    b.ball((0.36, 0, 0.23), (0.2, 0.23, 0.18), PALE)
    b.ball((0.55, 0, 0.31), (0.08, 0.11, 0.08), BLACK)
    for side in BOTH:
        b.ball((-0.02, side * 0.38, 0.7), (0.11, 0.2, 0.2))
        b.ball((0.07, side * 0.38, 0.7), (0.06, 0.13, 0.13), PALE)
    b.eyes(0.35, 0.2, 0.47, 0.1)
    b.ball((-0.43, 0, -0.5), 0.18, PALE)


def cat(b: Builder, variant: int) -> None:
    """Sits upright on its haunches with straight forelegs; the raised tail has a white tip."""
    b.ball((-0.1, 0, -0.36), (0.36, 0.34, 0.46))
    b.ball((0.13, 0, -0.22), (0.19, 0.21, 0.3), WHITISH)
    b.ball((0.06, 0, 0.34), (0.36, 0.44, 0.34))
    b.ball((0.34, 0, 0.21), (0.14, 0.22, 0.12), WHITISH)
    b.ball((0.48, 0, 0.27), (0.06, 0.08, 0.06), PINK)
    for side in BOTH:
        b.ball((-0.12, side * 0.3, -0.58), (0.3, 0.16, 0.26))
        b.ball((0.24, side * 0.16, -0.46), (0.12, 0.12, 0.36))
        b.ball((0.34, side * 0.17, -0.76), (0.17, 0.14, 0.1), WHITISH)
        b.cone((0.02, side * 0.28, 0.7), (0.15, 0.23, 0.19), OWN, turned("x", -side * 16))
        b.cone((0.11, side * 0.28, 0.67), (0.1, 0.14, 0.13), PINK, turned("x", -side * 16))
        b.ball((0.34, side * 0.19, 0.42), (0.08, 0.11, 0.11), fixed(0.75, 0.95, 0.25))
        b.ball((0.4, side * 0.19, 0.42), (0.04, 0.05, 0.1), BLACK)
    b.ball((-0.5, 0, -0.56), (0.24, 0.11, 0.12), SHADE, turned("y", 30))
    b.ball((-0.68, 0, -0.26), (0.11, 0.11, 0.3), SHADE)
    b.ball((-0.7, 0, 0.08), (0.13, 0.13, 0.17), WHITISH)


def rabbit(b: Builder, variant: int) -> None:
    sitting_body(b, 0.88)
    b.ball((0.04, 0, 0.2), (0.36, 0.4, 0.34))
    b.ball((0.32, 0, 0.09), (0.15, 0.23, 0.13), WHITISH)
    b.ball((0.46, 0, 0.17), (0.06, 0.08, 0.06), PINK)
    b.box((0.42, 0, -0.03), (0.05, 0.07, 0.07), WHITE)
    for side in BOTH:
        b.ball((-0.02, side * 0.25, 0.66), (0.12, 0.19, 0.33), OWN, turned("x", -side * 14))
        b.ball((0.08, side * 0.25, 0.66), (0.06, 0.12, 0.24), PINK, turned("x", -side * 14))
    b.eyes(0.32, 0.19, 0.3, 0.1)
    b.ball((-0.43, 0, -0.5), 0.22, WHITE)


def dog(b: Builder, variant: int) -> None:
    """Stands with its head and tail up; long muzzle, hanging ears."""
    legs(b, 0.2, -0.5, 0.2, 0.13, -0.2, WHITISH)
    b.ball((-0.16, 0, -0.2), (0.54, 0.31, 0.3))
    b.ball((0.2, 0, -0.16), (0.24, 0.25, 0.29), WHITISH)
    b.ball((0.2, 0, 0.1), (0.24, 0.24, 0.3))
    b.ball((0.28, 0, 0.42), (0.33, 0.35, 0.33))
    b.ball((0.6, 0, 0.31), (0.26, 0.19, 0.16), WHITISH)
    b.ball((0.82, 0, 0.4), (0.09, 0.11, 0.08), BLACK)
    b.ball((0.68, 0, 0.14), (0.1, 0.08, 0.11), fixed(0.9, 0.25, 0.3))
    for side in BOTH:
        b.ball((0.18, side * 0.38, 0.36), (0.17, 0.09, 0.33), SHADE, turned("x", side * 12))
    b.eyes(0.53, 0.16, 0.54, 0.1)
    b.ball((-0.7, 0, 0.12), (0.11, 0.11, 0.3), OWN, turned("y", -25))
    b.ball((-0.82, 0, 0.36), (0.12, 0.12, 0.14), WHITISH)


def pig(b: Builder, variant: int) -> None:
    """A barrel on short legs, with a snout like a socket and a curly tail."""
    legs(b, 0.22, -0.48, 0.24, 0.15, -0.3, SHADE)
    b.ball((-0.14, 0, -0.15), (0.6, 0.46, 0.44))
    b.ball((0.38, 0, 0.14), (0.36, 0.41, 0.38))
    b.rod((0.72, 0, 0.04), (0.17, 0.21, 0.1), ROSE, turned("y", 90))
    for side in BOTH:
        b.ball((0.82, side * 0.09, 0.04), (0.04, 0.05, 0.08), BLACK)
        b.cone((0.46, side * 0.31, 0.46), (0.09, 0.2, 0.17), SHADE, turned("y", 50) @ turned("x", -side * 30))
    b.eyes(0.66, 0.19, 0.28, 0.1)
    b.ball((-0.76, 0, -0.02), (0.1, 0.1, 0.1), ROSE)
    b.ball((-0.85, 0, 0.12), (0.1, 0.1, 0.1), ROSE)
    b.ball((-0.78, 0, 0.25), (0.1, 0.1, 0.1), ROSE)


def elephant(b: Builder, variant: int) -> None:
    legs(b, 0.1, -0.5, 0.24, 0.18, -0.2, PALE)
    b.ball((-0.24, 0, -0.1), (0.52, 0.44, 0.44))
    b.ball((0.3, 0, 0.24), (0.36, 0.36, 0.38))
    for side in BOTH:
        b.ball((0.14, side * 0.54, 0.26), (0.1, 0.36, 0.4), OWN, turned("z", side * 20))
        b.ball((0.22, side * 0.54, 0.25), (0.06, 0.25, 0.28), PINK, turned("z", side * 20))
        b.cone((0.66, side * 0.19, -0.06), (0.07, 0.07, 0.2), WHITE, turned("y", 125))
    for x, z, radius in ((0.62, 0.16, 0.17), (0.71, -0.04, 0.15), (0.74, -0.25, 0.13), (0.85, -0.41, 0.12)):
        b.ball((x, 0, z), (radius, radius, radius + 0.04))
    b.eyes(0.57, 0.19, 0.38, 0.09)
    b.ball((-0.76, 0, -0.12), (0.07, 0.07, 0.24), SHADE, turned("y", 15))
    b.ball((-0.83, 0, -0.38), (0.1, 0.1, 0.12), PALE)


def frog(b: Builder, variant: int) -> None:
    """Squats: wide mouth, eyes on top of the head, folded hind legs; two pale ridges run along the back."""
    b.ball((-0.14, 0, -0.24), (0.52, 0.46, 0.38))
    b.ball((0.24, 0, 0.08), (0.42, 0.52, 0.3))
    b.ball((0.32, 0, -0.28), (0.28, 0.36, 0.3), PALE)
    b.ball((0.56, 0, 0.0), (0.12, 0.4, 0.045), fixed(0.55, 0.05, 0.1))
    for side in BOTH:
        b.ball((0.22, side * 0.31, 0.38), 0.2)
        b.ball((0.33, side * 0.31, 0.4), 0.14, WHITE)
        b.ball((0.43, side * 0.31, 0.4), 0.08, BLACK)
        b.ball((-0.24, side * 0.52, -0.36), (0.38, 0.2, 0.27), OWN, turned("y", -20))
        b.ball((0.1, side * 0.62, -0.58), (0.32, 0.19, 0.08), SHADE)
        b.ball((0.44, side * 0.34, -0.36), (0.11, 0.11, 0.28))
        b.ball((0.54, side * 0.36, -0.58), (0.2, 0.16, 0.08), SHADE)
        b.ball((-0.3, side * 0.17, 0.02), (0.34, 0.08, 0.1), PALE, turned("y", -25))


def penguin(b: Builder, variant: int) -> None:
    """Stands upright with spread flippers and a white front."""
    b.ball((-0.02, 0, -0.26), (0.4, 0.44, 0.56))
    b.ball((0.19, 0, -0.3), (0.25, 0.32, 0.44), WHITE)
    b.ball((0.0, 0, 0.46), (0.36, 0.37, 0.35))
    b.cone((0.48, 0, 0.38), (0.13, 0.17, 0.2), ORANGE, turned("y", 90))
    for side in BOTH:
        b.ball((0.2, side * 0.15, 0.48), (0.18, 0.17, 0.19), WHITE)
        b.ball((0.36, side * 0.16, 0.52), (0.05, 0.075, 0.09), BLACK)
        b.ball((-0.02, side * 0.53, -0.16), (0.17, 0.08, 0.38), OWN, turned("x", side * 28))
        b.ball((0.2, side * 0.22, -0.8), (0.27, 0.18, 0.08), ORANGE)
    b.ball((-0.4, 0, -0.62), (0.24, 0.2, 0.11), WHITE, turned("y", -35))


def owl(b: Builder, variant: int) -> None:
    """An egg with ear tufts, two saucer eyes and folded wings."""
    b.ball((0, 0, -0.26), (0.42, 0.46, 0.54))
    b.ball((0.16, 0, -0.34), (0.29, 0.3, 0.38), PALE)
    b.ball((0.02, 0, 0.34), (0.4, 0.5, 0.38))
    b.cone((0.46, 0, 0.24), (0.1, 0.11, 0.15), ORANGE, turned("y", 150))
    for side in BOTH:
        b.cone((0.04, side * 0.36, 0.74), (0.14, 0.17, 0.2), OWN, turned("x", -side * 30))
        b.ball((0.28, side * 0.22, 0.4), (0.16, 0.24, 0.24), PALE)
        b.ball((0.38, side * 0.21, 0.41), (0.1, 0.16, 0.16), YELLOW)
        b.ball((0.46, side * 0.2, 0.41), (0.05, 0.09, 0.09), BLACK)
        b.ball((-0.1, side * 0.44, -0.26), (0.32, 0.12, 0.42), SHADE, turned("y", 15))
        b.ball((0.26, side * 0.2, -0.78), (0.2, 0.15, 0.09), ORANGE)
    b.box((-0.4, 0, -0.64), (0.05, 0.2, 0.2), SHADE, turned("y", 35))
    b.ball((-0.34, 0, -0.2), (0.1, 0.16, 0.24), PALE)


def duck(b: Builder, variant: int) -> None:
    """A long body, so that the side view is distinct; bill and pale breast in front, raised tail behind."""
    b.ball((-0.12, 0, -0.3), (0.6, 0.4, 0.36))
    b.ball((0.24, 0, -0.26), (0.3, 0.28, 0.31), WHITISH)
    b.ball((-0.7, 0, -0.08), (0.15, 0.2, 0.28), WHITISH, turned("y", -35))
    b.ball((0.2, 0, 0.3), (0.36, 0.36, 0.37))
    b.ball((0.6, 0, 0.23), (0.26, 0.24, 0.07), ORANGE)
    b.ball((0.56, 0, 0.15), (0.2, 0.19, 0.06), fixed(0.75, 0.32, 0.02))
    b.eyes(0.46, 0.19, 0.44, 0.1)
    for side in BOTH:
        b.ball((-0.22, side * 0.36, -0.22), (0.38, 0.11, 0.23), SHADE, turned("y", 14))
        b.ball((0.12, side * 0.2, -0.78), (0.26, 0.17, 0.06), ORANGE)
        b.rod((0.0, side * 0.2, -0.66), (0.07, 0.07, 0.12), ORANGE)


def fish(b: Builder, variant: int) -> None:
    """Forked tail behind, fins on the back and sides; the front shows two eyes and a round mouth."""
    b.ball((0.14, 0, 0), (0.66, 0.38, 0.46))
    b.ball((0.2, 0, -0.16), (0.56, 0.32, 0.34), PALE)
    b.ball((0.76, 0, -0.06), (0.1, 0.17, 0.13), ROSE)
    b.ball((0.82, 0, -0.06), (0.06, 0.1, 0.06), BLACK)
    for side in BOTH:
        b.ball((0.56, side * 0.24, 0.14), 0.16, WHITE)
        b.ball((0.65, side * 0.3, 0.15), 0.1, BLACK)
        b.ball((0.1, side * 0.46, -0.12), (0.22, 0.26, 0.05), SHADE, turned("x", -side * 25) @ turned("z", -side * 30))
        b.ball((-0.7, 0, side * 0.24), (0.17, 0.08, 0.34), SHADE, turned("y", -side * 35))
    b.ball((-0.02, 0, 0.46), (0.36, 0.07, 0.22), SHADE, turned("y", 15))


def robot(b: Builder, variant: int) -> None:
    """A few big boxes: screen face and lamps in front, a battery pack behind."""
    glow = fixed(0.3, 0.95, 1.0)
    b.box((0, 0, -0.22), (0.3, 0.4, 0.34))
    b.box((0.31, 0, -0.2), (0.02, 0.27, 0.2), STEEL)
    b.box((-0.36, 0, -0.18), (0.1, 0.28, 0.24), STEEL)
    b.rod((0, 0, 0.17), (0.16, 0.16, 0.07), STEEL)
    b.box((0, 0, 0.5), (0.34, 0.44, 0.28))
    b.box((0.35, 0, 0.5), (0.02, 0.36, 0.2), BLACK)
    b.ball((0, 0, 0.78), (0.16, 0.16, 0.13), YELLOW)
    for side in BOTH:
        b.rod((0.36, side * 0.17, 0.54), (0.11, 0.11, 0.04), glow, turned("y", 90))
        b.rod((0.33, side * 0.13, -0.2), (0.09, 0.09, 0.03), fixed(0.95, 0.2, 0.15), turned("y", 90))
        b.rod((0, side * 0.47, 0.5), (0.13, 0.13, 0.05), STEEL, turned("x", 90))
        b.box((-0.47, side * 0.13, -0.18), (0.02, 0.08, 0.16), YELLOW)
        b.rod((0.04, side * 0.54, -0.16), (0.14, 0.14, 0.26))
        b.ball((0.06, side * 0.54, -0.48), 0.15, STEEL)
        b.box((0.06, side * 0.21, -0.72), (0.26, 0.17, 0.16), SHADE)


def person(b: Builder, variant: int) -> None:
    """Hooded jacket and shoes in the object's colour, so that it shows from behind and above; satchel on the back."""
    skin = fixed(0.97, 0.76, 0.6) if variant == 0 else fixed(0.56, 0.36, 0.24)
    trousers, hair = fixed(0.16, 0.2, 0.4), fixed(0.3, 0.16, 0.06) if variant == 0 else BLACK
    b.ball((-0.06, 0, 0.5), (0.38, 0.41, 0.42))
    b.ball((0.09, 0, 0.48), (0.31, 0.33, 0.34), skin)
    b.ball((0.16, 0, 0.71), (0.22, 0.26, 0.13), hair, turned("y", 25))
    b.eyes(0.33, 0.14, 0.5, 0.085)
    b.ball((0.37, 0, 0.3), (0.05, 0.13, 0.045), fixed(0.8, 0.15, 0.15))
    b.ball((0, 0, -0.1), (0.3, 0.36, 0.36))
    b.rod((0, 0, -0.28), (0.28, 0.34, 0.14))
    b.box((0.29, 0, -0.16), (0.03, 0.05, 0.22), WHITE)
    b.box((-0.34, 0, -0.12), (0.13, 0.22, 0.2), PALE)
    for side in BOTH:
        b.ball((0.04, side * 0.44, -0.02), (0.14, 0.3, 0.14), OWN, turned("x", -side * 35))
        b.ball((0.06, side * 0.68, -0.19), 0.13, skin)
        b.rod((0, side * 0.17, -0.58), (0.15, 0.15, 0.2), trousers)
        b.ball((0.1, side * 0.18, -0.8), (0.28, 0.17, 0.13))


def snowman(b: Builder, variant: int) -> None:
    """White; hat, scarf, buttons and mittens carry the object's colour, visible from every side and from above."""
    b.ball((0, 0, -0.48), 0.46, WHITE)
    b.ball((0, 0, 0.04), 0.36, WHITE)
    b.ball((0, 0, 0.46), 0.3, WHITE)
    b.cone((0.44, 0, 0.44), (0.09, 0.09, 0.22), ORANGE, turned("y", 90))
    b.rod((0, 0, 0.66), (0.46, 0.46, 0.05))
    b.rod((0, 0, 0.84), (0.28, 0.28, 0.2))
    b.rod((0, 0, 0.24), (0.36, 0.36, 0.1))
    b.box((-0.37, 0, 0.02), (0.05, 0.12, 0.24), OWN, turned("y", -6))
    for x, z in ((0.36, 0.06), (0.42, -0.28), (0.46, -0.5)):
        b.ball((x, 0, z), 0.1)
    for side in BOTH:
        b.ball((0.26, side * 0.12, 0.52), 0.07, BLACK)
        b.rod((0, side * 0.46, 0.06), (0.05, 0.05, 0.2), fixed(0.4, 0.26, 0.13), turned("x", -side * 70))
        b.ball((0.02, side * 0.68, 0.14), (0.13, 0.15, 0.17))


ANIMALS: dict[str, Model] = {
    "bear": Model(bear, 0.97, hat=(0.0, 0, 0.74, 0.22), neck=(0.02, 0, -0.0, 0.4, 0)),
    "cat": Model(cat, 0.97, hat=(0.08, 0, 0.67, 0.19), neck=(0.0, 0, 0.04, 0.32, 0)),
    "rabbit": Model(rabbit, 0.92, hat=(0.08, 0, 0.52, 0.2), neck=(0.0, 0, -0.1, 0.36, 0)),
    "dog": Model(dog, 0.95, hat=(0.26, 0, 0.74, 0.21), neck=(0.17, 0, 0.08, 0.31, 38)),
    "pig": Model(pig, 0.95, hat=(0.34, 0, 0.51, 0.21), neck=(0.18, 0, -0.04, 0.45, 50)),
    "elephant": Model(elephant, 0.93, hat=(0.3, 0, 0.62, 0.24), neck=(0.1, 0, 0.0, 0.43, 50)),
    "frog": Model(frog, hat=(0.12, 0, 0.42, 0.2), neck=(0.05, 0, -0.13, 0.5, 26)),
    "penguin": Model(penguin, hat=(0.0, 0, 0.79, 0.2), neck=(0.0, 0, 0.16, 0.36, 0)),
    "owl": Model(owl, 0.93, hat=(0.0, 0, 0.71, 0.22), neck=(0.0, 0, 0.02, 0.42, 0)),
    "duck": Model(duck, 0.97, hat=(0.18, 0, 0.65, 0.21), neck=(0.14, 0, -0.02, 0.36, 26)),
    "fish": Model(fish, 0.95),
    "robot": Model(robot, 0.97, hat=(0.0, 0, 0.8, 0.22), neck=(0.0, 0, 0.16, 0.38, 0)),
    "person": Model(person, variants=2, hat=(-0.04, 0, 0.88, 0.21), neck=(0.0, 0, 0.1, 0.34, 0)),
    "snowman": Model(snowman, 0.9),
}
