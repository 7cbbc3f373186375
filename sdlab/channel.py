"""Communication between threads: the latest value, a log of events, and a fair turnstile."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


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


class Turnstile:
    """A lock that is granted in the order of arrival, so that the sessions on one device take turns step by step.

    With `threading.Lock`, the thread that just released the lock can take it again while others starve.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._serving = 0

    def __enter__(self) -> Turnstile:
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._changed.wait_for(lambda: self._serving == ticket)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()
