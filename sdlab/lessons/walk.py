"""One learner's way through a lesson: the page, the predictions, and which predicates were reached.

A walk performs nothing. `due` hands out the acts of a page once its question is answered or skipped, and whoever drives
the run carries them out, then calls `tick` with what it reads, as often as it likes. Pages are counted from 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sdlab.lessons.lesson import OTHER, Do, Lesson, Page, Wait
from sdlab.lessons.readings import COMPARED, Reading

SKIPPED = -1  # in the place of a choice


class Reached(NamedTuple):
    """When a predicate was reached, and its reading then; None where it only counts steps."""

    step: int
    value: float | None


Read = Callable[[str], Reading | None]


def nothing(name: str) -> None:
    """Read nothing."""


class Walk:
    """See the top of this file. ValueError for a page that the lesson does not have."""

    def __init__(self, lesson: Lesson, page: int = 0) -> None:
        self.lesson = lesson
        self.page = 0
        self.predictions: dict[int, int] = {}  # page -> index of the choice, or SKIPPED
        self.reached: dict[int, Reached] = {}
        self.marks: dict[str, dict[str, float]] = {}  # mark -> reading -> value
        self.marked: dict[tuple[str, str], Reading] = {}  # by mark and reading
        self.value: float | None = None  # what the page's predicate read last
        self.bounds: tuple[float, float] | None = None  # lowest and highest value that count as reached
        self.taken = 0  # steps since the acts of the page
        self._acted: set[int] = set()
        self._last_step: int | None = None
        self._began = time.monotonic()
        self.turn_to(page)

    @property
    def shown(self) -> Page:
        """The page that is shown."""
        return self.lesson.pages[self.page]

    def turn_to(self, page: int) -> None:
        """Show another page. Acts that were carried out are not due again."""
        if not 0 <= page < len(self.lesson.pages):
            raise ValueError(
                f"page = {page + 1}: the lesson {self.lesson.name} has pages 1 to {len(self.lesson.pages)}"
            )
        self.page = page
        self._forget()

    def _forget(self) -> None:
        self.value, self.bounds, self.taken, self._last_step = None, None, 0, None

    @property
    def asks(self) -> bool:
        """Whether the page waits for a prediction."""
        return self.shown.ask is not None and self.page not in self.predictions

    @property
    def choice(self) -> int | None:
        """The prediction on this page, `SKIPPED`, or None before there is one."""
        return self.predictions.get(self.page)

    def predict(self, choice: int) -> None:
        """Answer the page's question with the index of a choice, or with anything else skip it. The first counts."""
        if self.asks and self.shown.ask is not None:
            self.predictions[self.page] = choice if 0 <= choice < len(self.shown.ask.choices) else SKIPPED

    def due(self, step: int = 0) -> tuple[Do, ...]:
        """Return the acts to carry out now, once; the run is at `step`."""
        if self.asks or self.page in self._acted:
            return ()
        self._acted.add(self.page)
        self._forget()
        self._last_step = step
        return self.shown.do

    def again(self) -> None:
        """Make the acts of the page due again, and its predicate unreached."""
        self._acted.discard(self.page)
        self.reached.pop(self.page, None)
        self._forget()

    def rewind(self) -> bool:
        """Make the acts of later pages due again, and their predicates unreached; return whether there were any, so
        that the run is one of those pages."""
        later = {page for page in self._acted if page > self.page}
        self._acted -= later
        self.reached = {page: reached for page, reached in self.reached.items() if page not in later}
        return bool(later)

    # ---- after a restart ---------------------------------------------------------------------------------------------

    def kept(self) -> dict[str, Any]:
        """Return as JSON what `restored` needs."""
        return {**self.record(), "acted": sorted(self._acted), "taken": self.taken}

    @classmethod
    def restored(cls, lesson: Lesson, kept: Mapping[str, Any]) -> Walk:
        """Return a walk as `kept` described it. IndexError, KeyError, TypeError or ValueError where that does not fit
        the lesson."""
        walk = cls(lesson, kept["page"])
        pages = range(len(lesson.pages))
        walk.predictions = {pages[each["page"]]: int(each["choice"]) for each in kept["predictions"]}
        walk.reached = {pages[each["page"]]: Reached(each["step"], each["value"]) for each in kept["reached"]}
        for each in kept["marks"]:
            mark, name, reading = each["mark"], each["reading"], Reading(each["value"], each["step"])
            walk.marks.setdefault(mark, {})[name] = reading.value
            walk.marked[mark, name] = reading
        walk._acted = {pages[page] for page in kept["acted"]}
        walk.taken = int(kept["taken"])
        walk._began -= float(kept["seconds"])
        return walk

    # ---- predicates --------------------------------------------------------------------------------------

    @property
    def wait(self) -> Wait | None:
        """What the page waits for now, None if nothing."""
        return self.shown.wait if self.page in self._acted and self.page not in self.reached else None

    def keep(self, mark: str, read: Read) -> None:
        """Remember what later pages compare with a mark."""
        found = {name: read(name) for name in self.lesson.readings_of(mark)}
        self.marks[mark] = {name: reading.value for name, reading in found.items() if reading is not None}
        self.marked |= {(mark, name): reading for name, reading in found.items() if reading is not None}

    def tick(self, step: int, read: Read, other: Read = nothing) -> bool:
        """Compare what the page waits for with the run, which is at `step`; return whether it is reached now. `other`
        reads the other lane."""
        wait = self.wait
        if wait is None:
            return False
        self._count(step)
        if not wait.reading:
            return self._reach(step, None, step >= wait.step and self.taken >= wait.steps)
        reading = read(wait.reading)
        if reading is None:
            return False
        taken = self.taken - max(step - reading.step, 0)
        self.value = reading.value
        self.bounds = wait.bounds(self._marked(wait, other))
        least = 0 if wait.reading.startswith(COMPARED) else 1  # a comparison takes no step
        late = reading.step >= wait.step and taken >= max(wait.steps, least)
        inside = self.bounds is not None and self.bounds[0] <= reading.value <= self.bounds[1]
        return self._reach(reading.step, reading.value, late and inside)

    def _count(self, step: int) -> None:
        if self._last_step is not None:
            self.taken = self.taken + step - self._last_step if step >= self._last_step else step  # or after a reset
        self._last_step = step

    def _marked(self, wait: Wait, other: Read) -> float | None:
        if wait.mark != OTHER:
            return self.marks.get(wait.mark, {}).get(wait.reading)
        reading = other(wait.reading)
        return None if reading is None else reading.value

    def _reach(self, step: int, value: float | None, now: bool) -> bool:
        if now:
            self.reached[self.page] = Reached(step, value)
        return now

    @property
    def missed(self) -> bool:
        """Whether the page has waited for as many steps as it should."""
        return self.wait is not None and self.taken >= self.wait.limit

    @property
    def needs_steps(self) -> bool:
        """Whether the page has started the run and still waits for it."""
        return self.wait is not None and not self.missed and any(act.what == "run" for act in self.shown.do)

    # ---- what others are told ----------------------------------------------------------------------------

    def told(self) -> dict[str, Any]:
        """Return what the page is told, as JSON: which answer is right only after the prediction."""
        ask = self.shown.ask
        return {
            "lesson": self.lesson.name,
            "title": self.lesson.title,
            "page": self.page,
            "pages": len(self.lesson.pages),
            "asks": self.asks,
            "choice": self.choice,
            "right": None if ask is None or self.asks else ask.answer,
            "wait": self._told_wait(),
        }

    def _told_wait(self) -> dict[str, Any] | None:
        wait, reached = self.shown.wait, self.reached.get(self.page)
        if wait is None or (self.page not in self._acted and reached is None):
            return None
        low, high = (None if bound is None or math.isinf(bound) else bound for bound in self.bounds or (None, None))
        return {
            "reading": wait.reading,
            "promise": wait.promise(),
            "value": self.value if reached is None else reached.value,
            "low": low,
            "high": high,
            "taken": self.taken,
            "steps": wait.steps,
            "lacks": bool(wait.mark) and wait.mark != OTHER and wait.reading not in self.marks.get(wait.mark, {}),
            "step": None if reached is None else reached.step,
            "reached": reached is not None,
            "missed": self.missed,
        }

    def record(self) -> dict[str, Any]:
        """Return the way so far as JSON; `choice` is `SKIPPED` where a question was skipped."""
        asks = {page: self.lesson.pages[page].ask for page in sorted(self.predictions)}
        return {
            "lesson": self.lesson.name,
            "title": self.lesson.title,
            "page": self.page,
            "pages": len(self.lesson.pages),
            "predictions": [
                {"page": page, "choice": self.predictions[page], "right": self.predictions[page] == ask.answer}
                for page, ask in asks.items()
                if ask is not None
            ],
            "reached": [{"page": page, "step": r.step, "value": r.value} for page, r in sorted(self.reached.items())],
            "marks": [{"mark": m, "reading": n, "step": r.step, "value": r.value} for (m, n), r in self.marked.items()],
            "seconds": round(time.monotonic() - self._began, 1),
        }
