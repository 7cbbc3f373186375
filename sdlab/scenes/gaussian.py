"""A Gaussian in the plane, fitted to a prior: ESD's illustration of what the entropy term does.

q = N(mean, diag(std^2)); every step draws `n` samples mean + std xi (Wang et al. 2024, "Taming mode collapse in score
distillation", its Gaussian example). A loss that only seeks the mode shrinks q to a point; with the score of q itself,
i.e. the reverse Kullback-Leibler divergence, q takes on the width of the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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


@dataclass(frozen=True)
class GaussianFit(SceneConfig):
    """A Gaussian with a mean and a standard deviation per axis."""

    kind: ClassVar[str] = "gaussian"
    parameters: ClassVar[tuple[str, ...]] = ("mean", "log_std")

    n: int = knob(256, 2, 2000, "samples per step (released code: 256)", apply="restart")
    mean_x: float = knob(0.0, -3.0, 3.0, "initial mean, x (east)", apply="restart")
    mean_y: float = knob(0.0, -3.0, 3.0, "initial mean, y (north)", apply="restart")
    std: float = knob(0.5, 0.01, 3.0, "initial standard deviation", apply="restart")

    def batch(self, camera: CameraSettings) -> int:
        return self.n

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> GaussianScene:
        """Build the scene. Raises ValueError unless the prior lives on the plane."""
        must_be_plane(self.kind, prior)
        mean = torch.tensor([[self.mean_x, self.mean_y]])
        return GaussianScene(self, mean.to(device), torch.full_like(mean, math.log(self.std)).to(device))


class GaussianScene(FlatScene):
    """The fitted Gaussian: parameters `mean` and `log_std`, [1, 2] each."""

    def __init__(self, config: GaussianFit, mean: Tensor, log_std: Tensor) -> None:
        cams = turntable(config.n, CameraSettings(), 1)
        super().__init__(config, {"mean": mean, "log_std": log_std}, (2, 1, 1), cams)
        self._seen = self._sample(torch.randn(config.n, 2, generator=torch.Generator().manual_seed(0))).detach()

    def _sample(self, xi: Tensor) -> Tensor:
        mean, log_std = self.params["mean"], self.params["log_std"]
        return (mean + log_std.exp() * xi.to(mean)).view(-1, 2, 1, 1)

    def latents(self, rng: StepRng, prior: Prior) -> Tensor:
        samples = self._sample(torch.randn(len(self.cams), 2, generator=rng("samples")))
        self._seen = samples.detach()
        return samples

    def stats(self) -> dict[str, float]:
        """Return the current mean and standard deviation."""
        (x, y), (a, b) = self.params["mean"][0].tolist(), self.params["log_std"][0].exp().tolist()
        return {"mean_x": x, "mean_y": y, "std_x": a, "std_y": b}

    def pictures(self, prior: Prior, cond: Cond) -> np.ndarray:
        return draw_plane(prior, cond, self.samples())[None]

    def samples(self) -> np.ndarray:
        """Return the last step's samples, [1, B, 2]."""
        return self._seen.view(1, -1, 2).float().cpu().numpy()

    def write(self, folder: Path, prior: Prior, cond: Cond) -> list[Path]:
        """Write samples.png, a plot of the samples."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "samples.png"
        plot_trails(prior, cond, {f"{len(self.cams)} samples": self.samples()}, file)
        return [file]
