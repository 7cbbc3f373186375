"""Lessons checked by figures: a learner who reads nothing walks each lesson with several seeds, without a page.

Every page's acts are carried out, its question is answered, and the run goes on until its predicate is reached or its
limit has passed. The run is driven step by step, so that equal seeds give equal figures on one machine.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import torch

from sdlab.lessons.lesson import Do, Lesson
from sdlab.lessons.readings import Reader, Reading
from sdlab.lessons.walk import Reached, Walk, nothing
from sdlab.live.building import LoadPrior
from sdlab.live.copies import Fork
from sdlab.live.manager import PriorPool
from sdlab.live.messages import Advance, Command, Compare, Event, Failed, Patch, Pause, Rejected, Reset, Resume, Rewrite
from sdlab.live.session import Session
from sdlab.own_loss import REFERENCE, compiled
from sdlab.settings import OWN, Settings, adopt, disown, losses, needs_new_run, preset, with_prompt_of

READ_EVERY = 10  # steps between two readings
PATIENCE = 300.0  # seconds for a page, however many steps it may take


class Outcome(NamedTuple):
    """One page with one seed. `value` is the last reading, None if there was none; `threshold` the bound it had to
    cross."""

    seed: int
    reached: Reached | None
    value: float | None
    threshold: float | None
    steps: int
    seconds: float
    problem: str


class Row(NamedTuple):
    """One page that promises something, with every seed."""

    lesson: Lesson
    page: int
    outcomes: tuple[Outcome, ...]

    @property
    def n_reached(self) -> int:
        return sum(each.reached is not None and not each.problem for each in self.outcomes)

    @property
    def holds(self) -> bool:
        return self.n_reached == len(self.outcomes)

    @property
    def title(self) -> str:
        return self.lesson.pages[self.page].title

    @property
    def promise(self) -> str:
        wait = self.lesson.pages[self.page].wait
        return wait.promise() if wait is not None else "its acts are accepted"

    @property
    def figure(self) -> str:
        """The reading over the seeds: the mean, with the range if there is one."""
        return _over([each.value for each in self.outcomes])

    @property
    def threshold(self) -> str:
        return _over([each.threshold for each in self.outcomes])

    @property
    def seconds(self) -> float:
        return statistics.fmean(each.seconds for each in self.outcomes)

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(each.problem for each in self.outcomes if each.problem))


def _over(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    span = f" ({min(known):.3g} to {max(known):.3g})" if max(known) > min(known) else ""
    return f"{statistics.fmean(known):.3g}{span}"


def check(
    lesson: Lesson,
    seeds: int,
    device: torch.device,
    page: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    load: LoadPrior | None = None,
) -> list[Row]:
    """Walk a lesson with `seeds` seeds, or its page `page` alone, and return a row for each page that promises
    something or whose acts were refused. Once `stop` returns True, the seeds that are done count."""
    with own_loss_kept():
        return _check(lesson, seeds, device, page, stop, load or PriorPool().get)


@contextlib.contextmanager
def own_loss_kept() -> Iterator[None]:
    """Restore the user's own loss, or that there is none, after the block."""
    before = losses().get(OWN)
    try:
        yield
    finally:
        disown()
        if before is not None:
            adopt(before)


def _check(
    lesson: Lesson, seeds: int, device: torch.device, page: int | None, stop: Callable[[], bool], load: LoadPrior
) -> list[Row]:
    found: dict[int, list[Outcome]] = {}
    for seed in range(seeds):
        learner = Learner(lesson, seed, device, load, page or 0)
        for number in range(len(lesson.pages)) if page is None else (page,):
            if stop():
                break
            outcome = learner.take(number)
            if lesson.pages[number].wait is not None or outcome.problem:
                found.setdefault(number, []).append(outcome)
    return [Row(lesson, number, tuple(outcomes)) for number, outcomes in sorted(found.items())]


class Learner:
    """Walks a lesson with one seed. `watch` is called with the learner after the acts of a page and after every step of
    the run; a page takes at most `patience` seconds, once it has taken a step."""

    def __init__(
        self,
        lesson: Lesson,
        seed: int,
        device: torch.device,
        load: LoadPrior,
        page: int = 0,
        watch: Callable[[Learner], None] = lambda _: None,
        patience: float = PATIENCE,
    ) -> None:
        self.walk = Walk(lesson, page)
        self._seed, self._device, self._load, self._watch = seed, device, load, watch
        self._patience = patience
        self._problems: list[str] = []
        start = lesson.starts[page]
        self._lanes = [self._opened(start.patch("seed", start.seed + seed))]

    def _opened(self, settings: Settings) -> Lane:
        session = Session(settings, self._device, self._load)
        session.in_detail = True
        session.listen(self._listen)
        session.prepare()
        return Lane(session, Reader(session))

    def _listen(self, event: Event) -> None:
        if isinstance(event, Rejected):
            self._problems.append(f"{event.path} = {event.value!r} is refused: {event.reason}")
        elif isinstance(event, Failed):
            self._problems.append(event.reason)

    @property
    def focus(self) -> Lane:
        """The run that the lesson acts on, and what reads it."""
        return self._lanes[-1]

    def take(self, page: int) -> Outcome:
        """Go through one page."""
        walk, started = self.walk, time.perf_counter()
        self._problems.clear()
        walk.turn_to(page)
        if walk.shown.ask is not None:
            walk.predict(walk.shown.ask.answer)
        for act in (*walk.due(self.focus.session.state.step), *walk.shown.student):
            self._do(act)
        self._watch(self)
        self._run_on(started)
        reached, bounds = walk.reached.get(page), walk.bounds
        threshold = None
        if bounds is not None and walk.shown.wait is not None:
            lower = walk.shown.wait.at_least is not None or walk.shown.wait.above
            threshold = bounds[0] if lower else bounds[1]
        seconds = time.perf_counter() - started
        return Outcome(
            self._seed, reached, walk.value, threshold, walk.taken, seconds, "; ".join(dict.fromkeys(self._problems))
        )

    def _do(self, act: Do) -> None:
        match act.what:
            case "set":
                self.focus.session.do(Patch(act.value))
            case "preset":
                self._turn_into(with_prompt_of(preset(act.value), self.focus.session.settings))
            case "mark":
                self.focus.session.show()
                self.walk.keep(act.value, self.focus.reader.read)
            case "branch":
                self._branch()
            case "compare":
                self.focus.session.do(Compare(act.value))
            case "write":
                self._write(act.value)
            case "run":
                self._send(Resume())
            case "pause":
                self._send(Pause())
            case "reset":
                self._send(Pause(), Reset())
            case "advance":
                self._send(Advance(act.value))

    def _write(self, code: str) -> None:
        """Use the code of an own loss, and compare it with SDS, as the page's editor does."""
        loss = compiled(code, Path("own_loss.py"))
        adopt(loss)
        self._send(Rewrite(loss))
        self.focus.session.do(Compare((REFERENCE, OWN)))

    def _send(self, *commands: Command) -> None:
        """Send commands to all lanes, as the page's buttons do."""
        for lane in self._lanes:
            for command in commands:
                lane.session.do(command)

    def _turn_into(self, wanted: Settings) -> None:
        now = self.focus.session.settings
        wanted = wanted.patch("seed", now.seed)
        if needs_new_run(wanted, now):
            self._lanes[-1] = self._opened(wanted)
        else:
            self.focus.session.do(Patch(tuple(now.differences(wanted))))

    def _branch(self) -> None:
        parent = self.focus.session
        session = Session(parent.settings, self._device, self._load, origin=_known(parent))
        session.in_detail = True
        session.listen(self._listen)
        session.run(until=parent.state.step, start=False)  # takes over the state, and no step
        session.running, session.steps_left = parent.running, parent.steps_left
        self._lanes.append(Lane(session, Reader(session)))

    def _run_on(self, started: float) -> None:
        """Take steps until the page has what it waits for, or the run pauses by itself."""
        if self.walk.wait is not None and not any(lane.session.running for lane in self._lanes):
            if self._tick():  # a comparison, which takes no step
                return
            self._send(Resume())
        for n in self._rounds():
            if self.walk.wait is not None and (n % READ_EVERY == 0 or not self.focus.session.running):
                self._tick()
            self._watch(self)
            over = self.walk.wait is None or self.walk.missed or time.perf_counter() - started > self._patience
            if over and (self.walk.shown.wait is not None or self.focus.session.steps_left is None):
                return
        self._tick()

    def _rounds(self) -> Iterator[int]:
        """Let every lane that runs take a step, again and again; yield the number of the round."""
        n = 0
        while any(lane.session.running for lane in self._lanes):
            for lane in self._lanes:
                if lane.session.running:
                    lane.session.advance()
            n += 1
            yield n

    def _tick(self) -> bool:
        wait = self.walk.wait
        if wait is None:
            return False
        if wait.reading:
            for lane in self._lanes:
                lane.session.show()
        other: Callable[[str], Reading | None] = self._lanes[-2].reader.read if len(self._lanes) > 1 else nothing
        return self.walk.tick(self.focus.session.state.step, self.focus.reader.read, other)


class Lane(NamedTuple):
    """A run with what reads it."""

    session: Session
    reader: Reader


def _known(parent: Session) -> Future[Fork]:
    """Return the present state of a run that this thread drives."""
    fork: Future[Fork] = Future()
    fork.set_result(parent.fork())
    return fork


# ---- the table -------------------------------------------------------------------------------------------


HEAD = ("lesson", "effect", "promised", "figure", "threshold", "reached", "seconds")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table as texts, in the order of `HEAD`."""
    return (
        row.lesson.name,
        f"{row.page + 1}. {row.title}",
        row.promise,
        row.figure,
        row.threshold,
        f"{row.n_reached} of {len(row.outcomes)}",
        f"{row.seconds:.1f}",
    )


def tell_rows(rows: Sequence[Row]) -> None:
    """Print the table, each row followed by what was wrong with it."""
    table = [HEAD, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
    for n, line in enumerate(table):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        for problem in rows[n - 1].problems if n else ():
            print(f"    {problem}")
