"""Colour that depends on the direction of view, as in 3DGS (Kerbl et al. 2023), by the spherical harmonics Y_k of
`sdlab.harmonics`.

A Gaussian's colour seen along the unit direction d is max(0, rgb + sum over k of c_k Y_k(d)), with its constant part
rgb and 3, 8 or 15 further coefficients per channel for the degrees 1, 2 and 3.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from sdlab.harmonics import COUNTS, terms
from sdlab.raster import harmonics_kernels as kernels


def basis(directions: Float[Tensor, "... 3"], degree: int) -> Float[Tensor, "... K"]:
    """Return Y_k of unit directions, without the constant; K = COUNTS[degree]."""
    found = terms(*directions.unbind(-1), degree=degree)
    return torch.stack(found, -1) if found else directions[..., :0]


def colours(
    rgbs: Float[Tensor, "N 3"],
    sh: Float[Tensor, "N K 3"],
    means: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "B 4 4"],
) -> Float[Tensor, "B N 3"]:
    """Return the colours that B cameras (world to camera) see; differentiable in everything but the cameras.

    On a CPU, in float32, by compiled kernels; else by torch's own functions.
    """
    eyes = -torch.einsum("bij,bi->bj", viewmats[:, :3, :3], viewmats[:, :3, 3])
    degree = COUNTS.index(sh.shape[1])
    if degree and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in (rgbs, sh, means, eyes)):
        mixing = torch.from_numpy(kernels.MIXING[: kernels.MONOMIALS[degree], : sh.shape[1]])
        return _Sum.apply(rgbs, torch.einsum("mk,nkc->nmc", mixing, sh), means, eyes.detach()).clamp_min(0)
    directions = normalize(means - eyes[:, None], dim=-1)
    return (rgbs + torch.einsum("bnk,nkc->bnc", basis(directions, degree), sh)).clamp_min(0)


class _Sum(torch.autograd.Function):
    """rgb + sum over m of m(d) P [B, N, 3], see `sdlab.raster.harmonics_kernels`."""

    @staticmethod
    def forward(ctx: Any, rgbs: Tensor, weights: Tensor, means: Tensor, eyes: Tensor) -> Tensor:
        ctx.save_for_backward(weights, means, eyes)
        out = rgbs.expand(len(eyes), -1, -1).contiguous()
        kernels.add(*(x.contiguous().numpy() for x in (weights, means, eyes)), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        saved = [x.contiguous() for x in ctx.saved_tensors]
        d_weights, d_means = torch.zeros_like(saved[0]), torch.zeros_like(saved[1])
        given = (*saved, d_out.contiguous(), d_weights, d_means)
        kernels.add_backward(*(x.numpy() for x in given))
        return d_out.sum(0), d_weights, d_means, None
