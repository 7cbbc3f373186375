"""A run as one value: settings, prior, scene, history.

Every operation on a run returns a new `Run`, so that rolling back means keeping the old one. The exception is a step,
which changes `Run.state` in place; a step that fails is undone from a `Moment`, also in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdlab.live.moments import Moment, held
from sdlab.live.tape import Stretch
from sdlab.live.timeline import Timeline
from sdlab.prompts import PromptBank
from sdlab.settings import Settings
from sdlab.step import Reference, Report, State
from sdlab.types import Prior

RATE_SHARE = 0.05  # weight of the last step in the average duration of a step
COUNTS = ("skipped", "seconds", "prior_seconds", "regime", "toggled")  # fields of State that a moment keeps as they are


@dataclass
class Trace:
    """The last step on a scene and how long steps take. A new scene starts a new trace."""

    report: Report | None = None
    settings: Settings | None = None  # that the reported step followed
    seconds_per_step: float = 0.0  # running average
    timed: int = 0  # steps in that average

    def add(self, report: Report, settings: Settings, seconds: float) -> None:
        """Record a step that took `seconds`."""
        # durations are averaged, not rates: where steps are uneven, the mean rate exceeds steps / time
        self.timed += 1
        self.seconds_per_step += max(RATE_SHARE, 1 / self.timed) * (seconds - self.seconds_per_step)
        self.report, self.settings = report, settings


@dataclass(frozen=True, eq=False)
class Undo:
    """What to restore if the first step after a patch fails."""

    moment: Moment
    prior: Prior
    bank: PromptBank
    noted: int  # number of the first timeline entry to remove
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """A run between two steps. `prior` and `bank` are None until the prior is loaded, `state` until the scene is built.

    `state`, `timeline`, `trace` and `stretch` are mutable and are changed by the owner of the run only.
    """

    settings: Settings  # as requested
    begun: Settings  # as of the last reset
    effective: Settings  # that steps follow: as requested, except for knobs that wait for a reset
    prior: Prior | None = None
    bank: PromptBank | None = None
    state: State | None = None
    timeline: Timeline = field(default_factory=Timeline)
    stretch: Stretch = field(default_factory=lambda: Stretch(None))  # of the tape
    trace: Trace = field(default_factory=Trace)
    undo: Undo | None = None  # of a patch that has not had its first step

    @staticmethod
    def of(settings: Settings) -> Run:
        """Return a run of `settings` with nothing loaded or built."""
        return Run(settings, settings, settings)

    def following(self, settings: Settings, begun: Settings | None = None) -> Run:
        """Return this run with other settings, and other settings as of the last reset if `begun` is given."""
        begun = begun or self.begun
        return dataclasses.replace(self, settings=settings, begun=begun, effective=with_begun(settings, begun))

    @property
    def step(self) -> int:
        """Steps taken; 0 without a state."""
        return self.state.step if self.state is not None else 0

    @property
    def built(self) -> State:
        """The state; RuntimeError before the scene is built."""
        if self.state is None:
            raise RuntimeError("the session has no state yet: it is built when run() starts")
        return self.state

    @property
    def loaded(self) -> tuple[Prior, PromptBank]:
        """The prior and its prompts; RuntimeError before the prior is loaded."""
        if self.prior is None or self.bank is None:
            raise RuntimeError("the session has no prior yet: it is loaded when run() starts")
        return self.prior, self.bank

    def inputs(self) -> tuple[State, Settings, Prior, PromptBank]:
        """Return the inputs of a step. RuntimeError before the prior is loaded and the scene is built."""
        prior, bank = self.loaded
        return self.built, self.effective, prior, bank


Admit = Callable[[Settings, Run], None]


def anything(settings: Settings, run: Run) -> None:
    """Admit all settings."""


def with_begun(settings: Settings, begun: Settings) -> Settings:
    """Return `settings` with the knobs that wait for a reset as they are in `begun`."""
    knobs = begun.knobs()
    changes = [
        (path, knobs[path].value)
        for path, k in settings.knobs().items()
        if k.apply == "restart" and path in knobs and k.value != knobs[path].value
    ]
    return settings.patch_all(changes) if changes else settings


def moment_of(run: Run) -> Moment:
    """Return a copy of everything needed to continue `run` bit for bit."""
    state, newest = run.inputs()[0], run.timeline.newest
    state.read_verdicts()
    parts = {
        "scene": state.scene.state_dict(),
        "optim": state.optim.state_dict(),
        "aux": {
            name: {"key": list(state.aux_keys[name]), "model": aux.state_dict()} for name, aux in state.aux.items()
        },
        "reference": _reference_parts(state.reference),
        "session": {name: getattr(state, name) for name in COUNTS},
    }
    parts = held(parts, newest.parts if newest is not None else None)
    return Moment(state.step, run.settings, run.begun, parts, run.stretch.place)


def restore_counts(state: State, counts: Mapping[str, Any]) -> None:
    """Set the counts of `state` to those of a moment. ValueError for an unknown one."""
    state.forget_verdicts()
    for name, value in counts.items():
        if name not in COUNTS:
            raise ValueError(f"unknown count {name!r}")
        setattr(state, name, value)


def _reference_parts(reference: Reference | None) -> dict[str, Any]:
    if reference is None:
        return {}
    prompt = dataclasses.asdict(reference.prompt)
    return {"scene": reference.scene.state_dict(), "prompt": prompt, "key": list(reference.key)}
