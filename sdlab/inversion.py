"""DDIM inversion: from a clean picture to the noise that the prior itself would have made it from."""

from __future__ import annotations

import torch
from torch import Tensor

from sdlab.guidance import cfg
from sdlab.types import BoundPrior


def inversion_roles(scale: float) -> tuple[str, ...]:
    """The roles that one step of `invert` asks for: without guidance (scale 1) the prompt alone will do."""
    return ("pos",) if scale == 1.0 else ("pos", "uncond")


def ddim(
    model: BoundPrior, z: Tensor, here: Tensor, there: Tensor, eps: Tensor, eta: float = 0.0, stream: str = ""
) -> Tensor:
    """One step of z [B, C, H, W] from the level `here` [B] to the level `there`, up or down, along eps; Song et al.
    2020, eq. 13. With eta > 0 (upwards) a part of the noise is a fresh draw from the step's `stream`."""
    alpha, sigma = model.marginal(here)
    alpha_next, sigma_next = model.marginal(there)
    x0 = (z - sigma * eps) / alpha
    if eta == 0:
        return alpha_next * x0 + sigma_next * eps
    fresh = eta * sigma / sigma_next * (1 - (alpha_next / alpha) ** 2).clamp_min(0).sqrt()
    kept = (sigma_next**2 - fresh**2).clamp_min(0).sqrt()
    return alpha_next * x0 + kept * eps + fresh * model.rng.randn(stream, z)


def invert(
    model: BoundPrior,
    z0: Tensor,
    t: Tensor,
    steps: int,
    scale: float = 1.0,
    eta: float = 0.0,
    roles: tuple[str, ...] | None = None,
) -> Tensor:
    """z0 [B, C, H, W] carried along the prior's probability flow to t [B]; the result is z_t.

    Song et al. 2020, "Denoising diffusion implicit models", eq. 13, run upwards in `steps` Euler steps with levels
    evenly spaced in t, each view on a grid of its own; z0 is taken for the picture at t = 0. `scale` is guidance in
    form A; `roles` names another text for it, or two (default: those of `inversion_roles`). With eta > 0 each step
    replaces a part of the noise by a fresh draw, as much as DDIM with that eta (their eq. 16) adds on the way down
    between the same two levels, so that the variance at each level stays right.
    """
    roles = roles or inversion_roles(scale)
    z, here = z0, torch.zeros_like(t)
    for k in range(1, steps + 1):
        there = (t * k / steps).round().long()
        predicted = model.eps(z, here, *roles)
        eps = predicted[0] if len(roles) == 1 else cfg(predicted[1], predicted[0], scale)
        z = ddim(model, z, here, there, eps, eta, f"inversion {k}")
        here = there
    return z
