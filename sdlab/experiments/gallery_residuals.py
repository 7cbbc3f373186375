"""What each loss does to images that are already right, and how much noise an inversion finds in them:
`python -m sdlab bench gallery-residuals`.

The images are held out: the prompt's own, drawn with another seed than those of the prior, on random backgrounds. A
loss that ends has a mean residual of 0 there, up to the distance of the nearest image of the prior. Residuals are
averaged over pairs of opposite noise and given as the displacement of z that they ask for, sigma / alpha times the
residual; their root mean square is over all entries.

An inversion should find noise of root mean square 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlab.experiments.objects import Runner, write_json
from sdlab.experiments.variants import parse_variant
from sdlab.inversion import invert
from sdlab.losses import Distillation
from sdlab.priors.gallery import GalleryPrior, GalleryScores
from sdlab.rng import StepRng
from sdlab.settings import Settings
from sdlab.types import BoundPrior, Cond, Noised

PROMPT = "a red bear, front view"
LOSSES = (
    "sds:cfg=1",
    "sds:cfg=3",
    "sds:cfg=30",
    "csd:pos_end=1:null_end=-1:neg_end=0:noise_end=0",
    "nfsd:little_noise=200",
    "nfsd:little_noise=1000",
)
LEVELS = (150, 300, 500, 700)
IMAGES, PAIRS = 8, 12
SPREADS, INVERSIONS, STEPS = (0.0, 0.1), (1.0, 0.0, -7.5), 4


def run_residuals(runner: Runner, losses: dict[str, Distillation], out: Path) -> dict[str, Any]:
    """Measure, print both tables and return the results; writes gallery-residuals.json to the folder `out`.

    Raises ValueError if the settings' prior is not a gallery with a source that can draw other images.
    """
    prior = runner.prior
    if not isinstance(prior, GalleryScores):
        raise ValueError(f"prior.kind = {runner.settings.prior.kind}: this measures the gallery prior")
    z0 = held_out(prior, PROMPT)
    conds = {
        role: Cond(prior.embed(text).hidden.expand(len(z0), -1, -1))
        for role, text in (("pos", PROMPT), ("uncond", ""), ("neg", runner.settings.prompt.negative))
    }
    width = 2 + max(len(name) for name in losses)
    print(f"{'displacement at images that fit':{width}}" + "".join(f"   t = {t}" for t in LEVELS), flush=True)
    shifts = {}
    for name, loss in losses.items():
        shifts[name] = [round(rms(mean_shift(loss, prior, conds, z0, t)), 3) for t in LEVELS]
        print(f"{name:{width}}" + "".join(f"{value:10.3f}" for value in shifts[name]), flush=True)
    print(f"{'noise found by an inversion':{width}}" + "".join(f"   t = {t}" for t in LEVELS))
    found = []
    for spread in SPREADS:
        blurred = GalleryScores(replace(prior.config, spread=spread), prior.source, prior.device)
        own = {
            role: Cond(blurred.embed(text).hidden.expand(len(z0), -1, -1))
            for role, text in (("pos", PROMPT), ("uncond", ""))
        }
        for scale in INVERSIONS:
            noise = [round(rms(inverted_noise(blurred, own, z0, t, scale)), 2) for t in LEVELS]
            found.append({"spread": spread, "inversion_cfg": scale, "rms": noise})
            print(
                f"{f'spread {spread:g}, CFG {scale:g}':{width}}" + "".join(f"{value:10.2f}" for value in noise),
                flush=True,
            )
    summary = {"prompt": PROMPT, "levels": LEVELS, "displacements": shifts, "inversions": found}
    write_json(out / "gallery-residuals.json", runner, summary, [])
    return summary


def variants(labels: Sequence[str], s: Settings) -> dict[str, Distillation]:
    """Return each loss in `labels` with its knobs on top of `s`. ValueError for one with other roles than these."""
    found = {}
    for label in labels:
        name, changes = parse_variant(label, "--losses")
        loss = s.patch_all([("active", name), *(_assigned(s, change) for change in changes)]).loss
        if not {"pos", "uncond", "neg"}.issuperset(loss.roles) or loss.needs_reference:
            raise ValueError(f"--losses {label}: only losses of the prompt, the empty text and the negative prompt")
        found[label] = loss
    return found


def _assigned(s: Settings, change: str) -> tuple[str, Any]:
    from sdlab.knobs import parse

    path, _, value = change.partition("=")
    return path, parse(s.knob(path), value)


def held_out(prior: GalleryScores, text: str) -> Tensor:
    """Return IMAGES images of `text` as z, which are not in the prior's gallery, on random backgrounds."""
    assert isinstance(prior.config, GalleryPrior)
    rgba = prior.source.draw(prior.source.key(text), IMAGES, prior.config.size, prior.config.seed + 1).float() / 255
    ground = torch.rand(len(rgba), 3, 1, 1, generator=StepRng(0, 0)("backgrounds"))
    return (2 * (rgba[:, :3] + (1 - rgba[:, 3:]) * ground) - 1).to(prior.device)


def mean_shift(loss: Distillation, prior: GalleryScores, conds: dict[str, Cond], z0: Tensor, t: int) -> Tensor:
    """Return sigma / alpha times the residual [B, C, H, W] at z0, averaged over noise."""
    steps = torch.full((len(z0),), t, device=z0.device)
    alpha, sigma = prior.marginal(steps)
    total = torch.zeros_like(z0)
    for k in range(PAIRS):
        drawn = StepRng(0, k).randn("noise", z0)
        for noise in (drawn, -drawn):
            x = Noised(z0, noise, steps, alpha, sigma, alpha * z0 + sigma * noise)
            total += loss.gradient(x, BoundPrior(prior, conds), None).residual
    return sigma / alpha * total / (2 * PAIRS)


def inverted_noise(prior: GalleryScores, conds: dict[str, Cond], z0: Tensor, t: int, scale: float) -> Tensor:
    """Return (z_t - alpha z0) / sigma of the inverted z_t."""
    steps = torch.full((len(z0),), t, device=z0.device)
    alpha, sigma = prior.marginal(steps)
    return (invert(BoundPrior(prior, conds), z0, steps, STEPS, scale) - alpha * z0) / sigma


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
