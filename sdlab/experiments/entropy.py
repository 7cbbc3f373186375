"""Does ESD's lambda spread the views, as Theorem 1 of its paper states? Particles under a mixture with a known score.

A particle stands for what one camera sees. 32 views, each a point in the plane, start together in the middle of a
mixture of four Gaussians with unequal weights. ESD moves them for several values of lambda, without guidance (s = 1),
once with the exact scores of the views (a delta with the camera, the mixture of all deltas without) and once with a psi
that learns them (`sdlab.auxiliary.score`). Each view belongs to the four Gaussians in proportion to its posterior. The
entropy of the mean posterior is IV in section 5 of the paper, in nats, at most ln 4 = 1.386. The mean entropy of single
views, IQ, measures how undecided they are.

`apart` measures how well psi distinguishes cameras at the end: the share that psi reproduces, by projection, of the
exact difference between the scores with and without the camera; 1 is all of it. A psi that ignores its camera (0) acts
like lambda = 1 for every lambda.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab import machine
from sdlab.auxiliary.score import ExactScores
from sdlab.cameras import CameraSettings, turntable
from sdlab.losses.esd import ESD
from sdlab.metrics.entropies import entropy, quality, variety
from sdlab.plane import density
from sdlab.priors.mixture import PLACES, MixturePrior, MixtureScores
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.schedule import weight
from sdlab.settings import Settings
from sdlab.step import add_noise
from sdlab.types import BoundPrior

VIEWS = 32
WEIGHTS = tuple(weight for _, _, weight in PLACES["four"].values())
STD = 0.2
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
LR = 0.02  # of Adam for the views
LR_PSI = 2e-3
PROMPT = "all of them"
REACH = 2.0  # the plot shows the plane from -REACH to REACH
DRAWS = 40  # of t and noise, to measure `apart`


class Outcome(NamedTuple):
    """One run: the final views [N, 2], their entropies in nats, and how well psi distinguishes the cameras."""

    views: Tensor
    iv: float
    iq: float
    apart: float


def run(out: Path | None = None, quick: bool = False, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Measure, print a table, write JSON to `out` and a plot beside it, and return the results. Once `stop` returns
    True, the rows that are finished are written, without a plot."""
    steps, seeds = (150, 3) if quick else (800, 5)
    prior = four_gaussians()
    outcomes = {}
    for scores, lam in itertools.product(("exact", "learnt"), LAMBDAS):
        if stop():
            break
        outcomes[scores, lam] = [spread(prior, lam, scores == "exact", steps, seed) for seed in range(seeds)]
    rows = [
        {
            "scores": scores,
            "lambda": lam,
            "iv": round(statistics.fmean(o.iv for o in found), 3),
            "iv_spread": round(statistics.pstdev([o.iv for o in found]), 3),
            "iv_each": [round(o.iv, 4) for o in found],
            "iq": round(statistics.fmean(o.iq for o in found), 3),
            "apart": round(statistics.fmean(o.apart for o in found), 3),
        }
        for (scores, lam), found in outcomes.items()
    ]
    result = {
        "views": VIEWS,
        "steps": steps,
        "seeds": seeds,
        "of_the_prior": round(float(entropy(torch.tensor(WEIGHTS))), 3),
        "rows": rows,
        "machine": machine.processor(),
    }
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if len(outcomes) == 2 * len(LAMBDAS):
            plot(prior, {key: found[0].views for key, found in outcomes.items()}, result, out.with_suffix(".png"))
            print(f"plot in {out.with_suffix('.png')}")
    return result


def four_gaussians() -> MixtureScores:
    """Return a prior in the plane: four Gaussians with unequal weights."""
    config = MixturePrior(layout="four", std=STD, schedule="linear")
    return config.load(torch.device("cpu"))


def spread(prior: MixtureScores, lam: float, exact: bool, steps: int, seed: int) -> Outcome:
    """Move the views by ESD for `steps` steps of Adam, with a cosine schedule that decays to zero."""
    loss = ESD(cfg=1.0, lam=lam, network="copy", lr=LR_PSI, p_null=0.5)
    s = Settings(prompt=PromptSettings(text=PROMPT, view_dependent=False), seed=seed)
    cams = turntable(VIEWS, CameraSettings(), 1)
    conds = PromptBank(prior).bind(s.prompt, loss.roles, cams)
    start = 0.1 * torch.randn(VIEWS, 2, 1, 1, generator=StepRng(seed, -1)("views"))
    views = start.clone().requires_grad_()
    adam = torch.optim.Adam([views], lr=LR)
    aux: Any = ExactScores() if exact else loss.init_aux(prior, StepRng(seed, -1))
    for number in range(steps):
        rng = StepRng(seed, number)
        model = BoundPrior(prior, conds, cams, rng, number / steps)
        x = add_noise(views.detach().clone(), s, rng, prior, number / steps)
        guidance = loss.gradient(x, model, aux)
        views.grad = weight(s.schedule, x.alpha, x.sigma) * guidance.residual
        for group in adam.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * number / steps))
        adam.step()
        loss.fit(x, model, aux, guidance)
    projected, exact_norm = 0.0, 0.0
    for number in range(DRAWS):
        rng = StepRng(seed, steps + number)
        model = BoundPrior(prior, conds, cams, rng)
        x = add_noise(views.detach(), s, rng, prior, 1.0)
        learnt = _difference(aux.ask(x, model, (True, False)))
        truth = _difference(ExactScores().ask(x, model, (True, False)))
        projected, exact_norm = projected + float((learnt * truth).sum()), exact_norm + float(truth.square().sum())
    return _outcome(prior, views.detach(), projected / exact_norm)


def _difference(scores: Sequence[Tensor]) -> Tensor:
    """Return psi with the camera minus psi without."""
    own, together = scores
    return own - together


def _outcome(prior: MixtureScores, views: Tensor, apart: float) -> Outcome:
    m = prior.mixture(PROMPT)
    distance = (views.double()[:, None] - m.means[None]).square().sum((2, 3, 4))
    posterior = torch.softmax(m.weights.log() - 0.5 * distance / STD**2, 1)  # [N, 4]
    return Outcome(views.flatten(1), variety(posterior), quality(posterior), apart)


def _print(r: dict[str, Any]) -> None:
    print(f"{r['views']} views, {r['steps']} steps, {r['seeds']} seeds; entropy of the prior: {r['of_the_prior']}")
    print(f"  {'lambda':>6}  {'scores':8}  IV of all views    IQ of single views    apart")
    for row in r["rows"]:
        iv = f"{row['iv']:.3f} +- {row['iv_spread']:.3f}"
        apart = f"{100 * row['apart']:.0f} %"
        print(f"  {row['lambda']:6.2f}  {row['scores']:8}  {iv}    {row['iq']:.3f}                {apart:>6}")


# ---- the plot ----------------------------------------------------------------------------------------------------


def plot(prior: MixtureScores, ends: dict[tuple[str, float], Tensor], r: dict[str, Any], file: Path) -> None:
    """Plot the final views of the first seed for three values of lambda, and the entropy over lambda."""
    from matplotlib.figure import Figure

    shown = (LAMBDAS[0], LAMBDAS[len(LAMBDAS) // 2], LAMBDAS[-1])
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    *planes, chart = figure.subplots(1, len(shown) + 1)
    grid = np.linspace(-REACH, REACH, 121)
    landscape = density(prior, prior.embed(PROMPT), len(grid), REACH)[::-1]  # contours start in the south
    for axes, lam in zip(planes, shown, strict=True):
        axes.contourf(grid, grid, landscape, levels=12, cmap="Blues")
        for scores, marker in (("exact", "o"), ("learnt", "x")):
            axes.scatter(*ends[scores, lam].T, s=22, marker=marker, label=scores, zorder=3)
        axes.set(title=f"views after ESD, lambda = {lam:g}", aspect="equal", xticks=(), yticks=())
        axes.legend(loc="upper right", fontsize=8)
    _draw_entropies(chart, r["rows"])
    chart.axhline(r["of_the_prior"], color="gray", linestyle="--", label="prior")
    chart.set(title="entropy of all views, nats", xlabel="lambda")
    chart.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def _draw_entropies(chart: Any, rows: Sequence[dict[str, Any]]) -> None:
    for scores in ("exact", "learnt"):
        mine = [row for row in rows if row["scores"] == scores]
        columns = ([row[name] for row in mine] for name in ("lambda", "iv", "iv_spread"))
        chart.errorbar(*columns, marker="o", capsize=3, label=f"{scores} scores")
