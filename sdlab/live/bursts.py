"""Runs whose steps are taken in bursts by another process, which has a GPU for some seconds.

A run goes there and comes back as a packed checkpoint (`sdlab.live.checkpoint.packed`): bytes, with no pickled object
in them. `burst` is what that process does. `BurstSession` is a session whose steps are taken so; its scene is here, on
the CPU, so that it can be seen, exported, branched and taken back between bursts and during them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field, replace
from typing import TypeGuard, Unpack

import torch

from sdlab.errors import reason
from sdlab.live import checkpoint, copies
from sdlab.live.building import Builder, LoadPrior, load_prior
from sdlab.live.frames import stats_of
from sdlab.live.messages import Advance, Burst, Command, Noted, Resume, Stepped
from sdlab.live.moments import Moment
from sdlab.live.session import Session, Ties
from sdlab.live.state import Admit, Run, anything
from sdlab.priors import PriorConfig, silent
from sdlab.priors.away import AWAY, AwayPrior, find_away
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.raster import NO_COMPILING
from sdlab.settings import Settings
from sdlab.step import step
from sdlab.types import Prior

SECONDS = 60.0  # of a GPU that a burst may use, which its user asked for
LEAST = 15.0  # seconds for which a burst is worth asking: it may have to load the networks first
MARGIN = 8.0  # seconds before its end at which a burst takes no further step, to come back in time
MOST_STEPS = 1000  # of a burst
TELL_EVERY = 2.0  # seconds between two states that come back
TOLD = "told.json"  # among the texts of what comes back
GO = "press Start burst"
KEPT = "The run is kept; Start burst continues it"
PACE = "steps come in bursts on a shared GPU"
COST = f"each takes up to {SECONDS:.0f} s of your daily GPU quota"
REMARK = "its steps were taken in bursts on a GPU"
SPLATS = "splats"

States = Generator[bytes, None, None]
Call = Callable[[bytes, int, float, str], States]  # a state, the most steps and seconds, whose quota: states


@dataclass(frozen=True)
class Bursts:
    """How runs get bursts. `call` starts one and yields the states that come back; its errors are for the user, and
    say what to do. `takes` returns whether a run of some settings needs them."""

    call: Call
    takes: Callable[[Settings], bool]


def needs_gpu(settings: Settings) -> bool:
    """Return whether the network of a run is too large for a CPU: all but the toybox's."""
    return is_large(settings.prior)


def is_large(config: PriorConfig) -> TypeGuard[DiffusersPrior]:
    """Return whether a prior is a network other than the toybox's."""
    return isinstance(config, DiffusersPrior) and config.path != "toybox"


def must_suit(settings: Settings) -> None:
    """Raise ValueError that names a knob if a run of these settings cannot be taken in bursts."""
    if settings.scene.kind != SPLATS:
        raise ValueError(
            f"scene.kind = {settings.scene.kind!r}: a run in bursts on a GPU shows Gaussians; choose {SPLATS!r}"
        )
    if settings.loss.trains():
        raise ValueError(
            f"active = {settings.active!r}: {settings.loss.title} trains a network of its own, which a run in bursts "
            "on a GPU does not keep; choose a loss that trains none, such as 'sds'"
        )


# ---- in the process with the GPU -------------------------------------------------------------------------


@dataclass
class Told:
    """What comes back beside a state: step and statistics of each step since the state before, the seconds that the
    burst has taken so far, and why it ended early, "" if it did not."""

    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @staticmethod
    def read(text: str) -> Told:
        """Return what `written` has written."""
        said = json.loads(text)
        steps = [(int(number), dict(stats)) for number, stats in said["steps"]]
        return Told(steps, float(said["seconds"]), str(said["error"]))

    def written(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self))


def burst(state: bytes, steps: int, seconds: float, device: str = "cuda") -> States:
    """Take up to `steps` steps of the packed run `state` on `device`, for up to `seconds`; yield it every `TELL_EVERY`
    seconds and at the end, packed.

    The networks are loaded first, and kept for the next burst of this process. ValueError for a state that cannot be
    read. Networks that cannot be loaded, or a step that fails, end the burst, and the last state says why.
    """
    began = told_at = time.monotonic()
    saved = checkpoint.unpacked(state)
    try:
        run = resumed(saved, torch.device(device))
    except Exception as e:
        told = Told(error=reason(e), seconds=time.monotonic() - began)
        yield checkpoint.packed(saved._replace(texts={**saved.texts, TOLD: told.written()}))
        return
    told, longest, last = Told(), 0.0, saved.step + steps
    while run.step < last and time.monotonic() - began + longest < seconds - MARGIN:
        started = time.perf_counter()
        try:
            report = step(*run.inputs())
        except Exception as e:
            told.error = reason(e)
            break
        took = time.perf_counter() - started
        longest = max(longest, took)
        run.trace.add(report, run.effective, took)
        told.steps.append((run.step, stats_of(run, report, in_detail=True)))
        if run.step < last and time.monotonic() - told_at >= TELL_EVERY:
            yield _answer(run, told, began)
            told, told_at = Told(), time.monotonic()
    yield _answer(run, told, began)


def resumed(saved: checkpoint.Saved, device: torch.device) -> Run:
    """Return the run of a checkpoint on `device`."""
    settings = checkpoint.settings_of(saved)
    if device.type == "cuda":
        os.environ[NO_COMPILING] = "1"  # which takes minutes
        if isinstance(settings.prior, DiffusersPrior):  # a forked process must not start torch's threads
            settings = settings.patch("prior.threads", 1)
    builder = Builder(device, lambda config, device, _: _loaded(config, device), lambda phase, text: None)
    return builder.resumed(Run.of(settings), Moment(saved.step, settings, settings, saved.parts))


@functools.lru_cache(maxsize=1)
def _loaded(config: PriorConfig, device: torch.device) -> Prior:
    return load_prior(config, device, silent)


def _answer(run: Run, told: Told, began: float) -> bytes:
    told.seconds = time.monotonic() - began
    return checkpoint.packed(saved_of(run, {TOLD: told.written()}))


def saved_of(run: Run, texts: dict[str, str]) -> checkpoint.Saved:
    """Return the state and the settings that steps follow, with further `texts`. A model that is away is named by its
    folder, so that the other process looks for nothing on the Hub."""
    settings = run.effective
    if isinstance(run.prior, AwayPrior):
        settings = settings.patch_all([("prior.path", str(run.prior.folder)), ("prior.revision", "")])
    return copies.saved_of(run, settings, texts)


# ---- in the process with the page ------------------------------------------------------------------------


class BurstSession(Session):
    """A session whose steps are taken in bursts, see the top of this file. Nothing but the command `Burst` asks for
    one: it has `SECONDS` of a GPU, then the run pauses. A command ends the burst under way with the next state that
    comes back, and the run continues with a new one for the rest of the time. `quota` returns whose quota is charged,
    in the form that `bursts.call` takes."""

    pace = PACE
    go = GO

    def __init__(
        self,
        settings: Settings,
        bursts: Bursts,
        quota: Callable[[], str] = str,
        load: LoadPrior = load_prior,
        admit: Admit = anything,
        **ties: Unpack[Ties],
    ) -> None:
        def loaded(config: PriorConfig, device: torch.device, progress: Callable[[str], None]) -> Prior:
            if is_large(config):
                return find_away(config, progress)
            return load(config, device, progress)

        def suits(wanted: Settings, run: Run) -> None:
            must_suit(wanted)
            admit(wanted, run)

        super().__init__(settings, "cpu", loaded, admit=suits, **ties)
        self._watching.absent = f"nothing to show: {AWAY}"
        self._bursts = bursts
        self._quota = quota
        self._seconds_left = 0.0  # of a GPU, until the pause
        self._next: Command | None = None  # what ended the burst under way

    @property
    def notes(self) -> tuple[str, ...]:
        left = f"this one has at most {max(self._seconds_left, 0):.0f} s left"
        return (*super().notes, f"{PACE}; {left if self.running else COST}")

    def follows(self, command: Command) -> bool:
        return not isinstance(command, (Resume, Advance))

    def fork(self) -> copies.Fork:
        """Return the current state and its history, for a branch, which is paused: it would ask for another burst."""
        return replace(super().fork(), running=False, steps_left=None)

    def _obey(self, command: Command) -> None:
        if not self.follows(command) or (isinstance(command, Burst) and self.running):
            return
        if isinstance(command, Burst):
            self._seconds_left = SECONDS
            command = Resume() if command.n is None else Advance(command.n)
        super()._obey(command)

    def _serve(self) -> None:
        if self._next is not None:
            command, self._next = self._next, None
            self.do(command)
        super()._serve()

    def advance(self) -> None:
        """Have one burst of steps taken. If it fails, the run pauses at the last state that came back and says why; if
        a step fails, the patch before it is rolled back, as in any session."""
        before = self._run.step
        if self._seconds_left < LEAST:  # commands have ended bursts before it was over
            self._end(before)
            return
        self._set_status("loading", f"waiting for a GPU, for up to {self._seconds_left:.0f} s of its time")
        try:
            state = checkpoint.packed(saved_of(self._run, {}))
            error = self._follow(self._bursts.call(state, self._most_steps(), self._seconds_left, self._quota()))
        except Exception as e:
            self._pause()
            self._say(Noted(self._run.step, f"{e or type(e).__name__}. {KEPT}"))
            self._settle()
            return
        if error:
            self._recover(RuntimeError(error))
        elif self.running and (self._next is None or self._is_done(before)):
            self._end(before)

    def _most_steps(self) -> int:
        """Return how many steps the next burst may take: up to the planned end if that is still to come."""
        to_go = self.settings.planned_end - self._run.step
        asked = MOST_STEPS if self.steps_left is None else self.steps_left
        return min(to_go if to_go > 0 else MOST_STEPS, asked, MOST_STEPS)

    def _is_done(self, before: int) -> bool:
        """Return whether the steps since step `before` were all that were asked for, or the last that were planned."""
        return self._run.step > before and (self.steps_left == 0 or self._run.step == self.settings.planned_end)

    def _follow(self, burst: States) -> str:
        """Adopt the states of a burst as they come back, until its end or a command; return why a step failed, or
        ""."""
        spent = 0.0
        with contextlib.closing(burst):
            for answer in burst:
                saved = checkpoint.unpacked(answer)
                told = Told.read(saved.texts[TOLD])
                self._seconds_left -= told.seconds - spent
                spent = told.seconds
                if told.steps:
                    self._take(saved, told)
                if told.error or self._interrupted():
                    return told.error
        return ""

    def _take(self, saved: checkpoint.Saved, told: Told) -> None:
        """Adopt a state that came back after some steps, publish and report it."""
        self._current.follow(saved)
        run = self._run
        if all(text != REMARK for _, text in run.stretch.remarks):
            run.stretch.remark(REMARK)
        if self.steps_left is not None:
            self.steps_left -= len(told.steps)
        for number, stats in told.steps:
            self._say(Stepped.of(number, **stats))
        self._publish()
        self._counted()
        self._set_status("running", "running")

    def _interrupted(self) -> bool:
        """Answer the questions that wait; return whether a command waits, which is then the next, or an answer has
        replaced the run."""
        state = self._run.state
        while self._run.state is state:
            asked = self._inbox.next()
            if asked is None:
                return False
            if not callable(asked):
                if isinstance(asked, Burst) or not self.follows(asked):
                    continue  # it is under way
                self._next = asked
                return True
            asked()
        return True

    def _end(self, before: int) -> None:
        """Pause after a burst that nothing ended early, or after all steps that were asked for."""
        done = self._run.step - before
        self._pause()
        if self._is_at_end:
            text = self._paused
        elif done:
            text = f"{self._paused}, after {done} in this burst; {GO} for more"
        else:
            text = f"the time on the GPU was over before the next step; {GO} for more"
        self._set_status("paused", text)

    def _pause(self) -> None:
        self.running, self.steps_left = False, None
        if self._run.state is not None:
            self.timeline.keep(self.moment())
