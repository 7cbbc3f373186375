"""Progress bars of long commands."""

from __future__ import annotations

from sdlab.progress import progress_bar

DELAY = 5.0  # seconds; shorter work shows no bar


class Meter:
    """A progress bar that takes the number of finished items, out of `total`."""

    def __init__(self, what: str, total: int) -> None:
        self._bar = progress_bar(total, "it", desc=what, delay=DELAY)

    def __call__(self, done: int, note: str = "") -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= self._bar.total:
            self._bar.close()
