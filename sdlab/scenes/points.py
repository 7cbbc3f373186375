"""Points in the plane: a playground for watching a loss, because the prior is known exactly.

Every point is an independent seed (Do and Hua 2025, "Text-to-3D generation using Jensen-Shannon score distillation",
section 5.1): all start at one place and follow the loss with their own t and noise. For losses that depend on the
camera, a point is what one camera sees (Wang et al. 2024, ESD, section 4), so that all points together are one object.

`points` [B, 2, 1, 1] are events of a prior on the plane (`sdlab.priors.mixture` with a layout). Their trails are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sdlab.cameras import CameraSettings, turntable
from sdlab.knobs import knob
from sdlab.plane import draw_plane, must_be_plane, plot_trails
from sdlab.priors import Progress, silent
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene, SceneConfig
from sdlab.types import Cond, Prior

KEPT = 4000  # maximum steps of a trail


@dataclass(frozen=True)
class Points(SceneConfig):
    """Points that all start at one place."""

    kind: ClassVar[str] = "points"
    parameters: ClassVar[tuple[str, ...]] = ("points",)

    n: int = knob(100, 1, 2000, "number of points, each an independent seed", apply="restart")
    start_x: float = knob(-1.0, -3.0, 3.0, "starting position, x (east)", apply="restart")
    start_y: float = knob(1.0, -3.0, 3.0, "starting position, y (north)", apply="restart")
    spread: float = knob(0.0, 0.0, 2.0, "standard deviation of the starting positions", apply="restart")
    trail: int = knob(40, 0, KEPT, "length of the drawn trails, in steps")

    def batch(self, camera: CameraSettings) -> int:
        return self.n

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> PointScene:
        """Build the scene. Raises ValueError unless the prior lives on the plane."""
        must_be_plane(self.kind, prior)
        noise = torch.randn(self.n, 2, generator=rng("scene"))
        points = torch.tensor([self.start_x, self.start_y]) + self.spread * noise
        return PointScene(self, points.view(self.n, 2, 1, 1).to(device))


class PointScene(FlatScene):
    """The points and their trails."""

    config: Points

    def __init__(self, config: Points, points: Tensor) -> None:
        super().__init__(config, {"points": points}, (2, 1, 1), turntable(len(points), CameraSettings(), 1))
        self._way = [self._now()]

    def _now(self) -> np.ndarray:
        return self.params["points"].detach().flatten(1).float().cpu().numpy().copy()

    @property
    def way(self) -> np.ndarray:
        """The trails so far [T + 1, B, 2], beginning with the start."""
        return np.stack(self._way)

    def lately(self, steps: int) -> np.ndarray:
        """Return the last `steps` steps of the trails [T, B, 2]; the last row is the current position.

        Once the trails are longer than KEPT, only the current position is returned.
        """
        return np.stack([*self._way[-steps - 1 : -1], self._now()] if len(self._way) <= KEPT else [self._now()])

    def latents(self, rng: StepRng, prior: Prior) -> Tensor:
        points = self.params["points"]
        return points.view_as(points)  # a view: the gradient must reach the leaf through a graph

    def constrain(self) -> None:
        if len(self._way) <= KEPT:
            self._way.append(self._now())

    def pictures(self, prior: Prior, cond: Cond) -> np.ndarray:
        way = self._way[-self.config.trail - 1 :]
        return draw_plane(prior, cond, np.stack(way))[None]

    def write(self, folder: Path, prior: Prior, cond: Cond) -> list[Path]:
        """Write trajectories.png: trails of the first 10, 100 and 1000 points, if there are more, and of all."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "trajectories.png"
        plot_trails(prior, cond, panels(self.way), file)
        return [file]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "way": torch.from_numpy(self.way)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._way = list(state["way"].numpy())


def panels(way: np.ndarray, counts: Sequence[int] = (10, 100, 1000)) -> dict[str, np.ndarray]:
    """Return, by title, the trails [T + 1, count, 2] of the first 10, 100, ... points and of all points."""
    n = way.shape[1]
    shown = [count for count in counts if count < n] + [n]
    return {f"{count} {'seed' if count == 1 else 'seeds'}": way[:, :count] for count in shown}
