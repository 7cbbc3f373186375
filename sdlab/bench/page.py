"""What an open page costs a run, how evenly lanes share the machine, and the time until something is visible.

Runs a real server in this process, as in app.py, and a real browser on the same machine:

first sight  from opening the page to the first visible change of the object after Start, and from there to the effect
             of another loss. The first visitor arrives while the server is loading, later ones when it is ready.
cost         steps per second of a session alone, and with the page open and the lens or the charts visible. The page is
             either in a browser on this machine, which competes for the CPU, or on another machine, where the server
             has the same work and the browser takes none of its CPU. Configurations alternate, with a new session each.
lanes        four lanes, branched by clicks, each with another loss: steps per lane, duration of the page's handlers,
             memory of the server's process, and the part of it used by the lanes' histories, which are bounded.
             Meanwhile a visitor keeps switching tabs and lanes.

Runs have no end and a constant number of Gaussians, so that all steps cost the same.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sdlab import machine
from sdlab.bench.lanes import median, ratio, wait_for
from sdlab.bench.visitor import (
    Meter,
    Serve,
    Site,
    Tab,
    browser_cpu_seconds,
    chromium,
    require_browser,
    rss_mb,
    until,
)
from sdlab.live.messages import Resume
from sdlab.live.timeline import bytes_held
from sdlab.priors import silent
from sdlab.progress import print_above, progress_bar
from sdlab.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SEATS = 4
LOSSES = ("sds", "vdm", "csd", "sbp")  # of the lanes; the first is the loss of the run that the others branch from
OTHER_LOSS = "vdm"  # the loss to which a first-sight visitor switches
TABS = ("lens", "charts", "versus", "results")
WARM_UP = 10  # uncounted steps per session
VISIBLE = 2.0  # mean difference of two images, out of 255, that is clearly visible
DRAWN = 3.0  # standard deviation in the middle of the view from which on an object is visible; empty has 0
STILL = 0.5  # mean difference of two images below which nothing moves
ACT_EVERY, RSS_EVERY = 15.0, 5.0  # seconds
FIRST_MINUTE = 60.0

SOONEST, TOGGLE_SOONEST = 15.0, 60.0  # limits in seconds, for the first change and for another loss
FAIR = 10.0  # limit in percent of the deviation from an equal share
HANDLERS_P95 = 200.0  # limit in ms
FLAT = 2.0  # limit of memory growth, in MB per minute


class Size(NamedTuple):
    """How much is measured."""

    visits: int = 4
    rounds: int = 5
    turn: float = 15.0  # seconds
    lanes: float = 600.0  # seconds


QUICK = Size(visits=2, rounds=1, turn=3.0, lanes=20.0)


class Way(NamedTuple):
    """A configuration in which a run is measured; without a `tab` there is no page."""

    title: str
    tab: str = ""
    here: bool = True  # whether the browser is on this machine
    least: float = 0.0  # required rate, relative to no page


WAYS = {
    "headless": Way("no page"),
    "lens": Way("page, lens", "lens", least=0.90),
    "charts": Way("page, charts", "charts", least=0.95),
    "lens elsewhere": Way("remote page, lens", "lens", here=False, least=0.90),
    "charts elsewhere": Way("remote page, charts", "charts", here=False, least=0.95),
}
OPENING = 8.0  # seconds to open and close a page, roughly


TIME_LEFT = "{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"


def advance(bar: tqdm, seconds: float, text: str) -> None:
    """Advance the bar by planned seconds and print a line of results."""
    bar.update(seconds)
    print_above(text)


def run_page(s: Settings, name: str, device: torch.device, serve: Serve, size: Size, out: Path) -> dict[str, Any]:
    """Measure a page that starts with `s`, the settings of the preset `name`; print tables and return the results.

    Writes page.json to the folder `out`; results so far are written even if it is interrupted or fails. Raises
    RuntimeError if there is no browser, a session fails, or a wait times out.
    """
    require_browser()
    result: dict[str, Any] = {
        "preset": name,
        "device": str(device),
        "machine": machine.processor(),
        "load_before": _load(),
        "size": size._asdict(),
        "requirements": [],
    }
    planned = size.visits * 2 * OPENING + size.rounds * len(WAYS) * (size.turn + OPENING) + size.lanes + 2 * OPENING
    bar = progress_bar(planned, "s", every=0, miniters=1, smoothing=0, bar_format=TIME_LEFT)
    endless = s.patch_all([("steps", 1_000_000), ("scene.densify_every", 0)])
    try:
        with bar, chromium() as browser:
            result["browser"] = f"Chromium {browser.version}, WebGL in software, {os.cpu_count()} cores shared by all"
            with Site(serve, endless, device, SEATS) as site:
                result["first_sight"] = first_sight(browser, site, size, bar)
                result["engine"] = site.manager.pool.get(endless.prior, device, silent).engine_name
                result["cost"] = cost(browser, site, endless, size, bar)
                result["lanes"] = lanes(browser, site, size, bar)
    finally:
        result["requirements"] = requirements(result)
        result["versions"] = machine.versions()
        (out / "page.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_tables(result)
    return result


def _load() -> float | None:
    """Return the load average of the last minute, or None if the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


# ---- first sight -----------------------------------------------------------------------------------------


def first_sight(browser: Browser, site: Site, size: Size, bar: tqdm) -> list[dict[str, Any]]:
    """Return the times of each visit in seconds.

    From opening the page: until the object stands still and Start can be pressed, and until the first visible change.
    From there, when another loss is chosen: until its first frame, and until that is visible.
    """
    rows = []
    for visit in range(size.visits):
        with _tab(browser, site) as tab:
            rows.append(_visit(tab))
        visited = rows[-1]
        text = f"{visited['change']:.1f} s to a change, {visited['loss_seen']:.1f} s to another loss"
        advance(bar, 2 * OPENING, f"first sight {visit + 1} of {size.visits}: {text}")
    return rows


@contextmanager
def _tab(browser: Browser, site: Site) -> Iterator[Tab]:
    """Open a page, and close it and all sessions at the end."""
    tab = Tab(browser, site)
    try:
        yield tab
    finally:
        tab.close()
        site.manager.close_all()


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


# ---- cost ----------------------------------------------------------------------------------------------


def cost(browser: Browser, site: Site, s: Settings, size: Size, bar: tqdm) -> list[dict[str, Any]]:
    """Return a row for each of `WAYS`: medians over rounds; ratios are medians of the ratios within a round."""
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(size.rounds):
        order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        rounds.append({})
        for key in order:
            spent = rounds[-1][key] = _turn(browser, site, s, WAYS[key], size.turn)
            text = f"cost, round {number + 1} of {size.rounds}, {WAYS[key].title}: {spent['rate']:.2f} steps/s"
            advance(bar, size.turn + OPENING, text)
    return [_row_of_cost(key, way, rounds) for key, way in WAYS.items()]


def _turn(browser: Browser, site: Site, s: Settings, way: Way, seconds: float) -> dict[str, float]:
    """Measure a new session for `seconds`, after its first steps."""
    if way.tab and way.here:
        with _tab(browser, site) as tab:
            tab.wait_for_phase("ready")
            tab.click(f"[data-tab={way.tab}]")
            tab.click("#start")
            return _spent(tab.meter, seconds, tab.wait)
    try:
        with site.visited_remotely(way.tab) if way.tab else nullcontext(site.manager.open(s).id) as seat:
            meter = site.manager.meters[seat]
            meter.session.send(Resume())
            return _spent(meter, seconds, time.sleep)
    finally:
        site.manager.close_all()


def _spent(meter: Meter, seconds: float, wait: Callable[[float], None]) -> dict[str, float]:
    until(lambda: meter.steps >= WARM_UP, "the first steps", meter.require_health, wait)
    before = _Spent.now(meter)
    wait(seconds)
    meter.require_health()
    return _Spent.now(meter).since(before)


class _Spent(NamedTuple):
    """Times so far, in seconds: wall time, and CPU time by consumer."""

    step: int
    wall: float
    session: float  # CPU time of the session's thread
    others: float  # of this process except session and measuring thread: the network's pool, handlers, views
    browser: dict[int, float]  # by process id

    @classmethod
    def now(cls, meter: Meter) -> _Spent:
        wait_for(meter.session.device)
        step, session = meter.now
        others = time.process_time() - time.thread_time() - session
        return cls(step, time.perf_counter(), session, others, browser_cpu_seconds())

    def since(self, before: _Spent) -> dict[str, float]:
        """Return steps per second, ms of CPU time per step, and the number of CPUs that the browser kept busy.

        Raises RuntimeError if there was no step.
        """
        steps, wall = self.step - before.step, self.wall - before.wall
        if steps == 0:
            raise RuntimeError(f"no step was done in {wall:.1f} s: the machine is too busy, or the turns are too short")
        browser = sum(spent - before.browser.get(process, 0.0) for process, spent in self.browser.items())
        return {
            "rate": steps / wall,
            "session_ms": 1e3 * (self.session - before.session) / steps,
            "others_ms": 1e3 * (self.others - before.others) / steps,
            "browser_ms": 1e3 * browser / steps,
            "browser_cores": browser / wall,
        }


def _row_of_cost(key: str, way: Way, rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    own = [each[key] for each in rounds]
    beside = [{f"{who}.{name}": v for who in (key, "headless") for name, v in each[who].items()} for each in rounds]
    return {
        "way": key,
        "title": way.title,
        "steps_per_second": median(own, "rate"),
        "times_headless": ratio(beside, f"{key}.rate", "headless.rate"),
        "required": way.least,
        "session_ms": median(own, "session_ms"),
        "session_times_headless": ratio(beside, f"{key}.session_ms", "headless.session_ms"),
        "others_ms": median(own, "others_ms"),
        "browser_ms": median(own, "browser_ms"),
        "browser_cores": median(own, "browser_cores"),
        "rounds": [{name: round(value, 3) for name, value in each.items()} for each in own],
    }


# ---- four lanes ------------------------------------------------------------------------------------------


def lanes(browser: Browser, site: Site, size: Size, bar: tqdm) -> dict[str, Any]:
    """Return steps per lane, durations of the handlers and memory, as described at the top of the file."""
    site.calls.clear()
    with _tab(browser, site) as tab:
        advance(bar, 2 * OPENING, "lanes: branching")
        meters = _branched(tab)
        before = {loss: meter.now[0] for loss, meter in meters.items()}
        started = time.perf_counter()
        memory = _watched(tab, list(meters.values()), size.lanes, started, bar)
        taken = time.perf_counter() - started
        steps = {loss: meter.now[0] - before[loss] for loss, meter in meters.items()}
        own = tab.own_times()
    equal = sum(steps.values()) / len(steps)
    by_handler: dict[str, list[float]] = defaultdict(list)
    for name, ms in site.calls:
        by_handler[name].append(ms)
    return {
        "seconds": round(taken, 1),
        "steps": steps,
        "steps_per_second": {loss: round(n / taken, 2) for loss, n in steps.items()},
        "deviation_percent": round(max(abs(n / max(equal, 1) - 1) for n in steps.values()) * 100, 1),
        "handlers": [
            _latency("all", [ms for _, ms in site.calls]),
            _latency("all, as the browser saw them", own),
            *(_latency(name, times) for name, times in sorted(by_handler.items())),
        ],
        "memory": _memory(memory),
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


class Memory(NamedTuple):
    """Memory of the server's process in MB; `history` is the part held by the lanes' timelines."""

    second: float
    rss: float
    history: float


def _watched(tab: Tab, meters: Sequence[Meter], seconds: float, started: float, bar: tqdm) -> list[Memory]:
    """Sample the memory while the lanes run and a visitor switches tabs and lanes."""

    def now() -> Memory:
        held = bytes_held(meter.session.timeline for meter in meters)
        return Memory(time.perf_counter() - started, rss_mb(), held / 2**20)

    memory: list[Memory] = []
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


def _memory(samples: Sequence[Memory]) -> dict[str, Any]:
    """Return the memory after the first minute (the first third of a short run) and at the end, and its growth.

    Growth is the slope of a fitted line, without the histories.
    """
    settled = [each for each in samples if each.second >= min(FIRST_MINUTE, samples[-1].second / 3)]
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
        "samples": [[round(value, 1) for value in each] for each in samples],
    }


# ---- results ---------------------------------------------------------------------------------------------


def requirements(r: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the requirements for what was measured, and whether they are met."""
    found: list[dict[str, Any]] = []

    def require(what: str, value: float | None, limit: float, least: bool = False) -> None:
        met = value is not None and (value >= limit if least else value <= limit)
        found.append({"what": what, "value": value, "limit": limit, "at_least": least, "met": met})

    if sights := r.get("first_sight"):
        require("first visitor: s to a visible change", sights[0]["change"], SOONEST)
        if len(sights) > 1:
            later = statistics.median(row["change"] for row in sights[1:])
            require("later visitors: s to a visible change", round(later, 2), SOONEST)
        require("slowest: s to the effect of another loss", max(row["loss_seen"] for row in sights), TOGGLE_SOONEST)
    for row in r.get("cost", ()):
        if row["required"]:
            require(f"{row['title']}: rate, times headless", row["times_headless"], row["required"], least=True)
    if lanes := r.get("lanes"):
        require("lanes: largest deviation from an equal share, %", lanes["deviation_percent"], FAIR)
        for row in lanes["handlers"][:2]:
            require(f"handlers, {row['handler']}: p95, ms", row["p95"], HANDLERS_P95)
        require(
            "memory after the first minute, without histories: MB per minute", lanes["memory"]["mb_per_minute"], FLAT
        )
    return found


CAPTION = """\
steps/s: in wall time; x headless: median of the ratios within a round. With a page in a browser on this machine,
server, session and browser share the CPU, and WebGL is drawn in software. With a remote page, the server does the same
work for it, and the browser takes no CPU here. session: CPU time in ms that the session's thread takes per step,
including frames and lens. others: the same for the server's other threads: the network's pool, the page's handlers and
its views. browser: its CPU time in ms per step, and the number of cores that it keeps busy."""


def print_tables(r: dict[str, Any]) -> None:
    print(f"\npreset {r['preset']}, engine {r['engine']}, {r['machine']}; {r['browser']}")
    _print_first_sight(r["first_sight"])
    _print_cost(r["cost"])
    _print_lanes(r["lanes"])
    print()
    for row in r["requirements"]:
        sign = ">=" if row["at_least"] else "<="
        print(f"{'met    ' if row['met'] else 'NOT MET'} {row['what']}: {row['value']} ({sign} {row['limit']:g})")


def _print_first_sight(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'first sight, s':24}{'ready':>8}{'change':>8}{'loss published':>16}{'loss seen':>11}")
    for number, row in enumerate(rows):
        title = "first visitor" if number == 0 else f"visitor {number + 1}"
        print(f"{title:24}{row['ready']:8.1f}{row['change']:8.1f}{row['loss_published']:16.1f}{row['loss_seen']:11.1f}")
    print("ready and change: since the page was opened; loss: since the change, when another loss was chosen")


def _print_cost(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"\n{'cost':24}{'steps/s':>9}{'x headless':>12}{'required':>10}{'session ms':>12}{'x headless':>12}"
        f"{'others ms':>11}{'browser ms':>12}{'cores':>7}"
    )
    for row in rows:
        required = f"{row['required']:.2f}" if row["required"] else "-"
        print(
            f"{row['title']:24}{row['steps_per_second']:9.2f}{row['times_headless']:12.2f}{required:>10}"
            f"{row['session_ms']:12.1f}{row['session_times_headless']:12.2f}{row['others_ms']:11.1f}"
            f"{row['browser_ms']:12.1f}{row['browser_cores']:7.2f}"
        )
    print(CAPTION)


def _print_lanes(lanes: dict[str, Any]) -> None:
    print(f"\n{'lane':24}{'steps':>8}{'steps/s':>9}")
    for loss, steps in lanes["steps"].items():
        print(f"{loss:24}{steps:8}{lanes['steps_per_second'][loss]:9.2f}")
    print(f"{lanes['seconds']} s; at most {lanes['deviation_percent']} % from an equal share")
    print(f"\n{'handler, ms':32}{'calls':>7}{'p50':>8}{'p95':>8}{'max':>9}")
    for row in lanes["handlers"]:
        cells = "".join(
            f"{'-' if row[key] is None else row[key]:>{n}}" for key, n in (("p50", 8), ("p95", 8), ("max", 9))
        )
        print(f"{row['handler']:32}{row['calls']:7}{cells}")
    m = lanes["memory"]
    print(
        f"memory of the server's process: {m['first_mb']:.0f} MB after {m['from_second']:.0f} s, {m['last_mb']:.0f} MB "
        f"at the end, including histories of {m['first_history_mb']:.0f} and {m['last_history_mb']:.0f} MB; the rest "
        f"grew by {m['mb_per_minute']:+.2f} MB per minute"
    )
