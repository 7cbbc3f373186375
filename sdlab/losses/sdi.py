"""Score distillation via reparametrised DDIM (Lukoianov et al., "Score distillation via inversion", 2024).

SDS adds random noise; SDI uses the image's own noise, found by inversion. With z_t the inverted image and
kappa = (z_t - alpha z) / sigma its noise, the image is pulled towards x0-hat of z_t:

    residual = sigma / alpha [ eps_u + s (eps_c - eps_u) - kappa ]

The inversion uses guidance of the opposite sign, and some fresh noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdlab.guidance import guide
from sdlab.inversion import flow_roles, invert
from sdlab.knobs import knob
from sdlab.losses import INVERSION, ON_EXACT_SCORES, POS, UNCOND, Distillation
from sdlab.types import Asked, BoundPrior, Guidance, Noised, Term


@dataclass(frozen=True)
class SDI(Distillation[None]):
    """SDS with the image's own noise, found by inversion."""

    kind: ClassVar[str] = "sdi"
    title: ClassVar[str] = "SDI"
    paper: ClassVar[str] = "Score Distillation via Reparametrized DDIM, Lukoianov et al., 2024"
    formula: ClassVar[str] = "w(t) sigma/alpha [ eps_u + s (eps_c - eps_u) - kappa ],  kappa by inversion"
    look_for: ClassVar[str] = (
        "sharper than SDS at an ordinary CFG; works best with t falling from high to low; slow" + ON_EXACT_SCORES
    )
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, INVERSION)
    control: ClassVar[tuple[str, ...]] = ("inversion",)

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
    inversion_steps: int = knob(10, 1, 50, "steps of the inversion, one or two evaluations each (paper: 10)")
    inversion_cfg: float = knob(
        -7.5, -50.0, 50.0, "guidance of the inversion (paper: -7.5); 1: the prompt alone, 0: no prompt"
    )
    inversion_eta: float = knob(0.3, 0.0, 1.0, "fresh noise in the inversion, as DDIM's eta (released code: 0.3)")

    def calls(self) -> tuple[int, ...]:
        return (len(flow_roles(self.inversion_cfg)),) * self.inversion_steps + (2,)

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        z_t = invert(model, x.z0, x.t, self.inversion_steps, self.inversion_cfg, self.inversion_eta)
        hat, preds = guide(model, z_t, x.t, self.cfg)
        kappa = (z_t - x.alpha * x.z0) / x.sigma
        preds["inversion"] = kappa
        return Guidance(x.sigma / x.alpha * (hat - kappa), preds, asked=dict.fromkeys(preds, Asked(z_t, x.t)))

    def one_step_target(self, x: Noised, residual: Tensor) -> Tensor:
        return x.z0 - residual  # already contains sigma / alpha
