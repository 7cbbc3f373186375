"""Which object and colour a prompt asks for, in the toybox judge's vocabulary."""

from __future__ import annotations

from sdlab.toybox import words
from sdlab.toybox.grammar import read


def asked_for(prompt: str) -> tuple[str, str]:
    """Return the object that a prompt names and its colour, in the judge's vocabulary; "" if it names no colour.

    Synonyms are recognised. Raises ValueError if the prompt names no object.
    """
    found = read(prompt)
    if not found.object:
        raise ValueError(f"--prompt {prompt!r}: names no object the judge knows; it knows {', '.join(words.OBJECTS)}")
    return found.object, found.colour
