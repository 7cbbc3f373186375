"""The subcommand `site`. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse

from sdlab.arguments import add_out, claimed


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `site`; `call` of the parsed arguments runs it and returns the exit code."""
    p = commands.add_parser("site", help="the static edition: recorded runs and a playground that need no server")
    p.add_argument("--quick", action="store_true", help="a quarter of the steps: minutes")
    p.add_argument("--runs", default="", metavar="NAMES", help="names of runs, with commas (default: all)")
    add_out(p, "site")
    p.set_defaults(call=_site)


def _site(args: argparse.Namespace) -> int:
    from sdlab.site.build import build, plans

    names = [name for name in args.runs.split(",") if name]
    command = "python -m sdlab site" + (" --quick" if args.quick else "") + (f" --runs {args.runs}" if names else "")
    with claimed(args.out):
        size = build(args.out, plans(args.quick, names), command, args.quick)
    print(f"{args.out / 'index.html'}: {size / 1e6:.1f} MB")
    return 0
