"""Four lanes of one page, each with another loss: how evenly they step, how fast the page's handlers are, and how the
memory of the server's process grows, while a visitor keeps switching tabs and lanes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from sdlab.bench.duration import OPENING, advance
from sdlab.bench.served import FIRST_MINUTE, WARM_UP, Sample, deviation, growth, opened
from sdlab.bench.visitor import Meter, Site, Tab, rss_mb
from sdlab.live.timeline import bytes_held

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LOSSES = ("sds", "vdm", "csd", "sbp")  # of the lanes; the first is the loss of the run that the others branch from
TABS = ("lens", "charts", "versus", "results")
ACT_EVERY, RSS_EVERY = 15.0, 5.0  # seconds


def lanes(browser: Browser, site: Site, seconds: float, bar: tqdm) -> dict[str, Any]:
    """Return steps per lane within `seconds`, durations of the handlers, and memory."""
    site.calls.clear()
    with opened(browser, site) as tab:
        advance(bar, 2 * OPENING, "lanes: branching")
        meters = _branched(tab)
        before = {loss: meter.now[0] for loss, meter in meters.items()}
        started = time.perf_counter()
        memory = _watched(tab, list(meters.values()), seconds, started, bar)
        taken = time.perf_counter() - started
        steps = {loss: meter.now[0] - before[loss] for loss, meter in meters.items()}
        own = tab.own_times()
    by_handler: dict[str, list[float]] = defaultdict(list)
    for name, ms in site.calls:
        by_handler[name].append(ms)
    return {
        "seconds": round(taken, 1),
        "steps": steps,
        "steps_per_second": {loss: round(n / taken, 2) for loss, n in steps.items()},
        "deviation_percent": deviation(list(steps.values())),
        "handlers": [
            _latency("all", [ms for _, ms in site.calls]),
            _latency("all, as the browser saw them", own),
            *(_latency(name, times) for name, times in sorted(by_handler.items())),
        ],
        "memory": {**growth(memory, 1 / 3), "samples": [[round(value, 1) for value in each] for each in memory]},
    }


def _branched(tab: Tab) -> dict[str, Meter]:
    """Return the meters of four running lanes, by loss."""
    tab.wait_for_phase("ready")
    tab.click("#start")
    meters = {LOSSES[0]: tab.meter}
    tab.until(lambda: meters[LOSSES[0]].steps >= WARM_UP, "the first steps")
    for loss in LOSSES[1:]:
        before = tab.seat_id()
        tab.click(".lane.focus [data-do=branch]")
        tab.until(lambda before=before: tab.seat_id() != before, "another lane")
        tab.wait_for_phase("running")
        meters[loss] = tab.meter
        tab.toggle(loss)
    tab.until(lambda: all(_steps_by(meter, loss) for loss, meter in meters.items()), "steps of every lane")
    return meters


def _steps_by(meter: Meter, loss: str) -> bool:
    first = meter.first_step.get(loss)
    return first is not None and meter.now[0] >= first + WARM_UP


def _watched(tab: Tab, meters: Sequence[Meter], seconds: float, started: float, bar: tqdm) -> list[Sample]:
    """Sample the memory while the lanes run and a visitor switches tabs and lanes."""

    def now() -> Sample:
        held = bytes_held(meter.session.timeline for meter in meters)
        return Sample(time.perf_counter() - started, rss_mb(), held / 2**20)

    memory: list[Sample] = []
    acts = sample = minutes = 0
    act_every, sample_every = min(ACT_EVERY, seconds / 8), min(RSS_EVERY, seconds / 10)
    while (second := time.perf_counter() - started) < seconds:
        if second >= sample * sample_every:
            memory.append(now())
            sample += 1
        if second >= acts * act_every:
            _switch_view(tab, acts)
            acts += 1
        if second >= (minutes + 1) * FIRST_MINUTE:
            minutes += 1
            text = f"{memory[-1].rss:.0f} MB, {memory[-1].history:.0f} of it histories"
            advance(bar, FIRST_MINUTE, f"lanes, {minutes} of {seconds / 60:.0f} minutes: {text}")
        tab.require_health()
        tab.wait(0.25)
    memory.append(now())
    return memory


def _switch_view(tab: Tab, number: int) -> None:
    """Switch to the next tab, and after the last tab to the next lane."""
    tab.click(f"[data-tab={TABS[number % len(TABS)]}]")
    if number % len(TABS) == len(TABS) - 1:
        tab.click(f".lane >> nth={number // len(TABS) % len(LOSSES)} >> [data-do=focus]")


def _latency(name: str, times: Sequence[float]) -> dict[str, Any]:
    """Return percentiles in milliseconds, None if the handler was never called."""
    if not times:
        return {"handler": name, "calls": 0, "p50": None, "p95": None, "max": None}
    p50, p95 = np.percentile(times, (50, 95))
    return {
        "handler": name,
        "calls": len(times),
        "p50": round(float(p50), 1),
        "p95": round(float(p95), 1),
        "max": round(max(times), 1),
    }
