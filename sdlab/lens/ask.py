"""Evaluate a loss on the scene as it is, without touching the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdlab.losses import Distillation
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP, Reference, State, Stopwatch, add_noise, bind_prior, take_views
from sdlab.types import PERP_ROLES, BoundPrior, Cameras, Guidance, Noised, Prior


class Ground(NamedTuple):
    """The input of every loss: the same scene, cameras, t and noise."""

    x: Noised
    cams: Cameras
    rgb: Tensor | None  # [B, 3, H, W], None for a scene in the prior's space
    rng: StepRng
    progress: float


class Answer(NamedTuple):
    """The result of a loss, its network evaluations per view, and a note for the user ("" for none)."""

    guidance: Guidance
    nfe: int
    note: str


class PaddedPrior(BoundPrior):
    """A `BoundPrior` that splits and pads queries to batch sizes that are already compiled: `widths` roles at a time.
    Compiling for a new size would stall the run."""

    def __init__(self, plain: BoundPrior, widths: Sequence[int]) -> None:
        super().__init__(
            plain.prior,
            plain.conds,
            plain.cams,
            plain.rng,
            plain.progress,
            plain.rescale,
            plain.perp_weights,
            plain.texts,
        )
        self._widths = widths

    def eps(self, z_t: Tensor, t: Tensor, *roles: str) -> list[Tensor]:
        width = len(roles) if len(roles) in self._widths else max(self._widths)
        answers: list[Tensor] = []
        for first in range(0, len(roles), width):
            some = roles[first : first + width]
            padding = width - len(some)
            answers += super().eps(z_t, t, *some, *some[-1:] * padding)[: len(some)]
            self.nfe -= padding  # not the loss's evaluations
        return answers


def ground_of(state: State, s: Settings, prior: Prior, step: int, t: int | None = None) -> Ground:
    """Render the scene through the cameras of `step` and noise it to `t`, or to what the schedule draws."""
    rng, progress = StepRng(s.seed, step), s.progress(step)
    # a scene in the prior's space may remember its last samples
    scene = copy.deepcopy(state.scene) if isinstance(state.scene, FlatScene) else state.scene
    seen = take_views(scene, s, prior, rng, Stopwatch())
    x = add_noise(seen.z, s, rng, prior, progress, seen)
    if t is not None:
        levels = torch.full_like(x.t, t)
        alpha, sigma = prior.marginal(levels)
        x = x._replace(t=levels, alpha=alpha, sigma=sigma, z_t=alpha * x.z0 + sigma * x.noise)
    return Ground(x, seen.cams, seen.render.rgb if seen.render is not None else None, rng, progress)


def ask(name: str, ground: Ground, state: State, s: Settings, prior: Prior, prompts: PromptBank) -> Answer:
    """Evaluate the gradient of the loss `name`, with its own knobs."""
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
            x = x._replace(ref=take_views(reference.scene, s, prior, ground.rng, Stopwatch()).z)
    model = PaddedPrior(
        bind_prior(prior, own, prompts, ground.cams, ground.rng, ground.progress, reference), _widths(s)
    )
    aux = _auxiliary(loss, state, prior, s)
    if aux is not None and (aux.fitted == 0 or aux.fitted < loss.warm_up_steps()):
        learnt = f"has learnt {aux.fitted} of {loss.warm_up_steps()} steps" if aux.fitted else "is not trained yet"
        notes.append(f"its own network {learnt}")
    parked = loss.aux_name() != s.loss.aux_name()  # then the session keeps it in main memory
    with _lent(aux, prior.device, back=torch.device("cpu") if parked else prior.device):
        guidance = loss.gradient(x, model, aux)
    return Answer(guidance, model.nfe, "; ".join(notes))


def _auxiliary(loss: Distillation, state: State, prior: Prior, s: Settings) -> Any:
    """Return the state's auxiliary of `loss`, or a new one that stays out of the state."""
    if state.aux_keys.get(loss.aux_name()) == loss.aux_key():
        return state.aux.get(loss.aux_name())
    return loss.untrained_aux(prior, StepRng(s.seed, BUILD_STEP))


@contextmanager
def _lent(aux: Any, device: torch.device, back: torch.device) -> Iterator[None]:
    """Move `aux` to `device` for the block, then to `back`, and restore its attributes, such as a kept prediction."""
    if aux is None:
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
    """Return the numbers of roles that the network is compiled for under `s`."""
    return (*s.loss.calls(), *([1 + len(PERP_ROLES)] if s.perp_neg else []))
