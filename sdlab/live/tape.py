"""What a run is made of, so that it can be repeated bit for bit: how each stretch of it began, every change with its
place, and prints of the scene on the way.

A stretch goes from a fresh scene, or from a place on another stretch (a jump on the timeline, a branch), to the next
start or jump. Its ticks are its steps and the warm-up steps of its auxiliaries, since changes take effect between any
two of them. The thread that owns a run writes its tape; other threads may read it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab.settings import Settings
from sdlab.transfer import download

PRINT_EVERY = 20  # ticks
MOST_PRINTS = 100  # of a stretch; then every second one is dropped, and they are made half as often
MOST_CHANGES = 10_000  # of a stretch
MOST_STRETCHES = 200  # of a tape
TOO_MANY = f"there were more than {MOST_CHANGES:,} changes, and later ones are not recorded"

Changes = tuple[tuple[str, Any], ...]


class Print(NamedTuple):
    """A fingerprint of a scene after `tick` ticks and `step` steps: a digest of all bits of its parameters, and the
    root mean square of each by name, which other machines reproduce nearly."""

    tick: int
    step: int
    digest: str
    sizes: Mapping[str, float]


class Place(NamedTuple):
    """A state on a stretch: after `tick` ticks and the first `changes` of its changes."""

    stretch: Stretch
    tick: int
    changes: int


@dataclass(eq=False)
class Stretch:
    """A part of a run without a jump. `origin` is the settings of a fresh scene, a place on another stretch, or None
    after a checkpoint."""

    origin: Settings | Place | None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    began: float = field(default_factory=time.time)
    tick: int = 0
    changes: list[tuple[int, Changes | None]] = field(default_factory=list)  # None: undone, its first step failed
    prints: list[Print] = field(default_factory=list)
    remarks: list[tuple[int, str]] = field(default_factory=list)  # why a repetition may differ from a tick on
    _every: int = PRINT_EVERY

    @property
    def place(self) -> Place:
        """The present state; where nothing has happened on this stretch yet, the place that it comes from."""
        if isinstance(self.origin, Place) and not self.tick and not self.changes:
            return self.origin
        return Place(self, self.tick, len(self.changes))

    def note(self, changes: Iterable[tuple[str, Any]]) -> None:
        """Record changes that act together from now on."""
        if len(self.changes) < MOST_CHANGES:
            self.changes.append((self.tick, tuple(changes)))
        elif not any(text == TOO_MANY for _, text in self.remarks):
            self.remark(TOO_MANY)

    def undo(self, kept: int) -> None:
        """Record that all changes but the first `kept` were rolled back. They keep their numbers, since a branch may
        come from between them, and an empty one follows, with which the state before them is there again."""
        if len(self.changes) > kept:
            self.changes[kept:] = [*((tick, None) for tick, _ in self.changes[kept:]), (self.tick, ())]

    def remark(self, text: str) -> None:
        """Record why a repetition may differ from now on."""
        self.remarks.append((self.tick, text))

    def move(self, step: int, params: Mapping[str, Tensor]) -> None:
        """Record a tick, with a print of the scene's `params` where one is due."""
        self.tick += 1
        if self.tick % self._every == 0:
            self.prints.append(print_of(self.tick, step, params))
            if len(self.prints) > MOST_PRINTS:
                self._every *= 2
                self.prints = [p for p in self.prints if p.tick % self._every == 0]


class Taken(NamedTuple):
    """What a hand-in tells of a run as it is now."""

    place: Place
    print: Print
    stretches: tuple[Stretch, ...]
    dropped: int  # stretches that are no longer known
    settings: Settings  # that the next step would follow
    pictures: np.ndarray | None  # uint8 [n, S, S, 3]: views around an object, or images; None for the plane
    has_sides: bool
    stats: Mapping[str, float]  # of the scene


class Tape:
    """The stretches of one session, the newest `MOST_STRETCHES`; `dropped` counts the others."""

    def __init__(self) -> None:
        self.stretches: tuple[Stretch, ...] = ()
        self.dropped = 0

    def add(self, stretch: Stretch, step: int, params: Mapping[str, Tensor]) -> None:
        """Go on with another stretch. One on which nothing has happened is forgotten."""
        stretch.prints.append(print_of(0, step, params))
        kept = self.stretches
        if kept and not kept[-1].tick and not kept[-1].changes:
            kept = kept[:-1]
        self.dropped += max(len(kept) + 1 - MOST_STRETCHES, 0)
        self.stretches = (*kept, stretch)[-MOST_STRETCHES:]


def print_of(tick: int, step: int, params: Mapping[str, Tensor]) -> Print:
    """Return the print of a scene's parameters."""
    names = sorted(params)
    copies = download([params[name].detach() for name in names])
    digest = hashlib.blake2b(digest_size=16)
    for name, values in zip(names, copies, strict=True):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.contiguous().numpy().tobytes())
    sizes = {name: _size(values) for name, values in zip(names, copies, strict=True)}
    return Print(tick, step, digest.hexdigest(), sizes)


def _size(values: Tensor) -> float:
    """Return the root mean square of a tensor, 0 for an empty one."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) / max(values.numel(), 1) ** 0.5
