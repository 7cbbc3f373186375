"""A cloud of anisotropic 3D Gaussians (3DGS, Kerbl et al. 2023).

Parameters, before activation: means [N, 3]; quats [N, 4]; log_scales [N, 3] (exp); opacity_logits [N] (sigmoid);
color_logits [N, 3] (sigmoid); with `sh_degree` > 0 sh [N, K, 3], by which colours depend on the direction of view
(`sdlab.raster.harmonics`).

Density control (the knob `density` and related ones) is in `sdlab.density`.
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

from sdlab.cameras import CameraSettings
from sdlab.console import Remark
from sdlab.density import RULES, DensityControl, RowSurgeon
from sdlab.harmonics import COUNTS
from sdlab.knobs import knob
from sdlab.meshes.read import UPS
from sdlab.modes import MODES
from sdlab.priors import Progress, silent
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.raster import announcement_for, backend_for, rasteriser_for, warm_up, world_covariances
from sdlab.raster.harmonics import colours
from sdlab.rng import StepRng
from sdlab.scenes import Preview, SceneConfig, preview_of_views
from sdlab.starts.clouds import Start, read_cloud
from sdlab.starts.placing import fitted, spacing, turned
from sdlab.starts.shap_e import REPOSITORY, STEPS, shap_e_points
from sdlab.transfer import to_numpy, upload
from sdlab.types import Cameras, Cloud, Prior, RawSplats, Render, ScreenInfo, SplatSnapshot

EITHER = "shap-e or ball"
STARTS = ("ball", "object", "sketch", "file", "shap-e", EITHER)
OVERLAP = 1.5  # initial standard deviation relative to the distance between neighbours, for a closed surface
SLACK = 1e-4  # by which a value may exceed a limit without a remark
PALEST = 0.02  # initial colours are kept this far from 0 and 1, where the sigmoid saturates


@dataclass(frozen=True)
class Splats(SceneConfig):
    """Gaussians that start as a ball or from something closer to the target."""

    kind: ClassVar[str] = "splats"
    modes: ClassVar[tuple[str, ...]] = MODES
    parameters: ClassVar[tuple[str, ...]] = (
        *("means", "quats", "log_scales", "opacity_logits", "color_logits"),
        "sh",
    )

    start: str = knob(
        "ball",
        help="starting shape: a ball, a toybox object or a crude sketch of it, a file (mesh, points or Gaussians), or "
        "Shap-E's output; 'shap-e or ball' falls back to the ball if Shap-E is not available",
        apply="restart",
        choices=STARTS,
    )
    n_init: int = knob(1000, 1, 200_000, "initial number of Gaussians", apply="restart")
    radius: float = knob(0.8, 0.05, 2.0, "radius of the starting shape", apply="restart")
    start_text: str = knob(
        "",
        hi=500,
        help="text for the toybox object, its sketch or Shap-E; if empty, the initial prompt",
        apply="restart",
    )
    file: str = knob(
        "",
        hi=500,
        help="path of the starting GLB, OBJ, STL, PLY, SPZ, SOG or .splat, for start = file; a run's own scene.ply "
        "keeps its size and place",
        apply="restart",
    )
    file_up: str = knob(
        "auto", help="the file's vertical axis; auto means y for GLB and OBJ, else z", apply="restart", choices=UPS
    )
    turn: float = knob(
        0.0, -180.0, 180.0, "rotation of the starting shape in degrees, counter-clockwise from above", apply="restart"
    )
    shap_e: str = knob(
        REPOSITORY,
        hi=500,
        help="folder or repository of Shap-E in the diffusers layout, for start = shap-e; empty disables it",
        apply="restart",
    )
    shap_e_steps: int = knob(STEPS, 1, 1000, "denoising steps of Shap-E", apply="restart")
    opacity_init: float = knob(0.1, 0.01, 0.99, "initial opacity", apply="restart")
    sh_degree: int = knob(
        0,
        0,
        3,
        "degree of the spherical harmonics by which colours depend on the direction of view; 0: they do not",
        apply="restart",
    )
    bound: float = knob(1.05, 0.1, 5.0, "half-width of the box that contains all Gaussians")
    scale_min: float = knob(0.012, 1e-4, 1.0, "smallest standard deviation of a Gaussian", log=True)
    scale_max: float = knob(0.2, 1e-3, 5.0, "largest standard deviation of a Gaussian", log=True)
    sparsity: float = knob(0.01, 0.0, 10.0, "opacity penalty; removes fog, but too much thins out the object")
    density: str = knob(
        "share",
        help="which Gaussians are cloned or split: the share with the largest gradients, or all above a threshold "
        "(3DGS); mcmc instead moves transparent Gaussians onto opaque ones and adds noise",
        choices=RULES,
    )
    densify_every: int = knob(50, 0, 10_000, "steps between rounds of density control; 0 disables it")
    densify_from: float = knob(0.1, 0.0, 1.0, "fraction of the run at which density control starts")
    densify_until: float = knob(0.75, 0.0, 1.0, "fraction of the run at which density control ends")
    densify_share: float = knob(
        0.05, 0.0, 0.5, "share added per round: by largest gradient, or with mcmc sampled by opacity"
    )
    densify_threshold: float = knob(
        2e-4, 0.0, 1e3, "for density = threshold: mean gradient, in half image widths, above which a Gaussian grows"
    )
    stir: float = knob(
        2e4, 0.0, 1e7, "for density = mcmc: noise, times the positions' learning rate (paper: 5e5 at 1.6e-4)"
    )
    split_scale: float = knob(0.08, 1e-3, 5.0, "Gaussians larger than this are split, smaller ones cloned", log=True)
    prune_opacity: float = knob(0.01, 0.0, 0.5, "Gaussians more transparent than this are removed")
    opacity_reset_every: int = knob(
        0, 0, 100_000, "steps between resets of all opacities to a low value, while density control runs; 0 disables it"
    )
    max_gaussians: int = knob(4000, 1, 2_000_000, "maximum number of Gaussians")

    def __post_init__(self) -> None:
        if self.scale_min >= self.scale_max:
            raise ValueError(
                f"scene.scale_min = {self.scale_min:g} must be smaller than scene.scale_max = {self.scale_max:g}"
            )
        if self.start == "file" and not self.file:
            raise ValueError(
                "scene.start = file: scene.file must be the path of a GLB, OBJ, STL, PLY, SPZ, SOG or .splat"
            )

    def prepare(self, device: torch.device) -> None:
        warm_up(device)

    def announcement(self, device: torch.device) -> str:
        return announcement_for(device)

    def fallback(self, device: torch.device) -> str:
        return backend_for(device).note

    def bare(self) -> Splats:
        return dataclasses.replace(self, start="ball")

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> SplatScene:
        """Build the scene. Raises ValueError or RuntimeError, with the reason, if its start is not available."""
        params, remarks = self._started(rng, device, prompt, progress)
        remarks += self._limited(params)
        if self.sh_degree and "sh" not in params:
            params["sh"] = torch.zeros(len(params["means"]), COUNTS[self.sh_degree], 3)
        return SplatScene(self, {k: Parameter(v.to(device)) for k, v in params.items()}, "; ".join(remarks))

    def _started(
        self, rng: StepRng, device: torch.device, prompt: str, progress: Progress
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return the initial parameters, and in which ways they are not as requested."""
        if self.start == "ball":
            return self._ball(rng), []
        numbers = np.random.default_rng(rng("scene").initial_seed())
        try:
            start = self._found(numbers, device, prompt, progress)
        except RuntimeError as e:
            if self.start != EITHER:
                raise
            note = f"starting from a ball: {e}"
            warnings.warn(note, Remark, stacklevel=2)
            return self._ball(rng), [note]
        found, remarks = self._placed(start)
        return (self._of_cloud(found, numbers) if isinstance(found, Cloud) else self._of_splats(found)), remarks

    def _placed(self, start: Start) -> tuple[Cloud | RawSplats, list[str]]:
        """Turn the start, centre it and scale it to `radius`; a scene of this program that fits keeps its own frame."""
        found, remarks = turned(start.found, self.turn), list(start.remarks)
        fits = isinstance(found, RawSplats) and abs(found.means).max() <= self.bound + SLACK
        if start.is_own and fits:
            remarks.append("a scene of this program keeps its size and place, so scene.radius has no effect")
        else:
            found = fitted(found, self.radius)
            beyond = f"is larger than scene.bound = {self.bound:g}, so it is scaled to scene.radius = {self.radius:g}"
            remarks += [f"a scene of this program {beyond}"] if start.is_own else []
        return found, [f"scene.file = {self.file!r}: {'; '.join(remarks)}"] if remarks else []

    def _limited(self, params: dict[str, Tensor]) -> list[str]:
        """Apply the limits of the scene to initial parameters in place, and say so: every step would do it silently."""
        remarks = []
        n = f"{len(params['means']):,} Gaussians"
        for name, low, high, what in (
            ("log_scales", math.log(self.scale_min), math.inf, f"are widened to scene.scale_min = {self.scale_min:g}"),
            ("log_scales", -math.inf, math.log(self.scale_max), f"shrink to scene.scale_max = {self.scale_max:g}"),
            ("means", -self.bound, self.bound, f"are moved into the box of half-width scene.bound = {self.bound:g}"),
        ):
            count = int(((params[name] < low - SLACK) | (params[name] > high + SLACK)).any(1).sum())
            remarks += [f"{count:,} of {n} {what}"] if count else []
            params[name].clamp_(low, high)
        return remarks

    def _ball(self, rng: StepRng) -> dict[str, Tensor]:
        """Return a solid ball filled by `n_init` equal Gaussians of random muted colours."""
        n, g = self.n_init, rng("scene")
        direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
        means = direction * self.radius * torch.rand(n, 1, generator=g) ** (1 / 3)
        spacing = self.radius * (4 / 3 * math.pi / n) ** (1 / 3)
        return self._round(means, spacing, 0.5 * torch.randn(n, 3, generator=g))

    def _found(self, numbers: np.random.Generator, device: torch.device, prompt: str, progress: Progress) -> Start:
        """Load or generate the configured start, at any size and position."""
        text = self.start_text or prompt
        if self.start == "object":
            from sdlab.toybox.surface import object_points  # imports numba, which takes half a second

            return Start(object_points(text, self.n_init, numbers))
        if self.start == "sketch":
            from sdlab.toybox.sketch import sketch_points

            return Start(sketch_points(text, self.n_init, numbers))
        if self.start in ("shap-e", EITHER):
            return Start(shap_e_points(text, self.n_init, numbers, device, self.shap_e, self.shap_e_steps, progress))
        path = Path(self.file).expanduser()
        return read_cloud(path, self.n_init, numbers, "scene.file", self.file_up, self.sh_degree)

    def _of_cloud(self, cloud: Cloud, numbers: np.random.Generator) -> dict[str, Tensor]:
        """Return isotropic Gaussians centred on the points, wide enough to touch."""
        scale = OVERLAP * spacing(cloud.points, numbers)
        return self._round(torch.from_numpy(cloud.points), scale, _color_logits(cloud.rgbs))

    def _of_splats(self, s: RawSplats) -> dict[str, Tensor]:
        """Return the parameters of the given Gaussians unchanged. Raises ValueError for more than `max_gaussians`."""
        if len(s.means) > self.max_gaussians:
            raise ValueError(
                f"scene.file holds {len(s.means):,} Gaussians; scene.max_gaussians allows {self.max_gaussians:,}"
            )
        kept = {"means": s.means, "quats": s.quats, "log_scales": s.log_scales, "opacity_logits": s.opacity_logits}
        kept |= {} if s.sh is None else {"sh": s.sh}
        return {k: torch.from_numpy(v) for k, v in kept.items()} | {"color_logits": _color_logits(s.rgbs)}

    def _round(self, means: Tensor, scale: float, color_logits: Tensor) -> dict[str, Tensor]:
        """Return equal isotropic Gaussians of standard deviation `scale`."""
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
    """A built cloud. `note` says how its start differs from what was requested, or ""."""

    def __init__(self, config: Splats, params: dict[str, Parameter], note: str = "") -> None:
        self.config = config
        self.params = params
        self.note = note
        self._rasterize = rasteriser_for(params["means"].device)
        self._half_width = 1.0  # of the last rendered image, in pixels
        self._density = DensityControl(params)

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
        return preview_of_views(self, prior, prompt, camera, drawn)

    def render(self, cams: Cameras, background: Tensor) -> Render:
        """Render views of the cloud over `background` [B, 3]."""
        p = self.params
        device = p["means"].device
        self._half_width = cams.width / 2
        viewmats, rgbs = upload(cams.viewmats, device), p["color_logits"].sigmoid()
        return self._rasterize(
            p["means"],
            p["quats"],
            p["log_scales"].exp(),
            p["opacity_logits"].sigmoid(),
            colours(rgbs, p["sh"], p["means"], viewmats) if "sh" in p else rgbs,
            viewmats,
            upload(cams.Ks, device),
            cams.width,
            cams.height,
            upload(background, device),
        )

    def regulariser(self, render: Render) -> Tensor | None:
        """Return sparsity * sum of opacities.

        It acts on the opacities rather than on the rendered alpha, so that the screen-space gradients used by density
        control come from the guidance alone.
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
        """Run density control if it is due at this step; return counts of what changed."""
        done = self._density.update(self.config, progress, step, optim, rng)
        self.constrain()
        return done

    @torch.no_grad()
    def snapshot(self) -> SplatSnapshot:
        p = self.params
        return SplatSnapshot(
            to_numpy(p["means"]),
            to_numpy(world_covariances(p["quats"], p["log_scales"].exp())),
            to_numpy(p["color_logits"].sigmoid()),
            to_numpy(p["opacity_logits"].sigmoid()[:, None]),
        )

    @torch.no_grad()
    def splats(self) -> RawSplats:
        p = self.params
        return RawSplats(
            to_numpy(p["means"]),
            to_numpy(torch.nn.functional.normalize(p["quats"], dim=-1)),
            to_numpy(p["log_scales"]),
            to_numpy(p["opacity_logits"]),
            to_numpy(p["color_logits"].sigmoid()),
            to_numpy(p["sh"]) if "sh" in p else None,
        )

    def solid(self) -> None:
        """Return None: the scene is its Gaussians."""

    def state_dict(self) -> dict[str, Any]:
        return {
            **{k: v.detach().clone() for k, v in self.params.items()},
            "pull": self._density.pull.clone(),
            "seen": self._density.seen.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load parameters and statistics. Raises ValueError if a tensor is missing or has a wrong shape."""
        names = {*self.params, "pull", "seen"}
        if set(state) != names:
            raise ValueError(f"scene state contains {sorted(state)}; expected {sorted(names)}")
        rows = {int(v.shape[0]) for v in state.values()}
        if len(rows) != 1:
            raise ValueError(f"scene state has tensors of different numbers of Gaussians: {sorted(rows)}")
        device = self.params["means"].device
        for name, old in list(self.params.items()):
            if state[name].shape[1:] != old.shape[1:]:
                raise ValueError(
                    f"scene state: {name} has shape {tuple(state[name].shape)}; expected N x {tuple(old.shape[1:])}"
                )
            self.params[name] = Parameter(state[name].to(device=device, dtype=old.dtype, copy=True))
        self._density.pull = state["pull"].to(device=device, copy=True)
        self._density.seen = state["seen"].to(device=device, copy=True)
