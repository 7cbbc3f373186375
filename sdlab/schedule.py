"""How timesteps are drawn, and the weight w(t) of a residual.

All schedules are fractions of the planned run, so that they mean the same for 400 steps and for 25 000.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlab.knobs import knob
from sdlab.noise import KINDS as NOISES
from sdlab.rng import StepRng
from sdlab.types import N_TIMESTEPS

KINDS = ("uniform", "linear", "two-stage", "shrinking", "double", "hifa", "dreamtime")
DREAMTIME = ((800, 300), (500, 100))  # mean and std of the upper and the lower half bell, of 1000 timesteps


@dataclass(frozen=True)
class ScheduleSettings:
    """The noise levels at which the prior is evaluated, and their weights."""

    kind: str = knob(
        "uniform",
        help=(
            "drawn at random: uniform; two-stage (t_max drops to t_end at `switch`); shrinking (t_max falls to t_end "
            "by then, ISM); double (t_min falls from t_max as well, MVDream). One falling t: linear, hifa, dreamtime"
        ),
        choices=KINDS,
    )
    t_min: float = knob(0.02, 0.0, 0.999, "lowest noise level, as a fraction of all timesteps")
    t_max: float = knob(0.98, 0.001, 1.0, "highest noise level, as a fraction of all timesteps")
    t_end: float = knob(0.5, 0.001, 1.0, "t_max at the end of the run (linear) or after the switch")
    per_view: bool = knob(
        True, help="draw t for each view; off draws one t for all views of a step, as VDM's paper does"
    )
    start: int = knob(0, 0, 2**31 - 1, "step at which all schedules begin; the current step restarts them")
    switch: float = knob(0.4, 0.0, 1.0, "fraction of the run after which the range of t stays fixed")
    weight: str = knob(
        "1-alphabar",
        help="w(t): 1-alphabar (DreamFusion), uniform (1), fantasia3d (sqrt(alphabar) (1-alphabar)), sigma/alpha (ISM)",
        choices=("1-alphabar", "uniform", "fantasia3d", "sigma/alpha"),
    )
    noise: str = knob(
        "fresh",
        help=(
            "fresh: drawn for every view and step; world: a function of the camera (FSD); object: fixed to the surface "
            "(CFD). The last two last the whole run and belong to a falling t, such as linear"
        ),
        choices=NOISES,
    )
    noise_share: float = knob(
        1.0, 0.0, 1.0, "share of the noise that lasts; the rest is fresh, at the same variance (CFD: sqrt(beta))"
    )

    def __post_init__(self) -> None:
        if self.t_min >= self.t_max:
            raise ValueError(
                f"schedule.t_min = {self.t_min:g} is not below schedule.t_max = {self.t_max:g}: "
                "the first must be smaller"
            )


def sample_t(s: ScheduleSettings, rng: StepRng, n: int, progress: float) -> Tensor:
    """Return integer timesteps [n] in 0..999 for a step at `progress` in [0, 1] of the planned run.

    linear     from t_max to t_end, the same t for every view (DreamGaussian, SDI)
    hifa       t_max - (t_max - t_min) sqrt(progress), the same t for every view (Zhu and Zhuang 2023)
    dreamtime  time spent in proportion to a weight of t, the same t for every view (Huang et al. 2023; see `dreamtime`)

    The other kinds draw t uniformly from `range_at`, one for each view or one for all.
    """
    progress = min(max(progress, 0.0), 1.0)
    if s.kind == "linear":
        return _to_timestep(torch.full((n,), s.t_max + (s.t_end - s.t_max) * progress))
    if s.kind == "hifa":
        return _to_timestep(torch.full((n,), s.t_max - (s.t_max - s.t_min) * progress**0.5))
    if s.kind == "dreamtime":
        return torch.full((n,), dreamtime(s.t_min, s.t_max, progress))
    t_min, t_max = range_at(s, progress)
    u = torch.rand(n, generator=rng("t"))
    if not s.per_view:
        u = u[:1].expand(n)
    return _to_timestep(t_min + u * (t_max - t_min))


def range_at(s: ScheduleSettings, progress: float) -> tuple[float, float]:
    """Return the lowest and the highest t, as fractions, for the kinds that draw t at random.

    two-stage  t_max before the switch, t_end after it (ProlificDreamer)
    shrinking  t_max falls linearly to t_end until the switch (LucidDreamer's ISM)
    double     as shrinking, while the lowest t falls from t_max to t_min (MVDream)
    """
    part = min(progress / s.switch, 1.0) if s.switch > 0 else 1.0
    t_min, t_max = s.t_min, s.t_max
    if s.kind == "two-stage" and progress >= s.switch:
        t_max = s.t_end
    if s.kind in ("shrinking", "double"):
        t_max = s.t_max + part * (s.t_end - s.t_max)
    if s.kind == "double":
        t_min = s.t_max + part * (s.t_min - s.t_max)
    return min(t_min, t_max), t_max


@functools.lru_cache(maxsize=8)
def _shares_above(t_min: float, t_max: float) -> Tensor:
    """Return the fraction of the run that DreamTime spends at timesteps >= t, for t in 0 .. 999 [1000]; float64."""
    t = torch.arange(N_TIMESTEPS, dtype=torch.float64)
    (high, high_std), (low, low_std) = DREAMTIME
    w = torch.ones_like(t)
    w = torch.where(t > high, torch.exp(-((t - high) ** 2) / (2 * high_std**2)), w)
    w = torch.where(t < low, torch.exp(-((t - low) ** 2) / (2 * low_std**2)), w)
    first, last = (int(_to_timestep(torch.tensor(x))) for x in (t_min, t_max))
    w[:first], w[last + 1 :] = 0.0, 0.0
    return (w / w.sum()).flip(0).cumsum(0).flip(0)


def dreamtime(t_min: float, t_max: float, progress: float) -> int:
    """Return the greatest timestep t with sum_(t' >= t) p(t') >= progress ("DreamTime", Huang et al. 2023).

    p is proportional to 1 between 500 and 800, to exp(-(t - 800)^2 / (2 300^2)) above, to
    exp(-(t - 500)^2 / (2 100^2)) below, and to 0 outside t_min .. t_max, given as fractions.
    """
    reached = (_shares_above(t_min, t_max) >= max(progress, 1e-9)).nonzero()
    return int(reached[-1]) if len(reached) else int(_to_timestep(torch.tensor(t_min)))


def _to_timestep(fraction: Tensor) -> Tensor:
    return (fraction * N_TIMESTEPS).long().clamp(0, N_TIMESTEPS - 1)


def weight(s: ScheduleSettings, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return w(t) in the shape of `alpha`; alphabar = alpha^2."""
    if s.weight == "1-alphabar":
        return sigma**2
    if s.weight == "fantasia3d":
        return alpha * sigma**2
    if s.weight == "sigma/alpha":
        return sigma / alpha
    return torch.ones_like(alpha)
