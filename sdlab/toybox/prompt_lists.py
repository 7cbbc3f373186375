"""Three lists of 100 prompts in the toybox's words, made up as those of T3Bench (`sdlab.metrics.t3bench`).

single        one object with attributes: its colour, and for some a material or a pattern
surroundings  one object and what is around it: a box underneath or a ball beside it
multiple      two objects of different colours: one wears a hat or a scarf

Prompts are drawn from their facts, so that the judge knows what a result should show. No two are equal, every object
that allows it occurs, and lists do not change between calls.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sdlab.toybox.objects import OBJECTS, seconds_of
from sdlab.toybox.words import COLOURS, MATERIALS, PATTERNS, RELATIONS

KINDS = ("single", "surroundings", "multiple")
LENGTH = 100
SECONDS = {"single": ("",), "surroundings": ("box", "ball"), "multiple": ("hat", "scarf")}
PLAIN = 2  # times that no adjective is drawn for one that each adjective is


def prompts(kind: str) -> list[str]:
    """Return the 100 prompts of a list, one of KINDS. Raises ValueError for another one."""
    if kind not in KINDS:
        raise ValueError(f"there is no list of prompts called {kind!r}; there are {', '.join(KINDS)}")
    found: dict[str, None] = {}
    for text in _drawn(kind):
        found[text] = None
        if len(found) == LENGTH:
            break
    return list(found)


def _drawn(kind: str) -> Iterator[str]:
    """Yield prompts, with repetitions: every object once in each round."""
    rng = np.random.default_rng(KINDS.index(kind))
    adjectives = ("",) * PLAIN * len((*MATERIALS, *PATTERNS)) + (*MATERIALS, *PATTERNS)
    while True:
        for name in rng.permutation(list(OBJECTS)).tolist():
            allowed = [second for second in SECONDS[kind] if not second or second in seconds_of(name)]
            if not allowed:
                continue
            colour, other = rng.choice(list(COLOURS), 2, replace=False).tolist()
            second = str(rng.choice(allowed))
            adjective = str(rng.choice(adjectives)) if kind == "single" else ""
            text = _noun(adjective, colour, name)
            yield f"{text} {RELATIONS[second][0].format(_noun(other, second))}" if second else text


def _noun(*words: str) -> str:
    text = " ".join(word for word in words if word)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
