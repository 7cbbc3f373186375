"""The rasterisers: one function per back-end, all with the signature of `sdlab.raster.cpu.rasterize`.

    rasterize(means [N, 3], quats [N, 4], scales [N, 3], opacities [N], colors [N, 3] or [B, N, 3],
              viewmats [B, 4, 4], Ks [B, 3, 3], width, height, background [B, 3] | None) -> Render

A back-end's module and its dependencies are imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sdlab.raster import torch_project
from sdlab.types import Render

Rasterizer = Callable[..., Render]
NO_COMPILING = "SDLAB_NO_COMPILING"  # environment variable; set where there is no time to compile gsplat

_MODULES = {
    "cpu": "sdlab.raster.cpu",  # numba with analytic gradients
    "gsplat": "sdlab.raster.gsplat",  # CUDA
    "tiled": "sdlab.raster.tiled",  # tile-culled plain torch: any device, no compiler
    "reference": "sdlab.raster.reference",  # dense plain torch, any precision: the oracle
}


class _Backends(Mapping[str, Rasterizer]):
    """Mapping from name to `rasterize`. Raises KeyError, listing the names, for an unknown one."""

    def __getitem__(self, name: str) -> Rasterizer:
        if name not in _MODULES:
            raise KeyError(f"no rasteriser {name!r}; there are {', '.join(_MODULES)}")
        return importlib.import_module(_MODULES[name]).rasterize

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


BACKENDS: Mapping[str, Rasterizer] = _Backends()


class Choice(NamedTuple):
    """A device's back-end: its name in `BACKENDS`, and why a fallback is in use and how to fix that ("" if none is)."""

    name: str
    note: str


def backend_for(device: torch.device | str) -> Choice:
    """Return the fastest back-end that works on a device: gsplat on CUDA, numba on the CPU, plain torch otherwise.

    Determined once per device type. On CUDA the first call may take minutes, because gsplat compiles itself.
    """
    return _backend_for(torch.device(device).type)


@functools.cache
def _backend_for(kind: str) -> Choice:
    if kind == "cuda":
        if os.environ.get(NO_COMPILING) and announcement_for(kind):
            return _fallback("gsplat is not compiled yet, and there is no time for that now")
        reason = importlib.import_module(_MODULES["gsplat"]).missing()
        return Choice("gsplat", "") if reason is None else _fallback(reason)
    if kind == "cpu":
        if importlib.util.find_spec("numba") is not None:
            return Choice("cpu", "")
        return _fallback("numba is not installed; run `pip install numba`")
    return Choice("tiled", "")


def _fallback(reason: str) -> Choice:
    return Choice("tiled", f"{reason}. Using the 'tiled' rasteriser instead: plain torch, and much slower")


def announcement_for(device: torch.device | str) -> str:
    """Return one line on what `backend_for` is about to compile for a device and how long that takes, or ""."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return ""
    return importlib.import_module("sdlab.raster.gsplat_kernels").announcement()


def rasteriser_for(device: torch.device | str) -> Rasterizer:
    """Return the `rasterize` function of the device's back-end."""
    return BACKENDS[backend_for(device).name]


def world_covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """Return R S S^T R^T [N, 3, 3] of Gaussians with quaternions [N, 4] of any norm and scales [N, 3].

    Uses the device's back-end if it has an implementation faster than torch's.
    """
    module = importlib.import_module(rasteriser_for(quats.device).__module__)
    return getattr(module, "world_covariances", torch_project.world_covariances)(quats, scales)


def warm_up(device: torch.device | str) -> None:
    """Compile what the device's rasteriser would otherwise compile at its first call, if anything."""
    module = importlib.import_module(rasteriser_for(device).__module__)
    getattr(module, "warm_up", lambda: None)()
