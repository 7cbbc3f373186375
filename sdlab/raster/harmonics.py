"""Colour that depends on the direction of view, as in 3DGS (Kerbl et al. 2023): real spherical harmonics Y_k with the
Condon-Shortley phase, in the order of splat files.

A Gaussian's colour seen along the unit direction d is max(0, rgb + sum over k of c_k Y_k(d)), with its constant part
rgb and 3, 8 or 15 further coefficients per channel for the degrees 1, 2 and 3.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

COUNTS = (0, 3, 8, 15)  # coefficients per channel beside the constant, by degree


def basis(directions: Float[Tensor, "... 3"], degree: int) -> Float[Tensor, "... K"]:
    """Return Y_k of unit directions, without the constant; K = COUNTS[degree]."""
    x, y, z = directions.unbind(-1)
    found: list[Tensor] = []
    if degree >= 1:
        c = math.sqrt(3 / (4 * math.pi))
        found += [-c * y, c * z, -c * x]
    if degree >= 2:
        c = math.sqrt(15 / (4 * math.pi))
        about = 2 * z * z - x * x - y * y
        found += [c * x * y, -c * y * z, math.sqrt(5 / (16 * math.pi)) * about, -c * x * z, c / 2 * (x * x - y * y)]
    if degree >= 3:
        a, b, c = (math.sqrt(n / (32 * math.pi)) for n in (35, 21, 210))
        ring = 4 * z * z - x * x - y * y
        found += [
            -a * y * (3 * x * x - y * y),
            2 * c * x * y * z,
            -b * y * ring,
            math.sqrt(7 / (16 * math.pi)) * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -b * x * ring,
            c * z * (x * x - y * y),
            -a * x * (x * x - 3 * y * y),
        ]
    return torch.stack(found, -1) if found else directions[..., :0]


def colours(
    rgbs: Float[Tensor, "N 3"],
    sh: Float[Tensor, "N K 3"],
    means: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "B 4 4"],
) -> Float[Tensor, "B N 3"]:
    """Return the colours that B cameras (world to camera) see; differentiable in everything but the cameras."""
    eyes = -torch.einsum("bij,bi->bj", viewmats[:, :3, :3], viewmats[:, :3, 3])
    directions = normalize(means - eyes[:, None], dim=-1)
    return (rgbs + torch.einsum("bnk,nkc->bnc", basis(directions, COUNTS.index(sh.shape[1])), sh)).clamp_min(0)


def rotated(sh: Float[Tensor, "N K 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "N K 3"]:
    """Return the coefficients after the scene has been turned by `rotation`: each degree mixes within itself."""
    degree = COUNTS.index(sh.shape[1])
    if degree == 0:
        return sh
    g = torch.Generator().manual_seed(0)
    d = normalize(torch.randn(64, 3, generator=g, dtype=torch.float64), dim=-1)
    after, before = basis(d, degree), basis(d @ rotation.double(), degree)  # at d is seen what was seen at R^T d
    mixing = torch.linalg.lstsq(after, before).solution  # [K, K]: before = after @ mixing
    return torch.einsum("jk,nkc->njc", mixing, sh.double()).to(sh)
