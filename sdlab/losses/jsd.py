"""Jensen-Shannon distillation (Do and Hua, "Text-to-3D generation using Jensen-Shannon score distillation", 2025).

1. Invert z along the prior's flow to z^_t, so that its noise belongs to the image (`sdlab.inversion`).
2. Make a minority sample z-_t from it: x0-hat of z^_t, with fresh noise. It matches the prompt less well.
3. The gradient (eq. 12) is the difference of the guided predictions for the two:

    residual = alpha / sigma (eps^(z^_t) - eps^(z-_t)),    eps^ = eps_u + s (eps_c - eps_u)

The second term is a control variate: it correlates with the first, so that the difference has little variance.

The released code differs; the form "code" follows it. With kappa the noise found by inversion, z^_t = alpha z + sigma
kappa, and noise the fresh noise of the minority sample, it minimises both |z - x0-hat(z^_t)|^2 and k times
|z - x0-hat(z-_t)|^2. There the second prediction has the opposite sign and the weight is the inverse:

    residual = sigma / alpha [ (1 + k) (eps^(z^_t) - kappa) + k (eps^(z-_t) - noise) ]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from sdlab.guidance import guide
from sdlab.inversion import flow_roles, invert
from sdlab.knobs import knob
from sdlab.losses import POS, UNCOND, Distillation, correlation
from sdlab.types import Asked, BoundPrior, Guidance, Noised, Term

MINORITY = Term(
    "minority",
    "eps^_\u2212",
    "minority",
    "the prior's guided estimate of the less likely version",
    "minus the guided prediction for an unlikely sample",
    subtracted=True,
    colour="pink",
    formula="eps(minority)",
    noisy="the less likely version with fresh noise",
)
CODE = "w(t) sigma/alpha [ (1 + k) (eps(inverted) - kappa) + k (eps(minority) - noise) ]"


@dataclass(frozen=True)
class JSD(Distillation[None]):
    """A bounded divergence: compares a likely and an unlikely version of the same image."""

    kind: ClassVar[str] = "jsd"
    title: ClassVar[str] = "JSD"
    paper: ClassVar[str] = "Text-to-3D Generation using Jensen-Shannon Score Distillation, Do and Hua, 2025, eq. 12"
    formula: ClassVar[str] = "w(t) alpha/sigma [ eps(inverted) - eps(minority) ]"
    other_formulas: ClassVar[tuple[str, ...]] = (CODE,)
    look_for: ClassVar[str] = (
        "both eps are guided by s; calm colours, different objects from different seeds (paper); "
        "slow, because each step inverts the image first"
    )
    place: ClassVar[int] = 6
    terms: ClassVar[tuple[Term, ...]] = (replace(POS, formula="eps(inverted)"), UNCOND, MINORITY)
    control: ClassVar[tuple[str, ...]] = ("minority",)

    cfg: float = knob(13.5, 0.0, 200.0, "s, the guidance scale (paper: 13.5)")
    inversion_steps: int = knob(10, 1, 50, "steps of the inversion, one or two network evaluations each (paper: 10)")
    inversion_cfg: float = knob(
        1.0, -50.0, 50.0, "guidance of the inversion; 1 uses the prompt alone (released code: -13.5)"
    )
    form: str = knob("paper", help="paper: eq. 12; code: the gradient of the released code", choices=("paper", "code"))
    k: float = knob(1.0, 0.0, 10.0, "weight of the minority sample in form 'code'")
    inversion_eta: float = knob(0.0, 0.0, 1.0, "fresh noise in the inversion, as DDIM's eta (released code: 0.3)")

    def calls(self) -> tuple[int, ...]:
        return (len(flow_roles(self.inversion_cfg)),) * self.inversion_steps + (2, 2)

    def formula_at(self, progress: float) -> str:
        return CODE if self.form == "code" else self.formula

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        z_hat = invert(model, x.z0, x.t, self.inversion_steps, self.inversion_cfg, self.inversion_eta)
        hat, preds = guide(model, z_hat, x.t, self.cfg)
        # the paper denoises with the prompt alone, the code with guidance
        x0_bar = (z_hat - x.sigma * (preds["pos"] if self.form == "paper" else hat)) / x.alpha
        z_bar = x.alpha * x0_bar + x.sigma * x.noise
        bar, _ = guide(model, z_bar, x.t, self.cfg)
        asked = {**dict.fromkeys(preds, Asked(z_hat, x.t)), "minority": Asked(z_bar, x.t)}
        preds["minority"] = bar
        stats = {"correlation": correlation(hat, bar)}
        if self.form == "paper":
            return Guidance(x.alpha / x.sigma * (hat - bar), preds, stats, asked)
        kappa = (z_hat - x.alpha * x.z0) / x.sigma
        both = (1 + self.k) * (hat - kappa) + self.k * (bar - x.noise)
        return Guidance(x.sigma / x.alpha * both, preds, stats, asked)

    def one_step_target(self, x: Noised, residual: Tensor) -> Tensor:
        if self.form == "code":
            return x.z0 - residual  # already contains sigma / alpha
        return x.z0 - (x.sigma / x.alpha) ** 2 * residual  # already contains alpha / sigma
