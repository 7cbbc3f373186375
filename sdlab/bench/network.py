"""The cost of one network evaluation on each engine, with one thread and with two, before a network is trained.

The networks have the toybox's architecture (`sdlab.toybox.model`) in several sizes, with random weights: time does not
depend on the weights. Because machines are noisy, all networks alternate within one process in every round. Results are
medians over all evaluations, with the minimum, since other work on the machine affects it least.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sdlab import machine
from sdlab.priors.choice import choose_engine, resolve_precision
from sdlab.priors.engines import Engine, Shapes
from sdlab.toybox.model import MAX_TOKENS, Shape, build

NETWORKS = (
    Shape(channels=(32, 64, 128), size=32, patch=1),
    Shape(channels=(48, 96, 192), size=64, patch=2),
    Shape(channels=(64, 128, 192), size=64, patch=2),
    Shape(channels=(32, 64, 128, 192), size=64, patch=1),
)
ENGINES = ("openvino", "torch")
THREADS = (1, 2)
BATCH = 4  # images times roles
CPU = torch.device("cpu")


def run(out: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Measure, print a table, write JSON to `out`, and return the results: ms per evaluation of BATCH images."""
    rounds, per_round = (3, 3) if quick else (12, 5)
    threads = torch.get_num_threads()
    try:
        with _separate_cache(), torch.random.fork_rng(devices=[]):
            lanes = [_Lane(shape) for shape in NETWORKS]
            for _ in range(rounds):
                for lane in lanes:
                    lane.measure(per_round)
    finally:
        torch.set_num_threads(threads)
    result = {
        "what": f"one evaluation of {BATCH} images, random weights, ms",
        "rows": [lane.row() for lane in lanes],
        "machine": machine.processor(),
        "versions": machine.versions(),
    }
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


@contextlib.contextmanager
def _separate_cache() -> Iterator[None]:
    """Use a temporary cache, so that random networks do not evict the user's compiled ones."""
    before = os.environ.get("SDLAB_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SDLAB_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["SDLAB_CACHE"]
            if before is not None:
                os.environ["SDLAB_CACHE"] = before


class _Cell(NamedTuple):
    """An engine with a number of threads, and its times in ms."""

    engine: Engine
    threads: int
    times: list[float]


class _Lane:
    """A network on all engines."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        unet = _unet(shape)
        side = shape.size // shape.patch
        z_t = torch.randn(BATCH, 3 * shape.patch**2, side, side)
        self.inputs = z_t, torch.randint(1000, (BATCH,)), torch.randn(BATCH, MAX_TOKENS, shape.text_width)
        self.parameters = sum(p.numel() for p in unet.parameters())
        self.gflop = _gflop(unet, *self.inputs)
        self.note = ""
        self.cells = [_Cell(self._engine(name, unet, threads), threads, []) for name in ENGINES for threads in THREADS]
        self.measure(1)  # compilation, memory from the system
        for cell in self.cells:
            cell.times.clear()

    def _engine(self, name: str, unet: nn.Module, threads: int) -> Engine:
        z_t, _, hidden = self.inputs
        precision, _ = resolve_precision("auto", CPU)
        shapes = Shapes(tuple(z_t.shape), tuple(hidden.shape))
        engine, note = choose_engine(name, unet, [], shapes, precision, CPU, threads)
        self.note = note or self.note
        return engine

    def measure(self, n: int) -> None:
        for cell in self.cells:
            torch.set_num_threads(cell.engine.torch_threads)
            for _ in range(n):
                started = time.perf_counter()
                cell.engine.forward(*self.inputs)
                cell.times.append(1e3 * (time.perf_counter() - started))

    def row(self) -> dict[str, Any]:
        """Return the results; "ms" names the engines that ran, which are fallbacks if one is missing."""
        return {
            "channels": list(self.shape.channels),
            "pixels": self.shape.size,
            "patch": self.shape.patch,
            "parameters": self.parameters,
            "gflop": round(self.gflop, 2),
            "ms": {
                f"{cell.engine.name}, {cell.threads} thread{'s' if cell.threads > 1 else ''}": {
                    "median": round(statistics.median(cell.times), 2),
                    "least": round(min(cell.times), 2),
                }
                for cell in self.cells
            },
            "note": self.note,
        }


def _unet(shape: Shape) -> Any:
    """Return the network as the loader builds it; training uses another implementation of attention."""
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_config(build(shape).unet.config)
    return unet.eval().requires_grad_(False)


def _gflop(unet: nn.Module, z_t: Tensor, t: Tensor, hidden: Tensor) -> float:
    """Return the billions of multiplications and additions of one evaluation, which no other work affects."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(z_t, t, encoder_hidden_states=hidden)
    return counter.get_total_flops() / 1e9


def _print(result: dict[str, Any]) -> None:
    rows = result["rows"]
    print(f"{result['what']}: median (min); {result['machine']}")
    print(f"{'pixels':>6} {'patch':>5}  {'channels':20}{'parameters':>11}{'GFLOP':>8}", end="")
    print("".join(f"{name:>26}" for name in rows[0]["ms"]))
    for row in rows:
        channels = " ".join(str(c) for c in row["channels"])
        print(f"{row['pixels']:6} {row['patch']:5}  {channels:20}{row['parameters']:11,}{row['gflop']:8.2f}", end="")
        print("".join(_shown(ms) for ms in row["ms"].values()))
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        print(note)


def _shown(ms: dict[str, float]) -> str:
    return f"{ms['median']:.2f} ({ms['least']:.2f})".rjust(26)
