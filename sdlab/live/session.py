"""A live optimisation: commands in, frames and events out.

One thread, the one that calls `run`, owns every tensor. Everybody else sends commands (never blocking) and reads
`latest`, `events` and `status`. A patch is a transaction: if the first step after it raises, the run goes back to
the state and settings before it and says why.

A run is never lost: `timeline` keeps moments of it to jump back to, and `branch` lets another session go on from where
this one is.
"""

from __future__ import annotations

import copy
import dataclasses
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdlab.cameras import turntable
from sdlab.channel import EventLog, Latest, Turnstile
from sdlab.export.writers import Material, material_of, write_results
from sdlab.lens import (
    Comparison,
    LensPictures,
    asked_again,
    comparison_steps,
    figures_of,
    probe,
    sizes_of,
    views_of_step,
)
from sdlab.live import checkpoint
from sdlab.live.frames import flat_frame
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
    Patch,
    Pause,
    Phase,
    Rejected,
    Reset,
    Resume,
    Skipped,
    Status,
    Stepped,
    Stop,
    Went,
)
from sdlab.live.moments import Moment, held
from sdlab.live.timeline import Timeline
from sdlab.losses import Distillation
from sdlab.optim import SceneOptimiser
from sdlab.pictures import to_uint8
from sdlab.priors import PriorConfig
from sdlab.prompts import PROMPT, PromptBank, PromptSettings, views_of
from sdlab.rng import StepRng
from sdlab.scenes import AnyScene, FlatScene, SceneConfig
from sdlab.schedule import weight
from sdlab.settings import Settings, from_toml, to_toml
from sdlab.step import BUILD_STEP, STAGES, Reference, Report, State, needs_warm_up, step, warm_up
from sdlab.types import PERP_ROLES, Cond, Frame, Prior

PUBLISH_EVERY = 0.1  # seconds; a viewer cannot use more, and each frame costs a copy to the host
LENS_EVERY = 0.3  # seconds
LENS_SHARE = 20.0  # times what a look takes must pass before the next one
RATE_SHARE = 0.05  # of the last step in the steps a second that are said
SYNC_EVERY = 10  # steps between reading figures back from a GPU

T = TypeVar("T")
LoadPrior = Callable[[PriorConfig, torch.device, Callable[[str], None]], Prior]


def load_prior(config: PriorConfig, device: torch.device, progress: Callable[[str], None]) -> Prior:
    """Load without sharing; a manager passes a pool instead."""
    return config.load(device, progress)


def compile_for(s: Settings, prior: Prior, device: torch.device) -> None:
    """Compile what the first step under `s` would otherwise have to: the rasteriser, the network at its batch size."""
    s.scene.prepare(device)
    prior.prepare(batches_of(s))


def batches_of(s: Settings) -> set[int]:
    """How many pictures at a time the prior's network will see; it is compiled for each such number."""
    perp = {1 + len(PERP_ROLES)} if s.perp_neg else set()
    return {s.scene.batch(s.camera) * roles for roles in perp.union(s.loss.calls())}


@dataclass
class _Undo:
    """What to go back to when the first step after a patch fails."""

    moment: Moment
    prior: Prior
    bank: PromptBank
    noted: int  # number of the timeline's first entry that would no longer be true
    changes: list[tuple[str, Any]]


@dataclass(frozen=True)
class Fork:
    """Where a run is, for another session to go on from."""

    moment: Moment
    timeline: Timeline
    running: bool
    steps_left: int | None  # of an Advance
    undo: _Undo | None  # of a patch that has not had its first step


class Session:
    """See the head of the file. `turnstile` is shared by the sessions of one device. With `origin`, what `branch` of
    another session gave, the run goes on from there as soon as that is known; commands wait until then."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device | str = "cpu",
        load: LoadPrior = load_prior,
        turnstile: Turnstile | None = None,
        origin: Future[Fork] | None = None,
    ) -> None:
        self.settings = settings  # as asked for; knobs that wait for a reset included
        self.effective = settings  # what steps follow: as asked for, but for knobs that wait for a reset
        self.device = torch.device(device)
        self.latest: Latest[Frame] = Latest()
        self.events: EventLog[Event] = EventLog()
        self.status = Status(0, "loading", "not started yet")
        self.timeline = Timeline()
        self.lens: Latest[LensPictures] = Latest()
        self.comparison: Latest[Comparison] = Latest()
        self.in_detail = False  # whether figures hold what a step's predictions say; somebody looks at them
        self.running = False
        self.steps_left: int | None = None  # until the pause that an Advance asked for
        self._lens_row: int | None = None  # the view that the lens shows, None while nobody looks
        self._probed: int | None = None  # the timestep that the lens asks about, None for that of each step
        self._lens_due = 0.0
        self._comparing: Iterator[Comparison] | None = None
        self._load = load
        self._turnstile = turnstile or Turnstile()
        self._origin = origin
        self._held: list[Command] = []  # until it is known where the run goes on from
        self._inbox: queue.SimpleQueue[Command | Callable[[], None]] = queue.SimpleQueue()
        self._listeners: list[Callable[[Event], None]] = []
        self._planned: dict[int, list[Command]] = {}
        self._begun = settings  # as of the last reset
        self._state: State | None = None
        self._prior: Prior | None = None
        self._bank: PromptBank | None = None
        self._undo: _Undo | None = None
        self._stopped = False
        self._over = False  # no longer answering
        self._until: int | None = None  # of the present run()
        self._report: Report | None = None  # of the last step
        self._reported = settings  # which that step followed
        self._published_at = 0.0
        self._warm_up_shown = 0.0
        self._pace = 0.0  # seconds for a step, smoothed
        self._timed = 0  # steps that it was made of
        self._failure = ""  # why there is no state yet
        self._error: Exception | None = None  # why it does not run; None once it is told to run on

    # ---- for any thread ----------------------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """Hand over a command; never blocks."""
        self._inbox.put(command)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event, in the owner thread; before `run`."""
        self._listeners.append(listener)

    def plan(self, number: int, command: Command) -> None:
        """Carry out `command` when `number` steps are done, before the next one; before `run`."""
        self._planned.setdefault(number, []).append(command)

    def branch(self) -> Future[Fork]:
        """Ask for the exact state of this run, for the `origin` of another session; never blocks, and costs this one a
        copy of its state between two steps. RuntimeError, now or as the answer, when there is none."""
        if self._state is None and self._failure:
            raise RuntimeError(f"there is nothing to branch off: {self._failure}")
        return self._ask(self._forked)

    def material(self) -> Future[Material]:
        """Ask for a copy of what the run has made so far, to make files of; never blocks. RuntimeError as the answer
        when there is nothing."""
        return self._ask(self._exportable)

    def _ask(self, question: Callable[[], T]) -> Future[T]:
        """Have the owner answer between two steps; at once where it no longer serves its inbox."""
        answer: Future[T] = Future()
        self._inbox.put(lambda: _settle_with(answer, question))
        if self._over:
            self._answer_rest()
        return answer

    def watch_lens(self, on: bool, row: int = 0, t: int | None = None) -> None:
        """Keep `lens` up to date with view `row` of what the loss sees, at the timestep of each step or at `t`, or no
        longer; never blocks."""
        self._inbox.put(lambda: self._watch(row if on else None, t if on else None))

    # ---- for the owner -----------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The present state; RuntimeError before `run` has built it."""
        if self._state is None:
            raise RuntimeError("the session has no state yet: it is built when run() starts")
        return self._state

    @property
    def prior(self) -> Prior:
        """The loaded prior; RuntimeError before `run` has loaded it."""
        if self._prior is None:
            raise RuntimeError("the session has no prior yet: it is loaded when run() starts")
        return self._prior

    @property
    def bank(self) -> PromptBank:
        """The embedded prompts; RuntimeError before `run` has loaded the prior."""
        if self._bank is None:
            raise RuntimeError("the session has no prompts yet: its prior is loaded when run() starts")
        return self._bank

    @property
    def report(self) -> Report | None:
        """What the last step did; None before the first step on this scene."""
        return self._report

    @property
    def watched(self) -> tuple[int | None, int | None]:
        """The view that the lens shows (None: nobody looks) and the timestep it asks about (None: each step's own)."""
        return self._lens_row, self._probed

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
            if self._state is not None:
                self._publish()
            self._say(Ended(self._step_number))
            self._set_status("ended", "ended")
        finally:
            self._over = True
            self._answer_rest()

    def _run_on(self) -> None:
        """Serve commands and take steps until the end of `run`."""
        until = self._until
        while not self._stopped:
            self._serve()
            if self._stopped or (until is not None and self._step_number >= until):
                return
            if self._error is not None and until is not None:
                raise RuntimeError(f"stopped at step {self._step_number}: {_reason(self._error)}") from self._error
            if self.running and self._state is not None:
                for command in self._planned.pop(self._state.step, ()):
                    self.do(command)
                self.advance()
            self._compare_on()

    def prepare(self) -> None:
        """Load the prior, compile what must be compiled, build the scene; or wait for `origin`. Does nothing when
        already done."""
        if self._origin is not None:
            self._set_status("loading", "waiting for the run that this one branches off")
            self._origin.add_done_callback(lambda _: self._inbox.put(self._begin))
            return
        if self._prior is None or self._bank is None:
            self._adopt_prior(self.settings)
        if self._state is None:
            self._start_over("started")
        self._settle()

    def do(self, command: Command) -> None:
        """Carry out `command` now. A command that fails is reported as Rejected, and the run goes on as before."""
        try:
            self._obey(command)
        except Exception as e:  # whatever it is, the run goes on
            target = str(getattr(command, "step", ""))
            self._say(Rejected(self._step_number, type(command).__name__.lower(), target, _reason(e)))
            if self._state is None and isinstance(command, (Resume, Advance, Reset)):
                self._fail(e)  # of the others it says why there is still nothing
            else:
                self._settle()

    def moment(self) -> Moment:
        """The present, in full."""
        newest = self.timeline.newest
        parts = held({**self._parts(), "session": self._counts()}, newest.parts if newest is not None else None)
        return Moment(self.state.step, self.settings, self._begun, parts)

    def fork(self) -> Fork:
        """The present, and how it came about."""
        moment, undo = self.moment(), self._undo
        if undo is not None:  # a bank of prompts is of one thread
            undo = dataclasses.replace(undo, bank=PromptBank(undo.prior), changes=list(undo.changes))
        return Fork(moment, self.timeline.branched(moment), self.running, self.steps_left, undo)

    def pinned(self) -> Settings:
        """The settings that steps follow, with the commit of a prior from the Hub: whoever goes on with them gets the
        same weights."""
        commit = self._prior.commit if self._prior is not None else ""
        return self.effective.patch("prior.revision", commit) if commit else self.effective

    def save(self, folder: Path) -> Path:
        """Write a checkpoint of the present state into `folder`."""
        parts = self.moment().parts
        return checkpoint.save(folder, self.state.step, parts, {"settings.toml": to_toml(self.pinned())})

    def export(self, folder: Path, size: int = 256) -> list[Path]:
        """Write what the run has made into `folder`, a turntable with pictures of `size` pixels; the files written."""
        scene = self.state.scene
        if isinstance(scene, FlatScene):
            return scene.write(folder, self.prior, self._prompt_cond())
        return write_results(folder, scene, self.effective.camera, size)

    def restore(self, folder: Path) -> None:
        """Take settings and state from the newest checkpoint in `folder`. ValueError when it cannot be used; the
        session is then as before."""
        number, parts, texts = checkpoint.load(folder)
        if "settings.toml" not in texts:
            raise ValueError(f"checkpoint in {folder} has no settings.toml")
        settings = from_toml(texts["settings.toml"], f"settings of the checkpoint in {folder}")
        moment = Moment(number, settings, settings, parts)
        try:
            self._take_up(moment)
        except Exception as e:
            raise ValueError(f"the checkpoint in {folder} does not fit: {_reason(e)}") from e
        self.timeline = Timeline()
        self.timeline.note(number, "load", f"loaded a checkpoint of step {number}")
        self.timeline.keep(moment)
        self._publish()
        self._film()

    def _take_up(self, moment: Moment) -> None:
        """Go on from `moment`, of this run or another. Whatever is raised, the session is then as before."""
        before = (self._prior, self._bank, self._state, self._undo, self._report, self._pace, self._timed)
        wanted, begun = self.settings, self._begun
        try:
            self._use(moment.settings, moment.begun)
            if self._prior is None or moment.settings.prior != wanted.prior:
                self._adopt_prior(moment.settings)
            self._build(moment.begun.scene.bare())
            self._put_back(moment)
        except Exception:
            self._use(wanted, begun)
            self._prior, self._bank, self._state, self._undo, self._report, self._pace, self._timed = before
            raise

    def _put_back(self, moment: Moment) -> None:
        """Settings and state as in `moment`; the state that there is must be of the same kind of scene."""
        self._use(moment.settings, moment.begun)
        self.state.scene.adopt(moment.settings.scene)
        self._restore_parts(moment.parts)
        self.state.step = moment.step
        for name, value in moment.parts["session"].items():
            if name not in self._counts():
                raise ValueError(f"unknown count {name!r}")
            setattr(self.state, name, value)

    def _use(self, settings: Settings, begun: Settings | None = None) -> None:
        """Make `settings` the present ones (and `begun` those as of the last reset)."""
        self.settings = settings
        self._begun = self._begun if begun is None else begun
        self.effective = with_begun(self.settings, self._begun)

    # ---- commands ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Carry out all waiting commands; while not running, wait for one."""
        while True:
            waits = not self.running or self._state is None
            given_up = self._error is not None and self._until is not None
            idle = waits and not (self._stopped or given_up or self._comparing)
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

    def _forked(self) -> Fork:
        """Where the run is, for one who wants to branch off."""
        if self._over:
            raise RuntimeError("there is nothing to branch off: the run has ended")
        if self._state is None:
            raise RuntimeError(f"there is nothing to branch off: {self._failure or self.status.text}")
        return self.fork()

    def _exportable(self) -> Material:
        """What can be exported now; also of a run that has ended."""
        if self._state is None:
            raise RuntimeError(f"there is nothing to export: {self._failure or self.status.text}")
        frame, state = self.latest.get(), self._state
        pictures = frame.preview if frame is not None else None
        return material_of(state.scene, self.effective, state.step, self.timeline.film(), pictures)

    def _answer_rest(self) -> None:
        """Turn down whoever asked too late; nobody serves the inbox any more."""
        while not self._inbox.empty():
            try:
                asked = self._inbox.get_nowait()
            except queue.Empty:
                return
            if callable(asked):
                asked()

    def _begin(self) -> None:
        """Go on from where another run was, now that it has said where that is."""
        if self._origin is None or self._stopped or self._over:
            return
        try:
            fork = self._origin.result()
            self._take_up(fork.moment)
        except Exception as e:
            if self._until is not None:
                raise
            self._fail(e)
            return
        held_back, self._origin, self._held = self._held, None, []
        self.running, self.steps_left = fork.running, fork.steps_left
        self.timeline, self._undo = fork.timeline, fork.undo
        self._say(Branched(fork.moment.step))
        self._publish()
        self._settle()
        for command in held_back:
            self.do(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Patch(changes):
                self._patch(changes)
            case Pause():
                self.running = False
                self.steps_left = None
                if self._state is not None:
                    self._publish()
                self._settle()
            case Resume() | Advance():
                if self._state is None:
                    self.prepare()  # a second try after a failure
                self.steps_left = (self.steps_left or 0) + command.n if isinstance(command, Advance) else None
                self.running, self._error = True, None
                self._settle()
            case Reset():
                begun = self._begun
                self._use(self.settings, self.settings)
                try:
                    if self._prior is None:
                        self._adopt_prior(self.settings)
                    self._start_over("reset")
                except Exception:
                    self._use(self.settings, begun)  # the run that there is goes on as it began
                    raise
                self._settle()
            case Goto(number):
                self._go_to(number)
            case Compare():
                self._comparing = self._comparison()
            case Stop():
                self._stopped = True

    def _go_to(self, number: int) -> None:
        """Jump on the timeline and pause; it is the next step or change that cuts off what came after."""
        state, timeline = self.state, self.timeline
        if all(kept < state.step for kept in timeline.steps()):
            timeline.keep(self.moment())  # a way back to where the run is now
        moment = timeline.at(number)
        self._set_status("loading", f"going to step {moment.step}")
        present = state.step
        try:
            self._take_up(moment)
        except Exception as e:
            raise RuntimeError(f"the run cannot go back to step {moment.step}: {_reason(e)}") from e
        timeline.rewind(moment, present)
        self.running, self.steps_left = False, None
        self._say(Went(moment.step))
        self._publish()
        self._settle()

    def _patch(self, changes: Iterable[tuple[str, Any]]) -> None:
        """Validate, keep a way back, adopt."""
        changes = list(changes)
        try:
            new = self.settings.patch_all(changes)
        except ValueError as e:
            for path, value in changes:
                self._say(Rejected(self._step_number, path, value, str(e)))
            return
        old, prior, bank = self.settings, self._prior, self._bank
        state, begun, timeline, undo = self._state, self._begun, self.timeline, self._undo
        moment = self.moment() if self._undo is None and state is not None else None
        made = (dict(state.aux), dict(state.aux_keys), state.reference) if state is not None else None
        try:
            waiting = self._adopt(old, new)
        except Exception as e:
            self._use(old, begun)
            self._prior, self._bank = prior, bank
            self.timeline, self._undo = timeline, undo
            if state is not None and made is not None:
                self._state, (state.aux, state.aux_keys, state.reference) = state, made
                self._adopt_aux(self.effective)
            for path, value in changes:
                self._say(Rejected(self._step_number, path, value, str(e)))
            self._settle()
            return
        self.timeline.go_on()
        if self._undo is None and self._state is not None and prior is not None and bank is not None:
            if moment is None or self._state is not state:  # built anew, which needs no way back
                moment = dataclasses.replace(self.moment(), settings=old)
            self.timeline.keep(moment)
            self._undo = _Undo(moment, prior, bank, self.timeline.number, [])
        if self._undo is not None:
            self._undo.changes += changes
        for path, value in changes:
            note = "from the next reset on" if path in waiting else ""
            if path.startswith("prompt.") and isinstance(value, str) and self._prior is not None:
                note = self._prior.remark(as_read(path, value, new.prompt.text))
            text = f"{path} = {value}, {note}" if path in waiting else f"{path} = {value}"
            self.timeline.note(self._step_number, "change", text, path, value)
            self._say(Applied(self._step_number, path, value, note))

    def _adopt(self, old: Settings, new: Settings) -> set[str]:
        """Bring the session from `old` to `new`: one table, and nothing else decides. Returns the paths of knobs
        that wait for a reset. What is not listed is read at the next step."""
        changed = dict(old.differences(new))
        knobs = new.knobs()
        restart = {path for path in changed if knobs[path].apply == "restart"}
        self._use(new)
        if new.prior != old.prior:  # swap the teacher; the prompt bank and the auxiliaries belong to it
            self._adopt_prior(new)
            if self._state is not None:
                self._state.aux.clear()
                self._state.aux_keys.clear()
            if self._state is None:
                self._start_over("started")
        elif self._prior is not None and batches_of(old) != batches_of(new):
            self._compile(new)
        if self._state is None:
            self._use(new, new)
            return set()
        if restart and self._state.step == 0:  # nothing to lose yet
            self._use(new, new)
            self._start_over("started")
            restart = set()
        self._adopt_aux(self.effective)
        self._adopt_reference(self.effective.loss, old.prompt)
        self._state.scene.adopt(new.scene)
        replanned = changed.keys() & {"steps", "schedule.start"}
        if replanned and self.running and self._until is None and self._state.step >= new.planned_end:
            self.running = False  # the plan is over already
            self._publish()
        self._settle()
        return restart

    def _adopt_prior(self, s: Settings) -> None:
        self._set_status("loading", "loading the prior")
        prior = self._load(s.prior, self.device, self._loading)
        scene = self._state.scene if self._state is not None else None
        if isinstance(scene, FlatScene) and tuple(scene.shape) != tuple(prior.shape):
            raise ValueError(
                f"this run's {self.effective.scene.kind} are of shape {scene.shape}, the prior {prior.name} looks at "
                f"{prior.shape}: start a new run with it (prior.path)"
            )
        previous = self._prior, self._bank
        self._prior, self._bank = prior, PromptBank(prior)
        self._comparing = None
        try:
            self._compile(s)
        except Exception:
            self._prior, self._bank = previous
            raise

    def _compile(self, s: Settings) -> None:
        self._set_status("compiling", "compiling the prior's network and the rasteriser for this machine")
        compile_for(s, self.prior, self.device)

    def _build(self, config: SceneConfig | None = None) -> None:
        """A fresh scene (of `config`, else of the settings) and optimiser from the settings as of the last reset."""
        s = self._begun
        self._set_status("loading", "building the scene")
        rng = StepRng(s.seed, BUILD_STEP)
        scene = (config or s.scene).build(rng, self.device, self.prior, s.prompt.text, self._loading)
        before = self._state
        self._state = State(scene, SceneOptimiser(scene.params, s.optim))
        try:
            self._adopt_aux(self.effective)
            self._adopt_reference(self.effective.loss, self.effective.prompt)
        except Exception:
            self._state = before  # a state without the network that its loss needs could not step
            raise
        self._undo = None
        self._report = None
        self._pace, self._timed = 0.0, 0
        self._comparing = None
        self.lens.clear()  # what was seen closely was another scene
        self.comparison.clear()

    def _start_over(self, text: str) -> None:
        """A fresh scene and a new timeline; `text` says why."""
        self._build()
        self.timeline = Timeline()
        self.timeline.note(0, "start", text)
        self.timeline.keep(self.moment())
        self._publish()
        self._film()

    def _adopt_aux(self, s: Settings) -> None:
        """Give the loss in force its auxiliary model, built anew if it was made with other knobs, and park those of
        the other losses in the computer's memory."""
        self._need_aux(s.loss, s)
        for name, aux in self.state.aux.items():
            aux.to(self.device if name == s.loss.aux_name() else torch.device("cpu"))

    def _need_aux(self, loss: Distillation, s: Settings) -> None:
        """Build the auxiliary of `loss` unless there is one of these knobs already."""
        state, name, key = self.state, loss.aux_name(), loss.aux_key()
        if state.aux_keys.get(name) == key:
            return
        if loss.warm_up_steps():  # so much work that it may take seconds
            self._set_status("loading", f"{loss.title}: making its own network")
        aux = loss.init_aux(self.prior, StepRng(s.seed, BUILD_STEP))
        state.aux.pop(name, None)
        state.aux_keys[name] = key
        if aux is not None:
            state.aux[name] = aux

    def _adopt_reference(self, loss: Distillation, prompt: PromptSettings) -> None:
        """Freeze scene and prompt for a loss that compares with them, unless that was done with the same knobs."""
        state = self.state
        if loss.needs_reference and (state.reference is None or state.reference.key != loss.aux_key()):
            state.reference = Reference(copy.deepcopy(state.scene), prompt, loss.aux_key())

    # ---- stepping ----------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Take one step, or one warm-up step of the active loss's auxiliary. A failure rolls back the patch before it,
        or is reported as Failed when there is none."""
        assert self._bank is not None
        state, s = self.state, self.effective
        started = time.perf_counter()
        try:
            with self._turnstile:
                if needs_warm_up(state, s):
                    warm_up(state, s, self.prior, self._bank)
                    report = None
                else:
                    report = step(state, s, self.prior, self._bank)
        except Exception as e:
            self._recover(e)
            return
        self._undo = None
        self.timeline.go_on()
        try:
            if report is None:
                self._show_warm_up()
            else:
                self._after(report, time.perf_counter() - started)
        except Exception as e:
            if self._until is not None:
                raise
            self._fail(e)  # such as a picture that cannot be made: the thread of a page must not end without a word

    def _show_warm_up(self) -> None:
        """Say how far the auxiliary is; and that the run goes on when it is ready."""
        s = self.effective
        if not needs_warm_up(self.state, s):
            self._settle()
        elif time.monotonic() - self._warm_up_shown >= PUBLISH_EVERY:
            self._warm_up_shown = time.monotonic()
            self._set_status("running", f"{s.loss.title}: {self._learnt()}")

    def _learnt(self) -> str | None:
        """How far the auxiliary of the loss in force has come, while it has begun to warm up and is not done."""
        s = self.effective
        aux = self.state.aux.get(s.loss.aux_name())
        if aux is None or not 0 < aux.fitted < s.loss.warm_up_steps():
            return None
        return f"its own network warms up, {aux.fitted} of {s.loss.warm_up_steps()} steps"

    def _after(self, report: Report, seconds: float) -> None:
        state = self.state
        # the durations are averaged, not the rates: of these the mean is above steps / time where steps are uneven
        self._timed += 1
        self._pace += max(RATE_SHARE, 1 / self._timed) * (seconds - self._pace)
        self._report, self._reported = report, self.effective
        pause = self._due_to_pause()
        if pause:
            self.running = False
        published = time.perf_counter()
        if pause or time.monotonic() - self._published_at >= PUBLISH_EVERY:
            self._publish()
        published = time.perf_counter() - published
        if report.skipped:
            self._say(Skipped(state.step - 1, report.skipped))
        if self.device.type == "cpu" or state.step % SYNC_EVERY == 0:
            self._say(Stepped.of(state.step, **self._figures(report), ms_publish=1e3 * published))
        if self.timeline.moment_due(state.step):
            self.timeline.keep(self.moment())
        self._film()
        if pause:
            self._set_status("paused", pause)

    def _film(self) -> None:
        """Add what there is to see to the timeline's film, where it is due. Pictures of the prior's space may cost a
        decoder's run: of these it takes what is published."""
        state, frame = self.state, self.latest.get()
        if not self.timeline.shot_due(state.step):
            return
        if frame is not None and frame.step == state.step:
            self.timeline.show(state.step, frame.preview if frame.scene is None else frame.scene)
        elif not isinstance(state.scene, FlatScene) and (snapshot := state.scene.snapshot()) is not None:
            self.timeline.show(state.step, snapshot)

    def _due_to_pause(self) -> str:
        """Why the session pauses after the step just taken, if it does."""
        number = self.state.step
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.steps_left = None
                return f"paused at step {number}"
        if number == self.settings.planned_end and self._until is None:
            return f"finished the planned {self.settings.steps} steps; Start goes on"
        return ""

    def _recover(self, error: Exception) -> None:
        """A step raised: undo the patch before it, or stop and say why. The state is kept either way."""
        undo = self._undo
        if undo is None:
            self._fail(error)
            return
        self._undo = None
        if self._prior is not undo.prior:  # an auxiliary may stand on the weights of its prior
            self.state.aux.clear()
            self.state.aux_keys.clear()
        self._prior, self._bank = undo.prior, undo.bank
        self._put_back(undo.moment)
        self.timeline.forget(undo.noted)
        for path, value in undo.changes:
            self._say(Rejected(self.state.step, path, value, f"rolled back, its first step failed: {_reason(error)}"))
        self._settle()

    def _fail(self, error: Exception) -> None:
        self.running, self._error = False, error
        self._say(Failed(self._step_number, _reason(error)))
        self._failure = f"failed because {_reason(error)}"
        self._set_status("failed", self._failure)

    def _settle(self) -> None:
        """Back to the status that fits after a command that had its own."""
        if self._state is None:
            self._set_status("failed", self._failure)
        elif self.running:
            self._set_status("running", "running")
        elif (learnt := self._learnt()) is not None:
            self._set_status("paused", f"paused at step {self.state.step}, {learnt}")
        elif self.state.step == 0:
            self._set_status("ready", "ready: press Start")
        else:
            self._set_status("paused", f"paused at step {self.state.step}")

    # ---- parts -------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        state = self.state
        return {
            "scene": state.scene.state_dict(),
            "optim": state.optim.state_dict(),
            "aux": {
                name: {"key": list(state.aux_keys[name]), "model": aux.state_dict()} for name, aux in state.aux.items()
            },
            "reference": _reference_parts(state.reference),
        }

    def _counts(self) -> dict[str, float | str]:
        state = self.state
        return {
            "skipped": state.skipped,
            "seconds": state.seconds,
            "prior_seconds": state.prior_seconds,
            "regime": state.regime,
            "toggled": state.toggled,
        }

    def _restore_parts(self, parts: Mapping[str, Any]) -> None:
        state = self.state
        state.scene.load_state_dict(parts["scene"])
        state.optim.load_state_dict(parts["optim"])
        saved = parts.get("aux", {})
        for name in state.aux.keys() - saved.keys():
            if name != self.effective.loss.aux_name():
                del state.aux[name], state.aux_keys[name]
        for name, aux in saved.items():
            key = tuple(aux["key"])
            for loss in self.effective.losses.values():
                if (loss.aux_name(), loss.aux_key()) == (name, key):
                    self._need_aux(loss, self.effective)
                    state.aux[name].load_state_dict(aux["model"])
                    break
        self._adopt_aux(self.effective)
        state.reference = _reference_of(parts.get("reference", {}), state.scene)

    # ---- what a closer look sees -------------------------------------------------------------------------

    def _watch(self, row: int | None, t: int | None) -> None:
        self._lens_row, self._probed = row, t
        self._look(now=True)

    def _look(self, now: bool = False) -> None:
        """Bring the lens up to date, if somebody looks and it is due: it may take a twentieth of the time."""
        if self._lens_row is None or self._state is None or not (now or time.monotonic() >= self._lens_due):
            return
        started = time.perf_counter()
        try:
            with self._turnstile:
                seen = self._seen(min(self._lens_row, len(self._report.cams) - 1) if self._report else self._lens_row)
        except Exception as e:  # a look must not end a run
            seen = LensPictures(loss=self.effective.active, reason=f"the lens sees nothing: {_reason(e)}")
        if seen is not None:
            self.lens.set(seen)
        took = time.perf_counter() - started
        self._lens_due = time.monotonic() + max(LENS_EVERY, LENS_SHARE * took)

    def _seen(self, row: int) -> LensPictures | None:
        """What the lens shows; None before there is anything."""
        assert self._bank is not None
        s, report = self.effective, self._report
        if self._probed is not None:
            step_number = max(self.state.step - 1, 0)
            return probe(self.state, s, self.prior, self._bank, self._probed, row, step_number)
        if report is None:
            return None
        s = self._reported
        again = asked_again(report, s, self.prior, self._bank, self.state.step - 1)
        return views_of_step(report, s, self.prior, row, again)

    def _comparison(self) -> Iterator[Comparison]:
        state = self.state
        assert self._bank is not None
        return comparison_steps(state, self.effective, self.prior, self._bank)

    def _compare_on(self) -> None:
        """One more loss of a comparison under way, between two steps."""
        if self._comparing is None:
            return
        try:
            with self._turnstile:
                seen = next(self._comparing, None)
        except Exception as e:
            seen = None
            self._say(Rejected(self._step_number, "compare", "", f"the losses could not be compared: {_reason(e)}"))
        if seen is None:
            self._comparing = None
        else:
            self.comparison.set(seen)

    # ---- what the world sees -----------------------------------------------------------------------------

    @property
    def _step_number(self) -> int:
        return self._state.step if self._state is not None else 0

    def _say(self, event: Event) -> None:
        self.events.append(event)
        for listener in self._listeners:
            listener(event)

    def _loading(self, text: str) -> None:
        self._set_status("loading", text)

    def _set_status(self, phase: Phase, text: str) -> None:
        self.status = Status(self._step_number, phase, text)
        self._say(self.status)

    def _figures(self, report: Report) -> dict[str, float]:
        state = self.state
        figures = {name: float(value) for name, value in report.stats.items()}
        figures["t"] = float(report.x.t.float().mean())
        figures.update(_counted(state.scene))
        figures["seconds"] = state.seconds
        figures["steps_per_s"] = 1 / self._pace if self._pace > 0 else 0.0
        figures["prior_share"] = state.prior_seconds / state.seconds if state.seconds > 0 else 0.0
        figures["skipped"] = float(state.skipped)
        figures.update({f"ms_{stage}": 1e3 * report.stages.get(stage, 0.0) for stage in STAGES if stage != "publish"})
        figures.update({name: float(count) for name, count in report.densified.items()})
        if self.in_detail:
            figures.update({name: float(value) for name, value in figures_of(report).items()})
            figures.update({f"rms_{name}": float(value) for name, value in sizes_of(report).items()})
            figures["weight"] = float(weight(self._reported.schedule, report.x.alpha, report.x.sigma).mean())
        return figures

    def _prompt_cond(self) -> Cond:
        assert self._bank is not None
        return self._bank.prompt(self.effective.prompt)

    def _publish(self) -> None:
        """Put a frame out: of the last step, or of front and back when there was none."""
        state, s, report, scene = self.state, self.effective, self._report, self.state.scene
        stats = self._figures(report) if report is not None else {**_counted(scene), "seconds": state.seconds}
        if isinstance(scene, FlatScene):
            preview = scene.pictures(self.prior, self._prompt_cond())
            flat = flat_frame(scene, report, s.loss)
            frame = Frame(state.step, state.seconds, None, preview, ("",) * len(preview), stats, flat)
        else:
            if report is not None and report.render is not None:
                cams, preview = report.cams, to_uint8(report.render.rgb)
            else:
                cams = turntable(2, s.camera, s.camera.resolution or self.prior.image_size)
                with torch.no_grad():
                    preview = to_uint8(scene.render(cams, torch.ones(2, 3)).rgb)
            views = tuple(views_of(s.prompt, cams))
            frame = Frame(state.step, state.seconds, scene.snapshot(), preview, views, stats)
        self._published_at = time.monotonic()
        self.latest.set(frame)
        self._look()


def _counted(scene: AnyScene) -> dict[str, float]:
    """How many Gaussians make up the scene, or what a scene of another kind has to say."""
    if isinstance(scene, FlatScene):
        return scene.stats()
    return {"n_gaussians": float(next(iter(scene.params.values())).shape[0])}


def _settle_with(answer: Future[T], question: Callable[[], T]) -> None:
    try:
        answer.set_result(question())
    except Exception as e:
        answer.set_exception(e)


def with_begun(settings: Settings, begun: Settings) -> Settings:
    """`settings` with the knobs that wait for a reset as they were in `begun`."""
    knobs = begun.knobs()
    changes = [
        (path, knobs[path].value)
        for path, k in settings.knobs().items()
        if k.apply == "restart" and path in knobs and k.value != knobs[path].value
    ]
    return settings.patch_all(changes) if changes else settings


def _reference_parts(reference: Reference | None) -> dict[str, Any]:
    if reference is None:
        return {}
    prompt = dataclasses.asdict(reference.prompt)
    return {"scene": reference.scene.state_dict(), "prompt": prompt, "key": list(reference.key)}


def _reference_of(parts: dict[str, Any], like: AnyScene) -> Reference | None:
    """What `_reference_parts` made `parts` of; a scene of the kind of `like`."""
    if not parts:
        return None
    scene = copy.deepcopy(like)
    scene.load_state_dict(parts["scene"])
    return Reference(scene, PromptSettings(**parts["prompt"]), tuple(parts["key"]))


def as_read(path: str, value: str, prompt: str) -> str:
    """The text that the prior gets to read for the wording `value` at `path`."""
    if path in ("prompt.target", "prompt.source"):
        return value.replace(PROMPT, prompt)
    return f"{prompt}, {value}" if path == "prompt.negative" and value else value


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
