"""ONE optimisation step, and the only place where scene, prior, loss and optimiser meet.

Twelve arrows, none backwards; the first (inbox -> settings) and the last (-> frame) are in `sdlab.live.session`:
seed, step -> rng -> cameras -> rgb -> z -> t, noise, z_t -> eps -> residual -> d theta -> theta' -> density control.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdlab.cameras import sample_background, sample_cameras
from sdlab.errors import memory_explained
from sdlab.optim import OptimSettings, SceneOptimiser
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.scenes import AnyScene, FlatScene
from sdlab.schedule import sample_t, weight
from sdlab.settings import Settings
from sdlab.types import Aux, BoundPrior, Cameras, Guidance, Noised, Prior, Render

STAGES = ("render", "encode", "prior", "loss", "backward", "optimiser", "auxiliary", "publish")
DENSIFY_PAUSE = 100  # steps after a change of loss: gradients of two scales must not decide together what grows
BUILD_STEP = -1  # the step number whose random streams build the scene and what losses train
FIRST_WARM_UP = -2  # the step number of an auxiliary's first lesson; later ones count down


@dataclass(frozen=True)
class Reference:
    """What a loss compares the scene with: the scene and the prompt as they were. `key` is that of the loss's knobs."""

    scene: AnyScene
    prompt: PromptSettings
    key: tuple


@dataclass
class State:
    """Everything that a step changes. Owned by one thread."""

    scene: AnyScene
    optim: SceneOptimiser
    step: int = 0
    seconds: float = 0.0  # spent in steps, pauses not counted
    prior_seconds: float = 0.0  # of these, inside the prior's network
    skipped: int = 0  # updates left out because something was not finite
    regime: str = ""  # loss and stage of the last step that moved the scene
    toggled: int = -1_000_000  # the step at which that last changed
    aux: dict[str, Aux] = field(default_factory=dict)  # by the name that its losses give it
    aux_keys: dict[str, tuple] = field(default_factory=dict)  # the knobs that each was built with
    reference: Reference | None = None


@dataclass(frozen=True)
class Report:
    """What one step did. Tensors stay on the device until someone looks."""

    cams: Cameras
    render: Render | None  # None for a scene that lives in the prior's space
    x: Noised
    guidance: Guidance
    stats: Mapping[str, Tensor]
    stages: Mapping[str, float]  # seconds per stage
    nfe: int  # network evaluations per view
    skipped: str = ""  # what was not finite, if anything
    densified: Mapping[str, int] = field(default_factory=dict)


class Stopwatch:
    """Seconds per stage; on CUDA these are times of launching, not of computing."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now


def step(state: State, s: Settings, prior: Prior, prompts: PromptBank) -> Report:
    """Take one step and leave its result in `state`. A step whose gradient is not finite changes nothing but the
    count of skipped ones."""
    watch = Stopwatch()
    share_cores(prior)
    rng = StepRng(s.seed, state.step)
    progress = s.progress(state.step)
    scene, loss = state.scene, s.loss

    # cameras -> rgb -> z, differentiable
    cams, render, z = look(scene, s, prior, rng, watch)

    # schedule -> t, noise -> z_t, detached; drawn on the CPU so that every device sees the same
    x = noised(z.detach(), s, rng, prior, progress)
    reference = state.reference if loss.needs_reference else None
    if reference is not None:
        with torch.no_grad():
            x = x._replace(ref=look(reference.scene, s, prior, rng, watch).z)

    # z_t, prompts -> eps -> residual
    aux = state.aux.get(loss.aux_name())
    model = bound(prior, s, prompts, cams, rng, progress, reference)
    with torch.no_grad():
        guidance = loss.gradient(x, model, aux)
        pull = tamed(weight(s.schedule, x.alpha, x.sigma) * guidance.residual, s.optim)
        grad = pull / len(cams)
    watch.lap("loss")
    watch.stages["loss"] -= model.seconds
    watch.stages["prior"] = model.seconds

    # w(t) residual -> d theta
    stats = {"grad_rms": pull.square().mean().sqrt(), "residual_rms": guidance.residual.square().mean().sqrt()}
    stats.update(guidance.stats)
    state.optim.zero_grad()
    skipped = "" if bool(torch.isfinite(grad).all()) else f"residual of {s.active} at t = {x.t.tolist()}"
    if not skipped:
        penalty = None if render is None or isinstance(scene, FlatScene) else scene.regulariser(render)
        with memory_explained(f"the way back from {len(cams)} pictures to the scene", z.device):
            if penalty is None:
                torch.autograd.backward([z], [grad])
            else:
                torch.autograd.backward([z, penalty], [grad, None])
        skipped = _non_finite_gradient(scene)
    watch.lap("backward")

    # d theta -> theta' -> density control
    densified: dict[str, int] = {}
    if skipped:
        state.skipped += 1
    else:
        _note_regime(state, f"{s.active} {loss.stage_at(progress)}".strip())
        since = state.step - state.toggled
        state.optim.adopt(s.optim, progress, since)
        state.optim.step()
        scene.constrain()
        if since >= DENSIFY_PAUSE and not (render is None or isinstance(scene, FlatScene)):
            scene.observe(render.info)
            densified = scene.densify(progress, state.step, state.optim, rng)
    watch.lap("optimiser")

    # z, eps -> psi'
    if aux is not None and not skipped:
        loss.fit(x, model, aux, guidance)
    watch.lap("auxiliary")

    state.step += 1
    state.seconds += sum(watch.stages.values())
    state.prior_seconds += model.seconds
    return Report(cams, render, x, guidance, stats, watch.stages, model.nfe, skipped, densified)


def share_cores(prior: Prior) -> None:
    """Give torch in this thread as many threads as the prior's engine wants beside it. A network that learns along
    would be faster with two than with one while a single run has two cores, but with two runs less than half as fast,
    for the threads of the one spin on the other's core; it learns two halves of a batch beside each other instead."""
    if torch.get_num_threads() != prior.torch_threads:  # a change makes torch forget its kernels
        torch.set_num_threads(prior.torch_threads)


class Look(NamedTuple):
    """What the scene shows at a step: z [B, C, H, W] in the prior's space, and the render that it was made from."""

    cams: Cameras
    render: Render | None
    z: Tensor


def look(scene: AnyScene, s: Settings, prior: Prior, rng: StepRng, watch: Stopwatch) -> Look:
    """The scene through this step's cameras, encoded; or as it is, where it lives in the prior's space."""
    if isinstance(scene, FlatScene):
        z = scene.latents(rng)
        watch.lap("render")
        return Look(scene.cams, None, z)
    cams = sample_cameras(s.camera, rng, s.camera.resolution or prior.image_size)
    render = scene.render(cams, sample_background(s.camera, rng))
    watch.lap("render")
    z = prior.encode(render.rgb)
    watch.lap("encode")
    return Look(cams, render, z)


def _note_regime(state: State, regime: str) -> None:
    """Start gently under another loss or stage: gradients of two may differ in scale by 10^4, so that Adam's moments
    of the one mean nothing to the other."""
    if state.regime not in ("", regime):
        state.toggled = state.step
        state.optim.forget()
    state.regime = regime


def needs_warm_up(state: State, s: Settings) -> bool:
    """Whether the auxiliary of the loss in force is still too new for the scene to follow it."""
    aux = state.aux.get(s.loss.aux_name())
    return aux is not None and aux.fitted < s.loss.warm_up_steps()


def warm_up(state: State, s: Settings, prior: Prior, prompts: PromptBank) -> int:
    """One lesson for the auxiliary of the loss in force, on renders of the scene as it is; nothing else changes.
    Answers the evaluations of networks, for each view."""
    started = time.perf_counter()
    share_cores(prior)
    scene, loss, aux = state.scene, s.loss, state.aux[s.loss.aux_name()]
    rng, progress = StepRng(s.seed, FIRST_WARM_UP - aux.fitted), s.progress(state.step)
    with torch.no_grad():
        cams, _, z = look(scene, s, prior, rng, Stopwatch())
        x = noised(z, s, rng, prior, progress)
        model = bound(prior, s, prompts, cams, rng, progress)
        asks = loss.fits_guidance or aux.fitted == 0  # the first time in any case: what fails shall fail at once
        guidance = loss.gradient(x, model, aux) if asks else Guidance(torch.zeros_like(z))
    loss.fit(x, model, aux, guidance)
    state.seconds += time.perf_counter() - started
    state.prior_seconds += model.seconds
    return model.nfe


def tamed(grad: Tensor, s: OptimSettings) -> Tensor:
    """w(t) residual [B, C, H, W] as the settings want it: scaled to a root mean square over all views (CSD divides by
    the norm, which is the same but for a factor), then clipped place by place (Hong et al. 2023, "Debiasing scores and
    prompts")."""
    if s.grad_rms > 0:
        grad = grad * (s.grad_rms / grad.square().mean().sqrt().clamp_min(1e-12))
    if s.grad_clip > 0:
        grad = grad.clamp(-s.grad_clip, s.grad_clip)
    return grad


def bound(
    prior: Prior,
    s: Settings,
    prompts: PromptBank,
    cams: Cameras,
    rng: StepRng,
    progress: float,
    reference: Reference | None = None,
) -> BoundPrior:
    """The prior as the loss in force gets to see it under these cameras."""
    conds = prompts.bind(s.prompt, s.loss.roles, cams, reference.prompt if reference else None)
    weights = None
    if s.perp_neg:
        more, weights = prompts.perp_neg(s.prompt, cams)
        conds |= more
    return BoundPrior(prior, conds, cams, rng, progress, s.guidance.rescale, weights)


def noised(z0: Tensor, s: Settings, rng: StepRng, prior: Prior, progress: float) -> Noised:
    """Draw this step's t and noise for z0 [B, C, H, W]."""
    t = sample_t(s.schedule, rng, z0.shape[0], progress).to(z0.device)
    noise = rng.randn("noise", z0)
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def _non_finite_gradient(scene: AnyScene) -> str:
    found = {name: p.grad for name, p in scene.params.items() if p.grad is not None}
    sums = torch.stack([grad.sum() for grad in found.values()])
    if bool(torch.isfinite(sums).all()):  # one look at a GPU, instead of one for each
        return ""
    bad = (name for name, grad in found.items() if not bool(torch.isfinite(grad).all()))
    return next((f"gradient of {name}" for name in bad), "")  # or a sum alone was beyond float32
