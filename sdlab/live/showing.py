"""What others see of a session: its frames, its events, and the words of its status line."""

from __future__ import annotations

import time
from collections.abc import Callable

from sdlab.channel import EventLog, Latest, Turn
from sdlab.live.frames import film, frame_of, stats_of
from sdlab.live.messages import Event, Phase, Skipped, Stepped
from sdlab.live.rendering import Rendering
from sdlab.live.state import Run
from sdlab.live.watching import Watching
from sdlab.step import Report
from sdlab.types import Frame

Look = Callable[[Run], None]


class Show:
    """Frames and events of one session. `latest`, `events` and what `watching` and `rendering` see may be read by any
    thread; the methods are for the owner of the run.

    `still` returns whether no later frame will come by itself. `ask`, which other threads call, has the owner call a
    function with the run. Step listeners are called after every step; on a GPU, `Stepped` is sent for some only."""

    def __init__(self, turn: Turn, still: Callable[[], bool], ask: Callable[[Look], None]) -> None:
        self.latest: Latest[Frame] = Latest()
        self.events: EventLog[Event] = EventLog()
        self.listeners: list[Callable[[Event], None]] = []
        self.step_listeners: list[Callable[[int], None]] = []
        self.in_detail = False  # whether statistics include those of a step's predictions
        self.watching = Watching(turn, lambda: ask(lambda run: self.watching.look(run, now=True)))
        self.rendering = Rendering(turn, lambda: ask(lambda run: self.rendering.answer(run, not still())))
        self._still = still
        self._told = -1  # step of the last `Stepped`
        self._published_at = 0.0

    # ---- frames ------------------------------------------------------------------------------------------

    @property
    def age(self) -> float:
        """Seconds since the last frame."""
        return time.monotonic() - self._published_at

    def frame_of(self, run: Run) -> Frame:
        """Return the frame of `run`."""
        return frame_of(run, self.in_detail)

    def publish(self, run: Run, frame: Frame | None = None, last: bool = False) -> None:
        """Publish `frame`, or one of `run` as it is now, to all who look; the `last` is looked at in any case."""
        frame = frame or self.frame_of(run)
        self._published_at = time.monotonic()
        self.latest.set(frame)
        now = last or self._still()
        for looking in (self.watching, self.rendering):
            looking.look(run, now=now)
        if self.in_detail:
            self.watching.go_around(run, now=now)

    def film(self, run: Run) -> None:
        """Add the state of `run` to its timeline's film, if a shot is due."""
        film(run, self.latest.get())

    # ---- events ------------------------------------------------------------------------------------------

    def say(self, event: Event) -> None:
        """Log `event` and pass it to the listeners."""
        self.events.append(event)
        for listener in self.listeners:
            listener(event)

    def tell_step(self, run: Run, report: Report, ms_publish: float) -> None:
        """Tell of the step just taken, after those before it that were skipped."""
        state = run.built
        stats = stats_of(run, report, self.in_detail)
        for number, what in state.skips:
            self.say(Skipped(number, what))
        state.skips.clear()
        self.say(Stepped.of(state.step, **stats, ms_publish=ms_publish))
        self._told = state.step

    def tell_last_step(self, run: Run) -> None:
        """Tell of the last step of `run`, unless that was done: on a GPU it may be one of many."""
        report = run.trace.report
        if report is not None and self._told != run.step:
            self.tell_step(run, report, 0.0)

    def count(self, step: int) -> None:
        """Call the listeners to steps, of which there have been `step`."""
        for listener in self.step_listeners:
            listener(step)


# ---- the status line -------------------------------------------------------------------------------------


def usual_status(run: Run, stepping: bool, at_end: bool, go: str) -> tuple[Phase, str]:
    """Return phase and text of the status line of a built `run` that takes steps, or waits to do so, as in `paused`."""
    if stepping:
        return "running", "running"
    if progress := warm_up_progress(run):
        return "paused", f"paused at step {run.step}, {progress}"
    return ("ready", f"ready: {go}") if run.step == 0 else ("paused", paused(run, at_end, go))


def paused(run: Run, at_end: bool, go: str) -> str:
    """Return what the status line of a paused `run` says; `at_end` if it has taken the planned steps. `go` is what lets
    it take more."""
    if at_end:
        return f"finished the planned {run.settings.steps} steps; {go} to continue"
    return f"paused at step {run.step}"


def warm_up_progress(run: Run) -> str:
    """Return the progress of the active loss's auxiliary, "" unless its warm-up has begun and is not over."""
    loss = run.effective.loss
    aux = run.built.aux.get(loss.aux_name())
    if aux is None or not 0 < aux.fitted < loss.warm_up_steps():
        return ""
    return f"its own network warms up, {aux.fitted} of {loss.warm_up_steps()} steps"
