"""Galleries that all priors of the process share: drawn once, dropped when memory is short, drawn again when needed.

A gallery takes about 21 kB per image at 64 pixels. The least recently used ones are dropped beyond `MEMORY_SHARE` of
the machine's memory; a source draws the same images again, so results do not depend on it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch

from sdlab.channel import Account, Turnstile
from sdlab.machine import memory_bytes
from sdlab.priors.closed_form import Background, Gallery
from sdlab.priors.sources import Drawn, Source, unheard

MEMORY_SHARE = 0.25
_TURNSTILE = Turnstile()


class Order(NamedTuple):
    """What identifies a gallery."""

    identity: str  # of the source
    key: str
    count: int
    size: int
    seed: int
    background: Background
    device: str


class Galleries:
    """A cache of galleries for any number of threads; concurrent requests for one gallery wait for a single drawing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._drawing: dict[Order, threading.Lock] = {}
        self._kept: OrderedDict[Order, Gallery] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Size of all cached galleries in bytes."""
        with self._lock:
            return sum(g.nbytes for g in self._kept.values())

    def find(self, order: Order) -> Gallery | None:
        """Return the gallery if it is cached."""
        with self._lock:
            found = self._kept.get(order)
            if found is not None:
                self._kept.move_to_end(order)
            return found

    def get(self, order: Order, draw: Callable[[], Gallery]) -> Gallery:
        """Return the gallery; if it is not cached, call `draw`, in one thread only. Its errors are not cached."""
        found = self.find(order)
        if found is not None:
            return found
        with self._lock:
            gate = self._drawing.setdefault(order, threading.Lock())
        with gate:
            found = self.find(order)
            if found is None:
                try:
                    found = draw()
                    self._keep(order, found)
                finally:
                    with self._lock:
                        self._drawing.pop(order, None)
        return found

    def _keep(self, order: Order, gallery: Gallery) -> None:
        with self._lock:
            self._kept[order] = gallery
            total = sum(g.nbytes for g in self._kept.values())
            while total > self.max_bytes and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                total -= dropped.nbytes


SHARED = Galleries(int(MEMORY_SHARE * memory_bytes()))


def drawn(source: Source, order: Order, factor: int | None, progress: Drawn = unheard) -> Gallery:
    """Draw the gallery of `order` from its source, ready for its device; see `Gallery.of` for `factor`. Galleries that
    are drawn at the same time take turns, so that together they use one core."""
    with _TURNSTILE.turn(Account()) as turn:

        def report(done: int, total: int) -> None:
            turn.rest()
            progress(done, total)

        rgba = source.draw(order.key, order.count, order.size, order.seed, report)
    if len(rgba) == 0:
        raise ValueError(f"{source.name} has no image for {order.key!r}")
    gallery = Gallery.of(rgba, order.background, factor)
    return gallery if order.device == "cpu" else gallery.to(torch.device(order.device))
