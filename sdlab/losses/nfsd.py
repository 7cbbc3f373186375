"""Noise-free score distillation (Katzir et al., "Noise-free score distillation", 2023).

SDS subtracts the added noise because the prediction contains it. NFSD splits the prediction and leaves the noise out:

    residual = delta_D + s (eps_c - eps_u)
    delta_D  = eps_u            at low noise (t < 200), where eps_u contains almost no noise
             = eps_u - eps_n    otherwise: eps_u without its noise, found with a prompt for out-of-domain images
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sdlab.knobs import knob
from sdlab.losses import Distillation
from sdlab.types import BoundPrior, Guidance, Noised


@dataclass(frozen=True)
class NFSD(Distillation[None]):
    """SDS without its noise term: the negative prompt names what images should not look like."""

    kind: ClassVar[str] = "nfsd"
    title: ClassVar[str] = "NFSD"
    paper: ClassVar[str] = "Noise-Free Score Distillation, Katzir et al., 2023"
    formula: ClassVar[str] = "w(t) [ (t < 200 ? eps_u : eps_u - eps_n) + s (eps_c - eps_u) ]"
    look_for: ClassVar[str] = "less saturated than SDS at an ordinary CFG; the negative prompt matters"
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", "neg")
    control: ClassVar[tuple[str, ...]] = ("uncond",)
    guidance_knob: ClassVar[str] = ""

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
    little_noise: int = knob(200, 0, 1000, "timestep below which delta_D is eps_u itself (paper: 200)")

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        eps_c, eps_u, eps_n = model.eps(x.z_t, x.t, "pos", "uncond", "neg")
        domain = torch.where(x.t.view(-1, 1, 1, 1) < self.little_noise, eps_u, eps_u - eps_n)
        preds = {"pos": eps_c, "uncond": eps_u, "neg": eps_n}
        return Guidance(domain + self.cfg * (eps_c - eps_u), preds)
