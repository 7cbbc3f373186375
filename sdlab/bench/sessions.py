"""Total steps per second when several sessions share a prior, taking turns or batching their forward passes.

All numbers of sessions, both ways, alternate within one process for several rounds. In a round, all sessions of a
configuration run for some seconds and publish frames as for the page. Results are medians over rounds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdlab import machine
from sdlab.bench.lanes import wait_for
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Failed, Resume
from sdlab.options import DEFAULT_PRESET
from sdlab.priors.batching import BatchingPrior
from sdlab.settings import Settings, preset

COUNTS = (1, 2, 4, 8)
WAYS = ("in turns", "batched")
WARM_UP = 10  # uncounted steps per session
PATIENCE = 600.0  # time limit for loading, compiling and warm-up, in seconds
SECONDS, SECONDS_QUICK = 5.0, 1.0
ROUNDS, ROUNDS_QUICK = 3, 1


def run(
    out: Path | None = None,
    quick: bool = False,
    name: str = DEFAULT_PRESET,
    counts: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure the preset `name`, print a table, write JSON to `out`, and return the results.

    Raises RuntimeError if a session fails.
    """
    s = preset(name).patch_all([("scene.densify_every", 0), ("steps", 1_000_000)])
    return measure(s, name, counts or COUNTS, device, quick, out)


def measure(
    s: Settings, name: str, counts: Sequence[int], device: torch.device | str, quick: bool, out: Path | None
) -> dict[str, Any]:
    """Do the same as `run` for the settings `s`; `name` is recorded with the results."""
    seconds, rounds = (SECONDS_QUICK, ROUNDS_QUICK) if quick else (SECONDS, ROUNDS)
    managers = {way: Manager(device, max(counts), batching=way == "batched") for way in WAYS}
    rows: dict[tuple[int, str], list[dict[str, float]]] = {(n, way): [] for n in counts for way in WAYS}
    try:
        for _ in range(rounds):
            for (n, way), row in rows.items():
                row.append(_together(managers[way], s, n, seconds))
        engine = _engine(managers["in turns"], s)
    finally:
        for manager in managers.values():
            manager.shutdown()
    result = _summary(rows, name, engine)
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _together(manager: Manager, s: Settings, n: int, seconds: float) -> dict[str, float]:
    """Return the total steps per second of n sessions, the slowest one's share relative to an equal one, and the
    requests per forward pass."""
    seats = [manager.open(s.patch("seed", i)) for i in range(n)]
    counters = [_Counter(seat) for seat in seats]
    try:
        for seat in seats:
            seat.session.send(Resume())
        ready = time.monotonic() + PATIENCE
        while min(counter.steps for counter in counters) < WARM_UP:
            _require_health(seats, ready)
            time.sleep(0.01)
        prior: Any = seats[0].session.prior
        before, counts = [counter.steps for counter in counters], _counts(prior)
        started = time.perf_counter()
        time.sleep(seconds)
        while any(counter.steps == first for counter, first in zip(counters, before, strict=True)):
            _require_health(seats, ready + seconds)  # a slow step may take longer
            time.sleep(0.01)
        wait_for(manager.device)
        taken = time.perf_counter() - started
        steps = [counter.steps - first for counter, first in zip(counters, before, strict=True)]
        _require_health(seats, ready + seconds)
        forwards, requests = (now - then for now, then in zip(_counts(prior), counts, strict=True))
        return {
            "steps_per_second": sum(steps) / taken,
            "least_share": min(steps) * n / max(sum(steps), 1),
            "requests_per_forward": requests / forwards if forwards else 1.0,
        }
    finally:
        for seat in seats:
            manager.close(seat.id)
        for seat in seats:
            seat.thread.join(PATIENCE)


class _Counter:
    """Counts the steps of a seat's session."""

    def __init__(self, seat: Seat) -> None:
        self.steps = 0
        seat.session.listen_to_steps(self._stepped)

    def _stepped(self, number: int) -> None:
        self.steps += 1


def _counts(prior: Any) -> tuple[int, int]:
    return (prior.forwards, prior.requests) if isinstance(prior, BatchingPrior) else (0, 0)


def _require_health(seats: Sequence[Seat], until: float) -> None:
    for seat in seats:
        for event in seat.session.events.since()[0]:
            if isinstance(event, Failed):
                raise RuntimeError(f"a session failed at step {event.step}: {event.reason}")
    if time.monotonic() > until:
        raise RuntimeError(f"the sessions were not ready within {PATIENCE:.0f} s")


def _engine(manager: Manager, s: Settings) -> str:
    return manager.pool.get(s.prior, manager.device, lambda _: None).engine_name


def _summary(rows: dict[tuple[int, str], list[dict[str, float]]], name: str, engine: str) -> dict[str, Any]:
    counts = sorted({n for n, _ in rows})
    alone = _median(rows[counts[0], "in turns"], "steps_per_second")
    return {
        "preset": name,
        "engine": engine,
        "machine": machine.processor(),
        "rows": [
            {
                "sessions": n,
                **{
                    way: {
                        "steps_per_second": round(_median(rows[n, way], "steps_per_second"), 2),
                        "times_the_first": round(_median(rows[n, way], "steps_per_second") / alone, 2),
                        "least_share": round(_median(rows[n, way], "least_share"), 2),
                        "requests_per_forward": round(_median(rows[n, way], "requests_per_forward"), 2),
                    }
                    for way in WAYS
                },
            }
            for n in counts
        ],
    }


def _median(row: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(each[key] for each in row)


def _print(r: dict[str, Any]) -> None:
    first = r["rows"][0]["sessions"]
    print(f"preset {r['preset']}, engine {r['engine']}, {r['machine']}; steps per second of all sessions together")
    print(
        f"{'sessions':8}" + "".join(f"{way:>12}{f'x {first} in turns':>16}{'least share':>13}" for way in WAYS), end=""
    )
    print(f"{'per forward':>13}")
    for row in r["rows"]:
        cells = "".join(
            f"{row[way]['steps_per_second']:12.2f}{row[way]['times_the_first']:16.2f}{row[way]['least_share']:13.2f}"
            for way in WAYS
        )
        print(f"{row['sessions']:8}{cells}{row['batched']['requests_per_forward']:13.2f}")
