"""Plain torch with tile culling: the fallback where numba cannot run, and the baseline of `sdlab.bench.raster`.

The image model of `sdlab.raster.model` on any device and in any float type, differentiated by autograd. The image is
split into square tiles, a Gaussian is evaluated only in the tiles that its box touches, and tiles with lists of
similar length are blended together as one batch of dense tensors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdlab.raster.model import ALPHA_MAX, ALPHA_MIN, LOW_PASS, T_STOP
from sdlab.raster.torch_project import covariance, project, screen_extents
from sdlab.types import Render, ScreenInfo

TILE_SIDE = 8  # pixels; the usual 16 takes 1.4 to 2.5 times as long for 5000 Gaussians and 64 to 128 pixels
BATCH_ELEMENTS = 1 << 18  # (tile, Gaussian, pixel) triples in one batch: 1 MB per tensor, which fits into caches
BATCH_ELEMENTS_GPU = 1 << 24  # a GPU takes as long for a small kernel as for a larger one
PADDING = 1.5  # maximum ratio of the longest to the shortest list in one batch


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
    *,
    tile_side: int = TILE_SIDE,
) -> Render:
    """Render B views; differentiable in everything. `tile_side` affects only the speed.

    Units and conventions: see `sdlab.raster.cpu.rasterize`; `info.means2d` is part of the graph and keeps its
    gradient.
    """
    views = viewmats.shape[0]
    tiles_x, tiles_y = -(-width // tile_side), -(-height // tile_side)
    means2d, M, depths = project(means, quats, scales, viewmats, Ks, width, height)
    if means2d.requires_grad:
        means2d.retain_grad()
    covariances = covariance(M)
    drawn, extents, radii = screen_extents(means2d, covariances, depths, opacities, width, height)
    tile, splat = _pairs(means2d, extents, depths, drawn, tiles_x, tiles_y, tile_side)

    # One row per (view, Gaussian): the affine map from pixels to w, and the features to blend.
    L = _whitening(M, covariances)
    w_0 = -torch.einsum("bnij,bnj->bni", L, means2d)
    affine = torch.cat([L, w_0[..., None]], -1).flatten(0, 1)  # [B N, 2, 3]
    log_opacity = opacities.clamp(min=ALPHA_MIN).log().expand(views, -1).flatten()
    features = torch.cat([colors.expand(views, -1, -1), depths[..., None]], -1).flatten(0, 1)  # [B N, 4]

    blended = means.new_zeros(views * tiles_y * tiles_x, 4, tile_side**2)
    T_end = means.new_ones(views * tiles_y * tiles_x, tile_side**2)
    numbers, sums, ends = [], [], []
    most = BATCH_ELEMENTS if means.device.type == "cpu" else BATCH_ELEMENTS_GPU
    for number, members in _batches(tile, splat, views * tiles_y * tiles_x, tile_side**2, most):
        corner = torch.stack([number % tiles_x, number // tiles_x % tiles_y], -1) * tile_side
        total, end = _blend(members, corner, affine, log_opacity, features, tile_side)
        numbers.append(number)
        sums.append(total)
        ends.append(end)
    number = torch.cat(numbers)
    blended = blended.index_copy(0, number, torch.cat(sums))
    T_end = T_end.index_copy(0, number, torch.cat(ends))

    image = torch.cat([blended, T_end[:, None]], 1).unflatten(0, (views, tiles_y, tiles_x))
    image = image.unflatten(-1, (tile_side, tile_side)).permute(0, 3, 1, 4, 2, 5)
    image = image.reshape(views, 5, tiles_y * tile_side, tiles_x * tile_side)[:, :, :height, :width]
    rgb, depth, T_end = image.split([3, 1, 1], 1)
    if background is not None:
        rgb = rgb + T_end * background[:, :, None, None]
    return Render(rgb, 1 - T_end, depth, ScreenInfo(radii, means2d))


def _whitening(M: Float[Tensor, "B N 2 3"], covariances: Float[Tensor, "B N 2 2"]) -> Float[Tensor, "B N 2 2"]:
    """Return upper triangular L with S'^-1 = L^T L; the determinant is summed from squares, as in `cpu_kernels`."""
    S_xx, S_xy, S_yy = covariances[..., 0, 0], covariances[..., 0, 1], covariances[..., 1, 1]
    minors = torch.linalg.cross(M[..., 0, :], M[..., 1, :])
    det = minors.square().sum(-1) + LOW_PASS * (S_xx + S_yy - LOW_PASS)
    L_ux = torch.sqrt(S_yy / det)
    u = torch.stack([L_ux, -S_xy / S_yy * L_ux], -1)
    v = torch.stack([torch.zeros_like(L_ux), S_yy.rsqrt()], -1)
    return torch.stack([u, v], -2)


@torch.no_grad()
def _pairs(
    means2d: Float[Tensor, "B N 2"],
    extents: Float[Tensor, "B N 2"],
    depths: Float[Tensor, "B N"],
    drawn: Tensor,
    tiles_x: int,
    tiles_y: int,
    tile_side: int,
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Return every pair (tile, splat) that touch, ordered by tile, then depth; both are numbered across the views."""
    view, gaussian = drawn.nonzero().unbind(-1)
    centre, extent = means2d[view, gaussian], extents[view, gaussian]
    limit = means2d.new_tensor([tiles_x, tiles_y])
    low = ((centre - extent) / tile_side).floor().maximum(torch.zeros_like(limit)).long()
    high = ((centre + extent) / tile_side).floor().minimum(limit - 1).long()
    order = torch.argsort(depths[view, gaussian], stable=True)
    view, gaussian, low, high = view[order], gaussian[order], low[order], high[order]
    columns, rows = (high - low + 1).clamp(min=0).unbind(-1)
    counts = columns * rows
    source = torch.repeat_interleave(counts)
    within = torch.arange(source.numel(), device=source.device) - (counts.cumsum(0) - counts)[source]
    x = low[source, 0] + within % columns[source]
    y = low[source, 1] + within // columns[source]
    tile = (view[source] * tiles_y + y) * tiles_x + x
    tile, by_tile = torch.sort(tile, stable=True)
    return tile, (view * depths.shape[1] + gaussian)[source[by_tile]]


@torch.no_grad()
def _batches(
    tile: Int[Tensor, " P"], splat: Int[Tensor, " P"], tiles: int, tile_pixels: int, elements: int
) -> list[tuple[Int[Tensor, " G"], Int[Tensor, "G K"]]]:
    """Return batches of tiles with lists of similar length, padded with -1 to the longest, of at most `elements`
    triples unless a single tile has more; empty tiles are left out.

    If all are empty, the first one remains, so that the images still depend on the scene and gradients are zeros.
    """
    counts = torch.bincount(tile, minlength=tiles)
    starts = counts.cumsum(0) - counts
    by_length = torch.argsort(counts, descending=True)
    lengths = counts[by_length].tolist()
    batches, first = [], 0
    while first < tiles and lengths[first] > 0:
        longest = lengths[first]
        most = max(elements // (longest * tile_pixels), 1)
        last = first + 1
        while last < min(first + most, tiles) and lengths[last] * PADDING > longest:
            last += 1
        number = by_length[first:last]
        place = torch.arange(longest, device=tile.device)
        members = splat[(starts[number, None] + place).clamp(max=splat.numel() - 1)]
        batches.append((number, torch.where(place < counts[number, None], members, -1)))
        first = last
    return batches or [(by_length[:1], splat.new_empty(1, 0))]


def _blend(
    members: Int[Tensor, "G K"],
    corner: Int[Tensor, "G 2"],
    affine: Float[Tensor, "S 2 3"],
    log_opacity: Float[Tensor, " S"],
    features: Float[Tensor, "S 4"],
    tile_side: int,
) -> tuple[Float[Tensor, "G 4 P"], Float[Tensor, "G P"]]:
    """Blend G tiles with K splats each; return their blended features and final transmittances."""
    present = members >= 0
    members = members.clamp(min=0)
    side = torch.arange(tile_side, dtype=affine.dtype, device=affine.device) + 0.5
    y, x = torch.meshgrid(side, side, indexing="ij")
    pixel = torch.stack([x.flatten(), y.flatten(), torch.ones_like(x).flatten()])  # [3, P]

    # w = L x + w_0 with x relative to the tile's corner: small numbers keep float32 exact.
    map_ = affine[members]
    shift = torch.einsum("gkij,gj->gki", map_[..., :2], corner.to(affine.dtype)) + map_[..., 2]
    map_ = torch.cat([map_[..., :2], shift[..., None]], -1)
    u, v = map_[:, :, 0] @ pixel, map_[:, :, 1] @ pixel
    alpha = torch.exp(log_opacity[members][..., None] - 0.5 * (u * u + v * v)).clamp(max=ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_MIN) & present[..., None], alpha, torch.zeros_like(alpha))

    # ln T before each splat: a sum of logarithms, because the gradient of cumprod is slow.
    log_factor = torch.log1p(-alpha)
    log_T = log_factor.cumsum(1)
    alive = torch.exp(log_T.detach()) > T_STOP
    log_before = torch.cat([torch.zeros_like(log_T[:, :1]), log_T[:, :-1]], 1)
    weights = torch.where(alive, alpha * torch.exp(log_before), torch.zeros_like(alpha))
    blended = features[members].transpose(1, 2) @ weights
    return blended, torch.exp(torch.where(alive, log_factor, torch.zeros_like(log_factor)).sum(1))
