"""Compare six losses of the papers: one prompt, one seed, equal time.

With equal seeds, all losses see the same cameras, timesteps and noise. Fingerprints of every step verify this over the
steps that two runs have in common. Where presets differ on purpose in a knob that matters here, the knob is reported.

`bench cutoffs` does the same for one loss, VDM, and the cut-offs in DreamMapping's ablation of DCA (Cai et al. 2024,
section 5.6), where a low cut-off over-saturates and a high one is too smooth. Two statistics measure this:
`saturation`, the mean of max(R, G, B) - min(R, G, B), and `sharpness`, the mean difference of a pixel from its
surroundings. Both are in [0, 1] and cover the images that the judge sees, including the background.

An image scene has no sides: its own images are read, measured and shown, and no fronts are counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sdlab.experiments.objects import (
    JANUS_VIEWS,
    PORTRAIT_SIZE,
    VIEWS,
    Case,
    Outcome,
    Runner,
    front_strip,
    portrait,
    row_from,
    row_of,
    save_strips,
    true_fronts,
    views_around,
    write_json,
)
from sdlab.experiments.variants import DEPENDS, Draw, TracedRun, Variant, agreements, describe, digests, run_case
from sdlab.metrics.images import saturation, sharpness
from sdlab.progress import print_above, run_bar
from sdlab.prompts import PromptBank
from sdlab.scenes import FlatScene
from sdlab.toybox.asked import asked_for

SIX = ("sds", "vsd", "esd", "vdm", "sbp", "jsd")
CUTOFFS = (0, 100, 300, 500)  # of DCA: none, and the three in the paper's ablation
STRIP_ROWS = 2  # rows of turntable views beside a portrait
SHOWN = 8  # images shown of an image scene
GAP = 12  # pixels between a portrait and its turntable


class Finished(NamedTuple):
    """What is kept of a finished run."""

    variant: Variant
    row: dict[str, Any]
    image: np.ndarray
    draws: list[Draw]


def run_six(
    runner: Runner, variants: Sequence[Variant], out: Path, planned: int | None = None, called: str = "six"
) -> dict[str, Any]:
    """Distil each variant, printing a line for each, and return the summary.

    Writes <called>.json and <called>.png to the folder `out`; results so far are written even if it is interrupted or
    fails. Afterwards raises RuntimeError if two runs drew different random numbers and no knob explains it.
    """
    name, colour = asked_for(runner.settings.prompt.text)

    def work(variant: Variant) -> Finished | None:
        run = run_case(runner, Case(name, colour, variant.settings), planned)
        if run is None:
            return None
        image, row = _judged(runner, run)
        return Finished(variant, {**describe(variant, runner.settings), **row}, image, run.draws)

    finished: list[Finished] = []
    started = time.perf_counter()
    has_sides = "means" in runner.settings.scene.parameters
    fronts = f"; an object with one front has {true_fronts(runner.settings)} of them" if has_sides else ""
    print(f'"{runner.settings.prompt.text}"{fronts}')
    width = 2 + max(len(variant.label) for variant in variants)
    print(
        f"{'loss':{width}}{'steps':>7}{'seconds':>9}{'warm-up':>9}{'object':>8}{'colour':>8}{'fronts':>8}{'saturat.':>10}{'sharpn.':>9}",
        flush=True,
    )
    try:
        with run_bar(len(variants)) as bar:
            for one in runner.each(variants, work):
                finished.append(one)
                bar.update()
                print_above(f"{one.variant.label:{width}}{_line(one.row)}   {one.row['note']}".rstrip())
    finally:
        summary = _summary(finished, runner, len(variants), time.perf_counter() - started)
        if finished:
            write_json(out / f"{called}.json", runner, summary, [one.row for one in finished])
            save_sheet(finished, out / f"{called}.png")
    for row in (row for row in summary["draws"] if row["steps_compared"]):
        print(_agreement_line(row, finished[0].variant.label))
    print(f"{summary['seconds']} s in total; " + (f"results in {out}" if finished else "nothing written"))
    if summary["unexplained"]:
        raise RuntimeError(
            f"{', '.join(summary['unexplained'])}: drew other random numbers than {finished[0].variant.label}"
        )
    return summary


def _judged(runner: Runner, run: TracedRun) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the image of one run and its results: object and colour over VIEWS views, fronts over JANUS_VIEWS."""
    outcome = run.outcome
    stats = {
        "warm_up_seconds": round(run.warm_up_seconds, 2),
        "evaluations": run.evaluations,
        "skipped": run.skipped,
    }
    if isinstance(outcome.scene, FlatScene):
        shown = _own_images(runner, outcome, outcome.scene)
        return side_by_side(shown), {**row_from(runner, outcome, shown), **stats, **image_stats(shown)}
    shown, turned = views_around(runner, outcome, VIEWS), row_of(runner, outcome, JANUS_VIEWS)
    stats |= {
        "gaussians": int(outcome.scene.params["means"].shape[0]),
        "front_votes": turned["front_votes"],
        "front_views": JANUS_VIEWS,
        "read_around": turned["read"],
    }
    row = {**row_from(runner, outcome, shown), **stats, **image_stats(shown)}
    return beside(portrait(outcome), front_strip(outcome, turned)), row


def _own_images(runner: Runner, outcome: Outcome, scene: FlatScene) -> np.ndarray:
    return scene.pictures(runner.prior, PromptBank(runner.prior).prompt(outcome.case.settings.prompt))


def image_stats(shown: np.ndarray, digits: int = 4) -> dict[str, float]:
    """Return the mean saturation and sharpness of images, uint8 [n, S, S, 3], rounded to `digits` decimals."""
    rgb = torch.from_numpy(shown).permute(0, 3, 1, 2) / 255
    found = {"saturation": saturation(rgb), "sharpness": sharpness(rgb)}
    return {name: round(float(each.mean()), digits) for name, each in found.items()}


def _line(row: dict[str, Any]) -> str:
    colour = f"{row['colour_votes']}/{row['views']}" if row["colour"] else "-"
    votes = (f"{row['object_votes']}/{row['views']}", colour, _fronts(row) or "-")
    seconds = f"{row['seconds']:9.1f}{row['warm_up_seconds']:9.1f}"
    looks = f"{row['saturation']:10.3f}{row['sharpness']:9.4f}"
    return f"{row['steps']:7}{seconds}" + "".join(f"{vote:>8}" for vote in votes) + looks


def _fronts(row: dict[str, Any]) -> str:
    return f"{row['front_votes']}/{row['front_views']}" if "front_views" in row else ""


def _summary(finished: Sequence[Finished], runner: Runner, planned: int, seconds: float) -> dict[str, Any]:
    compared = agreements([(one.variant, one.draws) for one in finished]) if finished else []
    common = min((len(one.draws) for one in finished), default=0)
    return {
        "prompt": runner.settings.prompt.text,
        "planned": planned,
        "finished": len(finished),
        "true_fronts": true_fronts(runner.settings),
        "seconds": round(seconds, 1),
        "draws": [agreement.row() for agreement in compared],
        "unexplained": [agreement.label for agreement in compared if agreement.unexplained],
        "digests": {
            "steps": common,
            "of": [{"variant": one.variant.label, **digests(one.draws[:common])} for one in finished],
        },
    }


def _agreement_line(row: dict[str, Any], first: str) -> str:
    same = ", ".join(name for name in DEPENDS if row[name] == "equal")
    parts = [f"{same} equal"] if same else []
    parts += [f"{name} {row[name]}" for name in DEPENDS if row[name] != "equal"]
    return f"{row['variant']} against {first}, {row['steps_compared']} steps: {'; '.join(parts)}"


def beside(image: np.ndarray, strip: np.ndarray) -> np.ndarray:
    """Place a turntable [S, n S, 3] in STRIP_ROWS rows to the right of a portrait [P, P, 3], on white."""
    block = np.concatenate(np.split(strip, STRIP_ROWS, axis=1), axis=0)
    height = max(image.shape[0], block.shape[0])
    parts = [image, np.empty((0, GAP, 3), np.uint8), block]
    return np.concatenate(
        [np.pad(part, ((0, height - part.shape[0]), (0, 0), (0, 0)), constant_values=255) for part in parts], axis=1
    )


def side_by_side(shown: np.ndarray) -> np.ndarray:
    """Return the first SHOWN of uint8 [n, S, S, 3] in a row, each enlarged to a portrait with visible pixels."""
    size = (PORTRAIT_SIZE, PORTRAIT_SIZE)
    enlarged = [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.NEAREST)) for x in shown[:SHOWN]]
    return np.concatenate(enlarged, axis=1)


def save_sheet(finished: Sequence[Finished], path: Path) -> None:
    """Write one row per run: portrait and turntable with a bar under each view read as a front, or the run's images."""
    captions = [f"{one.variant.title}: {_caption(one.row)}" for one in finished]
    save_strips([one.image for one in finished], captions, path)


def _caption(row: dict[str, Any]) -> str:
    colour = f", colour {row['colour_votes']}/{row['views']}" if row["colour"] else ""
    fronts = f", fronts {_fronts(row)}" if _fronts(row) else ""
    read = f"object {row['object_votes']}/{row['views']}{colour}{fronts}"
    looks = f"saturation {row['saturation']:.3f}, sharpness {row['sharpness']:.4f}"
    failed = f"   {row['note']}" if row["note"] else ""
    return f"{row['steps']} steps in {row['seconds']:.0f} s;   {read};   {looks}{failed}"
