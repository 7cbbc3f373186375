"""Record a lesson: a learner who reads nothing walks it, and every page keeps what its run showed, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from sdlab.lens import Comparison, LensPictures, probe, texts_with_truth
from sdlab.lessons import Lesson
from sdlab.lessons.check import Learner, Outcome, own_loss_kept
from sdlab.lessons.lesson import Page
from sdlab.live.manager import PriorPool
from sdlab.live.session import Session
from sdlab.priors.truth import Truth, truth_of
from sdlab.settings import Settings
from sdlab.site.recording import Recording, Shot, judged_of, lens_of, view_of

SHOTS = 20  # of a page at most; at least half of them if its run takes as many steps
PROBED = tuple(range(900, 0, -100))  # timesteps at which a page that takes no step shows the lens


@dataclass
class PageRecording:
    """What a page of a lesson showed. `readings` are the values that its predicate read, by step; `probed` is what the
    lens saw at other timesteps, for a page that takes no step."""

    outcome: Outcome
    settings: Settings
    run: Recording
    readings: list[tuple[int, float]] = field(default_factory=list)
    marked: float | None = None  # the value that the predicate compares with
    comparison: Comparison | None = None
    probed: list[LensPictures] = field(default_factory=list)
    missed: bool = False  # whether it waited for something that did not appear


def record_lesson(lesson: Lesson, shots: int = SHOTS) -> list[PageRecording]:
    """Walk a lesson and return what its pages showed: at most `shots` pictures each."""
    watcher, found = _Watcher(lesson.pages[0], shots), []
    with own_loss_kept():
        load = PriorPool().get
        learner = Learner(lesson, 0, torch.device("cpu"), load, watch=watcher.watch, patience=math.inf)
        for number, page in enumerate(lesson.pages):
            watcher.begin(page)
            outcome = learner.take(number)
            found.append(watcher.finish(learner, outcome))
            if shows_timesteps(page, learner.focus.session):
                found[-1].probed = _probed(learner.focus.session)
    return found


def shows_timesteps(page: Page, session: Session) -> bool:
    """Whether a page shows the lens at several timesteps of the same state: it points at the lens, and takes no
    step."""
    return "lens" in page.highlight and page.wait is None and session.report is not None


class _Watcher:
    """Takes pictures and readings of a page's run, in bounded number: when there are too many, every second goes."""

    def __init__(self, page: Page, shots: int) -> None:
        self._most = shots
        self.begin(page)

    def begin(self, page: Page) -> None:
        """Forget what was seen: a page begins."""
        self._page = page
        self._run = Recording()
        self._readings: list[tuple[int, float]] = []
        self._every, self._count, self._step = 1, 0, -1
        self._session: Session | None = None
        self._next_event = 0

    def watch(self, learner: Learner) -> None:
        """Look at the run after the acts of a page, or after a step."""
        session, value = learner.focus.session, learner.walk.value
        if session is not self._session:
            self._session, self._next_event = session, session.events.since(0)[1]
        events, self._next_event = session.events.since(self._next_event)
        for event in events:
            self._run.take(event)
        step = session.state.step
        if step == self._step:  # a warm-up
            return
        first, self._step = self._step < 0, step
        if value is not None and (not self._readings or self._readings[-1][1] != value):
            self._readings.append((step, value))
        if first and "lens" in self._page.highlight:  # it shows steps, and the page has taken none yet
            return
        if self._count % self._every == 0:
            self._run.shots.append(self._shot(learner, stepped=not first))
            if len(self._run.shots) > self._most:
                del self._run.shots[1::2]
                self._every *= 2
        self._count += 1

    def _shot(self, learner: Learner, stepped: bool) -> Shot:
        """Return what the run shows; before the page's first step, the lens would show one under other settings."""
        session, reader = learner.focus
        judged = judged_of(session, reader) if "charts" in self._page.highlight else {}
        return Shot(session.state.step, view_of(session), lens_of(session) if stepped else LensPictures(), judged)

    def finish(self, learner: Learner, outcome: Outcome) -> PageRecording:
        """Return what the page showed, the last step included."""
        session, shots = learner.focus.session, self._run.shots
        step = session.state.step
        if not shots or shots[-1].step != step:
            del shots[self._most - 1 :]
            shots.append(self._shot(learner, stepped=bool(shots)))
        if outcome.value is not None and (not self._readings or self._readings[-1] != (step, outcome.value)):
            self._readings.append((step, outcome.value))
        acts = {act.what for act in (*self._page.do, *self._page.student)}
        if acts & {"compare", "write"}:
            session.show()  # ends a comparison under way
        compared = session.comparison.get() if acts & {"compare", "write"} else None
        wait = self._page.wait
        marked, missed = None, wait is not None and outcome.reached is None
        if wait is not None and wait.mark:
            marked = learner.walk.marks.get(wait.mark, {}).get(wait.reading)
        return PageRecording(outcome, session.settings, self._run, self._readings, marked, compared, missed=missed)


def _probed(session: Session) -> list[LensPictures]:
    """Return what the lens shows of the last step's view at each of `PROBED`, beside the exact predictions if the prior
    is a network that has some."""
    s, prior, truth = session.effective, session.prior, _truth_of(session)
    if truth is not None:
        for text in texts_with_truth(s):
            truth.prepare(text)
    step = max(session.state.step - 1, 0)
    return [probe(session.state, s, prior, session.bank, t, 0, step, truth) for t in PROBED]


def _truth_of(session: Session) -> Truth | None:
    """Return the exact predictions that a network approximates; None for a prior that is exact itself, or whose data
    nobody knows."""
    try:
        return truth_of(session.effective.prior, session.prior)
    except ValueError:
        return None
