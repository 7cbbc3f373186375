"""Noise-free score distillation (Katzir et al., "Noise-free score distillation", 2023).

What SDS subtracts is the noise that was added, because the prediction contains it; NFSD takes the prediction apart and
leaves the noise out:

    residual = delta_D + s (eps_c - eps_u)
    delta_D  = eps_u            at little noise (t < 200), where the noise is nearly removed from it
             = eps_u - eps_n    else: what is not noise in eps_u, found with a prompt that names what is out of domain
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sdlab.knobs import knob
from sdlab.losses import Distillation
from sdlab.types import BoundPrior, Guidance, Noised


@dataclass(frozen=True)
class NFSD(Distillation):
    """SDS without its noise: the negative prompt says what does not belong to pictures."""

    kind: ClassVar[str] = "nfsd"
    title: ClassVar[str] = "NFSD"
    paper: ClassVar[str] = "Noise-Free Score Distillation, Katzir et al., 2023"
    formula: ClassVar[str] = "w(t) [ (t < 200 ? eps_u : eps_u - eps_n) + s (eps_c - eps_u) ]"
    look_for: ClassVar[str] = "less saturated than SDS at an ordinary CFG; the negative prompt matters"
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", "neg")
    control: ClassVar[tuple[str, ...]] = ("uncond",)
    guidance_knob: ClassVar[str] = ""

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
    little_noise: int = knob(200, 0, 1000, "timestep below which eps_u itself is taken (paper: 200)")

    def gradient(self, x: Noised, model: BoundPrior, aux: Any) -> Guidance:
        eps_c, eps_u, eps_n = model.eps(x.z_t, x.t, "pos", "uncond", "neg")
        domain = torch.where(x.t.view(-1, 1, 1, 1) < self.little_noise, eps_u, eps_u - eps_n)
        preds = {"pos": eps_c, "uncond": eps_u, "neg": eps_n}
        return Guidance(domain + self.cfg * (eps_c - eps_u), preds)
