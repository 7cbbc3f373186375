"""Density control of a cloud of Gaussians: which are added, split, moved or removed, and when.

Three rules, chosen by `scene.density`:
  share      3DGS (Kerbl et al. 2023, section 5): clone small Gaussians, split large ones, prune transparent ones. A
             fixed *share* grows, ranked by screen-space gradient: the scale of gradients differs by 10^2 between
             losses, so a fixed threshold would explode or starve the cloud when the loss is changed mid-run
  threshold  3DGS as published: every Gaussian whose screen-space gradient exceeds a threshold grows, largest first
  mcmc       Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo": nothing is cloned, split or
             pruned. Transparent Gaussians are relocated onto opaque ones such that the image stays the same, the cloud
             grows by a share each round, and after every step noise moves the transparent Gaussians
All three respect `max_gaussians`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from sdlab.raster.torch_project import rotation_matrices
from sdlab.rng import StepRng
from sdlab.transfer import upload
from sdlab.types import ScreenInfo

RULES = ("share", "threshold", "mcmc")
SPLIT_SHRINK = 1.6  # 3DGS divides the scales of a split Gaussian by phi = 1.6
OPACITY_AFTER_RESET = 0.05
MAX_COPIES = 51  # of one Gaussian; beyond, cancellation ruins the alternating sum of eq. 9
STEEPNESS, OPAQUE = 100.0, 0.005  # of the noise gate: k, and the opacity at which it is 1/2 (3DGS-MCMC, eq. 8)


@runtime_checkable
class RowSurgeon(Protocol):
    """The optimiser as density control uses it: kept rows keep their moments, new rows start at zero."""

    def replace_rows(self, new: Mapping[str, Tensor], kept: Tensor) -> None:
        """Set every parameter to `new` [M, ...]; row i continues old row kept[i], or is new where kept[i] = -1."""
        ...

    def reset_moments(self, name: str) -> None:
        """Zero the moments of one parameter."""
        ...

    def rate(self, name: str) -> float:
        """Return the current learning rate of one parameter."""
        ...


@runtime_checkable
class DensityKnobs(Protocol):
    """The knobs of `sdlab.scenes.splats.Splats` that density control reads."""

    @property
    def density(self) -> str: ...
    @property
    def densify_every(self) -> int: ...
    @property
    def densify_from(self) -> float: ...
    @property
    def densify_until(self) -> float: ...
    @property
    def densify_share(self) -> float: ...
    @property
    def densify_threshold(self) -> float: ...
    @property
    def stir(self) -> float: ...
    @property
    def split_scale(self) -> float: ...
    @property
    def prune_opacity(self) -> float: ...
    @property
    def opacity_reset_every(self) -> int: ...
    @property
    def max_gaussians(self) -> int: ...


class DensityControl:
    """Gradient statistics of one cloud, and the rounds that act on them.

    `params` are the scene's, before activation: means [N, 3]; quats [N, 4]; log_scales [N, 3] (exp); opacity_logits [N]
    (sigmoid); further parameters with a row per Gaussian are carried along. The optimiser replaces entries of this dict
    in place.
    """

    pull: Tensor  # [N], sum over views of |d loss / d screen position|
    seen: Tensor  # [N], number of views in which each Gaussian was drawn

    def __init__(self, params: dict[str, Parameter]) -> None:
        self.params = params
        self.forget()

    def forget(self) -> None:
        """Clear the statistics."""
        means = self.params["means"]
        self.pull = torch.zeros(means.shape[0], device=means.device)
        self.seen = torch.zeros(means.shape[0], device=means.device)

    def observe(self, info: ScreenInfo, half_width: float) -> None:
        """Add the screen-space gradients of one backward pass; `half_width` is half the image width in pixels."""
        if info.means2d_grad is None:
            return
        # 3DGS measures the gradient of the sum over views in units of half the image width; our loss is the mean
        self.pull += info.means2d_grad.norm(dim=-1).sum(0) * (len(info.radii) * half_width)
        self.seen += (info.radii > 0).sum(0)

    def update(self, c: DensityKnobs, progress: float, step: int, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """Run the rounds due at `step`, at `progress` in [0, 1] of the run; return counts of what changed.

        Every `densify_every` steps a round of growth; every `opacity_reset_every` steps a reset of all opacities, until
        growth ends; with mcmc, noise at every step. Positions may leave the scene's box.
        """
        done: dict[str, int] = {}
        mcmc = c.density == "mcmc"
        if mcmc:
            self._add_noise(c.stir * optim.rate("means"), rng)
        due = c.densify_every > 0 and step > 0 and step % c.densify_every == 0
        if due and c.densify_from <= progress <= c.densify_until:
            done = self._relocate_and_add(c, optim, rng) if mcmc else self._clone_split_prune(c, optim, rng)
        reset = c.opacity_reset_every > 0 and step > 0 and step % c.opacity_reset_every == 0
        if reset and progress <= c.densify_until:
            self.params["opacity_logits"].clamp_(max=math.log(OPACITY_AFTER_RESET / (1 - OPACITY_AFTER_RESET)))
            optim.reset_moments("opacity_logits")
            done["opacity_reset"] = 1
        return done

    def _clone_split_prune(self, c: DensityKnobs, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        p = self.params
        opacity = p["opacity_logits"].sigmoid()
        keep = opacity >= c.prune_opacity
        if not bool(keep.any()):
            keep[opacity.argmax()] = True  # an empty cloud has no gradient to grow back from
        grown = self._select_growth(c, keep)
        large = p["log_scales"].exp().amax(-1) > c.split_scale
        split, clone = grown[large[grown]], grown[~large[grown]]

        stay = keep.clone()
        stay[split] = False  # two halves take its place
        kept_rows = stay.nonzero()[:, 0]
        halves = split.repeat(2)
        old = torch.cat([kept_rows, clone, halves])
        new = {name: tensor.detach()[old].clone() for name, tensor in p.items()}
        if len(halves) > 0:
            rows = slice(len(old) - len(halves), None)
            offset = rng.randn("densify", new["means"][rows])
            new["means"][rows] += _rotate(new["quats"][rows], offset * new["log_scales"][rows].exp())
            new["log_scales"][rows] -= math.log(SPLIT_SHRINK)
        fresh = torch.full((len(clone) + len(halves),), -1, dtype=torch.long, device=kept_rows.device)
        optim.replace_rows(new, torch.cat([kept_rows, fresh]))
        self.forget()
        return {"cloned": len(clone), "split": len(split), "pruned": int((~keep).sum())}

    def _select_growth(self, c: DensityKnobs, keep: Tensor) -> Tensor:
        """Return the indices of the Gaussians to grow, within the cap: the top `densify_share` by mean gradient, or
        all above the threshold."""
        n_kept = int(keep.sum())
        room = c.max_gaussians - n_kept  # a clone and a split both add exactly one
        pull = torch.where(keep & (self.seen > 0), self.pull / self.seen.clamp_min(1), torch.zeros_like(self.pull))
        by_threshold = c.density == "threshold"
        least = c.densify_threshold if by_threshold else 0.0
        most = n_kept if by_threshold else int(n_kept * c.densify_share)
        wanted = min(most, room, int((pull > least).sum()))
        return pull.topk(max(wanted, 0)).indices.sort().values

    def _add_noise(self, strength: float, rng: StepRng) -> None:
        """Add noise along each Gaussian's own axes, Sigma eta, gated by transparency (3DGS-MCMC, eq. 8)."""
        p = self.params
        variances = (2 * p["log_scales"]).exp()
        noise = rng.randn("stir", p["means"])
        along = _rotate(p["quats"], variances * _rotate_back(p["quats"], noise))
        p["means"].add_(strength * noise_gate(p["opacity_logits"].sigmoid())[:, None] * along)

    def _relocate_and_add(self, c: DensityKnobs, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """Replace transparent Gaussians by copies of opaque ones and add further copies; an original and its copies
        share its opacity (3DGS-MCMC, sections 3.3 and 3.4)."""
        p = self.params
        opacity = p["opacity_logits"].sigmoid()
        n, dead = len(opacity), opacity < c.prune_opacity
        moved = dead.nonzero()[:, 0]
        added = max(0, min(math.ceil(n * c.densify_share), c.max_gaussians - n))
        if len(moved) == n or len(moved) + added == 0:
            return {}
        source = sample_by_opacity(torch.where(dead, 0.0, opacity), len(moved) + added, rng("densify"))
        copies = torch.bincount(source, minlength=n) + 1
        several = (copies > 1).nonzero()[:, 0]
        shared, scales = relocation(
            opacity[several], p["log_scales"][several].exp(), copies[several], max(c.prune_opacity, 1e-6)
        )
        p["opacity_logits"][several] = shared.logit()
        p["log_scales"][several] = scales.log()

        old = torch.arange(n, device=source.device)
        old[moved] = source[: len(moved)]
        old = torch.cat([old, source[len(moved) :]])
        kept = torch.arange(n, device=source.device)
        kept[several] = kept[moved] = -1
        kept = torch.cat([kept, torch.full((added,), -1, dtype=torch.long, device=source.device)])
        optim.replace_rows({name: tensor.detach()[old].clone() for name, tensor in p.items()}, kept)
        self.forget()
        return {"moved": len(moved), "added": added}


def relocation(opacities: Tensor, scales: Tensor, copies: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return opacity and scale for each of `copies` Gaussians that replace one and together look like it (eq. 9).

    opacities [M] in (0, 1), scales [M, 3], copies [M] >= 1; results have the same shapes, opacities at least `least`:

        o_new = 1 - (1 - o)^(1/N)
        scale_new = scale o / sum_{i=1..N} sum_{k=0..i-1} binomial(i-1, k) (-1)^k o_new^(k+1) / sqrt(k+1)
    """
    N = copies.clamp(1, MAX_COPIES)
    o = opacities.double()
    o_new = 1 - (1 - o) ** (1 / N)
    total = torch.zeros_like(o)
    binomials = upload(_binomials(), o.device)
    for k in range(int(N.max())):
        # the sum over i of binomial(i-1, k), i = k+1..N, is binomial(N, k+1)
        ways = binomials[N.long(), k + 1]
        total += ways * (-1) ** k * o_new ** (k + 1) / math.sqrt(k + 1)
    return o_new.clamp(least, 1 - 1e-6).to(opacities), scales * (o / total).to(scales)[:, None]


@functools.cache
def _binomials() -> Tensor:
    """Return n over k at [n, k], for n up to `MAX_COPIES`; float64, in which all of them are exact."""
    side = range(MAX_COPIES + 1)
    return torch.tensor([[float(math.comb(n, k)) for k in side] for n in side], dtype=torch.float64)


def noise_gate(opacities: Tensor) -> Tensor:
    """Return the noise factor (eq. 8) in the shape of `opacities`: 1 for transparent, 0 for opaque Gaussians."""
    return torch.sigmoid(STEEPNESS * (OPAQUE - opacities))


def sample_by_opacity(opacities: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Sample `n` indices [n] with replacement, proportionally to opacity [M]; drawn on the CPU."""
    if n == 0:
        return torch.zeros(0, dtype=torch.long, device=opacities.device)
    return upload(torch.multinomial(opacities.double().cpu(), n, replacement=True, generator=rng), opacities.device)


def _rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    return (rotation_matrices(quats) @ vectors[:, :, None])[:, :, 0]


def _rotate_back(quats: Tensor, vectors: Tensor) -> Tensor:
    return (rotation_matrices(quats).transpose(1, 2) @ vectors[:, :, None])[:, :, 0]
