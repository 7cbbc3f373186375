"""A tri-plane with a small decoder: density and colour at every point of a cube (Chan et al. 2022, EG3D, section 4.1).

    features(x) = the sum over three planes of their bilinear interpolation at the projection of x
    hidden      = relu(W1 features + b1)
    [raw, rgb]  = W2 hidden + b2

Parameters: `planes` [3, R, R, C] span the cube [-1, 1]^3 in the order xy, xz, yz; `decoder` [n] packs W1 [H, C],
b1 [H], W2 [4, H] and b2 [4], so that the optimiser has one learning rate for all of it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grid_sample, linear, relu

PAIRS = ((0, 1), (0, 2), (1, 2))  # coordinates (column, row) of the planes
ROWS_PER_JOB = 8192  # points that one thread interpolates at a time


class Decoder(NamedTuple):
    """The weights of a decoder, as views of the packed parameter."""

    w1: Tensor  # [H, C]
    b1: Tensor  # [H]
    w2: Tensor  # [4, H]
    b2: Tensor  # [4]


class Volume(NamedTuple):
    """The two parameters of a field."""

    planes: Tensor  # [3, R, R, C]
    decoder: Tensor  # [n]


def new_volume(resolution: int, channels: int, hidden: int, generator: torch.Generator) -> Volume:
    """Return planes of small random features, and weights that leave density and colour nearly constant at first."""
    planes = 0.1 * torch.randn(3, resolution, resolution, channels, generator=generator)
    w1 = torch.randn(hidden, channels, generator=generator) * math.sqrt(2 / channels)
    w2 = torch.randn(4, hidden, generator=generator) * math.sqrt(1 / hidden)
    return Volume(planes, torch.cat([w1.flatten(), torch.zeros(hidden), w2.flatten(), torch.zeros(4)]))


def unpacked(v: Volume) -> Decoder:
    """Return the weights packed in `v.decoder`, as views."""
    channels = v.planes.shape[3]
    hidden = (v.decoder.numel() - 4) // (channels + 5)
    w1, b1, w2, b2 = v.decoder.split((hidden * channels, hidden, 4 * hidden, 4))
    return Decoder(w1.view(hidden, channels), b1, w2.view(4, hidden), b2)


def decoded(v: Volume, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return raw density [M] and colour [M, 3] in [0, 1] at `places` [M, 3] in [-1, 1]; differentiable in `v`."""
    d = unpacked(v)
    out = linear(relu(linear(features(v.planes, places), d.w1, d.b1)), d.w2, d.b2)
    return out[:, 0], out[:, 1:].sigmoid()


def raw_density(v: Volume, places: Tensor) -> Tensor:
    """Return the raw density alone [M] at `places` [M, 3] in [-1, 1]; differentiable in `v`."""
    d = unpacked(v)
    return linear(relu(linear(features(v.planes, places), d.w1, d.b1)), d.w2[:1], d.b2[:1])[:, 0]


def features(planes: Tensor, places: Tensor) -> Tensor:
    """Return the summed features [M, C] of planes [3, R, R, C] at `places` [M, 3] in [-1, 1], which is clamped to it.

    Differentiable in the planes only.
    """
    if planes.device.type == "cpu":
        return _Interpolate.apply(planes, places.detach().contiguous())
    axes = places.unbind(1)  # an index with two numbers would be uploaded, which waits for a GPU
    grid = torch.stack([torch.stack([axes[i], axes[j]], 1) for i, j in PAIRS])[:, None]  # [3, 1, M, 2]
    channels_first = planes.permute(0, 3, 1, 2)
    found = grid_sample(channels_first, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return found.sum(0)[:, 0].T


class _Interpolate(torch.autograd.Function):
    """The compiled lookup; torch's `grid_sample` takes ten times as long for the way back on a CPU."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, places: Tensor) -> Tensor:
        from sdlab.raster.cpu import run_jobs
        from sdlab.volume.lookup_kernels import interpolate

        out = torch.empty(len(places), planes.shape[3])
        arrays = planes.detach().numpy(), places.numpy()
        starts = range(0, len(places), ROWS_PER_JOB)
        run_jobs([partial(interpolate, *arrays, i, min(i + ROWS_PER_JOB, len(places)), out.numpy()) for i in starts])
        ctx.save_for_backward(planes, places)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        from sdlab.raster.cpu import run_jobs
        from sdlab.volume.lookup_kernels import scatter

        planes, places = ctx.saved_tensors
        d_planes = torch.zeros_like(planes)
        arrays, g = d_planes.numpy(), gradient.contiguous().numpy()
        run_jobs([partial(scatter, arrays[k], k, places.numpy(), g) for k in range(3)])
        return d_planes, None
