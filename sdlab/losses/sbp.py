"""Score distillation as a Schroedinger bridge (McAllister, "Extending data priors across domains with diffusion
distillation", UCB/EECS-2024-177; McAllister et al., "Rethinking score distillation as a bridge between image
distributions", 2024).

Stage 1 is SDS. Stage 2, the bridge, moves the image from what it looks like to what it should look like, both described
in words (eq. 3.5):

    residual = w (eps(z_t; target) - eps(z_t; source))

with one z_t, no guidance and no noise term. The source prompt describes the flaws of the current image; with an empty
source prompt this would be CSD.

The bridge has no restoring term: nothing keeps the image where the prior finds it likely, and an optimiser such as
Adam, which is invariant to scale, follows the gradient without limit. The form "restoring" is ours, not the paper's:
the guidance of SDS with the source prompt in place of the empty one, including the noise:

    residual = eps(z_t; source) + w (eps(z_t; target) - eps(z_t; source)) - noise

The form "full" (experimental) is the bridge itself (section 4.1), of which eq. 3.5 takes one step of each half: carry z
up the source prompt's flow to t, and from there down the target's flow to psi. The ends are psi_src and psi_tgt, and
the thesis writes w (psi_tgt - psi_src) (eq. 3.4): a displacement to follow; its negative is the direction to descend.
Here psi_src is z, where the path began. (Eq. 3.4 noises z at random and decodes twice; section 4.1 inverts.) In eps
units it is the difference of the two noises that lead straight from an end to z^_t = alpha z + sigma kappa_src =
alpha psi + sigma kappa_tgt,

    residual = w (kappa_tgt - kappa_src) = w alpha / sigma (z - psi),

which for one step equals eq. 3.5 except that the source is evaluated at z. The drawn noise is not used. With equal
prompts only the error of the two inversions remains. Thesis: in 2D, after the single-step form, FID 55.65 against VSD's
59.22; in 3D it adds artefacts. It states neither steps nor guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdlab.guidance import cfg, guide
from sdlab.inversion import decode, flow_roles, invert
from sdlab.knobs import knob
from sdlab.losses import POS, SOURCE, TARGET, UNCOND, Distillation
from sdlab.types import Asked, BoundPrior, Guidance, Noised, Term

STAGE_1 = "w(t) [ eps_u + s (eps_c - eps_u) - noise ]"
RESTORING = "w(t) [ eps(source prompt) + w (eps(target prompt) - eps(source prompt)) - noise ]"
FULL = "w(t) w [ eps(target prompt) - eps(source prompt) ],  each along its flow"


@dataclass(frozen=True)
class SBP(Distillation[None]):
    """Moves the image from a description of its flaws to a description of what it should be."""

    kind: ClassVar[str] = "sbp"
    title: ClassVar[str] = "SBP"
    paper: ClassVar[str] = "Extending Data Priors Across Domains with Diffusion Distillation, McAllister, 2024, eq. 3.5"
    formula: ClassVar[str] = "w(t) w [ eps(target prompt) - eps(source prompt) ]"
    other_formulas: ClassVar[tuple[str, ...]] = (STAGE_1, RESTORING, FULL)
    look_for: ClassVar[str] = (
        "flaws named in the source prompt should vanish, without the over-saturation of a large CFG; from scratch it "
        "spoils the shape, so run SDS first"
    )
    place: ClassVar[int] = 5
    roles: ClassVar[tuple[str, ...]] = ("target", "source", "pos", "uncond")
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, TARGET, SOURCE)
    conditional: ClassVar[tuple[str, ...]] = ("pos", "target")
    unconditional: ClassVar[tuple[str, ...]] = ("uncond", "source")
    control: ClassVar[tuple[str, ...]] = ("source",)
    guidance_knob: ClassVar[str] = "sds_cfg"

    w: float = knob(1.0, 0.0, 100.0, "weight of the bridge (paper: 25 in 2D, 1 in 3D)")
    stage: str = knob(
        "bridge",
        help="bridge: the difference of the two prompts; sds: stage 1; two-stage: sds first, then the bridge",
        choices=("bridge", "sds", "two-stage"),
    )
    form: str = knob(
        "paper",
        help="paper: the bridge alone; restoring: ours, eps(source) + w (...) - noise, which stays bounded; "
        "full: experimental, for images: the bridge in many steps",
        choices=("paper", "restoring", "full"),
    )
    leg_steps: int = knob(10, 1, 50, "full: steps of each leg, source up and target down, one or two evaluations each")
    source_cfg: float = knob(1.0, -50.0, 50.0, "full: guidance of the leg up; 1 uses the source prompt alone")
    target_cfg: float = knob(1.0, -50.0, 50.0, "full: guidance of the leg down; 1 uses the target prompt alone")
    switch: float = knob(0.5, 0.0, 1.0, "fraction of the run after which two-stage switches to the bridge (paper: 0.8)")
    sds_cfg: float = knob(7.5, 0.0, 200.0, "s of stage 1 (paper: 40 in 2D, 100 in 3D)")

    def calls(self) -> tuple[int, ...]:
        """Return the number of roles of each forward pass in one step; with two stages, in the second."""
        if self.form != "full" or self.stage == "sds":
            return (2,)
        up, down = self._legs()
        return (len(up),) * self.leg_steps + (len(down),) * self.leg_steps

    def stage_at(self, progress: float) -> str:
        if self.stage == "two-stage":
            return "sds" if progress < self.switch else "bridge"
        return self.stage

    def formula_at(self, progress: float) -> str:
        if self.stage_at(progress) == "sds":
            return STAGE_1
        return {"paper": self.formula, "restoring": RESTORING, "full": FULL}[self.form]

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        if self.stage_at(model.progress) == "sds":
            hat, preds = guide(model, x.z_t, x.t, self.sds_cfg)
            return Guidance(hat - x.noise, preds)
        if self.form == "full":
            return self._full(x, model)
        target, source = model.eps(x.z_t, x.t, "target", "source")
        preds = {"target": target, "source": source}
        if self.form == "restoring":
            return Guidance(cfg(source, target, self.w) - x.noise, preds)
        return Guidance(self.w * (target - source), preds)

    def _full(self, x: Noised, model: BoundPrior) -> Guidance:
        up, down = self._legs()
        z_hat = invert(model, x.z0, x.t, self.leg_steps, self.source_cfg, roles=up)
        psi = decode(model, z_hat, x.t, self.leg_steps, self.target_cfg, roles=down)
        target, source = ((z_hat - x.alpha * end) / x.sigma for end in (psi, x.z0))
        stats = {"displacement": (psi - x.z0).square().mean().sqrt()}
        preds = {"target": target, "source": source}
        return Guidance(self.w * (target - source), preds, stats, dict.fromkeys(preds, Asked(z_hat, x.t)))

    def _legs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the roles of a step up and of a step down."""
        return flow_roles(self.source_cfg, "source"), flow_roles(self.target_cfg, "target")
