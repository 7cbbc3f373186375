"""Rays through the pixels of cameras, samples along them, and the sum of what they see (NeRF, Mildenhall et al. 2020).

Samples are packed: one row for each, in the order of the rays and from near to far on each. With density sigma_i over
a length delta, transmittance T_i and weight w_i:

    w_i = T_i (1 - exp(-sigma_i delta)),   T_i = exp(-sum over j < i of sigma_j delta)
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from sdlab.transfer import upload
from sdlab.types import Cameras

NEAREST = 0.01  # distance from the camera at which rays begin


class Rays(NamedTuple):
    """R rays in the order of views, rows and columns."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3], unit length
    cosines: Tensor  # [R], of the angle to the optical axis: depth = distance * cosine


class Samples(NamedTuple):
    """M samples of R rays."""

    places: Tensor  # [M, 3], in the world
    distances: Tensor  # [M], from the camera
    ray: Tensor  # [M] int64


def rays_of(cams: Cameras, device: torch.device) -> Rays:
    """Return the rays through the centres of all pixels."""
    viewmats, Ks = upload(cams.viewmats, device), upload(cams.Ks, device)
    columns = torch.arange(cams.width, device=device) + 0.5
    rows = torch.arange(cams.height, device=device) + 0.5
    x = (columns - Ks[:, 0, 2:3]) / Ks[:, 0, :1]  # [B, W]
    y = (rows - Ks[:, 1, 2:3]) / Ks[:, 1, 1:2]  # [B, H]
    shape = (len(cams), cams.height, cams.width)
    ahead = torch.stack([x[:, None].expand(shape), y[..., None].expand(shape), torch.ones(shape, device=device)], -1)
    rotations = viewmats[:, :3, :3]
    directions = torch.einsum("bhwi,bij->bhwj", ahead, rotations)
    lengths = ahead.norm(dim=-1)
    origins = -torch.einsum("bi,bij->bj", viewmats[:, :3, 3], rotations)[:, None, None].expand_as(directions)
    directions = directions / lengths[..., None]
    return Rays(origins.reshape(-1, 3), directions.reshape(-1, 3), 1 / lengths.flatten())


def jitter(cams: Cameras, device: torch.device) -> Tensor:
    """Return where in their intervals the samples of each ray lie, [R] in [0, 1).

    All rays of a view share a random position, so that images have no grain. It is a function of the camera: the same
    view always has the same samples, and losses that compare two scenes see no difference between equal ones.
    """
    keys = [zlib.crc32(view.numpy().tobytes()) for view in cams.viewmats.cpu().contiguous()]
    offsets = torch.tensor([key / 2**32 for key in keys])
    return upload(offsets, device).repeat_interleave(cams.height * cams.width)


def sample(rays: Rays, bound: float, count: int, offsets: Tensor, occupied: Tensor) -> Samples:
    """Return the samples in the ball of radius `bound` whose cell is occupied, 2 bound / count apart.

    `offsets` [R] are positions within an interval, in [0, 1); `occupied` is bool [G, G, G] over the cube
    [-bound, bound]^3.
    """
    delta = 2 * bound / count
    near, far = crossing(rays, bound)
    if (
        near.device.type == "cuda"
    ):  # finding the rays that hit the ball would wait for the GPU; the others have no sample
        hit = torch.arange(len(near), device=near.device)
    else:
        hit = torch.nonzero(far > near)[:, 0]
    steps = torch.arange(count, device=near.device)
    distances = near[hit, None] + (steps + offsets[hit, None]) * delta  # [hit, count]
    places = rays.origins[hit, None] + distances[..., None] * rays.directions[hit, None]
    inside = (distances < far[hit, None]) & lookup(occupied, places, bound)
    row, step = torch.nonzero(inside, as_tuple=True)
    return Samples(places[row, step], distances[row, step], hit[row])


def crossing(rays: Rays, bound: float) -> tuple[Tensor, Tensor]:
    """Return the distances at which rays enter and leave the ball of radius `bound`, [R] each; a ray that misses it
    does not leave after it enters."""
    along = -(rays.origins * rays.directions).sum(1)
    half = (bound**2 - (rays.origins.square().sum(1) - along.square())).clamp_min(0).sqrt()
    return (along - half).clamp_min(NEAREST), along + half


def lookup(grid: Tensor, places: Tensor, bound: float) -> Tensor:
    """Return the value of the cell of `grid` [G, G, G] at each of `places` [..., 3]."""
    side = grid.shape[0]
    cells = ((places + bound) * (0.5 * side / bound)).long().clamp_(0, side - 1)
    x, y, z = cells.unbind(-1)
    return grid.flatten()[(x * side + y) * side + z]


def weights(optical: Tensor, ray: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the weight w and the transmittance T of each sample, [M].

    `optical` [M] is sigma delta, `ray` [M] the ascending ray numbers of `count` rays. Sums run over all samples at once
    and are float64, since float32 would lose the far ends of long sums.
    """
    before = optical.double().cumsum(0) - optical
    first = torch.searchsorted(ray, torch.arange(count, device=ray.device))  # sample of each ray, if it has one
    transmittance = (before[first[ray]] - before).exp().to(optical.dtype)
    return transmittance * -torch.expm1(-optical), transmittance


def summed(values: Tensor, ray: Tensor, count: int) -> Tensor:
    """Return the sums of `values` [M, n] over the samples of each of `count` rays, [count, n]."""
    return values.new_zeros(count, values.shape[1]).index_add(0, ray, values)
