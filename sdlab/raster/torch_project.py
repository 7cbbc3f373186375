"""Projection of Gaussians onto the screen in plain torch, for the back-ends that leave gradients to autograd.

Image model and notation: see `sdlab.raster.model`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdlab.raster.model import ALPHA_MIN, CLAMP_MARGIN, LOW_PASS, NEAR


def rotation_matrices(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    """Return R of quaternions (w, x, y, z), which are normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    )
    return torch.stack(rows, -2)


def world_covariances(quats: Float[Tensor, "N 4"], scales: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3 3"]:
    """Return R S S^T R^T of each Gaussian, in the world."""
    axes = rotation_matrices(quats) * scales[:, None, :]
    return axes @ axes.transpose(1, 2)


def project(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "B 4 4"],
    Ks: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N 2 3"], Float[Tensor, "B N"]]:
    """Return means2d (pixels), M (the Gaussian's axes on the screen, pixels) and depths.

    Gaussians behind the near plane are projected from a depth of 1 instead; the caller must drop them by their depth.
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
    J_x = torch.stack([fx / t_z, zero, -fx * held_x / t_z], -1)
    J_y = torch.stack([zero, fy / t_z, -fy * held_y / t_z], -1)
    M = torch.stack([J_x, J_y], -2) @ viewmats[:, None, :3, :3] @ (rotation_matrices(quats) * scales[:, None, :])
    return means2d, M, depths


def covariance(M: Float[Tensor, "B N 2 3"]) -> Float[Tensor, "B N 2 2"]:
    """Return S', the screen covariance with the low-pass filter, in pixels^2."""
    return M @ M.transpose(-1, -2) + LOW_PASS * torch.eye(2, dtype=M.dtype, device=M.device)


@torch.no_grad()
def screen_extents(
    means2d: Float[Tensor, "B N 2"],
    covariances: Float[Tensor, "B N 2 2"],
    depths: Float[Tensor, "B N"],
    opacities: Float[Tensor, " N"],
    width: int,
    height: int,
) -> tuple[Bool[Tensor, "B N"], Float[Tensor, "B N 2"], Int[Tensor, "B N"]]:
    """Return drawn [B, N] (bool), half-extents [B, N, 2] of the ellipse alpha = 1/255, and radii [B, N], in pixels.

    The radii are defined as in `ScreenInfo`: the larger half-extent, rounded up, 0 where a Gaussian is not drawn.
    """
    reach = torch.sqrt(2 * torch.log((opacities / ALPHA_MIN).clamp(min=1)))
    extents = reach[None, :, None] * torch.sqrt(covariances.diagonal(dim1=-2, dim2=-1))
    size = means2d.new_tensor([width, height])
    drawn = ((means2d + extents > 0) & (means2d - extents < size)).all(-1)
    drawn &= (depths > NEAR) & (opacities > ALPHA_MIN)
    radii = torch.where(drawn, extents.amax(-1).ceil(), torch.zeros_like(depths)).to(torch.int32)
    return drawn, extents, radii
