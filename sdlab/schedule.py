"""When a step looks: how timesteps are drawn, and the weight w(t) of a residual.

All schedules are fractions of the planned run, so that they mean the same for 400 steps and for 25 000.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdlab.knobs import knob
from sdlab.rng import StepRng
from sdlab.types import N_TIMESTEPS


@dataclass(frozen=True)
class ScheduleSettings:
    """Which noise levels the prior is asked about, and how much each counts."""

    kind: str = knob(
        "uniform",
        help="uniform: drawn at random; linear: falls from t_max to t_end; two-stage: t_max drops to t_end at `switch`",
        choices=("uniform", "linear", "two-stage"),
    )
    t_min: float = knob(0.02, 0.0, 0.999, "least noise, as a fraction of all timesteps")
    t_max: float = knob(0.98, 0.001, 1.0, "most noise, as a fraction of all timesteps")
    t_end: float = knob(0.5, 0.001, 1.0, "t_max at the end of the run (linear) or after the switch (two-stage)")
    per_view: bool = knob(True, help="draw t for each view; off draws one for all views of a step, as VDM's paper does")
    switch: float = knob(0.4, 0.0, 1.0, "fraction of the run after which two-stage lowers t_max")
    weight: str = knob(
        "1-alphabar",
        help="w(t): 1-alphabar (DreamFusion), uniform (1), fantasia3d (sqrt(alphabar) (1-alphabar)), sigma/alpha (ISM)",
        choices=("1-alphabar", "uniform", "fantasia3d", "sigma/alpha"),
    )

    def __post_init__(self) -> None:
        if self.t_min >= self.t_max:
            raise ValueError(
                f"schedule.t_min = {self.t_min:g} is not below schedule.t_max = {self.t_max:g}: t_min must be smaller"
            )


def sample_t(s: ScheduleSettings, rng: StepRng, n: int, progress: float) -> Tensor:
    """Integer timesteps [n] in 0..999 for a step at `progress` in [0, 1] of the planned run.

    linear is deterministic and gives every view the same t (DreamGaussian, SDI); the others draw one per view.
    """
    progress = min(max(progress, 0.0), 1.0)
    t_max = s.t_max
    if s.kind == "linear":
        t = s.t_max + (s.t_end - s.t_max) * progress
        return _to_timestep(torch.full((n,), t))
    if s.kind == "two-stage" and progress >= s.switch:
        t_max = s.t_end
    t_min = min(s.t_min, t_max)
    u = torch.rand(n, generator=rng("t"))
    if not s.per_view:
        u = u[:1].expand(n)
    return _to_timestep(t_min + u * (t_max - t_min))


def _to_timestep(fraction: Tensor) -> Tensor:
    return (fraction * N_TIMESTEPS).long().clamp(0, N_TIMESTEPS - 1)


def weight(s: ScheduleSettings, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t) with the shape of `alpha`; alphabar = alpha^2."""
    if s.weight == "1-alphabar":
        return sigma**2
    if s.weight == "fantasia3d":
        return alpha * sigma**2
    if s.weight == "sigma/alpha":
        return sigma / alpha
    return torch.ones_like(alpha)
