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

The runs are those of `sdlab.bench.served`.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdlab import machine
from sdlab.bench.duration import OPENING, seconds_bar
from sdlab.bench.first_sight import first_sight
from sdlab.bench.four_lanes import lanes
from sdlab.bench.page_cost import WAYS, cost
from sdlab.bench.served import FAIR, FLAT, constant, print_required, required, served
from sdlab.bench.visitor import Serve, require_browser
from sdlab.priors import silent
from sdlab.settings import Settings

SEATS = 4
SOONEST, TOGGLE_SOONEST = 15.0, 60.0  # limits in seconds, for the first change and for another loss
HANDLERS_P95 = 200.0  # limit in ms


class Size(NamedTuple):
    """How much is measured."""

    visits: int = 4
    rounds: int = 5
    turn: float = 15.0  # seconds
    lanes: float = 600.0  # seconds


QUICK = Size(visits=2, rounds=1, turn=3.0, lanes=20.0)


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
    endless = constant(s)
    try:
        with seconds_bar(planned) as bar, served(serve, endless, device, SEATS) as (site, browser):
            result["browser"] = f"Chromium {browser.version}, WebGL in software, {os.cpu_count()} cores shared by all"
            result["first_sight"] = first_sight(browser, site, size.visits, bar)
            result["engine"] = site.manager.pool.get(endless.prior, device, silent).engine_name
            result["cost"] = cost(browser, site, endless, size.rounds, size.turn, bar)
            result["lanes"] = lanes(browser, site, size.lanes, bar)
    finally:
        result["requirements"] = requirements(result)
        result["versions"] = machine.versions()
        (out / "page.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_tables(result)
    return result


def _load() -> float | None:
    """Return the load average of the last minute, or None if the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


# ---- results --------------------------------------------------------------------------------------------


def requirements(r: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the requirements for what was measured, and whether they are met."""
    found: list[dict[str, Any]] = []

    def require(what: str, value: float | None, limit: float, least: bool = False) -> None:
        found.append(required(what, value, limit, least))

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
    print_required(r["requirements"])


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
