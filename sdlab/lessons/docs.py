"""The measured part of docs/lessons.md: a table of what the check has found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdlab import machine
from sdlab.files import write_whole
from sdlab.lessons.check import HEAD, Row, cells
from sdlab.lessons.lesson import Lesson
from sdlab.lessons.library import names

HEADING = "## What they show, measured"  # everything from here on is written by the command


def write_page(page: Path, lessons: Sequence[Lesson], rows: Sequence[Row]) -> None:
    """Write the rows of `lessons` to the end of a page, whose other text and rows of other lessons stay. OSError when
    it cannot be written."""
    said, _, old = (page.read_text(encoding="utf-8") if page.exists() else "# Lessons\n\n").partition(HEADING)
    lines = _rows_in(old) | {lesson.name: _written(lesson, rows) for lesson in lessons}
    table = [line for name in sorted(lines, key=_place) for line in lines[name]]
    head = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    write_whole(page, said + "\n".join([HEADING, "", _about(), "", *head, *table]) + "\n")


def _about() -> str:
    return (
        "`python -m sdlab lessons --check --page docs/lessons.md` writes this table; with names of lessons, only their "
        f"rows. The last were measured on {machine.processor()}. A figure is the reading when the predicate was "
        "reached, or at the end of its limit: the mean over the seeds, and the range. Seconds are of one seed without "
        "the page."
    )


def _written(lesson: Lesson, rows: Sequence[Row]) -> list[str]:
    own = [row for row in rows if row.lesson.name == lesson.name]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells(row))} |" for row in own]


def _rows_in(text: str) -> dict[str, list[str]]:
    """Return the rows of lessons in a table."""
    found: dict[str, list[str]] = {}
    known = names()
    for line in text.splitlines():
        name = line.removeprefix("| ").partition(" |")[0]
        if line.startswith("| ") and name in known:
            found.setdefault(name, []).append(line)
    return found


def _place(name: str) -> tuple[int, str]:
    known = names()
    return known.index(name) if name in known else len(known), name
