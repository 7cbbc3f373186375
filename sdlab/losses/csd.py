"""Classifier score distillation (Yu et al., "Text-to-3D with classifier score distillation", 2023).

Guidance alone is enough; the rest of SDS is not needed. In the general form of the released code,

    residual = c_c eps_c + c_n eps_n + c_u eps_u + c_noise noise

the coefficients are interpolated over the run: the classifier starts as the prompt against no prompt, (1, 0, -1, 0),
and ends as the prompt against the negative prompt, (1, -1, 0, 0). SDS is (s, 0, 1 - s, -1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdlab.knobs import knob
from sdlab.losses import Distillation
from sdlab.types import BoundPrior, Guidance, Noised

LARGE = 200.0


@dataclass(frozen=True)
class CSD(Distillation[None]):
    """Guidance alone: the direction from what is unwanted towards the prompt."""

    kind: ClassVar[str] = "csd"
    title: ClassVar[str] = "CSD"
    paper: ClassVar[str] = "Text-to-3D with Classifier Score Distillation, Yu et al., 2023"
    formula: ClassVar[str] = "w(t) [ c_c eps_c + c_n eps_n + c_u eps_u + c_noise noise ]"
    look_for: ClassVar[str] = (
        "strong colours and edges early on; the negative prompt takes over as its coefficient grows"
    )
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", "neg")
    control: ClassVar[tuple[str, ...]] = ("uncond",)
    guidance_knob: ClassVar[str] = ""

    pos: float = knob(1.0, -LARGE, LARGE, "c_c of the prompt at the start (paper: 1)")
    pos_end: float = knob(1.0, -LARGE, LARGE, "c_c at the end (paper: 1)")
    neg: float = knob(0.0, -LARGE, LARGE, "c_n of the negative prompt at the start (released code: 0)")
    neg_end: float = knob(-1.0, -LARGE, LARGE, "c_n at the end (released code: -1)")
    null: float = knob(-1.0, -LARGE, LARGE, "c_u of the empty prompt at the start (released code: -1)")
    null_end: float = knob(0.0, -LARGE, LARGE, "c_u at the end (released code: 0)")
    noise: float = knob(0.0, -LARGE, LARGE, "c_noise of the noise at the start (paper: 0; SDS: -1)")
    noise_end: float = knob(0.0, -LARGE, LARGE, "c_noise at the end (paper: 0)")
    ramp: float = knob(
        0.5, 0.0, 1.0, "fraction of the run in which coefficients change (released code: 5000 of 10 000)"
    )

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        eps_c, eps_u, eps_n = model.eps(x.z_t, x.t, "pos", "uncond", "neg")
        way = min(model.progress / self.ramp, 1.0) if self.ramp > 0 else 1.0
        residual = (
            _between(self.pos, self.pos_end, way) * eps_c
            + _between(self.neg, self.neg_end, way) * eps_n
            + _between(self.null, self.null_end, way) * eps_u
            + _between(self.noise, self.noise_end, way) * x.noise
        )
        return Guidance(residual, {"pos": eps_c, "uncond": eps_u, "neg": eps_n})


def _between(start: float, end: float, way: float) -> float:
    return start + way * (end - start)
