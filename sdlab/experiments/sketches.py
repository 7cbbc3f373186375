"""3D sketch to real: a crude sketch of an object becomes the object (SBP thesis, appendix, "3D sketch-to-real").

Every method starts from the same sketches and takes the same number of steps with the rates of the preset. Measured of
the results, and of the sketches themselves, in views around the object on white:

    object  views that the judge reads as the object; colour likewise
    KID     to views around rendered objects of the same captions, times 1000, from the judge's features
    kept    overlap of the silhouettes of result and sketch, intersection over union: what a divergence would lose
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdlab.cameras import turntable
from sdlab.experiments.illusions import classifier
from sdlab.experiments.objects import JANUS_VIEWS, Case, Outcome, Runner, cases, data_camera, row_from
from sdlab.metrics.distances import kid
from sdlab.pictures import to_uint8
from sdlab.priors.sources.toybox import ToyboxSource
from sdlab.rng import StepRng
from sdlab.scenes import Scene, require_camera_scene
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP
from sdlab.toybox import judge

PRESET = "sketch-to-real"
OBJECTS = ("bear", "car", "robot", "elephant", "teapot", "owl")
START, PRESETS_OWN = "the sketch", "SBP, two stages"
METHODS: Mapping[str, tuple[tuple[str, Any], ...]] = {  # on top of the preset
    START: (("steps", 1),),
    "SDS": (("active", "sds"),),
    PRESETS_OWN: (),
    "SBP, bridge only": (("losses.sbp.stage", "bridge"),),
}
TRUE_EACH = 4  # rendered objects per caption, each from all sides
SOLID = 0.5  # alpha from which a pixel belongs to the silhouette


def trials(s: Settings, quick: bool) -> list[tuple[str, Case]]:
    """Return every method on every object; with `quick` two objects and a third of the steps."""
    if quick:
        s = s.patch("steps", max(s.steps // 3, 1))
    found = cases(s, OBJECTS[:2] if quick else OBJECTS)
    return [
        (label, case._replace(settings=case.settings.patch_all(changes)))
        for label, changes in METHODS.items()
        for case in found
    ]


def measure(runner: Runner, label: str, outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the judge sees around a result, and the views as a strip."""
    s = outcome.case.settings
    sketch = s.scene.build(StepRng(s.seed, BUILD_STEP), runner.device, runner.prior, s.prompt.text)
    before, start = _seen(runner, s, require_camera_scene(sketch))
    views, solid = (before, start) if label == START else _seen(runner, s, outcome.sides)
    row = {"method": label, **row_from(runner, outcome, views)}
    row["kept"] = round(float((solid & start).sum() / (solid | start).sum().clamp_min(1)), 3)
    del row["read"], row["view_dependent"], row["front_votes"]
    return row, np.concatenate(list(views), axis=1)


@torch.no_grad()
def _seen(runner: Runner, s: Settings, scene: Scene) -> tuple[np.ndarray, Tensor]:
    """Return the views around a scene, uint8 [n, S, S, 3], and where each is solid [n, 1, S, S]."""
    cams = turntable(JANUS_VIEWS, data_camera(s.camera), runner.prior.image_size)
    render = scene.render(cams, torch.ones(len(cams), 3, device=runner.device))
    return to_uint8(render.rgb), render.alpha.cpu() > SOLID


def line(row: Mapping[str, Any]) -> str:
    """Describe one run."""
    note = f"; {row['note']}" if row["note"] else ""
    votes = f"object {row['object_votes']}, colour {row['colour_votes']} of {row['views']}"
    return f"{row['prompt']:20}{row['method']:18}{votes}, kept {row['kept']:.2f}, {row['seconds']:.0f} s{note}"


def summary(runner: Runner, found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> dict[str, Any]:
    """Return the means of every method, and its KID."""
    texts = list(dict.fromkeys(row["prompt"] for row, _ in found))
    true = judge.features(classifier(), _true(runner, texts))
    table = []
    for label in METHODS:
        own = [(row, strip) for row, strip in found if row["method"] == label]
        if own:
            views = torch.cat([_views(strip) for _, strip in own])
            share = [sum(row[f"{what}_votes"] for row, _ in own) / len(views) for what in ("object", "colour")]
            table.append(
                {
                    "method": label,
                    "objects": len(own),
                    "object": round(share[0], 3),
                    "colour": round(share[1], 3),
                    "kid": round(1000 * kid(judge.features(classifier(), views), true), 1),
                    "kept": round(statistics.fmean(row["kept"] for row, _ in own), 3),
                    "run_seconds": round(statistics.fmean(row["seconds"] for row, _ in own), 1),
                }
            )
    half = len(true) // 2
    return {"table": table, "kid_of_true_views": round(1000 * kid(true[:half], true[half:]), 1)}


def _views(strip: np.ndarray) -> Tensor:
    """Return the views of a strip as uint8 [n, 3, S, S]."""
    side = strip.shape[0]
    return torch.from_numpy(strip.copy()).reshape(side, -1, side, 3).permute(1, 3, 0, 2)


def _true(runner: Runner, texts: Sequence[str]) -> Tensor:
    """Return views around rendered objects of the captions on white, in [0, 1]; each half shows every caption."""
    size, seeds = runner.prior.image_size, range(TRUE_EACH)
    around = ToyboxSource(front_share=3 / JANUS_VIEWS)  # as many fronts as a turn around the object has
    rgba = [
        around.draw(around.key(text), JANUS_VIEWS, size, 1 + seed).float() / 255 for seed in seeds for text in texts
    ]
    return torch.cat([part[:, :3] + (1 - part[:, 3:]) for part in rgba])


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the table for the console."""
    head = f"{'':18}{'object':>8}{'colour':>8}{'KID':>8}{'kept':>7}{'s':>7}"
    rows = (
        f"{row['method']:18}{row['object']:8.0%}{row['colour']:8.0%}{row['kid']:8.0f}{row['kept']:7.2f}"
        f"{row['run_seconds']:7.0f}"
        for row in summary["table"]
    )
    return [head, *rows, f"KID of two halves of the true views: {summary['kid_of_true_views']:.0f}"]


def shown(found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Return caption and strip of every method for the first object, and of sketch and preset for the others."""
    order = sorted(found, key=lambda one: OBJECTS.index(one[0]["object"]))
    first = order[0][0]["object"]
    kept = [(row, strip) for row, strip in order if row["object"] == first or row["method"] in (START, PRESETS_OWN)]
    return [(f"{row['prompt']}, {row['method']}", strip) for row, strip in kept]
