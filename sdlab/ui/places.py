"""The places of a classroom: one for each desk, with a number, what the student calls it, and what it did last.

While the room is frozen, no run takes a step, and of a student's acts only those count that change what is looked at.
The teacher's part is in `sdlab.ui.classroom`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sdlab.ui.wording import label_of

if TYPE_CHECKING:
    from sdlab.ui.desk import Desk

PAUSED = "the teacher has paused everybody"
NAME = 24  # characters of a student's name
SAID = 60  # characters of an act in words
MESSAGE = 200  # characters of a message to all
LOOKING = ("look", "tab", "view", "front", "draw", "focus", "name", "hand-in")  # acts that a frozen room allows


class Place:
    """The place of one desk. `key` names it to the teacher, who may be a second late: another desk may have its
    `number` by then."""

    def __init__(self, room: Room, number: int) -> None:
        self.room = room
        self.number = number
        self.key = secrets.token_urlsafe(8)
        self.name = ""  # as the student gave it
        self.last = "opened the page"
        self.last_at = time.monotonic()

    def call(self, name: str) -> None:
        """Take the name that a student gives."""
        self.name = line_of(name, NAME)

    def note(self, act: Mapping[str, Any]) -> None:
        """Remember an act, if it is one that a teacher would want to know."""
        if said := worded(act):
            self.last, self.last_at = said, time.monotonic()

    def told(self) -> dict[str, Any]:
        """Return what the student's page is told."""
        room = self.room
        return {"number": self.number, "name": self.name, "frozen": room.frozen, "message": room.message}

    def give_back(self) -> None:
        """End the place: its desk has ended."""
        self.room.forget(self)


class Room:
    """A classroom with a number of `seats`, whose desks each have a place. Thread-safe."""

    def __init__(self, seats: int) -> None:
        self.seats = seats
        self.frozen = False
        self.gate = threading.Lock()  # held while runs are told to stand still, or asked whether they must
        self.message = ""  # of the teacher, to all
        self.latecomer: Callable[[Desk], object] | None = None  # called with each new desk that no link has opened
        self._lock = threading.Lock()
        self._places: dict[int, Place] = {}  # by number

    def must_have_room(self) -> None:
        """Raise RuntimeError when all seats are taken."""
        with self._lock:
            if len(self._places) >= self.seats:
                raise RuntimeError(f"all {self.seats} seats of this classroom are taken")

    def place(self) -> Place:
        """Return a new place, with the lowest free number."""
        with self._lock:
            number = min(set(range(1, len(self._places) + 2)) - set(self._places))
            self._places[number] = Place(self, number)
            return self._places[number]

    def forget(self, place: Place) -> None:
        """Free the number of a place."""
        with self._lock:
            if self._places.get(place.number) is place:
                del self._places[place.number]

    def lets(self, place: Place | None, act: Mapping[str, Any]) -> bool:
        """Return whether a student may act now, and note what the act is."""
        if self.frozen and act.get("do") not in LOOKING:
            return False
        if place is not None:
            place.note(act)
        return True


def worded(act: Mapping[str, Any]) -> str:
    """Return an act in a few words, "" for one that changes only what is looked at."""
    match act:
        case {"do": "start" | "pause" | "step" | "reset" as button}:
            said = f"pressed {button.capitalize()}"
        case {"do": "replay"}:
            said = "replayed the run"
        case {"do": "compare"}:
            said = "compared the losses"
        case {"do": "knob", "knob": "active", "value": value}:
            said = f"loss {value}"
        case {"do": "knob", "knob": str(path), "value": value}:
            said = f"{label_of(path)} = {value}"
        case {"do": "prompt", "text": str(text)}:
            said = f"prompt: {text}"
        case {"do": "preset", "preset": str(name)}:
            said = f"preset {name}"
        case {"do": "example", "name": str(name)}:
            said = f"example {name}"
        case {"do": "settings"}:
            said = "opened settings"
        case {"do": "branch"}:
            said = "added a lane"
        case {"do": "goto", "step": step}:
            said = f"went back to step {step}"
        case {"do": "make", "kind": kind}:
            said = f"made a file ({kind})"
        case {"do": "lesson", "name": str(name)}:
            said = f"lesson {name}" if name else "left the lesson"
        case {"do": "hand-in"}:
            said = "handed in"
        case {"do": "predict"}:
            said = "made a prediction"
        case _:
            return ""
    return line_of(said, SAID)


def line_of(text: str, most: int) -> str:
    """Return text on one line, without characters that cannot be seen, of at most `most` characters."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
