"""Family of rasterisers: one function each, all with the signature of `sdlab.raster.cpu.rasterize`.

Import what you need by name (`from sdlab.raster import BACKENDS, choose`); a back-end's own libraries are loaded
when it is first chosen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping

import torch

from sdlab.types import Render

Rasterizer = Callable[..., Render]

_DESCRIPTIONS = {
    "cpu": "numba, analytic gradients: the one to use without a GPU",
    "gsplat": "gsplat's CUDA kernels",
    "tiled": "tile-culled plain torch: where numba cannot run",
    "reference": "dense plain torch in any precision: the oracle of the tests",
}


class _Backends(Mapping[str, Rasterizer]):
    """name -> rasterize; a back-end's module is imported when it is asked for."""

    def __getitem__(self, name: str) -> Rasterizer:
        if name not in _DESCRIPTIONS:
            raise KeyError(f"no rasteriser {name!r}; there are {', '.join(_DESCRIPTIONS)}")
        return importlib.import_module(f"sdlab.raster.{name}").rasterize

    def __iter__(self) -> Iterator[str]:
        return iter(_DESCRIPTIONS)

    def __len__(self) -> int:
        return len(_DESCRIPTIONS)


BACKENDS: Mapping[str, Rasterizer] = _Backends()


def choose(device: torch.device | str) -> Rasterizer:
    """The rasteriser for a device: gsplat on CUDA, the compiled CPU one on the CPU.

    Raises ValueError for any other device, RuntimeError if CUDA is asked for and gsplat cannot work here.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return BACKENDS["cpu"]
    return BACKENDS["gsplat"]
