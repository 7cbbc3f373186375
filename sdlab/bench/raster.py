"""Forward and backward time of the CPU rasteriser against tile-culled plain torch, for several scene and image sizes.

All alternate within one process, with the same scene, camera and gradient, because machines are noisy: ratios within a
run mean more than times of two runs. Torch has one thread and two tile sizes: 16 pixels, as in 3DGS and gsplat, and 8,
which is fastest on a CPU.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor

from sdlab.cameras import look_at
from sdlab.raster import cpu, tiled
from sdlab.rng import StepRng
from sdlab.types import Cameras

SCENES = ("ball", "shell")
COUNTS = (1000, 5000, 20000)
SIZES = (64, 128, 256)
THREADS = (1, 2)
TILE_SIDES = (16, 8)
COLUMNS = ("cpu_1_ms", "cpu_2_ms", "torch_16_ms", "torch_8_ms")
RATIOS = ("ratio_16", "ratio_8")
SECONDS_PER_CELL = 1.5  # rounds are repeated for this long, and at least ROUNDS_MIN times
ROUNDS_MIN = 3
FAST_PER_ROUND = 5  # runs of the CPU rasteriser for each run of torch


def run(out: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Measure, print a table, write JSON to `out`, and return the results: medians in ms per view, and their ratios.

    `quick` skips the largest scene and image.
    """
    threads, torch_threads = cpu.get_threads(), torch.get_num_threads()
    cpu.warm_up()
    heads = ("1 thread", "2 threads", "torch 16", "torch 8")
    print(f"{'scene':6}{'Gaussians':>10}{'pixels':>8}{''.join(f'{h:>12}' for h in heads)}   over 1 thread")
    rows: list[dict[str, Any]] = []
    try:
        torch.set_num_threads(1)
        for name in SCENES:
            for count in COUNTS[:-1] if quick else COUNTS:
                for size in SIZES[:-1] if quick else SIZES:
                    row = _measure(name, count, size)
                    rows.append(row)
                    times = "".join(f"{row[column]:10.2f}ms" for column in COLUMNS)
                    ratios = "".join(f"{row[ratio]:8.1f}x" for ratio in RATIOS)
                    print(f"{name:6}{count:10}{size:8}{times}{ratios}", flush=True)
    finally:
        cpu.set_threads(threads)
        torch.set_num_threads(torch_threads)
    result = {
        "what": "forward + backward, one view, median ms; ratio_T = torch_T_ms / cpu_1_ms, T the side of torch's tiles",
        "rows": rows,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def build(name: str, count: int, seed: int = 0) -> list[Tensor]:
    """Return means, quats, scales, opacities and colors of a scene within the unit ball, with gradients enabled.

    'ball' resembles the start of a run: a solid ball of isotropic, nearly transparent Gaussians. 'shell' resembles its
    end: small flat discs of mixed opacity on a surface.
    """
    rng = StepRng(seed, 0)(f"bench/{name}")
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    if name == "ball":
        means = 0.8 * directions * torch.rand(count, 1, generator=rng) ** (1 / 3)
        quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
        scales = torch.full((count, 3), 0.8 * (4 / 3 * math.pi / count) ** (1 / 3))
        opacities = torch.full((count,), 0.1)
    else:
        means = directions * (0.7 + 0.03 * torch.randn(count, 1, generator=rng))
        quats = torch.randn(count, 4, generator=rng)
        spacing = 0.7 * math.sqrt(4 * math.pi / count)
        scales = spacing * (0.3 + 0.7 * torch.rand(count, 3, generator=rng)) * torch.tensor([1.0, 1.0, 0.25])
        opacities = 0.1 + 0.88 * torch.rand(count, generator=rng)
    colors = torch.rand(count, 3, generator=rng)
    return [t.requires_grad_() for t in (means, quats, scales, opacities, colors)]


def _measure(name: str, count: int, size: int) -> dict[str, Any]:
    scene = build(name, count)
    angles = torch.tensor([30.0]), torch.tensor([15.0]), torch.tensor([2.8])
    cams = look_at(*angles, 49.1, size, size)
    pull = torch.randn(1, 3, size, size, generator=StepRng(0, 0)("bench/pull"))
    times: dict[str, list[float]] = {column: [] for column in COLUMNS}
    torch_runs = {f"torch_{side}_ms": partial(tiled.rasterize, tile_side=side) for side in TILE_SIDES}
    for rasterize in (cpu.rasterize, *torch_runs.values()):
        _forward_backward(rasterize, scene, cams, pull)  # fills caches and allocates memory
    started, rounds = time.perf_counter(), 0
    while rounds < ROUNDS_MIN or time.perf_counter() - started < SECONDS_PER_CELL:
        for threads in THREADS:
            cpu.set_threads(threads)
            for _ in range(FAST_PER_ROUND):
                times[f"cpu_{threads}_ms"].append(_forward_backward(cpu.rasterize, scene, cams, pull))
        for column, rasterize in torch_runs.items():
            times[column].append(_forward_backward(rasterize, scene, cams, pull))
        rounds += 1
    row: dict[str, Any] = {"scene": name, "gaussians": count, "pixels": size}
    row |= {column: statistics.median(values) for column, values in times.items()}
    row |= {f"ratio_{side}": row[f"torch_{side}_ms"] / row["cpu_1_ms"] for side in TILE_SIDES}
    return row


def _forward_backward(rasterize: Callable[..., Any], scene: list[Tensor], cams: Cameras, pull: Tensor) -> float:
    """Return the milliseconds for one image and its gradients."""
    started = time.perf_counter()
    image = rasterize(*scene, cams.viewmats, cams.Ks, cams.width, cams.height, torch.ones(1, 3)).rgb
    torch.autograd.grad(image, scene, pull)
    return 1e3 * (time.perf_counter() - started)
