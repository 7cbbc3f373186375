"""Reads what the lesson of a desk waits for, when the page asks for news."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

from sdlab.lessons import Walk
from sdlab.lessons.lesson import OTHER
from sdlab.lessons.walk import nothing
from sdlab.live.messages import Resume
from sdlab.ui.lane import Lane

TICK_EVERY = 0.9  # seconds


class Watch:
    """Ticks the walk of one desk."""

    def __init__(self) -> None:
        self._sent: Sequence[Future[None]] = ()
        self._due = 0.0

    def after(self, lanes: Sequence[Lane]) -> None:
        """Read nothing until these lanes have carried out what they were sent: it would be about the run before."""
        self._sent = [lane.seat.session.caught_up() for lane in lanes]
        self._due = 0.0

    def tick(self, walk: Walk | None, focus: Lane, lanes: Sequence[Lane]) -> None:
        """Let the walk read the run if it waits for something and that is due. What is compared with the other lane is
        read of the last lane, wherever the focus is."""
        now = time.monotonic()
        if walk is None or walk.wait is None or now < self._due or not all(sent.done() for sent in self._sent):
            return
        self._due = now + TICK_EVERY
        if walk.wait.mark != OTHER:
            walk.tick(focus.reader.step, focus.reader.read, nothing)
        elif len(lanes) > 1:
            walk.tick(lanes[-1].reader.step, lanes[-1].reader.read, lanes[-2].reader.read)
        if walk.needs_steps:
            for lane in lanes:
                _go_on(lane)


def _go_on(lane: Lane) -> None:
    """Let a run continue that has finished its plan: a reader was slow, and the run was near its end already."""
    session = lane.seat.session
    if session.status.phase == "paused" and not session.on_hold and lane.reader.step == session.settings.planned_end:
        lane.send(Resume())
