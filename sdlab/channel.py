"""Communication between threads: the latest value, a log of events, and a turnstile that shares time."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SHORTEST_ABSENCE, LONGEST_ABSENCE = 0.005, 0.25  # seconds for which a turnstile waits for an account that just left
SLACK = 0.05  # seconds by which it must have used less; for smaller differences, waiting costs more than it gains


class Latest(Generic[T]):
    """A value with one writer and many readers; a new value replaces the old one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._value: T | None = None
        self.version = 0

    def set(self, value: T) -> None:
        with self._changed:
            self._value = value
            self.version += 1
            self._changed.notify_all()

    def clear(self) -> None:
        """Remove the value, which also counts as a new version."""
        with self._changed:
            if self._value is None:
                return
            self._value = None
            self.version += 1
            self._changed.notify_all()

    def get(self) -> T | None:
        return self._value

    def wait(self, version: int, timeout: float | None = None) -> bool:
        """Block until there is a version newer than `version`; return False if `timeout` seconds pass first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.version > version, timeout)


class EventLog(Generic[T]):
    """A bounded history. Events are numbered; each reader remembers the number to continue from."""

    def __init__(self, capacity: int = 5000) -> None:
        self._lock = threading.Lock()
        self._events: deque[T] = deque(maxlen=capacity)
        self._end = 0  # number of the next event

    def append(self, event: T) -> None:
        with self._lock:
            self._events.append(event)
            self._end += 1

    def since(self, number: int = 0) -> tuple[list[T], int]:
        """Return the events from `number` on that are still held, and the number to pass next time."""
        with self._lock:
            first = self._end - len(self._events)
            skip = max(number - first, 0)
            return list(self._events)[skip:], self._end


class Account:
    """Whom a turnstile charges for time: one visitor, with all sessions of their page."""

    def __init__(self) -> None:
        self.share = 1.0  # of the time that each account with a share of 1 gets, above 0; any thread may set it
        self.used = 0.0  # seconds / share; an account that comes back after a pause starts at the others' level
        self.absence = 0.0  # usual seconds between two turns, a running average


class Turnstile:
    """A lock that accounts share by time: the waiting account that has held it for the fewest seconds, relative to its
    share, goes next.

    Turns of one account are granted in the order of arrival, so that the sessions of one page take turns step by step.
    A holder lets others go first between two pieces of a long turn, see `rest`. An account is away for a moment after
    each short turn, while it publishes what it did; the lock waits for it, up to `LONGEST_ABSENCE`, if it has used
    `SLACK` less than the next in line. Otherwise each of its short turns would follow a long one of another.
    """

    def __init__(self, meter: Callable[[], int] = lambda: 0, finish: Callable[[], object] = lambda: None) -> None:
        """`meter` returns the size of the process in bytes. `finish` waits until the device has done what it was given:
        only then is it known how long that took."""
        self.meter = meter
        self.finish = finish
        self._changed = threading.Condition()
        self._waiting: dict[Account, deque[object]] = {}  # tickets by account, both in order of arrival
        self._away: dict[Account, tuple[float, float]] = {}  # when an account left, and until when it is waited for
        self._held = False
        self._level = 0.0  # seconds used by the account that went last
        self._common = self.turn(Account())

    def turn(self, account: Account) -> Turn:
        """Return a context manager that holds the lock on behalf of `account`."""
        return Turn(self, account)

    def __enter__(self) -> Turnstile:
        """Take a turn on an account that all users without one of their own share."""
        self._common.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._common.__exit__()

    # ---- for turns ---------------------------------------------------------------------------------------

    def take(self, account: Account, resumed: bool = False) -> float:
        """Wait until `account` may hold the lock; return the time from which it is charged. A `resumed` turn goes
        before other turns of its account."""
        ticket = object()
        with self._changed:
            self._come(account, resumed)
            queue = self._waiting.setdefault(account, deque())
            (queue.appendleft if resumed else queue.append)(ticket)
            try:
                while self._held or queue[0] is not ticket or (delay := self._delay(account)) > 0:
                    self._changed.wait(None if self._held or queue[0] is not ticket or math.isinf(delay) else delay)
                self._held, self._level = True, max(self._level, account.used)
            finally:
                queue.remove(ticket)
                if not queue:
                    del self._waiting[account]
                self._changed.notify_all()  # an exception may have ended the wait
        return time.monotonic()

    def leave(self, account: Account, since: float) -> None:
        """Give up the lock that `account` has held `since` then."""
        with self._changed:
            now = time.monotonic()
            account.used += (now - since) / account.share
            self._held = False
            self._away[account] = now, now + min(2 * account.absence + SHORTEST_ABSENCE, LONGEST_ABSENCE)
            self._changed.notify_all()

    def is_shared(self, account: Account) -> bool:
        """Return whether another account than `account`, the holder, waits."""
        with self._changed:
            return any(other is not account for other in self._waiting)

    def due(self, account: Account, since: float) -> bool:
        """Return whether the holder, `account` since then, should let another account go first."""
        if not self._waiting:
            return False
        used = account.used + (time.monotonic() - since) / account.share
        with self._changed:
            return any(other is not account and other.used < used for other in self._waiting)

    def _come(self, account: Account, resumed: bool) -> None:
        """Note that `account` is back. Idle time earns no credit."""
        now = time.monotonic()
        left, until = self._away.pop(account, (-math.inf, -math.inf))
        if account not in self._waiting and now > until:
            account.used = max(account.used, self._level)
        if now - left < 1.0 and not resumed:
            account.absence += 0.2 * (now - left - account.absence)

    def _delay(self, account: Account) -> float:
        """Return for how long `account` has to wait for others that are away: 0 when it is the next, infinity while
        another waits that goes first."""
        if min(self._waiting, key=lambda other: other.used) is not account:
            return math.inf
        now = time.monotonic()
        self._away = {other: (left, until) for other, (left, until) in self._away.items() if until > now}
        ahead = (until for other, (_, until) in self._away.items() if other.used + SLACK < account.used)
        return max((until - now for until in ahead), default=0.0)


class Halted(ValueError):
    """Somebody else ended a turn before its work was done; the message is for the user."""


class Turn:
    """Turns of one account at a turnstile; a context manager to be used by one thread at a time.

    With a turnstile that has a `meter`, `grown` is the number of bytes that the process has grown during its turns. Any
    thread may set `stop`, for which the next turn, or the next `rest` of this one, raises `Halted`.
    """

    def __init__(self, turnstile: Turnstile, account: Account) -> None:
        self.account = account
        self.stop = ""
        self._turnstile = turnstile
        self._since = 0.0
        self._outer: Turn | None = None
        self._grown = 0
        self._size: int | None = None  # of the process when this turn began, None between turns

    @property
    def grown(self) -> int:
        began = self._size
        return self._grown + (self._turnstile.meter() - began if began is not None else 0)

    def __enter__(self) -> Turn:
        self._must_go_on()
        self._begin()
        self._outer, _mine.turn = getattr(_mine, "turn", None), self
        return self

    def __exit__(self, *exc: object) -> None:
        _mine.turn = self._outer
        self._end()

    def due(self) -> bool:
        """Return whether another account should go first."""
        return self.stop != "" or self._turnstile.due(self.account, self._since)

    def rest(self) -> None:
        """Let other accounts go first if one is due, and wait for the next turn. Raises `Halted` if `stop` is set."""
        self._must_go_on()
        if self.due():
            self._end()
            self._begin(resumed=True)

    def _must_go_on(self) -> None:
        if self.stop:
            why, self.stop = self.stop, ""
            raise Halted(why)

    def _begin(self, resumed: bool = False) -> None:
        self._since = self._turnstile.take(self.account, resumed)
        self._size = self._turnstile.meter()

    def _end(self) -> None:
        try:
            if self._turnstile.is_shared(self.account):
                self._turnstile.finish()
        finally:
            self._grown, self._size = self.grown, None
            self._turnstile.leave(self.account, self._since)


_mine = threading.local()  # `turn`: the one that this thread holds; `rested`: seconds that it has waited in `rest`


def turn_of_thread() -> Turn | None:
    """Return the turn that this thread holds."""
    return getattr(_mine, "turn", None)


def rest() -> None:
    """Let others go first if this thread has held a turnstile for longer than its share; to be called between two
    pieces of long work. Does nothing in a thread that holds none. Raises `Halted` if the turn was stopped."""
    turn = turn_of_thread()
    if turn is not None:
        began = time.perf_counter()
        turn.rest()
        _mine.rested = getattr(_mine, "rested", 0.0) + time.perf_counter() - began


def working_clock() -> float:
    """Return a clock in seconds that stands still while this thread waits in `rest`."""
    return time.perf_counter() - getattr(_mine, "rested", 0.0)
