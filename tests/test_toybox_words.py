"""Toybox captions are true, varied, short enough, and stay within the vocabulary."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from sdlab.cameras import view_word
from sdlab.toybox import words
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.words import Facts, write_caption

N = 3000
PLAIN = Facts("bear", "red", "", "", "", "", "", "", ())


def tokens(caption: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]+", caption)


def random_facts(rng: np.random.Generator) -> Facts:
    def pick(table: dict[str, tuple[str, ...]], share: float = 1.0) -> str:
        return list(table)[rng.integers(len(table))] if rng.random() < share else ""

    second = pick(words.SECONDS, 0.3)
    return Facts(
        object=pick(words.OBJECTS),
        colour=pick(words.COLOURS),
        material=pick(words.MATERIALS, 0.2),
        pattern=pick(words.PATTERNS, 0.2),
        second=second,
        second_colour=pick(words.COLOURS) if second else "",
        view=pick(words.VIEW_NAMES, 0.65),
        style=pick(words.STYLES, 0.1),
        corruptions=tuple(rng.permutation(list(words.DESCRIPTORS)).tolist()[: rng.integers(4) * (rng.random() < 0.3)]),
    )


@pytest.fixture(scope="module")
def written() -> list[tuple[Facts, str]]:
    rng = np.random.default_rng(0)
    every = [random_facts(rng) for _ in range(N)]
    return [(facts, write_caption(rng, facts)) for facts in every]


def captions(facts: Facts, n: int = 2000) -> Counter[str]:
    rng = np.random.default_rng(1)
    return Counter(write_caption(rng, facts) for _ in range(n))


def says(caption: str, wordings: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(w)}\b", caption) for w in wordings)


def forms(table: dict[str, tuple[str, ...]], word: str) -> tuple[str, ...]:
    return word, *table[word]


def views(view: str) -> tuple[str, ...]:
    return view, *words.VIEW_NAMES[view], *words.VIEW_PHRASES[view]


def test_every_object_and_view_word_has_its_words() -> None:
    assert set(OBJECTS) <= set(words.OBJECTS)
    assert set(words.VIEW_WORDS) == {view_word(a, e) for a, e in ((0, 0), (90, 0), (180, 0), (0, 80))}
    assert set(words.RELATIONS) == set(words.SECONDS)
    assert set(words.NATURAL) <= set(words.OBJECTS)
    assert {c for natural in words.NATURAL.values() for c in natural} <= set(words.COLOURS)


def test_no_wording_stands_for_two_things() -> None:
    tables = (words.OBJECTS, words.COLOURS, words.MATERIALS, words.PATTERNS, words.SECONDS, words.DESCRIPTORS)
    meant = Counter(w for table in tables for key in table for w in forms(table, key))
    seen = Counter(w for view in words.VIEW_WORDS for w in views(view))
    assert [w for w, n in (meant + seen).items() if n > 1] == []


def test_captions_hold_the_vocabulary_and_fillers_and_nothing_else(written: list[tuple[Facts, str]]) -> None:
    known = set(words.vocabulary())
    used = {w for _, caption in written for w in tokens(caption) if w not in {",", ".", "-"}}
    fillers = {*words.FILLERS, *words.THINGS}
    assert not fillers & known
    tails = {w for tail in words.TAILS for w in tail.split()}
    assert used - known <= fillers | (tails - known)
    assert all(set(tail.split()) - known for tail in words.TAILS)
    assert len(known - used) < 5  # no word that is never trained


@pytest.mark.slow
def test_captions_say_what_the_picture_shows_and_nothing_else(written: list[tuple[Facts, str]]) -> None:
    unsaid: Counter[str] = Counter()
    for facts, caption in written:
        if facts.corruptions and not says(caption, tuple(w for o in words.OBJECTS for w in forms(words.OBJECTS, o))):
            unsaid["alone"] += 1
            continue
        colours = {c for c in words.COLOURS if says(caption, forms(words.COLOURS, c))}
        assert colours <= {facts.colour, facts.second_colour}
        unsaid["object"] += not says(caption, forms(words.OBJECTS, facts.object))
        unsaid["colour"] += facts.colour not in colours
        for other in set(words.OBJECTS) - {facts.object}:
            assert not says(caption, forms(words.OBJECTS, other)), caption
        for view in words.VIEW_WORDS:
            assert says(caption, views(view)) == (view == facts.view), caption
        for table, fact in ((words.MATERIALS, facts.material), (words.SECONDS, facts.second)):
            for word in table:
                assert says(caption, forms(table, word)) == (word == fact), caption
        for word in words.PATTERNS:
            wordings = (*forms(words.PATTERNS, word), *words.PATTERN_PHRASES[word])
            assert says(caption, wordings) == (word == facts.pattern), caption
        assert says(caption, ("painting",)) == bool(facts.style), caption
        for word in words.DESCRIPTORS:
            assert says(caption, forms(words.DESCRIPTORS, word)) == (word in facts.corruptions), caption
        if facts.corruptions:
            assert not says(caption, words.QUALITIES), caption
        else:
            assert not says(caption, words.FLAWED), caption
    assert 0 < unsaid["object"] < 0.02 * N
    assert 0.03 * N < unsaid["colour"] < 0.12 * N


def test_a_natural_colour_alone_goes_without_saying() -> None:
    leaves_out = {
        colour: sum(
            n
            for c, n in captions(PLAIN._replace(object="tree", colour=colour)).items()
            if not says(c, forms(words.COLOURS, colour))
        )
        for colour in ("green", "purple")
    }
    assert leaves_out["green"] > 500
    assert leaves_out["purple"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "standard"),
    [
        (PLAIN, "a red bear"),
        (PLAIN._replace(view="front view"), "a red bear, front view"),
        (PLAIN._replace(second="hat", second_colour="blue"), "a red bear wearing a blue hat"),
        (PLAIN._replace(object="mushroom", second="box", second_colour="green"), "a red mushroom on a green box"),
        (PLAIN._replace(second="ball", second_colour="blue"), "a red bear next to a blue ball"),
        (PLAIN._replace(material="shiny", pattern="striped"), "a shiny striped red bear"),
        (PLAIN._replace(style="painting"), "a painting of a red bear"),
        (PLAIN._replace(corruptions=("blurry", "noisy")), "a red bear, blurry, noisy"),
    ],
)
def test_the_standard_wording_is_the_most_frequent(facts: Facts, standard: str) -> None:
    found = captions(facts)
    assert found.most_common(1)[0][0] == standard
    assert found[standard] >= 0.38 * found.total()
    assert len(found) > 100


def test_the_standard_view_word_is_in_most_captions_that_name_a_view(written: list[tuple[Facts, str]]) -> None:
    named = [facts.view in c for facts, c in written if facts.view and says(c, views(facts.view))]
    assert 0.7 < np.mean(named) < 0.85


def test_synonyms_are_a_quarter_of_what_people_might_type() -> None:
    found = captions(PLAIN._replace(object="sofa", colour="gray", view="back view"))
    share = sum(n for c, n in found.items() if not all(w in c for w in ("sofa", "gray", "back view"))) / found.total()
    assert 0.2 < share < 0.5
    for wording in ("couch", "grey", "rear view", "from behind", "rear view of"):
        assert sum(n for c, n in found.items() if wording in c) > 0


def test_everything_fits_the_tokenizer_with_ten_descriptors() -> None:
    rng = np.random.default_rng(2)
    every = [random_facts(rng)._replace(corruptions=tuple(words.DESCRIPTORS)) for _ in range(N)]
    longest = max((write_caption(rng, f) for f in every), key=lambda c: len(tokens(c)))
    assert 30 < len(tokens(longest)) <= 75, longest  # 77 tokens, minus <bos> and <eos>


def test_the_same_generator_writes_the_same() -> None:
    one, other = (write_caption(np.random.default_rng(5), PLAIN._replace(view="side view")) for _ in range(2))
    assert one == other


def test_the_word_list_shows_standard_words_and_knows_every_name_of_an_object() -> None:
    found = words.word_list()
    assert found["groups"]["objects"] == list(words.OBJECTS)
    assert {"teddy bear", "kitty", "bear"} <= set(found["names"])
    known = set(words.vocabulary())
    shown = {w for group in found["groups"].values() for entry in group for w in tokens(entry)}
    assert shown <= known
