"""Grade a folder of hand-ins: repeat each, compare, and tell in a table."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from sdlab.errors import reason
from sdlab.grading import compare
from sdlab.grading.lessons import Record, Rereading, record_in
from sdlab.grading.replay import Repeated, Replay, Spot
from sdlab.handin import archive, history, manifest
from sdlab.handin.archive import HandIn
from sdlab.handin.facts import differing
from sdlab.handin.history import Told
from sdlab.handin.manifest import Lane, Manifest
from sdlab.knobs import read_file
from sdlab.live.building import LoadPrior
from sdlab.live.session import Session
from sdlab.live.state import Admit
from sdlab.live.tape import Print
from sdlab.losses import Distillation
from sdlab.parsing import VISITOR, parsed
from sdlab.settings import NO_OWN, Settings, adopt, disown, from_toml

MOST_HAND_INS = 1000  # in a folder
MOST_COUNTED = 100_000  # ticks of a hand-in that the time left counts with
NO_CODE = f"its loss is the student's own: read {archive.CODE} in the file, then grade it with --own-loss and that code"

Outcome = Literal["same bits", "nearly same", "differs", "copied", "not repeated", "unreadable"]


@dataclass(frozen=True)
class Given:
    """A hand-in as it was read."""

    file: str
    hand_in: HandIn
    manifest: Manifest
    stretches: tuple[Told, ...]
    lesson: Record | None

    @property
    def student(self) -> str:
        return printable(self.manifest.name) or f"({self.file})"

    @property
    def ticks(self) -> int:
        return sum(min(stretch.ticks, MOST_COUNTED) for stretch in self.stretches)


@dataclass
class Row:
    """A line of the table."""

    file: str
    student: str = ""
    outcome: Outcome = "unreadable"
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    lesson: Record | None = None
    confirmed: int = 0  # predicates that were reached again

    @property
    def is_fine(self) -> bool:
        return not self.differences and self.outcome in ("same bits", "nearly same")


@dataclass(frozen=True)
class Terms:
    """How hand-ins are graded: on which `device`, with which priors, which settings may run, for how many seconds each,
    and compared with the `facts` of this computer and its `key`. With `sealed`, each must be sealed with that key.
    `own` is the loss with which hand-ins that hold its very code are repeated."""

    device: torch.device
    load: LoadPrior
    admit: Admit
    seconds: float
    facts: Mapping[str, object]
    key: bytes
    sealed: bool = False
    own: type[Distillation] | None = None


def read(path: Path) -> Given:
    """Return the hand-in in a file. ValueError that begins with the file's name if it is none."""
    raw = read_file(path, archive.MOST_BYTES, path.name)
    found = parsed(archive.read, raw, path.name, given=path.name, kinds=(HandIn,), limits=VISITOR)
    try:
        about = manifest.read(found.manifest)
        return Given(path.name, found, about, history.read(found.history, found.settings), record_in(about.lesson))
    except ValueError as e:
        raise ValueError(f"{path.name}: {e}") from e


def files_in(folder: Path) -> list[Path]:
    """Return the ZIP files in a folder. ValueError if there are none, or too many."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".zip" and path.is_file())
    except OSError as e:
        raise ValueError(f"FOLDER = {folder}: it cannot be read ({e.strerror or e})") from e
    if not found:
        raise ValueError(f"FOLDER = {folder}: there are no ZIP files in it")
    if len(found) > MOST_HAND_INS:
        raise ValueError(f"FOLDER = {folder}: there are {len(found):,} ZIP files in it; the limit is {MOST_HAND_INS}")
    return found


def graded(given: Given, terms: Terms, moved: Callable[[int], object]) -> Row:
    """Return what came of repeating one hand-in; `moved` is told ticks as they are done."""
    about = given.manifest
    row = Row(given.file, given.student, lesson=given.lesson)
    if given.lesson is not None:
        row.differences += given.lesson.differences
        row.notes += [given.lesson.problem] if given.lesson.problem else []
    row.answers = [f"{printable(question)} {printable(answer)}" for question, answer in about.answers]
    _check_seal(given, terms, row)
    differ = differing(terms.facts, about.facts)
    if differ:
        row.notes.append(f"made on another machine, compared within a tolerance: {', '.join(map(printable, differ))}")
    if about.dropped:
        row.notes.append(f"{about.dropped:,} earlier runs were too many to be part of it")
    _use(terms.own, given.hand_in.code)
    _Repetition(given, row, exact=not differ).run(terms, moved)
    return row


def _use(own: type[Distillation] | None, code: str) -> None:
    """Let runs use a loss of somebody's own if its code is `code`, and no other."""
    disown()
    if own is not None and own.code == code:
        adopt(own)


def _check_seal(given: Given, terms: Terms, row: Row) -> None:
    """Compare hashes and seal: of what no repetition can tell, such as predictions, they are the only proof."""
    for name in given.hand_in.edited:
        row.differences.append(f"{printable(name)} was edited after the file was made: its hash is another")
    if not given.hand_in.edited and not archive.is_sealed(given.hand_in, terms.key):
        text = "it is not sealed by this computer: nothing proves name, predictions and answers"
        (row.differences if terms.sealed else row.notes).append(text)


class _Repetition:
    """Repeats a hand-in, compares, and adds what it finds to a row; `exact` bit for bit."""

    def __init__(self, given: Given, row: Row, exact: bool) -> None:
        self._given, self._row, self._exact = given, row, exact
        self._again = Rereading(given.lesson, exact)
        self._lanes: dict[Spot, list[Lane]] = {}
        for lane in given.manifest.lanes:
            self._lanes.setdefault(lane.spot, []).append(lane)
        self._finals: dict[str, tuple[Print, Mapping[str, float]]] = {}  # by letter
        self._same_bits = True

    def run(self, terms: Terms, moved: Callable[[int], object]) -> None:
        given, row = self._given, self._row
        deadline = time.monotonic() + terms.seconds
        settings = _settings(given)
        replay = Replay(given.stretches, settings, terms.device, terms.load, terms.admit, deadline, self._visit)
        results = replay.run(moved)
        for n, told in enumerate(given.stretches, 1):
            self._compare_stretch(told, results[told.id], f"run {n}")
        for lane in given.manifest.lanes:
            self._compare_lane(lane, results.get(lane.spot[0], Repeated()))
        row.confirmed = self._again.confirmed()
        is_whole = bool(given.manifest.lanes) and not any(result.problem for result in results.values())
        row.differences += [printable(text) for text in self._again.differences(is_whole)]
        fine: Outcome = "same bits" if self._same_bits else "nearly same"
        row.outcome = "differs" if row.differences else fine if is_whole else "not repeated"

    def _visit(self, spot: Spot, session: Session) -> None:
        self._again.visit(spot, session)
        for lane in self._lanes.get(spot, ()):
            taken = session.take()
            self._finals[lane.letter] = taken.print, manifest.readings(taken)

    def _compare_stretch(self, told: Told, result: Repeated, name: str) -> None:
        row, found = self._row, result.prints
        if result.problem:
            why = NO_CODE if NO_OWN in result.problem else printable(result.problem)
            row.notes.append(f"{name} was repeated to tick {result.ticks:,} of {told.ticks:,}: {why}")
        row.notes += [f"{name}, tick {tick:,}: {printable(text)}" for tick, text in told.remarks]
        row.differences += [printable(text) for text in compare.prints(told, result, self._exact, name)]
        self._same_bits &= all(found[p.tick].digest == p.digest for p in told.prints if p.tick in found)

    def _compare_lane(self, lane: Lane, result: Repeated) -> None:
        row, name = self._row, f"lane {printable(lane.letter)}"
        if lane.letter not in self._finals:
            if not result.problem:
                row.differences.append(f"{name}: its final state is not on the way of its runs")
            return
        now, read = self._finals[lane.letter]
        if not compare.agree(lane.print, now, self._exact):
            row.differences.append(f"{name}: the final state at step {lane.print.step:,} is another")
        row.differences += [f"{name}: {text}" for text in compare.readings(lane.readings, read, self._exact)]
        if not read:
            row.notes.append(f"{name}: points in the plane have no final readings; the points themselves are compared")
        self._same_bits &= lane.print.digest == now.digest


def _settings(given: Given) -> dict[str, Settings | str]:
    """Return the settings by name, or why they cannot be read."""
    found: dict[str, Settings | str] = {}
    for name, text in given.hand_in.settings.items():
        try:
            found[name] = from_toml(text, name)
        except ValueError as e:
            found[name] = str(e)
    return found


def copies(given: Sequence[Given], rows: Mapping[str, Row]) -> None:
    """Add to the rows which hand-ins have the same runs; under other names, that is a difference."""
    for one in given:
        row, others = rows[one.file], [other for other in given if other is not one]
        same = [other for other in others if compare.same_runs(one.stretches, other.stretches)]
        alike = [o for o in others if o not in same and compare.same_steps(one.stretches, o.stretches)]
        again = [other for other in same if other.student == one.student]
        if copied := [other for other in same if other not in again]:
            row.differences.append(f"it has the same run as {_listed(copied)}")
            row.outcome = "copied" if row.outcome in ("same bits", "nearly same") else row.outcome
        if again:
            row.notes.append(f"it has the same run as {_listed(again)}")
        if alike:
            row.notes.append(f"it has the same steps and changes, bit for bit, as {_listed(alike)}")


def _listed(given: Sequence[Given]) -> str:
    return ", ".join(f"{other.file} of {other.student}" for other in given)


def printable(text: object) -> str:
    """Return a stranger's text on one line, without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:500]


# ---- the table ---------------------------------------------------------------------------------------------------

COLUMNS = ("student", "lesson", "page", "right", "wrong", "reached", "again", "outcome", "file")


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [min(max(len(line[i]) for line in cells), 40) for i in range(len(COLUMNS))]
    return [
        "  ".join(cell[:40].ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]


def _cells(row: Row) -> tuple[str, ...]:
    found = row.lesson
    lesson = (
        ("-",) * 6
        if found is None
        else (
            *(printable(found.title), f"{found.page}/{found.pages}", str(found.right), str(found.wrong)),
            *(str(found.reached), str(row.confirmed)),
        )
    )
    return row.student or "-", *lesson, row.outcome, row.file


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the table, with all differences, notes and answers, as CSV. Raises OSError if it cannot be written."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the mark makes Excel read UTF-8
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "differences", "notes", "answers"])
        for row in rows:
            more = ("; ".join(part) for part in (row.differences, row.notes, row.answers))
            writer.writerow([_harmless(cell) for cell in (*_cells(row), *more)])


def _harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t") else cell


def unreadable(path: Path, error: Exception) -> Row:
    """Return the row of a file that is no hand-in."""
    return Row(printable(path.name), differences=[printable(reason(error))])
