"""On how many sides does a front grow, loss against loss? View words are off, which is when it grows on several.

Every object is run with every seed and every variant of a loss; figures are the mean over seeds, and over all, with
the sample's standard deviation. The runs of one object and seed differ in nothing but the variant, so differences to
the first variant are those of pairs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdlab.experiments.objects import (
    JANUS_VIEWS,
    Bench,
    Case,
    cases,
    front_strip,
    row_of,
    save_strips,
    true_fronts,
    write_json,
)
from sdlab.experiments.variants import Variant, described, follow
from sdlab.progress import print_above, run_bar

VARIANTS = ("vsd", "esd:lam=0.5", "esd:lam=1")
SEEDS = 3


class Entry(NamedTuple):
    """One run to do."""

    variant: Variant
    case: Case


def entries(variants: Sequence[Variant], names: Sequence[str], seeds: int) -> list[Entry]:
    """Every object with every seed from that of the settings on, variants innermost, view words off."""
    found = []
    for name in names:
        for i in range(seeds):
            for variant in variants:
                (case,) = cases(variant.settings, [name])
                changes = [("seed", variant.settings.seed + i), ("prompt.view_dependent", False)]
                found.append(Entry(variant, case._replace(settings=case.settings.patch_all(changes))))
    return found


def run_janus_losses(bench: Bench, entries: Sequence[Entry], out: Path, planned: int | None = None) -> dict[str, Any]:
    """Distil them, count the views that the judge calls a front, print a line for each object when it is done, write
    janus-losses.json and janus-losses.png into the folder `out`; returns the summary. What is finished is written
    however it ends. The picture holds the turntables of the first seed, with a bar under each view read as a front.
    """

    def work(entry: Entry) -> tuple[Entry, dict[str, Any], np.ndarray] | None:
        course = follow(bench, entry.case, planned)
        if course is None:
            return None
        row = row_of(bench, course.outcome, JANUS_VIEWS)
        figures = {"warm_up_seconds": round(course.warm_up_seconds, 2), "skipped": course.skipped}
        strip = front_strip(course.outcome, row)
        return entry, {**described(entry.variant, bench.settings), **row, **figures}, strip

    labels = list(dict.fromkeys(entry.variant.label for entry in entries))
    rows: list[dict[str, Any]] = []
    strips: list[tuple[str, np.ndarray]] = []
    started = time.perf_counter()
    print(f"views of {JANUS_VIEWS} read as a front, without view words; one front has {true_fronts(bench.settings)}")
    print(f"{'object':12}" + "".join(f"{label:>18}" for label in labels), flush=True)
    try:
        with run_bar(len(entries)) as bar:
            for entry, row, strip in bench.each(entries, work):
                rows.append(row)
                if row["seed"] == bench.settings.seed:
                    strips.append((f"{row['object']}, {entry.variant.title}: {_read(row)}", strip))
                bar.update()
                own = [r for r in rows if r["object"] == row["object"]]
                if len(own) == sum(e.case.object == row["object"] for e in entries):
                    notes = "; ".join(dict.fromkeys(r["note"] for r in own if r["note"]))
                    print_above(f"{_line(row['object'], fronts(own, labels), labels)}   {notes}".rstrip())
    finally:
        summary = _summary(rows, labels, bench, len(entries), time.perf_counter() - started)
        if rows:
            write_json(out / "janus-losses.json", bench, summary, rows)
            if strips:
                captions, pictures = zip(*strips, strict=True)
                save_strips(pictures, captions, out / "janus-losses.png")
    if rows:
        print(_line("all", summary["all"], labels))
        print(f"{'object seen':12}" + "".join(f"{share:>18.0%}" for share in summary["object_share"].values()))
        for label, mean, error, n in summary["differences"]:
            print(f"{label} - {labels[0]}: {mean:+.2f} fronts, standard error {error:.2f}, {n} pairs")
    print(f"{summary['seconds']} s in all; " + (f"results in {out}" if rows else "nothing written"))
    return summary


def _summary(
    rows: Sequence[dict[str, Any]], labels: Sequence[str], bench: Bench, planned: int, seconds: float
) -> dict[str, Any]:
    names = dict.fromkeys(row["object"] for row in rows)
    return {
        "views": JANUS_VIEWS,
        "true_fronts": true_fronts(bench.settings),
        "planned": planned,
        "finished": len(rows),
        "objects": {name: fronts([row for row in rows if row["object"] == name], labels) for name in names},
        "all": fronts(rows, labels),
        "object_share": {label: _object_share([row for row in rows if row["variant"] == label]) for label in labels},
        "differences": [difference(rows, labels[0], label) for label in labels[1:]],
        "seconds": round(seconds, 1),
    }


def fronts(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Views read as a front for each variant: mean and standard deviation over its runs, and how many there are."""
    found = {}
    for label in labels:
        votes = [row["front_votes"] for row in rows if row["variant"] == label]
        if votes:
            found[label] = {"mean": round(statistics.fmean(votes), 2), "spread": _spread(votes), "runs": len(votes)}
    return found


def difference(rows: Sequence[dict[str, Any]], first: str, other: str) -> tuple[str, float, float, int]:
    """`other`, how many fronts more it has than `first`, the standard error of that, and over how many pairs."""
    by_run = {(row["variant"], row["object"], row["seed"]): row["front_votes"] for row in rows}
    pairs = [
        votes - by_run[first, name, seed]
        for (label, name, seed), votes in by_run.items()
        if label == other and (first, name, seed) in by_run
    ]
    mean = round(statistics.fmean(pairs), 2) if pairs else 0.0
    return other, mean, round(_spread(pairs) / max(len(pairs), 1) ** 0.5, 2), len(pairs)


def _spread(values: Sequence[float]) -> float:
    return round(statistics.stdev(values), 2) if len(values) > 1 else 0.0


def _object_share(rows: Sequence[dict[str, Any]]) -> float:
    """A front means little on what is not the object."""
    return sum(row["object_votes"] for row in rows) / max(sum(row["views"] for row in rows), 1)


def _line(name: str, found: dict[str, dict[str, float]], labels: Sequence[str]) -> str:
    cells = (f"{found[x]['mean']:.1f} +- {found[x]['spread']:.1f}" if x in found else "-" for x in labels)
    return f"{name:12}" + "".join(f"{cell:>18}" for cell in cells)


def _read(row: dict[str, Any]) -> str:
    return f"{row['front_votes']} of {JANUS_VIEWS} read as a front, {row['steps']} steps in {row['seconds']:.0f} s"
