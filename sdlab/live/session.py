"""A live optimisation: commands in, frames and events out.

One thread, the one that calls `run`, owns every tensor. Other threads send commands (never blocking) and read
`latest`, `events` and `status`. A patch is a transaction: if the first step after it raises, the run returns to the
state and settings before it and says why.

A run is never lost: `timeline` keeps moments to jump back to, and `branch` lets another session continue from the
current state.
"""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdlab.channel import Account, EventLog, Halted, Latest, Turn, Turnstile
from sdlab.errors import reason
from sdlab.export.writers import Material, material_of, write_results
from sdlab.knobs import FrozenDict
from sdlab.live import checkpoint
from sdlab.live.building import Builder, LoadPrior, load_prior
from sdlab.live.frames import flat_frame, frame_of, stats_of
from sdlab.live.messages import (
    Advance,
    Applied,
    Branched,
    Command,
    Compare,
    Ended,
    Event,
    Failed,
    Goto,
    Hold,
    Noted,
    Patch,
    Pause,
    Phase,
    Rejected,
    Reset,
    Resume,
    Rewrite,
    Skipped,
    Status,
    Stepped,
    Stop,
    Went,
)
from sdlab.live.moments import Moment
from sdlab.live.rendering import Rendering
from sdlab.live.state import Run, Undo, moment_of
from sdlab.live.tape import Taken, Tape, print_of
from sdlab.live.timeline import MOMENT_BYTES, Timeline
from sdlab.live.watching import Watching, views_around
from sdlab.prompts import PROMPT, PromptBank
from sdlab.scenes import FlatScene
from sdlab.settings import Settings, codes_of, to_toml
from sdlab.step import Report, State, needs_warm_up, step, warm_up
from sdlab.types import Frame, Prior

PUBLISH_EVERY = 0.1  # seconds; a viewer cannot use more, and each frame costs a copy to the host
SYNC_EVERY = 10  # steps between reading statistics back from a GPU, and thus between events `Stepped`

T = TypeVar("T")
Admit = Callable[[Settings, Run], None]


def anything(settings: Settings, run: Run) -> None:
    """Admit all settings."""


@dataclass(frozen=True)
class Fork:
    """The current state of a run, for another session to continue from."""

    moment: Moment
    timeline: Timeline
    running: bool
    steps_left: int | None  # until the pause that an Advance asked for
    undo: Undo | None  # of a patch that has not had its first step


class Session:
    """A run that follows commands, see the top of this file. `turn` is its turn at the turnstile of its device.

    `pace` is what a viewer should know of how steps are taken, "" for one after the other.

    `admit` is called with settings before they are adopted and with the run as it is; its ValueError refuses them.

    With `origin`, which another session's `branch` returned, the run continues from that state as soon as it is known;
    commands wait until then. The moments of its timeline take at most `history` bytes.
    """

    pace = ""

    def __init__(
        self,
        settings: Settings,
        device: torch.device | str = "cpu",
        load: LoadPrior = load_prior,
        turn: Turn | None = None,
        origin: Future[Fork] | None = None,
        admit: Admit = anything,
        history: int = MOMENT_BYTES,
    ) -> None:
        self.device = torch.device(device)
        self.latest: Latest[Frame] = Latest()
        self.events: EventLog[Event] = EventLog()
        self.status = Status(0, "loading", "not started yet")
        self.in_detail = False  # whether statistics include those of a step's predictions; set while a page shows them
        self.running = False
        self.on_hold = False  # takes no steps, although it may be `running`
        self.steps_left: int | None = None  # until the pause that an Advance asked for
        self._run = Run.of(settings)
        self.tape = Tape()
        self.turn = turn or Turnstile().turn(Account())
        self._admit = admit
        self._builder = Builder(self.device, load, self._set_status, history)
        self._watching = Watching(self.turn, lambda: self._inbox.put(lambda: self._watching.look(self._run, now=True)))
        self.rendering = Rendering(self.turn, lambda: self._inbox.put(self._render))
        self.lens = self._watching.lens
        self.comparison = self._watching.comparison
        self.around = self._watching.around  # up to date while `in_detail`
        self._origin = origin
        self._held: list[Command] = []  # until `origin` is known
        self._inbox: queue.SimpleQueue[Command | Callable[[], None]] = queue.SimpleQueue()
        self._listeners: list[Callable[[Event], None]] = []
        self._step_listeners: list[Callable[[int], None]] = []
        self._told = -1  # step of the last `Stepped`
        self._planned: dict[int, list[Command]] = {}
        self._stopped = False
        self._over = False  # no longer serving the inbox
        self._until: int | None = None  # of the current run()
        self._error: BaseException | None = None  # the failure that stopped the run; None once it runs again
        self._fallback = ""  # why the scene is drawn more slowly than it could be
        self._published_at = 0.0
        self._warm_up_shown = 0.0

    # ---- for any thread ----------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings as requested, including knobs that wait for a reset."""
        return self._run.settings

    @property
    def effective(self) -> Settings:
        """The settings that steps follow: as requested, except for knobs that wait for a reset."""
        return self._run.effective

    @property
    def notes(self) -> tuple[str, ...]:
        """How start, prior and rasteriser differ from what was asked for, and what they do without."""
        run = self._run
        start = run.state.scene.note if run.state is not None else ""
        prior = run.prior.engine_note if run.prior is not None else ""
        return tuple(note for note in (start, prior, self._fallback) if note)

    @property
    def timeline(self) -> Timeline:
        """The history of the run."""
        return self._run.timeline

    @property
    def stepping(self) -> bool:
        """Whether the run takes steps as soon as it has a state."""
        return self.running and not self.on_hold

    @property
    def watched(self) -> tuple[int | None, int | None]:
        """The view that the lens shows (None: it is closed) and the timestep it probes (None: each step's own)."""
        return self._watching.row, self._watching.t

    def send(self, command: Command) -> None:
        """Queue a command; never blocks."""
        self._inbox.put(command)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event, in the owner's thread. Call before `run`."""
        self._listeners.append(listener)

    def listen_to_steps(self, listener: Callable[[int], None]) -> None:
        """Call `listener` with the number of steps taken after every step, in the owner's thread; on a GPU, `Stepped`
        tells of some only. Call before `run`."""
        self._step_listeners.append(listener)

    def plan(self, number: int, command: Command) -> None:
        """Carry out `command` after `number` steps, before the next one. Call before `run`."""
        self._planned.setdefault(number, []).append(command)

    def branch(self) -> Future[Fork]:
        """Request the exact state of this run, as the `origin` of another session; never blocks. It costs this run one
        copy of its state between two steps. RuntimeError, raised or as the result, when there is no state."""
        if self._run.state is None and self._error is not None:
            raise RuntimeError(f"there is nothing to branch from: {self._failure}")
        return self._ask(self._forked)

    def material(self) -> Future[Material]:
        """Request a copy of what the run has made so far, to export; never blocks. RuntimeError as the result when
        there is nothing."""
        return self._ask(self._exportable)

    def taken(self) -> Future[Taken]:
        """Request what a hand-in tells of this run; never blocks. It costs the run about 0.2 s between two steps.
        RuntimeError as the result when there is nothing."""
        return self._ask(self.take)

    def saved(self) -> Future[checkpoint.Saved]:
        """Request the present state as a checkpoint holds it; never blocks. It costs the run one copy of its state
        between two steps. RuntimeError as the result when there is no state."""
        return self._ask(self._saved)

    def continue_from(self, saved: checkpoint.Saved) -> Future[None]:
        """Request to continue from a checkpoint, paused, with the settings in it; never blocks. ValueError as the
        result if that is not possible, which leaves the run as it was."""
        return self._ask(lambda: self._continue_from(saved))

    def caught_up(self) -> Future[None]:
        """Request a sign that the commands sent so far are carried out; never blocks."""
        return self._ask(lambda: None)

    def watch_lens(self, on: bool, row: int = 0, t: int | None = None, exact: bool = False) -> None:
        """Keep `lens` up to date with view `row` of what the loss sees, at each step's timestep or at `t`, with `exact`
        beside the exact predictions; or close the lens. Never blocks."""
        self._inbox.put(lambda: self._watching.watch(self._run, row if on else None, t if on else None, exact and on))

    def _ask(self, question: Callable[[], T]) -> Future[T]:
        """Have the owner answer between two steps, or answer now if the owner no longer serves its inbox."""
        answer: Future[T] = Future()
        self._inbox.put(lambda: _resolve(answer, question))
        if self._over:
            self._answer_rest()
        return answer

    # ---- for the owner -----------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The current state; RuntimeError before `run` has built it."""
        if self._run.state is None:
            raise RuntimeError("the session has no state yet: it is built when run() starts")
        return self._run.state

    @property
    def prior(self) -> Prior:
        """The loaded prior; RuntimeError before `run` has loaded it."""
        if self._run.prior is None:
            raise RuntimeError("the session has no prior yet: it is loaded when run() starts")
        return self._run.prior

    @property
    def bank(self) -> PromptBank:
        """The embedded prompts; RuntimeError before `run` has loaded the prior."""
        if self._run.bank is None:
            raise RuntimeError("the session has no prompts yet: its prior is loaded when run() starts")
        return self._run.bank

    @property
    def report(self) -> Report | None:
        """The report of the last step on this scene, None before the first."""
        return self._run.trace.report

    def run(self, until: int | None = None, start: bool = True) -> None:
        """Serve commands and take steps until `until` steps are done (None: until Stop). The caller's thread becomes
        the owner of the tensors. With `start` False, wait for Resume first.

        A prior that cannot be loaded and a step that fails are reported as Failed, and the session waits for commands
        such as a patch. With `until`, nobody is expected to send one: RuntimeError that names the step, unless a
        listener answered Failed with Stop. The state is kept either way.
        """
        self.running = start
        self._until = until
        self._error = None
        self._over = False
        try:
            try:
                self.prepare()
            except Exception as e:
                if until is not None:
                    raise
                self._fail(e)
            self._run_on()
            if self._run.state is not None:
                self._publish()
                self._tell_last_step()
            self._say(Ended(self._run.step))
            self._set_status("ended", "ended")
        except BaseException as e:
            if until is None:
                self._fail(e)  # the thread ends, and its page says why
            raise
        finally:
            self._over = True
            self._watching.stop_drawing()
            self._answer_rest()

    def _run_on(self) -> None:
        """Serve commands and take steps until the end of `run`."""
        until = self._until
        while not self._stopped:
            self._serve()
            if self._stopped or (until is not None and self._run.step >= until):
                return
            if self._error is not None and until is not None:
                raise RuntimeError(f"stopped at step {self._run.step}: {reason(self._error)}") from self._error
            if self.stepping and self._run.state is not None:
                for command in self._planned.pop(self._run.step, ()):
                    self.do(command)
                self.advance()
            self._compare_on()

    def prepare(self) -> None:
        """Load the prior, compile, and build the scene, unless that is done; or wait for `origin`."""
        if self._origin is not None:
            self._set_status("loading", "waiting for the state of the parent run")
            self._origin.add_done_callback(lambda _: self._inbox.put(self._begin))
            return
        if self._run.prior is None:
            self._run = self._builder.with_prior(self._run, self._run.settings)
        if self._run.state is None:
            self._start(self._builder.started(self._run, "started"))
        self._settle()

    def do(self, command: Command) -> None:
        """Carry out `command` now. If it fails, report Rejected; the run continues as before."""
        try:
            self._obey(command)
        except (Exception, SystemExit) as e:  # whatever it is, the run continues
            target = str(getattr(command, "step", ""))
            self._say(Rejected(self._run.step, type(command).__name__.lower(), target, reason(e)))
            if self._run.state is None and isinstance(command, (Resume, Advance, Reset)):
                self._fail(e)  # after other commands, the status still says why there is no state
            else:
                self._settle()

    def show(self) -> None:
        """Finish a comparison under way, and publish a frame and the views around the object, for an owner that calls
        `do` and `advance` itself."""
        while self._watching.comparing:
            self._compare_on()
        self._publish()
        self._watching.go_around(self._run, now=True)

    def moment(self) -> Moment:
        """Return a complete copy of the current state."""
        return moment_of(self._run)

    def fork(self) -> Fork:
        """Return the current state and its history, for a branch."""
        moment, undo = self.moment(), self._run.undo
        if undo is not None:  # a bank of prompts belongs to one thread
            undo = dataclasses.replace(undo, bank=PromptBank(undo.prior))
        return Fork(moment, self.timeline.branched(moment), self.running, self.steps_left, undo)

    def take(self) -> Taken:
        """Return what a hand-in tells of this run as it is now. RuntimeError when there is nothing."""
        run, tape = self._run, self.tape
        if run.state is None:
            raise RuntimeError(f"there is nothing to hand in: {self._failure or self.status.text}")
        state, s, prior, bank = run.inputs()
        with self.turn:
            images = around = views_around(run)
            if around is None and flat_frame(state.scene, None, s.loss) is None:
                images = state.scene.preview(prior, bank, s.prompt, s.camera, None).images
        place = run.stretch.place
        now = print_of(place.tick, run.step, state.scene.params)
        return Taken(place, now, tape.stretches, tape.dropped, s, images, around is not None, state.scene.stats())

    def take_over(self, fork: Fork) -> None:
        """Continue from a state of another run. Raises any error of building it, which leaves the session as it was."""
        run = self._builder.resumed(self._run, fork.moment)
        self._switch(dataclasses.replace(run, timeline=fork.timeline, undo=fork.undo), Branched(fork.moment.step))

    def pinned(self) -> Settings:
        """Return the effective settings with the commit of a prior from the Hub, so that a run with them gets the same
        weights."""
        commit = self._run.prior.commit if self._run.prior is not None else ""
        return self.effective.patch("prior.revision", commit) if commit else self.effective

    def save(self, folder: Path, texts: Mapping[str, str] = FrozenDict()) -> Path:
        """Write a checkpoint of the current state into `folder`, with further `texts` by file name; return its path.
        OSError if it cannot be written."""
        texts = {**texts, **codes_of(self.settings), checkpoint.SETTINGS: to_toml(self.pinned())}
        return checkpoint.save(folder, self.state.step, self.moment().parts, texts)

    def export(self, folder: Path, size: int = 256) -> list[Path]:
        """Write the results of the run into `folder`, turntables with `size` pixels; return the files written."""
        scene, s = self.state.scene, self.effective
        if isinstance(scene, FlatScene):
            return scene.write(folder, self.prior, self.bank.prompt(s.prompt))
        return write_results(folder, scene, s.camera, size)

    def restore(self, folder: Path) -> str:
        """Continue from the newest whole checkpoint in `folder`, with its settings; return why newer ones were passed
        over, or "". ValueError when none can be used, which leaves the session as it was."""
        where = f"the checkpoint in {folder}"
        (run, moment), passed_over = checkpoint.newest(folder, lambda saved: self._restored(saved, where))
        self._load(run, moment)
        return passed_over

    def _load(self, run: Run, moment: Moment, event: Event | None = None) -> None:
        """Switch to a run that continues from the moment in a checkpoint, and report `event`."""
        run.timeline.note(moment.step, "load", f"loaded a checkpoint of step {moment.step}")
        run.timeline.keep(moment)
        self._switch(run, event)
        self._film()

    def _restored(self, saved: checkpoint.Saved, where: str, admit: Admit = anything) -> tuple[Run, Moment]:
        """Return a run that continues from a checkpoint, and the moment in it. ValueError, which begins with `where`,
        if it does not fit or `admit` refuses its settings."""
        try:
            settings = checkpoint.settings_of(saved)
            admit(settings, self._run)
            moment = Moment(saved.step, settings, settings, saved.parts)
            resumed = self._builder.resumed(self._run, moment)
            return dataclasses.replace(resumed, timeline=Timeline(self._builder.history)), moment
        except Exception as e:
            raise ValueError(f"{where} cannot be restored: {reason(e)}") from e

    def _continue_from(self, saved: checkpoint.Saved) -> None:
        try:
            run, moment = self._restored(saved, "the checkpoint", self._admit)
        finally:
            self._settle()
        self.running, self.steps_left, self._error = False, None, None
        self._load(run, moment, Went(moment.step))
        self._settle()

    # ---- the inbox ---------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Carry out all waiting commands; wait for one when there is nothing else to do."""
        while True:
            waits = not self.stepping or self._run.state is None
            given_up = self._error is not None and self._until is not None
            idle = waits and not (self._stopped or given_up or self._watching.comparing)
            try:
                asked = self._inbox.get() if idle else self._inbox.get_nowait()
            except queue.Empty:
                return
            if callable(asked):
                asked()
            elif self._origin is not None and not isinstance(asked, Stop):
                self._held.append(asked)
                if self._origin.done() and isinstance(asked, (Resume, Advance)):
                    self._begin()  # a second try after a failure
            else:
                self.do(asked)

    def _answer_rest(self) -> None:
        """Answer the questions that came too late: the inbox is no longer served."""
        while not self._inbox.empty():
            try:
                asked = self._inbox.get_nowait()
            except queue.Empty:
                return
            if callable(asked):
                asked()

    def _forked(self) -> Fork:
        """Return the current state for a branch; RuntimeError when there is none."""
        if self._over:
            raise RuntimeError("there is nothing to branch from: the run has ended")
        if self._run.state is None:
            raise RuntimeError(f"there is nothing to branch from: {self._failure or self.status.text}")
        return self.fork()

    def _saved(self) -> checkpoint.Saved:
        """Return the state and the settings that steps follow; RuntimeError when there is no state."""
        texts = {checkpoint.SETTINGS: to_toml(self.effective)}
        return checkpoint.Saved(self.state.step, dict(self.moment().parts), texts, True)

    def _exportable(self) -> Material:
        """Return what can be exported now, even if the run has ended; RuntimeError when there is nothing."""
        if self._run.state is None:
            raise RuntimeError(f"there is nothing to export: {self._failure or self.status.text}")
        frame, state = self.latest.get(), self._run.state
        images = frame.preview if frame is not None else None
        return material_of(state.scene, self.effective, state.step, self.timeline.film(), images)

    def _begin(self) -> None:
        """Continue from `origin`, now that it is known."""
        if self._origin is None or self._stopped or self._over:
            return
        try:
            fork = self._origin.result()
            self.take_over(fork)
        except Exception as e:
            if self._until is not None:
                raise
            self._fail(e)
            return
        self._warn_of_fallback()
        held, self._origin, self._held = self._held, None, []
        self.running, self.steps_left = fork.running, fork.steps_left
        self._settle()
        for command in held:
            self.do(command)

    # ---- commands ----------------------------------------------------------------------------------------

    def _obey(self, command: Command) -> None:
        match command:
            case Patch(changes):
                self._patch(changes)
            case Pause(why):
                if why and self.running:
                    self._say(Noted(self._run.step, why))
                self.running = False
                self.steps_left = None
                if self._run.state is not None:
                    self._publish()
                self._settle()
            case Resume() | Advance():
                if self._run.state is None:
                    self.prepare()  # a second try after a failure
                self.steps_left = (self.steps_left or 0) + command.n if isinstance(command, Advance) else None
                self.running, self._error, self.turn.stop = True, None, ""
                self._settle()
            case Hold(on):
                self.on_hold = on
                if self._run.state is not None:
                    self._publish()
                self._settle()
            case Reset():
                run = self._run.following(self.settings, self.settings)
                if run.prior is None:
                    run = self._builder.with_prior(run, run.settings)
                self._start(self._builder.started(run, "reset"))
                self._settle()
            case Goto(number):
                self._go_to(number)
            case Compare(names):
                self._builder.read_for_losses(self._run, names)
                self._settle()
                self._watching.compare(self._run, names)
            case Rewrite(loss) if loss is not type(self.settings.losses.get(loss.kind)):
                self._adopt(self.settings.with_loss(loss), ((f"losses.{loss.kind}", "a new version"),), on_tape=False)
                if self.settings.active == loss.kind:
                    self._run.stretch.remark(f"the code of losses.{loss.kind} was changed")
            case Stop():
                self._stopped = True

    def _go_to(self, number: int) -> None:
        """Jump on the timeline and pause. The next step or change cuts off what came after."""
        present, timeline = self.state.step, self.timeline
        if all(kept < present for kept in timeline.steps()):
            timeline.keep(self.moment())  # to return to the current state
        moment = timeline.at(number)
        now = self.settings  # the code of a loss is no part of the history
        settings, begun = moment.settings.with_losses_of(now), moment.begun.with_losses_of(now)
        self._set_status("loading", f"going to step {moment.step}")
        try:
            target = dataclasses.replace(moment, settings=settings, begun=begun)
            run = self._builder.resumed(self._run, target)
            if run.state is not None:
                run.state.scene.note = self.state.scene.note  # about the same start
            self._switch(run, Went(moment.step))
        except Exception as e:
            raise RuntimeError(f"the run cannot go back to step {moment.step}: {reason(e)}") from e
        timeline.rewind(moment, present)
        self.running, self.steps_left = False, None
        self._settle()

    def _patch(self, changes: Iterable[tuple[str, Any]]) -> None:
        """Validate `changes` and adopt them all or none; the run before them is restored if the next step fails."""
        changes = tuple(changes)
        try:
            new = self.settings.patch_all(changes)
            self._admit(new, self._run)
        except ValueError as e:
            self._reject(changes, str(e))
            return
        self._adopt(new, changes)

    def _adopt(self, new: Settings, changes: tuple[tuple[str, Any], ...], on_tape: bool = True) -> None:
        """Adopt the settings `new`, which differ by `changes`; the run before is restored if the next step fails. The
        tape takes changes of knobs alone."""
        before = self._run
        moment = self.moment() if before.undo is None and before.state is not None else None
        try:
            run, waiting = self._builder.adopted(before, new)
            rebuilt = run.trace is not before.trace
            if rebuilt:
                self._start(run)
        except Exception as e:
            self._reject(changes, str(e))
            self._settle()
            return
        self._run = run
        if on_tape and not rebuilt and run.state is not None and new != before.settings:
            run.stretch.note(changes)
        if run.prior is not before.prior:
            self._watching.stop_comparing()
            if not rebuilt and self.prior.engine_note:
                self._say(Noted(run.step, self.prior.engine_note))
        differ = {path for path, _ in before.settings.differences(new)}
        replanned = differ & {"steps", "schedule.start"}
        if replanned and self.running and self._until is None and run.step >= new.planned_end:
            self.running = False  # the plan is over already
            self._publish()
        self._settle()
        self._keep_undo(before, moment if not rebuilt else None, changes)
        for path, value in changes:
            note = "from the next reset on" if path in waiting else ""
            if path.startswith("prompt.") and isinstance(value, str) and run.prior is not None:
                note = run.prior.remark(_as_read(path, value, new.prompt.text))
            text = f"{path} = {value}, {note}" if path in waiting else f"{path} = {value}"
            self.timeline.note(run.step, "change", text, path, value)
            self._say(Applied(run.step, path, value, note))

    def _keep_undo(self, before: Run, moment: Moment | None, changes: tuple[tuple[str, Any], ...]) -> None:
        """Remember how to undo a patch that was just adopted. `moment` is the state before the patch, or None if the
        scene was rebuilt: then the current state is taken."""
        run, undo = self._run, self._run.undo
        run.timeline.go_on()
        if undo is None and run.state is not None and before.prior is not None and before.bank is not None:
            moment = moment or dataclasses.replace(self.moment(), settings=before.settings, place=None)
            run.timeline.keep(moment)
            undo = Undo(moment, before.prior, before.bank, run.timeline.number)
        if undo is not None:
            self._run = dataclasses.replace(run, undo=dataclasses.replace(undo, changes=(*undo.changes, *changes)))

    def _reject(self, changes: Iterable[tuple[str, Any]], why: str) -> None:
        for path, value in changes:
            self._say(Rejected(self._run.step, path, value, why))

    def _start(self, run: Run) -> None:
        """Switch to `run`, which has a fresh scene."""
        self._switch(run)
        self._film()
        self._warn_of_fallback()
        for note in (self.state.scene.note, self.prior.engine_note):
            if note:
                self._say(Noted(0, note))

    def _warn_of_fallback(self) -> None:
        """Say once why the scene is drawn more slowly than it could be, if it is."""
        before, self._fallback = self._fallback, self._run.begun.scene.fallback(self.device)
        if self._fallback and not before:
            self._say(Noted(self._run.step, self._fallback))

    def _switch(self, run: Run, event: Event | None = None) -> None:
        """Switch to `run`, which has another scene, and report `event`."""
        frame = frame_of(run, self.in_detail)  # before anything changes: it may fail
        self._run = run
        self.tape.add(run.stretch, run.step, self.state.scene.params)
        self._watching.forget()
        if event is not None:
            self._say(event)
        self._publish(frame)

    # ---- steps -------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Take one step, or one warm-up step of the active loss's auxiliary. A failure rolls back the patch before it,
        or is reported as Failed when there is none."""
        inputs = self._run.inputs()
        started = time.perf_counter()
        try:
            with self.turn:
                if needs_warm_up(*inputs[:2]):
                    warm_up(*inputs)
                    report = None
                else:
                    report = step(*inputs)
        except Halted as e:
            self._halted(e)
            return
        except (Exception, SystemExit) as e:  # a library that exits would end the thread, and with it the run
            self._recover(e)
            return
        if self._run.undo is not None:
            self._run = dataclasses.replace(self._run, undo=None)
        self.timeline.go_on()
        try:
            self._run.stretch.move(self._run.step, self.state.scene.params)
            if report is None:
                self._show_warm_up()
            else:
                self._after(report, time.perf_counter() - started)
        except Exception as e:
            if self._until is not None:
                raise
            self._fail(e)  # such as a frame that cannot be made: a page's thread must not end silently

    def _show_warm_up(self) -> None:
        """Report the progress of a warm-up, and its end."""
        s = self.effective
        if not needs_warm_up(self.state, s):
            self._settle()
        elif time.monotonic() - self._warm_up_shown >= PUBLISH_EVERY:
            self._warm_up_shown = time.monotonic()
            self._set_status("running", f"{s.loss.title}: {self._warm_up_progress()}")

    def _warm_up_progress(self) -> str:
        """Return the progress of the active loss's auxiliary, "" unless its warm-up has begun and is not over."""
        s = self.effective
        aux = self.state.aux.get(s.loss.aux_name())
        if aux is None or not 0 < aux.fitted < s.loss.warm_up_steps():
            return ""
        return f"its own network warms up, {aux.fitted} of {s.loss.warm_up_steps()} steps"

    def _after(self, report: Report, seconds: float) -> None:
        """Publish and report a step that was taken; add to the timeline what is due."""
        state = self.state
        self._run.trace.add(report, self.effective, seconds)
        pause = self._due_to_pause()
        if pause:
            self.running = False
        published = time.perf_counter()
        if pause or time.monotonic() - self._published_at >= PUBLISH_EVERY:
            self._publish()
        published = time.perf_counter() - published
        if pause or self.device.type == "cpu" or state.step % SYNC_EVERY == 0:
            self._tell_step(report, 1e3 * published)
        for listener in self._step_listeners:
            listener(state.step)
        if self.timeline.moment_due(state.step):
            self.timeline.keep(self.moment())
        self._film()
        if pause:
            self._set_status("paused", pause)

    def _tell_step(self, report: Report, ms_publish: float) -> None:
        """Report the step just taken, after those before it that were skipped."""
        state = self.state
        stats = stats_of(self._run, report, self.in_detail)
        for number, what in state.skips:
            self._say(Skipped(number, what))
        state.skips.clear()
        self._say(Stepped.of(state.step, **stats, ms_publish=ms_publish))
        self._told = state.step

    def _tell_last_step(self) -> None:
        """Report the last step of `run`, unless that was done: on a GPU it may be one of many."""
        report = self._run.trace.report
        if report is not None and self._told != self.state.step:
            self._tell_step(report, 0.0)

    def _due_to_pause(self) -> str:
        """Return why the session pauses after the step just taken, or ""."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.steps_left = None
                return self._paused
        return self._paused if self._is_at_end else ""

    @property
    def _is_at_end(self) -> bool:
        return self._run.step == self.settings.planned_end and self._until is None

    @property
    def _paused(self) -> str:
        """What the status line of a paused run says."""
        if self._is_at_end:
            return f"finished the planned {self.settings.steps} steps; press Start to continue"
        return f"paused at step {self._run.step}"

    def _halted(self, why: Halted) -> None:
        """Undo the patch before a step that was halted; without one, pause and say why."""
        if self._run.undo is not None:
            self._recover(why)
            return
        self._run.stretch.remark(f"step {self._run.step + 1} was halted")
        self.running, self.steps_left = False, None
        self._say(Noted(self._run.step, str(why)))
        self._settle()

    def _recover(self, error: BaseException) -> None:
        """Undo the patch before a step that raised; without one, stop and say why. The state is kept either way."""
        run, undo = self._run, self._run.undo
        if undo is None:
            run.stretch.remark(f"step {run.step + 1} failed")
            self._fail(error)
            return
        if run.prior is not undo.prior:  # an auxiliary may build on the weights of its prior
            run = dataclasses.replace(run, state=dataclasses.replace(self.state, aux={}, aux_keys={}))
        run = dataclasses.replace(run, prior=undo.prior, bank=undo.bank, undo=None)
        try:
            self._run = self._builder.put_back(run, undo.moment)
        except Exception as e:
            self._run = run
            self._fail(e)
            return
        self.timeline.forget(undo.noted)
        self._unnote(run, undo.moment)
        self._reject(undo.changes, f"rolled back, its first step failed: {reason(error)}")
        self._settle()

    def _unnote(self, failed: Run, moment: Moment) -> None:
        """Record that the changes since `moment`, which `failed` had, were rolled back."""
        stretch, place = self._run.stretch, moment.place
        if place is not None and place.stretch is stretch:
            stretch.undo(place.changes)
        else:
            stretch.note(failed.settings.differences(moment.settings))

    def _compare_on(self) -> None:
        """Compare one more loss, between two steps, if a comparison is under way."""
        try:
            self._watching.compare_on()
        except Exception as e:
            self._say(Rejected(self._run.step, "compare", "", f"the losses could not be compared: {reason(e)}"))

    # ---- what others see ---------------------------------------------------------------------------------

    @property
    def _failure(self) -> str:
        """Why the run has failed, or ""."""
        return f"failed because {reason(self._error)}" if self._error is not None else ""

    def _fail(self, error: BaseException) -> None:
        """Stop stepping and say why."""
        self.running, self._error = False, error
        self._say(Failed(self._run.step, reason(error)))
        self._set_status("failed", self._failure)

    def _settle(self) -> None:
        """Restore the status line after a command that set its own."""
        if self._run.state is None:
            self._set_status("failed", self._failure)
        elif self.stepping:
            self._set_status("running", "running")
        elif progress := self._warm_up_progress():
            self._set_status("paused", f"paused at step {self._run.step}, {progress}")
        elif self._run.step == 0:
            self._set_status("ready", "ready: press Start")
        else:
            self._set_status("paused", self._paused)

    def _say(self, event: Event) -> None:
        self.events.append(event)
        for listener in self._listeners:
            listener(event)

    def _set_status(self, phase: Phase, text: str) -> None:
        self.status = Status(self._run.step, phase, text)
        self._say(self.status)

    def _publish(self, frame: Frame | None = None) -> None:
        """Publish `frame`, or one of the current state."""
        frame = frame or frame_of(self._run, self.in_detail)
        self._published_at = time.monotonic()
        self.latest.set(frame)
        for looking in (self._watching, self.rendering):
            looking.look(self._run, now=not self.stepping)  # while paused, no later frame makes up for it
        if self.in_detail:
            self._watching.go_around(self._run, now=not self.stepping)

    def _render(self) -> None:
        """Answer somebody who wants to see the scene rendered."""
        self.rendering.answer(self._run, self.stepping)

    def _film(self) -> None:
        """Add the current state to the timeline's film, if a shot is due. Images of a flat scene may cost a decoder
        pass: only published ones are used."""
        state, frame = self.state, self.latest.get()
        if not self.timeline.shot_due(state.step):
            return
        if frame is not None and frame.step == state.step:
            self.timeline.show(state.step, frame.preview if frame.scene is None else frame.scene)
        elif (snapshot := state.scene.snapshot()) is not None:
            self.timeline.show(state.step, snapshot)


def _resolve(answer: Future[T], question: Callable[[], T]) -> None:
    try:
        answer.set_result(question())
    except Exception as e:
        answer.set_exception(e)


def _as_read(path: str, value: str, prompt: str) -> str:
    """Return the text that the prior reads for the wording `value` at `path`."""
    if path in ("prompt.target", "prompt.source"):
        return value.replace(PROMPT, prompt)
    return f"{prompt}, {value}" if path == "prompt.negative" and value else value
