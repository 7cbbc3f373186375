"""The lesson's record in a hand-in: predictions counted with this copy of the lesson, predicates read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sdlab.grading.compare import readings
from sdlab.handin.checked import Checked
from sdlab.lessons import Lesson, load
from sdlab.lessons.lesson import OTHER, Wait
from sdlab.lessons.readings import COMPARED, OF_FRAME, OTHERS, PLANE, VIEWS, Reader
from sdlab.live.messages import Compare
from sdlab.live.session import Session

MOST_PAGES, MOST_MARKS = 200, 100
LATE = 200  # steps by which the frame on a page may lag behind a statistic of steps that was read with it
AT_ONCE = frozenset((*VIEWS, *PLANE, *OTHERS, *OF_FRAME))  # readings of the frame or views whose step they have
TIMED = ("seconds", "steps_per_s", "prior_share")  # readings that no repetition can give
FEW = 300  # looks at a run, of 0.3 s each


class Claim(NamedTuple):
    """A reading that the hand-in claims: what it is for, its name, step and value."""

    what: str
    reading: str
    step: int
    value: float

    @property
    def late(self) -> int:
        """Steps after `step` at which the reading may have been made."""
        return 0 if self.reading in AT_ONCE or self.is_compared else LATE

    @property
    def is_compared(self) -> bool:
        """Whether it is a number of a comparison of losses."""
        return self.reading.startswith(COMPARED)


@dataclass
class Record:
    """A lesson's record, checked against the lesson. `page` counts from 1; `problem` says why there is nothing else."""

    title: str = ""
    page: int = 0
    pages: int = 0
    right: int = 0
    wrong: int = 0
    skipped: int = 0
    claims: list[Claim] = field(default_factory=list)
    by_steps: list[int] = field(default_factory=list)  # steps of predicates that only wait for steps
    differences: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def reached(self) -> int:
        """Predicates that the hand-in says were reached."""
        return len(self.by_steps) + sum(claim.what.startswith("page") for claim in self.claims)


def record_in(given: Mapping[str, Any] | None) -> Record | None:
    """Return the record in a manifest, None if there is none. ValueError that says what is wrong with it."""
    if given is None:
        return None
    told = Checked("manifest.json: lesson", dict(given))
    name = told.text("lesson", 100)
    try:
        lesson = load(name)
    except ValueError as e:
        return Record(name, told.whole("page", MOST_PAGES) + 1, told.whole("pages", MOST_PAGES), problem=str(e))
    record = Record(lesson.title, told.whole("page", MOST_PAGES) + 1, len(lesson.pages))
    _count(lesson, told, record)
    marks = _marks(told)
    record.claims += [Claim(f"mark {mark}", name, step, value) for (mark, name), (step, value) in marks.items()]
    for row in told.tables("reached", MOST_PAGES):
        page = row.whole("page", MOST_PAGES)
        wait = lesson.pages[page].wait if page < len(lesson.pages) else None
        if wait is None:
            record.differences.append(f"page {page + 1} of the lesson waits for nothing, and is said to be reached")
        elif not wait.reading:
            record.by_steps.append(row.whole("step"))
        else:
            claim = Claim(f"page {page + 1}", wait.reading, row.whole("step"), row.number("value"))
            record.claims.append(claim)
            record.differences += _beyond(claim, wait, marks)
    return record


def _count(lesson: Lesson, told: Checked, record: Record) -> None:
    """Count right and wrong predictions, by this copy of the lesson."""
    for row in told.tables("predictions", MOST_PAGES):
        page, choice = row.whole("page", MOST_PAGES), row.number("choice")
        ask = lesson.pages[page].ask if page < len(lesson.pages) else None
        if ask is None:
            record.differences.append(f"page {page + 1} of the lesson asks nothing, and is said to be answered")
        elif choice < 0:
            record.skipped += 1
        else:
            record.right += choice == ask.answer
            record.wrong += choice != ask.answer


def _marks(told: Checked) -> dict[tuple[str, str], tuple[int, float]]:
    return {
        (row.text("mark", 100), row.text("reading", 100)): (row.whole("step"), row.number("value"))
        for row in told.tables("marks", MOST_MARKS)
    }


def _beyond(claim: Claim, wait: Wait, marks: Mapping[tuple[str, str], tuple[int, float]]) -> list[str]:
    """Return that a claimed value does not reach what its page waits for, if it does not."""
    if wait.mark == OTHER:
        return []  # the other lane's value is not in the record
    marked = marks.get((wait.mark, wait.reading))
    bounds = wait.bounds(marked[1] if marked else None)
    if bounds is None or not bounds[0] <= claim.value <= bounds[1]:
        return [f"{claim.what}: {claim.reading} = {claim.value:g} is not enough; the page waits until {wait.promise()}"]
    return []


class Rereading:
    """Reads what a record claims again while its runs are repeated."""

    def __init__(self, record: Record | None, exact: bool) -> None:
        self.record = record or Record()
        self._exact = exact
        self._readers: dict[str, Reader] = {}  # by stretch
        self._seen: set[tuple[str, int, int]] = set()  # stretch, step, changes
        self._best: dict[Claim, float] = {}  # the nearest value that was read
        self._looks = 0
        self.last_step = 0

    def visit(self, spot: tuple[str, int, int], session: Session) -> None:
        """Read what is claimed of this step."""
        step = session.state.step
        self.last_step = max(self.last_step, step)
        here = (spot[0], step, spot[2])
        due = [claim for claim in self.record.claims if claim.step <= step <= claim.step + claim.late]
        if here in self._seen or not due:
            return
        self._seen.add(here)
        if spot[0] not in self._readers:
            self._readers[spot[0]] = Reader(session)
        if any(not claim.late for claim in due) and self._looks < FEW:
            self._looks += 1
            if any(claim.is_compared for claim in due):
                session.do(Compare())
            session.show()
        for claim in due:
            found = self._readers[spot[0]].read(claim.reading)
            best = self._best.get(claim)
            if found is not None and (best is None or abs(found.value - claim.value) < abs(best - claim.value)):
                self._best[claim] = found.value

    def confirmed(self) -> int:
        """Return how many of the predicates that are said to be reached were reached again."""
        read = sum(claim.what.startswith("page") and not self._unlike(claim) for claim in self.record.claims)
        return read + sum(step <= self.last_step for step in self.record.by_steps)

    def differences(self, is_whole: bool) -> list[str]:
        """Return the claims that did not come out again, in words. Left out are those whose step is not known exactly,
        such as a comparison that was made while the run went on, and those that were not read unless all runs were
        repeated (`is_whole`)."""
        claims = [c for c in self.record.claims if not c.is_compared and (is_whole or c in self._best)]
        return [f"{claim.what}, step {claim.step}: {text}" for claim in claims if (text := self._unlike(claim))]

    def _unlike(self, claim: Claim) -> str:
        """Return how a claim differs from what was read again, "" if it does not."""
        if claim.reading in TIMED:
            return ""
        if claim not in self._best:
            return f"{claim.reading} = {claim.value:g} was not reached in the repetition"
        return "".join(readings({claim.reading: claim.value}, {claim.reading: self._best[claim]}, self._exact))
