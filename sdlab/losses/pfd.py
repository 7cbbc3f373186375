"""Probability-flow distillation (Ramanan and Rajagopalan, "Probability-flow distillation", arXiv 2605.09071, 2026).

SDI pulls the image towards x0-hat of its own inverted noise. x0-hat is the mean of all images that z_t may come from,
or, which is the same, one Euler step of the prior's probability flow over the whole way down. PFD takes that way in
many steps, which end at one of these images (algorithm 1):

    residual = z - x0^,    x0^ = down(up(z))

`up` is the inversion of SDI, under guidance of the opposite sign, because it stands for the flow of the renders; `down`
is DDIM or DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2; paper: DPM++) under the prompt's guidance. The
last step ends at x0-hat of its level, so that one step down is SDI. In units of eps, the residual is the difference
between the noises that lead straight to z_t from x0^ and from z,

    residual = sigma / alpha [ eps(flow) - kappa ],    eps(flow) = (z_t - alpha x0^) / sigma
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

FLOW = Term(
    "flow",
    "eps^_f",
    "end of the flow",
    "the image in which the prior's flow from z_t ends",
    "towards the end of the flow",
    colour="teal",
    formula="eps(flow)",
)
LEAST_STEP = 1e-6  # of log(alpha / sigma), for levels that coincide


@dataclass(frozen=True)
class PFD(Distillation[None]):
    """SDI that follows the prior's flow all the way down, in many steps, to a sharp image."""

    kind: ClassVar[str] = "pfd"
    title: ClassVar[str] = "PFD"
    paper: ClassVar[str] = "Probability-Flow Distillation, Ramanan and Rajagopalan, 2026, algorithm 1"
    formula: ClassVar[str] = "w(t) sigma/alpha [ eps(flow) - kappa ],  up and down the flow of the prior"
    look_for: ClassVar[str] = (
        "finer detail than SDI, because the target is one image instead of a mean; best with t falling; the slowest"
        + ON_EXACT_SCORES
    )
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, FLOW, INVERSION)
    control: ClassVar[tuple[str, ...]] = ("inversion",)

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale on the way down (paper: 7.5)")
    reverse_steps: int = knob(10, 1, 50, "steps down the flow, two evaluations each; 1 is SDI")
    solver: str = knob("dpm++", help="of the way down; DPM-Solver++(2M) needs fewer steps", choices=("dpm++", "ddim"))
    inversion_steps: int = knob(10, 1, 50, "steps of the inversion, one or two evaluations each")
    inversion_cfg: float = knob(
        -6.5, -50.0, 50.0, "guidance of the inversion (paper: -6.5); 1: the prompt alone, 0: no prompt"
    )
    inversion_eta: float = knob(0.0, 0.0, 1.0, "fresh noise in the inversion, as DDIM's eta (paper: 0)")

    def calls(self) -> tuple[int, ...]:
        return (len(flow_roles(self.inversion_cfg)),) * self.inversion_steps + (2,) * self.reverse_steps

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        z_t = invert(model, x.z0, x.t, self.inversion_steps, self.inversion_cfg, self.inversion_eta)
        end, preds = self._down(model, z_t, x.t)
        kappa, flow = ((z_t - x.alpha * image) / x.sigma for image in (x.z0, end))
        preds |= {"flow": flow, "inversion": kappa}
        stats = {"displacement": (end - x.z0).square().mean().sqrt()}
        return Guidance(x.z0 - end, preds, stats, dict.fromkeys(preds, Asked(z_t, x.t)))

    def one_step_target(self, x: Noised, residual: Tensor) -> Tensor:
        return x.z0 - residual  # already contains sigma / alpha

    def _down(self, model: BoundPrior, z_t: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the image [B, C, H, W] in which the guided flow from z_t at t [B] ends, and the first predictions.

        The levels are evenly spaced in t. With D the image that a step heads for, and log(alpha / sigma) changing by h,
        a step is z' = sigma' / sigma z + alpha' (1 - exp(-h)) D. D is x0-hat in DDIM and in the first step; later steps
        of DPM-Solver++(2M) extrapolate it over half the step.
        """
        z, first, before, h_before = z_t, {}, None, None
        for k in range(self.reverse_steps, 0, -1):
            here, there = ((t * n / self.reverse_steps).round().long() for n in (k, k - 1))
            alpha, sigma = model.marginal(here)
            hat, preds = guide(model, z, here, self.cfg)
            x0 = (z - sigma * hat) / alpha
            first = first or preds
            if k == 1:
                return x0, first
            alpha_next, sigma_next = model.marginal(there)
            h = (alpha_next / sigma_next / (alpha / sigma)).log()
            aim = x0
            if self.solver == "dpm++" and before is not None and h_before is not None:
                aim = x0 + h / (2 * h_before.clamp_min(LEAST_STEP)) * (x0 - before)
            z = sigma_next / sigma * z + alpha_next * (1 - (-h).exp()) * aim
            before, h_before = x0, h
        raise AssertionError("the last step returns")
