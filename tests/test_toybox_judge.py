"""The toybox's judge reads ground-truth images, and the evaluation scores samples and measures descriptors."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdlab.toybox import figures, judge, model, pictures, sample
from sdlab.toybox.judge import Share, Truth
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.words import BACK, DESCRIPTORS, FRONT, OVERHEAD, SIDE
from sdlab.training import cli
from sdlab.training import judge as training
from sdlab.types import Cond

SMALL = (8, 16, 24)  # widths of a classifier that trains in seconds


# ---- ground-truth images


def test_view_of_a_camera_is_what_its_caption_says() -> None:
    for shot in (pictures.describe(2, i) for i in range(500)):
        if shot.facts.view:
            assert judge.view_of(shot.azimuth, shot.elevation) == shot.facts.view
    assert judge.view_of(45.0, 10.0) == ""
    assert judge.view_of(-225.0, 10.0) == ""
    assert judge.view_of(-200.0, 10.0) == BACK
    assert judge.view_of(0.0, 52.0) == ""  # between the horizontal views and the overhead view


def test_margin_leaves_out_the_edges_of_every_band() -> None:
    assert judge.view_of(35.0, 10.0) == FRONT
    assert judge.view_of(35.0, 10.0, 10.0) == ""
    assert judge.view_of(55.0, 10.0) == SIDE
    assert judge.view_of(55.0, 10.0, 10.0) == ""
    assert judge.view_of(0.0, 45.0, 10.0) == ""
    assert judge.view_of(0.0, 60.0) == OVERHEAD
    assert judge.view_of(0.0, 60.0, 10.0) == ""
    assert judge.view_of(0.0, 65.0, 10.0) == OVERHEAD


@pytest.mark.slow
def test_series_is_uncorrupted_and_shows_every_colour_and_view_of_every_object() -> None:
    shots = [judge.own_shot(i) for i in range(4000)]
    assert not any(s.facts.corruptions for s in shots)
    seen = {(s.facts.object, judge.truth_of(s).view) for s in shots}
    for name, its in OBJECTS.items():
        assert {v for n, v in seen if n == name} - {""} == ({FRONT, SIDE, BACK, OVERHEAD} if its.front else set())
    assert {(s.facts.object, s.facts.colour) for s in shots} == {(n, c) for n in OBJECTS for c in pictures.COLOURS}
    assert any(pictures.held_out(s.facts.object, s.facts.colour, s.facts.view) for s in shots)
    assert all(s.facts.second_colour != s.facts.colour for s in shots)
    assert {s.facts.second for s in shots} == set(judge.SECONDS)
    more = [judge.own_shot(i, more_seconds=1.0) for i in range(200)]
    assert all(s.facts.second and s.facts.second_colour not in ("", s.facts.colour) for s in more)


def test_shot_of_shows_what_is_asked_for_well_inside_the_view() -> None:
    for i, view in enumerate((FRONT, SIDE, BACK, OVERHEAD) * 20):
        shot = judge.shot_of(i, figures.plain_facts("duck", "purple", view))
        assert judge.truth_of(shot, judge.MARGIN) == Truth("duck", "purple", view)
    pair = [judge.shot_of(i, figures.plain_facts("cat", "red", "", "hat", "blue")) for i in range(200)]
    assert judge.truth_of(pair[0])[3:] == ("hat", "blue")
    ahead = [s for s in pair if judge.view_of(s.azimuth, s.elevation) == FRONT]
    assert 0.7 < len(ahead) / len(pair) < 0.92  # the data's front bias if no view is named
    assert judge.truth_of(judge.shot_of(3, figures.plain_facts("tree", "red", SIDE)), judge.MARGIN) == Truth(
        "tree", "red", ""
    )


# ---- training, saving, reading


@pytest.fixture(scope="module")
def trained() -> judge.Classifier:
    """A classifier that knows colours, and objects a little."""
    rgb, truths = judge.true_pictures(0, 1500, size=judge.SIZE)
    trainer = training.Trainer(training.Plan(samples=6000, batch=50, lr=3e-3), rgb, truths, SMALL)
    for _ in range(trainer.plan.steps):
        trainer.train_step()
    return trainer.classifier.requires_grad_(False).eval()


@pytest.mark.slow
def test_classifier_reads_pictures_it_has_not_seen(trained: judge.Classifier) -> None:
    rgb, truths = judge.true_pictures(judge.HELD_OUT, 300)
    shares = judge.score(truths, judge.read(trained, rgb))
    assert shares["object"].value > 0.15  # chance is 1/32
    assert shares["colour"].value > 0.4  # 1/12
    assert shares["view"].value > 0.35  # 1/4


def test_training_is_determined_by_its_seed() -> None:
    rgb, truths = judge.true_pictures(0, 40, size=judge.SIZE)

    def losses(seed: int) -> list[float]:
        trainer = training.Trainer(training.Plan(samples=60, batch=20, seed=seed), rgb, truths, SMALL)
        return [trainer.train_step() for _ in range(3)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.slow
def test_shipped_judge_reads_true_pictures() -> None:
    shares, _, _ = judge.accuracy(judge.load(), 400)
    assert shares["object"].value > 0.98
    assert shares["colour"].value > 0.98
    assert shares["view"].value > 0.96


@pytest.mark.slow
def test_saved_judge_is_small_and_reads_the_same(trained: judge.Classifier, tmp_path: Path) -> None:
    trained.facts = {"accuracy": {"object": [1, 2]}}
    judge.save(trained, tmp_path)
    again = judge.load(tmp_path)
    assert again.facts == trained.facts
    assert {p.name for p in tmp_path.iterdir()} == {"judge.safetensors", "config.json"}
    rgb, _ = judge.true_pictures(judge.HELD_OUT, 64)
    one, other = judge.chances(trained, rgb), judge.chances(again, rgb)
    assert all(torch.allclose(one[q], other[q], atol=0.02) for q in one)  # float16 on disk
    full = judge.Classifier()
    assert sum(p.numel() for p in full.parameters()) < 1.5e6


@pytest.mark.slow
def test_folder_without_a_judge_or_of_another_world_is_refused(trained: judge.Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train-judge"):
        judge.load(tmp_path)
    judge.save(trained, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["questions"]["object"][0] = "dragon"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="questions that differ"):
        judge.load(tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        judge.load(tmp_path)


class Oracle(judge.Classifier):
    """Reads the answers from the first pixels of an image."""

    def __init__(self) -> None:
        super().__init__(widths=SMALL)

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        codes = (rgb[:, 0, 0, : len(self.questions)] * 255).round().long()
        return {
            name: 9.0 * torch.nn.functional.one_hot(codes[:, i] % len(answers), len(answers)).float()
            for i, (name, answers) in enumerate(self.questions.items())
        }


def coded(*truths: Truth) -> Tensor:
    """Return images, uint8, that the oracle reads as `truths`."""
    rgb = torch.zeros(len(truths), 3, judge.SIZE, judge.SIZE, dtype=torch.uint8)
    for i, truth in enumerate(truths):
        for k, (name, answers) in enumerate(judge.QUESTIONS.items()):
            answer = getattr(truth, name)
            rgb[i, 0, 0, k] = rgb[i, 0, 0, -1 - k] = answers.index(answer) if answer in answers else 0
    return rgb


def test_read_answers_every_question_and_leaves_out_what_has_no_answer() -> None:
    plain, pair, tree = (
        Truth("bear", "red", BACK),
        Truth("car", "blue", SIDE, "box", "pink"),
        Truth("tree", "red", SIDE),
    )
    found = judge.read(Oracle().eval(), coded(plain, pair, tree))
    assert found == [plain, pair, tree._replace(view="")]


@pytest.mark.slow
def test_any_size_is_read(trained: judge.Classifier) -> None:
    rgb, _ = judge.true_pictures(judge.HELD_OUT, 100)
    enlarged = torch.nn.functional.interpolate(rgb.float() / 255, (judge.SIZE,) * 2, mode="bilinear", antialias=True)
    for name, p in judge.chances(trained, rgb).items():
        torch.testing.assert_close(p, judge.chances(trained, enlarged)[name])
    fine, _ = judge.true_pictures(judge.HELD_OUT, 100, size=2 * judge.SIZE)  # the same images with more pixels
    plain, _ = judge.true_pictures(judge.HELD_OUT, 100, size=judge.SIZE)
    apart = judge.chances(trained, fine)["colour"] - judge.chances(trained, plain)["colour"]
    assert apart.abs().sum(1).mean() < 0.2  # 2 at most


def test_score_counts_right_answers_and_leaves_out_what_was_not_asked() -> None:
    asked = [Truth("bear", "red", FRONT), Truth("tree", "red", ""), Truth("car", "blue", BACK, "box", "red")]
    answered = [Truth("cat", "red", FRONT), Truth("tree", "red", SIDE), Truth("car", "red", SIDE, "box", "pink")]
    shares = judge.score(asked, answered)
    assert shares == {
        "object": Share(2, 3),
        "colour": Share(2, 3),
        "view": Share(1, 2),
        f"view: {FRONT}": Share(1, 1),
        f"view: {BACK}": Share(0, 1),
        "second": Share(3, 3),
        "second_colour": Share(0, 1),
    }
    assert judge.confusions(asked, answered, "view") == [(f"car, {BACK}", SIDE, 1)]
    assert judge.confusions(asked, answered, "object") == [("bear", "cat", 1)]


# ---- samples


class Perfect:
    """A prior that knows one image per prompt: the exact score of that single image.

    Its images are those in `known`, by prompt; an unknown prompt is a black image.
    """

    name, commit, engine_name, engine_note, torch_threads = "perfect", "", "exact", "", 1
    image_size = judge.SIZE
    shape: tuple[int, int, int] = (3, judge.SIZE, judge.SIZE)
    device = torch.device("cpu")

    def __init__(self, known: dict[str, Tensor]) -> None:
        self.known = known
        self.batches: list[int] = []

    def embed(self, text: str) -> Cond:
        z0 = self.encode(self.known[text][None]) if text in self.known else torch.full((1, *self.shape), -1.0)
        return Cond(z0.flatten(1)[:, None])

    def remark(self, text: str) -> str:
        return ""

    def encode(self, rgb: Tensor) -> Tensor:
        return 2 * rgb - 1

    def decode(self, z: Tensor) -> Tensor:
        return (z / 2 + 0.5).clamp(0, 1)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = (1 - (t + 1) / 1001).sqrt().view(-1, 1, 1, 1)
        return alpha, (1 - alpha**2).sqrt()

    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = self.marginal(t)
        return (z_t - alpha * cond.hidden.view_as(z_t)) / sigma

    def prepare_texts(self, texts: object, progress: object) -> None:
        """Nothing to prepare."""

    def prepare(self, batch_sizes: object) -> None:
        assert isinstance(batch_sizes, list)
        self.batches += batch_sizes

    def trainable(self, how: str, rank: int) -> object:
        raise AssertionError("sampling trains nothing")


def test_sampler_finds_the_prompts_own_picture_and_evaluates_in_batches_of_one_size() -> None:
    a, b = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    prior = Perfect({"a": a, "b": b})
    done: list[int] = []
    prompts = ["a", "b"] * (sample.BATCH // 2) + ["b"]
    drawn = sample.sample(prior, prompts, scale=1.0, steps=4, progress=done.append)
    assert drawn.shape == (sample.BATCH + 1, 64, 64, 3)
    assert np.allclose(drawn[0], a.permute(1, 2, 0), atol=1e-3)
    assert np.allclose(drawn[-1], b.permute(1, 2, 0), atol=1e-3)
    assert prior.batches == [2 * sample.BATCH]
    assert done == [sample.BATCH, sample.BATCH + 1]


def everything(spoil: dict[str, Truth]) -> Perfect:
    """Return a prior that draws all evaluation captions correctly, except for those in `spoil`."""
    facts = [*figures.held_out_facts(), *figures.pair_facts()]
    facts += [figures.plain_facts(n, c) for n in OBJECTS for c in pictures.COLOURS]
    truths = {figures.caption_of(f): figures.asked_by(f) for f in facts} | spoil
    return Perfect({caption: coded(truth)[0].float() / 255 for caption, truth in truths.items()})


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The evaluation of a prior that draws every caption correctly except one held-out bear, one hat and one colour."""
    bear = next(f for f in figures.held_out_facts() if f.object == "bear")
    hat, scarf = (figures.asked_by(f) for f in figures.pair_facts()[:2])
    captions = [figures.caption_of(f) for f in (bear, *figures.pair_facts()[:2])]
    wrong = [
        figures.asked_by(bear)._replace(object="cat"),
        hat._replace(second="", second_colour=""),
        scarf._replace(colour="gray" if scarf.colour != "gray" else "red"),
    ]
    prior = everything(dict(zip(captions, wrong, strict=True)))
    sampling = figures.Sampling(each=1, scale=1.0, steps=2)
    return figures.measure(
        prior, Oracle().eval(), sampling, figures.parse_parts("held-out,two-objects,no-view,descriptors")
    )


@pytest.mark.slow
def test_held_out_captions_are_counted_word_by_word(found: dict[str, Any]) -> None:
    facts = figures.held_out_facts()
    n, bears = len(facts), sum(f.object == "bear" for f in facts)
    with_front = sum(OBJECTS[f.object].front for f in facts)
    assert 180 <= n <= 260
    part = found["held-out"]
    assert part["captions"] == n
    assert part["samples"]["object"] == Share(n - 1, n)
    assert part["samples"]["colour"] == Share(n, n)
    assert part["samples"]["view"] == Share(with_front, with_front)
    assert part["confused"]["object"] == [("bear", "cat", 1)]
    assert part["by_object"]["bear"]["object"] == Share(bears - 1, bears)


@pytest.mark.slow
def test_pairs_count_only_with_both_objects(found: dict[str, Any]) -> None:
    facts = figures.pair_facts()
    assert len({figures.caption_of(f) for f in facts}) == len(facts) == figures.PAIRS
    assert [f.second for f in facts[:4]] == ["hat", "scarf", "box", "ball"]
    part = found["two-objects"]
    assert part["samples"]["both"] == Share(59, 60)
    assert part["by_second"]["hat"] == Share(14, 15)
    assert part["samples"]["both in their colours"] == Share(58, 60)


def test_share_of_fronts_is_that_of_objects_with_a_front(found: dict[str, Any]) -> None:
    fronts = sum(its.front for its in OBJECTS.values()) * len(pictures.COLOURS)
    assert found["no-view"]["samples"] == Share(
        fronts, fronts
    )  # the oracle answers a missing view with the first word, front
    assert found["no-view"]["true"].of == 1000


def test_report_names_every_figure(found: dict[str, Any]) -> None:
    text = figures.report(found)
    n = len(figures.held_out_facts())
    assert f"{n} held-out captions" in text
    assert f"{n - 1}/{n}" in text
    assert "59/60" in text
    assert all(word in text for word in DESCRIPTORS)
    assert json.loads(json.dumps(found))["held-out"]["samples"]["colour"] == [n, n]


def test_captions_read_as_people_write_them() -> None:
    assert figures.caption_of(figures.plain_facts("owl", "orange", SIDE)) == "an orange owl, side view"
    pair = figures.plain_facts("bear", "red", "", "hat", "orange")
    assert figures.caption_of(pair) == "a red bear wearing an orange hat"
    pair = figures.plain_facts("mushroom", "red", "", "box", "green")
    assert figures.caption_of(pair) == "a red mushroom on a green box"


# ---- descriptors


@pytest.mark.slow
@pytest.mark.parametrize("word", DESCRIPTORS)
def test_each_descriptor_moves_its_statistic_in_the_data(word: str) -> None:
    facts = figures.descriptor_facts(96)
    shots = [judge.shot_of(i, f) for i, f in enumerate(facts)]
    corrupted = [s._replace(facts=s.facts._replace(corruptions=(word,))) for s in shots]
    before, after = (judge.render(x).float() / 255 for x in (shots, corrupted))
    _, statistic, direction = figures.MEASURES[word]
    assert figures.moved(statistic(before), statistic(after)).follows(direction)


def test_move_is_a_mean_with_its_standard_error() -> None:
    move = figures.moved(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 4.0]))
    assert move == figures.Move(2.0, 3.33333, 1.33333, round(math.sqrt(1 / 3) / math.sqrt(3), 5))
    assert move.follows(1)
    assert not move.follows(-1)
    assert not figures.moved(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.5])).follows(1)


def test_train_judge_writes_a_judge_and_says_what_it_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "train", partial(training.train, checked=30))
    short = "--samples 64 --pictures 40 --batch 16 --threads 1"
    assert cli.main(["train-judge", *short.split(), "--out", str(tmp_path)]) == 0
    assert "object" in capsys.readouterr().out
    assert judge.load(tmp_path).facts["training"]["pictures"] == 40


@pytest.mark.slow
def test_judge_measures_any_toybox_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save(model.build(model.Shape(channels=(16, 32), text_width=32, text_layers=1)), tmp_path)
    out = tmp_path / "deep" / "figures.json"
    short = "--only two-objects --each 1 --steps 1"
    assert cli.main(["judge", "--weights", str(tmp_path), *short.split(), "--out", str(out)]) == 0
    assert "60 two-object captions" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["scale"] == sample.SCALE
    assert found["two-objects"]["samples"]["both"][1] == 60


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["judge", "--only", "true,colours"], "--only"),
        (["judge", "--each", "0"], "--each"),
        (["judge", "--judge", "/nowhere"], "/nowhere"),
        (["train-judge", "--out", "x", "--minutes", "0"], "--minutes"),
    ],
)
def test_bad_values_end_with_code_2_and_name_the_option(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]
