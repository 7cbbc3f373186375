"""Forward and backward time of the CPU rasteriser beside tile-culled plain torch, over sizes of scene and picture.

Both run the same scene, camera and gradient in one process, cell by cell one right after the other, because
machines are noisy: trust the ratios of one run more than the times of two. Torch has one thread.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
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
COLUMNS = ("cpu_1_ms", "cpu_2_ms", "torch_ms")
SECONDS_PER_CELL = 0.6  # repeats fill this much time, but there are never fewer than REPEATS_MIN
REPEATS_MIN = 3


def run(out: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Measure, print a table, write JSON to `out`, return the figures: medians in ms per view, and their ratios.

    `quick` leaves out the largest scene and picture.
    """
    threads, torch_threads = cpu.get_threads(), torch.get_num_threads()
    cpu.warm_up()
    print(
        f"{'scene':6}{'Gaussians':>10}{'pixels':>8}{'1 thread':>11}{'2 threads':>11}{'torch':>11}{'torch/1 thread':>16}"
    )
    rows: list[dict[str, Any]] = []
    try:
        torch.set_num_threads(1)
        for name in SCENES:
            for count in COUNTS[:-1] if quick else COUNTS:
                for size in SIZES[:-1] if quick else SIZES:
                    row = _measure(name, count, size)
                    rows.append(row)
                    times = "".join(f"{row[column]:9.2f}ms" for column in COLUMNS)
                    print(f"{name:6}{count:10}{size:8}{times}{row['ratio']:15.1f}x", flush=True)
    finally:
        cpu.set_threads(threads)
        torch.set_num_threads(torch_threads)
    result = {
        "what": "forward + backward, one view, median ms; ratio = torch_ms / cpu_1_ms",
        "rows": rows,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def build(name: str, count: int, seed: int = 0) -> list[Tensor]:
    """means, quats, scales, opacities, colors of a bench scene within the unit ball, ready for gradients.

    'ball' is how a run starts, a solid ball of isotropic, nearly transparent Gaussians; 'shell' is how it ends,
    small flat discs of mixed opacity on a surface.
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
    row: dict[str, Any] = {"scene": name, "gaussians": count, "pixels": size}
    for threads in (1, 2):
        cpu.set_threads(threads)
        row[f"cpu_{threads}_ms"] = _median_ms(lambda: _forward_backward(cpu.rasterize, scene, cams, pull))
    row["torch_ms"] = _median_ms(lambda: _forward_backward(tiled.rasterize, scene, cams, pull))
    row["ratio"] = row["torch_ms"] / row["cpu_1_ms"]
    return row


def _forward_backward(rasterize: Callable[..., Any], scene: list[Tensor], cams: Cameras, pull: Tensor) -> None:
    picture = rasterize(*scene, cams.viewmats, cams.Ks, cams.width, cams.height, torch.ones(1, 3)).rgb
    torch.autograd.grad(picture, scene, pull)


def _median_ms(work: Callable[[], None]) -> float:
    work()  # caches, and memory from the system
    times: list[float] = []
    while len(times) < REPEATS_MIN or sum(times) < SECONDS_PER_CELL:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
