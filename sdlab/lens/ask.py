"""Ask a loss about the scene as it is, without touching the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdlab.auxiliary import score
from sdlab.losses import Distillation
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP, Reference, Report, State, Stopwatch, bound, look, noised, share_cores
from sdlab.types import PERP_ROLES, BoundPrior, Cameras, Guidance, Noised, Prior

ASKED_ELSEWHERE = ("interval", "minority")  # beside these a step does not keep the z_t that it asked about


class Call(NamedTuple):
    """One forward of the prior: where it was asked and the answers by role."""

    z_t: Tensor
    t: Tensor
    answers: list[Tensor]


class Asked(NamedTuple):
    """What a loss answered, and all that it asked the prior for that."""

    guidance: Guidance
    calls: Sequence[Call]


class Ground(NamedTuple):
    """What all losses are shown alike."""

    x: Noised
    cams: Cameras
    rgb: Tensor | None  # [B, 3, H, W], None for a scene of the prior's space
    rng: StepRng
    progress: float


class Watched(BoundPrior):
    """A `BoundPrior` that keeps what it was asked. It asks the network in the batches that the loss in force has
    (`widths` roles at a time, the last filled up), for which it is compiled: a new size would stop the run for long."""

    def __init__(self, plain: BoundPrior, widths: Sequence[int]) -> None:
        super().__init__(
            plain.prior, plain.conds, plain.cams, plain.rng, plain.progress, plain.rescale, plain.perp_weights
        )
        self.calls: list[Call] = []
        self._widths = widths

    def eps(self, z_t: Tensor, t: Tensor, *roles: str) -> list[Tensor]:
        width = len(roles) if len(roles) in self._widths else max(self._widths)
        answers: list[Tensor] = []
        for first in range(0, len(roles), width):
            some = roles[first : first + width]
            answers += super().eps(z_t, t, *some, *some[-1:] * (width - len(some)))[: len(some)]
            self.nfe -= width - len(some)  # what a batch is filled up with is no need of the loss
        self.calls.append(Call(z_t, t, answers))
        return answers


class Untrained:
    """psi before its first lesson, when it answers as the prior does, with a camera or without; nothing is built."""

    fitted = 0

    def ask(self, x: Noised, model: BoundPrior, cameras: Sequence[bool]) -> list[Tensor]:
        """As `sdlab.auxiliary.score.Score.ask`."""
        (answer,) = model.eps(x.z_t, x.t, score.ROLE)
        model.nfe += len(cameras) - 1
        return [answer] * len(cameras)


@torch.no_grad()
def asked_again(report: Report, s: Settings, prior: Prior, prompts: PromptBank, step: int) -> Asked | None:
    """The question of step number `step`, which `report` tells of, put once more, to see all that was asked: of the
    losses that need it, None for the others, whose report says it all. As dear as the step's own predictions."""
    if not any(name in report.guidance.preds for name in ASKED_ELSEWHERE):
        return None
    share_cores(prior)
    model = bound(prior, s, prompts, report.cams, StepRng(s.seed, step), s.progress(step))
    watched = Watched(model, _widths(s))
    return Asked(s.loss.gradient(report.x, watched, None), watched.calls)


def ground_of(state: State, s: Settings, prior: Prior, step: int, t: int | None = None) -> Ground:
    """The scene through the cameras of `step`, noised to `t` or to what the schedule draws."""
    rng, progress = StepRng(s.seed, step), s.progress(step)
    # a scene of the prior's space may remember what it drew last
    scene = copy.deepcopy(state.scene) if isinstance(state.scene, FlatScene) else state.scene
    cams, render, z = look(scene, s, prior, rng, Stopwatch())
    x = noised(z, s, rng, prior, progress)
    if t is not None:
        levels = torch.full_like(x.t, t)
        alpha, sigma = prior.marginal(levels)
        x = x._replace(t=levels, alpha=alpha, sigma=sigma, z_t=alpha * x.z0 + sigma * x.noise)
    return Ground(x, cams, render.rgb if render is not None else None, rng, progress)


def ask(
    name: str, ground: Ground, state: State, s: Settings, prior: Prior, prompts: PromptBank
) -> tuple[Asked, int, str]:
    """What the loss `name` answers with its own knobs, how many evaluations that took, and what one has to know."""
    own = s.patch("active", name)
    loss, notes = own.loss, []
    x, reference = ground.x, None
    if loss.needs_reference:
        reference = state.reference if state.reference is not None and state.reference.key == loss.aux_key() else None
        if reference is None:
            x = x._replace(ref=x.z0)
            reference = Reference(state.scene, s.prompt, loss.aux_key())
            notes.append("compares with the scene as it is now: zero")
        else:
            x = x._replace(ref=look(reference.scene, s, prior, ground.rng, Stopwatch()).z)
    model = bound(prior, own, prompts, ground.cams, ground.rng, ground.progress, reference)
    watched = Watched(model, _widths(s))
    aux = _auxiliary(loss, state, prior, s)
    if aux is not None and (aux.fitted == 0 or aux.fitted < loss.warm_up_steps()):
        learnt = f"has learnt {aux.fitted} of {loss.warm_up_steps()} steps" if aux.fitted else "is not trained yet"
        notes.append(f"its own network {learnt}")
    parked = loss.aux_name() != s.loss.aux_name()  # a session keeps it in the computer's memory then
    with _lent(aux, prior.device, back=torch.device("cpu") if parked else prior.device):
        guidance = loss.gradient(x, watched, aux)
    return Asked(guidance, watched.calls), watched.nfe, "; ".join(notes)


def _auxiliary(loss: Distillation, state: State, prior: Prior, s: Settings) -> Any:
    """The auxiliary of `loss`: the state's, or a new one that the state does not get to see."""
    if state.aux_keys.get(loss.aux_name()) == loss.aux_key():
        return state.aux.get(loss.aux_name())
    if isinstance(loss, score.TrainsScore) and loss.network != score.EXACT:
        return Untrained()
    return loss.init_aux(prior, StepRng(s.seed, BUILD_STEP))


@contextmanager
def _lent(aux: Any, device: torch.device, back: torch.device) -> Iterator[None]:
    """`aux` on `device` for a while; it comes `back` without what it remembers of the answers that it gave."""
    if aux is None or isinstance(aux, Untrained):
        yield
        return
    before = dict(vars(aux))
    aux.to(device)
    try:
        yield
    finally:
        aux.to(back)
        vars(aux).clear()
        vars(aux).update(before)


def _widths(s: Settings) -> tuple[int, ...]:
    """How many roles at a time the network is compiled for under `s`."""
    return (*s.loss.calls(), *([1 + len(PERP_ROLES)] if s.perp_neg else []))


def same_answers(a: Guidance, b: Guidance) -> bool:
    """Whether both are answers of one loss to one question; on a GPU twice the same is not the same to the last bit."""
    if a.preds.keys() != b.preds.keys() or a.residual.shape != b.residual.shape:
        return False
    error = (a.residual - b.residual).square().mean().sqrt()
    return bool(error <= 1e-2 * b.residual.square().mean().sqrt())
