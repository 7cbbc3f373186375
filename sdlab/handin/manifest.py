"""The manifest of a hand-in: who made it, when and where, the lesson's record, free answers, and the final states."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdlab.handin.archive import FORMAT
from sdlab.handin.checked import Checked, document
from sdlab.handin.history import MOST_TOLD
from sdlab.live import critic
from sdlab.live.tape import Place, Print, Taken

NAME, ANSWER = 80, 4000  # characters
MOST_ANSWERS, MOST_LANES = 10, 4


@dataclass(frozen=True)
class Lane:
    """A run at the moment it was handed in: its place (a stretch's id, ticks, changes), the print of its scene, and
    readings by name."""

    letter: str
    loss: str
    spot: tuple[str, int, int]
    print: Print
    readings: Mapping[str, float]


@dataclass(frozen=True)
class Manifest:
    """What a hand-in says besides its history."""

    id: str
    made: str  # ISO 8601
    name: str
    facts: Mapping[str, Any]
    lesson: Mapping[str, Any] | None
    answers: Sequence[tuple[str, str]]
    lanes: Sequence[Lane]
    dropped: int  # stretches that were too many to be told


# ---- writing -----------------------------------------------------------------------------------------------------


def lane(letter: str, taken: Taken) -> dict[str, Any]:
    """Return what a hand-in says of a run as JSON. Takes about 0.1 s."""
    place, now = taken.place, taken.print
    return {
        "letter": letter,
        "loss": taken.settings.active,
        "prompt": " / ".join(taken.settings.prompts),
        **spot(place),
        "print": [now.tick, now.step, now.digest, dict(now.sizes)],
        "readings": readings(taken),
    }


def spot(place: Place) -> dict[str, Any]:
    """Return a place as JSON."""
    return {"stretch": place.stretch.id, "tick": place.tick, "changes": place.changes}


def readings(taken: Taken) -> dict[str, float]:
    """Return the readings of a run as it is: its scene's statistics, and what the judge sees. The same state has the
    same readings."""
    with torch.no_grad():
        known = critic.knows(taken.settings.prior)
        prompts = taken.settings.prompts
        found = dict(taken.stats)
        if taken.pictures is not None:
            found |= critic.metrics(taken.pictures, prompts[0], known, taken.has_sides)
            if known and not taken.has_sides and (chance := critic.chance(taken.pictures, *prompts)) is not None:
                found["judge"] = chance
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def manifest(
    name: str,
    facts: Mapping[str, Any],
    lesson: Mapping[str, Any] | None,
    answers: Sequence[tuple[str, str]],
    lanes: Sequence[Mapping[str, Any]],
    dropped: int,
) -> dict[str, Any]:
    """Return a manifest as JSON."""
    return {
        "format": FORMAT,
        "id": secrets.token_hex(8),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "name": name,
        "facts": dict(facts),
        "lesson": lesson,
        "answers": [{"question": question, "answer": answer} for question, answer in answers],
        "lanes": list(lanes),
        "dropped": dropped,
    }


# ---- reading -----------------------------------------------------------------------------------------------------


def read(text: str) -> Manifest:
    """Return a manifest. ValueError that says what is wrong with it."""
    given = document(text, "manifest.json")
    if given.plain("format") != FORMAT:
        raise ValueError(f"manifest.json: format {given.plain('format')!r}; this version reads {FORMAT}")
    answers = given.tables("answers", MOST_ANSWERS)
    lesson = given.table("lesson").as_it_is() if given.has("lesson") else None
    return Manifest(
        given.text("id", 40),
        given.text("made", 40),
        given.text("name", NAME),
        given.table("facts").as_it_is(),
        lesson,
        [(row.text("question", NAME), row.text("answer", ANSWER)) for row in answers],
        [_lane(row) for row in given.tables("lanes", MOST_LANES)],
        given.whole("dropped"),
    )


def _lane(given: Checked) -> Lane:
    where = given.text("stretch", 40), given.whole("tick"), given.whole("changes", MOST_TOLD)
    return Lane(given.text("letter", 2), given.text("loss", 40), where, given.print("print"), given.numbers("readings"))
