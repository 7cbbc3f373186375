"""Painting to real: a painting of an object becomes a picture of it (SBP thesis, section "Painting-to-Real").

Every method starts from the same paintings and takes the same number of steps; SDEdit (Meng et al. 2022), which noises
a picture and denoises it once, is beside them. Measured of the results, and of the paintings themselves:

    style    chance that it is a painting, by the classifier of `sdlab.experiments.style`
    object   the judge's chance of the object that was painted; colour likewise
    truth    PSNR in dB to the same object in the same pose, rendered and not painted, where it covers the ground

KID from the judge's features would not help: they hardly differ between paintings and renders of the same objects.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.experiments import style
from sdlab.experiments.illusions import chances, classifier
from sdlab.experiments.objects import Case, Outcome, Runner, cases
from sdlab.inversion import decode
from sdlab.live.messages import Patch
from sdlab.pictures import to_uint8
from sdlab.priors.sources.toybox import FIRST, PER_SEED, ToyboxSource, read_key, rendered, shot_of
from sdlab.prompts import DESCRIPTORS, PROMPT, PromptBank
from sdlab.rng import StepRng
from sdlab.scenes.image import ImageScene
from sdlab.settings import Settings
from sdlab.starts.drawn import seed_of
from sdlab.step import BUILD_STEP
from sdlab.types import BoundPrior, Cameras

PRESET = "painting-to-real"
OBJECTS = ("elephant", "car", "owl", "castle")
PAINTED = f"{PROMPT}, painting"
START = "the paintings"
SDEDIT = {"SDEdit, t = 300": 300, "SDEdit, t = 500": 500, "SDEdit, t = 700": 700}
SDEDIT_STEPS, SDEDIT_SCALE = 20, 2.0
METHODS: Mapping[str, tuple[tuple[str, Any], ...]] = {  # on top of the preset
    START: (("steps", 1),),
    "SBP, the preset": (),
    "SBP, paper's form": (("losses.sbp.form", "paper"),),
    "SBP, corruption words": (("prompt.source", f"{PROMPT}, {DESCRIPTORS}"),),
    "SBP, full bridge": (("losses.sbp.form", "full"), ("losses.sbp.leg_steps", 4)),
    "DDS": (("active", "dds"), ("scene.drawn", PROMPT)),
    "SDS": (("active", "sds"),),
    "SDS, CFG 1": (("active", "sds"), ("losses.sds.cfg", 1.0)),
    **dict.fromkeys(SDEDIT, (("steps", 1),)),
}


def trials(s: Settings, quick: bool) -> list[tuple[str, Case]]:
    """Return every method on paintings of every object; with `quick` of two."""
    found = cases(s, OBJECTS[:2] if quick else OBJECTS)
    return [(label, _case(label, case)) for label in METHODS for case in found]


def _case(label: str, case: Case) -> Case:
    """Return the run of a method. DDS edits from the prompt of a painting, so its prompt changes after a first step, in
    which nothing moves."""
    s = case.settings.patch_all(METHODS[label])
    if label != "DDS":
        return case._replace(settings=s)
    text = s.prompt.text
    painted = s.patch("prompt.text", PAINTED.replace(PROMPT, text))
    return case._replace(settings=painted, planned={1: Patch((("prompt.text", text),))})


def measure(runner: Runner, label: str, outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is measured of the results of a run, and the pictures as a strip."""
    s, scene = outcome.case.settings, outcome.scene
    if not isinstance(scene, ImageScene):
        raise TypeError(f"{type(scene).__name__}: expected pictures")
    z = scene.params["latents"].detach()
    if label in (START, *SDEDIT):  # they take no steps of a loss
        start = s.scene.build(StepRng(s.seed, BUILD_STEP), runner.device, runner.prior, s.prompt.text)
        z = start.params["latents"].detach()
    if label in SDEDIT:
        z = _sdedit(runner, s, z, scene.cams, SDEDIT[label])
    shown = to_uint8(runner.prior.decode(z))
    row = {
        "method": label,
        "object": outcome.case.object,
        "prompt": f"{outcome.case.colour} {outcome.case.object}",
        "seed": s.seed,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        "note": outcome.note,
        **_figures(_tensor(shown), s, outcome.case),
    }
    return row, np.concatenate(list(shown), axis=1)


def _sdedit(runner: Runner, s: Settings, z: Tensor, cams: Cameras, t: int) -> Tensor:
    """Return pictures noised to `t` and carried down the flow under the prompt."""
    prior = runner.prior
    model = BoundPrior(prior, PromptBank(prior).bind(s.prompt, ("pos", "uncond"), cams))
    levels = torch.full((len(z),), t, device=z.device)
    alpha, sigma = prior.marginal(levels)
    return decode(model, alpha * z + sigma * StepRng(s.seed, 0).randn("noise", z), levels, SDEDIT_STEPS, SDEDIT_SCALE)


def _figures(rgb: Float[Tensor, "n 3 S S"], s: Settings, case: Case) -> dict[str, float]:
    size = rgb.shape[-1]
    textures = style.textures(classifier(), rgb)
    true, covered = _unpainted(s, case, len(rgb), size)
    errors = ((rgb - true).square() * covered).sum((1, 2, 3)) / (3 * covered.sum((1, 2, 3)))
    text = f"a {case.colour} {case.object}"
    return {
        "style": round(float(style.trained(size).chances(textures).mean()), 4),
        "seen": round(statistics.fmean(chances(rgb, [text])), 4),
        "truth": round(float((-10 * errors.log10()).mean()), 2),
    }


def _unpainted(s: Settings, case: Case, n: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the objects of a run's paintings as they are rendered, [n, 3, S, S], and what they cover, [n, 1, S, S]."""
    key = ToyboxSource().key(f"a {case.colour} {case.object}, painting")
    first = FIRST + PER_SEED * seed_of(StepRng(s.seed, BUILD_STEP))
    shots = [shot_of(read_key(key), first + i) for i in range(n)]
    rgba = rendered([shot._replace(facts=shot.facts._replace(style="")) for shot in shots], size).float() / 255
    return rgba[:, :3], (rgba[:, 3:] > 0.99).float()


def _tensor(pictures: np.ndarray) -> Tensor:
    """Return uint8 [n, S, S, 3] as [n, 3, S, S] in [0, 1]."""
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255


def line(row: Mapping[str, Any]) -> str:
    """Describe one run."""
    note = f"; {row['note']}" if row["note"] else ""
    return (
        f"{row['prompt']:20}{row['method']:24}painting {row['style']:.2f}, object {row['seen']:.2f}, "
        f"{row['truth']:.1f} dB, {row['seconds']:.0f} s{note}"
    )


def summary(runner: Runner, found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> dict[str, Any]:
    """Return the means of every method."""
    table = []
    for label in METHODS:
        own = [row for row, _ in found if row["method"] == label]
        if own:
            line: dict[str, Any] = {"method": label, "runs": len(own)}
            for measure in ("style", "seen", "truth", "seconds"):
                line[measure] = round(statistics.fmean(row[measure] for row in own), 3)
            table.append(line)
    return {"table": table, "style_accuracy": round(style.trained(runner.prior.image_size).accuracy, 3)}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the table for the console."""
    head = f"{'':24}{'painting':>9}{'object':>8}{'truth, dB':>10}{'s':>6}"
    rows = (
        f"{row['method']:24}{row['style']:9.2f}{row['seen']:8.2f}{row['truth']:10.1f}{row['seconds']:6.0f}"
        for row in summary["table"]
    )
    return [
        head,
        *rows,
        f"the classifier of paintings is right on {summary['style_accuracy']:.1%} of held-out pictures",
    ]


def shown(found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Return a strip for each method: its pictures of all objects."""
    rows = []
    for label in METHODS:
        strips = [strip for row, strip in found if row["method"] == label]
        if strips:
            rows.append((label, np.concatenate(strips, axis=1)))
    return rows
