"""The CUDA back-end: gsplat's kernels behind this family's signature.

gsplat 1.5 is the model that the other back-ends follow, so nothing is converted but layouts: its pictures are
[B, H, W, C], its radii [B, N, 2]; its means2d and their gradients are in pixels like ours. gsplat is imported when
it is first used, and compiles itself then, which takes minutes once.
"""

from __future__ import annotations

import importlib

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.types import Render, ScreenInfo


def missing() -> str | None:
    """What keeps this back-end from working here, or None if nothing does. May compile gsplat."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        backend = importlib.import_module("gsplat.cuda._backend")
    except ImportError as error:
        return f"gsplat cannot be imported ({error}); `pip install gsplat` brings it"
    if backend._C is None:
        return "gsplat is not compiled and there is no CUDA toolkit (nvcc) to compile it with"
    return None


def rasterize(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "B 4 4"],
    Ks: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
    background: Float[Tensor, "B 3"] | None = None,
) -> Render:
    """Render B views on CUDA; units, conventions and shapes are those of `sdlab.raster.cpu.rasterize`.

    `info.means2d` is part of the graph and keeps its gradient; its rows mean nothing where the radius is 0. Raises
    RuntimeError saying what to do if gsplat cannot work here, ValueError if the scene is not on CUDA.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"the gsplat rasteriser needs CUDA: {reason}. Use the 'cpu' rasteriser, or 'tiled' on a GPU")
    if means.device.type != "cuda":
        raise ValueError(f"means is on {means.device}; this back-end takes CUDA tensors: move the scene, or use 'cpu'")
    return _render(means, quats, scales, opacities, colors, viewmats, Ks, width, height, background)


def _render(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
) -> Render:
    rasterization = importlib.import_module("gsplat").rasterization
    pictures, alpha, meta = rasterization(
        means.float(),
        quats.float(),
        scales.float(),
        opacities.float(),
        colors.float(),
        viewmats.float(),
        Ks.float(),
        width,
        height,
        packed=False,  # means2d stays [B, N, 2], as density control wants it
        backgrounds=None if background is None else background.float(),
        render_mode="RGB+D",  # D is the accumulated depth, ED would be the normalised one
    )
    means2d = meta["means2d"]
    if means2d.requires_grad:
        means2d.retain_grad()
    rgb, depth = pictures.permute(0, 3, 1, 2).split([3, 1], 1)
    return Render(rgb, alpha.permute(0, 3, 1, 2), depth, ScreenInfo(meta["radii"].amax(-1), means2d))
