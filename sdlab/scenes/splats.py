"""A cloud of anisotropic 3D Gaussians with one colour each (3DGS, Kerbl et al. 2023, SH degree 0).

Parameters, before activation: means [N, 3]; quats [N, 4]; log_scales [N, 3] (exp); opacity_logits [N] (sigmoid);
color_logits [N, 3] (sigmoid).

Density control (the knob `density` and its kin) is in `sdlab.density`.
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

from sdlab.density import RULES, DensityControl, RowSurgeon
from sdlab.knobs import knob
from sdlab.priors import Progress, silent
from sdlab.raster import choose, warm_up, world_covariances
from sdlab.rng import StepRng
from sdlab.scenes import SceneConfig
from sdlab.starts.clouds import UPS, Cloud, fitted, read_cloud, spacing, turned
from sdlab.starts.shap_e import REPOSITORY, STEPS, shap_e_points
from sdlab.types import Cameras, Prior, RawSplats, Render, ScreenInfo, SplatSnapshot

EITHER = "shap-e or ball"
STARTS = ("ball", "object", "file", "shap-e", EITHER)
OVERLAP = 1.5  # standard deviations of a start's Gaussians over the distance to the nearest one: a closed surface
PALEST = 0.02  # colours of a start are kept this far from 0 and 1, where the sigmoid no longer moves


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
        choices=RULES,
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
        self._density = DensityControl(params)

    def adopt(self, config: SceneConfig) -> None:
        if not isinstance(config, Splats):
            raise ValueError(f"scene.kind = {config.kind!r}: this run is made of splats; choose a preset to change it")
        self.config = config

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
        if info is not None and self.config.densify_every > 0:
            self._density.observe(info, self._half_width)

    @torch.no_grad()
    def densify(self, progress: float, step: int, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """Do what density control has due at this step; return counts of what changed."""
        done = self._density.update(self.config, progress, step, optim, rng)
        self.constrain()
        return done

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
            "pull": self._density.pull.clone(),
            "seen": self._density.seen.clone(),
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
        self._density.pull = state["pull"].to(device=device, copy=True)
        self._density.seen = state["seen"].to(device=device, copy=True)


def _numpy(t: Tensor) -> Any:
    return t.detach().float().cpu().clone().numpy()
