"""The subcommand `lessons`, whose options are in `sdlab.cli`: importing this package imports torch."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence

from sdlab.arguments import claim_file
from sdlab.headless import interruptible
from sdlab.lessons.check import check, tell_rows
from sdlab.lessons.docs import write_page
from sdlab.lessons.lesson import Lesson
from sdlab.lessons.library import load, names
from sdlab.options import choose_device


def run(args: argparse.Namespace) -> int:
    """List or check lessons; return the exit code, 1 if an effect does not appear."""
    chosen = [load(name) for name in args.names or names()]
    if args.check:
        return _check(args, chosen)
    if args.page or args.page_number:
        raise ValueError("--page and --page-number need --check")
    for lesson in chosen:
        print(f"{lesson.number}. {lesson.name:12} {lesson.minutes:g} min  {lesson.title}: {lesson.summary}")
        for number, page in enumerate(lesson.pages, 1) if args.names else ():
            wait = f" (until {page.wait.promise()})" if page.wait is not None else ""
            print(f"   {number:2}. {page.title}{wait}")
        if args.names:
            _print_notes(lesson)
    return 0


def _print_notes(lesson: Lesson) -> None:
    """Print the notes for the instructor."""
    notes = lesson.notes
    if notes.minutes is not None:
        print(f"   In a class: {notes.minutes:g} min")
    for heading, texts in (("What goes wrong:", notes.wrong), ("What students ask:", notes.answers)):
        if texts:
            print(f"   {heading}", *(f"   - {text}" for text in texts), sep="\n")


def _check(args: argparse.Namespace, chosen: Sequence[Lesson]) -> int:
    only = None if args.page_number is None else args.page_number - 1
    for lesson in chosen:
        if only is not None and only >= len(lesson.pages):
            raise ValueError(
                f"--page-number {args.page_number}: the lesson {lesson.name} has pages 1 to {len(lesson.pages)}"
            )
    if args.page:
        claim_file(args.page, given="--page")
    device, stop, rows = choose_device(args.device), threading.Event(), []
    with interruptible(stop.set) as interrupted:
        for lesson in chosen:
            rows += check(lesson, args.seeds, device, only, stop.is_set)
    tell_rows(rows)
    missed = [row for row in rows if not row.holds]
    print(f"{len(rows) - len(missed)} of {len(rows)} effects appear with every one of {args.seeds} seeds")
    if interrupted():
        return 130
    if args.page:
        write_page(args.page, chosen, rows)
    return 1 if missed else 0
