"""Bounds, gradients and inversion of the JSD paper (Do and Hua 2025), on exact scores of its eight Gaussians.

divergences  KL, Jeffreys, Jensen-Shannon and geometric Jensen-Shannon divergence between (a, 1 - a) and (1 - a, a)
             (figure 8), and between random distributions. `discriminator` is the objective (8), -log D, with the
             discriminator (9) and p(y|x) = p / (p + q), which is optimal: it equals KL(q || p).
gradients    root mean square of w(t) times the residual over t and noise, for points at a distance from the prompt's
             Gaussian; and its noise: the standard deviation over t and noise, relative to the mean (section 5)
inversion    difference of JSD's residual with n steps from that with `MANY`, relative to the latter's change from one
             fresh noise of the minority sample to another
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdlab import machine
from sdlab.losses import Distillation
from sdlab.losses.jsd import JSD
from sdlab.losses.sds import SDS
from sdlab.priors.mixture import MixturePrior, MixtureScores
from sdlab.rng import StepRng
from sdlab.types import BoundPrior, Cond, Noised

PROMPT = "north west"
SCALES = (1.0, 7.5)
DISTANCES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DRAWS = 512  # of t and noise at each point
STEPS, MANY = (1, 2, 5, 10, 20), 50  # of the inversion
T_MIN, T_MAX = 20, 980
SEEDS, SEEDS_QUICK = 10, 4


def run(out: Path, quick: bool = False) -> dict[str, Any]:
    """Measure, print the tables, write divergences.json and divergences.png to the folder `out`, and return the
    results."""
    prior = MixturePrior(layout="eight", schedule="linear", precision="fp64").load(torch.device("cpu"))
    seeds = range(SEEDS_QUICK if quick else SEEDS)
    result = {
        "divergences": divergences(),
        "random": random_pairs(1000),
        "gradients": [row for seed, scale in itertools.product(seeds, SCALES) for row in gradients(prior, seed, scale)],
        "inversion": [row for seed in seeds for row in inversions(prior, seed)],
        "machine": machine.processor(),
    }
    _print(result)
    out.mkdir(parents=True, exist_ok=True)
    (out / "divergences.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, out / "divergences.png")
    print(f"divergences.json and divergences.png in {out}")
    return result


# ---- divergences -------------------------------------------------------------------------------------------------


def between(q: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Return the divergences of two distributions [K] without zeros, in nats."""
    m, geometric = (p + q) / 2, np.sqrt(p * q)
    geometric = geometric / geometric.sum()
    named = p / (p + q)  # p(y|x) of an optimal classifier
    return {
        "kl": _kl(q, p),
        "jeffreys": (_kl(q, p) + _kl(p, q)) / 2,
        "jsd": (_kl(q, m) + _kl(p, m)) / 2,
        "geometric": (_kl(q, geometric) + _kl(p, geometric)) / 2,
        "discriminator": float((q * (np.log1p(-named) - np.log(named))).sum()),
    }


def _kl(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * np.log(a / b)).sum())


def divergences(points: int = 100) -> list[dict[str, float]]:
    """Return a row for each a strictly between 0 and 1."""
    each = np.linspace(0, 1, points + 2)[1:-1]
    return [{"a": float(a), **between(np.array([1 - a, a]), np.array([a, 1 - a]))} for a in each]


def random_pairs(count: int, states: int = 8) -> dict[str, Any]:
    """Return over random pairs of distributions the largest JSD, and how many have a JSD above their KL."""
    rng = np.random.default_rng(0)
    found = [between(*rng.dirichlet(np.full(states, 0.3), 2).clip(1e-12)) for _ in range(count)]
    return {
        "pairs": count,
        "largest_jsd": max(each["jsd"] for each in found),
        "above_kl": sum(each["jsd"] > each["kl"] for each in found),
    }


# ---- gradients ---------------------------------------------------------------------------------------------------


def gradients(prior: MixtureScores, seed: int, scale: float) -> list[dict[str, Any]]:
    """Return a row for each loss and distance; the direction from the Gaussian is the seed's."""
    centre = prior.mixture(PROMPT).means[0]
    angle = 2 * math.pi * float(torch.rand((), generator=StepRng(seed, 0)("direction")))
    towards = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64).view(2, 1, 1)
    losses: dict[str, Distillation] = {"sds": SDS(cfg=scale), "jsd": JSD(cfg=scale)}
    rows = []
    for distance, (name, loss) in itertools.product(DISTANCES, losses.items()):
        pull = _pulls(prior, loss, centre + distance * towards, seed)
        mean = pull.mean(0)
        rows.append(
            {
                "loss": name,
                "cfg": scale,
                "distance": distance,
                "seed": seed,
                "rms": float(pull.square().mean().sqrt()),
                "noise": float((pull - mean).square().mean().sqrt() / mean.square().mean().sqrt()),
            }
        )
    return rows


def _pulls(prior: MixtureScores, loss: Distillation, z0: Tensor, seed: int) -> Tensor:
    """Return w(t) residual [DRAWS, 2, 1, 1] at one point z0, with w(t) = 1 - alphabar."""
    x = noised(prior, z0.expand(DRAWS, -1, -1, -1), seed)
    return x.sigma**2 * loss.gradient(x, _bound(prior, seed), None).residual


def noised(prior: MixtureScores, z0: Tensor, seed: int, step: int = 0) -> Noised:
    """Draw t and noise for z0 [B, 2, 1, 1]; t is the seed's, noise that of the seed and `step`."""
    t = torch.randint(T_MIN, T_MAX, (len(z0),), generator=StepRng(seed, 0)("t"))
    noise = StepRng(seed, step).randn("noise", z0)
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def _bound(prior: MixtureScores, seed: int) -> BoundPrior:
    conds = {
        role: Cond(prior.embed(text).hidden.expand(DRAWS, -1, -1)) for role, text in (("pos", PROMPT), ("uncond", ""))
    }
    return BoundPrior(prior, conds, rng=StepRng(seed, 0))


# ---- inversion ---------------------------------------------------------------------------------------------------


def inversions(prior: MixtureScores, seed: int) -> list[dict[str, Any]]:
    """Return a row for each number of steps: the error of the residual and the yardstick, the change of the exact
    residual under another noise, as root mean squares over points around the prompt's Gaussian."""
    centre = prior.mixture(PROMPT).means[0]
    z0 = centre + 0.5 * StepRng(seed, 0).randn("points", centre.expand(DRAWS, -1, -1, -1))

    def residual(steps: int, noise: int = 0) -> Tensor:
        x = noised(prior, z0, seed, noise)
        return x.sigma**2 * JSD(cfg=1.0, inversion_steps=steps).gradient(x, _bound(prior, seed), None).residual

    exact = residual(MANY)
    change = _rms(exact - residual(MANY, noise=1))
    return [
        {"seed": seed, "steps": steps, "error": _rms(residual(steps) - exact), "noise": change, "size": _rms(exact)}
        for steps in STEPS
    ]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# ---- output ------------------------------------------------------------------------------------------------------


def _mean(rows: Sequence[dict[str, Any]], what: str, **wanted: Any) -> float:
    return float(np.mean([row[what] for row in rows if all(row[key] == value for key, value in wanted.items())]))


def _print(r: dict[str, Any]) -> None:
    largest = {name: max(row[name] for row in r["divergences"]) for name in r["divergences"][0] if name != "a"}
    print(
        "largest divergence between (a, 1 - a) and (1 - a, a): " + ", ".join(f"{k} {v:.3f}" for k, v in largest.items())
    )
    pairs = r["random"]
    print(f"{pairs['pairs']} random pairs: largest JSD {pairs['largest_jsd']:.3f}, above KL in {pairs['above_kl']}")
    print(f"{'gradient at distance':26}" + "".join(f"{d:>10g}" for d in DISTANCES))
    for scale, loss, what in itertools.product(SCALES, ("sds", "jsd"), ("rms", "noise")):
        cells = (_mean(r["gradients"], what, cfg=scale, loss=loss, distance=d) for d in DISTANCES)
        print(f"{loss}, CFG {scale:g}, {what:12}".ljust(26) + "".join(f"{cell:10.3f}" for cell in cells))
    for steps in STEPS:
        error, noise = (_mean(r["inversion"], what, steps=steps) for what in ("error", "noise"))
        print(f"inversion in {steps:2} steps: error {error:.4f}, change by noise {noise:.4f}")


def plot(r: dict[str, Any], file: Path) -> None:
    """Plot figure 8, the gradient over the distance, and the error over the steps of the inversion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for name, style in (("kl", "-"), ("jeffreys", "--"), ("discriminator", ":"), ("jsd", "-"), ("geometric", "--")):
        first.plot(*([row[key] for row in r["divergences"]] for key in ("a", name)), style, label=name)
    first.axhline(math.log(2), color="gray", linestyle="--", label="ln 2")
    first.set(title="divergences of (a, 1 - a) and (1 - a, a)", xlabel="a", ylim=(0, 3))
    for scale, loss in itertools.product(SCALES, ("sds", "jsd")):
        rms = [_mean(r["gradients"], "rms", cfg=scale, loss=loss, distance=d) for d in DISTANCES]
        second.loglog(DISTANCES, rms, marker="o", markersize=3, label=f"{loss}, CFG {scale:g}")
    second.set(title="root mean square of the gradient", xlabel="distance from the Gaussian")
    second.set_xticks(DISTANCES, [f"{d:g}" for d in DISTANCES])
    second.minorticks_off()
    for what, title in (("error", f"difference from {MANY} steps"), ("noise", "change by fresh noise")):
        third.loglog(
            STEPS, [_mean(r["inversion"], what, steps=n) for n in STEPS], marker="o", markersize=3, label=title
        )
    third.set(title="JSD's residual", xlabel="steps of the inversion")
    for axes in (first, second, third):
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=100)
