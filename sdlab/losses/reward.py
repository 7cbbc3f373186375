"""RewardSDS (Chachy et al., "RewardSDS: aligning score distillation via reward-weighted sampling", 2025), around any
loss.

Each view gets K noises in place of one. The inner loss is evaluated with each; the image that it estimates there,
x0-hat of the guided prediction, is scored by a reward; and the residuals r_k are added with weights rho_k that follow
the scores, the best first:

    residual = rho_1 r_1 + ... + rho_K r_K

With K = 1 this is the inner loss. Around VSD it is the paper's RewardVSD. The inner loss keeps its knobs, its stages
and what it trains, which learns from the step's own noise, so that no reward biases it. A loss that finds its own
noise (SDI, PFD, ISM) differs between the K only as far as it draws some, by `inversion_eta`.

Weights, of each view by itself (released code: min-max, K = 7):

    min-max   0.9 on the best two together, -0.1 on the worst two; one each if K < 4
    best      1 on the best
    softmax   exp(score / temperature), to a sum of 1

Rewards:

    judge     log of the probability that the toybox's judge reads the prompt in the image
    prior     ours: how much better the prior predicts the noise with the prompt than without; it is then its own
              classifier (Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier"). For every prior
              and prompt, at no further evaluation
    imagereward   the paper's (Xu et al. 2023); needs the package image-reward, and the environment variable
              SDLAB_IMAGEREWARD to name a folder with ImageReward.pt and med_config.json
"""

from __future__ import annotations

import functools
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

import sdlab.losses
from sdlab.guidance import cfg
from sdlab.knobs import knob, shown
from sdlab.losses import Distillation, first_of, member
from sdlab.pictures import to_uint8
from sdlab.rng import StepRng
from sdlab.toybox.agreement import agreement
from sdlab.types import Asked, BoundPrior, Guidance, Noised, Prior, Term

BEST = Term(
    "best",
    "eps^_b",
    "best noise",
    "the guided estimate with the noise that the reward likes best",
    "towards the image with the highest reward",
    colour="lime",
    formula="eps(best)",
    noisy="the render with the noise that the reward likes best",
)
# what the program reads from the class of a loss, here from that of the inner one
TOLD = (
    *("roles", "needs_reference", "fits_guidance", "conditional", "unconditional", "control", "aux_errors"),
    *("guidance_knob",),
)
BEST_SHARE, WORST_SHARE = 0.9, 0.1
REACH = 6.0  # latents are clipped to +-this before they are decoded: a VAE in half precision would overflow
IMAGEREWARD = "SDLAB_IMAGEREWARD"
INNER = tuple(sorted(info.name for info in pkgutil.iter_modules(sdlab.losses.__path__) if info.name != "reward"))


class Candidate(NamedTuple):
    """The inner loss with one noise: its answer, its guided prediction, where that was made, and its x0-hat."""

    guidance: Guidance
    eps: Tensor
    asked: Asked
    x0: Tensor


@dataclass(frozen=True)
class RewardSDS(Distillation[Any]):
    """Tries several noises for every view, and follows those that lead to what a reward likes."""

    kind: ClassVar[str] = "reward"
    title: ClassVar[str] = "RewardSDS"
    paper: ClassVar[str] = "RewardSDS: Aligning Score Distillation via Reward-Weighted Sampling, Chachy et al., 2025"
    formula: ClassVar[str] = "w(t) [ rho_1 r_1 + ... + rho_K r_K ],  r_k of the inner loss, r_1 with eps(best)"
    look_for: ClassVar[str] = (
        "the inner loss, steered by a judge: more of what the prompt says, and what fools the judge; K times as slow"
    )
    terms: ClassVar[tuple[Term, ...]] = (*Distillation.terms, BEST)

    inner: str = knob("sds", help="the loss that is evaluated with each noise; it keeps its own knobs", choices=INNER)
    noises: int = knob(4, 1, 16, "K, noises for each view, each an evaluation of the inner loss (released code: 7)")
    weighting: str = knob(
        "min-max",
        help="towards the best and away from the worst, towards the best alone, or by exp(score / temperature)",
        choices=("min-max", "best", "softmax"),
    )
    reward: str = knob(
        "prior",
        help="the toybox's judge, which knows its objects and colours; the prior as its own classifier; ImageReward",
        choices=("prior", "judge", "imagereward"),
    )
    temperature: float = knob(1.0, 0.01, 100.0, "of softmax: lower follows the best more", log=True)

    def __post_init__(self) -> None:
        self._wrap(member(self.inner)())

    def _wrap(self, inner: Distillation) -> None:
        """Make this the loss around `inner`, an attribute and no knob."""
        told = {name: getattr(inner, name) for name in TOLD}
        vars(self).update(told, wrapped=inner, terms=(*inner.terms, BEST))

    @property
    def around(self) -> Distillation:
        """The inner loss, with its knobs."""
        return vars(self)["wrapped"]

    def among(self, losses: Mapping[str, Distillation]) -> RewardSDS:
        bound = replace(self)
        bound._wrap(losses[self.inner])
        return bound

    # ---- as the inner loss ----

    def __getattr__(self, name: str) -> Any:
        """Return a knob of the inner loss, such as the `network` of its auxiliary."""
        if name.startswith("_") or "wrapped" not in vars(self):
            raise AttributeError(name)
        return getattr(self.around, name)

    def calls(self) -> tuple[int, ...]:
        return self.around.calls() * self.noises

    def evaluations(self) -> tuple[int, int]:
        of_gradient, of_fit = self.around.evaluations()
        return of_gradient * self.noises, of_fit

    def init_aux(self, prior: Prior, rng: StepRng) -> Any:
        return self.around.init_aux(prior, rng)

    def trains(self) -> bool:
        return self.around.trains()

    def untrained_aux(self, prior: Prior, rng: StepRng) -> Any:
        return self.around.untrained_aux(prior, rng)

    def fit(self, x: Noised, model: BoundPrior, aux: Any, guidance: Guidance) -> None:
        self.around.fit(x, model, aux, guidance)

    def one_step_target(self, x: Noised, residual: Tensor) -> Tensor:
        return self.around.one_step_target(x, residual)

    def stage_at(self, progress: float) -> str:
        return f"{self.inner} {self.around.stage_at(progress)}".strip()

    def guidance_scale(self) -> float | None:
        return self.around.guidance_scale()

    def aux_name(self) -> str:
        return self.around.aux_name()

    def aux_key(self) -> tuple:
        return self.around.aux_key()

    def warm_up_steps(self) -> int:
        return self.around.warm_up_steps()

    # ---- the noises ----

    def gradient(self, x: Noised, model: BoundPrior, aux: Any) -> Guidance:
        if self.noises == 1:
            return self.around.gradient(x, model, aux)
        # the first last, because an auxiliary may keep its latest answer for its training
        found = [self._candidate(k, x, model, aux) for k in reversed(range(self.noises))][::-1]
        scores = torch.stack([self._score(x, one, model) for one in found])
        weights = self._weights(scores)
        residual = (weights[..., None, None, None] * torch.stack([one.guidance.residual for one in found])).sum(0)
        first, best = found[0].guidance, scores.argmax(0)
        picked = Asked(*(_rows([getattr(one.asked, name) for one in found], best) for name in Asked._fields))
        return Guidance(
            residual,
            {**first.preds, BEST.name: _rows([one.eps for one in found], best)},
            {**first.stats, "reward": scores.mean(), "reward_best": scores.amax(0).mean()},
            {**first.asked, BEST.name: picked},
        )

    def _candidate(self, k: int, x: Noised, model: BoundPrior, aux: Any) -> Candidate:
        """Evaluate the inner loss with noise `k`; 0 is the step's own."""
        with _branched(model, f"candidate {k}/" if k else ""):
            if k:
                noise = model.rng.randn("noise", x.noise)
                x = x._replace(noise=noise, z_t=x.alpha * x.z0 + x.sigma * noise)
            guidance = self.around.gradient(x, model, aux)
        preds, scale = guidance.preds, self.around.guidance_scale()
        name = first_of(self.around.conditional, preds)
        eps = preds[name]
        if scale is not None and {"pos", "uncond"} <= preds.keys():
            eps = cfg(preds["uncond"], preds["pos"], scale)
        asked = guidance.asked.get(name, Asked(x.z_t, x.t))
        alpha, sigma = model.marginal(asked.t)
        return Candidate(guidance, eps, asked, (asked.z_t - sigma * eps) / alpha)

    def _weights(self, scores: Tensor) -> Tensor:
        """Return rho [K, B] for the scores [K, B]."""
        if self.weighting == "softmax":
            return (scores / self.temperature).softmax(0)
        rank = scores.sort(dim=0, descending=True, stable=True).indices.argsort(0)
        if self.weighting == "best":
            return (rank == 0).to(scores)
        n = 2 if self.noises >= 4 else 1
        top, bottom = rank < n, rank >= self.noises - n
        return BEST_SHARE / n * top.to(scores) - WORST_SHARE / n * bottom.to(scores)

    # ---- rewards ----

    def _score(self, x: Noised, one: Candidate, model: BoundPrior) -> Tensor:
        """Return the reward [B] of a candidate; ValueError where it cannot tell."""
        if self.reward == "prior":
            return self._preferred(x, one, model)
        if not model.texts:
            raise ValueError(f"losses.reward.reward = {self.reward!r}: this reward needs the prompt's words")
        rgb = model.prior.decode(one.x0.clamp(-REACH, REACH))
        try:
            score = agreement if self.reward == "judge" else _image_reward
            return score(model.texts, rgb).to(x.z0)
        except ValueError as e:
            raise ValueError(f"losses.reward.reward = {self.reward!r}: {e}; 'prior' needs nothing else") from e

    def _preferred(self, x: Noised, one: Candidate, model: BoundPrior) -> Tensor:
        """Return 1/2 (|eps_u - noise|^2 - |eps_c - noise|^2) [B], with the noise that leads from the image to where
        the predictions were made."""
        preds = one.guidance.preds
        alpha, sigma = model.marginal(one.asked.t)
        noise = (one.asked.z_t - alpha * x.z0) / sigma
        without, given = (
            (preds[first_of(names, preds)] - noise).square().sum((1, 2, 3))
            for names in (self.around.unconditional, self.around.conditional)
        )
        return 0.5 * (without - given)


@contextmanager
def _branched(model: BoundPrior, prefix: str) -> Iterator[None]:
    """Give `model` other random streams for the block; the same for an empty prefix."""
    own = model.rng
    model.rng = own.branch(prefix) if prefix else own
    try:
        yield
    finally:
        model.rng = own


def _rows(tensors: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Return row b of tensors[chosen[b]] for each of B rows."""
    return torch.stack(list(tensors))[chosen, torch.arange(len(chosen), device=chosen.device)]


def _image_reward(texts: Sequence[str], rgb: Tensor) -> Tensor:
    """Return ImageReward's score [B] of each image rgb [B, 3, S, S] in [0, 1] for its text."""
    from PIL import Image

    model, images = _image_reward_model(os.environ.get(IMAGEREWARD, "")), to_uint8(rgb)
    return torch.tensor([float(model.score(t, Image.fromarray(i))) for t, i in zip(texts, images, strict=True)])


@functools.lru_cache(maxsize=1)
def _image_reward_model(folder: str) -> Any:
    """Load ImageReward from a folder; ValueError where that is impossible."""
    weights, config = (Path(folder) / name for name in ("ImageReward.pt", "med_config.json"))
    if not (folder and weights.is_file() and config.is_file()):
        raise ValueError(f"{IMAGEREWARD} = {shown(folder)}: no folder with {weights.name} and {config.name}")
    try:
        import ImageReward  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as e:
        raise ValueError(f"the package image-reward cannot be imported ({e})") from e
    return ImageReward.load(str(weights), med_config=str(config))
