"""How tests wait for other threads, processes and pages."""

from __future__ import annotations

import time
from collections.abc import Callable

LONG = 30.0  # seconds; a machine under load is slow, and a generous limit costs nothing when it is not


def until(condition: Callable[[], object], seconds: float = LONG, say: Callable[[], object] = lambda: "") -> None:
    """Return as soon as `condition()` is true; fail after `seconds`, with what `say()` returns."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true after {seconds:g} s {say()}".rstrip()
        time.sleep(0.005)
