"""Adversarial score distillation (Wei et al., "When score distillation meets GAN", 2024).

VSD whose psi is the discriminator of a GAN: it learns the renders' score and, with gamma < 0, to differ from the prior:

    min_psi || eps_psi - noise ||^2 + gamma || eps_psi - eps_c ||^2

The minimum, (noise + gamma eps_c) / (1 + gamma), exists for |gamma| < 1 only. In the playground the exact scores are
mixed accordingly. The scene's gradient is the same as in VSD.

The formula is the paper's. The released code differs where the network predicts v (its target mixes the prior's noise
with the render's own z0) and with Perp-Neg (its rival is the Perp-Neg mixture; here it is the prompt's prediction).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdlab.auxiliary import score
from sdlab.guidance import guide
from sdlab.knobs import knob
from sdlab.losses import POS, UNCOND, Distillation
from sdlab.types import BoundPrior, Guidance, Noised, Term


@dataclass(frozen=True)
class ASD(score.TrainsScore, Distillation[score.Psi]):
    """VSD whose second network also learns to differ from the prior, like a discriminator."""

    kind: ClassVar[str] = "asd"
    title: ClassVar[str] = "ASD"
    paper: ClassVar[str] = "Adversarial Score Distillation: When score distillation meets GAN, Wei et al., 2024"
    formula: ClassVar[str] = "w(t) [ eps_u + s (eps_c - eps_u) - eps_psi(camera) ],  psi against the prior by gamma"
    look_for: ClassVar[str] = "VSD at gamma 0; with a negative gamma psi pushes harder away from the current renders"
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", score.ROLE)
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, score.PSI)
    control: ClassVar[tuple[str, ...]] = ("psi",)
    aux_errors: ClassVar[tuple[str, ...]] = ("psi_error",)

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
    gamma: float = knob(-0.75, -0.99, 0.99, "pull of psi towards the prior; negative: pushed away (paper: -0.75)")
    network: str = score.network_knob()
    rank: int = score.rank_knob()
    lr: float = score.lr_knob()
    p_null: float = score.p_null_knob()
    lessons: int = score.lessons_knob()
    every: int = score.every_knob()
    warm_up: int = score.warm_up_knob()

    def calls(self) -> tuple[int, ...]:
        return (2, *(1,) * self.lessons)

    def evaluations(self) -> tuple[int, int]:
        asked, learnt = super().evaluations()
        return asked, 2 * learnt  # each lesson evaluates the prior as well

    def gradient(self, x: Noised, model: BoundPrior, aux: score.Psi) -> Guidance:
        hat, preds = guide(model, x.z_t, x.t, self.cfg)
        (psi,) = aux.ask(x, model, (True,))
        if self.network == score.EXACT:
            psi = (psi + self.gamma * preds["pos"]) / (1 + self.gamma)
        stats = {
            "psi_error": score.square_error(psi, x.noise),
            "prior_error": score.square_error(preds["pos"], x.noise),
        }
        return Guidance(hat - psi, {**preds, "psi": psi}, stats)

    def fit(self, x: Noised, model: BoundPrior, aux: score.Psi, guidance: Guidance) -> None:
        aux.learn(x, model, self.lr, self.p_null, self.lessons, self.every, self.gamma)
