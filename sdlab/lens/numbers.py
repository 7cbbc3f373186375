"""Where each prediction of a step was evaluated, and statistics of the predictions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdlab.losses import Distillation, correlation, cosine, first_of
from sdlab.step import Report
from sdlab.types import Guidance, Noised, Prior

SILENT = 1e-9  # a gradient below this root mean square has no direction


class Place(NamedTuple):
    """Where a prediction was evaluated: z_t [B, C, H, W], t [B] and its alpha, sigma [B, 1, 1, 1]."""

    z_t: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def places(x: Noised, guidance: Guidance, prior: Prior) -> dict[str, Place]:
    """Return where each prediction was evaluated, so that x0-hat = (z_t - sigma eps) / alpha."""
    found = {}
    for name in guidance.preds:
        if name in guidance.asked:
            z_t, t = guidance.asked[name]
            found[name] = Place(z_t, t, *prior.marginal(t))
        else:
            found[name] = Place(x.z_t, x.t, x.alpha, x.sigma)
    return found


def stats_of(report: Report, loss: Distillation) -> dict[str, Tensor]:
    """Return statistics that compare the predictions of a step of `loss`; 0-d each and left on the device:

    noise_correlation    Pearson's, of the prediction given the prompt and the noise in z_t
    control_correlation  of the same prediction and what the loss subtracts: the noise (SDS), psi, M, the minority
                         sample, ... (a control variate: the closer to 1, the calmer the difference; Do and Hua 2025)
    guidance_rms         root mean square of what the prompt changes, eps_c - eps_u
    guidance_share       cosine of eps_c - eps_u and the residual: 1 where the gradient is guidance alone
    """
    x, preds = report.x, report.guidance.preds
    name = first_of(loss.conditional, preds)
    if not name:
        return {}
    eps, stats = preds[name], {}
    if name not in report.guidance.asked:
        stats["noise_correlation"] = correlation(eps, x.noise)
    stats["control_correlation"] = correlation(eps, preds.get(first_of(loss.control, preds), x.noise))
    without = first_of(loss.unconditional, preds)
    if without:
        shift = eps - preds[without]
        stats["guidance_rms"] = shift.square().mean().sqrt()
        stats["guidance_share"] = cosine(shift, report.guidance.residual)
    return stats


def sizes_of(report: Report) -> dict[str, Tensor]:
    """Return the root mean square of every prediction of a step by name, and of the "noise"; 0-d each."""
    named = {**report.guidance.preds, "noise": report.x.noise}
    return {name: eps.square().mean().sqrt() for name, eps in named.items()}


def cosines(rows: Tensor) -> Tensor:
    """Return the cosines [L, L] between rows [L, D]; NaN for rows that are zero or not finite."""
    rms = rows.square().mean(-1, keepdim=True).sqrt()
    unit = torch.where(rms > SILENT, rows / rms, torch.nan) / rows.shape[-1] ** 0.5
    between = unit @ unit.mT
    between = ((between + between.mT) / 2).clamp(-1, 1)  # a product of many rows is symmetric up to rounding only
    own = between.diagonal()
    own.copy_(torch.where(own.isnan(), own, 1.0))  # exactly 1, without rounding
    return between


def relative_error(guess: Tensor, exact: Tensor) -> Tensor:
    """Return |guess - exact| / |exact| of each of B images [B, C, H, W]; [B]."""
    return (guess - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1).clamp_min(SILENT)
