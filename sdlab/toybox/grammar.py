"""What a prompt says, in the toybox's words.

A prompt is split into the phrases of `words`, the longest first. A colour belongs to the next noun; after the last noun
it belongs to the object ("a bear, red"). Words outside the vocabulary are reported, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from sdlab.toybox import words
from sdlab.toybox.objects import seconds_of

# words that only connect others
GLUE = frozenset(
    ("a", "an", "the", "of", "in", "on", "at", "by", "to", "is", "that", "it", "and", "with", "from", "its")
)

UNKNOWN = "unknown"


class Reading(NamedTuple):
    """What a prompt says: standard words, "" where it says nothing."""

    object: str = ""
    colour: str = ""
    material: str = ""
    pattern: str = ""
    second: str = ""
    second_colour: str = ""
    view: str = ""
    style: str = ""
    corruptions: tuple[str, ...] = ()  # descriptors, in the order named
    flawed: bool = False  # "low quality" and similar: some descriptor, left open
    good: bool = False  # "high quality", "realistic" and similar: no descriptor
    unknown: tuple[str, ...] = ()  # words without meaning here
    ignored: tuple[str, ...] = ()  # what is known but cannot be shown, each with the reason

    @property
    def says_nothing(self) -> bool:
        """Whether the prompt has no word that selects images."""
        return self._replace(good=False, unknown=(), ignored=()) == Reading()


@cache
def phrases() -> dict[tuple[str, ...], tuple[str, str]]:
    """Return phrase, as a tuple of words, -> (kind, standard wording). Kinds are fields of `Reading`, or "" for words
    that select nothing."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}

    def add(kind: str, standard: str, *wordings: str) -> None:
        for wording in wordings:
            found.setdefault(split(wording), (kind, standard))

    tables = {
        "object": words.OBJECTS,
        "colour": words.COLOURS,
        "material": words.MATERIALS,
        "pattern": words.PATTERNS,
        "second": words.SECONDS,
        "view": words.VIEW_NAMES,
        "corruptions": words.DESCRIPTORS,
    }
    for kind, table in tables.items():
        for standard, synonyms in table.items():
            add(kind, standard, standard, *synonyms)
    for kind, table in {
        "pattern": words.PATTERN_PHRASES,
        "view": words.VIEW_PHRASES,
        "style": {words.PAINTING: (*words.STYLES[words.PAINTING], *words.STYLE_MARKS[words.PAINTING])},
    }.items():
        for standard, wordings in table.items():
            add(kind, standard, *wordings)
    add("flawed", "", *words.FLAWED)
    add("good", "", *words.QUALITIES, *words.REALISMS)
    around = [w.replace("{}", "") for ways in words.RELATIONS.values() for w in ways]
    add("", "", *words.PREFIXES, *around, *(w for ways in words.REVERSED.values() for w in ways), *GLUE)
    return found


@cache
def longest() -> int:
    """Return the number of words of the longest phrase."""
    return max(map(len, phrases()))


def split(text: str) -> tuple[str, ...]:
    """Return the words of `text` in lower case, hyphens and punctuation dropped."""
    return tuple(re.findall(r"\w+", text.lower()))


def _match(said: tuple[str, ...], at: int) -> tuple[str, str, int]:
    """Return (kind, standard wording, number of words) of the longest phrase at a position; the number is 0 if there
    is none. A noun may be in the plural."""
    for n in range(min(longest(), len(said) - at), 0, -1):
        part = said[at : at + n]
        for candidate in (part, (*part[:-1], part[-1].removesuffix("s"))):
            if candidate in phrases():
                return (*phrases()[candidate], n)
    return "", "", 0


def named_in(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, standard wording, the words themselves) of each phrase of a text; see `phrases` for the kinds.

    A word outside the vocabulary is of the kind `UNKNOWN`.
    """
    said = split(text)
    at = 0
    while at < len(said):
        kind, standard, n = _match(said, at)
        yield kind if n else UNKNOWN, standard, " ".join(said[at : at + max(n, 1)])
        at += max(n, 1)


def read(text: str) -> Reading:
    """Read a prompt; never raises."""
    single: dict[str, str] = {}
    corruptions: list[str] = []
    unknown: list[str] = []
    ignored: list[str] = []
    flags = {"flawed": False, "good": False}
    waiting = ""  # the colour nearest before the next noun
    for kind, standard, named in named_in(text):
        if kind == UNKNOWN:
            unknown.append(named)
        elif kind == "colour":
            if waiting:
                ignored.append(f"{waiting!r}, because one noun has one colour")
            waiting = standard
        elif kind in ("object", "second"):
            if kind in single:
                ignored.append(f"{named!r}, because there is room for one object and one of {', '.join(words.SECONDS)}")
            else:
                single[kind] = standard
                if waiting:
                    single["colour" if kind == "object" else "second_colour"] = waiting
            waiting = ""
        elif kind == "corruptions":
            corruptions.append(standard)
        elif kind in flags:
            flags[kind] = True
        elif kind and single.setdefault(kind, standard) != standard:
            ignored.append(f"{named!r}, because {single[kind]!r} is said already")
    if waiting and single.setdefault("colour", waiting) != waiting:
        ignored.append(f"{waiting!r}, because the object is {single['colour']} already")
    name, second = single.get("object", ""), single.get("second", "")
    if name and second and second not in seconds_of(name):
        ignored.append(f"{second!r}, because the {name} can only have {' or '.join(seconds_of(name))}")
        single.pop("second")
        single.pop("second_colour", None)
    if single.get("style") and corruptions:
        ignored.append(f"{', '.join(map(repr, corruptions))}, because paintings have no such flaws")
        corruptions = []
    return Reading(
        **single,  # pyright: ignore[reportArgumentType]  # all of these fields are texts
        corruptions=tuple(dict.fromkeys(corruptions)),
        flawed=flags["flawed"],
        good=flags["good"],
        unknown=tuple(dict.fromkeys(unknown)),
        ignored=tuple(ignored),
    )
