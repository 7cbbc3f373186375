"""docs/lessons.md: how to use and write lessons, and the table of the check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdlab import machine
from sdlab.files import write_whole
from sdlab.lessons.check import HEAD, Row, cells
from sdlab.lessons.lesson import Lesson
from sdlab.lessons.readings import READINGS

HEADING = "## What they show, measured"  # everything from here on is written by the command


def write_page(page: Path, lessons: Sequence[Lesson], rows: Sequence[Row], seeds: int) -> None:
    """Write the table to a page, below what it says about using and writing lessons."""
    said = page.read_text(encoding="utf-8").partition(HEADING)[0] if page.exists() else "# Lessons\n\n"
    write_whole(page, said + "\n".join(_measured(lessons, rows, seeds)) + "\n")


def _measured(lessons: Sequence[Lesson], rows: Sequence[Row], seeds: int) -> list[str]:
    whole = all(row.holds for row in rows)
    lines = [
        HEADING,
        "",
        f"`python -m sdlab lessons --check --seeds {seeds} --page docs/lessons.md` wrote this part on "
        f"{machine.processor()}. {'Every effect appears' if whole else 'Not every effect appears'} with every seed. "
        "A figure is the reading when the predicate was reached, the mean over the seeds with the range; seconds are "
        "of one walk without the page.",
        "",
        "| lesson | minutes | pages |",
        "|---|---|---|",
        *(
            f"| {each.number}. [{each.title}](../lessons/{each.name}.toml) | {each.minutes:g} | {len(each.pages)} |"
            for each in lessons
        ),
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
    ]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells(row))} |" for row in rows]
    problems = [f"- {row.lesson.name}, page {row.page + 1}: {problem}" for row in rows for problem in row.problems]
    lines += ["", *problems] if problems else []
    lines += ["", "### Readings", "", "| reading | meaning |", "|---|---|"]
    return lines + [f"| `{name}` | {meaning} |" for name, meaning in READINGS.items()]
