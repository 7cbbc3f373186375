"""Tables and figures of the papers that compare 3D objects, measured over 120 views of each.

`sdlab.experiments.tables` names them. Every variant of a loss makes the same objects with the same seeds; a run is
journalled, so that an interrupted experiment continues where it ended. Of each run are measured, on white, as
`sdlab.experiments.reader` defines them:

    iq, iv        quality and variety of the views
    fid, kid      distance of the views to the prior's own images of the prompt, `REFERENCES` of them
    fronts        views of 12 that the judge reads as a front
    saturation    mean of max(R, G, B) - min(R, G, B)
    sharpness     mean difference of a pixel from its surroundings

With a gallery of one object's own views, which has an exact classifier, iq, iv and fronts are those of
`sdlab.experiments.esd_views`: the prior's posterior over the sides replaces the judge.

And over the runs of one object, which differ in their seeds, the diversity: `iv` of all views of all runs, and the
`likeness` of the runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sdlab.experiments.journal import key_of
from sdlab.experiments.objects import (
    STRIP_SIZE,
    Case,
    Outcome,
    Runner,
    cases,
    views_around,
    write_json,
)
from sdlab.experiments.reader import Reader, channels_first, entropies, likeness
from sdlab.experiments.references import prior_images
from sdlab.experiments.series import Made, Series
from sdlab.experiments.six import image_stats
from sdlab.experiments.variants import Variant, describe, run_case
from sdlab.export.writers import render_turntable
from sdlab.metrics.distances import fid, kid
from sdlab.metrics.entropies import variety
from sdlab.pictures import to_uint8
from sdlab.priors import sides
from sdlab.priors.gallery import GalleryScores
from sdlab.toybox.judge import data_camera
from sdlab.toybox.readings import JANUS_VIEWS
from sdlab.toybox.words import FRONT

VIEWS = 120  # as in the ESD and JSD papers
SHOWN = 8  # of them on the contact sheet
REFERENCES = {"gallery": 512}  # images of the prior by its kind; a network has to draw each
SAMPLES = 128  # of any other prior
MEASURES = ("fronts", "iq", "iv", "fid", "kid", "saturation", "sharpness", "seconds")
HIDDEN = ("answers", "features")  # of a row, kept in the journal alone


class Entry(NamedTuple):
    """A run to do."""

    variant: Variant
    case: Case


def entries(variants: Sequence[Variant], names: Sequence[str], seeds: int) -> list[Entry]:
    """Return every object in every variant with `seeds` seeds, counted up from the settings' own; seeds change last."""
    return [
        Entry(variant, case._replace(settings=case.settings.patch("seed", variant.settings.seed + i)))
        for i in range(seeds)
        for name in names
        for variant in variants
        for case in cases(variant.settings, [name])
    ]


def run_views(
    runner: Runner, entries: Sequence[Entry], out: Path, called: str, planned: int | None = None
) -> dict[str, Any]:
    """Distil the entries, print a line for each and a table, and return the summary.

    Writes <called>.json and <called>.png (views of the first seed) to the folder `out`. Every run is written to
    runs.jsonl as it finishes, and a run that is found there is not repeated.
    """
    reader = Reader()
    against: dict[str, Tensor] = {}  # features of the prior's own images by prompt

    def key(entry: Entry) -> str:
        limit = planned or f"{runner.seconds:g} s"
        return key_of(entry.case.settings, "views", entry.variant.label, limit, runner.prior.name)

    def work(entry: Entry) -> Made | None:
        run = run_case(runner, entry.case, planned)
        if run is None:
            return None
        text = entry.case.settings.prompt.text
        if text not in against:
            against[text] = _reference(runner, reader, entry.case)
        row = _row(runner, reader, run.outcome, against[text])
        strip = render_turntable(run.outcome.sides, data_camera(entry.case.settings.camera), SHOWN, STRIP_SIZE)
        return {**describe(entry.variant, runner.settings), **row}, np.concatenate(list(strip), 1)

    started = time.perf_counter()
    series = Series(runner, entries, out, key)
    try:
        series.make(work, lambda e, row: f"{row['object']:10}{e.variant.label:32}seed {row['seed']}: {_read(row)}")
    finally:
        finished = series.finished()
        rows = [row for _, row in finished]
        labels = list(dict.fromkeys(entry.variant.label for entry in entries))
        summary = {
            "table": called,
            "views": VIEWS,
            "planned": len(entries),
            "finished": len(rows),
            "means": {label: means([row for row in rows if row["variant"] == label]) for label in labels},
            "diversity": {label: diversity([row for row in rows if row["variant"] == label]) for label in labels},
            "seconds": round(time.perf_counter() - started, 1),
        }
        if rows:
            shown = [{name: value for name, value in row.items() if name not in HIDDEN} for row in rows]
            write_json(out / f"{called}.json", runner, summary, shown)
            by_object = sorted(finished, key=lambda pair: pair[1]["object"])
            series.save_first_seed(by_object, _title, out / f"{called}.png")
    if rows:
        _print(summary)
    print(f"{summary['seconds']} s in total; " + (f"results in {out}" if rows else "nothing written"))
    return summary


def _title(entry: Entry, row: Mapping[str, Any]) -> str:
    return f"{row['object']}, {entry.variant.title}: {_read(row)}"


# ---- one run -----------------------------------------------------------------------------------------------------


def _reference(runner: Runner, reader: Reader, case: Case) -> Tensor:
    s = case.settings
    scale = float(getattr(s.loss, s.loss.guidance_knob, 1.0)) if s.loss.guidance_knob else 1.0
    shown = prior_images(runner.prior, s.prompt.text, REFERENCES.get(s.prior.kind, SAMPLES), scale)
    return reader.features(np.ascontiguousarray(to_uint8(shown)))


def _row(runner: Runner, reader: Reader, outcome: Outcome, against: Tensor) -> dict[str, Any]:
    shown = views_around(runner, outcome, VIEWS)
    answers, features = reader.answers(shown), reader.features(shown)
    twelve = slice(0, VIEWS, VIEWS // JANUS_VIEWS)
    read = runner.read(shown[twelve])
    fronts: float = sum(truth.view == FRONT for truth in read)
    iq, iv = entropies(answers)
    s = outcome.case.settings
    if isinstance(runner.prior, GalleryScores) and sides.knows(runner.prior.config):
        exact = sides.shown(encoded(shown, runner), runner.prior, s.prompt.text)
        fronts, iq, iv = exact.fronts * JANUS_VIEWS / VIEWS, exact.iq, exact.iv
    return {
        "object": outcome.case.object,
        "prompt": s.prompt.text,
        "seed": s.seed,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        "note": outcome.note,
        "object_share": round(sum(truth.object == outcome.case.object for truth in read) / len(read), 3),
        "fronts": fronts,
        "iq": round(iq, 4),
        "iv": round(iv, 4),
        "fid": round(fid(features, against), 4),
        "kid": round(kid(features, against), 5),
        **image_stats(shown, digits=6),
        "answers": {name: _rounded(p.mean(0)) for name, p in answers.items()},
        "features": [_rounded(each) for each in features[twelve]],
    }


def encoded(shown: UInt8[np.ndarray, "n S S 3"], runner: Runner) -> Tensor:
    """Return images as z [n, C, S, S] of the prior."""
    rgb = channels_first(shown).float() / 255
    with torch.no_grad():
        return runner.prior.encode(rgb.to(runner.device)).cpu()


def _rounded(x: Tensor) -> list[float]:
    return [round(value, 4) for value in x.tolist()]


def _read(row: Mapping[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] else ""
    return (
        f"FID {row['fid']:.2f}, IQ {row['iq']:.2f}, IV {row['iv']:.2f}, {row['fronts']:.3g} fronts, saturation "
        f"{row['saturation']:.3f}, sharpness {row['sharpness']:.4f}, {row['seconds']:.0f} s{note}"
    )


# ---- over the runs -----------------------------------------------------------------------------------------------


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of every measure over the rows."""
    found = {}
    for measure in MEASURES if rows else ():
        values = [row[measure] for row in rows]
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        found[measure] = {"mean": round(statistics.fmean(values), 4), "std": round(std, 4), "runs": len(values)}
    return found


def diversity(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, by object, `iv` over all views of its runs and their `likeness`; objects with one run have none."""
    found = {}
    for name in dict.fromkeys(row["object"] for row in rows):
        own = [row for row in rows if row["object"] == name]
        if len(own) > 1:
            answers = [torch.tensor([row["answers"][question] for row in own]) for question in own[0]["answers"]]
            found[name] = {
                "iv": round(sum(variety(p) for p in answers), 4),
                "likeness": round(likeness([torch.tensor(row["features"]) for row in own]), 4),
                "runs": len(own),
            }
    return found


def _print(summary: dict[str, Any]) -> None:
    print(f"{'':32}" + "".join(f"{measure:>16}" for measure in MEASURES))
    for label, found in summary["means"].items():
        cells = (f"{x['mean']:.3g} ± {x['std']:.2g}" for x in found.values())
        print(f"{label:32}" + "".join(f"{cell:>16}" for cell in cells))
    for label, found in summary["diversity"].items():
        if found:
            parts = (f"{name} IV {x['iv']:.2f}, likeness {x['likeness']:.3f}" for name, x in found.items())
            print(f"diversity over seeds, {label}: {'; '.join(parts)}")
