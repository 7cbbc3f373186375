"""Score Distillation Sampling (Poole et al., DreamFusion, 2022, eq. 3).

residual = eps_hat - noise, with eps_hat = eps_u + s (eps_c - eps_u) (form A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdlab.guidance import guide
from sdlab.knobs import knob
from sdlab.losses import Distillation
from sdlab.types import BoundPrior, Guidance, Noised


@dataclass(frozen=True)
class SDS(Distillation[None]):
    """Pulls every noised image towards what the prior finds more likely; a network needs a large CFG to settle."""

    kind: ClassVar[str] = "sds"
    title: ClassVar[str] = "SDS"
    paper: ClassVar[str] = "DreamFusion: Text-to-3D using 2D Diffusion, Poole et al., 2022, eq. 3"
    formula: ClassVar[str] = "w(t) [ eps_u + s (eps_c - eps_u) - noise ]"
    look_for: ClassVar[str] = (
        "fast, robust shapes; smooth and over-saturated at a large s; extra faces without view words"
    )
    place: ClassVar[int] = 1

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale: weight of the prompt against 'any image'")

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        hat, preds = guide(model, x.z_t, x.t, self.cfg)
        return Guidance(hat - x.noise, preds)
