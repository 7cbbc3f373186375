"""Classifier-free guidance and its variants: combine a prediction with the prompt and one without.

    cfg        eps_u + s (eps_c - eps_u), form A (Ho and Salimans 2021); DreamFusion's form B(s) is A(s + 1)
    rescaled   cfg with its contrast rescaled to that of eps_c (Lin et al. 2023, "Common diffusion noise schedules")
    perp_neg   each view is also pushed away from the words of other views (Armandpour et al. 2023), but only
               perpendicular to its own direction

Losses with plain CFG between the prompt and the empty prompt call `guide`, which applies the settings: SDS, VSD, ESD,
ASD, VDM, JSD, SDI, PFD and the first stage of SBP. The others combine predictions in their own way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sdlab.cameras import degrees_from_front
from sdlab.knobs import knob
from sdlab.types import PERP_ROLES, Asked, BoundPrior, Noised


@dataclass(frozen=True)
class GuidanceSettings:
    """Modifications of plain CFG."""

    rescale: float = knob(
        0.0,
        0.0,
        1.0,
        "how far CFG's contrast is rescaled to the prompt's (paper: 0.7); not in NFSD, CSD, DDS, ISM, SBP",
    )
    perp_neg: bool = knob(
        False,
        help="Perp-Neg: push each view away from the words of the others; needs view words, twice the evaluations; "
        "not in NFSD, CSD, DDS, ISM, SBP",
    )


def cfg(uncond: Tensor, pos: Tensor, scale: float) -> Tensor:
    """Return eps_u + s (eps_c - eps_u), any shape."""
    return uncond + scale * (pos - uncond)


def guide(model: BoundPrior, z_t: Tensor, t: Tensor, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the guided prediction [B, C, H, W] at z_t, and its parts "pos" and "uncond" by name."""
    if model.perp_weights is None:
        eps_c, eps_u = model.eps(z_t, t, "pos", "uncond")
        hat = cfg(eps_u, eps_c, scale)
    else:
        eps_u, eps_c, *others = model.eps(z_t, t, "uncond", *PERP_ROLES)
        hat = eps_u + scale * perp_neg(eps_c - eps_u, [e - eps_u for e in others], model.perp_weights)
    if model.rescale > 0:
        hat = rescaled(hat, eps_c, model.rescale)
    return hat, {"pos": eps_c, "uncond": eps_u}


def edit(x: Noised, model: BoundPrior, scale: float) -> tuple[Tensor, dict[str, Tensor], dict[str, Asked]]:
    """Return by how much the guided prediction differs from that of the reference with its own prompt and the same
    noise (Delta Denoising Score, Hertz et al., 2023); the predictions by role, and where the reference's were asked."""
    assert x.ref is not None, "the step renders the reference of a loss that needs one"
    eps_c, eps_u = model.eps(x.z_t, x.t, "pos", "uncond")
    z_ref = x.alpha * x.ref + x.sigma * x.noise
    ref_c, ref_u = model.eps(z_ref, x.t, "ref", "uncond")
    preds = {"pos": eps_c, "uncond": eps_u, "ref": ref_c}
    return cfg(eps_u, eps_c, scale) - cfg(ref_u, ref_c, scale), preds, {"ref": Asked(z_ref, x.t)}


def rescaled(hat: Tensor, eps_c: Tensor, share: float) -> Tensor:
    """Rescale each image of `hat` to the standard deviation of `eps_c`, blended by `share` (eq. 15, 16)."""
    own, wanted = (x.flatten(1).std(1).view(-1, 1, 1, 1) for x in (hat, eps_c))
    return share * hat * (wanted / own.clamp_min(1e-12)) + (1 - share) * hat


def perp_neg(own: Tensor, others: list[Tensor], weights: Tensor) -> Tensor:
    """Return own + sum_i w_i (other_i minus its projection on own), image by image.

    All [B, C, H, W]; weights [B, n] are at most 0.
    """
    total = own
    flat = own.flatten(1)
    squared = flat.square().sum(1).clamp_min(1e-20)
    for i, other in enumerate(others):
        along = ((other.flatten(1) * flat).sum(1) / squared).view(-1, 1, 1, 1)
        total = total + weights[:, i].view(-1, 1, 1, 1).to(own) * (other - along * own)
    return total


def perp_neg_weights(azimuth: float, overhead: bool) -> tuple[float, tuple[float, float]]:
    """Return the share r in [0, 1] of the first of two view words, and the weights of two words to avoid.

    azimuth in degrees, 0 at the front. In the front half the view is r front + (1 - r) side and avoids (front, side);
    in the back half it is r side + (1 - r) back and avoids (side, front). From overhead, both weights are 0. The
    numbers are threestudio's.
    """
    from_front = degrees_from_front(azimuth)
    if overhead:
        return 1.0, (0.0, 0.0)
    if from_front < 90.0:
        r = 1 - from_front / 90
        return r, (_decaying(4.0, -2.426, r), _decaying(4.0, -2.426, 1 - r))
    r = 2 - from_front / 90
    return r, (_decaying(1.0, -0.606, r), _decaying(1.0, 0.967, r))


def _decaying(a: float, c: float, r: float) -> float:
    """Return -(a exp(-r / 2) + c), at most 0."""
    return min(-(a * math.exp(-0.5 * r) + c), 0.0)
