"""Progress bars with the time left, on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

TERMINAL_EVERY, LOG_EVERY = 0.5, 10.0  # seconds between updates; a log file needs fewer lines than a terminal


def progress_bar(total: float, unit: str, every: float | None = None, **options: Any) -> tqdm:
    """Return a bar to be closed by the caller or by a `with` block.

    It is drawn at most every `every` seconds, or with 0 at each update; `options` go to tqdm.
    """
    if every is None:
        every = TERMINAL_EVERY if sys.stderr.isatty() else LOG_EVERY
    return tqdm(total=total, unit=unit, mininterval=every, maxinterval=every or LOG_EVERY, **options)


def run_bar(total: int) -> tqdm:
    """Return a bar that counts runs, which take long: drawn after each, the time left from the mean so far."""
    return progress_bar(total, "run", every=0, miniters=1, smoothing=0)


def print_above(line: str) -> None:
    """Print a line on stdout without cutting through a bar."""
    with tqdm.external_write_mode():
        print(line, flush=True)
