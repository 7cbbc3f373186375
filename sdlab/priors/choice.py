"""Choose the precision and the engine for a network on a device, and say why when they are not the requested ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdlab.priors import Progress, openvino, silent
from sdlab.priors.cache import network_key
from sdlab.priors.engines import CompiledEngine, Engine, EngineFailure, Shapes, TorchEngine

ENGINES = ("auto", "torch", "openvino", "compiled")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device, knob: str = "prior.precision") -> tuple[str, str]:
    """Return the precision to run in, and a note for the user if it is not the requested one ("" if it is).

    "auto" is fp16 on a GPU; on a CPU it is bf16 where the hardware computes in it, fp32 elsewhere. Raises ValueError,
    naming the `knob`, for an unknown precision and for fp16 on a CPU, where it is slower than fp32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{knob} = {precision!r}: must be one of {', '.join(PRECISIONS)}")
    if device.type != "cpu":
        return ("fp16" if precision == "auto" else precision), ""
    if precision == "fp16":
        raise ValueError(f"{knob} = 'fp16' needs a GPU; on a CPU use 'auto', 'bf16' or 'fp32'")
    if precision == "auto":
        return ("bf16" if cpu_has_bf16() else "fp32"), ""
    if precision == "bf16" and not cpu_has_bf16():
        return "fp32", "this CPU does not compute in bf16, using fp32 instead"
    return precision, ""


def resolve_vae_precision(precision: str, network: str, device: torch.device) -> str:
    """Return the VAE's precision; "auto" is fp32 on a CPU and the network's precision on a GPU.

    Raises ValueError as `resolve_precision` does.
    """
    if precision == "auto":
        return "fp32" if device.type == "cpu" else network
    return resolve_precision(precision, device, "prior.vae_precision")[0]


def weights_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which to hold the weights for a precision from `resolve_precision`."""
    return torch.float32 if device.type == "cpu" else HALF.get(precision, torch.float32)


def choose_engine(
    engine: str,
    unet: nn.Module,
    weight_files: Sequence[Path],
    shapes: Shapes,
    precision: str,
    device: torch.device,
    threads: int = 0,
    progress: Progress = silent,
) -> tuple[Engine, str]:
    """Return the engine, and a note for the user if it is not the requested one ("" if it is).

    `weight_files` are the files `unet` was loaded from, `shapes` is an example, `precision` comes from
    `resolve_precision`. Torch is the fallback wherever OpenVINO cannot run. Raises ValueError for an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"prior.engine = {engine!r}: must be one of {', '.join(ENGINES)}")
    note = ""
    if engine == "compiled":
        return CompiledEngine(unet, precision, threads), ""
    if engine != "torch" and device.type == "cpu":
        try:
            config: Any = unet.config
            key = network_key(config, weight_files)
            return openvino.OpenVinoEngine(unet, shapes, key, precision, threads, progress), ""
        except EngineFailure as e:
            note = f"{e}, using torch instead"
    elif engine == "openvino":
        note = f"OpenVINO runs only on a CPU, not on {device.type}, using torch instead"
    return TorchEngine(unet, precision, threads), note


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bf16 natively (AMX or AVX512-bf16); others would only emulate it."""
    with contextlib.suppress(EngineFailure):
        return "BF16" in openvino.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)
