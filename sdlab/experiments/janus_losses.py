"""Compare how many fronts each loss grows without view words in the prompt, when one object may grow several.

Every object is run with every seed and every variant of a loss. Results are means over seeds, and over all runs, with
the sample standard deviation. Runs of the same object and seed differ only in the variant, so differences from the
first variant are paired.
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
    Case,
    Runner,
    cases,
    front_strip,
    row_of,
    save_strips,
    true_fronts,
    write_json,
)
from sdlab.experiments.variants import Variant, describe, run_case
from sdlab.progress import print_above, run_bar

VARIANTS = ("vsd", "esd:lam=0.5", "esd:lam=1")
SEEDS = 3


class Entry(NamedTuple):
    """A run to do."""

    variant: Variant
    case: Case


def entries(variants: Sequence[Variant], names: Sequence[str], seeds: int) -> list[Entry]:
    """Return every object with `seeds` seeds, counted up from the settings' own, in every variant; no view words."""
    found = []
    for name in names:
        for i in range(seeds):
            for variant in variants:
                (case,) = cases(variant.settings, [name])
                changes = [("seed", variant.settings.seed + i), ("prompt.view_dependent", False)]
                found.append(Entry(variant, case._replace(settings=case.settings.patch_all(changes))))
    return found


def run_janus_losses(runner: Runner, entries: Sequence[Entry], out: Path, planned: int | None = None) -> dict[str, Any]:
    """Distil the entries and count the views that the judge reads as a front, printing a line for each object.

    Returns the summary, and writes it to janus-losses.json in the folder `out`. janus-losses.png shows the turntables
    of the first seed, with a bar under each view read as a front. Results so far are written even if it is interrupted
    or fails.
    """

    def work(entry: Entry) -> tuple[Entry, dict[str, Any], np.ndarray] | None:
        run = run_case(runner, entry.case, planned)
        if run is None:
            return None
        row = row_of(runner, run.outcome, JANUS_VIEWS)
        stats = {"warm_up_seconds": round(run.warm_up_seconds, 2), "skipped": run.skipped}
        strip = front_strip(run.outcome, row)
        return entry, {**describe(entry.variant, runner.settings), **row, **stats}, strip

    labels = list(dict.fromkeys(entry.variant.label for entry in entries))
    rows: list[dict[str, Any]] = []
    strips: list[tuple[str, np.ndarray]] = []
    started = time.perf_counter()
    print(f"views of {JANUS_VIEWS} read as a front, without view words; one front has {true_fronts(runner.settings)}")
    print(f"{'object':12}" + "".join(f"{label:>18}" for label in labels), flush=True)
    try:
        with run_bar(len(entries)) as bar:
            for entry, row, strip in runner.each(entries, work):
                rows.append(row)
                if row["seed"] == runner.settings.seed:
                    strips.append((f"{row['object']}, {entry.variant.title}: {_read(row)}", strip))
                bar.update()
                own = [r for r in rows if r["object"] == row["object"]]
                if len(own) == sum(e.case.object == row["object"] for e in entries):
                    notes = "; ".join(dict.fromkeys(r["note"] for r in own if r["note"]))
                    print_above(f"{_line(row['object'], fronts(own, labels), labels)}   {notes}".rstrip())
    finally:
        summary = _summary(rows, labels, runner, len(entries), time.perf_counter() - started)
        if rows:
            write_json(out / "janus-losses.json", runner, summary, rows)
            if strips:
                captions, pictures = zip(*strips, strict=True)
                save_strips(pictures, captions, out / "janus-losses.png")
    if rows:
        print(_line("all", summary["all"], labels))
        print(f"{'object seen':12}" + "".join(f"{share:>18.0%}" for share in summary["object_share"].values()))
        for label, mean, error, n in summary["differences"]:
            print(f"{label} - {labels[0]}: {mean:+.2f} fronts, standard error {error:.2f}, {n} pairs")
    print(f"{summary['seconds']} s in total; " + (f"results in {out}" if rows else "nothing written"))
    return summary


def _summary(
    rows: Sequence[dict[str, Any]], labels: Sequence[str], runner: Runner, planned: int, seconds: float
) -> dict[str, Any]:
    names = dict.fromkeys(row["object"] for row in rows)
    return {
        "views": JANUS_VIEWS,
        "true_fronts": true_fronts(runner.settings),
        "planned": planned,
        "finished": len(rows),
        "objects": {name: fronts([row for row in rows if row["object"] == name], labels) for name in names},
        "all": fronts(rows, labels),
        "object_share": {label: _object_share([row for row in rows if row["variant"] == label]) for label in labels},
        "differences": [difference(rows, labels[0], label) for label in labels[1:]],
        "seconds": round(seconds, 1),
    }


def fronts(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return for each variant the mean and standard deviation of the views read as a front, and the number of runs."""
    found = {}
    for label in labels:
        votes = [row["front_votes"] for row in rows if row["variant"] == label]
        if votes:
            found[label] = {"mean": round(statistics.fmean(votes), 2), "spread": _spread(votes), "runs": len(votes)}
    return found


def difference(rows: Sequence[dict[str, Any]], first: str, other: str) -> tuple[str, float, float, int]:
    """Return `other`, its mean difference from `first` in fronts, the standard error, and the number of pairs."""
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
    """Return the share of views read as the object; without it, fronts mean little."""
    return sum(row["object_votes"] for row in rows) / max(sum(row["views"] for row in rows), 1)


def _line(name: str, found: dict[str, dict[str, float]], labels: Sequence[str]) -> str:
    cells = (f"{found[x]['mean']:.1f} +- {found[x]['spread']:.1f}" if x in found else "-" for x in labels)
    return f"{name:12}" + "".join(f"{cell:>18}" for cell in cells)


def _read(row: dict[str, Any]) -> str:
    return f"{row['front_votes']} of {JANUS_VIEWS} read as a front, {row['steps']} steps in {row['seconds']:.0f} s"
