"""Progress bars on stderr for commands that take long."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

TERMINAL_EVERY, LOG_EVERY = 0.5, 10.0  # seconds between updates; a log file needs fewer lines than a terminal


def progress_bar(total: float, unit: str, initial: float = 0, **options: Any) -> tqdm:
    """Return a bar with the time left, closed by the caller or a `with` block."""
    every = TERMINAL_EVERY if sys.stderr.isatty() else LOG_EVERY
    return tqdm(total=total, initial=initial, unit=unit, mininterval=every, maxinterval=every, **options)


def print_above(line: str) -> None:
    """Print a line on stdout without cutting through a bar."""
    with tqdm.external_write_mode():
        print(line, flush=True)
