"""Which object and colour a prompt asks for, in the toybox judge's vocabulary."""

from __future__ import annotations

import re

from sdlab.toybox import words


def asked_for(prompt: str) -> tuple[str, str]:
    """Return the first object that a prompt names and the colour before it, in the judge's vocabulary.

    The colour is "" if no colour word precedes the object. Synonyms are recognised. Raises ValueError if the prompt
    names no object.
    """
    found = _first(prompt, words.OBJECTS)
    if not found:
        raise ValueError(f"--prompt {prompt!r}: names no object the judge knows; it knows {', '.join(words.OBJECTS)}")
    at, name = found
    colour = _first(prompt[:at], words.COLOURS)
    return name, colour[1] if colour else ""


def _first(text: str, table: dict[str, tuple[str, ...]]) -> tuple[int, str] | None:
    """Return the position and standard wording of the first table entry (or synonym) found in `text`, or None."""
    places = [
        (match.start(), -len(wording), standard)
        for standard, synonyms in table.items()
        for wording in (standard, *synonyms)
        if (match := re.search(rf"\b{re.escape(wording)}\b", text.lower()))
    ]
    at, _, standard = min(places, default=(0, 0, ""))  # on a tie, the longest
    return (at, standard) if places else None
