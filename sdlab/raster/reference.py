"""The oracle: the model of `sdlab.raster.model` as dense plain torch, in any float type, differentiated by autograd.

Every Gaussian is evaluated at every pixel, so time and memory grow as B N H W; use it to check small scenes. The blend
is the textbook formula (the conic S'^-1, no factorisation, products of 1 - alpha), so that it shares no shortcut with
the back-ends that are tested against it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.raster.model import ALPHA_MAX, ALPHA_MIN, NEAR, T_STOP
from sdlab.raster.torch_project import covariance, project, screen_extents
from sdlab.types import Render, ScreenInfo


def rasterize(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "*V N 3"],
    viewmats: Float[Tensor, "B 4 4"],
    Ks: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
    background: Float[Tensor, "B 3"] | None = None,
) -> Render:
    """Render B views; differentiable in everything, in the precision of `means`.

    Units and conventions: see `sdlab.raster.cpu.rasterize`; `info.means2d` is part of the graph and keeps its
    gradient.
    """
    means2d, M, depths = project(means, quats, scales, viewmats, Ks, width, height)
    if means2d.requires_grad:
        means2d.retain_grad()
    covariances = covariance(M)
    _, _, radii = screen_extents(means2d, covariances, depths, opacities, width, height)

    shown = colors.expand(viewmats.shape[0], -1, -1)
    views = [
        _blend(means2d[v], covariances[v], depths[v], opacities, shown[v], width, height)
        for v in range(viewmats.shape[0])
    ]
    rgb, alpha, depth = (torch.stack(parts) for parts in zip(*views, strict=True))
    if background is not None:
        rgb = rgb + (1 - alpha) * background[:, :, None, None]
    return Render(rgb, alpha, depth, ScreenInfo(radii, means2d))


def _blend(
    means2d: Float[Tensor, "N 2"],
    covariances: Float[Tensor, "N 2 2"],
    depths: Float[Tensor, " N"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "N 3"],
    width: int,
    height: int,
) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "1 H W"], Float[Tensor, "1 H W"]]:
    """Blend one view over black; return rgb, alpha and accumulated depth."""
    in_front = (depths > NEAR).nonzero()[:, 0]
    order = in_front[torch.argsort(depths[in_front].detach(), stable=True)]
    rows = torch.arange(height, dtype=means2d.dtype, device=means2d.device) + 0.5
    columns = torch.arange(width, dtype=means2d.dtype, device=means2d.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    dx = x.reshape(1, -1) - means2d[order, 0, None]
    dy = y.reshape(1, -1) - means2d[order, 1, None]
    S_xx, S_xy, S_yy = (covariances[order, i, j, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    power = 0.5 * (S_yy * dx * dx - 2 * S_xy * dx * dy + S_xx * dy * dy) / (S_xx * S_yy - S_xy * S_xy)
    alpha = (opacities[order, None] * torch.exp(-power)).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))

    # T after Gaussian i; once it reaches T_STOP, this Gaussian and all behind it are dropped.
    alpha = torch.where(torch.cumprod(1 - alpha, 0) > T_STOP, alpha, torch.zeros_like(alpha))
    T = torch.cat([torch.ones_like(x).reshape(1, -1), torch.cumprod(1 - alpha, 0)])
    weights = alpha * T[:-1]
    rgb = colors[order].T @ weights
    depth = depths[None, order] @ weights
    return rgb.reshape(3, height, width), (1 - T[-1]).reshape(1, height, width), depth.reshape(1, height, width)
