"""How evenly a server's seats share its device, what they cost in memory, and whether they are kept apart.

alone   1, 2, 4, ... runs of a preset, without pages: steps a second of each, those that `sdlab.live.capacity` predicts,
        the largest deviation from an equal share, memory per seat; and the share of a seat whose page is hidden.
pages   as many pages in browser contexts of their own for some minutes, with a server as it is for visitors: shares,
        memory of the server's process after the first minute, and everything in `sdlab.bench.intruder` tried by each
        page on its neighbour. The pages' 3D views are left out: drawn in software, they would take the processors for
        themselves.

The runs are those of `sdlab.bench.served`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sdlab import machine
from sdlab.bench import intruder
from sdlab.bench.served import (
    FAIR,
    FLAT,
    WARM_UP,
    Sample,
    constant,
    deviation,
    growth,
    print_required,
    required,
    served,
)
from sdlab.bench.sessions import PATIENCE
from sdlab.bench.visitor import Meter, MeteredManager, Serve, Site, Tab, require_browser, rss_mb, until
from sdlab.live.capacity import Capacity
from sdlab.live.clients import UNSEEN_SHARE, Client
from sdlab.live.manager import Seat
from sdlab.live.messages import Resume, Stepped
from sdlab.live.timeline import bytes_held
from sdlab.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SAMPLE_EVERY = 5.0  # seconds between two looks at the memory
STILL = 30.0  # seconds after which a run without a step was stopped


# ---- runs without pages ----------------------------------------------------------------------------------


def alone(s: Settings, device: torch.device, most: int, seconds: float) -> dict[str, Any]:
    """Return the rows of the table for 1, 2, 4, ..., `most` runs of `s`, and the share of a hidden page."""
    manager = MeteredManager(device, most)
    manager.preload(s)
    try:
        until(lambda: manager.pool.get(s.prior, device, lambda _: None), "the prior")
        capacity = manager.measured(s, most)
        counts = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
        rows = [_together(manager, s, n, seconds, capacity) for n in counts]
        hidden = _hidden_share(manager, s, seconds) if most > 1 else None
    finally:
        manager.close_all()
        manager.shutdown()
    return {"seconds": seconds, "capacity": capacity._asdict(), "text": str(capacity), "rows": rows, "hidden": hidden}


def _opened(manager: MeteredManager, s: Settings, n: int) -> list[Meter]:
    """Return the meters of `n` new seats that run."""
    seats = [manager.open(s.patch("seed", i), Client()) for i in range(n)]
    for seat in seats:
        seat.session.send(Resume())
    meters = [manager.meters[seat.id] for seat in seats]
    _wait_for_steps(meters, WARM_UP)
    return meters


def _wait_for_steps(meters: Sequence[Meter], steps: int) -> None:
    def health() -> None:
        for meter in meters:
            meter.require_health()

    until(lambda: min(meter.steps for meter in meters) >= steps, "the first steps", health)


def _counted(meters: Sequence[Meter], seconds: float) -> tuple[list[int], float]:
    """Return the steps of each run within about `seconds`, and how long that was."""
    before, began = [meter.steps for meter in meters], time.perf_counter()
    time.sleep(seconds)
    for meter in meters:
        meter.require_health()
    taken = time.perf_counter() - began
    return [meter.steps - first for meter, first in zip(meters, before, strict=True)], taken


def _together(manager: MeteredManager, s: Settings, n: int, seconds: float, capacity: Capacity) -> dict[str, Any]:
    """Return a row of the table."""
    before = rss_mb()
    meters = _opened(manager, s, n)
    steps, taken = _counted(meters, seconds)
    held, rss = _history_mb(meters), rss_mb()
    _end(manager, [meter.seat for meter in meters])
    return {
        "seats": n,
        "steps_per_second": round(sum(steps) / taken / n, 2),
        "predicted": round(capacity.rate(n), 2),
        "deviation_percent": deviation(steps),
        "mb_per_seat": round((rss - before) / n, 1),
        "history_mb_per_seat": round(held / n, 1),
    }


def _history_mb(meters: Sequence[Meter]) -> float:
    """Return the size of the timelines and the logged steps of runs, in MB."""
    steps = (event for meter in meters for event in meter.session.events.since()[0] if isinstance(event, Stepped))
    logs = sum(sys.getsizeof(step) + sys.getsizeof(step.values) for step in steps)
    return (bytes_held(meter.session.timeline for meter in meters) + logs) / 2**20


def _hidden_share(manager: MeteredManager, s: Settings, seconds: float) -> dict[str, float]:
    """Return the steps of a run whose page is hidden, relative to those of one that is looked at."""
    meters = _opened(manager, s, 2)
    meters[1].seat.client.look(False)
    steps, _ = _counted(meters, seconds)
    _end(manager, [meter.seat for meter in meters])
    return {"share": round(steps[1] / max(steps[0], 1), 2), "meant": UNSEEN_SHARE}


def _end(manager: MeteredManager, seats: Sequence[Seat]) -> None:
    for seat in seats:
        manager.close(seat.id)
    for seat in seats:
        seat.thread.join(PATIENCE)
        manager.meters.pop(seat.id, None)


# ---- runs with pages -------------------------------------------------------------------------------------


def pages(s: Settings, device: torch.device, seats: int, minutes: float, serve: Serve) -> dict[str, Any]:
    """Return what `seats` pages in browser contexts of their own find in some minutes."""
    with served(serve, s, device, seats) as (site, browser):
        empty = rss_mb()
        tabs = [Tab(browser, site, view=False) for _ in range(seats)]
        meters = [_started(tab) for tab in tabs]
        _wait_for_steps(meters, WARM_UP)
        before, began = [meter.steps for meter in meters], time.perf_counter()
        memory, loads = _watched(tabs, meters, 60 * minutes, began)
        taken = time.perf_counter() - began
        steps = [meter.steps - first for meter, first in zip(meters, before, strict=True)]
        broken, tried = _intrusions(tabs, meters)
        full = _refused(browser, site)
        for tab in tabs:
            tab.close()
    return {
        "browser": browser.version if browser.is_connected() else "Chromium",
        "seconds": round(taken, 1),
        "steps": steps,
        "steps_per_second": [round(n / taken, 2) for n in steps],
        "deviation_percent": deviation(steps),
        "memory": {"before_mb": round(empty, 1), **growth(memory, 1 / 2)},
        "load": round(float(np.mean(loads)), 1),
        "intrusions": {"tried": tried, "succeeded": broken},
        "when_full": full,
    }


def _started(tab: Tab) -> Meter:
    """Start the run of a page, and return its meter."""
    tab.wait_for_phase("ready")
    tab.click("#start")
    tab.wait_for_phase("running")
    return tab.meter


def _watched(
    tabs: Sequence[Tab], meters: Sequence[Meter], seconds: float, began: float
) -> tuple[list[Sample], list[float]]:
    """Sample the memory, and the load of the machine, while the pages run."""
    memory, loads = [], []
    while (second := time.perf_counter() - began) < seconds:
        memory.append(Sample(second, rss_mb(), _history_mb(meters)))
        loads.append(os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"))
        for tab in tabs:
            tab.require_health()
        tabs[0].wait(min(SAMPLE_EVERY, max(seconds - second, 0.1)))
    return memory, loads


def _intrusions(tabs: Sequence[Tab], meters: Sequence[Meter]) -> tuple[list[str], int]:
    """Let each page try to get at the run of its neighbour; return what succeeded, and the number of attempts."""
    seats = [_names(tab) for tab in tabs]
    settings = [meter.session.settings for meter in meters]
    broken, tried = [], 0
    for i, (tab, own) in enumerate(zip(tabs, seats, strict=True)):
        others = {f"seat {k + 1}": seat for k, seat in enumerate(seats) if k != i}
        for attempt in intruder.attempts(own, seats[(i + 1) % len(seats)]):
            tried += 1
            if why := intruder.succeeded(tab.page, own, others, attempt):
                broken.append(f"seat {i + 1}: {why}")
            tab.wait(0.1)  # slow enough not to be refused for speed alone
    before = [meter.steps for meter in meters]
    end = time.monotonic() + STILL
    while any(m.steps == n for m, n in zip(meters, before, strict=True)) and time.monotonic() < end:
        tabs[0].wait(0.5)
    for i, (meter, was) in enumerate(zip(meters, settings, strict=True)):
        if changes := was.differences(meter.session.settings):
            broken.append(f"seat {i + 1}: its settings were changed: {changes}")
        if meter.steps == before[i]:
            broken.append(f"seat {i + 1}: its run was stopped ({meter.session.status.text})")
    return broken, tried


def _names(tab: Tab) -> intruder.Seat:
    """Return the names of a page's seat, as its browser holds them."""
    desk = tab.page.evaluate("sessionStorage.getItem('sdlab-desk')")
    entries = tab.page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    name = next(entry for entry in reversed(entries) if f"/news/{desk}" in entry)
    return intruder.Seat(desk, name.partition("page=")[2].partition("&")[0], tab.seat_id())


def _refused(browser: Browser, site: Site) -> str:
    """Return what one page more than there are seats is told."""
    tab = Tab(browser, site, view=False)
    try:
        tab.page.wait_for_selector("#status .say")
        return " ".join(tab.page.inner_text("#status [data-panel]").split())
    finally:
        tab.close()


# ---- results ---------------------------------------------------------------------------------------------


def run(
    s: Settings, name: str, device: torch.device, seats: int, seconds: float, minutes: float, serve: Serve, out: Path
) -> bool:
    """Measure, print tables, write JSON into the folder `out`; return whether everything required was met. `minutes` 0
    leaves the pages out. Raises RuntimeError if a session fails or there is no browser."""
    if minutes:
        require_browser()
    s = constant(s)
    r: dict[str, Any] = {"preset": name, "machine": machine.processor(), "seats": seats}
    r["alone"] = alone(s, device, seats, seconds)
    _print_alone(r)
    if minutes:
        r["pages"] = pages(s, device, seats, minutes, serve)
        _print_pages(r["pages"])
    r["requirements"] = requirements(r)
    print_required(r["requirements"])
    (out / "seats.json").write_text(json.dumps(r, indent=2) + "\n", encoding="utf-8")
    return all(row["met"] for row in r["requirements"])


def requirements(r: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is required of the results, and whether it is met."""
    values = [("largest deviation from an equal share, %", r["alone"]["rows"][-1]["deviation_percent"], FAIR)]
    if found := r.get("pages"):
        values += [
            ("with pages: largest deviation from an equal share, %", found["deviation_percent"], FAIR),
            ("with pages: growth without histories, MB a minute", found["memory"]["mb_per_minute"], FLAT),
            ("with pages: intrusions that succeeded", len(found["intrusions"]["succeeded"]), 0),
        ]
    return [required(*row) for row in values]


def _print_alone(r: dict[str, Any]) -> None:
    found = r["alone"]
    print(f"preset {r['preset']}, {r['machine']}; {found['text']}")
    print(f"{'seats':>5}{'steps/s each':>14}{'predicted':>11}{'deviation':>11}{'MB a seat':>11}{'of it history':>15}")
    for row in found["rows"]:
        print(
            f"{row['seats']:5}{row['steps_per_second']:14.2f}{row['predicted']:11.2f}{row['deviation_percent']:9.1f} %"
            f"{row['mb_per_seat']:11.1f}{row['history_mb_per_seat']:15.1f}"
        )
    if (hidden := found["hidden"]) is not None:
        print(f"a run whose page is hidden takes {hidden['share']} of the steps of one that is seen")


def _print_pages(found: dict[str, Any]) -> None:
    memory, tried = found["memory"], found["intrusions"]
    print(f"\n{len(found['steps'])} pages for {found['seconds']:.0f} s, load of the machine {found['load']}")
    print(f"steps of each: {', '.join(map(str, found['steps']))}; at most {found['deviation_percent']} % from equal")
    print(
        f"memory of the server: {memory['before_mb']:.0f} MB without pages, {memory['first_mb']:.0f} after "
        f"{memory['from_second']:.0f} s, {memory['last_mb']:.0f} at the end, with "
        f"histories of {memory['first_history_mb']:.0f} and {memory['last_history_mb']:.0f} MB; the rest grew by "
        f"{memory['mb_per_minute']:+.2f} MB a minute"
    )
    print(f"attempts to get at another seat: {tried['tried']}, {len(tried['succeeded'])} succeeded")
    for text in tried["succeeded"]:
        print(f"  {text}")
    print(f"one page more than seats is told: {found['when_full']}")
