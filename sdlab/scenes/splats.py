"""A cloud of anisotropic 3D Gaussians with one colour each (3DGS, Kerbl et al. 2023, SH degree 0).

Parameters, before activation: means [N, 3]; quats [N, 4]; log_scales [N, 3] (exp); opacity_logits [N] (sigmoid);
color_logits [N, 3] (sigmoid).

Density control, `density`:
  share      3DGS (clone small, split large, prune transparent), but those that grow are a *share*, by the screen-space
             gradient: thresholds differ by 10^2 between losses, and a loss toggled mid-run would otherwise explode or
             starve the cloud
  threshold  3DGS as published: all whose screen-space gradient is above a threshold grow, the hardest pulled first
  mcmc       3DGS-MCMC (`sdlab.density`): the transparent move onto the opaque, the cloud grows by a share a round, and
             noise stirs it after every step
All keep to `max_gaussians`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from sdlab.cameras import CameraSettings, turntable
from sdlab.density import drawn, felt, shared_out
from sdlab.knobs import knob
from sdlab.pictures import to_uint8
from sdlab.priors import Progress, silent
from sdlab.prompts import PromptBank, PromptSettings, views_of
from sdlab.raster import choose, chosen, warm_up, world_covariances
from sdlab.raster.torch_project import rotation_matrices
from sdlab.rng import StepRng
from sdlab.scenes import Preview, RowSurgeon, SceneConfig
from sdlab.starts.clouds import UPS, Cloud, fitted, read_cloud, spacing, turned
from sdlab.starts.shap_e import REPOSITORY, STEPS, shap_e_points
from sdlab.types import Cameras, Prior, RawSplats, Render, ScreenInfo, SplatSnapshot

EITHER = "shap-e or ball"
STARTS = ("ball", "object", "file", "shap-e", EITHER)
DENSITIES = ("share", "threshold", "mcmc")
OVERLAP = 1.5  # standard deviations of a start's Gaussians over the distance to the nearest one: a closed surface
PALEST = 0.02  # colours of a start are kept this far from 0 and 1, where the sigmoid no longer moves
SPLIT_SHRINK = 1.6  # 3DGS divides the scales of a split Gaussian by phi = 1.6
OPACITY_AFTER_RESET = 0.05


@dataclass(frozen=True)
class Splats(SceneConfig):
    """Gaussians that start as a ball, or as something that is nearly there."""

    kind: ClassVar[str] = "splats"
    parameters: ClassVar[tuple[str, ...]] = ("means", "quats", "log_scales", "opacity_logits", "color_logits")

    start: str = knob(
        "ball",
        help="what they start as: a ball, a toybox object, a file (mesh, points or Gaussians), or what Shap-E makes; "
        "'shap-e or ball' takes the ball where Shap-E cannot be had",
        apply="restart",
        choices=STARTS,
    )
    n_init: int = knob(1000, 1, 200_000, "Gaussians at the start", apply="restart")
    radius: float = knob(0.8, 0.05, 2.0, "radius of what they start as", apply="restart")
    start_text: str = knob(
        "", hi=500, help="words of the object or for Shap-E; empty is the prompt of the start", apply="restart"
    )
    file: str = knob(
        "", hi=500, help="path of the file to start from (GLB, OBJ, STL, PLY), with start = file", apply="restart"
    )
    file_up: str = knob(
        "auto", help="the file's vertical axis; auto is y for GLB and OBJ, else z", apply="restart", choices=UPS
    )
    turn: float = knob(
        0.0, -180.0, 180.0, "degrees by which a start is turned, counter-clockwise seen from above", apply="restart"
    )
    shap_e: str = knob(
        REPOSITORY,
        hi=500,
        help="folder or repository of Shap-E in the diffusers layout, with start = shap-e; empty is none",
        apply="restart",
    )
    shap_e_steps: int = knob(STEPS, 1, 1000, "denoising steps of Shap-E", apply="restart")
    opacity_init: float = knob(0.1, 0.01, 0.99, "opacity at the start", apply="restart")
    bound: float = knob(1.05, 0.1, 5.0, "Gaussians are kept inside a box of this half-width")
    scale_min: float = knob(0.012, 1e-4, 1.0, "smallest standard deviation of a Gaussian", log=True)
    scale_max: float = knob(0.2, 1e-3, 5.0, "largest standard deviation of a Gaussian", log=True)
    sparsity: float = knob(0.01, 0.0, 10.0, "pull on opacity, so that fog disappears; too much thins the object")
    density: str = knob(
        "share",
        help="who is cloned or split: the share pulled hardest, or all pulled above a threshold (3DGS); mcmc moves the "
        "transparent onto the opaque instead, and stirs",
        choices=DENSITIES,
    )
    densify_every: int = knob(50, 0, 10_000, "steps between rounds of density control; 0 switches it off")
    densify_from: float = knob(0.1, 0.0, 1.0, "fraction of the run at which density control begins")
    densify_until: float = knob(0.75, 0.0, 1.0, "fraction of the run at which density control ends")
    densify_share: float = knob(
        0.05, 0.0, 0.5, "share by which they grow a round: those pulled hardest, or drawn by opacity with mcmc"
    )
    densify_threshold: float = knob(
        2e-4, 0.0, 1e3, "with density = threshold: mean gradient in half picture widths above which one grows (3DGS)"
    )
    stir: float = knob(
        2e4, 0.0, 1e7, "with density = mcmc: noise, times the rate of positions (paper: 5e5 at a rate of 1.6e-4)"
    )
    split_scale: float = knob(0.08, 1e-3, 5.0, "Gaussians larger than this are split, smaller ones cloned", log=True)
    prune_opacity: float = knob(0.01, 0.0, 0.5, "Gaussians more transparent than this are removed")
    opacity_reset_every: int = knob(
        0, 0, 100_000, "steps between resets of all opacities to a low value, until density control ends; 0 is off"
    )
    max_gaussians: int = knob(4000, 1, 2_000_000, "density control never exceeds this number")

    def __post_init__(self) -> None:
        if self.scale_min >= self.scale_max:
            raise ValueError(
                f"scene.scale_min = {self.scale_min:g} is not below scene.scale_max = {self.scale_max:g}: "
                "the first must be smaller"
            )
        if self.start == "file" and not self.file:
            raise ValueError("scene.start = file: scene.file must be the path of a GLB, OBJ, STL or PLY")

    def prepare(self, device: torch.device) -> None:
        warm_up(device)

    def fallback(self, device: torch.device) -> str:
        return chosen(device).note

    def bare(self) -> Splats:
        return dataclasses.replace(self, start="ball")

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> SplatScene:
        """ValueError or RuntimeError when what it should start from cannot be had, and why."""
        params, note = self._started(rng, device, prompt, progress)
        return SplatScene(self, {k: Parameter(v.to(device)) for k, v in params.items()}, note)

    def _started(
        self, rng: StepRng, device: torch.device, prompt: str, progress: Progress
    ) -> tuple[dict[str, Tensor], str]:
        """The parameters at the start, and why they are not what was asked for ("" where they are)."""
        if self.start == "ball":
            return self._ball(rng), ""
        numbers = np.random.default_rng(rng("scene").initial_seed())
        try:
            found = self._found(numbers, device, prompt, progress)
        except RuntimeError as e:
            if self.start != EITHER:
                raise
            note = f"it starts as a ball: {e}"
            warnings.warn(note, stacklevel=2)
            return self._ball(rng), note
        found = fitted(turned(found, self.turn), self.radius)
        return (self._of_cloud(found, numbers) if isinstance(found, Cloud) else self._of_splats(found)), ""

    def _ball(self, rng: StepRng) -> dict[str, Tensor]:
        """A solid ball of `n_init` equal Gaussians that just fill it, of random muted colours."""
        n, g = self.n_init, rng("scene")
        direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
        means = direction * self.radius * torch.rand(n, 1, generator=g) ** (1 / 3)
        spacing = self.radius * (4 / 3 * math.pi / n) ** (1 / 3)
        return self._round(means, spacing, 0.5 * torch.randn(n, 3, generator=g))

    def _found(
        self, numbers: np.random.Generator, device: torch.device, prompt: str, progress: Progress
    ) -> Cloud | RawSplats:
        """What the settings say to start from, of any size and anywhere."""
        text = self.start_text or prompt
        if self.start == "object":
            from sdlab.toybox.surface import object_points  # with it comes numba, half a second

            return object_points(text, self.n_init, numbers)
        if self.start in ("shap-e", EITHER):
            return shap_e_points(text, self.n_init, numbers, device, self.shap_e, self.shap_e_steps, progress)
        return read_cloud(Path(self.file).expanduser(), self.n_init, numbers, "scene.file", self.file_up)

    def _of_cloud(self, cloud: Cloud, numbers: np.random.Generator) -> dict[str, Tensor]:
        """Round Gaussians on the points, wide enough to touch."""
        scale = OVERLAP * spacing(cloud.points, numbers)
        return self._round(torch.from_numpy(cloud.points), scale, _color_logits(cloud.rgbs))

    def _of_splats(self, s: RawSplats) -> dict[str, Tensor]:
        """The Gaussians as they are."""
        if len(s.means) > self.max_gaussians:
            raise ValueError(
                f"scene.file holds {len(s.means):,} Gaussians; scene.max_gaussians allows {self.max_gaussians:,}"
            )
        kept = {"means": s.means, "quats": s.quats, "log_scales": s.log_scales, "opacity_logits": s.opacity_logits}
        return {k: torch.from_numpy(v) for k, v in kept.items()} | {"color_logits": _color_logits(s.rgbs)}

    def _round(self, means: Tensor, scale: float, color_logits: Tensor) -> dict[str, Tensor]:
        """Equal balls of standard deviation `scale`."""
        n = len(means)
        quats = torch.zeros(n, 4)
        quats[:, 0] = 1.0
        return {
            "means": means,
            "quats": quats,
            "log_scales": torch.full((n, 3), math.log(min(max(scale, self.scale_min), self.scale_max))),
            "opacity_logits": torch.full((n,), _logit(self.opacity_init)),
            "color_logits": color_logits,
        }


def _color_logits(rgbs: np.ndarray) -> Tensor:
    return torch.from_numpy(rgbs).clamp(PALEST, 1 - PALEST).logit()


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


class SplatScene:
    """The built cloud. `note` says why it does not start as it should, "" where it does."""

    def __init__(self, config: Splats, params: dict[str, Parameter], note: str = "") -> None:
        self.config = config
        self.params = params
        self.note = note
        self._rasterize = choose(params["means"].device)
        self._half_width = 1.0  # of the picture that was rendered last
        self._forget_pulls()

    def _forget_pulls(self) -> None:
        means = self.params["means"]
        self._pull = torch.zeros(means.shape[0], device=means.device)  # sum of |d loss / d place| over views
        self._seen = torch.zeros(means.shape[0], device=means.device)  # views in which the Gaussian was drawn

    def adopt(self, config: SceneConfig) -> None:
        if not isinstance(config, Splats):
            raise ValueError(f"scene.kind = {config.kind!r}: this run is made of splats; choose a preset to change it")
        self.config = config

    def must_fit(self, prior: Prior) -> None:
        """Accept any prior: renders are encoded for it."""

    def stats(self) -> dict[str, float]:
        return {"n_gaussians": float(self.params["means"].shape[0])}

    def preview(
        self,
        prior: Prior,
        bank: PromptBank,
        prompt: PromptSettings,
        camera: CameraSettings,
        drawn: tuple[Cameras, Render] | None,
    ) -> Preview:
        """Return the renders of the last step, or front and back before the first."""
        if drawn is not None:
            cams, render = drawn
        else:
            cams = turntable(2, camera, camera.resolution or prior.image_size)
            with torch.no_grad():
                render = self.render(cams, torch.ones(2, 3))
        return Preview(to_uint8(render.rgb), tuple(views_of(prompt, cams)))

    def render(self, cams: Cameras, background: Tensor) -> Render:
        """Views of the cloud before `background` [B, 3]."""
        p = self.params
        device = p["means"].device
        self._half_width = cams.width / 2
        return self._rasterize(
            p["means"],
            p["quats"],
            p["log_scales"].exp(),
            p["opacity_logits"].sigmoid(),
            p["color_logits"].sigmoid(),
            cams.viewmats.to(device),
            cams.Ks.to(device),
            cams.width,
            cams.height,
            background.to(device),
        )

    def regulariser(self, render: Render) -> Tensor | None:
        """sparsity * sum of opacities per view area.

        It acts on the opacities, not on the rendered alpha, so that the screen-space gradients that density
        control reads come from the guidance alone.
        """
        if self.config.sparsity == 0.0:
            return None
        return self.config.sparsity * self.params["opacity_logits"].sigmoid().sum()

    @torch.no_grad()
    def constrain(self) -> None:
        c, p = self.config, self.params
        p["means"].clamp_(-c.bound, c.bound)
        p["log_scales"].clamp_(math.log(c.scale_min), math.log(c.scale_max))

    @torch.no_grad()
    def observe(self, info: ScreenInfo | None) -> None:
        if info is None or info.means2d_grad is None or self.config.densify_every == 0:
            return
        # of the sum over views, of which the loss is the mean, and with the picture 2 wide, as 3DGS has it
        self._pull += info.means2d_grad.norm(dim=-1).sum(0) * (len(info.radii) * self._half_width)
        self._seen += (info.radii > 0).sum(0)

    @torch.no_grad()
    def densify(self, progress: float, step: int, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """3DGS section 5: every `densify_every` steps clone, split and prune, and until that ends reset opacities at
        times. With mcmc every step stirs, and a round moves and adds."""
        c = self.config
        done: dict[str, int] = {}
        mcmc = c.density == "mcmc"
        if mcmc:
            self._stir(optim.rate("means"), rng)
        due = c.densify_every > 0 and step > 0 and step % c.densify_every == 0
        if due and c.densify_from <= progress <= c.densify_until:
            done = self._move_and_add(optim, rng) if mcmc else self._clone_split_prune(optim, rng)
        reset = c.opacity_reset_every > 0 and step > 0 and step % c.opacity_reset_every == 0
        if reset and progress <= c.densify_until:
            self.params["opacity_logits"].clamp_(max=_logit(OPACITY_AFTER_RESET))
            optim.reset_moments("opacity_logits")
            done["opacity_reset"] = 1
        return done

    def _clone_split_prune(self, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        c, p = self.config, self.params
        opacity = p["opacity_logits"].sigmoid()
        keep = opacity >= c.prune_opacity
        if not bool(keep.any()):
            keep[opacity.argmax()] = True  # an empty cloud has no gradient to grow back from
        grown = self._most_pulled(keep)
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
            g = rng("densify")
            offset = torch.randn(len(halves), 3, generator=g).to(new["means"]) * new["log_scales"][rows].exp()
            new["means"][rows] += _rotate(new["quats"][rows], offset)
            new["log_scales"][rows] -= math.log(SPLIT_SHRINK)
        fresh = torch.full((len(clone) + len(halves),), -1, dtype=torch.long, device=kept_rows.device)
        optim.replace_rows(new, torch.cat([kept_rows, fresh]))
        self._forget_pulls()
        self.constrain()
        return {"cloned": len(clone), "split": len(split), "pruned": int((~keep).sum())}

    def _stir(self, rate: float, rng: StepRng) -> None:
        """3DGS-MCMC, eq. 8: noise along each Gaussian's own axes, Sigma eta, for the transparent."""
        p = self.params
        variances = (2 * p["log_scales"]).exp()
        noise = rng.randn("stir", p["means"])
        along = _rotate(p["quats"], variances * _rotate_back(p["quats"], noise))
        p["means"].add_(self.config.stir * rate * felt(p["opacity_logits"].sigmoid())[:, None] * along)
        self.constrain()

    def _move_and_add(self, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """3DGS-MCMC, section 3.3 and 3.4: the transparent and what is added become copies of opaque ones, which share
        out what they drew."""
        c, p = self.config, self.params
        opacity = p["opacity_logits"].sigmoid()
        n, dead = len(opacity), opacity < c.prune_opacity
        moved = dead.nonzero()[:, 0]
        added = max(0, min(math.ceil(n * c.densify_share), c.max_gaussians - n))
        if len(moved) == n or len(moved) + added == 0:
            return {}
        source = drawn(torch.where(dead, 0.0, opacity), len(moved) + added, rng("densify"))
        copies = torch.bincount(source, minlength=n) + 1
        several = (copies > 1).nonzero()[:, 0]
        shared, scales = shared_out(
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
        self._forget_pulls()
        self.constrain()
        return {"moved": len(moved), "added": added}

    def _most_pulled(self, keep: Tensor) -> Tensor:
        """Indices of the Gaussians to grow, within the cap: the top `densify_share` by mean pull, or all above the
        threshold."""
        c = self.config
        n_kept = int(keep.sum())
        room = c.max_gaussians - n_kept  # a clone and a split both add exactly one
        pull = torch.where(keep & (self._seen > 0), self._pull / self._seen.clamp_min(1), torch.zeros_like(self._pull))
        by_threshold = c.density == "threshold"
        least = c.densify_threshold if by_threshold else 0.0
        most = n_kept if by_threshold else int(n_kept * c.densify_share)
        wanted = min(most, room, int((pull > least).sum()))
        return pull.topk(max(wanted, 0)).indices.sort().values

    @torch.no_grad()
    def snapshot(self) -> SplatSnapshot:
        p = self.params
        return SplatSnapshot(
            _numpy(p["means"]),
            _numpy(world_covariances(p["quats"], p["log_scales"].exp())),
            _numpy(p["color_logits"].sigmoid()),
            _numpy(p["opacity_logits"].sigmoid()[:, None]),
        )

    @torch.no_grad()
    def splats(self) -> RawSplats:
        p = self.params
        return RawSplats(
            _numpy(p["means"]),
            _numpy(torch.nn.functional.normalize(p["quats"], dim=-1)),
            _numpy(p["log_scales"]),
            _numpy(p["opacity_logits"]),
            _numpy(p["color_logits"].sigmoid()),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            **{k: v.detach().clone() for k, v in self.params.items()},
            "pull": self._pull.clone(),
            "seen": self._seen.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when a tensor is missing or the rows do not agree."""
        names = {*self.params, "pull", "seen"}
        if set(state) != names:
            raise ValueError(f"scene state holds {sorted(state)}, expected {sorted(names)}")
        rows = {int(v.shape[0]) for v in state.values()}
        if len(rows) != 1:
            raise ValueError(f"scene state has tensors of different numbers of Gaussians: {sorted(rows)}")
        device = self.params["means"].device
        for name, old in list(self.params.items()):
            if state[name].shape[1:] != old.shape[1:]:
                raise ValueError(
                    f"scene state: {name} has shape {tuple(state[name].shape)}, expected N x {old.shape[1:]}"
                )
            self.params[name] = Parameter(state[name].to(device=device, dtype=old.dtype, copy=True))
        self._pull = state["pull"].to(device=device, copy=True)
        self._seen = state["seen"].to(device=device, copy=True)


def _rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    return (rotation_matrices(quats) @ vectors[:, :, None])[:, :, 0]


def _rotate_back(quats: Tensor, vectors: Tensor) -> Tensor:
    return (rotation_matrices(quats).transpose(1, 2) @ vectors[:, :, None])[:, :, 0]


def _numpy(t: Tensor) -> Any:
    return t.detach().float().cpu().clone().numpy()
