"""The subcommand `grade`. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdlab.arguments import add_device, add_own_loss, claim_file, real

MINUTES = 10.0


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `grade`; `call` of the parsed arguments runs it and returns the exit code."""
    p = commands.add_parser(
        "grade",
        help="repeat the hand-ins in a folder bit for bit, and say where they differ",
        description="Exit code 0: all are as they say; 1: something differs or could not be repeated; 2: bad input.",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="folder with the ZIP files that students handed in")
    p.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV, too")
    p.add_argument(
        "--minutes", type=real(0.01, 10_000), default=MINUTES, help="time for each hand-in (default %(default)g)"
    )
    p.add_argument(
        "--trust",
        action="store_true",
        help="repeat runs that read files, load other models, or cost more than a visitor may",
    )
    p.add_argument("--sealed", action="store_true", help="count hand-ins that this computer did not make as different")
    add_device(p)
    add_own_loss(p)
    p.set_defaults(call=_grade)


def _grade(args: argparse.Namespace) -> int:
    from sdlab.grading import grade
    from sdlab.grading.policy import policy
    from sdlab.handin import facts
    from sdlab.live.manager import PriorPool
    from sdlab.options import choose_device
    from sdlab.own_loss import OwnLoss
    from sdlab.progress import print_above, progress_bar

    files = grade.files_in(args.folder)
    if args.csv is not None:
        claim_file(args.csv, files, "--csv")
    device = choose_device(args.device)
    own = OwnLoss(args.own_loss.expanduser()).loss if args.own_loss is not None else None
    terms = grade.Terms(
        device,
        PriorPool().get,
        policy(args.trust),
        60 * args.minutes,
        facts.facts(device),
        facts.key(),
        args.sealed,
        own,
    )
    rows, given = {}, []
    for path in files:
        try:
            given.append(grade.read(path))
        except ValueError as e:
            rows[path.name] = grade.unreadable(path, e)
    with progress_bar(sum(hand_in.ticks for hand_in in given), "step") as bar:
        for hand_in in given:
            bar.set_description_str(hand_in.student[:30])
            row = rows[hand_in.file] = grade.graded(hand_in, terms, bar.update)
            print_above(f"{row.student}: {row.outcome} ({row.file})")
    grade.copies(given, rows)
    ordered = [rows[path.name] for path in files]
    print("", *grade.table(ordered), "", sep="\n")
    for row in ordered:
        for text in (*row.differences, *(f"note: {note}" for note in row.notes)):
            print(f"{row.student} ({row.file}): {text}" if row.student else text)
    if args.csv is not None:
        grade.write_csv(args.csv, ordered)
    return 0 if all(row.is_fine for row in ordered) else 1
