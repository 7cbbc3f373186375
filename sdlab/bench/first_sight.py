"""How long a visitor waits: for the first visible change of the object, and for the effect of another loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from sdlab.bench.duration import OPENING, advance
from sdlab.bench.served import opened
from sdlab.bench.visitor import Meter, Site, Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OTHER_LOSS = "vdm"  # the loss to which a first-sight visitor switches
VISIBLE = 2.0  # mean difference of two images, out of 255, that is clearly visible
DRAWN = 3.0  # standard deviation in the middle of the view from which on an object is visible; empty has 0
STILL = 0.5  # mean difference of two images below which nothing moves


def first_sight(browser: Browser, site: Site, visits: int, bar: tqdm) -> list[dict[str, Any]]:
    """Return the times of each visit in seconds.

    From opening the page: until the object stands still and Start can be pressed, and until the first visible change.
    From there, when another loss is chosen: until its first frame, and until that is visible.
    """
    rows = []
    for visit in range(visits):
        with opened(browser, site) as tab:
            rows.append(_visit(tab))
        visited = rows[-1]
        text = f"{visited['change']:.1f} s to a change, {visited['loss_seen']:.1f} s to another loss"
        advance(bar, 2 * OPENING, f"first sight {visit + 1} of {visits}: {text}")
    return rows


def _visit(tab: Tab) -> dict[str, float]:
    tab.wait_for_phase("ready")
    shots = _Screenshots(tab.view)
    tab.until(lambda: shots.stands_still(), "an object in the 3D view")
    ready = time.perf_counter() - tab.opened
    before = shots.last
    tab.click("#start")
    tab.until(lambda: shots.changed(before), "a visible change of the object")
    seen = time.perf_counter()

    meter = tab.meter
    before = shots.last
    tab.toggle(OTHER_LOSS)
    tab.until(lambda: _published(meter, OTHER_LOSS), f"a frame of {OTHER_LOSS}")
    published = time.perf_counter()
    tab.until(lambda: shots.changed(before), f"a visible change by {OTHER_LOSS}")
    return {
        "ready": round(ready, 2),
        "change": round(seen - tab.opened, 2),
        "loss_published": round(published - seen, 2),
        "loss_seen": round(time.perf_counter() - seen, 2),
    }


def _published(meter: Meter, loss: str) -> bool:
    """Return whether `loss` made the latest frame."""
    frame, first = meter.session.latest.get(), meter.first_step.get(loss)
    return frame is not None and first is not None and frame.step >= first


class _Screenshots:
    """Repeated screenshots of the middle of the 3D view, since notices come and go at its edges."""

    def __init__(self, view: Callable[[], np.ndarray]) -> None:
        self._view = view
        self.last = self._take()

    def _take(self) -> np.ndarray:
        return _middle(self._view(), 2)

    def stands_still(self) -> bool:
        """Return whether an object is visible and unchanged since the last call; the floor is outside the middle."""
        before, self.last = self.last, self._take()
        return bool(_middle(self.last, 2).std() > DRAWN and np.abs(self.last - before).mean() < STILL)

    def changed(self, before: np.ndarray) -> bool:
        """Return whether the view looks different from `before`."""
        self.last = self._take()
        return bool(np.abs(self.last - before).mean() > VISIBLE)


def _middle(image: np.ndarray, part: int) -> np.ndarray:
    """Return the middle 1 / part of [H, W, 3] in each direction."""
    height, width = (n // part for n in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
