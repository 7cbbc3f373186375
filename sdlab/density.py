"""Gaussians as samples of a Markov chain (Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo").

Nothing is cloned, split or pruned by rules: what has become transparent is moved onto something opaque, so that the
picture stays as it is, and all Gaussians are stirred by noise that only the transparent ones feel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_COPIES = 51  # of one Gaussian; the alternating sum of eq. 9 loses its digits beyond
STEEPNESS, OPAQUE = 100.0, 0.005  # k, and the opacity about which the noise fades (section 3.2, eq. 8)


def shared_out(opacities: Tensor, scales: Tensor, copies: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Opacity and scale of each of `copies` Gaussians that together draw what one did, eq. 9.

    opacities [M] in (0, 1), scales [M, 3], copies [M] from 1 on; answers the same shapes, opacities at least `least`:

        o_new = 1 - (1 - o)^(1/N)
        scale_new = scale o / sum_{i=1..N} sum_{k=0..i-1} binomial(i-1, k) (-1)^k o_new^(k+1) / sqrt(k+1)
    """
    N = copies.clamp(1, MOST_COPIES)
    o = opacities.double()
    o_new = 1 - (1 - o) ** (1 / N)
    total = torch.zeros_like(o)
    for k in range(int(N.max())):
        # sum over i of binomial(i-1, k), i = k+1..N, is binomial(N, k+1)
        ways = torch.tensor([float(math.comb(int(n), k + 1)) for n in N.tolist()], dtype=o.dtype, device=o.device)
        total += ways * (-1) ** k * o_new ** (k + 1) / math.sqrt(k + 1)
    return o_new.clamp(least, 1 - 1e-6).to(opacities), scales * (o / total).to(scales)[:, None]


def felt(opacities: Tensor) -> Tensor:
    """How strongly each Gaussian feels the noise, from 1 for the transparent to 0, eq. 8; the shape of `opacities`."""
    return torch.sigmoid(STEEPNESS * (OPAQUE - opacities))


def drawn(opacities: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """`n` indices [n], each Gaussian in proportion to its opacity [M], with replacement; drawn on the processor."""
    if n == 0:
        return torch.zeros(0, dtype=torch.long, device=opacities.device)
    return torch.multinomial(opacities.double().cpu(), n, replacement=True, generator=rng).to(opacities.device)
