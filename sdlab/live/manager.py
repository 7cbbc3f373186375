"""Several sessions in one process: ids, timeouts, one pool of priors, one turnstile per device."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

import torch

from sdlab.channel import Turnstile
from sdlab.console import say, tell
from sdlab.errors import give_back, reason
from sdlab.live.building import prepare_for
from sdlab.live.bursts import Bursts, BurstSession
from sdlab.live.capacity import Capacity, measured
from sdlab.live.clients import NO_LIMIT, Client
from sdlab.live.copies import Fork
from sdlab.live.memory import Memory, resident_bytes
from sdlab.live.messages import Command, Patch, Pause, Stop
from sdlab.live.session import Session, Ties
from sdlab.live.state import Run
from sdlab.live.timeline import MOMENT_BYTES
from sdlab.priors import PriorConfig, silent
from sdlab.priors.batching import BatchingPrior
from sdlab.settings import Settings
from sdlab.types import Prior

MOST_PRIORS, MOST_ON_GPU = 8, 1  # that the pool keeps, per kind of device
SWEEP_EVERY = 1.0  # seconds between checks for sessions that are over
HISTORY_SHARE = 0.5  # of the memory, for the moments of all runs together
UNSEEN = "paused: nobody has looked at this page for {:g} min; press Start to continue"
TRIM_EVERY = 30.0  # seconds between returns of freed memory to the system


class PriorPool:
    """Loads each prior once per process and device; concurrent requests wait for the first load. With `batching`, its
    users share forward passes. The pool keeps the `MOST_PRIORS` most recently requested, on a GPU, whose memory holds
    few, the last; a run keeps its own alive, and others may share it."""

    def __init__(self, batching: bool = False) -> None:
        self._batching = batching
        self._lock = threading.Lock()
        self._loading: dict[tuple[PriorConfig, str], threading.Lock] = {}
        self._loaded: dict[tuple[PriorConfig, str], Prior] = {}
        self._alive: WeakValueDictionary[tuple[PriorConfig, str], Prior] = WeakValueDictionary()

    def get(self, config: PriorConfig, device: torch.device, progress: Callable[[str], None]) -> Prior:
        """Return the prior, loading it if necessary. Errors of loading are raised and not cached."""
        key = (config, str(device))
        with self._lock:
            gate = self._loading.setdefault(key, threading.Lock())
        with gate:
            with self._lock:
                self._loaded.pop(key, None)
                found = self._alive.get(key)
            if found is None:
                prior = config.load(device, progress)
                found = cast(Prior, BatchingPrior(prior)) if self._batching else prior
            with self._lock:
                self._loaded[key] = self._alive[key] = found  # requested last
                for old in self._surplus(device):
                    del self._loaded[old]
                    self._loading.pop(old, None)
            return found

    def _surplus(self, device: torch.device) -> list[tuple[PriorConfig, str]]:
        """Return which priors on this kind of device are too many, those first that were requested longest ago."""
        kind = torch.device(device).type
        same = [key for key in self._loaded if torch.device(key[1]).type == kind]
        return same[: -MOST_ON_GPU if kind == "cuda" else -MOST_PRIORS]


def _finisher(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until `device` has done what it was given; a CPU always has."""
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


@dataclass
class Seat:
    """A running session with its thread. `id` is unguessable and serves as the token of its viewport."""

    id: str
    session: Session
    thread: threading.Thread
    client: Client = field(default_factory=Client)
    last_seen: float = field(default_factory=time.monotonic)
    ends_at: float | None = None  # end of the grace period, once the page was closed
    on_close: list[Callable[[], None]] = field(default_factory=list)


class Manager:
    """Opens, finds and ends sessions. Their clients share the device's time (`sdlab.channel.Turnstile`), or with
    `batching` the prior's forward passes (`sdlab.priors.batching`). A seat ends `grace` seconds after its page was
    closed, so that a reload finds it again, or after `idle` seconds without a sign of life. Its run pauses after
    `unseen` seconds in which nobody looked at it or did anything, None for never. `memory` is the limit to keep, None
    for no limit. Runs that `bursts` takes have their steps taken in bursts by another process."""

    def __init__(
        self,
        device: torch.device | str = "cpu",
        max_sessions: int = 8,
        grace: float = 60.0,
        idle: float = 3600.0,
        batching: bool = False,
        memory: Memory | None = None,
        unseen: float | None = None,
        bursts: Bursts | None = None,
    ) -> None:
        self.bursts = bursts
        self.device = torch.device(device)
        self.max_sessions = max_sessions
        self.grace = grace
        self.idle = idle
        self.unseen = unseen
        self.pool = PriorPool(batching)
        self.memory = memory
        room = MOMENT_BYTES if memory is None else HISTORY_SHARE * memory.limit / max_sessions
        self.history = int(min(room, MOMENT_BYTES))  # bytes of the moments that each run keeps to go back to
        finish = _finisher(self.device)
        self.turnstile = None if batching else Turnstile(resident_bytes, finish)  # batching needs steps that overlap
        self.capacity: Capacity | None = None  # once it was measured
        self._lock = threading.Lock()
        self._seats: dict[str, Seat] = {}
        self._closing = threading.Event()
        threading.Thread(target=self._sweep, name="sdlab-sweeper", daemon=True).start()
        if memory is not None:
            how = (self.sessions, self._closing)
            threading.Thread(target=memory.watch, args=how, name="sdlab-memory", daemon=True).start()

    def preload(self, settings: Settings, users: int | None = None) -> None:
        """Load and compile for the first user in the background; for a server with `users` at the same time, measure
        and print how fast their runs can be. An error is said on the console; the sessions that need the prior meet it
        again and report it to their users."""

        def work() -> None:
            try:
                prepare_for(settings, self.pool.get(settings.prior, self.device, silent), self.device)
                if users is not None:
                    self.capacity = self.measured(settings, users)
                    tell(f"Seats: {self.capacity}")
            except Exception as e:
                say(f"the prior cannot be prepared: {reason(e)}")

        threading.Thread(target=work, name="sdlab-preload", daemon=True).start()

    def measured(self, settings: Settings, users: int) -> Capacity:
        """Return how many runs of `settings` there can be, and how fast they are with as many `users`."""
        room = max(self.memory.limit - resident_bytes(), 0) if self.memory is not None else None
        turnstile = self.turnstile or Turnstile(finish=_finisher(self.device))
        return measured(settings, self.device, self.pool.get, turnstile, users, self.history, room)

    def open(self, settings: Settings, client: Client | None = None) -> Seat:
        """Start a new session of `client` (None: a new one without limits) in its own thread, waiting for Resume.
        RuntimeError when all seats are taken, or all that the client may have, or the memory is full."""
        client = client or Client()
        return self._seat(self._session(settings, client), client)

    def in_bursts(self, settings: Settings) -> bool:
        """Return whether a run that starts with `settings` takes its steps in bursts on a shared GPU."""
        return self.bursts is not None and self.bursts.takes(settings)

    def _session(self, settings: Settings, client: Client, origin: Future[Fork] | None = None) -> Session:
        in_bursts = self.bursts if self.in_bursts(settings) else None

        def admit(wanted: Settings, run: Run) -> None:
            client.locks(run.settings, wanted)
            client.admit(wanted, run)
            if self.memory is not None and self.device.type == "cpu" and in_bursts is None:
                self.memory.admit(wanted, run)

        turn = (self.turnstile or Turnstile(resident_bytes)).turn(client.account)
        ties: Ties = {"turn": turn, "origin": origin, "history": self.history}
        if in_bursts is not None:
            return BurstSession(settings, in_bursts, lambda: client.quota, self.pool.get, admit, **ties)
        return Session(settings, self.device, self.pool.get, admit=admit, **ties)

    def branch(self, seat_id: str, changes: Iterable[tuple[str, Any]] = ()) -> Seat:
        """Open a seat whose session continues from the exact state of another, running or paused as its parent is,
        with `changes` as its first patch.

        Never waits: the new session's status is "loading" until its parent hands over its state between two steps, and
        "failed" if that does not happen. RuntimeError when all seats are taken, or the parent has ended or has failed
        before it had a state; ValueError for changes that are not allowed.
        """
        parent, changes = self.get(seat_id), tuple(changes)
        if parent is None:
            raise RuntimeError("there is nothing to branch from: the run has ended")
        settings = parent.session.settings
        settings.patch_all(changes)
        with self._lock:
            self._must_have_room(parent.client)  # before requesting a copy from the other session
        session = self._session(settings, parent.client, parent.session.branch())
        if changes:
            session.send(Patch(changes))
        return self._seat(session, parent.client)

    def _seat(self, session: Session, client: Client) -> Seat:
        """Start `session` in its own thread and return its seat."""
        thread = threading.Thread(target=session.run, kwargs={"start": False}, name="sdlab-session", daemon=True)
        with self._lock:
            self._must_have_room(client)
            seat = Seat(secrets.token_urlsafe(16), session, thread, client)
            self._seats[seat.id] = seat
        thread.start()
        return seat

    def must_have_room(self, client: Client) -> None:
        """Raise RuntimeError when all seats are taken, or all that the client may have, or the memory is full."""
        with self._lock:
            self._must_have_room(client)

    def _must_have_room(self, client: Client) -> None:
        """See `must_have_room`; the caller holds the lock."""
        if len(self._seats) >= self.max_sessions:
            raise RuntimeError(
                f"all {self.max_sessions} seats of this server are taken; try again when one is free, "
                "or start the server with a larger --max-sessions"
            )
        own = sum(seat.client.address == client.address for seat in self._seats.values()) if client.address else 0
        if client.most_seats is not None and own >= client.most_seats:
            raise RuntimeError(
                f"your address has {own} of this server's {self.max_sessions} seats, and may have {client.most_seats}: "
                f"close a lane or a page first, or wait until one that was closed is free; {NO_LIMIT}"
            )
        if self.memory is not None:
            self.memory.must_have_room()

    def get(self, seat_id: str) -> Seat | None:
        """Return the seat, or None if it has ended. Counts as a sign of life."""
        with self._lock:
            seat = self._seats.get(seat_id)
        if seat is not None:
            seat.last_seen = time.monotonic()
            seat.ends_at = None
        return seat

    def exists(self, seat_id: str) -> bool:
        """Return whether the seat exists. Does not count as a sign of life."""
        with self._lock:
            return seat_id in self._seats

    def leave(self, seat_id: str, at_least: float = 0.0) -> None:
        """Start the grace period of a seat whose page was closed, of at least `at_least` seconds."""
        with self._lock:
            seat = self._seats.get(seat_id)
        if seat is not None:
            seat.ends_at = time.monotonic() + max(self.grace, at_least)

    def close(self, seat_id: str) -> None:
        """End a session now."""
        with self._lock:
            seat = self._seats.pop(seat_id, None)
        if seat is None:
            return
        seat.session.send(Stop())
        for callback in seat.on_close:
            with contextlib.suppress(Exception):  # a callback that fails must not skip the others
                callback()

    def send(self, command: Command) -> None:
        """Send a command to all sessions."""
        for session in self.sessions():
            session.send(command)

    def sessions(self) -> list[Session]:
        """Return all sessions."""
        with self._lock:
            return [seat.session for seat in self._seats.values()]

    def count(self) -> int:
        with self._lock:
            return len(self._seats)

    def shutdown(self, timeout: float = 5.0) -> None:
        """End all sessions and wait for their threads, `timeout` seconds each."""
        self._closing.set()
        with self._lock:
            seats = list(self._seats.values())
        for seat in seats:
            self.close(seat.id)
        for seat in seats:
            seat.thread.join(timeout)

    def _sweep(self) -> None:
        trimmed = time.monotonic()
        while not self._closing.wait(SWEEP_EVERY):
            now = time.monotonic()
            with self._lock:
                over = [s.id for s in self._seats.values() if self._is_over(s, now)]
                unseen = [s for s in self._seats.values() if self._is_unseen(s, now)]
            for seat_id in over:
                self.close(seat_id)
            for seat in unseen:
                seat.session.send(Pause(UNSEEN.format((self.unseen or 0) / 60)))
            if now >= trimmed + TRIM_EVERY:  # from sessions that ended and films that were thinned
                trimmed = now
                give_back()

    def _is_over(self, seat: Seat, now: float) -> bool:
        return (seat.ends_at is not None and now > seat.ends_at) or now - seat.last_seen > self.idle

    def _is_unseen(self, seat: Seat, now: float) -> bool:
        """Return whether a seat runs although nobody has looked for a while."""
        return self.unseen is not None and seat.session.stepping and now - seat.client.attended > self.unseen
