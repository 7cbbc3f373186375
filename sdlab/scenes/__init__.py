"""Scenes: the family of things that can be optimised. A configuration is a frozen dataclass that `build`s its scene.

A built scene owns named parameters; the optimiser has one group for each. There are two kinds:
  Scene      seen through cameras: it renders views, may add and remove rows of its parameters (density control), and
             provides immutable snapshots for viewers;
  FlatScene  lives in the prior's own space, without rendering or encoding: images, points of the plane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from sdlab.cameras import CameraSettings, turntable
from sdlab.density import RowSurgeon
from sdlab.pictures import to_uint8
from sdlab.priors import Progress, silent
from sdlab.prompts import PromptBank, PromptSettings, views_of
from sdlab.rng import StepRng
from sdlab.types import Cameras, Cond, Prior, RawSplats, Render, ScreenInfo, SplatSnapshot


@runtime_checkable
class Solid(Protocol):
    """An immutable volume that any thread may render and mesh."""

    def render(self, cams: Cameras, background: Tensor) -> Render: ...

    def surface(self, progress: Callable[[int, int], None], cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return vertices [V, 3], faces [F, 3] counter-clockwise from outside, and colours [V, 3] in [0, 1].

        `cells` is the number of grid cells along each side; `progress` receives parts done and parts in total. Raises
        ValueError if nothing is opaque.
        """
        ...


class Preview(NamedTuple):
    """Images of a frame, uint8 [B, H, W, 3], and the view word of each ("" without cameras)."""

    images: np.ndarray
    views: tuple[str, ...]


@runtime_checkable
class Scene(Protocol):
    """A scene seen through cameras; owned by one thread."""

    params: dict[str, Parameter]
    note: str  # how it starts differently from what was requested, or ""

    def adopt(self, config: SceneConfig) -> None:
        """Switch to another configuration of the same kind (live knobs)."""
        ...

    def render(self, cams: Cameras, background: Tensor) -> Render: ...

    def regulariser(self, render: Render) -> Tensor | None:
        """Return a 0-d penalty to add to the guidance, or None."""
        ...

    def constrain(self) -> None:
        """Project the parameters back into their allowed region after an optimiser step."""
        ...

    def observe(self, info: ScreenInfo | None) -> None:
        """Collect the statistics of density control; called after the backward pass."""
        ...

    def densify(self, progress: float, step: int, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """Run density control where it is due; return counts of what was done (empty if nothing was)."""
        ...

    def must_fit(self, prior: Prior) -> None:
        """Raise ValueError if `prior` does not fit this scene."""
        ...

    def stats(self) -> dict[str, float]:
        """Return values to record at every step."""
        ...

    def preview(
        self,
        prior: Prior,
        bank: PromptBank,
        prompt: PromptSettings,
        camera: CameraSettings,
        drawn: tuple[Cameras, Render] | None,
    ) -> Preview:
        """Return the images that a frame shows; `drawn` are the renders of the last step, None before the first."""
        ...

    def snapshot(self) -> SplatSnapshot | None:
        """Return an immutable copy for viewers, or None for flat scenes."""
        ...

    def splats(self) -> RawSplats | None:
        """Return the Gaussians as stored in splat files, or None for flat scenes."""
        ...

    def solid(self) -> Solid | None:
        """Return a copy to render and mesh, or None if the Gaussians are the scene rather than an approximation."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FlatScene(ABC):
    """A batch of B events in the prior's own space; owned by one thread."""

    note = ""

    def __init__(self, config: Any, params: dict[str, Tensor], shape: tuple[int, int, int], cams: Cameras) -> None:
        """Wrap `params`, by name; `shape` is (C, H, W) of an event, `cams` the cameras that losses receive."""
        self.config = config
        self.params = {name: Parameter(tensor) for name, tensor in params.items()}
        self.shape = shape
        self.cams = cams

    def adopt(self, config: SceneConfig) -> None:
        """Switch to another configuration of the same kind (live knobs). Raises ValueError for another kind."""
        if type(config) is not type(self.config):
            raise ValueError(
                f"scene.kind = {config.kind!r}: this run's scene is {self.config.kind!r}; choose a preset to change it"
            )
        self.config = config

    @abstractmethod
    def latents(self, rng: StepRng, prior: Prior) -> Tensor:
        """Return this step's events [B, C, H, W] in the space of `prior`, differentiable in the parameters."""

    def constrain(self) -> None:  # noqa: B027  (optional)
        """Called after every optimiser step."""

    def must_fit(self, prior: Prior) -> None:
        """Raise ValueError if the events of `prior` have another shape."""
        if tuple(self.shape) != tuple(prior.shape):
            raise ValueError(
                f"this run's {self.config.kind} are of shape {self.shape}, the prior {prior.name} looks at "
                f"{prior.shape}: start a new run with it (prior.path)"
            )

    def stats(self) -> dict[str, float]:
        """Return values to record at every step."""
        return {}

    def preview(
        self,
        prior: Prior,
        bank: PromptBank,
        prompt: PromptSettings,
        camera: CameraSettings,
        drawn: tuple[Cameras, Render] | None,
    ) -> Preview:
        """Return the images that a frame shows."""
        images = self.pictures(prior, bank.prompt(prompt))
        return Preview(images, ("",) * len(images))

    def snapshot(self) -> None:  # noqa: B027  (no flat scene has Gaussians)
        """Return None: there are no Gaussians to view."""

    def splats(self) -> None:  # noqa: B027
        """Return None: there are no Gaussians to store."""

    def solid(self) -> None:  # noqa: B027
        """Return None: there is nothing to mesh."""

    @abstractmethod
    def pictures(self, prior: Prior, cond: Cond) -> np.ndarray:
        """Return the images to show, uint8 [M, H, W, 3]; `cond` is the conditioning of the prompt."""

    @abstractmethod
    def write(self, folder: Path, prior: Prior, cond: Cond) -> list[Path]:
        """Write the results of a run to `folder` and return the files."""

    def state_dict(self) -> dict[str, Any]:
        return {k: v.detach().clone() for k, v in self.params.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the parameters. Raises ValueError if a tensor is missing or has another shape."""
        for name, old in list(self.params.items()):
            if name not in state or state[name].shape != old.shape:
                found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                raise ValueError(f"scene state: {name} {found}; expected shape {tuple(old.shape)}")
            self.params[name] = Parameter(state[name].to(old, copy=True))


AnyScene = Scene | FlatScene


def require_camera_scene(scene: AnyScene) -> Scene:
    """Return `scene` if it is seen through cameras. Raises ValueError for a flat scene."""
    if isinstance(scene, FlatScene):
        raise ValueError(f"scene.kind: this needs a scene seen through cameras (splats), not {type(scene).__name__}")
    return scene


def preview_of_views(
    scene: Scene,
    prior: Prior,
    prompt: PromptSettings,
    camera: CameraSettings,
    drawn: tuple[Cameras, Render] | None,
) -> Preview:
    """Return the renders of the last step, or front and back of `scene` before the first; see `Scene.preview`."""
    if drawn is not None:
        cams, render = drawn
    else:
        cams = turntable(2, camera, camera.resolution or prior.image_size)
        with torch.no_grad():
            render = scene.render(cams, torch.ones(2, 3))
    return Preview(to_uint8(render.rgb), tuple(views_of(prompt, cams)))


@dataclass(frozen=True)
class SceneConfig(ABC):
    """Configuration of a scene."""

    kind: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]  # names in the built scene's `params`
    wordings: ClassVar[tuple[str, ...]] = ()  # paths of the prompts that it has beside the first
    modes: ClassVar[tuple[str, ...]] = ()  # of `sdlab.modes.MODES`, in which its renders can be shown

    def prepare(self, device: torch.device) -> None:  # noqa: B027  (optional: most scenes compile nothing)
        """Do in advance what the first step would otherwise wait for (compile kernels)."""

    def announcement(self, device: torch.device) -> str:
        """Return one line on what `prepare` is about to compile and how many minutes it takes, "" if it is quick."""
        return ""

    def fallback(self, device: torch.device) -> str:
        """Return the reason why this scene is drawn more slowly on `device` than it could be, or ""."""
        return ""

    @property
    def prompts(self) -> int:
        """The number of prompts that its views have: see `sdlab.prompts.PromptSettings.texts`."""
        return 1

    def batch(self, camera: CameraSettings) -> int:
        """Return how many events a step passes to the prior."""
        return camera.views

    def bare(self) -> SceneConfig:
        """Return this configuration with a start that needs no external files; a saved state replaces it anyway."""
        return self

    @abstractmethod
    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> AnyScene:
        """Build a new scene for `prior` and a run that begins with `prompt`; all randomness comes from `rng`.

        `progress` receives the status texts of slow parts. Raises ValueError if the scene does not fit the prior,
        RuntimeError if something it needs is not available.
        """
