"""Progress bars with the time left, on stderr."""

from __future__ import annotations

import sys

from tqdm import tqdm

DELAY = 5.0  # seconds; shorter work shows no bar


class Meter:
    """A progress bar that takes the number of finished items, out of `total`."""

    def __init__(self, what: str, total: int) -> None:
        often = 0.5 if sys.stderr.isatty() else 10.0  # a log file needs fewer lines than a terminal
        self._bar = tqdm(total=total, desc=what, delay=DELAY, mininterval=often, maxinterval=often)

    def __call__(self, done: int, note: str = "") -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= self._bar.total:
            self._bar.close()
