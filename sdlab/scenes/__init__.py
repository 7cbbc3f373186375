"""The family of things that can be optimised. A scene's configuration is a frozen dataclass with one verb, `build`.

A built scene owns named parameters; the optimiser has one group for each of them. There are two sorts:
  Scene      is looked at through cameras: it renders views, may add and remove rows of its parameters (density
             control), and gives immutable snapshots to viewers;
  FlatScene  lives in the prior's own space, so that nothing is rendered or encoded: pictures, points of the plane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from sdlab.cameras import CameraSettings
from sdlab.priors import Progress, silent
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.types import Cameras, Cond, Prior, RawSplats, Render, ScreenInfo, SplatSnapshot


@runtime_checkable
class RowSurgeon(Protocol):
    """The optimiser as density control sees it: it keeps the moments of rows that stay and zeroes those of new ones."""

    def replace_rows(self, new: Mapping[str, Tensor], kept: Tensor) -> None:
        """Set every parameter to `new` [M, ...]; row i continues old row kept[i], or is new where kept[i] = -1."""
        ...

    def reset_moments(self, name: str) -> None:
        """Forget the moments of one parameter."""
        ...

    def rate(self, name: str) -> float:
        """The learning rate that is in force for one parameter."""
        ...


class Preview(NamedTuple):
    """Images of a frame, uint8 [B, H, W, 3], and the view word of each ("" without cameras)."""

    images: np.ndarray
    views: tuple[str, ...]


@runtime_checkable
class Scene(Protocol):
    """What a session optimises, seen through cameras; owned by one thread."""

    params: dict[str, Parameter]
    note: str  # reason why it does not start as requested, or ""

    def adopt(self, config: SceneConfig) -> None:
        """Follow another configuration of the same kind from now on (live knobs)."""
        ...

    def render(self, cams: Cameras, background: Tensor) -> Render: ...

    def regulariser(self, render: Render) -> Tensor | None:
        """A 0-d penalty that is added to the guidance, or None."""
        ...

    def constrain(self) -> None:
        """Bring the parameters back into their allowed region after an optimiser step."""
        ...

    def observe(self, info: ScreenInfo | None) -> None:
        """Collect the statistics of density control; after the backward pass."""
        ...

    def densify(self, progress: float, step: int, optim: RowSurgeon, rng: StepRng) -> dict[str, int]:
        """Density control where it is due; what was done, in counts (empty when nothing was)."""
        ...

    def must_fit(self, prior: Prior) -> None:
        """Raise ValueError if `prior` cannot look at this scene."""
        ...

    def stats(self) -> dict[str, float]:
        """Return statistics of the scene that are recorded at every step."""
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
        """An immutable copy for viewers; None for scenes that are not made of Gaussians."""
        ...

    def splats(self) -> RawSplats | None:
        """The Gaussians as splat files store them; None for scenes that are not made of Gaussians."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FlatScene(ABC):
    """B events of the prior's own space; owned by one thread."""

    note = ""

    def __init__(self, config: Any, params: dict[str, Tensor], shape: tuple[int, int, int], cams: Cameras) -> None:
        """`params` by name, `shape` (C, H, W) of an event, `cams` from where losses are told that each was seen."""
        self.config = config
        self.params = {name: Parameter(tensor) for name, tensor in params.items()}
        self.shape = shape
        self.cams = cams

    def adopt(self, config: SceneConfig) -> None:
        """Follow another configuration of the same kind from now on (live knobs)."""
        if type(config) is not type(self.config):
            raise ValueError(
                f"scene.kind = {config.kind!r}: this run's scene is {self.config.kind!r}; choose a preset to change it"
            )
        self.config = config

    @abstractmethod
    def latents(self, rng: StepRng) -> Tensor:
        """This step's events [B, C, H, W]; differentiable in the parameters."""

    def constrain(self) -> None:  # noqa: B027  (most have nothing to do)
        """After an optimiser step."""

    def must_fit(self, prior: Prior) -> None:
        """Raise ValueError if the events of `prior` have another shape."""
        if tuple(self.shape) != tuple(prior.shape):
            raise ValueError(
                f"this run's {self.config.kind} are of shape {self.shape}, the prior {prior.name} looks at "
                f"{prior.shape}: start a new run with it (prior.path)"
            )

    def stats(self) -> dict[str, float]:
        """Return statistics of the scene that are recorded at every step."""
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
        """Return None: there are no Gaussians to look at."""

    def splats(self) -> None:  # noqa: B027
        """Return None: there are no Gaussians to store."""

    @abstractmethod
    def pictures(self, prior: Prior, cond: Cond) -> np.ndarray:
        """What there is to see, uint8 [M, H, W, 3]; `cond` is the conditioning of the prompt."""

    @abstractmethod
    def write(self, folder: Path, prior: Prior, cond: Cond) -> list[Path]:
        """Leave the results of a run in `folder`; the files written."""

    def state_dict(self) -> dict[str, Any]:
        return {k: v.detach().clone() for k, v in self.params.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when a tensor is missing or of another shape."""
        for name, old in list(self.params.items()):
            if name not in state or state[name].shape != old.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"scene state: {name} is {found}, expected is {tuple(old.shape)}")
            self.params[name] = Parameter(state[name].to(old, copy=True))


AnyScene = Scene | FlatScene


def seen_from_all_sides(scene: AnyScene) -> Scene:
    """`scene` itself; ValueError for one that has no sides."""
    if isinstance(scene, FlatScene):
        raise ValueError(
            f"scene.kind: a scene seen through cameras (splats) is needed here, not {type(scene).__name__}"
        )
    return scene


@dataclass(frozen=True)
class SceneConfig(ABC):
    """Configuration of a scene."""

    kind: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]  # names in `params` of what it builds

    def prepare(self, device: torch.device) -> None:  # noqa: B027  (most scenes have nothing to compile)
        """Do now what the first step would otherwise have to (compile kernels)."""

    def fallback(self, device: torch.device) -> str:
        """Return the reason why this scene is drawn more slowly on `device` than it could be, or ""."""
        return ""

    def batch(self, camera: CameraSettings) -> int:
        """How many events a step shows to the prior."""
        return camera.views

    def bare(self) -> SceneConfig:
        """The same, but starting from nothing that lies outside the settings: a saved state comes in its place."""
        return self

    @abstractmethod
    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> AnyScene:
        """A fresh scene for what `prior` looks at and a run that begins with `prompt`; all randomness from `rng`.
        `progress` is told what takes long, in words.

        ValueError when it does not fit, RuntimeError when something that it needs cannot be had.
        """
