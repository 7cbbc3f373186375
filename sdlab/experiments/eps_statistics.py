"""Statistics of the noise prediction over t: figure 10 of DreamMapping (Cai et al. 2024, sections 4.3 and 7.1).

For images that the prior knows, z_t = alpha z0 + sigma noise, and eps is the prior's prediction for their own text
without guidance. Measured over t: the variance of eps, and its linear correlation with the noise. VDM learns a map from
eps to the noise, and DCA lowers its weight up to t = 300, where according to the paper eps says little about the noise.

The paper measures correlation as Puccetti does ("Measuring linear correlation between random vectors", Information
Sciences 607, 2022): the expected inner product of the two centred vectors, divided by the largest value that their
covariances allow,

    rho(X, Y) = tr Cov(X, Y) / tr (Cov(X) Cov(Y))^(1/2).

This needs more samples than a vector has entries. Here the vectors of images are patches of 4 x 4 pixels with all
channels, each pixel centred separately; points are used whole. The paper does not state its choice. `pearson` is the
mean of Pearson's correlation over all entries, which needs no such choice. `variance` is a mean over all entries, too.

For a Gaussian of standard deviation s, eps is linear in z_t. With v = alpha^2 s^2 + sigma^2, its variance is
sigma^2 / v and both correlations are sigma / sqrt(v): near 1 for large t, falling to about 0, at smaller t for
smaller s.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdlab import machine
from sdlab.losses.vdm import VDM
from sdlab.priors.mixture import Mixture, MixturePrior
from sdlab.rng import StepRng
from sdlab.settings import preset
from sdlab.toybox import judge, pictures
from sdlab.toybox.figures import caption_of
from sdlab.toybox.pictures import Shot
from sdlab.types import Cond, Prior, cat_conds, cond_rows

TIMESTEPS = (1, 5, 10, 20, 50, 100, 150, 200, 250, 300, 350, 400, 500, 600, 700, 800, 900, 980, 999)
QUICK_TIMESTEPS = (20, 100, 300, 600, 999)
PICTURES, EVENTS = 512, 4096  # samples of the toybox and of a mixture
QUICKER = 8  # divides the samples of a quick run
BATCH = 64  # images per batch
PATCH = 4  # pixels per side of the patches that images are cut into
TEXT, ALL = "a red bear", "all of them"
CPU = torch.device("cpu")


class Known(NamedTuple):
    """A prior and samples z0 [N, C, H, W] that it knows, each with the conditioning of its own text."""

    prior: Prior
    z0: Tensor
    cond: Cond


def run(out: Path | None = None, quick: bool = False, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Measure, print a table, write JSON to `out` and a plot beside it, and return the results. Once `stop` returns
    True, the timesteps that are finished are written."""
    timesteps = QUICK_TIMESTEPS if quick else TIMESTEPS
    curves: dict[str, dict[str, Any]] = {}
    for name, make in PRIORS.items():
        known = make(quick)
        rows = [stats_at(known, t) for t in itertools.takewhile(lambda t: not stop(), timesteps)]
        if not rows:
            break
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        curves[name] = {
            "engine": known.prior.engine_name,
            "events": len(known.z0),
            "t": list(timesteps[: len(rows)]),
            **columns,
        }
    result = {"cutoff": VDM().dca_cutoff, "patch": PATCH, "curves": curves, "machine": machine.processor()}
    _print(result)
    if out is not None and curves:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        plot(result, out.with_suffix(".png"))
        print(f"plot in {out.with_suffix('.png')}")
    return result


# ---- samples -----------------------------------------------------------------------------------------------------


def toybox(quick: bool) -> Known:
    """Return plain training images of a single object, with captions whose every word the prior knows."""
    prior = preset("toybox").prior.load(CPU, lambda text: print(text, file=sys.stderr))
    shots = readable(prior.remark, PICTURES // QUICKER if quick else PICTURES)
    rgb = judge.render(shots).float() / 255
    return Known(prior, prior.encode(rgb).detach(), cat_conds([prior.embed(caption_of(s.facts)) for s in shots]))


def readable(remark: Callable[[str], str], count: int) -> list[Shot]:
    """Return the first `count` plain shots of the judge's held-out series whose captions the prior fully knows.

    `remark` is the prior's: "" for a caption without unknown words.
    """
    shots: list[Shot] = []
    index = judge.HELD_OUT
    while len(shots) < count:
        shot = judge.uncorrupted(pictures.describe(judge.JUDGE_SEED, index))
        plain = not (shot.facts.second or shot.facts.style or shot.facts.pattern or shot.facts.material)
        if plain and not remark(caption_of(shot.facts)):
            shots.append(shot)
        index += 1
    return shots


def mixture_images(quick: bool) -> Known:
    """Return samples of the mixture of images, all for one text."""
    return drawn_from(MixturePrior(), TEXT, quick)


def plane(quick: bool) -> Known:
    """Return points of the eight Gaussians in the JSD paper."""
    return drawn_from(MixturePrior(layout="eight", schedule="linear"), ALL, quick)


def drawn_from(config: MixturePrior, text: str, quick: bool) -> Known:
    prior = config.load(CPU)
    z0 = draws(prior.mixture(text), EVENTS // QUICKER if quick else EVENTS).float()
    return Known(prior, z0, cat_conds([prior.embed(text)] * len(z0)))


def draws(m: Mixture, count: int) -> Tensor:
    """Draw [count, C, H, W] from the mixture."""
    rng = StepRng(0, -1)
    which = torch.multinomial(m.weights, count, replacement=True, generator=rng("which"))
    means = m.means[which]
    return means + m.stds[which].view(-1, 1, 1, 1) * torch.randn(means.shape, generator=rng("events")).to(means)


PRIORS: dict[str, Callable[[bool], Known]] = {
    "toybox": toybox,
    "mixture, pictures": mixture_images,
    "mixture, plane": plane,
}


# ---- statistics --------------------------------------------------------------------------------------------------


def stats_at(known: Known, t: int) -> dict[str, float]:
    """Return the statistics at one timestep; its noise is the same in every call."""
    noise = StepRng(0, t).randn("noise", known.z0)
    eps = torch.cat([_predict(known, noise, t, slice(i, i + BATCH)) for i in range(0, len(noise), BATCH)])
    entries, their_noise = (centred(x.flatten(1)) for x in (eps, noise))
    stats = {
        "variance": float(entries.square().mean()),
        "puccetti": puccetti(vectors(eps), vectors(noise)),
        "pearson": float(pearson(entries, their_noise).mean()),
    }
    return {name: round(value, 4) for name, value in stats.items()}


def _predict(known: Known, noise: Tensor, t: int, some: slice) -> Tensor:
    """Return eps at z_t for a slice of the samples."""
    prior, z0, noise = known.prior, known.z0[some], noise[some]
    when = torch.full((len(z0),), t)
    alpha, sigma = prior.marginal(when)
    return prior.eps(alpha * z0 + sigma * noise, when, cond_rows(known.cond, some))


def centred(x: Tensor) -> Tensor:
    """Return `x` minus its mean over the first axis, in float64."""
    return x.double() - x.double().mean(0)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return the correlation [D] of each column of two centred [n, D]; 0 for a constant column."""
    return (x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt().clamp_min(1e-20)


def puccetti(x: Tensor, y: Tensor) -> float:
    """Return rho of two centred [n, d]; 0 if one is constant."""
    largest = torch.linalg.eigvals((x.T @ x) @ (y.T @ y)).real.clamp_min(0).sqrt().sum()
    return float((x * y).sum() / largest.clamp_min(1e-20))


def vectors(events: Tensor) -> Tensor:
    """Turn [N, C, H, W] into centred vectors [n, d]: patches of images, or whole samples that PATCH does not divide."""
    flat = centred(events)
    if flat.shape[-1] % PATCH or flat.shape[-2] % PATCH:
        return flat.flatten(1)
    patches = flat.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [N, C, H / P, W / P, P, P]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)


def _print(r: dict[str, Any]) -> None:
    for name, curve in r["curves"].items():
        print(f"{name}, {curve['events']} samples, {curve['engine']}")
        print("     t  variance  puccetti  pearson")
        for row in zip(curve["t"], curve["variance"], curve["puccetti"], curve["pearson"], strict=True):
            print("  {:4}  {:8.3f}  {:8.3f}  {:7.3f}".format(*row))


# ---- the plot ----------------------------------------------------------------------------------------------------


def plot(r: dict[str, Any], file: Path) -> None:
    """Plot for each prior the variance of eps and its correlation with the noise over t, with DCA's cut-off."""
    from matplotlib.figure import Figure

    curves = r["curves"]
    figure = Figure(figsize=(4.4 * len(curves), 3.4), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        axes.plot(curve["t"], curve["puccetti"], label="correlation with the noise (Puccetti)")
        axes.plot(curve["t"], curve["pearson"], linestyle=":", label="the same, mean of Pearson's r")
        axes.plot(curve["t"], curve["variance"], label="variance of eps")
        axes.axvline(r["cutoff"], color="gray", linestyle="--", label=f"DCA's cut-off, {r['cutoff']}")
        axes.set(title=name, xlabel="t", ylim=(0, None))
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(file, dpi=110)
