"""Samples and weights by the CUDA kernels of nerfacc 0.5 (Li et al. 2023), with the signatures of `sdlab.volume.rays`.

nerfacc marches from a near plane in intervals of equal length, and keeps those whose middle lies in an occupied cell
before the far plane. A sample is the middle of its interval: with the near plane half an interval before the first
sample, both mean the same samples.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from sdlab.machine import cache_folder
from sdlab.raster import gsplat_kernels
from sdlab.volume import rays as plain
from sdlab.volume.rays import Rays, Samples, crossing


def load() -> None:
    """Import nerfacc's kernels; the first time it compiles them, one process at a time.

    Raises RuntimeError if there is no compiler, and what importing or compiling raises.
    """
    with gsplat_kernels.one_at_a_time(), _compiler():
        kernels = importlib.import_module("nerfacc.cuda._backend")._C
    if kernels is None:
        raise RuntimeError("its kernels are not compiled, and nvcc was not found to compile them")


@contextlib.contextmanager
def _compiler() -> Iterator[None]:
    """Let nerfacc find what gsplat is compiled with, if anything, and keep what it compiles in our cache."""
    home = gsplat_kernels.toolkit()
    if home is None:
        yield
        return
    kept = cache_folder() / "nerfacc" / gsplat_kernels.folder().name
    kept.mkdir(parents=True, exist_ok=True)
    # left by a compilation that was killed; torch would wait for it, and `load` lets nobody else in
    (kept / "nerfacc_cuda" / "lock").unlink(missing_ok=True)
    path = os.pathsep.join([str(home / "bin"), os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    with (
        tempfile.TemporaryDirectory() as work,
        gsplat_kernels.compiling_with(home, Path(work)),
        _environment({"PATH": path, "TORCH_EXTENSIONS_DIR": str(kept)}),
    ):
        yield


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables during this block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def sample(rays: Rays, bound: float, count: int, offsets: Tensor, occupied: Tensor) -> Samples:
    """Return samples as `sdlab.volume.rays.sample` does, up to rounding at the borders of cells."""
    delta = 2 * bound / count
    near, far = crossing(rays, bound)
    cube = torch.full((1, 6), bound, device=near.device)
    cube[:, :3] *= -1
    found = _nerfacc().traverse_grids(
        rays.origins,
        rays.directions,
        occupied[None],
        cube,
        near_planes=near + (offsets - 0.5) * delta,
        far_planes=far,
        step_size=delta,
    )[1]
    distances, ray = found.vals, found.ray_indices
    return Samples(rays.origins[ray] + distances[:, None] * rays.directions[ray], distances, ray)


def weights(optical: Tensor, ray: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return weights and transmittance as `sdlab.volume.rays.weights` does; sums run along each ray, in float32."""
    if not len(ray):
        return plain.weights(optical, ray, count)
    near, far = torch.zeros_like(optical), torch.ones_like(optical)  # the optical depth already has the length in it
    w, transmittance, _ = _nerfacc().render_weight_from_density(near, far, optical, ray_indices=ray, n_rays=count)
    return w, transmittance


def _nerfacc() -> ModuleType:
    return importlib.import_module("nerfacc")
