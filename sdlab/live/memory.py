"""A limit of the process's memory: settings that would break it are refused, and a run that grows past it is paused.

An estimate before a change of settings is adopted comes first. A thread then watches how large the process is and
halts the run that has grown most. As the last line, the system refuses allocations well beyond the limit (`bound`), so
that one step fails instead of the process being killed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from sdlab.errors import give_back
from sdlab.live.cost import Load
from sdlab.live.session import Session
from sdlab.live.state import Run
from sdlab.machine import memory_bytes
from sdlab.settings import Settings

SHARE = 0.8  # of the machine's or container's memory, by default
LEAST = 2_000_000_000  # bytes; a server without visitors takes half of it
FULL = 0.95  # share of the limit beyond which no seat is given
LOOK_EVERY = 0.1  # seconds
TRIM_EVERY = 2.0  # seconds
SLACK = 1_000_000_000  # bytes between the limit and the system's refusal


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:  # not on Linux
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return psutil.Process().memory_info().rss


class Memory:
    """The memory of a server, at most `limit` bytes (None: `SHARE` of what there is). ValueError for too little."""

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < LEAST:
            raise ValueError(f"--memory {limit / 1e9:g}: a server needs at least {LEAST / 1e9:g} GB")
        self.limit = max(int(SHARE * memory_bytes()), LEAST) if limit is None else limit
        self._trimmed = 0.0

    def admit(self, settings: Settings, run: Run) -> None:
        """Raise ValueError if a step of `settings` would need more memory than is left."""
        needs = max(load.step_bytes for load in Load.both(settings, run))
        holds = max(load.step_bytes for load in Load.both(run.settings, run)) if run.state is not None else 0.0
        left = self.limit - resident_bytes()
        if needs > holds and needs - holds > left:
            changes = ", ".join(f"{path} = {value}" for path, value in run.settings.differences(settings)[:3])
            raise ValueError(
                f"{changes}: a step would need about {needs / 1e9:.1f} GB of memory, and this server has "
                f"{max(left + holds, 0) / 1e9:.1f} GB left of {self.limit / 1e9:.1f}; lower camera.views, "
                "camera.resolution or scene.max_gaussians, or start the server with a larger --memory"
            )

    def must_have_room(self) -> None:
        """Raise RuntimeError when a new run would have too little memory."""
        if resident_bytes() > FULL * self.limit:
            give_back()
        if resident_bytes() > FULL * self.limit:
            raise RuntimeError(
                f"this server's memory is full ({self.limit / 1e9:.1f} GB); try again later, or start it with a larger "
                "--memory"
            )

    def watch(self, sessions: Callable[[], Iterable[Session]], over: threading.Event) -> None:
        """Keep the limit until `over` is set, halting one of `sessions` when necessary."""
        while not over.wait(LOOK_EVERY):
            if resident_bytes() > self.limit:
                self.make_room(sessions())

    def make_room(self, sessions: Iterable[Session]) -> None:
        """Return freed memory to the system; if the limit is still broken, halt the run that has grown most. One at a
        time: its memory is free once its step has ended."""
        if time.monotonic() - self._trimmed > TRIM_EVERY:
            self._trimmed = time.monotonic()
            give_back()
        size = resident_bytes()
        running = [session for session in sessions if session.stepping]
        if size <= self.limit or not running or any(session.turn.stop for session in running):
            return
        largest = max(running, key=lambda session: session.turn.grown)
        largest.turn.stop = (
            f"paused: this server's memory is full ({size / 1e9:.1f} of {self.limit / 1e9:.1f} GB), and this run has "
            "grown most; lower camera.views, camera.resolution or scene.max_gaussians and press Start"
        )


def bound(limit: int) -> None:
    """Let the system refuse memory beyond `limit` and some slack, where it can (Linux); to be called once all modules
    are imported. Only written memory counts: libraries reserve much more than they use."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    data = 1024 * int(fields["VmData"].split()[0])
    unused = max(data - resident_bytes(), 0)
    most, hard = limit + unused + SLACK, resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
