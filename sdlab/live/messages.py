"""The closed union of what may be said to a session (commands) and what it says back (events).

All are frozen and picklable. Commands may be sent from any thread; each takes effect before the next step.
"""

from __future__ import annotations

import functools
from array import array
from dataclasses import dataclass
from typing import Any, Literal

# ---- commands --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """Change settings as one transaction: all of `changes` (path, value) are taken, or none."""

    changes: tuple[tuple[str, Any], ...]

    @staticmethod
    def one(path: str, value: Any) -> Patch:
        return Patch(((path, value),))


@dataclass(frozen=True)
class Pause:
    """Stop stepping; the session keeps answering commands."""


@dataclass(frozen=True)
class Resume:
    """Step on (also the first start)."""


@dataclass(frozen=True)
class Advance:
    """Take `n` steps, then pause; several add up."""

    n: int = 1


@dataclass(frozen=True)
class Reset:
    """Build the scene anew from the present settings, back to step 0."""


@dataclass(frozen=True)
class Goto:
    """Jump to the newest moment of the timeline at or before `step`, with the settings of then, and pause there."""

    step: int


@dataclass(frozen=True)
class Compare:
    """Hold the gradients of all losses at the present state against each other; the run goes on meanwhile."""


@dataclass(frozen=True)
class Stop:
    """End the session."""


Command = Patch | Pause | Resume | Advance | Reset | Goto | Compare | Stop

# ---- events ----------------------------------------------------------------------------------------------

Phase = Literal["loading", "compiling", "ready", "running", "paused", "failed", "ended"]


@dataclass(frozen=True)
class Status:
    """What the session is doing now, for the status line."""

    step: int
    phase: Phase
    text: str


@dataclass(frozen=True)
class Applied:
    """A change of settings is in force from `step` on; `note` says so when it waits for a reset, or names the words
    of a prompt that the prior does not know."""

    step: int
    path: str
    value: Any
    note: str = ""


@dataclass(frozen=True)
class Rejected:
    """A command was refused or rolled back; the run goes on as before."""

    step: int
    path: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """Figures of one step. They lie packed, with names that many steps share: a log holds thousands of steps, and as
    dicts would take four times as much memory and more."""

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
    """The first tuple that was equal to `names`."""
    return names


@dataclass(frozen=True)
class Skipped:
    """The update of `step` was skipped because `what` was not finite."""

    step: int
    what: str


@dataclass(frozen=True)
class Noted:
    """Something the user should know: the scene does not start as requested, or a slower rasteriser draws it."""

    step: int
    text: str


@dataclass(frozen=True)
class Went:
    """A jump on the timeline has led to `step`; the settings are those of then."""

    step: int


@dataclass(frozen=True)
class Branched:
    """This session goes on from `step` of another, with its settings."""

    step: int


@dataclass(frozen=True)
class Failed:
    """The session cannot go on stepping (it keeps its state and answers commands)."""

    step: int
    reason: str


@dataclass(frozen=True)
class Ended:
    step: int


Event = Status | Applied | Rejected | Stepped | Skipped | Noted | Went | Branched | Failed | Ended
