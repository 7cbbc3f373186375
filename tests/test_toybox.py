"""The judge of the toybox reads what pictures show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sdlab.toybox import judge, model, pictures

TINY = model.Shape(channels=(16, 32), text_width=32, text_layers=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, most of all on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
