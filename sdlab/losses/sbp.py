"""Score distillation as a Schroedinger bridge (McAllister, "Extending data priors across domains with diffusion
distillation", UCB/EECS-2024-177; McAllister et al., "Rethinking score distillation as a bridge between image
distributions", 2024).

Stage 1 is SDS. Stage 2, the bridge, moves the picture from what it looks like to what it should look like, both said
in words (eq. 3.5):

    residual = w (eps(z_t; target) - eps(z_t; source))

with one z_t, no guidance and no noise term. The source prompt describes the present picture's flaws; without it the
two scores would say how to get from nothing to the prompt, which is CSD.

The bridge has no restoring term: nothing holds the picture where the prior finds it likely, and an optimiser such as
Adam, which does not mind a factor, follows it as far as it is let. The form "restoring" is not the paper's. It is the
guidance of SDS with the source prompt in place of the empty one, and keeps the noise:

    residual = eps(z_t; source) + w (eps(z_t; target) - eps(z_t; source)) - noise
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sdlab.guidance import cfg, guide
from sdlab.knobs import knob
from sdlab.losses import Distillation
from sdlab.types import BoundPrior, Guidance, Noised


@dataclass(frozen=True)
class SBP(Distillation):
    """From the picture as it is, described in words, to the picture as it should be."""

    kind: ClassVar[str] = "sbp"
    title: ClassVar[str] = "SBP"
    paper: ClassVar[str] = "Extending Data Priors Across Domains with Diffusion Distillation, McAllister, 2024, eq. 3.5"
    formula: ClassVar[str] = "w(t) w [ eps(target prompt) - eps(source prompt) ]"
    look_for: ClassVar[str] = (
        "flaws named in the source prompt should go, without the over-saturation of a large CFG; from a bare start it "
        "spoils the shape, so let SDS come first"
    )
    roles: ClassVar[tuple[str, ...]] = ("target", "source", "pos", "uncond")

    w: float = knob(1.0, 0.0, 100.0, "weight of the bridge (paper: 25 in 2D, 1 in 3D)")
    stage: str = knob(
        "bridge",
        help="bridge: the difference of the two prompts; sds: stage 1; two-stage: sds first, then the bridge",
        choices=("bridge", "sds", "two-stage"),
    )
    form: str = knob(
        "paper",
        help="paper: the bridge alone; restoring: ours, eps(source) + w (...) - noise, which cannot run away",
        choices=("paper", "restoring"),
    )
    switch: float = knob(0.5, 0.0, 1.0, "fraction of the run after which two-stage turns to the bridge (paper: 0.8)")
    sds_cfg: float = knob(7.5, 0.0, 200.0, "s of stage 1 (paper: 40 in 2D, 100 in 3D)")

    def calls(self) -> tuple[int, ...]:
        return (2,)

    def stage_at(self, progress: float) -> str:
        if self.stage == "two-stage":
            return "sds" if progress < self.switch else "bridge"
        return self.stage

    def gradient(self, x: Noised, model: BoundPrior, aux: Any) -> Guidance:
        if self.stage_at(model.progress) == "sds":
            hat, preds = guide(model, x.z_t, x.t, self.sds_cfg)
            return Guidance(hat - x.noise, preds)
        target, source = model.eps(x.z_t, x.t, "target", "source")
        preds = {"target": target, "source": source}
        if self.form == "restoring":
            return Guidance(cfg(source, target, self.w) - x.noise, preds)
        return Guidance(self.w * (target - source), preds)
