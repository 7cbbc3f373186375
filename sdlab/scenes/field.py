"""A volume of density and colour, seen along rays, as in the papers whose scene is a NeRF.

A tri-plane with a small decoder (`sdlab.volume.planes`) stands for a hash grid: at 64 pixels it needs no finer detail,
and both passes are cheap on a CPU. The density is

    sigma(x) = softplus(raw(x) + b(x))

where b is the initial density: DreamFusion's Gaussian, 5 exp(-|x|^2 / (2 0.2^2)) (appendix A.2), or the cone
10 (1 - |x| / 0.5) of Magic3D (section 4) and ProlificDreamer (appendix C.1).

Penalties, each a sum over pixels and a mean over views:
  sparsity     sqrt(alpha^2 + 0.01), which removes fog (DreamFusion, appendix A.2)
  opaqueness   the entropy in nats of alpha, which decides between object and background
  orientation  w max(0, n . d)^2 over samples with normal n, seen from the direction d: visible surfaces face the camera
               (Ref-NeRF; DreamFusion, appendix A.2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import normalize, softplus

from sdlab.cameras import CameraSettings
from sdlab.density import RowSurgeon
from sdlab.knobs import knob
from sdlab.modes import MODES
from sdlab.priors import Progress, silent
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.scenes import Preview, SceneConfig, preview_of_views
from sdlab.transfer import upload
from sdlab.types import Cameras, Prior, RawSplats, Render, ScreenInfo, SplatSnapshot
from sdlab.volume import gaussians, mesh
from sdlab.volume.empty import Occupancy
from sdlab.volume.marching import marching_on
from sdlab.volume.planes import Volume, decoded, new_volume, raw_density
from sdlab.volume.rays import Rays, Samples, jitter, rays_of, summed

STARTS = ("cone", "gaussian", "nothing")
GAUSSIAN_HEIGHT, GAUSSIAN_WIDTH = 5.0, 0.2
CONE_HEIGHT, CONE_RADIUS = 10.0, 0.5
EARLY_STOP = 1e-3  # transmittance below which samples are not evaluated again for the gradient
AT_A_TIME = 1 << 14  # rays without gradient at a time, which bounds the memory of large pictures
NORMALS = 2048  # samples at which the orientation penalty is evaluated


@dataclass(frozen=True)
class Field(SceneConfig):
    """A volume that starts as a soft ball."""

    kind: ClassVar[str] = "field"
    parameters: ClassVar[tuple[str, ...]] = ("planes", "decoder")
    modes: ClassVar[tuple[str, ...]] = tuple(mode for mode in MODES if mode != "count")

    start: str = knob(
        "cone",
        help="initial density: the cone of Magic3D and ProlificDreamer, DreamFusion's Gaussian, or nothing",
        apply="restart",
        choices=STARTS,
    )
    resolution: int = knob(64, 8, 512, "texels along each side of a plane", apply="restart")
    channels: int = knob(16, 1, 64, "features of a texel", apply="restart")
    hidden: int = knob(32, 4, 128, "width of the decoder's hidden layer", apply="restart")
    bound: float = knob(1.0, 0.1, 5.0, "radius of the ball that contains the volume", apply="restart")
    samples: int = knob(64, 8, 1024, "samples along a ray through the middle; more are sharper and slower")
    empty_every: int = knob(16, 1, 1000, "steps between looks for empty space, which is skipped")
    sparsity: float = knob(0.0, 0.0, 10.0, "opacity penalty; removes fog, but too much thins out the object")
    opaqueness: float = knob(0.0, 0.0, 10.0, "penalty on half-transparent pixels; removes fog, hardens outlines")
    orientation: float = knob(0.0, 0.0, 10.0, "penalty on visible surfaces that face away; removes hollows and fins")

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> FieldScene:
        """Build the scene."""
        v = new_volume(self.resolution, self.channels, self.hidden, rng("scene"))
        scene = FieldScene(self, Parameter(v.planes.to(device)), Parameter(v.decoder.to(device)))
        scene.look()
        return scene


class Seen(NamedTuple):
    """What the last render with a gradient keeps for the penalties."""

    samples: Samples
    directions: Tensor  # [M, 3]
    weights: Tensor  # [M], detached
    views: int


class FieldScene:
    """A built volume."""

    note = ""

    def __init__(self, config: Field, planes: Parameter, decoder: Parameter) -> None:
        self.config = config
        self.params = {"planes": planes, "decoder": decoder}
        self._empty = Occupancy(planes.device)
        self._marching = marching_on(planes.device)
        self._steps = 0
        self._seen: Seen | None = None

    @property
    def volume(self) -> Volume:
        """The parameters; they change with the next step."""
        return Volume(self.params["planes"], self.params["decoder"])

    def adopt(self, config: SceneConfig) -> None:
        if not isinstance(config, Field):
            raise ValueError(f"scene.kind = {config.kind!r}: this run's scene is a field; choose a preset to change it")
        self.config = config

    def must_fit(self, prior: Prior) -> None:
        """Accept any prior: renders are encoded for it."""

    def stats(self) -> dict[str, float]:
        return {"occupied": float(self._empty.occupied.float().mean())}

    # ---- density ------------------------------------------------------------------------------------------------

    def density(self, places: Tensor) -> Tensor:
        """Return sigma [M] at `places` [M, 3] in the world, per unit of length."""
        return self._activated(raw_density(self.volume, places / self.config.bound), places)

    def density_and_colour(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma [M] and rgb [M, 3] in [0, 1] at `places` [M, 3] in the world."""
        raw, rgb = decoded(self.volume, places / self.config.bound)
        return self._activated(raw, places), rgb

    def _activated(self, raw: Tensor, places: Tensor) -> Tensor:
        """Return the density of raw values [M]; it is 0 outside the ball."""
        inside = places.square().sum(1) <= self.config.bound**2
        return softplus(raw + self._initial(places)) * inside

    def _initial(self, places: Tensor) -> Tensor:
        """Return the raw initial density b [M]."""
        if self.config.start == "nothing":
            return torch.zeros(())
        squared = places.square().sum(1)
        if self.config.start == "gaussian":
            return GAUSSIAN_HEIGHT * torch.exp(squared / (-2 * GAUSSIAN_WIDTH**2))
        return CONE_HEIGHT * (1 - squared.sqrt() / CONE_RADIUS)

    @property
    def _delta(self) -> float:
        return 2 * self.config.bound / self.config.samples

    def look(self) -> None:
        """Find out where the volume is empty; before the first look, it counts as full everywhere."""
        self._empty.update(self.density, self.config.bound)

    # ---- rendering ----------------------------------------------------------------------------------------------

    def render(self, cams: Cameras, background: Tensor) -> Render:
        """Render views of the volume over `background` [B, 3]."""
        device = self.params["planes"].device
        rays, offsets = rays_of(cams, device), jitter(cams, device)
        shape = (len(cams), cams.height, cams.width)
        if torch.is_grad_enabled():
            pixels = self._along(rays, offsets, len(cams))
        else:
            blocks = zip(*(part.split(AT_A_TIME) for part in (*rays, offsets)), strict=True)
            pixels = torch.cat([self._along(Rays(*block[:-1]), block[-1], 0) for block in blocks])
        rgb, alpha, depth = pixels.split((3, 1, 1), 1)
        behind = upload(background, device).repeat_interleave(cams.height * cams.width, 0)
        rgb = rgb + (1 - alpha) * behind
        rgb, alpha, depth = (x.view(*shape, -1).permute(0, 3, 1, 2).contiguous() for x in (rgb, alpha, depth))
        return Render(rgb, alpha, depth)

    def _along(self, rays: Rays, offsets: Tensor, views: int) -> Tensor:
        """Return premultiplied rgb, alpha and depth of rays, [R, 5]; `views` > 0 keeps what penalties need."""
        count, c = len(rays.origins), self.config
        found = self._visible(self._marching.sample(rays, c.bound, c.samples, offsets, self._empty.occupied), count)
        sigma, rgb = self.density_and_colour(found.places)
        w, _ = self._marching.weights(self._delta * sigma, found.ray, count)
        depths = found.distances * rays.cosines[found.ray]
        if views:
            self._seen = Seen(found, rays.directions[found.ray], w.detach(), views)
        ones = torch.ones_like(depths)
        return summed(w[:, None] * torch.cat([rgb, ones[:, None], depths[:, None]], 1), found.ray, count)

    @torch.no_grad()
    def _visible(self, found: Samples, count: int) -> Samples:
        """Return the samples that light still reaches.

        Like `sample`, it waits for a GPU, which has to tell how many there are. Decoding a hidden sample and its
        gradient takes longer than finding out: they are a fifth of all samples when an object is nearly finished (350
        steps of the preset gallery-field), and more the more samples a ray has.
        """
        if not len(found.ray):
            return found
        _, transmittance = self._marching.weights(self._delta * self.density(found.places), found.ray, count)
        kept = torch.nonzero(transmittance > EARLY_STOP)[:, 0]
        return Samples(*(column[kept] for column in found))

    def preview(
        self,
        prior: Prior,
        bank: PromptBank,
        prompt: PromptSettings,
        camera: CameraSettings,
        drawn: tuple[Cameras, Render] | None,
    ) -> Preview:
        return preview_of_views(self, prior, prompt, camera, drawn)

    # ---- a step -------------------------------------------------------------------------------------------------

    def regulariser(self, render: Render) -> Tensor | None:
        """Return the sum of the penalties, each times its knob."""
        c, alpha, views = self.config, render.alpha, render.alpha.shape[0]
        terms = []
        if c.sparsity:
            terms.append(c.sparsity * (alpha.square() + 0.01).sqrt().sum() / views)
        if c.opaqueness:
            a = alpha.clamp(1e-3, 1 - 1e-3)
            terms.append(-c.opaqueness * (a * a.log() + (1 - a) * (1 - a).log()).sum() / views)
        if c.orientation and self._seen is not None and len(self._seen.samples.ray):
            terms.append(c.orientation * self._orientation(self._seen))
        return torch.stack(terms).sum() if terms else None

    def _orientation(self, seen: Seen) -> Tensor:
        """Return the orientation penalty, estimated from about NORMALS evenly chosen samples."""
        every = max(len(seen.weights) // NORMALS, 1)
        places, d, w = seen.samples.places[::every], seen.directions[::every], seen.weights[::every]
        normals = -normalize(self._slope(places), dim=1)
        facing_away = (normals * d).sum(1).clamp_min(0).square()
        return every * (w * facing_away).sum() / seen.views

    def _slope(self, places: Tensor) -> Tensor:
        """Return the gradient of the density [M, 3] by central differences over one texel."""
        step = self.config.bound / self.config.resolution
        offsets = step * torch.eye(3, device=places.device)
        around = torch.cat([places + sign * offset for sign in (1, -1) for offset in offsets])
        ahead, behind = self.density(around).view(2, 3, -1)
        return (ahead - behind).T / (2 * step)

    def constrain(self) -> None:
        """Look for empty space every few steps; parameters are not limited."""
        self._steps += 1
        self._seen = None
        if self._steps % self.config.empty_every == 0:
            self.look()

    def observe(self, info: ScreenInfo | None) -> None:
        """A volume has no density control."""

    def densify(self, progress: float, step: int, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        return {}

    # ---- copies -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def snapshot(self) -> SplatSnapshot:
        """Return the visible surface as round Gaussians."""
        return gaussians.snapshot(self._surface())

    @torch.no_grad()
    def splats(self) -> RawSplats:
        """Return the visible surface as round Gaussians, as stored in splat files."""
        return gaussians.raw(self._surface())

    def solid(self) -> FieldScene:
        """Return a copy on the CPU that any thread may render or mesh."""
        copy = FieldScene(self.config, *(Parameter(p.detach().cpu().clone(), False) for p in self.params.values()))
        copy.load_state_dict(self.state_dict())
        return copy

    def surface(self, progress: Callable[[int, int], None], cells: int) -> mesh.Mesh:
        """Return vertices [V, 3], faces [F, 3] and colours [V, 3] of the surface; see `sdlab.volume.mesh`."""
        return mesh.surface(self.density, self.density_and_colour, self._empty, self.config.bound, cells, progress)

    def _surface(self) -> gaussians.Surface:
        return gaussians.surface(self.density, self.density_and_colour, self._empty, self.config.bound)

    def state_dict(self) -> dict[str, Any]:
        return {
            **{k: v.detach().clone() for k, v in self.params.items()},
            "opacity": self._empty.opacity.clone(),
            "updates": self._empty.updates,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load parameters and empty space. Raises ValueError if something is missing or has a wrong shape."""
        mine = self.state_dict()
        if set(state) != set(mine):
            raise ValueError(f"scene state contains {sorted(state)}; expected {sorted(mine)}")
        for name in (*self.params, "opacity"):
            if state[name].shape != mine[name].shape:
                raise ValueError(
                    f"scene state: {name} has shape {tuple(state[name].shape)}; expected {tuple(mine[name].shape)}"
                )
        for name, old in list(self.params.items()):
            self.params[name] = Parameter(state[name].to(old, copy=True))
        self._empty.restore(state["opacity"].to(self._empty.opacity, copy=True), int(state["updates"]))
        self._steps = int(state["steps"])
