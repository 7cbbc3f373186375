"""The subcommand `site`. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse

from sdlab.arguments import add_out, claimed, listed


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `site`; `call` of the parsed arguments runs it and returns the exit code."""
    p = commands.add_parser(
        "site", help="the static edition: recorded runs, lessons and a playground that need no server"
    )
    p.add_argument("--quick", action="store_true", help="a quarter of the steps of each run, and fewer pictures")
    p.add_argument("--runs", default="", metavar="NAMES", help="these runs, with commas, and no other")
    p.add_argument("--lessons", default="", metavar="NAMES", help="these lessons, with commas, and no other")
    add_out(p, "site")
    p.set_defaults(call=_site)


def _site(args: argparse.Namespace) -> int:
    from sdlab.lessons import load, names
    from sdlab.site.build import build, plans

    runs, lessons = listed(args.runs), listed(args.lessons)
    everything = not (runs or lessons)
    recorded = plans(args.quick, runs) if runs or everything else []
    walked = [load(name) for name in (names() if everything else lessons)]
    options = [f"--{name} {','.join(chosen)}" for name, chosen in (("runs", runs), ("lessons", lessons)) if chosen]
    command = " ".join(["python -m sdlab site", *["--quick"] * args.quick, *options])
    with claimed(args.out):
        size = build(args.out, recorded, walked, command, args.quick)
    print(f"{args.out / 'index.html'}: {size / 1e6:.1f} MB")
    return 0
