"""The bar of a benchmark whose duration is planned in seconds."""

from __future__ import annotations

from tqdm import tqdm

from sdlab.progress import print_above, progress_bar

OPENING = 8.0  # seconds to open and close a page, roughly
TIME_LEFT = "{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"


def seconds_bar(planned: float) -> tqdm:
    """Return a bar of `planned` seconds."""
    return progress_bar(planned, "s", every=0, miniters=1, smoothing=0, bar_format=TIME_LEFT)


def advance(bar: tqdm, seconds: float, text: str) -> None:
    """Advance the bar by planned seconds and print a line of results."""
    bar.update(seconds)
    print_above(text)
