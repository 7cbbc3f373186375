"""A lesson: pages of text with what each does to the run, asks, and waits for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sdlab.lessons.promises import OTHER as OTHER
from sdlab.lessons.promises import promise
from sdlab.settings import Settings

PLACES = (  # parts of the page that a lesson can point at, besides groups and knobs
    *("view", "status", "timeline", "prompt", "buttons", "losses", "formula", "knobs", "preset", "settings", "branch"),
    *("lens", "charts", "compare", "results", "own", "link"),
)
FLAGS = ("run", "pause", "reset", "branch")  # acts that take `true`
ACTS = ("set", "preset", "advance", "mark", "compare", *FLAGS)
STUDENTS = (*ACTS, "write")  # what learners do themselves; "write" is the code of a loss of their own
LIMIT = 1000  # steps of a wait that has none of its own


@dataclass(frozen=True)
class Do:
    """One act of a page: `what` is one of `ACTS`; `value` is the changes of "set" as ((path, value), ...), the name of
    a preset or a mark, the steps of "advance", the losses of "compare" (None for all), the text of "write", or True."""

    what: str
    value: Any


@dataclass(frozen=True)
class Ask:
    """A question that is asked before the effect is shown; `answer` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int
    because: str


@dataclass(frozen=True)
class Wait:
    """What a page waits for: a number of steps, or a reading that crosses a threshold after it.

    `at_least` and `at_most` are absolute. `above` and `below` name a mark, or `OTHER`; the threshold is then the mark's
    value times `times` plus `by` (above) or minus `by` (below). `step` counts from the start of the run, `steps` from
    the acts of the page. After `limit` steps on the page, it counts as not reached.
    """

    reading: str = ""
    at_least: float | None = None
    at_most: float | None = None
    above: str = ""
    below: str = ""
    by: float = 0.0
    times: float = 1.0
    step: int = 0
    steps: int = 0
    limit: int = LIMIT

    @property
    def mark(self) -> str:
        """The mark that it compares with, "" for none."""
        return self.above or self.below

    def bounds(self, marked: float | None) -> tuple[float, float] | None:
        """Return the lowest and the highest value that count as reached; `marked` is the value of its mark, without
        which there are none."""
        if not self.mark:
            return (
                -math.inf if self.at_least is None else self.at_least,
                math.inf if self.at_most is None else self.at_most,
            )
        if marked is None:
            return None
        return (marked * self.times + self.by, math.inf) if self.above else (-math.inf, marked * self.times - self.by)

    def promise(self) -> str:
        """Return what it waits for as a clause: "the saturation is at most 0.2, after at least 150 steps"."""
        return promise(self)


@dataclass(frozen=True)
class Page:
    """One page; texts are in the subset of Markdown that `sdlab.ui.lessons` shows."""

    title: str
    text: str
    formula: str = ""
    source: str = ""
    highlight: tuple[str, ...] = ()
    do: tuple[Do, ...] = ()
    ask: Ask | None = None
    wait: Wait | None = None
    look: str = ""
    answer: str = ""
    student: tuple[Do, ...] = ()  # what learners do themselves; carried out in a check alone


@dataclass(frozen=True)
class Notes:
    """For the instructor: minutes in a room, what goes wrong, answers to what students ask."""

    minutes: float | None = None
    wrong: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """A whole lesson. `starts` are the settings with which each page begins when it is opened by itself: the lesson's
    own with the changes of the pages before it."""

    name: str
    title: str
    number: int
    minutes: float
    summary: str
    preset: str
    pages: tuple[Page, ...]
    notes: Notes = field(default_factory=Notes)
    starts: tuple[Settings, ...] = ()

    @property
    def needs_own_loss(self) -> bool:
        """Whether its learners write a loss of their own, which a class cannot."""
        return any("own" in page.highlight for page in self.pages)

    def readings_of(self, mark: str) -> tuple[str, ...]:
        """Return the readings that pages compare with a mark."""
        waits = [page.wait for page in self.pages if page.wait is not None]
        return tuple(dict.fromkeys(wait.reading for wait in waits if wait.mark == mark))
