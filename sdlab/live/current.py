"""The run that a session has now, and what takes its place: a fresh scene, another moment of its timeline, a
checkpoint, the state of another session, other settings.

What fails leaves the run as it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdlab.errors import reason
from sdlab.live import checkpoint
from sdlab.live.building import Builder
from sdlab.live.copies import Fork
from sdlab.live.messages import Branched, Event, Noted, Went
from sdlab.live.moments import Moment
from sdlab.live.patches import moment_before, rolled_back, undoable, without_patch
from sdlab.live.showing import Show
from sdlab.live.state import Admit, Run, anything, moment_of
from sdlab.live.tape import Changes, Tape
from sdlab.live.timeline import Timeline
from sdlab.settings import Settings


class Current:
    """The run of one session, and the tape of its stretches. Each change is shown by `show`."""

    def __init__(self, settings: Settings, builder: Builder, show: Show) -> None:
        self.run = Run.of(settings)
        self.tape = Tape()
        self.fallback = ""  # why the scene is drawn more slowly than it could be
        self._builder = builder
        self._show = show

    # ---- a fresh scene -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Load the prior, compile, and build the scene, unless that is done."""
        if self.run.prior is None:
            self.run = self._builder.with_prior(self.run, self.run.settings)
        if self.run.state is None:
            self._start(self._builder.started(self.run, "started"))

    def reset(self) -> None:
        """Begin again with the settings as requested."""
        run = self.run.following(self.run.settings, self.run.settings)
        if run.prior is None:
            run = self._builder.with_prior(run, run.settings)
        self._start(self._builder.started(run, "reset"))

    def _start(self, run: Run) -> None:
        """Switch to `run`, which has a fresh scene."""
        self._switch(run)
        self._show.film(run)
        self.warn_of_fallback()
        for note in (run.built.scene.note, run.loaded[0].engine_note):
            if note:
                self._show.say(Noted(0, note))

    def warn_of_fallback(self) -> None:
        """Say once why the scene is drawn more slowly than it could be, if it is."""
        before, self.fallback = self.fallback, self.run.begun.scene.fallback(self._builder.device)
        if self.fallback and not before:
            self._show.say(Noted(self.run.step, self.fallback))

    def _switch(self, run: Run, event: Event | None = None) -> None:
        """Switch to `run`, which has another scene, and report `event`."""
        frame = self._show.frame_of(run)  # before anything changes: it may fail
        self.run = run
        self.tape.add(run.stretch, run.step, run.built.scene.params)
        self._show.watching.forget()
        if event is not None:
            self._show.say(event)
        self._show.publish(run, frame)

    # ---- another state -----------------------------------------------------------------------------------

    def take_over(self, fork: Fork) -> None:
        """Continue from a state of another run. Raises any error of building it."""
        run = self._builder.resumed(self.run, fork.moment)
        self._switch(dataclasses.replace(run, timeline=fork.timeline, undo=fork.undo), Branched(fork.moment.step))

    def go_to(self, number: int) -> None:
        """Jump on the timeline, to the last moment at or before step `number`; the next step or change cuts off what
        came after. ValueError without such a moment, RuntimeError if its scene cannot be built."""
        present, timeline = self.run.built.step, self.run.timeline
        if all(kept < present for kept in timeline.steps()):
            timeline.keep(moment_of(self.run))  # to return to the current state
        moment = timeline.at(number)
        try:
            self._switch(self._builder.went(self.run, moment), Went(moment.step))
        except Exception as e:
            raise RuntimeError(f"the run cannot go back to step {moment.step}: {reason(e)}") from e
        timeline.rewind(moment, present)

    def restored(self, saved: checkpoint.Saved, where: str, admit: Admit = anything) -> tuple[Run, Moment]:
        """Return a run that continues from a checkpoint, with a new timeline, and the moment in it, for `load`.
        ValueError, which begins with `where`, if it does not fit or `admit` refuses its settings."""
        try:
            settings = checkpoint.settings_of(saved)
            admit(settings, self.run)
            moment = Moment(saved.step, settings, settings, saved.parts)
            run = self._builder.resumed(self.run, moment)
            return dataclasses.replace(run, timeline=Timeline(self._builder.history)), moment
        except Exception as e:
            raise ValueError(f"{where} cannot be restored: {reason(e)}") from e

    def load(self, run: Run, moment: Moment, event: Event | None = None) -> None:
        """Switch to a run that continues from the moment in a checkpoint, and report `event`."""
        run.timeline.note(moment.step, "load", f"loaded a checkpoint of step {moment.step}")
        run.timeline.keep(moment)
        self._switch(run, event)
        self._show.film(run)

    def restore(self, folder: Path) -> str:
        """Continue from the newest whole checkpoint in `folder`; return why newer ones were passed over, or "".
        ValueError when none can be used."""
        where = f"the checkpoint in {folder}"
        (run, moment), passed_over = checkpoint.newest(folder, lambda saved: self.restored(saved, where))
        self.load(run, moment)
        return passed_over

    def follow(self, saved: checkpoint.Saved) -> None:
        """Continue with the state after steps that another process has taken."""
        run = self.run
        moment = Moment(saved.step, run.settings, run.begun, saved.parts, run.stretch.place)
        self.run = self._builder.put_back(run, moment)
        self.confirm()

    # ---- other settings ----------------------------------------------------------------------------------

    def adopt(self, new: Settings, changes: Changes, on_tape: bool = True) -> frozenset[str]:
        """Adopt the settings `new`, which differ by `changes`, as a transaction; return the paths of the knobs that
        wait for a reset. The tape takes changes of knobs alone."""
        before, moment = self.run, moment_before(self.run)
        run, waiting = self._builder.adopted(before, new)
        rebuilt = run.trace is not before.trace
        if rebuilt:
            self._start(run)
        self.run = run
        if on_tape and not rebuilt and run.state is not None and new != before.settings:
            run.stretch.note(changes)
        if run.prior is not before.prior:
            self._show.watching.stop_comparing()
            if not rebuilt and (note := run.loaded[0].engine_note):
                self._show.say(Noted(run.step, note))
        self.run = undoable(run, before, moment if not rebuilt else None, changes)
        return waiting

    def undo(self) -> Changes:
        """Undo the patch whose first step failed; return its changes. An error leaves the state of the failed step
        with the prior before the patch."""
        undo = self.run.undo
        assert undo is not None
        self.run = without_patch(self.run, undo)
        self.run = rolled_back(self.run, undo, self._builder)
        return undo.changes

    def confirm(self) -> None:
        """After a step, keep the patch before it, and cut off the history after the target of a jump."""
        if self.run.undo is not None:
            self.run = dataclasses.replace(self.run, undo=None)
        self.run.timeline.go_on()
