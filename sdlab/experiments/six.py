"""The six losses of the papers beside each other: one prompt, one seed, the same seconds for each.

From equal seeds all losses see the same cameras, timesteps and noise; that is checked by fingerprints of every step,
as far as two runs go together. Where presets differ in what decides about these on purpose, it is said which do.

`bench cutoffs` is the same for one loss, VDM, and the cut-offs of DreamMapping's ablation of DCA (Cai et al. 2024,
section 5.6): a low one is said to over-saturate, a high one to be too smooth. What is made is measured for that:
`saturation`, the mean distance of the largest from the smallest of R, G, B, and `sharpness`, the mean difference of a
pixel from its surroundings, both in [0, 1], over what the judge sees, the background included.

A scene of pictures has no sides: then its own pictures are read, measured and shown, and no fronts are counted.
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
    Bench,
    Case,
    Outcome,
    around,
    front_strip,
    portrait,
    row_of,
    row_read_from,
    save_strips,
    true_fronts,
    write_json,
)
from sdlab.experiments.variants import DEPENDS, Course, Draw, Variant, agreements, described, digests, follow
from sdlab.progress import print_above, run_bar
from sdlab.prompts import PromptBank
from sdlab.scenes import FlatScene
from sdlab.toybox.asked import asked_for
from sdlab.toybox.figures import fine_detail, saturation

SIX = ("sds", "vsd", "esd", "vdm", "sbp", "jsd")
CUTOFFS = (0, 100, 300, 500)  # of DCA: none, and those of its paper's ablation
STRIP_ROWS = 2  # of turntable views beside a portrait
SHOWN = 8  # pictures of a scene that has no sides
GAP = 12  # pixels between a portrait and its turntable


class Finished(NamedTuple):
    """What is kept of a run."""

    variant: Variant
    row: dict[str, Any]
    picture: np.ndarray
    draws: list[Draw]


def run_six(
    bench: Bench, variants: Sequence[Variant], out: Path, planned: int | None = None, called: str = "six"
) -> dict[str, Any]:
    """Distil each variant, print a line when it is done, write six.json and six.png, or as it is `called`, into the
    folder `out`; returns the summary. What is finished is written however it ends.

    RuntimeError, after that, when two runs drew differently and no knob says why.
    """
    name, colour = asked_for(bench.settings.prompt.text)

    def work(variant: Variant) -> Finished | None:
        course = follow(bench, Case(name, colour, variant.settings), planned)
        if course is None:
            return None
        picture, row = _judged(bench, course)
        return Finished(variant, {**described(variant, bench.settings), **row}, picture, course.draws)

    finished: list[Finished] = []
    started = time.perf_counter()
    has_sides = "means" in bench.settings.scene.parameters
    fronts = f"; an object with one front has {true_fronts(bench.settings)} of them" if has_sides else ""
    print(f'"{bench.settings.prompt.text}"{fronts}')
    width = 2 + max(len(variant.label) for variant in variants)
    print(
        f"{'loss':{width}}{'steps':>7}{'seconds':>9}{'warm-up':>9}{'object':>8}{'colour':>8}{'fronts':>8}{'saturat.':>10}{'sharpn.':>9}",
        flush=True,
    )
    try:
        with run_bar(len(variants)) as bar:
            for one in bench.each(variants, work):
                finished.append(one)
                bar.update()
                print_above(f"{one.variant.label:{width}}{_line(one.row)}   {one.row['note']}".rstrip())
    finally:
        summary = _summary(finished, bench, len(variants), time.perf_counter() - started)
        if finished:
            write_json(out / f"{called}.json", bench, summary, [one.row for one in finished])
            save_sheet(finished, out / f"{called}.png")
    for row in (row for row in summary["draws"] if row["steps_compared"]):
        print(_agreement_line(row, finished[0].variant.label))
    print(f"{summary['seconds']} s in all; " + (f"results in {out}" if finished else "nothing written"))
    if summary["unexplained"]:
        raise RuntimeError(f"{', '.join(summary['unexplained'])}: did not draw what {finished[0].variant.label} drew")
    return summary


def _judged(bench: Bench, course: Course) -> tuple[np.ndarray, dict[str, Any]]:
    """The picture of one run and its figures: object and colour over VIEWS views, fronts over JANUS_VIEWS."""
    outcome = course.outcome
    figures = {
        "warm_up_seconds": round(course.warm_up_seconds, 2),
        "evaluations": course.evaluations,
        "skipped": course.skipped,
    }
    if isinstance(outcome.scene, FlatScene):
        shown = _own_pictures(bench, outcome, outcome.scene)
        return side_by_side(shown), {**row_read_from(bench, outcome, shown), **figures, **measured(shown)}
    shown, turned = around(bench, outcome, VIEWS), row_of(bench, outcome, JANUS_VIEWS)
    figures |= {
        "gaussians": int(outcome.scene.params["means"].shape[0]),
        "front_votes": turned["front_votes"],
        "front_views": JANUS_VIEWS,
        "read_around": turned["read"],
    }
    row = {**row_read_from(bench, outcome, shown), **figures, **measured(shown)}
    return beside(portrait(outcome), front_strip(outcome, turned)), row


def _own_pictures(bench: Bench, outcome: Outcome, scene: FlatScene) -> np.ndarray:
    return scene.pictures(bench.prior, PromptBank(bench.prior).prompt(outcome.case.settings.prompt))


def measured(shown: np.ndarray) -> dict[str, float]:
    """Mean saturation and sharpness of uint8 [n, S, S, 3]."""
    rgb = torch.from_numpy(shown).permute(0, 3, 1, 2) / 255
    found = {"saturation": saturation(rgb), "sharpness": fine_detail(rgb)}
    return {name: round(float(each.mean()), 4) for name, each in found.items()}


def _line(row: dict[str, Any]) -> str:
    colour = f"{row['colour_votes']}/{row['views']}" if row["colour"] else "-"
    votes = (f"{row['object_votes']}/{row['views']}", colour, _fronts(row) or "-")
    seconds = f"{row['seconds']:9.1f}{row['warm_up_seconds']:9.1f}"
    looks = f"{row['saturation']:10.3f}{row['sharpness']:9.4f}"
    return f"{row['steps']:7}{seconds}" + "".join(f"{vote:>8}" for vote in votes) + looks


def _fronts(row: dict[str, Any]) -> str:
    return f"{row['front_votes']}/{row['front_views']}" if "front_views" in row else ""


def _summary(finished: Sequence[Finished], bench: Bench, planned: int, seconds: float) -> dict[str, Any]:
    compared = agreements([(one.variant, one.draws) for one in finished]) if finished else []
    common = min((len(one.draws) for one in finished), default=0)
    return {
        "prompt": bench.settings.prompt.text,
        "planned": planned,
        "finished": len(finished),
        "true_fronts": true_fronts(bench.settings),
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
    told = [f"{same} equal"] if same else []
    told += [f"{name} {row[name]}" for name in DEPENDS if row[name] != "equal"]
    return f"{row['variant']} against {first}, {row['steps_compared']} steps: {'; '.join(told)}"


def beside(picture: np.ndarray, strip: np.ndarray) -> np.ndarray:
    """A portrait [P, P, 3] with its turntable [S, n S, 3] at its right, in STRIP_ROWS rows, before white."""
    block = np.concatenate(np.split(strip, STRIP_ROWS, axis=1), axis=0)
    height = max(picture.shape[0], block.shape[0])
    parts = [picture, np.empty((0, GAP, 3), np.uint8), block]
    return np.concatenate(
        [np.pad(part, ((0, height - part.shape[0]), (0, 0), (0, 0)), constant_values=255) for part in parts], axis=1
    )


def side_by_side(shown: np.ndarray) -> np.ndarray:
    """The first SHOWN of uint8 [n, S, S, 3] in a row, each as large as a portrait, its pixels to be seen."""
    size = (PORTRAIT_SIZE, PORTRAIT_SIZE)
    enlarged = [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.NEAREST)) for x in shown[:SHOWN]]
    return np.concatenate(enlarged, axis=1)


def save_sheet(finished: Sequence[Finished], path: Path) -> None:
    """A row for each run: the portrait and the turntable with a bar under each view read as a front; or its
    pictures."""
    captions = [f"{one.variant.title}: {_caption(one.row)}" for one in finished]
    save_strips([one.picture for one in finished], captions, path)


def _caption(row: dict[str, Any]) -> str:
    colour = f", colour {row['colour_votes']}/{row['views']}" if row["colour"] else ""
    fronts = f", fronts {_fronts(row)}" if _fronts(row) else ""
    read = f"object {row['object_votes']}/{row['views']}{colour}{fronts}"
    looks = f"saturation {row['saturation']:.3f}, sharpness {row['sharpness']:.4f}"
    failed = f"   {row['note']}" if row["note"] else ""
    return f"{row['steps']} steps in {row['seconds']:.0f} s;   {read};   {looks}{failed}"
