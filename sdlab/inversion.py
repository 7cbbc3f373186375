"""The prior's probability flow in DDIM steps: from a clean image up to the noise that the prior would generate it from
(`invert`), and back down to an image, possibly under another text (`decode`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdlab.guidance import cfg
from sdlab.types import BoundPrior


def flow_roles(scale: float, role: str = "pos") -> tuple[str, ...]:
    """Return the roles that one step along the flow of `role` evaluates: `role` alone with scale 1, which means no
    guidance, and the empty text alone with scale 0."""
    if scale == 0.0:
        return ("uncond",)
    return (role,) if scale == 1.0 else (role, "uncond")


def ddim(
    model: BoundPrior, z: Tensor, here: Tensor, there: Tensor, eps: Tensor, eta: float = 0.0, stream: str = ""
) -> Tensor:
    """Take one step of z [B, C, H, W] along eps from the level `here` [B] to the level `there`, up or down (Song et al.
    2020, eq. 13). With eta > 0 (upwards) part of the noise is drawn fresh from the step's `stream`."""
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
    """Carry z0 [B, C, H, W] along the prior's probability flow to t [B]; return z_t.

    Song et al. 2020, "Denoising diffusion implicit models", eq. 13, run upwards in `steps` Euler steps with levels
    evenly spaced in t, each view on its own grid; z0 counts as the image at t = 0. `scale` is guidance in form A;
    `roles` names another text, or two (default: `flow_roles`). With eta > 0 each step replaces part of the noise by a
    fresh draw, as much as DDIM with that eta (their eq. 16) adds on the way down between the same two levels, so that
    the variance at each level stays right.
    """
    return _along(model, z0, _levels(t, steps), scale, roles or flow_roles(scale), eta)


def decode(
    model: BoundPrior, z_t: Tensor, t: Tensor, steps: int, scale: float = 1.0, roles: tuple[str, ...] | None = None
) -> Tensor:
    """Carry z_t [B, C, H, W] at t [B] down the flow to t = 0: DDIM without fresh noise, over the levels of `invert` in
    reverse. Under the same text it undoes `invert`, up to the discretisation error."""
    return _along(model, z_t, _levels(t, steps)[::-1], scale, roles or flow_roles(scale))


def _levels(t: Tensor, steps: int) -> list[Tensor]:
    """Return steps + 1 levels [B] from 0 to t, evenly spaced."""
    return [(t * k / steps).round().long() for k in range(steps + 1)]


def _along(
    model: BoundPrior, z: Tensor, levels: Sequence[Tensor], scale: float, roles: tuple[str, ...], eta: float = 0.0
) -> Tensor:
    """Carry z from the first of `levels` to the last."""
    for k in range(1, len(levels)):
        here, there = levels[k - 1], levels[k]
        predicted = model.eps(z, here, *roles)
        eps = predicted[0] if len(roles) == 1 else cfg(predicted[1], predicted[0], scale)
        z = ddim(model, z, here, there, eps, eta, f"inversion {k}")
    return z
