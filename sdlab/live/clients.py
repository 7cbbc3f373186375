"""Whose a seat is: charged for time, limited in number, in what it may set and in how fast it may speak."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sdlab.channel import Account
from sdlab.live.state import Admit, anything
from sdlab.settings import Settings

UNSEEN_SHARE = 0.25  # of the time of a client somebody looks at, while others want it

NO_LIMIT = "on your own computer there is no such limit"  # ends every refusal that only visitors get


def no_locks(before: Settings, wanted: Settings) -> None:
    """Lock no knob."""


class Bucket:
    """Allows `rate` units a second on average, and `burst` at once. Thread-safe."""

    def __init__(self, rate: float = math.inf, burst: float = math.inf) -> None:
        self.rate = rate
        self.burst = burst
        self._lock = threading.Lock()
        self._free_at = -math.inf  # when everything taken so far has been earned

    def take(self, units: float = 1.0, patience: float = 0.0) -> float:
        """Take `units` and return how many seconds to wait before using them. If that is longer than `patience`, take
        nothing; more than a whole burst is never allowed (infinity)."""
        if math.isinf(self.rate):
            return 0.0
        if units > self.burst:
            return math.inf
        with self._lock:
            now = time.monotonic()
            free_at = max(self._free_at, now - self.burst / self.rate) + units / self.rate
            wait = max(free_at - now, 0.0)
            if wait <= patience:
                self._free_at = free_at
            return wait


@dataclass(eq=False)
class Client:
    """Whom seats belong to: the user of one page, with all its lanes. The defaults limit nothing."""

    address: str = ""  # "" if unknown
    most_seats: int | None = None  # of one address
    admit: Admit = anything
    messages: Bucket = field(default_factory=Bucket)  # acts a second
    polls: Bucket = field(default_factory=Bucket)  # requests for news a second
    uploads: Bucket = field(default_factory=Bucket)  # bytes a second
    account: Account = field(default_factory=Account)
    locks: Callable[[Settings, Settings], None] = no_locks  # raises ValueError for a change of a locked knob
    attended: float = field(default_factory=time.monotonic)  # when somebody last looked or did something
    visible: bool = True  # whether somebody can see the page
    quota: str = ""  # whose time on a shared GPU this client uses; a secret, in the form that the platform tells it

    def look(self, visible: bool) -> None:
        """Note whether somebody looks: the page is `visible`, or hidden behind others, or closed. A client nobody looks
        at has `UNSEEN_SHARE` of the time."""
        self.visible = visible
        self.account.share = 1.0 if visible else UNSEEN_SHARE
        if visible:
            self.attended = time.monotonic()

    def acted(self) -> None:
        """Note that somebody did something."""
        self.attended = time.monotonic()
