"""Captions of a person's own pictures, and how a prompt selects among them.

- A word of the prompt is known if it occurs in any caption. A prompt selects the pictures whose captions contain all
  known words; if there are none, those with the most. If no word is known, it selects all pictures.
- View words ("front view") are words like any others, but are left out first if no caption has all words.
- Descriptors ("blurry") that are in no caption select nothing but name flaws for filters; "low quality" means any.
- Quality words, prefixes ("a photo of") and the like that are in no caption have no effect. Nor have articles.

Words are compared without case, whole, and in one form of Unicode; "_" and "-" separate words, as in file names.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sdlab.priors.text import listed
from sdlab.priors.wordlist import MAX_ENTRIES, MAX_LENGTH, WordList
from sdlab.toybox.filters import FILTERS
from sdlab.toybox.grammar import GLUE, phrases

IGNORED = GLUE | {"or", "for", "are", "this", "s"}
SPECIAL = ("view", "corruptions", "flawed", "good", "")  # kinds of the toybox's phrases that mean something here
SHOWN_WORDS = 30  # in messages
FEW = 10  # pictures, up to which the user is told that there are few


def split(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _special() -> dict[tuple[str, ...], tuple[str, str]]:
    """Return phrase -> (kind, standard wording) of the toybox's phrases with a meaning for any picture."""
    return {phrase: meaning for phrase, meaning in phrases().items() if meaning[0] in SPECIAL}


@functools.cache
def _longest() -> int:
    return max(map(len, _special()))


class Reading(NamedTuple):
    """How a text is read: `words` select pictures, `flaws` are made by filters; the rest is for remarks."""

    words: tuple[str, ...]  # sorted
    flaws: tuple[str, ...]  # in the order of FILTERS
    unknown: tuple[str, ...]  # in no caption
    dropped: tuple[str, ...]  # view words that no caption has along with the other words
    deforming: tuple[str, ...]  # descriptors that no filter can make


class Captions:
    """The captions of N pictures, which are numbered in the order in which they are given."""

    def __init__(self, captions: Iterable[Iterable[str]]) -> None:
        """Index the words of each picture's caption; `IGNORED` words do not count."""
        found: dict[str, array[int]] = {}
        count = 0
        for caption in captions:
            for word in set(caption) - IGNORED:
                found.setdefault(word, array("i")).append(count)
            count += 1
        self._count = count
        self._pictures = {word: np.array(numbers, np.int32) for word, numbers in found.items()}
        common = sorted(found, key=lambda word: (-len(found[word]), word))
        self._common = [word for word in common if len(word) <= MAX_LENGTH][:MAX_ENTRIES]
        self._known = WordList({"captions": tuple(self._common)}, ())

    def __len__(self) -> int:
        return self._count

    def selected(self, words: Iterable[str]) -> np.ndarray:
        """Return the numbers of the pictures whose captions contain the most of `words`: all, if there are no words."""
        matches = self._matches(words)
        return np.flatnonzero(matches == matches.max())

    def _matches(self, words: Iterable[str]) -> np.ndarray:
        """Return how many of the words each caption contains [N]."""
        matches = np.zeros(self._count, np.int32)
        for word in words:
            if word in self._pictures:
                matches[self._pictures[word]] += 1
        return matches

    def _most(self, words: Iterable[str]) -> int:
        """Return the largest number of the words that a caption contains."""
        return int(self._matches(words).max())

    def read(self, text: str) -> Reading:
        """Read a text as the module says; never raises."""
        plain: dict[str, None] = {}
        views: dict[str, None] = {}
        unknown: dict[str, None] = {}
        flaws: dict[str, None] = {}
        said, at = split(text), 0
        while at < len(said):
            phrase = _phrase_at(said, at)
            at += len(phrase)
            content = [word for word in phrase if word not in IGNORED]
            known = dict.fromkeys(word for word in content if word in self._pictures)
            kind, standard = _special().get(phrase, (None, ""))
            if kind == "view":
                views |= known
            elif kind is None or (content and self._most(content) == len(content)):
                plain |= known
                unknown |= dict.fromkeys(word for word in content if word not in known)
            elif kind in ("corruptions", "flawed"):
                flaws[standard] = None
        if list(flaws) == [""]:  # "low quality" alone is any of them
            flaws = dict.fromkeys(FILTERS)
        views = {word: None for word in views if word not in plain}
        fits = not plain or self._most(plain | views) == len(plain | views)
        return Reading(
            words=tuple(sorted(plain | views if fits else plain)),
            flaws=tuple(name for name in FILTERS if name in flaws),
            unknown=tuple(unknown),
            dropped=() if fits else tuple(views),
            deforming=tuple(name for name in flaws if name and name not in FILTERS),
        )

    def remark(self, text: str) -> str:
        """Return what the user should know about how `text` is read, or ""."""
        if not split(text):
            return ""
        reading = self.read(text)
        words, chosen, most = reading.words, len(self.selected(reading.words)), self._most(reading.words)
        remarks = []
        if reading.unknown:
            remarks.append(f"no caption contains {listed(reading.unknown, self._known)}")
        if not words and not reading.flaws:
            remarks.append(f"no word of the text selects pictures, so it stands for all {len(self):,}")
        if reading.dropped:
            remarks.append(f"no caption has all of its words, so {listed(reading.dropped)} has no effect")
        if most < len(words):
            remarks.append(
                f"no caption contains all of {listed(words)}, so the text stands for the {chosen:,} with {most} of them"
            )
        if reading.deforming:
            remarks.append(f"{listed(reading.deforming)} would deform an object, which no filter can do: no effect")
        if chosen <= FEW and not reading.flaws:
            remarks.append(
                "only one picture fits, so the result can only be this one"
                if chosen == 1
                else f"only {chosen} pictures fit, so the result can only be one of them"
            )
        if reading.unknown:
            return f"{'; '.join(remarks)}. The captions contain {self._vocabulary()}"
        return "; ".join(remarks)

    def _vocabulary(self) -> str:
        """Return the most common words."""
        more = f" and {len(self._pictures) - SHOWN_WORDS:,} more" if len(self._pictures) > SHOWN_WORDS else ""
        return f"{', '.join(self._common[:SHOWN_WORDS])}{more}" if self._common else "no words"


def _phrase_at(said: Sequence[str], at: int) -> tuple[str, ...]:
    """Return the longest special phrase at a position, or else the word there."""
    for n in range(min(_longest(), len(said) - at), 1, -1):
        if tuple(said[at : at + n]) in _special():
            return tuple(said[at : at + n])
    return (said[at],)
