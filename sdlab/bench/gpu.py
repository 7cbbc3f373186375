"""The cost of a step at the size of Stable Diffusion 2.1-base, relative to its network evaluations alone.

The prior is a stand-in with random weights (`sdlab.bench.stand_in`), loaded like the real one. For every loss, with one
view and several, it measures the time of a step, the time of the same network calls alone, their ratio, and memory. The
difference is training psi, U-Lite, the renderer, and the VAE with its backward pass. It then compares the rasterisers,
and sessions that share the prior, taking turns and batched.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sdlab import machine
from sdlab.bench import raster, sessions
from sdlab.bench.lanes import Lane, wait_for
from sdlab.bench.losses import entries
from sdlab.bench.stand_in import SIZES, stand_in
from sdlab.cameras import look_at
from sdlab.priors import PriorConfig
from sdlab.priors.wrapping import WrappedPrior
from sdlab.raster import BACKENDS
from sdlab.settings import Settings, preset
from sdlab.types import Cond, Prior

PRESET = "dreamfusion"
VIEWS = (1, 4)
WARM_UP = 3
STEPS, STEPS_QUICK = 8, 2  # measured steps per loss
GAUSSIANS = (5_000, 50_000)
REPEATS, REPEATS_QUICK = 10, 2


def run(
    out: Path | None = None, quick: bool = False, device: torch.device | str = "cuda", size: str = "sd-2.1-base"
) -> dict[str, Any]:
    """Measure, print tables, write JSON to `out` after every part, and return the results.

    Raises ValueError for the full size without a GPU.
    """
    device = torch.device(device)
    if size not in SIZES:
        raise ValueError(f"--size {size}: choose from {', '.join(SIZES)}")
    if device.type != "cuda" and size != "tiny":
        raise ValueError(f"--size {size}: this needs a CUDA GPU (--device {device}); --size tiny runs on any machine")
    with tempfile.TemporaryDirectory(prefix="sdlab-stand-in-") as folder:
        print(f"creating a stand-in for {size}", flush=True)
        place = str(stand_in(Path(folder) / "model", SIZES[size]))
        base = preset(PRESET).patch_all([("prior.path", place), ("scene.densify_every", 0)])
        result: dict[str, Any] = {
            "what": f"a step with random weights at the size of {size}, {SIZES[size].pixels} pixels",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else machine.processor(),
            "versions": machine.versions(),
            "losses": [],
        }

        def keep() -> None:
            if out is not None:
                out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

        _losses(base, device, STEPS_QUICK if quick else STEPS, result["losses"], keep)
        result["rasterisers"] = _rasterisers(device, SIZES[size].pixels, REPEATS_QUICK if quick else REPEATS)
        keep()
        counts = (1, 2) if quick else sessions.COUNTS
        result["sessions"] = sessions.measure(base.patch("camera.views", 1), PRESET, counts, device, quick, None)
        keep()
    return result


# ---- a step of every loss ---------------------------------------------------------------------------------------


class Recording(WrappedPrior):
    """A prior that records the calls of its network while `kept` is a list."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.kept: list[tuple[Tensor, Tensor, Cond]] | None = None

    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.kept is not None:
            self.kept.append((z_t, t, cond))
        return self._prior.eps(z_t, t, cond)


def _losses(
    base: Settings, device: torch.device, steps: int, rows: list[dict[str, Any]], keep: Callable[[], None]
) -> None:
    loaded: dict[PriorConfig, Recording] = {}

    def load(config: PriorConfig, on: torch.device, progress: Callable[[str], None]) -> Prior:
        if config not in loaded:
            loaded[config] = Recording(config.load(on, progress))
        return cast(Prior, loaded[config])

    print(f"{'loss':14}{'views':>6}{'evaluations':>12}{'step':>11}{'network':>11}{'ratio':>8}{'memory':>10}")
    for views in VIEWS:
        for entry in entries(base.patch("camera.views", views)):
            if entry.network == "copy":  # nobody copies a network of this size
                continue
            row = {"loss": entry.label, "views": views, **_measure(entry.settings, device, steps, load)}
            rows.append(row)
            keep()
            print(
                f"{row['loss']:14}{views:6}{row['evaluations']:12}{row['step_ms']:9.1f}ms{row['network_ms']:9.1f}ms"
                f"{row['ratio']:8.2f}{row['memory_gb']:8.2f}GB",
                flush=True,
            )


def _measure(s: Settings, device: torch.device, steps: int, load: Any) -> dict[str, Any]:
    _forget(device)
    lane = Lane(s, WARM_UP, load, device)
    prior = cast(Recording, lane.session.prior)
    step_ms = lane.steps(steps)
    prior.kept = []
    lane.steps(1)
    calls, prior.kept = prior.kept, None
    network_ms = _alone(prior, calls, device, steps)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1e6 * machine.peak_rss_mb()
    return {
        "evaluations": sum(len(z_t) for z_t, _, _ in calls) // s.camera.views,
        "step_ms": round(step_ms, 2),
        "network_ms": round(network_ms, 2),
        "ratio": round(step_ms / network_ms, 3),
        "memory_gb": round(memory / 1e9, 2),
    }


def _alone(prior: Recording, calls: Sequence[tuple[Tensor, Tensor, Cond]], device: torch.device, n: int) -> float:
    """Return the milliseconds of the network calls of one step, with nothing in between."""
    times = []
    for _ in range(n):
        wait_for(device)
        started = time.perf_counter()
        for call in calls:
            prior.eps(*call)
        wait_for(device)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# ---- the rasterisers --------------------------------------------------------------------------------------------


def _rasterisers(device: torch.device, pixels: int, repeats: int) -> list[dict[str, Any]]:
    """Measure the forward and backward pass of one view with the CPU rasteriser and, on CUDA, with gsplat."""
    rows = []
    where = {"cpu": torch.device("cpu")} | ({"gsplat": device} if device.type == "cuda" else {})
    print(f"{'Gaussians':>10}{'pixels':>8}" + "".join(f"{name:>11}" for name in where))
    for count in GAUSSIANS:
        row: dict[str, Any] = {"gaussians": count, "pixels": pixels}
        for name, on in where.items():
            row[f"{name}_ms"] = round(_forward_backward(name, count, pixels, on, repeats), 2)
        rows.append(row)
        print(f"{count:10}{pixels:8}" + "".join(f"{row[f'{name}_ms']:9.2f}ms" for name in where), flush=True)
    return rows


def _forward_backward(name: str, count: int, pixels: int, device: torch.device, repeats: int) -> float:
    scene = [x.detach().to(device).requires_grad_() for x in raster.build("shell", count)]
    cams = look_at(torch.tensor([30.0]), torch.tensor([15.0]), torch.tensor([2.8]), 49.1, pixels, pixels)
    viewmats, Ks, background = (x.to(device) for x in (cams.viewmats, cams.Ks, torch.ones(1, 3)))
    times = []
    for _ in range(repeats + 1):
        wait_for(device)
        started = time.perf_counter()
        image = BACKENDS[name](*scene, viewmats, Ks, pixels, pixels, background).rgb
        torch.autograd.grad(image, scene, torch.ones_like(image))
        wait_for(device)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])  # the first compiles
