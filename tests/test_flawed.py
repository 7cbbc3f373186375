"""The toybox's flaws on images that it did not render."""

from __future__ import annotations

import numpy as np
import pytest

from sdlab.toybox import filters
from sdlab.toybox.flawed import flawed, ground
from sdlab.toybox.words import DESCRIPTORS


def disc(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc with a soft edge: premultiplied rgb [S, S, 3] and coverage [S, S]."""
    at = (np.arange(size) + 0.5) * 2 / size - 1
    coverage = np.clip((0.6 - np.hypot(at[:, None], at[None, :])) * size / 4, 0, 1).astype(np.float32)
    return coverage[..., None] * np.array((0.9, 0.1, 0.1), np.float32), coverage


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [32, 56, 64, 88])
@pytest.mark.parametrize("word", filters.FILTERS)
def test_every_flaw_fills_the_image_at_any_size(word: str, size: int):
    rgb, coverage = disc(size)
    clear = rgb + (1 - coverage)[..., None] * ground(size, rng(3))
    got, covered = flawed(rgb, coverage, [word], rng(3))
    assert got.shape == (size, size, 3)
    assert got.dtype == covered.dtype == np.float32
    assert 0 <= got.min() <= got.max() <= 1
    assert (covered == 1).all()
    assert np.abs(got - clear).mean() > 0.005, "the flaw shows"


def test_one_to_three_of_the_flaws_are_drawn_in_the_shares_of_the_data(monkeypatch):
    seen: list[list[str]] = []

    def recorder(word: str):
        return lambda x, rng: (seen[-1].append(word), x)[1]

    for word in filters.FILTERS:
        monkeypatch.setitem(filters.FILTERS, word, recorder(word))
    rgb, coverage = disc(8)
    asked = ["blurry", "noisy", "foggy", "hazy"]
    for seed in range(2000):
        seen.append([])
        flawed(rgb, coverage, asked, rng(seed))
    assert all(len(set(words)) == len(words) and set(words) <= set(asked) for words in seen)
    counts = np.bincount([len(words) for words in seen], minlength=4) / len(seen)
    assert counts == pytest.approx([0, 0.6, 0.28, 0.12], abs=0.03)
    assert {words[0] for words in seen} == set(asked), "in random order"


def test_equal_generators_give_equal_images_and_grounds_differ():
    rgb, coverage = disc(32)
    one, other, another = (flawed(rgb, coverage, ["hazy", "noisy"], rng(seed))[0] for seed in (1, 1, 2))
    assert (one == other).all()
    assert np.abs(one - another).max() > 0.05
    reordered, _ = flawed(rgb, coverage, ["noisy", "hazy"], rng(1))
    assert (one == reordered).all(), "the order of the words in a prompt does not matter"
    corners = np.array([ground(4, rng(seed))[0, 0] for seed in range(300)])
    assert (corners.min(1) > 0.85).mean() == pytest.approx(0.55, abs=0.12), "mostly white"
    assert np.ptp(corners, 0).min() > 0.6


@pytest.mark.parametrize("words", [[], ["malformed"], ["blurry", "bad structure"], ["purple"]])
def test_what_no_filter_can_do_is_refused(words: list[str]):
    assert set(DESCRIPTORS) - set(filters.FILTERS) == {"bad structure", "malformed"}
    with pytest.raises(ValueError, match=r"^descriptors .*: give some of oversaturated, smooth, "):
        flawed(*disc(8), words, rng(0))
