"""What an open page costs a run, in a browser on this machine or on another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from sdlab.bench.duration import OPENING, advance
from sdlab.bench.lanes import median, ratio, wait_for
from sdlab.bench.served import WARM_UP, opened
from sdlab.bench.visitor import Meter, Site, browser_cpu_seconds, until
from sdlab.live.messages import Resume
from sdlab.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


def cost(browser: Browser, site: Site, s: Settings, n: int, seconds: float, bar: tqdm) -> list[dict[str, Any]]:
    """Return a row for each of `WAYS`, with turns of `seconds`: medians over `n` rounds; ratios are medians of the
    ratios within a round."""
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(n):
        order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        rounds.append({})
        for key in order:
            spent = rounds[-1][key] = _turn(browser, site, s, WAYS[key], seconds)
            text = f"cost, round {number + 1} of {n}, {WAYS[key].title}: {spent['rate']:.2f} steps/s"
            advance(bar, seconds + OPENING, text)
    return [_row_of_cost(key, way, rounds) for key, way in WAYS.items()]


def _turn(browser: Browser, site: Site, s: Settings, way: Way, seconds: float) -> dict[str, float]:
    """Measure a new session for `seconds`, after its first steps."""
    if way.tab and way.here:
        with opened(browser, site) as tab:
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
