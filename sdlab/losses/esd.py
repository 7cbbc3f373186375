"""Entropic score distillation (Wang et al., "Taming mode collapse in score distillation for text-to-3D", 2024).

VSD rewards each view for being likely, and the likeliest view of most objects is the front: hence multiple fronts. ESD
adds lambda times the entropy of all views together. Its gradient needs psi both with the camera and without it
(Algorithm 1):

    residual = eps_u + s (eps_c - eps_u) - lambda eps_psi(z_t; none) - (1 - lambda) eps_psi(z_t; c)

lambda = 0 is VSD; lambda = 1 ignores the camera. psi is trained as in VSD (`sdlab.auxiliary.score`). The released code
is threestudio's VSD with guidance of 1 - lambda = 0.5 between psi's two predictions.
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
class ESD(score.TrainsScore, Distillation[score.Psi]):
    """VSD plus the entropy of the views, so that they do not all show the same side."""

    kind: ClassVar[str] = "esd"
    title: ClassVar[str] = "ESD"
    paper: ClassVar[str] = (
        "Taming Mode Collapse in Score Distillation for Text-to-3D Generation, Wang et al., 2024, Algorithm 1"
    )
    formula: ClassVar[str] = "w(t) [ eps_u + s (eps_c - eps_u) - lam eps_psi(none) - (1 - lam) eps_psi(camera) ]"
    look_for: ClassVar[str] = (
        "fewer fronts than VSD without view words (paper); lam 0 is VSD; at 1 psi ignores the camera, shapes are smooth"
    )
    place: ClassVar[int] = 3
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", score.ROLE)
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, score.PSI, score.PSI_NULL)
    control: ClassVar[tuple[str, ...]] = ("psi", "psi_null")
    aux_errors: ClassVar[tuple[str, ...]] = ("psi_error", "psi_null_error")

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
    lam: float = knob(0.5, 0.0, 1.0, "lambda, weight of the views' entropy; 0 is VSD (released code: 0.5)")
    network: str = score.network_knob()
    rank: int = score.rank_knob()
    lr: float = score.lr_knob()
    p_null: float = score.p_null_knob()
    lessons: int = score.lessons_knob()
    every: int = score.every_knob()
    warm_up: int = score.warm_up_knob()

    def calls(self) -> tuple[int, ...]:
        return (2,)

    def aux_name(self) -> str:
        return score.AUX_NAME

    def gradient(self, x: Noised, model: BoundPrior, aux: score.Psi) -> Guidance:
        residual, preds = guide(model, x.z_t, x.t, self.cfg)
        stats = {"prior_error": score.square_error(preds["pos"], x.noise)}  # psi should be below it
        shares = self._shares()
        answers = aux.ask(x, model, [name == "psi" for name in shares])
        for (name, share), psi in zip(shares.items(), answers, strict=True):
            preds[name] = psi
            stats[f"{name}_error"] = score.square_error(psi, x.noise)
            residual = residual - share * psi
        return Guidance(residual, preds, stats)

    def answers(self) -> int:
        return len(self._shares())

    def _shares(self) -> dict[str, float]:
        """Return the weights of psi with the camera and without it, omitting a weight of 0."""
        return {name: share for name, share in (("psi", 1 - self.lam), ("psi_null", self.lam)) if share > 0}
