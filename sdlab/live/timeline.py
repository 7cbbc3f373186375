"""The history of a run: what was changed when, moments to go back to, and a film of how the object grew.

Written by the thread that owns the run. Anybody may read it at any time: readers get tuples that never change.

After a jump back, what came later stays until the run goes on from there; then it is cut off, and the jump is noted in
its place.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from sdlab.live.moments import Moment, bytes_of
from sdlab.types import SplatSnapshot

MOMENT_EVERY = 50  # steps
MOST_MOMENTS = 20
MOMENT_BYTES = 256 * 2**20  # a network that learns along, with its optimiser, may take 100 MB; a scene takes 1 MB
FILM_EVERY = 4  # steps at first; twice as many whenever the film is full
MOST_SHOTS = 120
FILM_BYTES = 32 * 2**20
MOST_ENTRIES = 1000

Shot = SplatSnapshot | np.ndarray  # Gaussians; or what a flat scene shows, uint8 [B, H, W, 3]


@dataclass(frozen=True)
class Entry:
    """What happened when `step` steps were done. `path` and `value` are those of a change; numbers count up."""

    number: int
    step: int
    kind: Literal["start", "load", "branch", "change", "jump"]
    text: str
    path: str = ""
    value: Any = None


class _Mark(NamedTuple):
    """A moment kept, and the number of the first entry after it."""

    moment: Moment
    number: int


class Timeline:
    """See the head of the file. Moments take at most `budget` bytes, the film at most `film_budget` (but for one
    shot)."""

    def __init__(self, budget: int = MOMENT_BYTES, film_budget: int = FILM_BYTES) -> None:
        self.budget = budget
        self.film_budget = film_budget
        self._marks: tuple[_Mark, ...] = ()
        self._entries: tuple[Entry, ...] = ()
        self._film: tuple[tuple[int, Shot], ...] = ()
        self._film_every = FILM_EVERY
        self._number = 0  # of the next entry
        self._offered = 0  # the step of the last moment that was offered, kept or not
        self._rewound: tuple[_Mark, int] | None = None  # where a jump has gone, and the step that it left

    # ---- for any thread ----------------------------------------------------------------------------------

    def steps(self) -> tuple[int, ...]:
        """The steps at which moments are kept, in order."""
        return tuple(mark.moment.step for mark in self._marks)

    def entries(self) -> tuple[Entry, ...]:
        """What happened, in order; the newest `MOST_ENTRIES`."""
        return self._entries

    def film(self) -> tuple[tuple[int, Shot], ...]:
        """(step, what there was to see) at even intervals over the run, at most `MOST_SHOTS`."""
        return self._film

    # ---- for the owner: what happens ---------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Of the next entry."""
        return self._number

    def note(self, step: int, kind: Any, text: str, path: str = "", value: Any = None) -> None:
        """Add an entry. Another change of one knob at the same step replaces the one before."""
        entry = Entry(self._number, step, kind, text, path, value)
        self._number += 1
        kept = self._entries
        if kind == "change" and kept and (kept[-1].step, kept[-1].kind, kept[-1].path) == (step, kind, path):
            entry, kept = dataclasses.replace(entry, number=kept[-1].number), kept[:-1]
        self._entries = (*kept, entry)[-MOST_ENTRIES:]

    def forget(self, number: int) -> None:
        """Take back the entries from `number` on: changes that were rolled back."""
        self._entries = tuple(entry for entry in self._entries if entry.number < number)

    # ---- for the owner: moments --------------------------------------------------------------------------

    @property
    def newest(self) -> Moment | None:
        """The last moment kept."""
        return self._marks[-1].moment if self._marks else None

    def moment_due(self, step: int) -> bool:
        """Whether it is time for a moment: every `MOMENT_EVERY` steps, more rarely where only few fit."""
        span = step - (self._marks[0].moment.step if self._marks else 0)
        return step - self._offered >= max(MOMENT_EVERY, span / (4 * max(len(self._marks), 1)))

    def keep(self, moment: Moment) -> None:
        """Keep a moment of the present unless there is one of its step; others make room, so that those that stay are
        spread over the run."""
        self._offered = moment.step
        if not self._marks or self._marks[-1].moment.step != moment.step:
            self._marks = _thinned((*self._marks, _Mark(moment, self._number)), self.budget)

    # ---- for the owner: jumps ----------------------------------------------------------------------------

    def at(self, step: int) -> Moment:
        """The newest moment at or before `step`; ValueError that names the steps that are kept when there is none."""
        before = [mark.moment for mark in self._marks if mark.moment.step <= step]
        if not before:
            kept = ", ".join(str(number) for number in self.steps()) or "none"
            raise ValueError(f"nothing is kept at or before step {step}; the steps that are kept: {kept}")
        return before[-1]

    def rewind(self, moment: Moment, present: int) -> None:
        """The run has jumped from step `present` to `moment`, one that is kept."""
        mark = next(mark for mark in self._marks if mark.moment is moment)
        self._rewound = mark, self._rewound[1] if self._rewound is not None else present

    def go_on(self) -> None:
        """The run goes on from the present: if that is where a jump went, cut off what came after."""
        if self._rewound is None:
            return
        (mark, left), self._rewound = self._rewound, None
        step = mark.moment.step
        self._marks = tuple(other for other in self._marks if other.moment.step <= step)
        self._film = tuple(shot for shot in self._film if shot[0] <= step)
        self._offered = step
        self.forget(mark.number)
        if left > step:
            self.note(step, "jump", f"went back from step {left}")

    def branched(self, moment: Moment) -> Timeline:
        """The history of a branch taken at `moment`, the present; moments and shots are shared."""
        other = copy.copy(self)
        other.go_on()
        other.note(moment.step, "branch", f"branched off at step {moment.step}")
        other._marks = tuple(mark for mark in other._marks if mark.moment.step < moment.step)
        other.keep(moment)
        return other

    # ---- for the owner: the film -------------------------------------------------------------------------

    def shot_due(self, step: int) -> bool:
        """Whether the film lacks a shot."""
        return not self._film or step - self._film[-1][0] >= self._film_every

    def show(self, step: int, shot: Shot) -> None:
        """Add a shot to the film; when it is full, every second one goes."""
        film = (*self._film, (step, shot))
        while len(film) > 1 and (len(film) > MOST_SHOTS or sum(_size(x) for _, x in film) > self.film_budget):
            film = film[::2]
            self._film_every *= 2
        self._film = film


def bytes_held(timelines: Iterable[Timeline]) -> int:
    """What histories take together; moments and shots that they share are counted once."""
    every = list(timelines)
    moments = {id(mark.moment): mark.moment for timeline in every for mark in timeline._marks}
    shots = {id(shot): _size(shot) for timeline in every for _, shot in timeline.film()}
    return bytes_of(moments.values()) + sum(shots.values())


def _thinned(marks: Sequence[_Mark], budget: int) -> tuple[_Mark, ...]:
    """Without the moments whose neighbours are nearest to each other, older ones first, until the rest fits. The first
    and the newest go last, the newest before the first."""
    kept = list(marks)
    while len(kept) > MOST_MOMENTS or (kept and bytes_of(mark.moment for mark in kept) > budget):
        inner = range(1, len(kept) - 1)
        del kept[min(inner, key=lambda i: _gap_without(kept, i)) if inner else -1]
    return tuple(kept)


def _gap_without(marks: Sequence[_Mark], i: int) -> int:
    """Steps between the neighbours of one moment. Those of the last but one count twice: the newest moves on, so that
    another would never be left behind for good."""
    gap = marks[i + 1].moment.step - marks[i - 1].moment.step
    return 2 * gap if i == len(marks) - 2 else gap


def _size(shot: Shot) -> int:
    return shot.nbytes if isinstance(shot, np.ndarray) else sum(part.nbytes for part in shot)
