"""The time of each stage of a live step, and the step's cost relative to the prior's evaluations alone.

Because machines are noisy, all variants alternate within one process. Each round takes some live steps with the fastest
engine, some evaluations of the prior on the same batch, and some live steps of the variants: with the torch engine for
a network, at other resolutions for a gallery, and with colours that depend on the direction of view. Times are medians
over rounds (means for stages); ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sdlab import machine
from sdlab.bench.lanes import Lane, has_engines, median, ratio
from sdlab.options import DEFAULT_PRESET
from sdlab.rng import StepRng
from sdlab.settings import Settings, preset
from sdlab.step import Stopwatch, add_noise, take_views
from sdlab.types import cat_conds

WARM_UP = 100  # uncounted steps: compilation, caches, and a scene that begins to look like the prompt
SIZES = (32, 64, 96)  # pixels at which a gallery is measured
DEGREES = (1, 2, 3)  # of spherical harmonics


def run(out: Path | None = None, quick: bool = False, name: str = DEFAULT_PRESET) -> dict[str, Any]:
    """Measure the preset `name`, print a table, write JSON to `out`, and return the results."""
    rounds, per_round = (4, 15) if quick else (12, 25)
    base = preset(name).patch("scene.densify_every", 0)  # the cloud must not grow between rounds
    live = Lane(base, WARM_UP)
    slow = Lane(base.patch("prior.engine", "torch"), WARM_UP) if has_engines(base) else None
    sizes = {size: Lane(base.patch("prior.size", size), WARM_UP) for size in SIZES if "prior.size" in base.knobs()}
    plain = "scene.sh_degree" in base.knobs() and base.knob("scene.sh_degree").value == 0
    directed = {f"{n}": Lane(base.patch("scene.sh_degree", n), WARM_UP) for n in DEGREES} if plain else {}
    rows: list[dict[str, float]] = []
    for _ in range(rounds):
        row = {"live": live.steps(per_round), "bare": _bare(live, per_round)}
        if slow is not None:
            row["torch"] = slow.steps(per_round)
        for size, lane in sizes.items():
            row |= {f"{size}": lane.steps(per_round), f"{size} bare": _bare(lane, per_round)}
        row |= {f"degree {n}": lane.steps(per_round) for n, lane in directed.items()}
        rows.append(row)
    result = _summary(live, slow, rows, name) | {"load_seconds": _load_seconds(base)}
    if sizes:
        result["sizes"] = {size: _at_size(rows, size) for size in sizes}
    result["sh_degrees"] = {
        n: {"step_ms": median(rows, f"degree {n}"), "over_degree_0": ratio(rows, f"degree {n}", "live")}
        for n in directed
    }
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _load_seconds(s: Settings) -> float:
    """Return the seconds to read the prior from disk, with all libraries imported and nothing compiled."""
    started = time.perf_counter()
    s.prior.load(torch.device("cpu"))
    return time.perf_counter() - started


def _bare(lane: Lane, n: int) -> float:
    """Return the milliseconds of one step's evaluations of the prior alone: the same batch, without rendering."""
    session = lane.session
    s, prior, state = session.effective, session.prior, session.state
    rng, progress = StepRng(s.seed, state.step), s.progress(state.step)
    with torch.no_grad():
        cams, _, z = take_views(state.scene, s, prior, rng, Stopwatch())
        x = add_noise(z, s, rng, prior, progress)
    conds = session.bank.bind(s.prompt, s.loss.roles, cams)
    roles = len(s.loss.roles)
    z_t, t, cond = x.z_t.repeat(roles, 1, 1, 1), x.t.repeat(roles), cat_conds([conds[r] for r in s.loss.roles])
    prior.eps(z_t, t, cond)
    times = []
    for _ in range(n):
        started = time.perf_counter()
        prior.eps(z_t, t, cond)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.fmean(times)


def _at_size(rows: list[dict[str, float]], size: int) -> dict[str, float]:
    ms = median(rows, f"{size}")
    return {
        "step_ms": ms,
        "bare_ms": median(rows, f"{size} bare"),
        "ratio": ratio(rows, f"{size}", f"{size} bare"),
        "steps_per_second": round(1000 / ms, 1),
    }


def _summary(live: Lane, slow: Lane | None, rows: list[dict[str, float]], name: str) -> dict[str, Any]:
    s, prior = live.session.settings, live.session.prior
    result: dict[str, Any] = {
        "preset": name,
        "engine": prior.engine_name,
        "views": s.camera.views,
        "gaussians": live.gaussians,
        "machine": machine.processor(),
        "step_ms": median(rows, "live"),
        "bare_network_ms": median(rows, "bare"),
        "step_over_bare_network": ratio(rows, "live", "bare"),
        "stages_ms": live.stages_ms(statistics.fmean),
    }
    if slow is not None:
        result["torch_engine_step_ms"] = median(rows, "torch")
        result["torch_engine_over_fastest"] = ratio(rows, "torch", "live")
    return result


def _print(r: dict[str, Any]) -> None:
    print(f"preset {r['preset']}, engine {r['engine']}, {r['views']} views, {r['gaussians']} Gaussians, {r['machine']}")
    for stage, ms in r["stages_ms"].items():
        print(f"  {stage:12} {ms:7.2f} ms")
    print(f"  {'step':12} {r['step_ms']:7.2f} ms   prior alone {r['bare_network_ms']:.2f} ms", end="")
    print(f"   ratio {r['step_over_bare_network']:.2f}")
    print(f"  {'load':12} {r['load_seconds']:7.2f} s")
    for size, at in r.get("sizes", {}).items():
        print(f"  {size:3} pixels    {at['step_ms']:7.2f} ms   prior alone {at['bare_ms']:.2f} ms   ", end="")
        print(f"ratio {at['ratio']:.2f}   {at['steps_per_second']:.1f} steps/s")
    for n, at in r["sh_degrees"].items():
        print(f"  SH degree {n}  {at['step_ms']:7.2f} ms   {at['over_degree_0']:.2f} times degree 0")
    if "torch_engine_step_ms" in r:
        times = r["torch_engine_over_fastest"]
        print(f"  torch engine {r['torch_engine_step_ms']:7.2f} ms   {times:.2f} times the fastest")
