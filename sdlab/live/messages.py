"""The messages of a session: commands to it and events from it.

All are frozen and, except `Rewrite`, picklable. Commands may be sent from any thread; each takes effect before the next
step.
"""

from __future__ import annotations

import functools
from array import array
from dataclasses import dataclass
from typing import Any, Literal

from sdlab.losses import Distillation

# ---- commands --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """Change settings as one transaction: all of `changes`, (path, value) each, are adopted, or none."""

    changes: tuple[tuple[str, Any], ...]

    @staticmethod
    def one(path: str, value: Any) -> Patch:
        return Patch(((path, value),))


@dataclass(frozen=True)
class Pause:
    """Stop stepping; the session still carries out commands. `why` is for the user, of a pause they did not ask for."""

    why: str = ""


@dataclass(frozen=True)
class Resume:
    """Start stepping, for the first time or again."""


@dataclass(frozen=True)
class Hold:
    """Take no steps until told otherwise, whatever else is commanded; a run that was running then continues."""

    on: bool = True


@dataclass(frozen=True)
class Advance:
    """Take `n` steps, then pause; several commands add up."""

    n: int = 1


@dataclass(frozen=True)
class Burst:
    """Take up to `n` steps, or as many as there is time for, in a burst on a shared GPU, then pause. Only a run that
    takes its steps so follows it, and it follows no other command to take steps: a burst costs its user's quota."""

    n: int | None = None


@dataclass(frozen=True)
class Reset:
    """Rebuild the scene from the current settings and return to step 0."""


@dataclass(frozen=True)
class Goto:
    """Jump to the last moment on the timeline at or before `step`, with its settings, and pause there."""

    step: int


@dataclass(frozen=True)
class Compare:
    """Compare the gradients of the losses `names`, or of all, at the current state, while the run continues."""

    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rewrite:
    """Use another version of a loss, as one transaction; its knobs keep their values, see `Settings.with_loss`."""

    loss: type[Distillation]


@dataclass(frozen=True)
class Stop:
    """End the session."""


Command = Patch | Pause | Resume | Hold | Advance | Burst | Reset | Goto | Compare | Rewrite | Stop

# ---- events ----------------------------------------------------------------------------------------------

Phase = Literal["loading", "compiling", "ready", "running", "paused", "failed", "ended"]


@dataclass(frozen=True)
class Status:
    """What the session is doing, for the status line."""

    step: int
    phase: Phase
    text: str


@dataclass(frozen=True)
class Applied:
    """A change of settings applies from `step` on. `note` says if it waits for a reset instead, or which words of a
    prompt the prior does not know."""

    step: int
    path: str
    value: Any
    note: str = ""


@dataclass(frozen=True)
class Rejected:
    """A command was refused or rolled back; the run continues as before."""

    step: int
    path: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """Statistics of one step, packed, with names shared between steps: a log holds thousands of steps, which as dicts
    would take more than four times the memory."""

    step: int
    names: tuple[str, ...]
    values: array[float]

    __match_args__ = ("step", "stats")

    @staticmethod
    def of(step: int, **stats: float) -> Stepped:
        return Stepped(step, _shared(tuple(stats)), array("d", list(stats.values())))

    @property
    def stats(self) -> dict[str, float]:
        return dict(zip(self.names, self.values, strict=True))


@functools.lru_cache(256)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first tuple that was equal to `names`, so that equal ones share memory."""
    return names


@dataclass(frozen=True)
class Skipped:
    """The update of `step` was skipped because `what` was not finite."""

    step: int
    what: str


@dataclass(frozen=True)
class Noted:
    """Something the user should know: the scene does not start as requested, a slower rasteriser draws it, or the prior
    does without something, such as damaged files."""

    step: int
    text: str


@dataclass(frozen=True)
class Went:
    """The run has jumped to `step` on its timeline and has the settings it had there."""

    step: int


@dataclass(frozen=True)
class Branched:
    """This session continues from `step` of another, with its settings."""

    step: int


@dataclass(frozen=True)
class Failed:
    """The session has stopped stepping because of an error; it keeps its state and carries out commands."""

    step: int
    reason: str


@dataclass(frozen=True)
class Ended:
    step: int


Event = Status | Applied | Rejected | Stepped | Skipped | Noted | Went | Branched | Failed | Ended
