"""ONE optimisation step: the only place where scene, prior, loss and optimiser meet.

Data flows in one direction:
seed, step -> rng -> cameras -> rgb -> z -> t, noise, z_t -> eps -> residual -> d theta -> theta' -> density control.
`sdlab.live.session` adds both ends: commands that change the settings, and frames for the viewers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdlab.cameras import sample_background, sample_cameras
from sdlab.channel import working_clock
from sdlab.errors import memory_explained
from sdlab.noise import draw
from sdlab.optim import OptimSettings, SceneOptimiser
from sdlab.prompts import PromptBank, PromptSettings, views_of, wording
from sdlab.rng import StepRng
from sdlab.scenes import AnyScene, FlatScene
from sdlab.schedule import sample_t, weight
from sdlab.settings import Settings
from sdlab.transfer import upload
from sdlab.types import Aux, BoundPrior, Cameras, Guidance, Noised, Prior, Render

STAGES = ("render", "encode", "prior", "loss", "backward", "optimiser", "auxiliary", "publish")
DENSIFY_PAUSE = 100  # steps after a change of loss, so that density statistics do not mix gradient scales
BUILD_STEP = -1  # step number of the random streams that initialise the scene and auxiliaries
MOST_UNREAD = 100  # verdicts of a GPU that may wait for somebody to ask
FIRST_WARM_UP = -2  # step number of an auxiliary's first warm-up step; later ones count down


@dataclass(frozen=True)
class Reference:
    """Frozen copies of scene and prompt that a loss compares against; `key` identifies the loss's knobs."""

    scene: AnyScene
    prompt: PromptSettings
    key: tuple


@dataclass
class State:
    """Everything that a step modifies; owned by one thread."""

    scene: AnyScene
    optim: SceneOptimiser
    step: int = 0
    seconds: float = 0.0  # spent in steps, without pauses
    prior_seconds: float = 0.0  # the part spent in the prior's network
    skipped: int = 0  # steps without update because a value was not finite
    regime: str = ""  # loss and stage of the last update of the scene
    toggled: int = -1_000_000  # step at which `regime` last changed
    aux: dict[str, Aux] = field(default_factory=dict)  # by `Distillation.aux_name`; losses may share one
    aux_keys: dict[str, tuple] = field(default_factory=dict)  # knobs that each was built with
    reference: Reference | None = None
    unread: list[tuple[int, Verdict]] = field(default_factory=list)  # of steps on a GPU, by step
    skips: list[tuple[int, str]] = field(default_factory=list)  # skipped steps that nobody has reported yet

    def read_verdicts(self) -> None:
        """Learn which steps a GPU has skipped since the last call; waits for it."""
        unread, self.unread = self.unread, []
        for number, verdict in unread:
            self.note(number, verdict)

    def note(self, number: int, verdict: Verdict) -> None:
        """Count step `number` if its update was skipped."""
        if verdict.skipped:
            self.skipped += 1
            self.skips.append((number, verdict.skipped))

    def forget_verdicts(self) -> None:
        """Drop what belongs to steps that are undone."""
        self.unread, self.skips = [], []


class Verdict:
    """Whether the update of a step is applied: whether its residual and all gradients are finite.

    On a CPU that is known at once, and a residual that is not finite spares the backward pass. A GPU would have to
    finish everything before it could answer. It decides by itself instead: `masked` and `stop` leave the scene as it
    is, and `skipped` is read later.
    """

    def __init__(self, loss: str, t: Tensor, residual: Tensor) -> None:
        self.late = residual.device.type == "cuda"
        self._what = [f"residual of {loss}"]
        self._fine = [torch.isfinite(residual).all()]
        self._t = t
        self._found = None if self.late else self._read()

    def judge(self, scene: AnyScene) -> None:
        """Take the gradients into account."""
        found = {name: p.grad for name, p in scene.params.items() if p.grad is not None}
        if not self.late:
            sums = torch.stack([grad.sum() for grad in found.values()])
            if bool(torch.isfinite(sums).all()):
                return
        self._what += [f"gradient of {name}" for name in found]
        self._fine += [torch.isfinite(grad).all() for grad in found.values()]
        self._found = None if self.late else self._read()

    def masked(self, grad: Tensor) -> Tensor:
        """Return `grad`, or on a GPU zeros if the residual is not finite."""
        return torch.where(self._fine[0], grad, torch.zeros_like(grad)) if self.late else grad

    def stop(self) -> Tensor | None:
        """Return for the optimiser of a GPU 1.0 (0-d) if the update must be skipped, else 0.0; None on a CPU."""
        return (~torch.stack(self._fine).all()).float() if self.late else None

    @property
    def stops_now(self) -> bool:
        """Whether it is known already that the update must be skipped."""
        return bool(self._found)

    @property
    def skipped(self) -> str:
        """What is not finite, or ""; on a GPU, the first look waits for the step."""
        if self._found is None:
            self._found = self._read()
        return self._found

    def _read(self) -> str:
        fine = torch.stack(self._fine).tolist()
        what = next((what for what, ok in zip(self._what, fine, strict=True) if not ok), "")
        return f"{what} at t = {self._t.tolist()}" if what == self._what[0] else what


@dataclass(frozen=True)
class Report:
    """Result of one step. Tensors stay on the device until they are read."""

    cams: Cameras
    render: Render | None  # None for scenes in the prior's own space
    x: Noised
    guidance: Guidance
    stats: Mapping[str, Tensor]
    stages: Mapping[str, float]  # seconds per stage
    nfe: int  # network evaluations per view
    verdict: Verdict
    densified: Mapping[str, int] = field(default_factory=dict)

    @property
    def skipped(self) -> str:
        """What was not finite, so that the update was skipped, or ""; on a GPU, reading it waits for the step."""
        return self.verdict.skipped


class Stopwatch:
    """Measures seconds of work per stage, without waiting for other sessions; on CUDA the time to launch kernels, not
    to run them."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = working_clock()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = working_clock()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now


def step(state: State, s: Settings, prior: Prior, prompts: PromptBank) -> Report:
    """Take one step and update `state`. If a gradient is not finite, only the counters change; on a GPU, which finds
    out by itself, the auxiliary and density control go on, without what is not finite.
    """
    watch = Stopwatch()
    share_cores(prior)
    rng = StepRng(s.seed, state.step)
    progress = s.progress(state.step)
    scene, loss = state.scene, s.loss

    # cameras -> rgb -> z, differentiable
    seen = take_views(scene, s, prior, rng, watch)
    cams, render, z = seen

    # schedule -> t, noise -> z_t, detached; drawn on the CPU, so that all devices see the same values
    x = add_noise(z.detach(), s, rng, prior, progress, seen)
    reference = state.reference if loss.needs_reference else None
    if reference is not None:
        with torch.no_grad():
            x = x._replace(ref=take_views(reference.scene, s, prior, rng, watch).z)

    # z_t, prompts -> eps -> residual
    aux = state.aux.get(loss.aux_name())
    model = bind_prior(prior, s, prompts, cams, rng, progress, reference)
    with torch.no_grad():
        guidance = loss.gradient(x, model, aux)
        pull = rescale_and_clip(weight(s.schedule, x.alpha, x.sigma) * guidance.residual, s.optim)
        grad = pull / len(cams)
    watch.lap("loss")
    watch.stages["loss"] -= model.seconds
    watch.stages["prior"] = model.seconds

    # w(t) residual -> d theta
    stats = {"grad_rms": pull.square().mean().sqrt(), "residual_rms": guidance.residual.square().mean().sqrt()}
    stats.update(guidance.stats)
    state.optim.zero_grad()
    verdict = Verdict(s.active, x.t, grad)
    if not verdict.stops_now:
        grad = verdict.masked(grad)
        penalty = None if render is None or isinstance(scene, FlatScene) else scene.regulariser(render)
        with memory_explained(f"the backward pass from {len(cams)} images to the scene", z.device):
            if penalty is None:
                torch.autograd.backward([z], [grad])
            else:
                torch.autograd.backward([z, penalty], [grad, None])
        verdict.judge(scene)
    watch.lap("backward")

    # d theta -> theta' -> density control
    densified: dict[str, int] = {}
    if not verdict.stops_now:
        _note_regime(state, f"{s.active} {loss.stage_at(progress)}".strip())
        since = state.step - state.toggled
        state.optim.adopt(s.optim, progress, since)
        stop = verdict.stop()
        state.optim.step(stop)
        scene.constrain()
        if since >= DENSIFY_PAUSE and not (render is None or isinstance(scene, FlatScene)):
            if stop is not None and render.info is not None:
                render.info.drop_if(stop)
            scene.observe(render.info)
            densified = scene.densify(progress, state.step, state.optim, rng)
    watch.lap("optimiser")

    # z, eps -> psi'
    if aux is not None and not verdict.stops_now:
        loss.fit(x, model, aux, guidance)
    watch.lap("auxiliary")

    if verdict.late:
        state.unread.append((state.step, verdict))
        if len(state.unread) >= MOST_UNREAD:
            state.read_verdicts()
    else:
        state.note(state.step, verdict)
    state.step += 1
    state.seconds += sum(watch.stages.values())
    state.prior_seconds += model.seconds
    return Report(cams, render, x, guidance, stats, watch.stages, model.nfe, verdict, densified)


def share_cores(prior: Prior) -> None:
    """Set this thread's number of torch threads to what the prior's engine leaves free.

    With OpenVINO on two cores that is one. Two would train an auxiliary network faster in a single run, but with two
    runs it would take more than twice as long, because torch's threads spin on cores that the other run needs. The
    auxiliary trains the two halves of a batch in parallel threads instead.
    """
    if torch.get_num_threads() != prior.torch_threads:  # setting it makes torch discard cached kernels
        torch.set_num_threads(prior.torch_threads)


class Views(NamedTuple):
    """The scene at one step: z [B, C, H, W] in the prior's space, and the render it was encoded from."""

    cams: Cameras
    render: Render | None
    z: Tensor


def take_views(scene: AnyScene, s: Settings, prior: Prior, rng: StepRng, watch: Stopwatch) -> Views:
    """Render the scene with this step's cameras and encode it; scenes in the prior's space need neither."""
    if isinstance(scene, FlatScene):
        z = scene.latents(rng, prior)
        watch.lap("render")
        return Views(scene.cams, None, z)
    cams = sample_cameras(s.camera, rng, s.camera.resolution or prior.image_size)
    render = scene.render(cams, sample_background(s.camera, rng))
    watch.lap("render")
    z = prior.encode(render.rgb)
    watch.lap("encode")
    return Views(cams, render, z)


def _note_regime(state: State, regime: str) -> None:
    """Reset Adam when the loss or its stage changes: gradient scales may differ by 10^4, which invalidates moments."""
    if state.regime not in ("", regime):
        state.toggled = state.step
        state.optim.forget()
    state.regime = regime


def needs_warm_up(state: State, s: Settings) -> bool:
    """Return whether the active loss's auxiliary needs more warm-up steps before the scene may use it."""
    aux = state.aux.get(s.loss.aux_name())
    return aux is not None and aux.fitted < s.loss.warm_up_steps()


def warm_up(state: State, s: Settings, prior: Prior, prompts: PromptBank) -> int:
    """Train the active loss's auxiliary for one step on renders of the unchanged scene.

    Returns the number of network evaluations per view.
    """
    started = working_clock()
    share_cores(prior)
    scene, loss, aux = state.scene, s.loss, state.aux[s.loss.aux_name()]
    rng, progress = StepRng(s.seed, FIRST_WARM_UP - aux.fitted), s.progress(state.step)
    with torch.no_grad():
        seen = take_views(scene, s, prior, rng, Stopwatch())
        cams, _, z = seen
        x = add_noise(z, s, rng, prior, progress, seen)
        model = bind_prior(prior, s, prompts, cams, rng, progress)
        asks = loss.fits_guidance or aux.fitted == 0  # always at first, so that errors surface at once
        guidance = loss.gradient(x, model, aux) if asks else Guidance(torch.zeros_like(z))
    loss.fit(x, model, aux, guidance)
    state.seconds += working_clock() - started
    state.prior_seconds += model.seconds
    return model.nfe


def rescale_and_clip(grad: Tensor, s: OptimSettings) -> Tensor:
    """Normalise and clip the gradient w(t) residual [B, C, H, W].

    First rescale it to `grad_rms`, a root mean square over all views (CSD divides by the norm, which differs by a
    constant factor), then clip it elementwise (Hong et al. 2023, "Debiasing scores and prompts").
    """
    if s.grad_rms > 0:
        grad = grad * (s.grad_rms / grad.square().mean().sqrt().clamp_min(1e-12))
    if s.grad_clip > 0:
        grad = grad.clamp(-s.grad_clip, s.grad_clip)
    return grad


def bind_prior(
    prior: Prior,
    s: Settings,
    prompts: PromptBank,
    cams: Cameras,
    rng: StepRng,
    progress: float,
    reference: Reference | None = None,
) -> BoundPrior:
    """Bind the prior to the prompts of these cameras, for the active loss."""
    conds = prompts.bind(s.prompt, s.loss.roles, cams, reference.prompt if reference else None)
    weights = None
    if s.perp_neg:
        more, weights = prompts.perp_neg(s.prompt, cams)
        conds, weights = conds | more, upload(weights, prior.device)
    texts = [wording(s.prompt, "pos", view) for view in views_of(s.prompt, cams)]
    return BoundPrior(prior, conds, cams, rng, progress, s.guidance.rescale, weights, texts)


def add_noise(
    z0: Tensor, s: Settings, rng: StepRng, prior: Prior, progress: float, seen: Views | None = None
) -> Noised:
    """Draw this step's t and noise for z0 [B, C, H, W]; `seen` tells noise that depends on camera or surface both."""
    t = upload(sample_t(s.schedule, rng, z0.shape[0], progress), z0.device)
    cams, render = (seen.cams, seen.render) if seen is not None else (None, None)
    noise = draw(s.schedule.noise, s.schedule.noise_share, rng, z0, cams, render)
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)
