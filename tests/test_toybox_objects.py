"""Toybox objects fit the image, are distinguishable, and show their colours from every side; so do second objects."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from sdlab.toybox import pictures, raytrace
from sdlab.toybox.animals import ANIMALS
from sdlab.toybox.objects import OBJECTS, seconds_of, table
from sdlab.toybox.relations import outline
from sdlab.toybox.solids import Builder, turned
from sdlab.toybox.words import Facts

VIEWS = ((0.0, 15.0), (90.0, 15.0), (180.0, 15.0), (-90.0, 15.0), (0.0, 75.0), (140.0, 75.0))
PAIRS = [(name, second) for name in OBJECTS for second in seconds_of(name)]


def plain(name: str, colour: str, view: tuple[float, float], second: str = "", other: str = "blue") -> pictures.Shot:
    """Return a shot without jitter or corruptions: white background, light from behind the camera."""
    azimuth, elevation = view
    lamp = math.radians(azimuth)
    return pictures.describe(0, 0)._replace(
        facts=Facts(name, colour, "matte", "", second, other if second else "", "", "", ()),
        variant=0,
        rgb=pictures.COLOURS[colour],
        second_rgb=pictures.COLOURS[other],
        azimuth=azimuth,
        elevation=elevation,
        distance=pictures.DISTANCE,
        aim=np.zeros(3),
        stretch=np.ones(3),
        ambient=0.6,
        light=np.array((0.6 * math.cos(lamp), 0.6 * math.sin(lamp), 0.8)),
        grounds=np.ones((2, 3)),
        slope=np.zeros(2),
    )


def covered(shots: list[pictures.Shot]) -> np.ndarray:
    """Return the fraction of each pixel covered by the object, [n, H, W]."""
    tan = math.tan(math.radians(pictures.FOV_DEGREES / 2))
    return raytrace.render(pictures.pack(shots), 64, tan)[1]


def differs(a: np.ndarray, b: np.ndarray, by: float = 0.2) -> np.ndarray:
    """Return which pixels [..., H, W] clearly differ."""
    return np.abs(a - b).max(-1) > by


@cache
def looks(colour: str) -> np.ndarray:
    """Return every object from every view in this colour: [objects, views, H, W, 3]."""
    shots = [plain(name, colour, view) for name in OBJECTS for view in VIEWS]
    rgb = pictures.render_shots(shots, 64)
    return rgb.reshape(len(OBJECTS), len(VIEWS), *rgb.shape[1:])


@pytest.mark.slow
def test_every_object_and_pair_fits_into_the_picture_from_all_sides() -> None:
    angles = [(azimuth, elevation) for azimuth in (0.0, 130.0, 250.0) for elevation in (-20.0, 15.0, 80.0)]
    for name in OBJECTS:
        for second in ("", *seconds_of(name)):
            # every third angle is enough for pairs, which are all scaled by one rule
            coverage = covered([plain(name, "red", angle, second) for angle in (angles[1::3] if second else angles)])
            rim = np.concatenate([coverage[:, 0], coverage[:, -1], coverage[:, :, 0], coverage[:, :, -1]], 1)
            assert rim.max() == 0, (name, second)
            assert coverage.mean((1, 2)).min() > 0.09, (name, second)
            assert np.linalg.norm(outline(table(name, 0, second)), axis=1).max() <= 0.981, (name, second)


def test_variants_fit_too_and_differ() -> None:
    for name, model in OBJECTS.items():
        shots = [plain(name, "red", VIEWS[0])._replace(variant=v) for v in range(model.variants)]
        assert all(np.linalg.norm(outline(table(name, v)), axis=1).max() < 1.0 for v in range(model.variants))
        rgb = pictures.render_shots(shots, 64)
        assert all(differs(rgb[0], x).sum() > 20 for x in rgb[1:]), name


def test_only_the_lopsided_objects_differ_from_their_mirror_image() -> None:
    for name, second in [(name, "") for name in OBJECTS] + PAIRS:
        shots = [plain(name, "red", (angle, 10.0), second) for angle in (0.0, 35.0, -35.0)]
        ahead, left, right = pictures.render_shots(shots, 64)
        difference = np.abs(left - right[:, ::-1]).mean() + np.abs(ahead - ahead[:, ::-1]).mean()
        assert (difference > 0.012) == (OBJECTS[name].lopsided or second == "ball"), (name, second, difference)


def test_front_back_and_side_differ_in_every_colour() -> None:
    for colour in ("black", "white", "orange"):
        for (name, model), (front, side, back, *_) in zip(OBJECTS.items(), looks(colour), strict=True):
            if model.front:
                assert differs(front, back).sum() > 60, (name, colour)
                assert min(differs(front, side).sum(), differs(back, side).sum()) > 150, (name, colour)


def test_no_two_objects_look_alike_from_any_side() -> None:
    rgb = looks("green")
    names = list(OBJECTS)
    for v in range(len(VIEWS)):
        for i in range(len(names)):
            for j in range(i):
                assert differs(rgb[i, v], rgb[j, v]).sum() > 250, (names[i], names[j], VIEWS[v])


def test_colour_is_read_from_every_side() -> None:
    """The pixels that change with the object's colour are a sufficient fraction of all its pixels."""
    own = differs(looks("red"), looks("blue")).sum((-1, -2))
    all_pixels = np.stack([covered([plain(name, "red", view) for view in VIEWS]) for name in OBJECTS]).sum((-1, -2))
    for name, share in zip(OBJECTS, own / all_pixels, strict=True):
        assert share.min() > 0.3, (name, share.round(2))


@pytest.mark.slow
def test_second_colour_is_read_from_every_side() -> None:
    for name, second in PAIRS:
        red, green = (
            pictures.render_shots([plain(name, "white", view, second, colour) for view in VIEWS], 64)
            for colour in ("red", "green")
        )
        pixels = differs(red, green).sum((-1, -2))
        assert pixels.min() > 20, (name, second, pixels)
        if second == "hat":
            assert differs(red, green)[0].any(0).sum() >= 10, name


def test_second_object_joins_the_first_and_leaves_it_as_it_is() -> None:
    for name, second in PAIRS:
        alone, both = table(name), table(name, 0, second)
        n = len(alone.kinds)
        assert (both.shares[:n, 1] == 0).all()
        assert (both.shares[n:, 0] == 0).all()
        assert both.shares[n:, 1].max() == 1
        scale = both.sizes[0, 0] / alone.sizes[0, 0]
        assert 0.55 < scale <= 1.001, (name, second, scale)
        assert np.allclose(both.sizes[:n], alone.sizes * scale)
        assert np.allclose(np.diff(both.centres[:n], axis=0), np.diff(alone.centres, axis=0) * scale)
        main, added = (
            outline(type(both)(*(column[part] for column in both))) for part in (slice(None, n), slice(n, None))
        )
        if second == "hat":
            assert added[:, 2].max() > main[:, 2].max() - 0.3
        elif second == "box":
            assert added[:, 2].max() == pytest.approx(main[:, 2].min(), abs=1e-9)
        elif second == "ball":
            assert added[:, 2].min() == pytest.approx(main[:, 2].min(), abs=0.01)
            assert added[:, 1].mean() > main[:, 1].mean() + 0.3


def test_outline_reaches_as_far_as_the_solids_do() -> None:
    b = Builder()
    b.ball((0.1, 0.2, -0.3), (0.5, 0.2, 0.3), turn=turned("y", 30) @ turned("z", 20))
    points = outline(b.table(0.9))
    parts = b.table(0.9)
    for direction in np.random.default_rng(0).normal(size=(50, 3)):
        direction /= np.linalg.norm(direction)
        exact = parts.centres[0] @ direction + np.linalg.norm(parts.sizes[0] * (parts.turns[0].T @ direction))
        assert exact - 0.02 * 0.5 <= (points @ direction).max() <= exact + 1e-9


def test_objects_stay_cheap_to_render() -> None:
    assert len(OBJECTS) >= 30
    assert sum(model.front for model in OBJECTS.values()) >= 12
    for name in OBJECTS:
        assert len(table(name).kinds) <= 28, name


def test_what_each_object_can_have() -> None:
    for name in OBJECTS:
        assert {"box", "ball"} <= set(seconds_of(name))
        if name not in ANIMALS:
            assert seconds_of(name) == ("box", "ball")
    assert seconds_of("bear") == ("hat", "scarf", "box", "ball")
    assert seconds_of("snowman") == seconds_of("fish") == ("box", "ball")


def test_refusals_name_what_there_is() -> None:
    with pytest.raises(ValueError, match="the toybox has no object 'dragon'; it has bear, cat"):
        table("dragon")
    with pytest.raises(ValueError, match="no object 'dragon'"):
        seconds_of("dragon")
    with pytest.raises(ValueError, match="mug cannot have 'hat' as its second object; it can have box, ball"):
        table("mug", 0, "hat")
    with pytest.raises(ValueError, match=r"bear cannot have 'crown'.* hat, scarf, box, ball"):
        table("bear", 0, "crown")
    with pytest.raises(ValueError, match="person has no variant 2; allowed are 0 to 1"):
        table("person", 2)
