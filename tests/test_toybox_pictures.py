"""Toybox images are rendered correctly, corrupted and painted as their captions say, and reproducible everywhere."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sdlab.toybox import filters, pictures, raytrace
from sdlab.toybox.objects import OBJECTS, seconds_of
from sdlab.toybox.words import BACK, COLOURS, DESCRIPTORS, FRONT, OVERHEAD, SIDE, VIEW_WORDS, Facts

TAN = math.tan(math.radians(pictures.FOV_DEGREES / 2))


def plain(name: str, colour: str, azimuth: float, elevation: float = 10.0, **facts: str) -> pictures.Shot:
    """Return a shot without jitter or corruptions: white background, light from behind the camera."""
    lamp = math.radians(azimuth)
    said = Facts(name, colour, "matte", "", "", "", "", "", ())._replace(**facts)
    return pictures.describe(0, 0)._replace(
        facts=said,
        variant=0,
        rgb=pictures.COLOURS[colour],
        second_rgb=pictures.COLOURS[said.second_colour or "red"],
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


def corrupted(shot: pictures.Shot, word: str, noise_seed: int = 7) -> pictures.Shot:
    return shot._replace(facts=shot.facts._replace(corruptions=(word,)), noise_seed=noise_seed)


def near(rgb: np.ndarray, colour: tuple[float, float, float], tolerance: float = 0.25) -> int:
    """Return how many pixels roughly have this colour."""
    return int((np.abs(rgb - np.array(colour)).max(-1) < tolerance).sum())


@pytest.fixture(scope="module")
def shots() -> list[pictures.Shot]:
    return [pictures.describe(0, i) for i in range(2500)]


# ---- the renderer


def one_solid(kind: int, size: float, distance: float) -> raytrace.Batch:
    """Return a solid at the origin, seen from `distance` in front."""
    outward, axes = pictures.camera_axes(0.0, 0.0)
    return raytrace.Batch(
        first=np.array([0, 1]),
        kinds=np.array([kind]),
        to_world=np.eye(3)[None] * size,
        to_local=(np.eye(3) / size).repeat(2, 1)[None, :, ::2],  # strided as in `pictures`: no kernel of its own
        centres=np.zeros((1, 3)),
        colours=np.full((1, 3), 0.5),
        patterns=np.array([raytrace.PLAIN]),
        marks=np.zeros((1, 3)),
        stretches=np.ones((1, 3)),
        eyes=outward[None] * distance,
        axes=axes[None],
        lights=outward[None],
        shading=np.array([[0.5, 0.0]]),
        grounds=np.zeros((1, 2, 3)),
        slopes=np.zeros((1, 2)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "area"),
    [
        (raytrace.BALL, math.pi * 0.43**2),
        (raytrace.CUBE, 0.86**2),
        (raytrace.CYLINDER, 0.86**2),
        (raytrace.CONE, 0.86**2 / 2),
    ],
)
def test_silhouette_of_each_solid_from_afar(kind: int, area: float) -> None:
    distance, half_width = 60.0, 1.0
    coverage = raytrace.render(one_solid(kind, 0.43, distance), 64, half_width / distance, per_side=4)[1]
    assert coverage.mean() * (2 * half_width) ** 2 == pytest.approx(area, rel=0.03)


def reference(kind: int, o: np.ndarray, d: np.ndarray) -> tuple[float, np.ndarray]:
    """Return depth and normal where the ray o + t d meets a unit solid, from its definition: march, then bisect."""

    def inside(t: np.ndarray) -> np.ndarray:
        x, y, z = (o[:, None] + d[:, None] * t).reshape(3, -1)
        around = np.hypot(x, y)
        return {
            raytrace.BALL: x**2 + y**2 + z**2 < 1,
            raytrace.CUBE: np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 1,
            raytrace.CYLINDER: (around < 1) & (abs(z) < 1),
            raytrace.CONE: (around < (1 - z) / 2) & (z > -1),
        }[kind]

    steps = np.linspace(0, 8, 16001)
    found = inside(steps)
    if not found.any():
        return math.inf, np.zeros(3)
    high = steps[found.argmax()]
    low = high - steps[1]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(np.array([middle]))[0] else (middle, high)
    x, y, z = o + d * high
    around = math.hypot(x, y)
    normal = {
        raytrace.BALL: (x, y, z),
        raytrace.CUBE: np.where(np.abs((x, y, z)) == np.abs((x, y, z)).max(), (x, y, z), 0),
        raytrace.CYLINDER: (0, 0, z) if 1 - abs(z) < 1 - around else (x, y, 0),
        raytrace.CONE: (0, 0, -1) if z + 1 < 1e-6 else (x, y, around / 2),
    }[kind]
    return float(high), np.array(normal, float)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [raytrace.BALL, raytrace.CUBE, raytrace.CYLINDER, raytrace.CONE])
def test_hits_and_shades_as_the_definition_of_the_solid_says(kind: int) -> None:
    """Rays from all around hit a rotated, squeezed solid: coverage is right, and brightness matches the true normal."""
    rng = np.random.default_rng(kind)
    size, per_side = 16, 1
    for _ in range(4):
        turn = np.linalg.qr(rng.normal(0, 1, (3, 3)))[0]
        to_world = turn * rng.uniform(0.3, 0.8, 3)
        outward, axes = pictures.camera_axes(rng.uniform(-180, 180), rng.uniform(-20, 80))
        centre, light = rng.normal(0, 0.1, 3), rng.normal(0, 1, 3)
        light /= np.linalg.norm(light)
        batch = one_solid(kind, 1.0, 1.0)._replace(
            to_world=to_world[None],
            to_local=np.linalg.inv(to_world)[None],
            centres=centre[None],
            eyes=3 * outward[None],
            axes=axes[None],
            lights=light[None],
            shading=np.array([[0.3, 0.0]]),
        )
        rgb, coverage = raytrace.render(batch, size, TAN, per_side)
        wrong = 0
        for row in range(size):
            for column in range(size):
                u, v = (2 * column + 1) / size - 1, (2 * row + 1) / size - 1
                ray = np.array((u * TAN, v * TAN, 1.0)) @ axes
                t, n = reference(kind, batch.to_local[0] @ (3 * outward - centre), batch.to_local[0] @ ray)
                if math.isinf(t):
                    wrong += coverage[0, row, column] > 0
                    continue
                n = batch.to_local[0].T @ n
                n /= np.linalg.norm(n)
                expected = 0.5 * (0.3 * (0.8 + 0.2 * n[2]) + 0.7 * max(n @ light, 0))
                wrong += abs(rgb[0, row, column, 0] - expected) > 0.02
        assert wrong <= 2  # rays that graze an edge
        assert coverage.sum() > 20


@pytest.mark.slow
def test_the_screen_box_of_a_solid_leaves_nothing_out(shots: list[pictures.Shot]) -> None:
    """The images are the same if every solid is tested for every sample."""
    batch = pictures.pack([s._replace(facts=s.facts._replace(corruptions=())) for s in shots[:60]])
    bounded = raytrace.render(batch, 32, TAN)[0]
    everywhere = raytrace.render(batch._replace(to_world=batch.to_world * 40), 32, TAN)[0]
    assert (np.abs(bounded - everywhere).max(-1) > 0.01).mean() < 1e-4  # rounding decides for rays that graze an edge


def test_shading_once_a_pixel_is_shading_every_sample() -> None:
    """Within a ball the renderer shades only the pixel's centre, which must agree with shading every sample."""
    shot = plain("snowman", "blue", 30.0)
    batch = pictures.pack([shot])
    coarse, covered = raytrace.render(batch, 32, TAN)
    fine = raytrace.render(batch, 64, TAN, per_side=1)[0].reshape(1, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(coarse - fine)[covered == 1].max() < 0.02


# ---- where things are


def test_front_is_what_azimuth_zero_sees() -> None:
    front, back = pictures.render_shots([plain("duck", "blue", 0), plain("duck", "blue", 180)])
    beak = (0.85, 0.45, 0.05)
    assert near(front, beak) > near(back, beak) + 30  # the beak; both show the feet


def test_azimuth_turns_counter_clockwise_seen_from_above() -> None:
    """A camera on +y has -x to its right, so the duck (front +x) faces left there, and right from -y."""
    columns = []
    for picture in pictures.render_shots([plain("duck", "blue", 90), plain("duck", "blue", -90)]):
        head = picture[: pictures.SIZE // 2]  # above the feet
        columns.append(np.nonzero((np.abs(head - np.array((0.85, 0.45, 0.05))).max(-1) < 0.25).any(0))[0])
    assert columns[0].mean() < 0.35 * pictures.SIZE
    assert columns[1].mean() > 0.65 * pictures.SIZE


def test_overhead_sees_the_top_and_the_ground_is_below() -> None:
    above, level = pictures.render_shots([plain("mug", "white", 0, 85.0), plain("mug", "white", 0, 0.0)], 64)
    coffee = (0.2, 0.1, 0.05)
    assert near(above, coffee, 0.15) > 80 > near(level, coffee, 0.15)
    tree = pictures.render_shots([plain("tree", "green", 0)], 64)[0]
    covered = (tree.min(-1) < 0.9).sum(1)
    assert covered[8:16].sum() < covered[32:40].sum()  # the tip is at the top of the image


def test_half_the_size_is_the_same_picture() -> None:
    two = [plain("cat", "orange", 30.0), plain("mushroom", "turquoise", 70.0, second="box", second_colour="red")]
    large, small = pictures.render_shots(two, 64), pictures.render_shots(two, 32)
    assert np.abs(large.reshape(2, 32, 2, 32, 2, 3).mean((2, 4)) - small).mean() < 0.01


# ---- colours and patterns


def test_second_object_has_its_own_colour() -> None:
    red, blue = (pictures.COLOURS[c] for c in ("red", "blue"))
    for second in ("hat", "scarf", "box", "ball"):
        shot = plain("bear", "red", 20.0, second=second, second_colour="blue")
        with_it, alone = pictures.render_shots([shot._replace(second_rgb=blue), plain("bear", "red", 20.0)], 64)
        assert near(with_it, blue, 0.3) > 40 > near(alone, blue, 0.3)
        assert near(with_it, red, 0.3) > 100


def own_and_marked(shot: pictures.Shot) -> tuple[int, int]:
    """Count pixels of the object's own paint outside and inside the marks of its pattern."""
    batch = pictures.pack([shot])
    own = np.full_like(batch.colours, 0.0)
    own[:, 0] = batch.patterns != raytrace.PLAIN
    flat = batch._replace(
        colours=own, marks=np.array([[0.0, 1.0, 0.0]]), shading=np.array([[1.0, 0.0]]), grounds=np.zeros((1, 2, 3))
    )
    rgb, _ = raytrace.render(flat, 64, TAN)
    return int((rgb[..., 0] > 0.4).sum()), int((rgb[..., 1] > 0.4).sum())


@pytest.mark.parametrize("pattern", ["striped", "spotted"])
def test_pattern_shows_on_every_object_and_leaves_its_colour_dominant(pattern: str) -> None:
    for name in OBJECTS:
        counts = [own_and_marked(plain(name, "red", azimuth, 20.0, pattern=pattern)) for azimuth in range(0, 360, 45)]
        unmarked, marked = np.array(counts).sum(0)
        assert 0.1 < marked / (marked + unmarked) < 0.36, name


def test_pattern_is_fixed_to_the_object() -> None:
    """The mark at a point of the object is the same from any camera, and moves with the object's stretch."""
    shot = plain("mug", "red", 180.0, 0.0, pattern="striped")
    one, other = pictures.render_shots([shot, shot._replace(stretch=np.array((1.0, 1.0, 0.8)))])
    middle = pictures.SIZE // 2

    def bands(x: np.ndarray) -> int:
        return int((np.diff(x[:, middle, 1] > 0.45) != 0).sum())

    assert bands(one) == bands(other) >= 4
    assert np.abs(one - other).mean() > 0.02


def test_light_colours_have_dark_marks() -> None:
    for colour in COLOURS:
        mark = pictures.mark_of(plain("bear", colour, 0.0, pattern="spotted"))
        assert np.abs(np.array(mark) - pictures.COLOURS[colour]).max() > 0.3, colour


# ---- descriptions


def test_every_colour_word_has_a_colour() -> None:
    assert set(pictures.COLOURS) == set(COLOURS)


def test_shares_are_as_stated(shots: list[pictures.Shot]) -> None:
    facts, n = [s.facts for s in shots], len(shots)
    assert Counter(f.object for f in facts).keys() == OBJECTS.keys()
    assert Counter(f.colour for f in facts).keys() == set(COLOURS)
    stated = {
        pictures.SECOND_SHARE: sum(f.second != "" for f in facts) / n,
        0.12: sum(f.pattern != "" for f in facts) / n,
        0.3: sum(f.material != "" for f in facts) / n,
        pictures.VIEW_SHARE: sum(f.view != "" for f in facts) / n,
        pictures.PAINTING_SHARE: sum(f.style != "" for f in facts) / n,
        pictures.CORRUPTED_SHARE * (1 - pictures.PAINTING_SHARE): sum(f.corruptions != () for f in facts) / n,
    }
    for wanted, found in stated.items():
        assert found == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / n))
    assert {w for f in facts for w in f.corruptions} == set(DESCRIPTORS)
    views = Counter(f.view for f in facts if f.view)
    for view in VIEW_WORDS:
        assert views[view] / views.total() == pytest.approx(pictures.VIEW_WEIGHTS[view], abs=0.045)


def test_facts_are_possible(shots: list[pictures.Shot]) -> None:
    for f in (s.facts for s in shots):
        assert (f.second == "") == (f.second_colour == "")
        assert not f.second or (f.second in seconds_of(f.object) and f.second_colour != f.colour)
        assert len(set(f.corruptions)) == len(f.corruptions) <= 3
        assert not (f.style and f.corruptions)


def test_camera_is_where_the_view_word_says(shots: list[pictures.Shot]) -> None:
    centres = {FRONT: (0,), SIDE: (90, -90), BACK: (180,)}
    for s in shots:
        low, high = pictures.OVERHEAD_ELEVATIONS if s.facts.view == OVERHEAD else pictures.ELEVATIONS
        assert low <= s.elevation <= high
        if s.facts.view in centres:
            gaps = [abs((s.azimuth - c + 180) % 360 - 180) for c in centres[s.facts.view]]
            assert min(gaps) <= pictures.HALF_BAND


def test_without_a_view_word_the_front_is_seen_as_often_as_stated(shots: list[pictures.Shot]) -> None:
    unspoken = [s for s in shots if not s.facts.view]
    ahead = sum(abs((s.azimuth + 180) % 360 - 180) <= pictures.HALF_BAND for s in unspoken) / len(unspoken)
    assert ahead == pytest.approx(pictures.FRONT_BIAS, abs=0.05)


def test_what_may_be_mirrored_is_its_own_mirror_image(shots: list[pictures.Shot]) -> None:
    """Seen and lit from straight ahead, an object that may be mirrored is symmetric, including its second object."""
    tried = {(s.facts.object, s.facts.second): s for s in shots if not s.facts.corruptions and not s.facts.style}
    assert len(tried) > 90
    for (name, second), s in tried.items():
        model = plain(name, "red", 0.0, second=second, second_colour="blue" if second else "")
        picture = pictures.render_shots([model])[0]
        symmetric = np.abs(picture - picture[:, ::-1]).mean() < 0.01
        assert symmetric or not s.may_mirror, (name, second)
    assert any(s.may_mirror for s in tried.values())


# ---- corruptions and painting


@pytest.fixture(scope="module")
def clean() -> list[pictures.Shot]:
    return [plain("bear", "red", 20.0), plain("robot", "blue", -30.0), plain("mushroom", "orange", 60.0)]


def edges(x: np.ndarray) -> float:
    return float(np.abs(np.diff(x, axis=2)).mean())


def saturation(x: np.ndarray) -> float:
    return float((x.max(-1) - x.min(-1)).mean())


@pytest.mark.parametrize("size", [32, 64])
def test_each_corruption_changes_its_own_statistic(clean: list[pictures.Shot], size: int) -> None:
    true = pictures.render_shots(clean, size)

    def bad(word: str) -> np.ndarray:
        return pictures.render_shots([corrupted(s, word, 7 + i) for i, s in enumerate(clean)], size)

    def moved(x: np.ndarray) -> float:
        return float((np.abs(x - true).max(-1) > 0.1).mean())

    def flat(x: np.ndarray) -> float:
        return float((np.abs(np.diff(x, axis=2)).max(-1) < 1e-3)[true[:, :, 1:].min(-1) < 0.95].mean())

    assert saturation(bad("oversaturated")) > 1.15 * saturation(true)
    assert edges(bad("smooth")) < 0.9 * edges(true)
    assert edges(bad("blurry")) < 0.85 * edges(bad("smooth"))
    assert bad("foggy").std() < 0.75 * true.std()
    assert bad("hazy").std() < 0.85 * true.std()
    assert bad("hazy")[..., 2].mean() < bad("foggy")[..., 2].mean()  # haze is warm, fog is not
    blocks = bad("pixelated").reshape(3, 16, size // 16, 16, size // 16, 3)
    assert np.ptp(blocks, axis=(2, 4)).max() < 1e-6
    assert flat(bad("cartoon")) > 1.3 * flat(true)
    assert (bad("cartoon").max(-1) < 0.15).mean() > 1.3 * (true.max(-1) < 0.15).mean()  # outlines
    assert bad("noisy")[:, :6, :6].std() > 0.02 > true[:, :6, :6].std()  # a corner of plain background
    assert 0.05 < moved(bad("malformed")) < 0.5
    assert 0.05 < moved(bad("bad structure")) < 0.5


def test_strengths_do_not_depend_on_the_resolution(clean: list[pictures.Shot]) -> None:
    for word in ("smooth", "blurry", "pixelated", "bad structure", "malformed"):
        large, small = (pictures.render_shots([corrupted(s, word) for s in clean], size) for size in (64, 32))
        assert np.abs(large.reshape(3, 32, 2, 32, 2, 3).mean((2, 4)) - small).mean() < 0.02, word


def test_blur_keeps_the_mean_and_spreads_as_far_as_it_says() -> None:
    dot = np.zeros((64, 64, 3), np.float32)
    dot[32, 32] = 1
    out = filters.blurred(dot, 3.0)[..., 0]
    rows = np.arange(64) - 32
    assert out.sum() == pytest.approx(1, abs=1e-4)
    assert math.sqrt(float((out.sum(1) * rows**2).sum())) == pytest.approx(3.0, rel=0.05)
    flat = np.full((16, 16, 3), 0.3, np.float32)
    assert np.allclose(filters.blurred(flat, 4.0), 0.3, atol=1e-5)


def test_structure_is_bent_rather_than_scattered() -> None:
    """Nearly all neighbours of a part stay its neighbours."""
    shot = plain("bear", "red", 0.0)
    at = pictures.table("bear").centres
    sizes = pictures.table("bear").sizes
    for seed in range(20):
        bent, same_sizes = pictures.deform(corrupted(shot, "bad structure", seed), at, sizes)
        assert np.array_equal(sizes, same_sizes)
        before, after = (np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (at, bent))
        close = (before < 0.25) & (before > 0)
        assert np.abs(after - before)[close].mean() < 0.2
        assert np.linalg.norm(bent - at, axis=1).max() > 0.1


def test_painting_has_strokes_and_keeps_object_and_colour() -> None:
    for colour in ("red", "blue", "green"):
        shot = plain("bear", colour, 20.0)
        shot = shot._replace(grounds=np.full((2, 3), 0.6))
        photo, painting = pictures.render_shots([shot, shot._replace(facts=shot.facts._replace(style="painting"))], 64)
        corner = slice(0, 12)
        assert photo[corner, corner].std() < 1e-3 < 0.02 < painting[corner, corner].std()
        assert np.corrcoef(photo.ravel(), painting.ravel())[0, 1] > 0.7
        own = np.abs(photo - pictures.COLOURS[colour]).max(-1) < 0.25
        assert painting[own].mean(0).argmax() == np.argmax(pictures.COLOURS[colour])
        assert painting.mean() < photo.mean()


# ---- pools


def test_picture_depends_on_seed_and_index_alone() -> None:
    pool = pictures.make_pool(3, 300)
    rgb, captions, may_mirror = pictures.render_range(3, 250, 300)
    assert np.array_equal(rgb, pool.rgb[250:])
    assert captions == pool.captions[250:]
    assert np.array_equal(may_mirror, pool.may_mirror[250:])
    later = pictures.make_pool(3, 10, begin=290)
    assert np.array_equal(later.rgb, pool.rgb[290:])
    assert not np.array_equal(pool.rgb[:10], pictures.make_pool(4, 10).rgb)


@pytest.mark.slow
def test_processes_render_what_one_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CHUNK", 8)
    heard: list[int] = []
    alone, shared = np.empty((2, 70, 3, pictures.SIZE, pictures.SIZE), np.uint8)
    one = pictures.fill(alone, 5, 0, 1, lambda done: None)
    two = pictures.fill(shared, 5, 0, 2, heard.append)
    assert np.array_equal(alone, shared)
    assert one[0] == two[0]
    assert np.array_equal(one[1], two[1])
    assert heard == [8, 16, 24, 32, 40, 48, 56, 64, 70]


def test_kept_pool_is_read_back_and_an_incomplete_one_is_rendered_again(tmp_path: Path) -> None:
    calls: list[int] = []
    first = pictures.kept_pool(tmp_path, 0, 20, 1, calls.append)
    assert calls == [20]
    again = pictures.kept_pool(tmp_path, 0, 20, 1, calls.append)
    assert calls == [20]
    assert np.array_equal(first.rgb, again.rgb)
    assert first.captions == again.captions == pictures.make_pool(0, 20).captions
    assert np.array_equal(first.may_mirror, again.may_mirror)
    next(tmp_path.glob("*.json")).unlink()  # as if the process had been killed while rendering
    pictures.kept_pool(tmp_path, 0, 20, 1, calls.append)
    assert calls == [20, 20]
    part = pictures.kept_pool(tmp_path, 0, 10, 1, calls.append, begin=10)
    assert calls == [20, 20, 10]
    assert np.array_equal(part.rgb, first.rgb[10:])
