"""How tests wait for other threads, processes and pages."""

from __future__ import annotations

import time
from collections.abc import Callable

LONG = 30.0  # seconds; a machine under load is slow, and a generous limit costs nothing when it is not


def until(condition: Callable[[], object], seconds: float = LONG, say: Callable[[], object] = lambda: "") -> None:
    """Return soon after `condition()` is true; fail after `seconds`, with what `say()` returns.

    Conditions that are slow to ask, such as what a browser shows, are asked less often: what they wait for needs the
    processor.
    """
    end, asked = time.monotonic() + seconds, time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < end, f"not true after {seconds:g} s {say()}".rstrip()
        time.sleep(min(max(0.005, 2 * (now - asked)), 0.2))
        asked = time.monotonic()
