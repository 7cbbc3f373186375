"""The toybox: its pictures say what their captions say, its trainer learns and resumes, its folder loads anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sdlab.toybox import cli, judge, model, pictures, raytrace, sample, train
from sdlab.toybox.objects import OBJECTS

TINY = model.Shape(channels=(16, 32), text_width=32, text_layers=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, most of all on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(name: str, colour: str, azimuth: float, elevation: float = 10.0) -> pictures.Shot:
    """A shot without any jitter: white background, light from behind the camera, nothing corrupted."""
    lamp = math.radians(azimuth)
    return pictures.describe(0, 0)._replace(
        name=name,
        variant=0,
        rgb=pictures.COLOURS[colour],
        gloss=0.0,
        azimuth=azimuth,
        elevation=elevation,
        distance=pictures.DISTANCE,
        aim=np.zeros(3),
        stretch=np.ones(3),
        ambient=0.6,
        light=np.array((0.6 * math.cos(lamp), 0.6 * math.sin(lamp), 0.8)),
        grounds=np.ones((2, 3)),
        slope=np.zeros(2),
        corruptions=(),
    )


def near(rgb: np.ndarray, colour: tuple[float, float, float], tolerance: float = 0.25) -> int:
    """How many pixels are about this colour."""
    return int((np.abs(rgb - np.array(colour)).max(-1) < tolerance).sum())


# ---- pictures


def test_picture_depends_on_seed_and_index_alone() -> None:
    one, two = pictures.make_pool(3, 600, threads=1), pictures.make_pool(3, 600, threads=3)
    assert np.array_equal(one.rgb, two.rgb)
    assert one.captions == two.captions
    late, captions, _ = pictures.render_range(3, 590, 600)
    assert np.array_equal(late, one.rgb[590:])
    assert captions == one.captions[590:]
    assert not np.array_equal(one.rgb[:10], pictures.make_pool(4, 10).rgb)


def test_kept_pool_is_read_back_and_an_incomplete_one_is_rendered_again(tmp_path: Path) -> None:
    calls: list[int] = []
    first = pictures.kept_pool(tmp_path, 0, 20, 1, calls.append)
    assert calls == [20]
    again = pictures.kept_pool(tmp_path, 0, 20, 1, calls.append)
    assert calls == [20]
    assert np.array_equal(first.rgb, again.rgb)
    assert first.captions == again.captions == pictures.make_pool(0, 20).captions
    next(tmp_path.glob("*.json")).unlink()  # as if the process had been killed while rendering
    pictures.kept_pool(tmp_path, 0, 20, 1, calls.append)
    assert calls == [20, 20]


def test_front_is_what_azimuth_zero_sees() -> None:
    beak = (0.85, 0.45, 0.05)
    front, back = pictures.render_shots([plain("duck", "blue", 0), plain("duck", "blue", 180)])
    assert near(front, beak) > near(back, beak) + 8  # the beak, besides the feet that both show
    lamp, tail = (0.95, 0.9, 0.55), (0.8, 0.05, 0.05)
    front, back = pictures.render_shots([plain("car", "blue", 0), plain("car", "blue", 180)])
    assert near(front, lamp) >= 4 > near(back, lamp)
    assert near(back, tail) >= 4 > near(front, tail)


def test_azimuth_turns_counter_clockwise_seen_from_above() -> None:
    """A camera on +y has -x to its right, so the duck (front +x) looks left there, and right from -y; the mug's
    handle (+y) is to the right of a viewer in front."""
    from_left, from_right = pictures.render_shots([plain("duck", "blue", 90), plain("duck", "blue", -90)])
    beak = (0.85, 0.45, 0.05)
    head = slice(0, 17)  # rows above the feet
    columns = [np.nonzero((np.abs(x[head] - beak).max(-1) < 0.25).any(0))[0] for x in (from_left, from_right)]
    assert columns[0].mean() < 10
    assert columns[1].mean() > 22
    mug = pictures.render_shots([plain("mug", "red", 0)])[0]
    dark = np.nonzero((mug.min(-1) < 0.5).any(0))[0]
    assert dark.max() - 15.5 > 15.5 - dark.min() + 3


def test_overhead_sees_the_top_and_the_ground_is_below() -> None:
    mug = pictures.render_shots([plain("mug", "white", 0, 85.0), plain("mug", "white", 0, 0.0)])
    coffee = (0.2, 0.1, 0.05)
    assert near(mug[0], coffee, 0.15) > 20 > near(mug[1], coffee, 0.15)
    tree = pictures.render_shots([plain("tree", "green", 0)])[0]
    covered = (tree.min(-1) < 0.9).sum(1)
    assert covered[4:8].sum() < covered[16:20].sum()  # the tip is at the top of the picture


def test_renderer_skips_nothing_that_a_ray_hits() -> None:
    """The screen bounds only save time: with every solid a candidate everywhere the picture is the same."""
    shots = [pictures.describe(5, i)._replace(corruptions=()) for i in range(60)]
    batch = pictures.pack(shots)
    tan = math.tan(math.radians(pictures.FOV_DEGREES / 2))
    bounded = raytrace.render(batch, 32, tan)[0]
    everywhere = raytrace.render(batch._replace(reaches=np.full_like(batch.reaches, 50.0)), 32, tan)[0]
    assert np.array_equal(bounded, everywhere)


@pytest.mark.parametrize(
    ("kind", "size", "area"),
    [
        (raytrace.BALL, 0.43, math.pi * 0.43**2),
        (raytrace.CUBE, 0.43, 0.86**2),
        (raytrace.CYLINDER, 0.43, 0.86**2),
        (raytrace.CONE, 0.43, 0.86**2 / 2),
    ],
)
def test_silhouette_of_each_solid_from_afar(kind: int, size: float, area: float) -> None:
    distance, half_width = 600.0, 1.0
    outward, axes = pictures.camera_axes(0.0, 0.0)
    batch = raytrace.Batch(
        first=np.array([0, 1]),
        kinds=np.array([kind]),
        to_local=np.eye(3)[None] / size,
        shift=np.zeros((1, 3)),
        centres=np.zeros((1, 3)),
        reaches=np.array([size * 2]),
        colours=np.full((1, 3), 0.5),
        eyes=outward[None] * distance,
        axes=axes[None],
        lights=outward[None],
        shading=np.array([[0.5, 0.0]]),
        grounds=np.zeros((1, 2, 3)),
        slopes=np.zeros((1, 2)),
    )
    coverage = raytrace.render(batch, 64, half_width / distance, per_side=4)[1]
    assert coverage.mean() * (2 * half_width) ** 2 == pytest.approx(area, rel=0.02)


def test_captions_agree_with_the_camera_and_the_shot() -> None:
    shots = [pictures.describe(0, i) for i in range(4000)]
    with_word = [s for s in shots if s.view]
    assert len(with_word) / len(shots) == pytest.approx(pictures.VIEW_SHARE, abs=0.03)
    overhead = [s for s in with_word if s.view == pictures.OVERHEAD]
    assert len(overhead) / len(with_word) == pytest.approx(0.2, abs=0.03)
    centres = {pictures.FRONT: (0,), pictures.SIDE: (90, -90), pictures.BACK: (180,)}
    for s in shots:
        low, high = pictures.OVERHEAD_ELEVATIONS if s.view == pictures.OVERHEAD else pictures.ELEVATIONS
        assert low <= s.elevation <= high
        if s.view in centres:
            gaps = [abs((s.azimuth - c + 180) % 360 - 180) for c in centres[s.view]]
            assert min(gaps) <= pictures.HALF_BAND
        says_object = s.caption != ", ".join(s.corruptions)
        for view in pictures.VIEW_WORDS:
            assert (view in s.caption) == (view == s.view and says_object)
        assert all(word in s.caption for word in s.corruptions)
        if says_object:
            assert s.name in s.caption.split(",")[0] or s.corruptions
    unspoken = [s for s in shots if not s.view]
    ahead = sum(abs((s.azimuth + 180) % 360 - 180) < 45 for s in unspoken) / len(unspoken)
    assert 0.7 < ahead < 0.95
    assert {s.name for s in shots} == set(OBJECTS)
    assert {w for s in shots for w in s.corruptions} == set(pictures.DESCRIPTORS)


def test_each_corruption_changes_its_own_statistic() -> None:
    clean_shots = [plain("bear", "red", 20.0), plain("robot", "blue", -30.0), plain("mushroom", "orange", 60.0)]
    clean = pictures.render_shots(clean_shots)

    def spoilt(word: str) -> np.ndarray:
        return pictures.render_shots(
            [s._replace(corruptions=(word,), noise_seed=7 + i) for i, s in enumerate(clean_shots)]
        )

    def edges(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x, axis=2)).mean())

    def saturation(x: np.ndarray) -> float:
        return float((x.max(-1) - x.min(-1)).mean())

    def tones(x: np.ndarray) -> int:
        return len(np.unique((x * 255).round()))

    def moved(x: np.ndarray) -> float:
        return float((np.abs(x - clean).max(-1) > 0.1).mean())

    assert saturation(spoilt("oversaturated")) > 1.15 * saturation(clean)
    assert edges(spoilt("smooth")) < 0.95 * edges(clean)
    assert edges(spoilt("blurry")) < 0.9 * edges(spoilt("smooth"))
    assert spoilt("foggy").std() < 0.75 * clean.std()
    assert spoilt("hazy").std() < 0.85 * clean.std()
    assert spoilt("hazy")[..., 2].mean() < spoilt("foggy")[..., 2].mean()  # haze is warm, fog is not
    blocks = spoilt("pixelated").reshape(3, 16, 2, 16, 2, 3)
    assert np.array_equal(blocks[:, :, 0, :, 0], blocks[:, :, 1, :, 1])
    assert tones(np.where(spoilt("cartoon") > 0.99, 1, spoilt("cartoon"))) < tones(clean)
    assert spoilt("noisy")[:, :6, :6].std() > 0.02 > clean[:, :6, :6].std()  # a corner of plain background
    assert moved(spoilt("malformed")) > 0.1
    assert moved(spoilt("bad structure")) > 0.1


# ---- judge


def test_judge_asks_for_the_view_that_the_caption_names() -> None:
    for s in (pictures.describe(2, i) for i in range(500)):
        if s.view:
            assert judge.view_of(s.azimuth, s.elevation) == s.view
    assert judge.view_of(45.0, 10.0) == ""
    assert judge.view_of(-315.0 + 90, 10.0) == ""
    assert judge.view_of(-200.0, 10.0) == pictures.BACK


def test_score_counts_right_answers_and_leaves_out_what_was_not_asked() -> None:
    front, side, back = pictures.FRONT, pictures.SIDE, pictures.BACK
    asked = [judge.Truth("bear", "red", front), judge.Truth("tree", "red", side), judge.Truth("car", "blue", "")]
    answered = [judge.Truth("cat", "red", front), judge.Truth("tree", "red", back), judge.Truth("car", "red", front)]
    shares = judge.score(asked, answered)
    assert shares["object"] == pytest.approx(2 / 3)
    assert shares["colour"] == pytest.approx(2 / 3)
    assert shares["view"] == 1.0  # a tree's side and back are one view; the car's was not asked
    assert shares[f"view: {side}"] == 1.0
    wrong = judge.score([judge.Truth("bear", "red", front)], [judge.Truth("bear", "red", back)])
    assert wrong["view"] == 0.0


def test_classifier_reads_pictures_it_has_not_seen() -> None:
    classifier = judge.train_classifier(count=1500, epochs=3, batch=50)
    rgb, truths = judge.true_pictures(5_000_000, 200)
    shares = judge.score(truths, judge.read(classifier, rgb))
    assert shares["object"] > 0.3  # chance is 1/16
    assert shares["colour"] > 0.4  # 1/11


def test_classifier_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[judge.Classifier] = []

    def fake() -> judge.Classifier:
        trained.append(judge.Classifier().eval())
        return trained[-1]

    monkeypatch.setattr(judge, "train_classifier", fake)
    rgb = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = (judge.kept_classifier(tmp_path)(rgb) for _ in range(2))
    assert len(trained) == 1
    assert all(torch.equal(first[q], second[q]) and torch.equal(first[q], trained[0](rgb)[q]) for q in first)
