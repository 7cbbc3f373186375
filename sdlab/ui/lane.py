"""One lane of a page: its seat, the curves read from its session, and what its controls wait for."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sdlab.lessons.readings import Reader
from sdlab.live import critic
from sdlab.live.bursts import SECONDS
from sdlab.live.checkpoint import Saved
from sdlab.live.manager import Seat
from sdlab.live.messages import (
    Applied,
    Branched,
    Command,
    Event,
    Failed,
    Noted,
    Patch,
    Rejected,
    Reset,
    Resume,
    Skipped,
    Stepped,
    Went,
)
from sdlab.scenes import SceneConfig
from sdlab.scenes.splats import Splats
from sdlab.settings import Settings
from sdlab.ui.charts import PLOTS, Curve, Mark
from sdlab.ui.flat_view import is_flat
from sdlab.ui.form import wordings_in_use, wordings_of
from sdlab.ui.panels import Message, Tone, status
from sdlab.ui.uploads import UPLOADS
from sdlab.ui.wording import label_of
from sdlab.viewport.splat_view import SPLATS, SplatView

MAX_MARKS = 60
JUDGED_EVERY = 2.0  # seconds
WAITS_FOR_READY = "starts as soon as everything is ready"
GOES_ON = "changed; {} to continue with it"
STARTS = f"Take steps on a shared GPU: up to {SECONDS:.0f} s of your daily quota"
ENDS = "Pause this run with the next state that comes back, and give the GPU back"
OTHER_PROMPT = "the object changes to match the new prompt; Reset starts over"
REFUSED_FOR = 30.0  # seconds for which a refusal stays on the status line
PATH = re.compile(r"^[a-z]\w*(?= = )|[a-z]\w*(?:\.\w+)+")  # the path of a knob in a text
WITHOUT_SH = "Gaussians have here the colour that all directions share; Render shows what depends on the direction"


def view_modes(scene: SceneConfig) -> tuple[str, ...]:
    """Return in which ways a view may show a scene."""
    return (SPLATS, *scene.modes) if scene.modes else ()


class Button(NamedTuple):
    """A button of a lane as the page shows it."""

    do: str  # the act
    label: str
    title: str
    can: bool  # be pressed


class News(NamedTuple):
    """What one read of a session brought."""

    status: str  # HTML of the status line
    stale: frozenset[str]  # paths of knobs whose controls differ from the settings


class Lane:
    """Shared by the requests of one page, which run in several threads."""

    def __init__(self, seat: Seat, view: SplatView, preset: str | None) -> None:
        self.seat = seat
        self.view = view
        self.preset = preset  # the last one picked
        self.remark = ""  # about the settings file that was opened
        self._begins = False  # whether a run begins whose settings were just picked
        self.is_beside = False  # whether it is the second lane of an example, which the next one closes
        self._lock = threading.Lock()
        self._next_event = 0
        self._asked: dict[str, Any] = {}  # path -> value that a control asked for, until the session answers
        self._picked: tuple[str | None, frozenset[str]] = (preset, frozenset())  # previous preset, paths it changed
        self._message: Message | None = None
        seat.session.in_detail = True
        self.reader = Reader(seat.session)
        self._judged_step, self._judged_at = 0, 0.0
        self._measured_step = -1
        self._forget_curves()

    def _forget_curves(self) -> None:
        self.curves = {plot.name: Curve() for plot in PLOTS}
        self.marks: list[Mark] = []
        self.stats: dict[str, float] = {}  # of the last step
        self.judged: float | None = None  # the judge's last answer, None where it does not know the object
        self.measured: dict[str, float] = {}  # metrics of the last views around the object
        self._last_step = 0
        self.version = getattr(self, "version", 0) + 1  # of what the charts show

    @property
    def settings(self) -> Settings:
        """The requested settings, including knobs that wait for a reset."""
        return self.seat.session.settings

    @property
    def step(self) -> int:
        """The step of the last frame."""
        frame = self.seat.session.latest.get()
        return frame.step if frame is not None else 0

    @property
    def address(self) -> str:
        """The address of the scene's view; relative, so that it holds behind any reverse proxy."""
        return f"{'flat' if is_flat(self.seat.session.effective) else 'viewport'}/{self.seat.id}/"

    @property
    def in_bursts(self) -> bool:
        """Whether the run takes its steps in bursts on a shared GPU, which Start and Step do not ask for."""
        return bool(self.seat.session.pace)

    @property
    def burst(self) -> Button | None:
        """The button by which a burst starts or ends, None for a run that takes its steps here."""
        session = self.seat.session
        if not self.in_bursts:
            return None
        if session.running:
            return Button("end", "End burst", ENDS, not session.on_hold)
        can = session.status.phase in ("ready", "paused", "failed") and not session.on_hold
        return Button("burst", f"Start burst: {SECONDS:.0f} s of GPU", STARTS, can)

    @property
    def legend(self) -> str:
        """What the view's colours mean, or what they leave out; "" if there is nothing to say."""
        scene = self.seat.session.effective.scene
        directed = isinstance(scene, Splats) and scene.sh_degree > 0 and self.view.mode == SPLATS
        return WITHOUT_SH if directed else self.view.legend

    def history(self) -> dict[str, Any]:
        """Return what the timeline shows."""
        session = self.seat.session
        return {
            "lane": self.seat.id,
            "step": self.step,
            "planned": session.settings.planned_end,
            "kept": list(session.timeline.steps()),
            "entries": [{"step": e.step, "kind": e.kind, "text": e.text} for e in session.timeline.entries()],
            "shots": [step for step, _ in session.timeline.film()],
            "replay": self.view.replayed,
        }

    # ---- from the page to the session --------------------------------------------------------------------

    def send(self, *commands: Command, note: str = "", prompt: str | None = None) -> None:
        """Send the commands that the run follows, after the prompt as it is typed now; `note` replaces the message on
        the status line."""
        commands = tuple(filter(self.seat.session.follows, commands))
        retyped = prompt is not None and prompt != self.settings.prompt.text
        if not commands and not retyped:
            return
        with self._lock:
            self._message = Message("info", note) if note and commands else None
        if retyped:
            self.patch([("prompt.text", prompt)])
        for command in commands:
            self.seat.session.send(command)

    def change(self, path: str, value: Any) -> None:
        """Ask for one knob to change: its control was moved."""
        with self._lock:
            self._picked = (self._picked[0], self._picked[1] - {path})  # no longer the preset's value
        self.patch([(path, value)])

    def patch(self, changes: Iterable[tuple[str, Any]]) -> None:
        """Request changes that the controls already show, as one transaction."""
        changes = tuple(changes)
        if not changes:
            return
        with self._lock:
            self._begins = False
            self._asked.update(changes)
        self.seat.session.send(Patch(changes))

    def set(self, changes: Iterable[tuple[str, Any]]) -> None:
        """Request changes that no control shows yet, as one transaction: the controls follow when the session
        answers."""
        changes = tuple(changes)
        with self._lock:
            self._begins = False
            for path, _ in changes:
                self._asked.pop(path, None)
            self._picked = (self._picked[0], self._picked[1] - {path for path, _ in changes})
        self.seat.session.send(Patch(changes))

    def use_file(self, knob: str, path: Path, use: str) -> None:
        """Use the file at `path`, by the value `use` of the knob that says so: for a scene's start at once before the
        first step and otherwise from the next reset on, for the prior at the next step."""
        switch = UPLOADS[knob].switch
        with self._lock:  # no longer the preset's values
            self._picked = (self._picked[0], self._picked[1] - {switch, knob})
        self.remark = ""
        self.seat.session.send(Patch(((switch, use), (knob, str(path)))))

    def files(self) -> list[str]:
        """Return the paths of the files that the run uses or will use after a reset."""
        each = (self.seat.session.settings, self.seat.session.effective)
        return [s.knob(path).value for s in each for path, upload in UPLOADS.items() if upload.fits(s)]

    def pick(self, preset: str | None, settings: Settings) -> None:
        """Ask for all knobs in which a preset, or a settings file (None), differs from the present settings. The
        controls follow when the session answers."""
        changes = tuple(self.settings.differences(settings))
        with self._lock:
            self._begins = False
            self._picked = (self.preset, frozenset(path for path, _ in changes))
            self.preset = preset
            for path, _ in changes:
                self._asked.pop(path, None)
        if changes:
            self.seat.session.send(Patch(changes))

    def continue_from(self, saved: Saved, name: str) -> None:
        """Continue from the checkpoint of a run, paused; the status line says why if that fails."""
        answer = self.seat.session.continue_from(saved)

        def told(_: object) -> None:
            if (error := answer.exception()) is not None:
                self.say("error", f"{name}: {error}")

        answer.add_done_callback(told)

    def begin(self) -> None:
        """Start over with the settings just picked, which the status line need not tell, and run."""
        with self._lock:
            self._begins = True
        self.send(Reset(), Resume())

    # ---- from the session to the page --------------------------------------------------------------------

    def read(self) -> News:
        """Read the session's new events. Called by one thread at a time."""
        with self._lock:
            events, self._next_event = self.seat.session.events.since(self._next_event)
            stale: set[str] = set()
            waiting: list[str] = []
            for event in events:
                self._take(event, stale, waiting)
            phase = self.seat.session.status.phase
            said = self._message
            if said is not None and (
                time.monotonic() >= said.until or (phase == "running" and said.text in (WAITS_FOR_READY, self._goes_on))
            ):
                self._message = None
            frame = self.seat.session.latest.get()
            if frame is not None and frame.step == 0 and self._last_step > 0:
                self._forget_curves()
            return News(self._status(), frozenset(stale))

    def say(self, tone: Tone, text: str) -> None:
        """Show a message on the status line until the next change."""
        with self._lock:
            self._message = Message(tone, text)

    def ask_the_judge(self) -> None:
        """Add the judge's reading of the last pictures to the curves, at most every `JUDGED_EVERY` seconds."""
        frame = self.seat.session.latest.get()
        now = time.monotonic()
        if frame is None or frame.step == self._judged_step or now < self._judged_at + JUDGED_EVERY:
            return
        if not critic.knows(self.seat.session.effective.prior):
            return
        self._judged_step, self._judged_at = frame.step, now
        prompts = self.settings.prompt.texts[: self.seat.session.effective.scene.prompts]
        chance = critic.chance(frame.preview, *prompts)
        with self._lock:
            if chance is not None:
                self.curves["judge"].add(frame.step, chance)
            if chance is not None or self.judged is not None:
                self.judged = chance
                self.version += 1

    def measure(self) -> None:
        """Add the metrics of the newest views around the object to the curves."""
        around = self.seat.session.around.get()
        if around is None or around.step == self._measured_step:
            return
        self._measured_step = around.step
        found = self.reader.around()
        with self._lock:
            self.measured = found
            for plot in PLOTS:
                if (value := plot.value(found)) is not None:
                    self.curves[plot.name].add(around.step, value)
            self.version += 1

    def _take(self, event: Event, stale: set[str], waiting: list[str]) -> None:
        match event:
            case Stepped(step, stats):
                if step <= self._last_step:
                    self._forget_curves()  # a reset
                self._last_step = step
                self.stats = stats
                for plot in PLOTS:
                    if (value := plot.value(stats)) is not None:
                        self.curves[plot.name].add(step, value)
                self.version += 1
            case Applied(step, path, value, note):
                self._settle(path, value, stale)
                stale |= self._shown_with(path)
                self._mark(step, f"{path} = {value}")
                said = self._applied(step, path, note, waiting)
                if not self._begins or (said is not None and said.tone == "warning"):
                    self._message = said
            case Rejected(_, path, value, reason):
                self._settle(path, value, stale)
                stale |= self._shown_with(path)
                if path in self._picked[1]:
                    self.preset = self._picked[0]
                self._message = Message("error", self._in_words(reason), time.monotonic() + REFUSED_FOR)
            case Skipped(step, what):
                self._message = Message("warning", f"the update of step {step} was skipped: not finite, {what}")
            case Noted(_, text) if text not in self.seat.session.notes:  # those are always shown
                self._message = Message("warning", text)
            case Failed(_, reason):
                self._message = Message("error", reason)
            case Went(step) | Branched(step):
                for curve in self.curves.values():
                    curve.cut(step)
                self.marks = [mark for mark in self.marks if mark.step <= step]
                self._last_step = step
                self.version += 1
                stale |= set(self.settings.knobs())

    def _shown_with(self, path: str) -> set[str]:
        """Return the knobs that the form must show after a change of `path`: those of the active loss if it is the
        choice of the loss, the prompts of all views of an illusion if it may be their number."""
        s = self.settings
        if path.startswith("scene."):
            return set(wordings_in_use(s))
        if path != "active":
            return set()
        own = {k for k in s.knobs() if k.startswith(f"losses.{s.active}.")}
        return {path, *own, *wordings_of(s.loss)}

    def _applied(self, step: int, path: str, note: str, waiting: list[str]) -> Message | None:
        """Return the message about an applied change, if any; `waiting` collects knobs that wait for a reset."""
        if path == "prompt.text" and not self.settings.prompt.text.strip():
            return Message("warning", "the prompt is empty: the prior has nothing to aim for")
        knob = self.settings.knobs().get(path)
        if note and knob is not None and knob.apply == "restart":
            waiting.append(label_of(path))
        elif note:
            return Message("warning", note)
        if waiting:
            return Message("info", f"{', '.join(waiting)}: applied at the next reset")
        if step > 0 and self.seat.session.status.phase == "paused":
            return Message("info", self._goes_on)
        return Message("info", OTHER_PROMPT) if step > 0 and path == "prompt.text" else None

    @property
    def _goes_on(self) -> str:
        return GOES_ON.format(self.seat.session.go)

    def _in_words(self, reason: str) -> str:
        """Return `reason` with the paths of knobs replaced by their labels on the page."""
        knobs = self.settings.knobs()
        return PATH.sub(lambda found: label_of(found[0]) if found[0] in knobs else found[0], reason)

    def _settle(self, path: str, value: Any, stale: set[str]) -> None:
        """Compare the session's answer for one knob with its control. An answer to an older value than the control
        shows (a slider being dragged) is ignored: a newer answer will follow."""
        if path not in self._asked:  # not changed by a control: a preset, or the start dragged in a flat view
            stale.add(path)
            return
        if self._asked[path] != value:
            return
        del self._asked[path]
        knob = self.settings.knobs().get(path)
        if knob is not None and knob.value != value:
            stale.add(path)

    def _mark(self, step: int, text: str) -> None:
        if self.marks and self.marks[-1].step == step:
            text = f"{self.marks.pop().text}\n{text}"
        self.marks = [*self.marks, Mark(step, text)][-MAX_MARKS:]
        self.version += 1

    def _status(self) -> str:
        session = self.seat.session
        frame = session.latest.get()
        now = session.status
        step = frame.step if frame is not None else 0
        replayed = self.view.replayed
        return status(
            now.phase,
            now.text if replayed is None else f"Replaying the run: step {replayed}",
            step,
            session.settings.planned_end,
            self.stats.get("steps_per_s", 0.0),
            self._message,
            (*session.notes, *([self.remark] if self.remark else [])),
        )
