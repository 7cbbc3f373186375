"""A live optimisation: commands in, frames and events out.

One thread, the one that calls `run`, owns every tensor (`sdlab.live.loop`). Other threads send commands (never
blocking) and read `latest`, `events` and `status`. A patch is a transaction: if the first step after it raises, the run
returns to the state and settings before it and says why.

A run is never lost: `timeline` keeps moments to jump back to, and `branch` lets another session continue from the
current state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TypedDict

from sdlab.channel import Turn
from sdlab.export.writers import Material
from sdlab.knobs import FrozenDict
from sdlab.live import copies
from sdlab.live.checkpoint import Saved
from sdlab.live.copies import Fork
from sdlab.live.loop import Loop
from sdlab.live.messages import Burst, Command, Event
from sdlab.live.moments import Moment
from sdlab.live.state import Run, moment_of
from sdlab.live.tape import Taken
from sdlab.prompts import PromptBank
from sdlab.settings import Settings
from sdlab.step import Report
from sdlab.types import Prior


class Ties(TypedDict, total=False):
    """The arguments with which a `Session` is tied to others, for a kind of session that passes them on."""

    turn: Turn | None
    origin: Future[Fork] | None
    history: int


class Session(Loop):
    """A run that follows commands, see the top of this file. `turn` is its turn at the turnstile of its device.

    `pace` is what a viewer should know of how steps are taken, "" for one after the other; `go` is what lets the run
    take steps.

    `admit` is called with settings before they are adopted and with the run as it is; its ValueError refuses them.

    With `origin`, which another session's `branch` returned, the run continues from that state as soon as it is known;
    commands wait until then. The moments of its timeline take at most `history` bytes.
    """

    pace = ""

    # ---- for any thread ----------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """How start, prior and rasteriser differ from what was asked for, and what they do without."""
        run = self._run
        start = run.state.scene.note if run.state is not None else ""
        prior = run.prior.engine_note if run.prior is not None else ""
        return tuple(note for note in (start, prior, self._current.fallback) if note)

    @property
    def watched(self) -> tuple[int | None, int | None]:
        """The view that the lens shows (None: it is closed) and the timestep it probes (None: each step's own)."""
        return self._watching.row, self._watching.t

    def send(self, command: Command) -> None:
        """Queue a command; never blocks."""
        self._inbox.put(command)

    def follows(self, command: Command) -> bool:
        """Return whether a command means something to this kind of run."""
        return not isinstance(command, Burst)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event, in the owner's thread. Call before `run`."""
        self._show.listeners.append(listener)

    def listen_to_steps(self, listener: Callable[[int], None]) -> None:
        """Call `listener` with the number of steps taken after every step, in the owner's thread; on a GPU, `Stepped`
        tells of some only. Call before `run`."""
        self._show.step_listeners.append(listener)

    def plan(self, number: int, command: Command) -> None:
        """Carry out `command` after `number` steps, before the next one. Call before `run`."""
        self._planned.setdefault(number, []).append(command)

    def branch(self) -> Future[Fork]:
        """Request the exact state of this run, as the `origin` of another session; never blocks. It costs this run one
        copy of its state between two steps. RuntimeError, raised or as the result, when there is no state."""
        if self._run.state is None and self._error is not None:
            raise RuntimeError(f"there is nothing to branch from: {self._failure}")
        return self._inbox.ask(self._forked)

    def material(self) -> Future[Material]:
        """Request a copy of what the run has made so far, to export; never blocks. RuntimeError as the result when
        there is nothing."""
        return self._inbox.ask(lambda: copies.exportable(self._run_to("export"), self.latest.get()))

    def taken(self) -> Future[Taken]:
        """Request what a hand-in tells of this run; never blocks. It costs the run about 0.2 s between two steps.
        RuntimeError as the result when there is nothing."""
        return self._inbox.ask(self.take)

    def saved(self) -> Future[Saved]:
        """Request the present state as a checkpoint holds it; never blocks. It costs the run one copy of its state
        between two steps. RuntimeError as the result when there is no state."""
        return self._inbox.ask(lambda: copies.saved_of(self._run, self.effective, {}))

    def continue_from(self, saved: Saved) -> Future[None]:
        """Request to continue from a checkpoint, paused, with the settings in it; never blocks. ValueError as the
        result if that is not possible, which leaves the run as it was."""
        return self._inbox.ask(lambda: self._continue_from(saved))

    def caught_up(self) -> Future[None]:
        """Request a sign that the commands sent so far are carried out; never blocks."""
        return self._inbox.ask(lambda: None)

    def watch_lens(self, on: bool, row: int = 0, t: int | None = None, exact: bool = False) -> None:
        """Keep `lens` up to date with view `row` of what the loss sees, at each step's timestep or at `t`, with `exact`
        beside the exact predictions; or close the lens. Never blocks."""
        self._inbox.put(lambda: self._watching.watch(self._run, row if on else None, t if on else None, exact and on))

    # ---- for the owner -----------------------------------------------------------------------------------

    @property
    def prior(self) -> Prior:
        """The loaded prior; RuntimeError before `run` has loaded it."""
        return self._run.loaded[0]

    @property
    def bank(self) -> PromptBank:
        """The embedded prompts; RuntimeError before `run` has loaded the prior."""
        return self._run.loaded[1]

    @property
    def report(self) -> Report | None:
        """The report of the last step on this scene, None before the first."""
        return self._run.trace.report

    def moment(self) -> Moment:
        """Return a complete copy of the current state."""
        return moment_of(self._run)

    def fork(self) -> Fork:
        """Return the current state and its history, for a branch."""
        return copies.fork_of(self._run, self.running, self.steps_left)

    def take(self) -> Taken:
        """Return what a hand-in tells of this run as it is now. RuntimeError when there is nothing."""
        return copies.taken_of(self._run_to("hand in"), self.tape, self.turn)

    def take_over(self, fork: Fork) -> None:
        """Continue from a state of another run. Raises any error of building it, which leaves the session as it was."""
        self._current.take_over(fork)

    def pinned(self) -> Settings:
        """Return the effective settings with the commit of a prior from the Hub, so that a run with them gets the same
        weights."""
        return copies.pinned(self._run)

    def save(self, folder: Path, texts: Mapping[str, str] = FrozenDict()) -> Path:
        """Write a checkpoint of the current state into `folder`, with further `texts` by file name; return its path.
        OSError if it cannot be written."""
        return copies.write_checkpoint(self._run, folder, texts)

    def export(self, folder: Path, size: int = 256) -> list[Path]:
        """Write the results of the run into `folder`, turntables with `size` pixels; return the files written."""
        return copies.write_export(self._run, folder, size)

    def restore(self, folder: Path) -> str:
        """Continue from the newest whole checkpoint in `folder`, with its settings; return why newer ones were passed
        over, or "". ValueError when none can be used, which leaves the session as it was."""
        return self._current.restore(folder)

    def _run_to(self, do: str) -> Run:
        """Return the run; RuntimeError when it has no state to `do` something with or from."""
        if self._run.state is None:
            raise RuntimeError(f"there is nothing to {do}: {self._failure or self.status.text}")
        return self._run

    def _forked(self) -> Fork:
        """Return the current state for a branch; RuntimeError when there is none."""
        if self._inbox.closed:
            raise RuntimeError("there is nothing to branch from: the run has ended")
        self._run_to("branch from")
        return self.fork()
