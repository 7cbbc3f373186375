"""Colour that depends on the direction of view, as in 3DGS (Kerbl et al. 2023), by the spherical harmonics Y_k of
`sdlab.harmonics`.

A Gaussian's colour seen along the unit direction d is max(0, rgb + sum over k of c_k Y_k(d)), with its constant part
rgb and 3, 8 or 15 further coefficients per channel for the degrees 1, 2 and 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sdlab.harmonics import COUNTS, terms


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
    """Return the colours that B cameras (world to camera) see; differentiable in everything but the cameras."""
    eyes = -torch.einsum("bij,bi->bj", viewmats[:, :3, :3], viewmats[:, :3, 3])
    directions = normalize(means - eyes[:, None], dim=-1)
    return (rgbs + torch.einsum("bnk,nkc->bnc", basis(directions, COUNTS.index(sh.shape[1])), sh)).clamp_min(0)
