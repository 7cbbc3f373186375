"""Compare how many fronts each loss grows without view words in the prompt, when one object may grow several.

Every object is run with every seed and every variant of a loss. Results are means over seeds, and over all runs, with
the sample standard deviation. Runs of the same object and seed differ only in the variant, so differences from the
baseline, which is VSD if it is among the variants, are paired. `iv` is the entropy in nats of the views that the judge
reads around the object (IV in section 5 of the ESD paper, with votes in place of probabilities).

ESD with lambda = 1 draws the views towards the distribution of the prior's own images without a view word, and has an
effect only where the diffused views overlap. So both are measured: the share of fronts among the prior's own images,
and the size of ESD's term (`sdlab.experiments.entropy_term`). Where VSD shows no more fronts than the prior, or the
term vanishes at the timesteps of the run, the experiment cannot show that ESD reduces fronts, and says so.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdlab.auxiliary.score import TrainsScore
from sdlab.cameras import turntable
from sdlab.experiments.entropy_term import sizes
from sdlab.experiments.journal import Journal, key_of
from sdlab.experiments.objects import (
    Case,
    Runner,
    cases,
    front_strip,
    row_of,
    true_fronts,
    write_json,
)
from sdlab.experiments.references import prior_images
from sdlab.experiments.series import Made, Row, Series
from sdlab.experiments.variants import TracedRun, Variant, describe, run_case
from sdlab.metrics.entropies import entropy
from sdlab.pictures import to_uint8
from sdlab.toybox.judge import data_camera
from sdlab.toybox.readings import JANUS_VIEWS
from sdlab.toybox.words import FRONT
from sdlab.types import N_TIMESTEPS

VARIANTS = ("vsd", "esd:lam=0.5", "esd:lam=1")
SEEDS = 3
PRIOR_IMAGES = 64  # of the prior itself, for each object
NEGLIGIBLE = 0.1  # ESD's term relative to VSD's residual, below which lambda makes no difference


class Entry(NamedTuple):
    """A run to do."""

    variant: Variant
    case: Case


def entries(variants: Sequence[Variant], names: Sequence[str], seeds: int) -> list[Entry]:
    """Return every object with `seeds` seeds, counted up from the settings' own, in every variant; no view words.

    Seeds change last, so that an interrupted experiment has run all objects equally often.
    """
    found = []
    for i in range(seeds):
        for name in names:
            for variant in variants:
                (case,) = cases(variant.settings, [name])
                changes = [("seed", variant.settings.seed + i), ("prompt.view_dependent", False)]
                found.append(Entry(variant, case._replace(settings=case.settings.patch_all(changes))))
    return found


def baseline(variants: Sequence[Variant]) -> Variant:
    """Return the variant that others are compared with: the first VSD, or the first of all."""
    return next((v for v in variants if v.settings.active == "vsd"), variants[0])


def run_janus_losses(runner: Runner, entries: Sequence[Entry], out: Path, planned: int | None = None) -> dict[str, Any]:
    """Distil the entries and count the views that the judge reads as a front, printing a line for each run.

    Returns the summary, and writes it to janus-losses.json in the folder `out`. janus-losses.png shows the turntables
    of the first seed, with a bar under each view read as a front. Every run is written to runs.jsonl as it finishes,
    and a run that is found there is not repeated.
    """
    variants = list({entry.variant.label: entry.variant for entry in entries}.values())
    base, labels = baseline(variants), [variant.label for variant in variants]
    limit = planned or f"{runner.seconds:g} s"

    def key(entry: Entry) -> str:
        return key_of(entry.case.settings, entry.variant.label, limit, runner.prior.name)

    def work(entry: Entry) -> Made | None:
        run = run_case(runner, entry.case, planned)
        if run is None:
            return None
        row = row_of(runner, run.outcome, JANUS_VIEWS)
        stats = {"warm_up_seconds": round(run.warm_up_seconds, 2), "skipped": run.skipped, "iv": variety(row)}
        if entry.variant == base and isinstance(entry.variant.settings.loss, TrainsScore):
            stats["entropy_term"] = _term(runner, run)
        return {**describe(entry.variant, runner.settings), **row, **stats}, front_strip(run.outcome, row)

    def line(entry: Entry, row: Row) -> str:
        return f"{row['object']:12}{entry.variant.label:16} seed {row['seed']}: {_read(row)}".rstrip()

    def title(entry: Entry, row: Row) -> str:
        return f"{row['object']}, {entry.variant.title}: {_read(row)}"

    started = time.perf_counter()
    print(f"views of {JANUS_VIEWS} read as a front, without view words; one front has {true_fronts(runner.settings)}")
    series = Series(runner, entries, out, key)
    shares: dict[str, float] = {}
    try:
        for case in {entry.case.object: entry.case for entry in entries if entry.variant == base}.values():
            if not runner.stop.is_set():
                shares[case.object] = _prior_share(runner, case, series.journal)
        series.make(work, line)
    finally:
        finished = series.finished()
        rows = [row for _, row in finished]
        seconds = time.perf_counter() - started
        summary = _summary(rows, variants, shares, runner, len(entries), seconds)
        if rows:
            write_json(out / "janus-losses.json", runner, summary, rows)
            series.save_first_seed(finished, title, out / "janus-losses.png")
    if rows:
        _print(summary, labels)
    print(f"{summary['seconds']} s in total; " + (f"results in {out}" if rows else "nothing written"))
    return summary


# ---- what the prior itself shows -------------------------------------------------------------------------------


def _prior_share(runner: Runner, case: Case, journal: Journal) -> float:
    """Return the share of fronts among the prior's own images of a prompt without a view word, by the judge.

    A gallery's images are its own; a network is sampled with the guidance of the case's loss.
    """
    loss, prior, text = case.settings.loss, runner.prior, case.settings.prompt.text
    scale = float(getattr(loss, loss.guidance_knob, 1.0)) if loss.guidance_knob else 1.0
    key = key_of(case.settings.patch("seed", 0), "share of fronts", prior.name, PRIOR_IMAGES)
    found = journal.get(key)
    if found is None:
        shown = to_uint8(prior_images(prior, text, PRIOR_IMAGES, scale))
        fronts = sum(truth.view == FRONT for truth in runner.read(shown))
        found = {"prior": prior.name, "prompt": text, "cfg": scale, "share": fronts / len(shown)}
        journal.add(key, found)
    return found["share"]


def _term(runner: Runner, run: TracedRun) -> list[dict[str, Any]]:
    s = run.outcome.case.settings
    cams = turntable(JANUS_VIEWS, data_camera(s.camera), runner.prior.image_size)
    return [size._asdict() for size in sizes(run.outcome.sides, cams, s, runner.prior, run.aux)]


def variety(row: dict[str, Any]) -> float:
    """Return the entropy in nats of the view words read around the object; 1.04 for three fronts, three backs and six
    sides, 0 if all views are read alike."""
    counts = torch.tensor([*Counter(truth["view"] for truth in row["read"]).values()]).double()
    return round(float(entropy(counts / counts.sum())), 3)


# ---- the summary -------------------------------------------------------------------------------------------------


def _summary(
    rows: Sequence[dict[str, Any]],
    variants: Sequence[Variant],
    shares: dict[str, float],
    runner: Runner,
    planned: int,
    seconds: float,
) -> dict[str, Any]:
    names, labels = dict.fromkeys(row["object"] for row in rows), [variant.label for variant in variants]
    base = baseline(variants)
    differences = [difference(rows, base.label, label) for label in labels if label != base.label]
    terms = term_sizes(rows)
    return {
        "views": JANUS_VIEWS,
        "true_fronts": true_fronts(runner.settings),
        "baseline": base.label,
        "planned": planned,
        "finished": len(rows),
        "prior_fronts": {name: round(JANUS_VIEWS * shares[name], 2) for name in names if name in shares},
        "objects": {name: fronts([row for row in rows if row["object"] == name], labels) for name in names},
        "all": fronts(rows, labels),
        "iv": {label: _mean([row["iv"] for row in rows if row["variant"] == label]) for label in labels},
        "object_share": {label: _object_share([row for row in rows if row["variant"] == label]) for label in labels},
        "differences": differences,
        "entropy_term": terms,
        "cannot_show": {
            v.label: reasons
            for v in variants
            if v.settings.active == "esd" and (reasons := obstacles(rows, base, shares, terms))
        },
        "seconds": round(seconds, 1),
    }


def obstacles(
    rows: Sequence[dict[str, Any]], base: Variant, shares: dict[str, float], terms: Sequence[dict[str, Any]]
) -> list[str]:
    """Return why the runs cannot show that ESD reduces fronts; empty if they can."""
    found = []
    own = [row for row in rows if row["variant"] == base.label and row["object"] in shares]
    if own:
        shown = statistics.fmean(row["front_votes"] for row in own)
        of_prior = JANUS_VIEWS * statistics.fmean(shares[row["object"]] for row in own)
        if shown <= of_prior:
            found.append(
                f"{base.label} shows {shown:.1f} fronts of {JANUS_VIEWS} and the prior's own images {of_prior:.1f}: "
                "lambda draws views towards the prior's share, which is more fronts"
            )
    low, high = (N_TIMESTEPS * t for t in (base.settings.schedule.t_min, base.settings.schedule.t_max))
    used = [term["exact"] for term in terms if low <= term["t"] <= high]
    if used and max(used) < NEGLIGIBLE:
        found.append(
            f"at t {low:.0f} to {high:.0f} ESD's exact term is at most {max(used):.3f} of {base.label}'s residual: the "
            "diffused views do not overlap, so lambda mixes only errors of psi"
        )
    return found


def term_sizes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean size of ESD's term at each timestep over the rows that have one."""
    measured = [row["entropy_term"] for row in rows if "entropy_term" in row]
    found = []
    for at in zip(*measured, strict=True):
        learnt = [size["learnt"] for size in at if size["learnt"] is not None]
        exact = statistics.fmean(size["exact"] for size in at)
        found.append({"t": at[0]["t"], "exact": round(exact, 4), "learnt": _mean(learnt) if learnt else None})
    return found


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


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 3) if values else 0.0


def _object_share(rows: Sequence[dict[str, Any]]) -> float:
    """Return the share of views read as the object; without it, fronts mean little."""
    return sum(row["object_votes"] for row in rows) / max(sum(row["views"] for row in rows), 1)


def _print(summary: dict[str, Any], labels: Sequence[str]) -> None:
    print(f"{'object':12}{'prior':>8}" + "".join(f"{label:>18}" for label in labels))
    of_prior = summary["prior_fronts"]
    for name, found in summary["objects"].items():
        print(_line(name, of_prior.get(name), found, labels))
    print(_line("all", statistics.fmean(of_prior.values()) if of_prior else None, summary["all"], labels))
    print(f"{'variety, IV':20}" + "".join(f"{summary['iv'][label]:>18.2f}" for label in labels))
    print(f"{'object seen':20}" + "".join(f"{summary['object_share'][label]:>18.0%}" for label in labels))
    for term in summary["entropy_term"]:
        learnt = "" if term["learnt"] is None else f", with the trained psi {term['learnt']:.3f}"
        print(f"t = {term['t']}: ESD's term / residual of VSD, exact {term['exact']:.3f}{learnt}")
    for label, mean, error, n in summary["differences"]:
        print(f"{label} - {summary['baseline']}: {mean:+.2f} fronts, standard error {error:.2f}, {n} pairs")
    for label, reasons in summary["cannot_show"].items():
        print(f"cannot show that {label} reduces fronts: {'; '.join(reasons)}")


def _line(name: str, of_prior: float | None, found: dict[str, dict[str, float]], labels: Sequence[str]) -> str:
    cells = (f"{found[x]['mean']:.1f} +- {found[x]['spread']:.1f}" if x in found else "-" for x in labels)
    own = "-" if of_prior is None else f"{of_prior:.1f}"
    return f"{name:12}{own:>8}" + "".join(f"{cell:>18}" for cell in cells)


def _read(row: dict[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] else ""
    return (
        f"{row['front_votes']} of {JANUS_VIEWS} read as a front, {row['steps']} steps in {row['seconds']:.0f} s{note}"
    )
