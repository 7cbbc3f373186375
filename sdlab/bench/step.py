"""Where the time of one live step goes, and what it costs beside the bare evaluations of the prior's network.

All variants run interleaved in one process, because machines are noisy: each round takes some live steps with the
fastest engine, some bare network evaluations of the same batch, and some live steps with the torch engine. Figures
are medians over rounds, those of the stages means; the ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sdlab import machine
from sdlab.messages import Event, Stepped
from sdlab.session import Session
from sdlab.settings import Settings, preset
from sdlab.step import STAGES
from sdlab.types import cat_conds

WARM_UP = 15  # steps that are not counted: compilation, caches


def run(out: Path | None = None, quick: bool = False, name: str = "toybox") -> dict[str, Any]:
    """Measure the preset `name`; print a table, write JSON to `out`, return the figures."""
    rounds, per_round = (4, 15) if quick else (12, 25)
    base = preset(name).patch("scene.densify_every", 0)  # the cloud must not grow between rounds
    live = _Lane(base)
    slow = _Lane(base.patch("prior.engine", "torch")) if _has_engines(base) else None
    rows: list[dict[str, float]] = []
    for _ in range(rounds):
        row = {"live": live.steps(per_round), "bare": _bare(live, per_round)}
        if slow is not None:
            row["torch"] = slow.steps(per_round)
        rows.append(row)
    result = _summary(live, slow, rows, name)
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _has_engines(s: Settings) -> bool:
    return any(f.name == "engine" for f in dataclasses.fields(s.prior))


class _Lane:
    """A session that steps under the bench's control, publishing as the page would have it."""

    def __init__(self, settings: Settings) -> None:
        self.session = Session(settings.patch("steps", 1_000_000))
        self.stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.session.listen(self._listen)
        self.session.run(until=WARM_UP)
        self.clear()

    def clear(self) -> None:
        for values in self.stages.values():
            values.clear()

    def _listen(self, event: Event) -> None:
        if isinstance(event, Stepped):
            for stage in STAGES:
                self.stages[stage].append(event.stats[f"ms_{stage}"])

    def steps(self, n: int) -> float:
        """Milliseconds per step of `n` more steps, frames included."""
        session = self.session
        session.running = True
        started = time.perf_counter()
        session.run(until=session.state.step + n)
        return 1e3 * (time.perf_counter() - started) / n


def _bare(lane: _Lane, n: int) -> float:
    """Milliseconds of the network evaluations of one step, alone: the same batch, no rendering, no bookkeeping."""
    s, prior = lane.session.settings, lane.session.prior
    roles = s.loss.roles
    views = s.camera.views
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(views * len(roles), *prior.shape, generator=generator)
    t = torch.randint(20, 980, (views * len(roles),), generator=generator)
    texts = [s.prompt.text if role == "pos" else "" for role in roles for _ in range(views)]
    cond = cat_conds([prior.embed(text) for text in texts])
    prior.eps(z_t, t, cond)
    times = []
    for _ in range(n):
        started = time.perf_counter()
        prior.eps(z_t, t, cond)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.fmean(times)


def _summary(live: _Lane, slow: _Lane | None, rows: list[dict[str, float]], name: str) -> dict[str, Any]:
    def median(key: str) -> float:
        return round(statistics.median(row[key] for row in rows), 2)

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(row[a] / row[b] for row in rows), 2)

    s, prior = live.session.settings, live.session.prior
    result: dict[str, Any] = {
        "preset": name,
        "engine": prior.engine_name,
        "views": s.camera.views,
        "gaussians": int(live.session.state.scene.params["means"].shape[0]),
        "machine": machine.processor(),
        "step_ms": median("live"),
        "bare_network_ms": median("bare"),
        "step_over_bare_network": ratio("live", "bare"),
        "stages_ms": {stage: round(statistics.fmean(values), 2) for stage, values in live.stages.items() if values},
    }
    if slow is not None:
        result["torch_engine_step_ms"] = median("torch")
        result["torch_engine_over_fastest"] = ratio("torch", "live")
    return result


def _print(r: dict[str, Any]) -> None:
    print(f"preset {r['preset']}, engine {r['engine']}, {r['views']} views, {r['gaussians']} Gaussians, {r['machine']}")
    for stage, ms in r["stages_ms"].items():
        print(f"  {stage:12} {ms:7.2f} ms")
    print(f"  {'step':12} {r['step_ms']:7.2f} ms   bare network {r['bare_network_ms']:.2f} ms", end="")
    print(f"   ratio {r['step_over_bare_network']:.2f}")
    if "torch_engine_step_ms" in r:
        times = r["torch_engine_over_fastest"]
        print(f"  torch engine {r['torch_engine_step_ms']:7.2f} ms   {times:.2f} times the fastest")
