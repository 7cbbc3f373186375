"""The family of things that can be optimised. A scene's configuration is a frozen dataclass with one verb, `build`.

A built scene owns named parameters; the optimiser has one group for each of them. It renders views, may add and
remove rows of its parameters (density control), and gives immutable snapshots to viewers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from sdlab.rng import StepRng
from sdlab.types import Cameras, RawSplats, Render, ScreenInfo, SplatSnapshot


@runtime_checkable
class RowSurgeon(Protocol):
    """The optimiser as density control sees it: it keeps the moments of rows that stay and zeroes those of new ones."""

    def replace_rows(self, new: Mapping[str, Tensor], kept: Tensor) -> None:
        """Set every parameter to `new` [M, ...]; row i continues old row kept[i], or is new where kept[i] = -1."""
        ...

    def reset_moments(self, name: str) -> None:
        """Forget the moments of one parameter."""
        ...


@runtime_checkable
class Scene(Protocol):
    """What a session optimises; owned by one thread."""

    params: dict[str, Parameter]

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

    def snapshot(self) -> SplatSnapshot | None:
        """An immutable copy for viewers; None for scenes that are not made of Gaussians."""
        ...

    def splats(self) -> RawSplats | None:
        """The Gaussians as splat files store them; None for scenes that are not made of Gaussians."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class SceneConfig(ABC):
    """Configuration of a scene."""

    kind: ClassVar[str]

    def prepare(self, device: torch.device) -> None:  # noqa: B027  (most scenes have nothing to compile)
        """Do now what the first step would otherwise have to (compile kernels)."""

    @abstractmethod
    def build(self, rng: StepRng, device: torch.device) -> Scene:
        """A fresh scene; all randomness from `rng`."""
