"""The cost of a step of every loss, relative to SDS.

All registered losses are measured, and a loss whose auxiliary can use several networks is measured with each. Each runs
with the fastest engine and with the torch engine for the prior's forward passes (an auxiliary always trains in torch).
All alternate within one process (`sdlab.bench.lanes`). Before each turn of a loss, SDS takes a turn with the same
engine, as the loss's baseline.

Auxiliaries are built and warmed up first, uncounted. Density control is off, so all clouds keep their size. The minimum
is reported beside the median, since other work on the machine affects it least.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdlab import machine
from sdlab.auxiliary.score import EXACT
from sdlab.bench.lanes import Lane, has_engines, median, ratio
from sdlab.live.manager import PriorPool
from sdlab.options import DEFAULT_PRESET
from sdlab.prompts import PromptBank
from sdlab.settings import Settings, preset
from sdlab.step import STAGES, step

BASE = "sds"
WARM_UP = 4  # uncounted steps, and warm-up steps of an auxiliary; these cost the same from the start
TURN = 5  # steps per lane and round
UNCOUNTED = 1  # uncounted steps before them, since the caches hold another lane's tensors
SECONDS, SECONDS_QUICK = 120.0, 20.0  # rounds are repeated for this long, and at least
ROUNDS_MIN, ROUNDS_MIN_QUICK = 3, 2  # times


class Entry(NamedTuple):
    """A row of the table: a loss and its settings; `network` is "" for a loss without a choice of networks."""

    loss: str
    network: str
    settings: Settings

    @property
    def label(self) -> str:
        return f"{self.loss} ({self.network})" if self.network else self.loss


def entries(base: Settings, only: Sequence[str] = ()) -> list[Entry]:
    """Return all losses, or SDS and those in `only`, SDS first, each with every network that it can train.

    Raises ValueError for an unknown loss.
    """
    knobs = base.knobs()
    found = []
    for name in only:
        base.patch("active", name)
    for loss in sorted({BASE, *only} if only else base.losses, key=lambda name: (name != BASE, name)):
        s = base.patch("active", loss)
        if (path := f"losses.{loss}.warm_up") in knobs:
            s = s.patch(path, min(knobs[path].value, WARM_UP))
        network = knobs.get(f"losses.{loss}.network")
        choices = [choice for choice in (network.choices if network else None) or ("",) if choice != EXACT]
        for choice in choices:
            found.append(Entry(loss, choice, s.patch(f"losses.{loss}.network", choice) if choice else s))
    return found


class Field:
    """All entries with one engine. A round maps each label to its time, and "sds before <label>" to its baseline."""

    def __init__(self, entries: list[Entry], pool: PriorPool) -> None:
        self.lanes = {entry.label: Lane(entry.settings, WARM_UP, pool.get) for entry in entries}
        self.engine = self.lanes[BASE].session.prior.engine_name
        self.rounds: list[dict[str, float]] = []

    def take_round(self) -> None:
        times = {}
        for label, lane in self.lanes.items():
            if label != BASE:
                times[_before(label)] = self.lanes[BASE].steps(TURN, UNCOUNTED)
                times[label] = lane.steps(TURN, UNCOUNTED)
        times[BASE] = sum(times[_before(label)] for label in self.lanes if label != BASE) / (len(self.lanes) - 1)
        self.rounds.append(times)

    def stats(self, label: str) -> dict[str, Any]:
        return {
            "ms": median(self.rounds, label),
            "least_ms": round(min(times[label] for times in self.rounds), 2),
            "x_sds": ratio(self.rounds, label, baseline := BASE if label == BASE else _before(label)),
            "x_sds_each": [round(times[label] / times[baseline], 3) for times in self.rounds],
            "stages_ms": self.lanes[label].stages_ms(statistics.median),
        }


def _before(label: str) -> str:
    return f"{BASE} before {label}"


def run(
    out: Path | None = None, quick: bool = False, name: str = DEFAULT_PRESET, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure all losses, or SDS and those in `only`, with the preset `name`; print a table, write JSON to `out`, and
    return the results."""
    seconds, rounds_min = (SECONDS_QUICK, ROUNDS_MIN_QUICK) if quick else (SECONDS, ROUNDS_MIN)
    base = preset(name).patch("scene.densify_every", 0)
    lines, pool = entries(base, only), PriorPool()
    fields = {"fastest": Field(lines, pool)}
    if has_engines(base) and not fields["fastest"].engine.startswith("torch"):
        on_torch = [e._replace(settings=e.settings.patch("prior.engine", "torch")) for e in lines]
        fields["torch"] = Field(on_torch, pool)
    started = time.perf_counter()
    rounds = 0
    while rounds < rounds_min or time.perf_counter() - started < seconds:
        for field in fields.values():
            field.take_round()
        rounds += 1
    result = _summary(lines, fields, name)
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _summary(lines: list[Entry], fields: dict[str, Field], name: str) -> dict[str, Any]:
    lanes = fields["fastest"].lanes
    return {
        "preset": name,
        "engines": {key: field.engine for key, field in fields.items()},
        "views": lanes[BASE].session.settings.camera.views,
        "gaussians": lanes[BASE].gaussians,
        "rounds": len(fields["fastest"].rounds),
        "steps_a_turn": TURN,
        "rows": [
            {
                "label": entry.label,
                "loss": entry.loss,
                "network": entry.network,
                "evaluations": _evaluations(lanes[entry.label]),
                **{key: field.stats(entry.label) for key, field in fields.items()},
            }
            for entry in lines
        ],
        "machine": machine.processor(),
        "versions": machine.versions(),
        "peak_rss_mb": machine.peak_rss_mb(),
    }


def _evaluations(lane: Lane) -> int:
    """Return the network evaluations per view of one more step; a training pass of an auxiliary counts as one."""
    session = lane.session
    return step(session.state, session.effective, session.prior, PromptBank(session.prior)).nfe


def _print(r: dict[str, Any]) -> None:
    print(f"preset {r['preset']}, {r['views']} views, {r['gaussians']} Gaussians, {r['rounds']} rounds, {r['machine']}")
    width = 2 + max(len(row["label"]) for row in r["rows"])
    print(f"{'':{width}}{'network':>12}" + "".join(f"{engine:>31}" for engine in r["engines"].values()))
    print(f"{'loss':{width}}{'evaluations':>12}" + f"{'ms per step (min)':>22}{'x SDS':>9}" * len(r["engines"]))
    for row in r["rows"]:
        cells = "".join(_cell(row[key]) for key in r["engines"])
        print(f"{row['label']:{width}}{row['evaluations']:12}{cells}")
    for key, engine in r["engines"].items():
        print(f"ms per stage, {engine}")
        print(" " * width + "".join(f"{stage:>11}" for stage in STAGES))
        for row in r["rows"]:
            stages = row[key]["stages_ms"]
            print(f"{row['label']:{width}}" + "".join(f"{stages[stage]:11.2f}" for stage in STAGES))


def _cell(stats: dict[str, Any]) -> str:
    return f"{stats['ms']:.2f} ({stats['least_ms']:.2f})".rjust(22) + f"{stats['x_sds']:9.2f}"
