"""The loop of a session: the thread that calls `run` owns every tensor, carries out commands between two steps, and
takes the steps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import torch

from sdlab.channel import Account, EventLog, Halted, Latest, Turn, Turnstile
from sdlab.errors import reason
from sdlab.live.building import Builder, LoadPrior, load_prior
from sdlab.live.checkpoint import Saved
from sdlab.live.copies import Fork
from sdlab.live.current import Current
from sdlab.live.inbox import Inbox
from sdlab.live.messages import (
    Advance,
    Burst,
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
    Status,
    Stop,
    Went,
)
from sdlab.live.patches import applied
from sdlab.live.showing import Look, Show, paused, usual_status, warm_up_progress
from sdlab.live.state import Admit, Run, anything, moment_of
from sdlab.live.tape import Changes
from sdlab.live.timeline import MOMENT_BYTES, Timeline
from sdlab.settings import Settings
from sdlab.step import Report, State, needs_warm_up, step, warm_up
from sdlab.types import Frame

PUBLISH_EVERY = 0.1  # seconds; a viewer cannot use more, and each frame costs a copy to the host
SYNC_EVERY = 10  # steps between reading statistics back from a GPU, and thus between events `Stepped`


class Loop:
    """A run that follows the commands in its inbox. Its public members are described at `sdlab.live.session.Session`,
    which adds what other threads ask of it."""

    go = "press Start"

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
        self.turn = turn or Turnstile().turn(Account())
        self.status = Status(0, "loading", "not started yet")
        self.running = False
        self.on_hold = False  # takes no steps, although it may be `running`
        self.steps_left: int | None = None  # until the pause that an Advance asked for
        self._inbox = Inbox()
        self._show = Show(self.turn, lambda: not self.stepping, self._have_looked)
        self.latest: Latest[Frame] = self._show.latest
        self.events: EventLog[Event] = self._show.events
        self.rendering = self._show.rendering
        self._watching = self._show.watching
        self.lens, self.comparison = self._watching.lens, self._watching.comparison
        self.around = self._watching.around  # up to date while `in_detail`
        self._builder = Builder(self.device, load, self._set_status, history)
        self._current = Current(settings, self._builder, self._show)
        self.tape = self._current.tape
        self._admit = admit
        self._origin = origin
        self._held: list[Command] = []  # until `origin` is known
        self._planned: dict[int, list[Command]] = {}
        self._stopped = False
        self._until: int | None = None  # of the current run()
        self._error: BaseException | None = None  # the failure that stopped the run; None once it runs again
        self._warm_up_shown = 0.0

    # ---- what it works on --------------------------------------------------------------------------------

    @property
    def _run(self) -> Run:
        return self._current.run

    @property
    def in_detail(self) -> bool:
        """Whether statistics include those of a step's predictions; set while a page shows them."""
        return self._show.in_detail

    @in_detail.setter
    def in_detail(self, on: bool) -> None:
        self._show.in_detail = on

    @property
    def settings(self) -> Settings:
        """The settings as requested, including knobs that wait for a reset."""
        return self._run.settings

    @property
    def effective(self) -> Settings:
        """The settings that steps follow: as requested, except for knobs that wait for a reset."""
        return self._run.effective

    @property
    def timeline(self) -> Timeline:
        """The history of the run."""
        return self._run.timeline

    @property
    def stepping(self) -> bool:
        """Whether the run takes steps as soon as it has a state."""
        return self.running and not self.on_hold

    @property
    def state(self) -> State:
        """The current state; RuntimeError before `run` has built it."""
        return self._run.built

    # ---- the loop ----------------------------------------------------------------------------------------

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
        self._inbox.open()
        try:
            try:
                self.prepare()
            except Exception as e:
                if until is not None:
                    raise
                self._fail(e)
            self._run_on()
            if self._run.state is not None:
                self._show.publish(self._run, last=until is not None)  # a page that closes looks no more
                self._show.tell_last_step(self._run)
            self._say(Ended(self._run.step))
            self._set_status("ended", "ended")
        except BaseException as e:
            if until is None:
                self._fail(e)  # the thread ends, and its page says why
            raise
        finally:
            self._watching.stop_drawing()
            self._inbox.close()

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
        self._current.prepare()
        self._settle()

    def do(self, command: Command) -> None:
        """Carry out `command` now. If it fails, report Rejected; the run continues as before."""
        try:
            self._obey(command)
        except (Exception, SystemExit) as e:  # whatever it is, the run continues
            target = str(getattr(command, "step", ""))
            self._say(Rejected(self._run.step, type(command).__name__.lower(), target, reason(e)))
            if self._run.state is None and isinstance(command, (Resume, Advance, Burst, Reset)):
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

    def _serve(self) -> None:
        """Carry out all waiting commands; wait for one when there is nothing else to do."""
        while True:
            waits = not self.stepping or self._run.state is None
            given_up = self._error is not None and self._until is not None
            idle = waits and not (self._stopped or given_up or self._watching.comparing)
            asked = self._inbox.next(wait=idle)
            if asked is None:
                return
            if callable(asked):
                asked()
            elif self._origin is not None and not isinstance(asked, Stop):
                self._held.append(asked)
                if self._origin.done() and isinstance(asked, (Resume, Advance, Burst)):
                    self._begin()  # a second try after a failure
            else:
                self.do(asked)

    def _begin(self) -> None:
        """Continue from `origin`, now that it is known."""
        if self._origin is None or self._stopped or self._inbox.closed:
            return
        try:
            fork = self._origin.result()
            self._current.take_over(fork)
        except Exception as e:
            if self._until is not None:
                raise
            self._fail(e)
            return
        self._current.warn_of_fallback()
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
                self._current.reset()
                self._settle()
            case Goto(number):
                self._current.go_to(number)
                self.running, self.steps_left = False, None
                self._settle()
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

    def _adopt(self, new: Settings, changes: Changes, on_tape: bool = True) -> None:
        """Adopt the settings `new`, which differ by `changes`; the run before is restored if the next step fails. The
        tape takes changes of knobs alone."""
        before = self.settings
        try:
            waiting = self._current.adopt(new, changes, on_tape)
        except Exception as e:
            self._reject(changes, str(e))
            self._settle()
            return
        replanned = {path for path, _ in before.differences(new)} & {"steps", "schedule.start"}
        if replanned and self.running and self._until is None and self._run.step >= new.planned_end:
            self.running = False  # the plan is over already
            self._publish()
        self._settle()
        for path, value in changes:
            self._say(applied(self._run, path, value, waiting))

    def _reject(self, changes: Iterable[tuple[str, Any]], why: str) -> None:
        for path, value in changes:
            self._say(Rejected(self._run.step, path, value, why))

    def _continue_from(self, saved: Saved) -> None:
        try:
            run, moment = self._current.restored(saved, "the checkpoint", self._admit)
        finally:
            self._settle()
        self.running, self.steps_left, self._error = False, None, None
        self._current.load(run, moment, Went(moment.step))
        self._settle()

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
        self._current.confirm()
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
            self._set_status("running", f"{s.loss.title}: {warm_up_progress(self._run)}")

    def _after(self, report: Report, seconds: float) -> None:
        """Publish and report a step that was taken; add to the timeline what is due."""
        state = self.state
        self._run.trace.add(report, self.effective, seconds)
        pause = self._due_to_pause()
        if pause:
            self.running = False
        published = time.perf_counter()
        if pause or self._show.age >= PUBLISH_EVERY:
            self._publish()
        published = time.perf_counter() - published
        if pause or self.device.type == "cpu" or state.step % SYNC_EVERY == 0:
            self._show.tell_step(self._run, report, 1e3 * published)
        self._counted()
        if pause:
            self._set_status("paused", pause)

    def _counted(self) -> None:
        """Tell that the number of steps has grown; add to the timeline what is due."""
        number, timeline = self._run.step, self.timeline
        self._show.count(number)
        if timeline.moment_due(number):
            timeline.keep(moment_of(self._run))
        self._show.film(self._run)

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
        return paused(self._run, self._is_at_end, self.go)

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
        if self._run.undo is None:
            self._run.stretch.remark(f"step {self._run.step + 1} failed")
            self._fail(error)
            return
        try:
            changes = self._current.undo()
        except Exception as e:
            self._fail(e)
            return
        self._reject(changes, f"rolled back, its first step failed: {reason(error)}")
        self._settle()

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
        else:
            self._set_status(*usual_status(self._run, self.stepping, self._is_at_end, self.go))

    def _say(self, event: Event) -> None:
        self._show.say(event)

    def _set_status(self, phase: Phase, text: str) -> None:
        self.status = Status(self._run.step, phase, text)
        self._say(self.status)

    def _publish(self) -> None:
        self._show.publish(self._run)

    def _have_looked(self, look: Look) -> None:
        """Have the owner call `look` with the run."""
        self._inbox.put(lambda: look(self._run))
