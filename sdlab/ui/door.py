"""The door to the teacher's page: a PIN opens it, and a cookie keeps it open.

Attempts are limited for each address and in all. Attempts from this machine (and from behind a proxy here that hides
addresses) have a limit of their own: nobody else can use up the teacher's.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict

from sdlab.live.clients import Bucket

ADDRESS_RATE, ADDRESS_BURST = 1 / 30, 5.0  # attempts a second of one address, and at once
ALL_RATE, ALL_BURST = 1 / 10, 30.0  # the same of all other machines together
MOST_ADDRESSES = 1000  # whose attempts are remembered
LASTS = 12 * 3600.0  # seconds for which a cookie opens the door
MOST_OPEN = 16  # cookies; with one more, the oldest ends


class TooMany(Exception):
    """There were too many attempts; the argument is the seconds to wait."""


class Door:
    """Thread-safe."""

    def __init__(self, pin: str) -> None:
        self._pin = pin.encode()
        self._lock = threading.Lock()
        self._all = Bucket(ALL_RATE, ALL_BURST)
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # by address
        self._open: OrderedDict[bytes, float] = OrderedDict()  # cookie -> when it ends

    def enter(self, pin: str, address: str) -> str | None:
        """Return a cookie for the right PIN, None for a wrong one. `TooMany` when `address`, "" for this machine, has
        to wait before it may try again; then the PIN is not looked at."""
        wait = self._bucket(address).take()
        if wait == 0 and address:
            wait = self._all.take()
        if wait > 0:
            raise TooMany(wait)
        if not hmac.compare_digest(pin.encode(errors="replace"), self._pin):
            return None
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            self._open[cookie.encode()] = time.monotonic() + LASTS
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return cookie

    def admits(self, cookie: str) -> bool:
        """Return whether a cookie opens the door."""
        given, now = cookie.encode(errors="replace"), time.monotonic()
        with self._lock:
            return any(hmac.compare_digest(given, known) and now < end for known, end in self._open.items())

    def leave(self, cookie: str) -> None:
        """End a cookie."""
        with self._lock:
            self._open.pop(cookie.encode(errors="replace"), None)

    def _bucket(self, address: str) -> Bucket:
        with self._lock:
            bucket = self._buckets.setdefault(address, Bucket(ADDRESS_RATE, ADDRESS_BURST))
            self._buckets.move_to_end(address)
            while len(self._buckets) > MOST_ADDRESSES:
                self._buckets.popitem(last=False)
            return bucket
