"""Variational score distillation (Wang et al., "ProlificDreamer", 2023).

SDS subtracts the noise itself from the prior's prediction; VSD subtracts the score of this scene's renders from camera
c. A fine-tuned prior psi learns that score during the run (`sdlab.auxiliary.score`), eq. 9:

    residual = eps_u + s (eps_c - eps_u) - eps_psi(z_t; c)

Initially psi is the prior and the residual is (s - 1) (eps_c - eps_u): guidance alone. The paper's s is 7.5.
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
class VSD(score.TrainsScore, Distillation[score.Psi]):
    """A second network learns the renders' own score, given the camera, and replaces the noise."""

    kind: ClassVar[str] = "vsd"
    title: ClassVar[str] = "VSD"
    paper: ClassVar[str] = (
        "ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with Variational Score Distillation, "
        "Wang et al., 2023, eq. 9"
    )
    formula: ClassVar[str] = "w(t) [ eps_u + s (eps_c - eps_u) - eps_psi(camera) ]"
    look_for: ClassVar[str] = (
        "sharp detail and natural colours at an ordinary CFG; slower, because psi is trained in every step; "
        "does nothing against multiple fronts"
    )
    place: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", score.ROLE)
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, score.PSI)
    control: ClassVar[tuple[str, ...]] = ("psi",)
    aux_errors: ClassVar[tuple[str, ...]] = ("psi_error",)

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale (paper: 7.5)")
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
        hat, preds = guide(model, x.z_t, x.t, self.cfg)
        (psi,) = aux.ask(x, model, (True,))
        stats = {
            "psi_error": score.square_error(psi, x.noise),
            "prior_error": score.square_error(preds["pos"], x.noise),  # psi should be below it
        }
        return Guidance(hat - psi, {**preds, "psi": psi}, stats)
