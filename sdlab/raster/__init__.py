"""The rasterisers: one function per back-end, all with the signature of `sdlab.raster.cpu.rasterize`.

    rasterize(means [N, 3], quats [N, 4], scales [N, 3], opacities [N], colors [N, 3], viewmats [B, 4, 4],
              Ks [B, 3, 3], width, height, background [B, 3] | None) -> Render

A back-end's module, and what it needs, is imported when the back-end is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping

import torch

from sdlab.types import Render

Rasterizer = Callable[..., Render]

_MODULES = {
    "cpu": "sdlab.raster.cpu",  # numba with analytic gradients
    "gsplat": "sdlab.raster.gsplat",  # CUDA
    "tiled": "sdlab.raster.tiled",  # tile-culled plain torch: any device, no compiler
    "reference": "sdlab.raster.reference",  # dense plain torch, any precision: the oracle
}


class _Backends(Mapping[str, Rasterizer]):
    """Name -> rasterize. KeyError names what there is."""

    def __getitem__(self, name: str) -> Rasterizer:
        if name not in _MODULES:
            raise KeyError(f"no rasteriser {name!r}; there are {', '.join(_MODULES)}")
        return importlib.import_module(_MODULES[name]).rasterize

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


BACKENDS: Mapping[str, Rasterizer] = _Backends()


def choose(device: torch.device | str) -> Rasterizer:
    """The fastest rasteriser that works on a device: gsplat on CUDA, numba on the CPU, plain torch otherwise."""
    kind = torch.device(device).type
    if kind == "cuda" and importlib.import_module(_MODULES["gsplat"]).missing() is None:
        return BACKENDS["gsplat"]
    if kind == "cpu" and importlib.util.find_spec("numba") is not None:
        return BACKENDS["cpu"]
    return BACKENDS["tiled"]


def warm_up(device: torch.device | str) -> None:
    """Compile what `choose(device)` would compile at its first call; at once where there is nothing to compile."""
    module = importlib.import_module(choose(device).__module__)
    getattr(module, "warm_up", lambda: None)()
