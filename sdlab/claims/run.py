"""Run the experiments that the claims need, each as a command of its own, and decide the claims by their results.

An experiment that has finished is in the journal and is not repeated; one that was interrupted continues from its own
journal. Results are written after each experiment.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdlab import machine
from sdlab.claims.claim import Claim, Experiment, Paper, Plan
from sdlab.claims.decisions import FAILS, HOLDS, OPEN, Verdict
from sdlab.claims.page import Section, write_page
from sdlab.experiments.journal import Journal
from sdlab.progress import print_above, progress_bar

POLL = 0.5  # seconds between looks at a running experiment
ROOT = Path(__file__).resolve().parents[2]
Start = Callable[[Sequence[str], Path], subprocess.Popen]


class Row(NamedTuple):
    """A decided claim."""

    paper: str
    section: str
    statement: str
    command: str
    figure: str
    outcome: str
    why: str


def run_claims(
    papers: Sequence[Paper], plan: Plan, out: Path, page: Path, stop: threading.Event, start: Start | None = None
) -> list[Row]:
    """Run what is not in the journal, write claims.json to the folder `out` and the page, and return the rows.

    Setting `stop` ends the running experiment, which keeps its finished rows; claims without results are left out.
    `start` launches a command that writes to a log file.
    """
    journal = Journal(out)
    needed = _all(papers)
    todo = [e for e in needed if not _finished(journal, e, plan, out)]
    if len(todo) < len(needed):
        print(f"{len(needed) - len(todo)} of {len(needed)} experiments are in {journal.path}", flush=True)
    rows = decided(papers, plan, out, journal)
    work = sum(e.seconds[0 if plan.quick else 1] for e in todo)
    with progress_bar(work, "s", bar_format="{l_bar}{bar}| {elapsed} elapsed, {remaining} left") as bar:
        for number, experiment in enumerate(todo, 1):
            if stop.is_set():
                break
            bar.set_description_str(f"{experiment.name}, {number} of {len(todo)}")
            note = _run(experiment, plan, out, journal, stop, bar, start or _start)
            print_above(note)
            rows = decided(papers, plan, out, journal)
            _write(rows, papers, plan, out, page, journal)
    _write(rows, papers, plan, out, page, journal)
    return rows


def _start(arguments: Sequence[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "sdlab", *arguments], stdout=file, stderr=file, cwd=ROOT)


def _run(
    experiment: Experiment, plan: Plan, out: Path, journal: Journal, stop: threading.Event, bar: Any, start: Start
) -> str:
    """Run one experiment and return a line about it."""
    folder = (out / experiment.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{experiment.name}.log"
    began, expected, at = time.perf_counter(), experiment.seconds[0 if plan.quick else 1], bar.n
    child = start([*experiment.command(plan), "--out", str(experiment.out(out.resolve()))], log)
    while child.poll() is None:
        if stop.is_set():
            child.terminate()
            child.wait()
            break
        time.sleep(POLL)
        bar.n = at + min(time.perf_counter() - began, 0.95 * expected)  # until it has finished, at most so much
        bar.update(0)
    seconds = time.perf_counter() - began
    bar.n = at + expected
    bar.update(0)
    if child.returncode == 0:
        journal.add(key_of(experiment, plan), {"command": experiment.spelled(plan), "seconds": round(seconds, 1)})
        return f"{experiment.name}: finished in {seconds:.0f} s"
    if stop.is_set():
        return f"{experiment.name}: interrupted after {seconds:.0f} s; the same command continues"
    return f"{experiment.name}: failed with exit code {child.returncode}, see {log}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.rpartition("\r")[2].strip() for line in reversed(lines) if line.strip()), "no output")


def key_of(experiment: Experiment, plan: Plan) -> str:
    """Return the key of an experiment in the journal, which depends on its command."""
    return f"{experiment.name}-{hashlib.blake2b(experiment.spelled(plan).encode(), digest_size=6).hexdigest()}"


def _finished(journal: Journal, experiment: Experiment, plan: Plan, out: Path) -> bool:
    return journal.finished(key_of(experiment, plan)) and experiment.result_in(out).exists()


# ---- decisions ---------------------------------------------------------------------------------------------------


def decided(papers: Sequence[Paper], plan: Plan, out: Path, journal: Journal) -> list[Row]:
    """Return a row for each claim whose experiment has finished."""
    found: dict[Path, Any] = {}
    rows = []
    for paper in papers:
        for claim in paper.claims:
            if _finished(journal, claim.experiment, plan, out):
                file = claim.experiment.result_in(out)
                if file not in found:
                    found[file] = json.loads(file.read_text(encoding="utf-8"))
                verdict = verdict_of(claim, found[file])
                command = claim.experiment.spelled(plan)
                rows.append(
                    Row(
                        paper.key, claim.section, claim.statement, command, verdict.figure, verdict.outcome, verdict.why
                    )
                )
    return rows


def verdict_of(claim: Claim, results: Any) -> Verdict:
    """Return the verdict, OPEN with the reason where the results lack what it needs, as after a run that failed."""
    try:
        return claim.decide(results)
    except (KeyError, ValueError, ZeroDivisionError) as e:
        return Verdict(OPEN, "not measured", f"{claim.experiment.result} lacks {type(e).__name__}: {e}")


# ---- output ------------------------------------------------------------------------------------------------------


def _write(rows: Sequence[Row], papers: Sequence[Paper], plan: Plan, out: Path, page: Path, journal: Journal) -> None:
    results = {
        "prior": plan.prior,
        "quick": plan.quick,
        "counts": counts(rows),
        "rows": [row._asdict() for row in rows],
        "experiments": [found for e in _all(papers) if (found := journal.get(key_of(e, plan)))],
        "machine": machine.processor(),
    }
    (out / "claims.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sections = [
        Section(
            paper.title,
            [row for row in rows if row.paper == paper.key],
            [claim for claim in paper.claims if not _finished(journal, claim.experiment, plan, out)],
            [picture for e in paper.experiments if _finished(journal, e, plan, out) for picture in e.pictures_in(out)],
            paper.unmeasured,
        )
        for paper in papers
    ]
    seconds = sum(found["seconds"] for found in results["experiments"])
    write_page(page, sections, spelled(papers, plan), f"{seconds / 60:.0f} minutes on {results['machine']}", plan.quick)


def _all(papers: Sequence[Paper]) -> list[Experiment]:
    return list({e.name: e for paper in papers for e in paper.experiments}.values())


def spelled(papers: Sequence[Paper], plan: Plan) -> str:
    """Return the command that made the page."""
    paper = f" --paper {papers[0].key}" if len(papers) == 1 else ""
    prior = "" if plan.prior == Plan().prior else f" --prior {plan.prior}"
    return f"python -m sdlab claims{paper}{prior}{' --quick' if plan.quick else ''}"


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of rows by outcome."""
    return {outcome: sum(row.outcome == outcome for row in rows) for outcome in (HOLDS, FAILS, OPEN)}
