"""Progress bars with the time left, on stderr."""

from __future__ import annotations

import sys
import time

EVERY = 5.0  # seconds between two lines; shorter work prints nothing


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class Meter:
    """Call it with how many of `total` are done; it prints a line every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self._started = self._said = time.perf_counter()

    def __call__(self, done: int, note: str = "") -> None:
        now = time.perf_counter()
        ended = done >= self.total
        if done <= 0 or now - self._started < EVERY or (now - self._said < EVERY and not ended):
            return
        self._said = now
        spent = now - self._started
        time_left = f"took {clock(spent)}" if ended else f"{clock(spent / done * (self.total - done))} left"
        parts = (f"{self.what}: {done}/{self.total}", note, time_left)
        print(", ".join(p for p in parts if p), file=sys.stderr, flush=True)
