"""How many fronts ESD grows for each lambda where its effect exists: exact scores of an object's own views.

The prior knows one object from all sides, and most of its images show the front (preset `gallery-esd-views`). psi is
exact, so nothing is learnt: with lambda = 0, which is VSD, every camera climbs to a likely view, mostly a front. With
lambda = 1 all cameras together are to show what the prior shows.

Fronts, IV and IQ are read by the prior's own posterior over its images (`sdlab.priors.sides`).
"""

from __future__ import annotations

import math
import statistics
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sdlab.arguments import listed, real
from sdlab.cameras import turntable
from sdlab.experiments.journal import key_of
from sdlab.experiments.objects import (
    RED,
    STRIP_SIZE,
    Case,
    Runner,
    cases,
    views_around,
    write_json,
)
from sdlab.experiments.series import Made, Series
from sdlab.experiments.six import image_stats
from sdlab.experiments.variants import TracedRun, run_case
from sdlab.export.writers import render_turntable
from sdlab.metrics.entropies import entropy
from sdlab.priors import sides
from sdlab.priors.gallery import GalleryPrior, GalleryScores
from sdlab.priors.sources.toybox import circle
from sdlab.settings import Settings
from sdlab.toybox.judge import data_camera
from sdlab.toybox.readings import JANUS_VIEWS

PRESET = "gallery-esd-views"
LAMBDAS = (0.0, 0.5, 0.7, 0.85, 1.0)
MEASURES = ("fronts", "iv", "iq")


class Entry(NamedTuple):
    """A run to do."""

    lam: float
    case: Case


def parse_lambdas(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of a list such as "0,0.5,1" in ascending order, or LAMBDAS for "".

    Raises ValueError that names `option` for anything but numbers from 0 to 1.
    """
    found = set()
    for word in listed(text):
        try:
            found.add(real(0, 1)(word))
        except ArgumentTypeError as e:
            raise ValueError(f"{option} {text}: {e}") from e
    return tuple(sorted(found)) or LAMBDAS


def entries(s: Settings, names: Sequence[str], lambdas: Sequence[float], seeds: int) -> list[Entry]:
    """Return every object with every lambda and `seeds` seeds, counted up from the settings' own, seeds changing last.

    Raises ValueError unless the prior is a gallery of one object's views and psi is exact.
    """
    if not (isinstance(s.prior, GalleryPrior) and s.prior.one_object):
        raise ValueError(
            "bench esd needs prior.kind = gallery with prior.one_object = true, as in the preset " + PRESET
        )
    found = []
    for i in range(seeds):
        for case in cases(s, names):
            for lam in lambdas:
                changes = [("active", "esd"), ("losses.esd.lam", lam), ("seed", s.seed + i)]
                found.append(Entry(lam, case._replace(settings=case.settings.patch_all(changes))))
    return found


def run(runner: Runner, entries: Sequence[Entry], out: Path) -> dict[str, Any]:
    """Distil the entries, print a line for each and a table over lambda, and return the summary.

    Writes esd.json, esd.png (fronts and variety over lambda) and esd-views.png (turntables of the first seed, with a
    bar under each front) to the folder `out`. Every run is written to runs.jsonl as it finishes, and a run that is
    found there is not repeated.
    """

    def key(entry: Entry) -> str:
        return key_of(entry.case.settings, "bench esd", entry.case.settings.steps)

    def work(entry: Entry) -> Made | None:
        done = run_case(runner, entry.case, entry.case.settings.steps)
        if done is None:
            return None
        row = _row(runner, entry, done)
        return row, _strip(done, row)

    started = time.perf_counter()
    series = Series(runner, entries, out, key)
    try:
        series.make(work, lambda e, row: f"{row['object']:10}lambda {e.lam:<5g}seed {row['seed']}: {_read(row)}")
    finally:
        finished = series.finished()
        rows = [row for _, row in finished]
        summary = _summary(rows, runner, len(entries), time.perf_counter() - started)
        if rows:
            write_json(out / "esd.json", runner, summary, rows)
            plot(summary, out / "esd.png")
            series.save_first_seed(finished, _title, out / "esd-views.png")
    if rows:
        _print(summary)
    print(f"{summary['seconds']} s in total; " + (f"results in {out}" if rows else "nothing written"))
    return summary


def _title(entry: Entry, row: dict[str, Any]) -> str:
    return f"{row['object']}, lambda {entry.lam:g}: {_read(row)}"


# ---- one run -----------------------------------------------------------------------------------------------------


def _row(runner: Runner, entry: Entry, done: TracedRun) -> dict[str, Any]:
    s, outcome = entry.case.settings, done.outcome
    prior = runner.prior
    if not isinstance(prior, GalleryScores):
        raise TypeError(f"{prior.name}: expected a gallery")
    cams = turntable(JANUS_VIEWS, data_camera(s.camera), prior.image_size)
    with torch.no_grad():
        z = prior.encode(outcome.sides.render(cams, torch.ones(len(cams), 3)).rgb)
    reading = sides.shown(z, prior, s.prompt.text)
    looks = image_stats(views_around(runner, outcome, JANUS_VIEWS), digits=6)
    return {
        "object": entry.case.object,
        "prompt": s.prompt.text,
        "lambda": entry.lam,
        "seed": s.seed,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        "note": outcome.note,
        **reading._asdict(),
        **looks,
    }


def _strip(done: TracedRun, row: dict[str, Any]) -> np.ndarray:
    camera = data_camera(done.outcome.case.settings.camera)
    views = render_turntable(done.outcome.sides, camera, JANUS_VIEWS, STRIP_SIZE)
    for image, front in zip(views, row["per_view"], strict=True):
        if front > 0.5:
            image[-4:, 8:-8] = RED
    return np.concatenate(list(views), axis=1)


def _read(row: dict[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] else ""
    entropies = f"IV {row['iv']:.2f}, IQ {row['iq']:.2f}"
    return f"{row['fronts']:.1f} fronts of {JANUS_VIEWS}, {entropies}, {row['seconds']:.0f} s{note}"


# ---- over lambda -------------------------------------------------------------------------------------------------


def _summary(rows: Sequence[dict[str, Any]], runner: Runner, planned: int, seconds: float) -> dict[str, Any]:
    lambdas = sorted({row["lambda"] for row in rows})
    names = list(dict.fromkeys(row["object"] for row in rows))
    prior = runner.settings.prior
    share = getattr(prior, "front_share", 0.0)
    of_prior = JANUS_VIEWS * share
    vsd = {name: _statistics(rows, 0.0, "fronts", name)[0] for name in names}
    return {
        "views": JANUS_VIEWS,
        "prior_fronts": round(of_prior, 2),
        "prior_iv": round(prior_variety(share, getattr(prior, "images", 1)), 3),
        "planned": planned,
        "finished": len(rows),
        "table": [_line_of(rows, lam) for lam in lambdas],
        "objects": {name: [line for lam in lambdas if (line := _line_of(rows, lam, name))["runs"]] for name in names},
        "no_more_fronts_than_the_prior": [n for n, fronts in vsd.items() if fronts is not None and fronts <= of_prior],
        "seconds": round(seconds, 1),
    }


def prior_variety(front_share: float, images: int) -> float:
    """Return the entropy in nats of the azimuths of the prior's own images."""
    counts = torch.unique(torch.tensor(circle(images, front_share)), return_counts=True)[1].double()
    return float(entropy(counts / counts.sum()))


def _line_of(rows: Sequence[dict[str, Any]], lam: float, name: str | None = None) -> dict[str, Any]:
    """Return mean and standard error of every measure, the number of runs, and the differences from lambda 0."""
    own = [row for row in rows if row["lambda"] == lam and name in (None, row["object"])]
    found: dict[str, Any] = {"lambda": lam, "runs": len(own)}
    for measure in MEASURES:
        found[measure], found[f"{measure}_error"] = _statistics(rows, lam, measure, name)
    base = {(row["object"], row["seed"]): row["fronts"] for row in rows if row["lambda"] == 0.0}
    pairs = [row["fronts"] - base[at] for row in own if (at := (row["object"], row["seed"])) in base]
    found["less_than_vsd"], found["less_than_vsd_error"] = _mean_and_error([-d for d in pairs])
    return found


def _statistics(
    rows: Sequence[dict[str, Any]], lam: float, measure: str, name: str | None = None
) -> tuple[float | None, float | None]:
    return _mean_and_error([r[measure] for r in rows if r["lambda"] == lam and name in (None, r["object"])])


def _mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and standard error, None where there are too few values."""
    mean = round(statistics.fmean(values), 3) if values else None
    return mean, round(statistics.stdev(values) / math.sqrt(len(values)), 3) if len(values) > 1 else None


def _print(summary: dict[str, Any]) -> None:
    print(
        f"the prior's own images: {summary['prior_fronts']:.1f} fronts of {JANUS_VIEWS}, IV {summary['prior_iv']:.2f}"
    )
    print(f"{'lambda':>6}{'runs':>6}{'fronts':>16}{'fewer than VSD':>18}{'IV':>16}{'IQ':>16}")
    for line in summary["table"]:
        cells = ("fronts", 16), ("less_than_vsd", 18), ("iv", 16), ("iq", 16)
        text = "".join(_cell(line[k], line[f"{k}_error"]).rjust(width) for k, width in cells)
        print(f"{line['lambda']:6g}{line['runs']:6}{text}")
    for name, lines in summary["objects"].items():
        print(
            f"{name:12}" + "".join(f"{line['lambda']:>6g}: {line['fronts']:4.1f}, {line['iv']:.2f}" for line in lines)
        )
    if summary["no_more_fronts_than_the_prior"]:
        names = ", ".join(summary["no_more_fronts_than_the_prior"])
        print(
            f"cannot show that ESD reduces the fronts of {names}: VSD shows no more of them than the prior; IV is the "
            "measure there"
        )


def _cell(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if error is None else f"{mean:.2f} +- {error:.2f}"


def plot(summary: dict[str, Any], file: Path) -> None:
    """Plot fronts and variety over lambda with standard errors, and the prior's own as dashed lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = (("fronts", f"fronts of {JANUS_VIEWS} views"), ("iv", "variety of the views, IV, in nats"))
    charts = figure.subplots(1, len(panels))
    for axes, (measure, title) in zip(charts, panels, strict=True):
        lambdas = [line["lambda"] for line in summary["table"]]
        for name, lines in summary["objects"].items():
            axes.plot(*([line[k] for line in lines] for k in ("lambda", measure)), linewidth=0.8, alpha=0.5, label=name)
        means = [line[measure] for line in summary["table"]]
        errors = [line[f"{measure}_error"] or 0.0 for line in summary["table"]]
        axes.errorbar(lambdas, means, errors, color="black", marker="o", capsize=3, label="mean")
        axes.axhline(summary[f"prior_{measure}"], color="gray", linestyle="--", label="prior's own images")
        axes.set(title=title, xlabel="lambda (0 is VSD)")
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)
