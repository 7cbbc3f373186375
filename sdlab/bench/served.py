"""What `bench page` and `bench seats` share: the runs and pages of a server in this process, its memory, and what is
required of the results.

Runs have no end and a constant number of Gaussians, so that all steps cost the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sdlab.bench.visitor import Serve, Site, Tab, chromium
from sdlab.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WARM_UP = 10  # uncounted steps per session
FIRST_MINUTE = 60.0  # seconds
FAIR = 10.0  # limit in percent of the deviation from an equal share
FLAT = 2.0  # limit of memory growth without histories, in MB per minute


# ---- runs and pages --------------------------------------------------------------------------------------


def constant(s: Settings) -> Settings:
    """Return settings of a run without end whose steps all cost the same."""
    s = s.patch("steps", 1_000_000)
    return s.patch("scene.densify_every", 0) if "scene.densify_every" in s.knobs() else s


@contextmanager
def served(serve: Serve, s: Settings, device: torch.device, seats: int) -> Iterator[tuple[Site, Browser]]:
    """Serve pages that start with `s`, and run a browser to open them. RuntimeError if either cannot be started."""
    with chromium() as browser, Site(serve, s, device, seats) as site:
        yield site, browser


@contextmanager
def opened(browser: Browser, site: Site) -> Iterator[Tab]:
    """Open a page, and close it and all sessions at the end."""
    tab = Tab(browser, site)
    try:
        yield tab
    finally:
        tab.close()
        site.manager.close_all()


def deviation(steps: Sequence[int]) -> float:
    """Return the largest deviation from an equal share, in percent."""
    equal = max(sum(steps) / len(steps), 1e-9)
    return round(max(abs(n / equal - 1) for n in steps) * 100, 1)


# ---- memory ----------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Memory of the server's process in MB; `history` is the part held by the runs' histories, which is bounded."""

    second: float
    rss: float
    history: float


def growth(samples: Sequence[Sample], early: float) -> dict[str, float]:
    """Return the memory after the first minute (the fraction `early` of a shorter run) and at the end, and its growth
    in between without the histories: the slope of a fitted line."""
    start = min(FIRST_MINUTE, early * samples[-1].second)
    settled = [sample for sample in samples if sample.second >= start]
    first, last = settled[0], settled[-1]
    at, rss, history = np.array(settled).T
    slope = float(np.polyfit(at / 60, rss - history, 1)[0]) if len(settled) > 1 else 0.0
    return {
        "from_second": round(first.second, 1),
        "first_mb": round(first.rss, 1),
        "first_history_mb": round(first.history, 1),
        "last_mb": round(last.rss, 1),
        "last_history_mb": round(last.history, 1),
        "mb_per_minute": round(slope, 2),
    }


# ---- requirements ----------------------------------------------------------------------------------------


def required(what: str, value: float | None, limit: float, least: bool = False) -> dict[str, Any]:
    """Return a requirement, of at most `limit` or with `least` of at least `limit`, and whether `value` meets it."""
    met = value is not None and (value >= limit if least else value <= limit)
    return {"what": what, "value": value, "limit": limit, "at_least": least, "met": met}


def print_required(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each requirement."""
    for row in rows:
        sign = ">=" if row["at_least"] else "<="
        print(f"{'met    ' if row['met'] else 'NOT MET'} {row['what']}: {row['value']} ({sign} {row['limit']:g})")
