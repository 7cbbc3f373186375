"""The history of a run: changes, moments to jump back to, and a film of the object's growth.

The thread that owns the run writes it. Other threads may read it at any time: they get tuples that never change.

After a jump back, the later history stays until the run continues from there; then it is cut off, and an entry for the
jump takes its place.
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
MOMENT_BYTES = 256 * 2**20  # an auxiliary network with its optimiser may take 100 MB; a scene takes 1 MB
FILM_EVERY = 4  # steps at first; doubled whenever the film is full
MOST_SHOTS = 120
FILM_BYTES = 32 * 2**20
MOST_ENTRIES = 1000

Shot = SplatSnapshot | np.ndarray  # Gaussians, or the images of a flat scene, uint8 [B, H, W, 3]


@dataclass(frozen=True)
class Entry:
    """An event after `step` steps. `path` and `value` belong to a change; `number` counts up."""

    number: int
    step: int
    kind: Literal["start", "load", "branch", "change", "jump"]
    text: str
    path: str = ""
    value: Any = None


class _Mark(NamedTuple):
    """A kept moment, and the number of the first entry after it."""

    moment: Moment
    number: int


class Timeline:
    """A history, see the top of this file. Moments take at most `budget` bytes, the film at most `film_budget`, except
    that it always keeps one shot."""

    def __init__(self, budget: int = MOMENT_BYTES, film_budget: int = FILM_BYTES) -> None:
        self.budget = budget
        self.film_budget = film_budget
        self._marks: tuple[_Mark, ...] = ()
        self._entries: tuple[Entry, ...] = ()
        self._film: tuple[tuple[int, Shot], ...] = ()
        self._film_every = FILM_EVERY
        self._number = 0  # of the next entry
        self._offered = 0  # step of the last moment passed to `keep`, whether kept or not
        self._rewound: tuple[_Mark, int] | None = None  # target of a jump, and the step it left

    # ---- for any thread ----------------------------------------------------------------------------------

    def steps(self) -> tuple[int, ...]:
        """Return the steps with a kept moment, in order."""
        return tuple(mark.moment.step for mark in self._marks)

    def entries(self) -> tuple[Entry, ...]:
        """Return the newest `MOST_ENTRIES` entries, in order."""
        return self._entries

    def film(self) -> tuple[tuple[int, Shot], ...]:
        """Return (step, shot) at even intervals over the run, at most `MOST_SHOTS`."""
        return self._film

    # ---- for the owner: what happens ---------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Number of the next entry."""
        return self._number

    def note(self, step: int, kind: Any, text: str, path: str = "", value: Any = None) -> None:
        """Add an entry. A second change of one knob at the same step replaces the first."""
        entry = Entry(self._number, step, kind, text, path, value)
        self._number += 1
        kept = self._entries
        if kind == "change" and kept and (kept[-1].step, kept[-1].kind, kept[-1].path) == (step, kind, path):
            entry, kept = dataclasses.replace(entry, number=kept[-1].number), kept[:-1]
        self._entries = (*kept, entry)[-MOST_ENTRIES:]

    def forget(self, number: int) -> None:
        """Remove the entries from `number` on: changes that were rolled back."""
        self._entries = tuple(entry for entry in self._entries if entry.number < number)

    # ---- for the owner: moments --------------------------------------------------------------------------

    @property
    def newest(self) -> Moment | None:
        """The last kept moment."""
        return self._marks[-1].moment if self._marks else None

    def moment_due(self, step: int) -> bool:
        """Return whether a moment is due: every `MOMENT_EVERY` steps, less often where only a few fit."""
        span = step - (self._marks[0].moment.step if self._marks else 0)
        return step - self._offered >= max(MOMENT_EVERY, span / (4 * max(len(self._marks), 1)))

    def keep(self, moment: Moment) -> None:
        """Keep `moment`, unless the newest one kept is of the same step. Others are dropped to make room, so that the
        remaining ones are spread over the run."""
        self._offered = moment.step
        if not self._marks or self._marks[-1].moment.step != moment.step:
            self._marks = _thinned((*self._marks, _Mark(moment, self._number)), self.budget)

    # ---- for the owner: jumps ----------------------------------------------------------------------------

    def at(self, step: int) -> Moment:
        """Return the last moment at or before `step`. ValueError with the kept steps when there is none."""
        before = [mark.moment for mark in self._marks if mark.moment.step <= step]
        if not before:
            kept = ", ".join(str(number) for number in self.steps()) or "none"
            raise ValueError(f"no moment is kept at or before step {step}; kept steps: {kept}")
        return before[-1]

    def rewind(self, moment: Moment, present: int) -> None:
        """Record that the run has jumped from step `present` to the kept `moment`."""
        mark = next(mark for mark in self._marks if mark.moment is moment)
        self._rewound = mark, self._rewound[1] if self._rewound is not None else present

    def go_on(self) -> None:
        """Record that the run continues from its current state: after a jump, cut off the later history."""
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
        """Return the history of a branch at `moment`, the current state; it shares moments and shots with this one."""
        other = copy.copy(self)
        other.go_on()
        other.note(moment.step, "branch", f"branched off at step {moment.step}")
        other._marks = tuple(mark for mark in other._marks if mark.moment.step < moment.step)
        other.keep(moment)
        return other

    # ---- for the owner: the film -------------------------------------------------------------------------

    def shot_due(self, step: int) -> bool:
        """Return whether a shot is due."""
        return not self._film or step - self._film[-1][0] >= self._film_every

    def show(self, step: int, shot: Shot) -> None:
        """Add a shot to the film; when the film is full, drop every second one."""
        film = (*self._film, (step, shot))
        while len(film) > 1 and (len(film) > MOST_SHOTS or sum(_size(x) for _, x in film) > self.film_budget):
            film = film[::2]
            self._film_every *= 2
        self._film = film


def bytes_held(timelines: Iterable[Timeline]) -> int:
    """Return the bytes that histories take together, counting shared moments and shots once."""
    every = list(timelines)
    moments = {id(mark.moment): mark.moment for timeline in every for mark in timeline._marks}
    shots = {id(shot): _size(shot) for timeline in every for _, shot in timeline.film()}
    return bytes_of(moments.values()) + sum(shots.values())


def _thinned(marks: Sequence[_Mark], budget: int) -> tuple[_Mark, ...]:
    """Drop moments until the rest fits: first those whose neighbours are closest to each other, older ones first; then
    the newest, and the first one last."""
    kept = list(marks)
    while len(kept) > MOST_MOMENTS or (kept and bytes_of(mark.moment for mark in kept) > budget):
        inner = range(1, len(kept) - 1)
        del kept[min(inner, key=lambda i: _gap_without(kept, i)) if inner else -1]
    return tuple(kept)


def _gap_without(marks: Sequence[_Mark], i: int) -> int:
    """Return the steps between the neighbours of moment `i`. The second-newest counts double; otherwise each new moment
    would evict its predecessor."""
    gap = marks[i + 1].moment.step - marks[i - 1].moment.step
    return 2 * gap if i == len(marks) - 2 else gap


def _size(shot: Shot) -> int:
    return shot.nbytes if isinstance(shot, np.ndarray) else sum(part.nbytes for part in shot)
