"""The toybox's network against the closed form over its own data, over t, by object and by view word.

For each object and view word, fresh images are noised at the network's own alpha_t and sigma_t. The network and a
gallery of other images of the same text (`sdlab.priors.truth`) then predict the noise. Three questions are answered at
each t:

error    |eps of the network - exact eps| / |exact eps|
floor    the same for a second gallery of other images: the closed form is exact for its images, which are a finite
         sample of the data, and errors near this floor mean nothing
closer   which x0-hat is closer to the image that was noised, in how many cases; and the mean squared error of both, as
         PSNR. The posterior mean minimises it: where the network's is smaller, the gallery is too small a sample to be
         called the truth

Errors by object and by view word are averages over the timesteps at which the gallery's mean squared error is the
smaller one (`trusted`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab import machine
from sdlab.lens.numbers import relative_error
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.sources.training import TrainingImages
from sdlab.priors.truth import IMAGES, NULL_IMAGES, SAMPLES, Truth, truth_of
from sdlab.rng import StepRng
from sdlab.toybox import pictures
from sdlab.toybox.figures import caption_of, plain_facts
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.progress import Meter
from sdlab.toybox.words import VIEW_WORDS
from sdlab.types import Cond, Prior

TIMESTEPS = (20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 980)
FRESH_SEED = 9  # of the images that are noised; the galleries have seeds 0 and 1
CPU = torch.device("cpu")
NO_VIEW, NO_TEXT = "no view word", "empty text"
MEASURES = ("error", "floor", "network_mse", "exact_mse", "closer")


class Size(NamedTuple):
    """How much is measured."""

    objects: tuple[str, ...] = tuple(OBJECTS)
    fresh: int = 4  # images per text
    null_fresh: int = 64  # images without a text
    images: int = IMAGES
    null_images: int = NULL_IMAGES


QUICK = Size(("bear", "car"), 2, 4, 128, 256)


class Case(NamedTuple):
    """A text and the groups that its results count for."""

    text: str
    object: str
    view: str


def run(
    out: Path | None = None, quick: bool = False, weights: str = "toybox", stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Measure the network `weights` (as `prior.path`), print a table, write JSON to `out` and a plot beside it, and
    return the results. Once `stop` returns True, what is finished is written. ValueError for a network that was not
    trained on the toybox."""
    size = QUICK if quick else Size()
    config = DiffusersPrior(path=weights)
    prior = config.load(CPU)
    truth = truth_of(config, prior, size.images, size.null_images)
    cases = cases_of(size.objects)
    meter = Meter("texts", len(cases) + 1)
    rows: list[tuple[Case, np.ndarray]] = []
    for i, case in enumerate((*cases, Case("", NO_TEXT, NO_TEXT))):
        if rows and stop():
            break
        rows.append((case, measured(case.text, prior, truth, size.fresh if case.text else size.null_fresh)))
        meter(i + 1)
    result = {
        "network": weights,
        "engine": prior.engine_name,
        "size": {**size._asdict(), "objects": list(size.objects)},
        "t": list(TIMESTEPS),
        **summary(rows),
        "machine": machine.processor(),
    }
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        plot(result, out.with_suffix(".png"))
        print(f"plot in {out.with_suffix('.png')}")
    return result


def cases_of(objects: Sequence[str]) -> list[Case]:
    """Return each object under each view word and without one, in a colour that training images show it in."""
    cases = []
    for i, name in enumerate(objects):
        for j, view in enumerate(("", *VIEW_WORDS)):
            known = pictures.training_colours(name, view)
            facts = plain_facts(name, known[(5 * i + j) % len(known)], view)
            cases.append(Case(caption_of(facts), name, view or NO_VIEW))
    return cases


@torch.no_grad()
def measured(text: str, prior: Prior, truth: Truth, count: int) -> np.ndarray:
    """Return `MEASURES` [M, T, count] for `count` fresh images of `text` at each of T timesteps."""
    source = TrainingImages()
    shots = [source.shot(source.key(text), FRESH_SEED, i) for i in range(count)]
    rgb = np.rint(255 * pictures.render_shots(shots, prior.image_size)) / 255  # 8 bits, as in training
    z0 = prior.encode(torch.from_numpy(rgb).float().permute(0, 3, 1, 2))
    cond = prior.embed(text).hidden.expand(count, -1, -1)
    found = [_at(t, z0, Cond(cond), text, prior, truth) for t in TIMESTEPS]
    return np.stack(found, 1)


def _at(t: int, z0: Tensor, cond: Cond, text: str, prior: Prior, truth: Truth) -> np.ndarray:
    """Return `MEASURES` [M, count] at one timestep."""
    when = torch.full((len(z0),), t)
    alpha, sigma = prior.marginal(when)
    z_t = alpha * z0 + sigma * StepRng(FRESH_SEED, t).randn(f"noise for {text}", z0)
    eps = prior.eps(z_t, when, cond)
    exact, other = (truth.x0(text, z_t, alpha, sigma, sample) for sample in range(SAMPLES))
    exact_eps, other_eps = ((z_t - alpha * x0) / sigma for x0 in (exact, other))
    guess = (z_t - sigma * eps) / alpha
    network_mse, exact_mse = (((x0 - z0) / 2).square().mean((1, 2, 3)) for x0 in (guess, exact))  # of rgb
    found = (
        relative_error(eps, exact_eps),
        relative_error(other_eps, exact_eps),
        network_mse,
        exact_mse,
        (exact_mse < network_mse).float(),
    )
    return torch.stack(found).numpy()


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of rgb in [0, 1]."""
    return -10 * math.log10(max(mse, 1e-10))


def summary(rows: Sequence[tuple[Case, np.ndarray]]) -> dict[str, Any]:
    """Return the measures over t: of all texts together, by object and by view word, and the timesteps to be trusted.

    Every image counts the same; the empty text counts only for itself.
    """
    with_text = [(case, values) for case, values in rows if case.text]
    whole = _mean([values for _, values in with_text])
    trusted = [t for t, n, e in zip(TIMESTEPS, whole["network_mse"], whole["exact_mse"], strict=True) if e < n]
    by_object = {c.object: _mean([v for o, v in rows if o.object == c.object]) for c, _ in rows}
    by_view = {c.view: _mean([v for o, v in rows if o.view == c.view]) for c, _ in rows}
    return {"all": whole, "trusted": trusted, "by_object": by_object, "by_view": by_view}


def _mean(values: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Return the mean of each measure over t."""
    together = np.concatenate(values, 2).mean(2)
    return {name: [round(float(x), 6) for x in row] for name, row in zip(MEASURES, together, strict=True)}


def over_trusted(result: dict[str, Any], group: dict[str, list[float]], measure: str) -> float:
    """Return the mean of a group's measure over the trusted timesteps, NaN if there are none."""
    kept = [value for t, value in zip(result["t"], group[measure], strict=True) if t in result["trusted"]]
    return sum(kept) / len(kept) if kept else math.nan


def _print(r: dict[str, Any]) -> None:
    print(f"{r['network']} ({r['engine']}) against galleries of {r['size']['images']} images a text; {r['machine']}")
    print("   t   error  floor   PSNR network  exact   exact closer")
    for t, error, floor, network, exact, closer in zip(r["t"], *(r["all"][name] for name in MEASURES), strict=True):
        print(f"{t:4} {error:7.4f} {floor:6.4f}   {psnr(network):12.2f} {psnr(exact):6.2f}   {closer:12.0%}")
    print(f"trusted: t = {', '.join(str(t) for t in r['trusted']) or 'none'}; there, error (floor):")
    for title, groups in (("by view word", r["by_view"]), ("by object", r["by_object"])):
        ordered = sorted(groups.items(), key=lambda entry: over_trusted(r, entry[1], "error"))
        shown = (f"{n} {over_trusted(r, g, 'error'):.3f} ({over_trusted(r, g, 'floor'):.3f})" for n, g in ordered)
        print(f"{title}: {', '.join(shown)}")


def plot(r: dict[str, Any], file: Path) -> None:
    """Plot error and floor, both PSNRs, the error by view word over t, and the error by object at trusted timesteps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4), layout="constrained")
    (errors, guesses), (views, objects) = figure.subplots(2, 2)
    for measure, label in (("error", "network"), ("floor", "a second gallery (floor)")):
        errors.plot(r["t"], r["all"][measure], label=label)
    errors.set(title="error of eps against the exact one", xlabel="t", yscale="log")
    for measure, label in (("network_mse", "network"), ("exact_mse", "closed form")):
        guesses.plot(r["t"], [psnr(mse) for mse in r["all"][measure]], label=label)
    guesses.set(title="x0-hat against the image that was noised", xlabel="t", ylabel="PSNR in dB")
    for name, group in r["by_view"].items():
        views.plot(r["t"], group["error"], label=name)
    views.set(title="error by view word", xlabel="t", yscale="log")
    for axes in (errors, guesses, views):
        axes.legend(fontsize=8)
        if r["trusted"]:
            axes.axvspan(min(r["trusted"]), max(r["trusted"]), color="gray", alpha=0.12, linewidth=0)
    ordered = sorted(r["by_object"].items(), key=lambda entry: over_trusted(r, entry[1], "error"))
    names = [name for name, _ in ordered]
    objects.bar(names, [over_trusted(r, g, "error") for _, g in ordered])
    objects.plot(names, [over_trusted(r, g, "floor") for _, g in ordered], "k_", label="floor")
    objects.tick_params(axis="x", rotation=90, labelsize=8)
    objects.set(title="error by object, where the closed form is trusted (gray)")
    objects.legend(fontsize=8)
    figure.savefig(file, dpi=100)
