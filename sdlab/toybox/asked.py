"""What a prompt asks for, in the words of the toybox's judge."""

from __future__ import annotations

import re

from sdlab.toybox import words


def asked_for(prompt: str) -> tuple[str, str]:
    """The object that a prompt names first and the colour before it, in the judge's words; "" for a colour that is not
    named. ValueError when it names no object."""
    found = _first(prompt, words.OBJECTS)
    if not found:
        raise ValueError(f"--prompt {prompt!r}: names no object of the judge's; it knows {', '.join(words.OBJECTS)}")
    at, name = found
    colour = _first(prompt[:at], words.COLOURS)
    return name, colour[1] if colour else ""


def _first(text: str, table: dict[str, tuple[str, ...]]) -> tuple[int, str] | None:
    """Where in `text` a word of the table, or a synonym, comes first, and its standard wording."""
    places = [
        (match.start(), -len(wording), standard)
        for standard, synonyms in table.items()
        for wording in (standard, *synonyms)
        if (match := re.search(rf"\b{re.escape(wording)}\b", text.lower()))
    ]
    at, _, standard = min(places, default=(0, 0, ""))  # of two that begin at one place, the longer
    return (at, standard) if places else None
