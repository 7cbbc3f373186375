"""The oracle: the image model of `cpu_kernels` as dense plain torch, in any float type, differentiated by autograd.

Every Gaussian is evaluated at every pixel, so time and memory grow as B N H W; use it for checks on small scenes.
The formulas are the textbook ones (the conic S'^-1, no factorisation), so that it shares no shortcut with the
back-ends that are measured against it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.types import Render, ScreenInfo

LOW_PASS = 0.3
NEAR = 0.01
ALPHA_MIN = 1 / 255
ALPHA_MAX = 0.999
T_STOP = 1e-4
CLAMP_MARGIN = 0.15


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
    """Render B views; differentiable in everything, in the precision of `means`.

    Units, conventions and `info` are those of `sdlab.raster.cpu.rasterize`; `info.means2d` is part of the graph
    and keeps its gradient.
    """
    means2d, conics, depths, covariances = project(means, quats, scales, viewmats, Ks, width, height)
    if means2d.requires_grad:
        means2d.retain_grad()
    radii = screen_radii(means2d, covariances, depths, opacities, width, height)

    views = [
        _blend(means2d[v], conics[v], depths[v], opacities, colors, width, height) for v in range(viewmats.shape[0])
    ]
    rgb, alpha, depth = (torch.stack(parts) for parts in zip(*views, strict=True))
    if background is not None:
        rgb = rgb + (1 - alpha) * background[:, :, None, None]
    return Render(rgb, alpha, depth, ScreenInfo(radii, means2d))


def rotation_matrices(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    """R of (w, x, y, z), normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    )
    return torch.stack(rows, -2)


def project(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "B 4 4"],
    Ks: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EWA projection -> means2d [B, N, 2], conics [B, N, 3] (xx, xy, yy), depths [B, N], covariances [B, N, 2, 2].

    What lies behind the near plane is projected from a depth of 1 instead, and must be left out by its depth.
    """
    t = torch.einsum("bij,nj->bni", viewmats[:, :3, :3], means) + viewmats[:, None, :3, 3]
    t_x, t_y, depths = t.unbind(-1)
    t_z = torch.where(depths > NEAR, depths, torch.ones_like(depths))
    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    slope_x, slope_y = t_x / t_z, t_y / t_z
    means2d = torch.stack([fx * slope_x + cx, fy * slope_y + cy], -1)

    margin_x, margin_y = CLAMP_MARGIN * width, CLAMP_MARGIN * height
    held_x = torch.minimum(torch.maximum(slope_x, -(cx + margin_x) / fx), (width - cx + margin_x) / fx)
    held_y = torch.minimum(torch.maximum(slope_y, -(cy + margin_y) / fy), (height - cy + margin_y) / fy)
    zero = torch.zeros_like(t_z)
    J = torch.stack(
        [
            torch.stack([fx / t_z, zero, -fx * held_x / t_z], -1),
            torch.stack([zero, fy / t_z, -fy * held_y / t_z], -1),
        ],
        -2,
    )
    M = J @ viewmats[:, None, :3, :3] @ (rotation_matrices(quats) * scales[:, None, :])
    covariances = M @ M.transpose(-1, -2) + LOW_PASS * torch.eye(2, dtype=means.dtype, device=means.device)
    xx, xy, yy = covariances[..., 0, 0], covariances[..., 0, 1], covariances[..., 1, 1]
    det = xx * yy - xy * xy
    return means2d, torch.stack([yy / det, -xy / det, xx / det], -1), depths, covariances


@torch.no_grad()
def screen_radii(
    means2d: Tensor, covariances: Tensor, depths: Tensor, opacities: Tensor, width: int, height: int
) -> Tensor:
    """Half the larger side of the box around the ellipse alpha = 1/255, rounded up; 0 where nothing is drawn."""
    reach = torch.sqrt(2 * torch.log((opacities / ALPHA_MIN).clamp(min=1)))
    extents = reach[None, :, None] * torch.sqrt(covariances.diagonal(dim1=-2, dim2=-1))
    size = means2d.new_tensor([width, height])
    drawn = ((means2d + extents > 0) & (means2d - extents < size)).all(-1)
    drawn &= (depths > NEAR) & (opacities > ALPHA_MIN)
    return torch.where(drawn, extents.amax(-1).ceil(), torch.zeros_like(depths)).to(torch.int32)


def _blend(
    means2d: Float[Tensor, "N 2"],
    conics: Float[Tensor, "N 3"],
    depths: Float[Tensor, " N"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "N 3"],
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One view over black -> rgb [3, H, W], alpha [1, H, W], accumulated depth [1, H, W]."""
    in_front = (depths > NEAR).nonzero()[:, 0]
    order = in_front[torch.argsort(depths[in_front].detach(), stable=True)]
    rows = torch.arange(height, dtype=means2d.dtype, device=means2d.device) + 0.5
    columns = torch.arange(width, dtype=means2d.dtype, device=means2d.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    dx = x.reshape(1, -1) - means2d[order, 0, None]
    dy = y.reshape(1, -1) - means2d[order, 1, None]
    xx, xy, yy = conics[order].unsqueeze(-1).unbind(1)
    power = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
    alpha = (opacities[order, None] * torch.exp(-power)).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))

    # T after Gaussian i; once it reaches the stop, this one and all behind it are left out.
    alpha = torch.where(torch.cumprod(1 - alpha, 0) > T_STOP, alpha, torch.zeros_like(alpha))
    T = torch.cat([torch.ones_like(x).reshape(1, -1), torch.cumprod(1 - alpha, 0)])
    weights = alpha * T[:-1]
    rgb = colors[order].T @ weights
    depth = depths[None, order] @ weights
    return (
        rgb.reshape(3, height, width),
        (1 - T[-1]).reshape(1, height, width),
        depth.reshape(1, height, width),
    )
