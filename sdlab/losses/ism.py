"""Interval score matching (Liang et al., "LucidDreamer", 2023).

The image is inverted to a level s without a prompt and then by one more step of `interval` to t, so that both noisy
images lie on one deterministic path. Their predictions are compared:

    residual = eps_n + s_cfg (eps_c - eps_n) at z_t  -  eps_u at z_s

Guidance starts from the negative prompt, as in the released code. The interval falls from 100 to 80 over the first part
of the run. The released code's weight is 0.1 sigma / alpha (schedule.weight has sigma/alpha). It inverts to s in
strides of 200 timesteps; here the number of strides is fixed, so that every view can have its own t at the same cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdlab.guidance import cfg
from sdlab.inversion import ddim, invert
from sdlab.knobs import knob
from sdlab.losses import NEG, ON_EXACT_SCORES, POS, Distillation
from sdlab.types import Asked, BoundPrior, Guidance, Noised, Term

INTERVAL = Term(
    "interval",
    "eps_s",
    "an interval before",
    "the prior's estimate at the lower noise level, given no prompt",
    "minus the prediction at a smaller t",
    subtracted=True,
    colour="pink",
    formula="eps_u",
    noisy="with less of the noise that the loss found for it",
)


@dataclass(frozen=True)
class ISM(Distillation[None]):
    """Compares predictions at two noise levels of one deterministic path."""

    kind: ClassVar[str] = "ism"
    title: ClassVar[str] = "ISM"
    paper: ClassVar[str] = "LucidDreamer: Interval Score Matching, Liang et al., 2023"
    formula: ClassVar[str] = "w(t) [ eps_n + s (eps_c - eps_n) at z_t - eps_u at the z an interval before ]"
    look_for: ClassVar[str] = (
        "detail that is not averaged away from step to step; the inversion makes it slower than SDS" + ON_EXACT_SCORES
    )
    roles: ClassVar[tuple[str, ...]] = ("pos", "neg", "uncond")
    terms: ClassVar[tuple[Term, ...]] = (POS, NEG, INTERVAL)
    unconditional: ClassVar[tuple[str, ...]] = ("neg",)
    control: ClassVar[tuple[str, ...]] = ("interval",)
    guidance_knob: ClassVar[str] = ""

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
    interval: int = knob(100, 0, 500, "timesteps between the two levels at the start (released code: 100)")
    interval_end: int = knob(80, 0, 500, "timesteps between them after the first part of the run (released code: 80)")
    first_part: float = knob(0.3, 0.0, 1.0, "fraction of the run over which that changes (released code: 1500 of 5000)")
    inversion_steps: int = knob(3, 1, 20, "steps of the inversion to the lower level (paper: one per 200 timesteps)")

    def calls(self) -> tuple[int, ...]:
        return (1,) * (self.inversion_steps + 1) + (2,)

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        part = min(model.progress / self.first_part, 1.0) if self.first_part > 0 else 1.0
        interval = round(self.interval + part * (self.interval_end - self.interval))
        s = (x.t - interval).clamp_min(0)
        z_s = invert(model, x.z0, s, self.inversion_steps, roles=("uncond",))
        (eps_s,) = model.eps(z_s, s, "uncond")
        z_t = ddim(model, z_s, s, x.t, eps_s)
        eps_c, eps_n = model.eps(z_t, x.t, "pos", "neg")
        preds = {"pos": eps_c, "neg": eps_n, "interval": eps_s}
        here = Asked(z_t, x.t)
        asked = {"pos": here, "neg": here, "interval": Asked(z_s, s)}
        return Guidance(cfg(eps_n, eps_c, self.cfg) - eps_s, preds, asked=asked)
