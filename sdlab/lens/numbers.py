"""Where each prediction was asked, and what a step's predictions say in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdlab.lens.ask import ASKED_ELSEWHERE, Call
from sdlab.losses import Distillation, correlation, cosine
from sdlab.step import Report
from sdlab.types import Guidance, Noised, Prior

SILENT = 1e-9  # a gradient of this root mean square has no direction
# what a loss sets against the prediction, the first that there is; the noise itself where there is none of them
CONTROLS = ("psi", "psi_null", "operator", "minority", "inversion", "interval", "ref", "source", "uncond")


class Place(NamedTuple):
    """Where a prediction was asked: z_t [B, C, H, W], t [B] and its alpha, sigma [B, 1, 1, 1]."""

    z_t: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def places(x: Noised, guidance: Guidance, calls: Sequence[Call], prior: Prior) -> dict[str, Place]:
    """Where each of the predictions was asked, so that x0-hat = (z_t - sigma eps) / alpha; those of which that is not
    known are left out."""
    here = Place(x.z_t, x.t, x.alpha, x.sigma)
    own = "inversion" if "inversion" in guidance.preds else "source" if "displacement" in guidance.stats else ""
    if own:  # the loss found noise for the picture, and asked about the two together
        here = here._replace(z_t=x.alpha * x.z0 + x.sigma * guidance.preds[own])
    elsewhere = any(name in guidance.preds for name in ASKED_ELSEWHERE)
    found: dict[str, Place] = {}
    for name, eps in guidance.preds.items():
        call = None if own else next((c for c in calls if any(eps is answer for answer in c.answers)), None)
        if call is None and name == "minority" and calls:
            call = calls[-1]  # a guided prediction, which is made of the last answers
        if call is not None:
            found[name] = Place(call.z_t, call.t, *prior.marginal(call.t))
        elif name == "ref" and x.ref is not None:
            found[name] = here._replace(z_t=x.alpha * x.ref + x.sigma * x.noise)
        elif not elsewhere:
            found[name] = here
    return found


def one_step_target(x: Noised, loss: Distillation, residual: Tensor) -> Tensor:
    """z0 less the residual, as far as a difference of two eps says that the two x0-hat lie apart [B, C, H, W]. For SDS
    and SDI this is x0-hat of the guided prediction."""
    ratio = x.sigma / x.alpha
    if loss.kind == "sdi" or (loss.kind == "jsd" and getattr(loss, "form", "") == "code"):
        return x.z0 - residual  # which holds sigma / alpha already
    if loss.kind == "jsd":  # which holds alpha / sigma
        return x.z0 - ratio**2 * residual
    return x.z0 - ratio * residual


def figures_of(report: Report) -> dict[str, Tensor]:
    """What a step's predictions have in common, 0-d each and left on the device:

    noise_correlation    Pearson's, of the prediction told the prompt and the noise in z_t
    control_correlation  of it and what the loss sets against it: the noise (SDS), psi, M, the minority sample, ...
                         (a control variate: the closer to 1, the calmer their difference; Do and Hua 2025)
    guidance_rms         root mean square of what the prompt changes, eps_c - eps_u
    guidance_share       cosine of that and the residual: 1 where guidance is all there is to the gradient
    """
    preds = report.guidance.preds
    eps = preds.get("pos", preds.get("target"))
    if eps is None:
        return {}
    has_own_noise = "displacement" in report.guidance.stats or "inversion" in preds
    figures = {}
    if not has_own_noise and not any(name in preds for name in ASKED_ELSEWHERE):
        figures["noise_correlation"] = correlation(eps, report.x.noise)
    controls = CONTROLS if "neg" in preds else CONTROLS[:-1]  # where a negative prompt is asked, noise has no part
    control = next((preds[name] for name in controls if name in preds), report.x.noise)
    figures["control_correlation"] = correlation(eps, control)
    without = next((preds[name] for name in ("uncond", "source", "neg") if name in preds), None)
    if without is not None:
        shift = eps - without
        figures["guidance_rms"] = shift.square().mean().sqrt()
        figures["guidance_share"] = cosine(shift, report.guidance.residual)
    return figures


def sizes_of(report: Report) -> dict[str, Tensor]:
    """The root mean square of every prediction of a step by its name, and of the "noise"; 0-d each."""
    named = {**report.guidance.preds, "noise": report.x.noise}
    return {name: eps.square().mean().sqrt() for name, eps in named.items()}


def cosines(rows: Tensor) -> Tensor:
    """[L, D] -> [L, L]; NaN for rows that are zero or not numbers."""
    rms = rows.square().mean(-1, keepdim=True).sqrt()
    unit = torch.where(rms > SILENT, rows / rms, torch.nan) / rows.shape[-1] ** 0.5
    between = (unit @ unit.mT).clamp(-1, 1)
    own = between.diagonal()
    own.copy_(torch.where(own.isnan(), own, 1.0))  # not a rounding error less
    return between
