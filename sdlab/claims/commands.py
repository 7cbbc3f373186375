"""The subcommand `claims`. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from sdlab.arguments import add_out, claimed

PAPERS = ("esd", "dreammapping", "sbp", "jsd")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `claims`; `call` of the parsed arguments runs it and returns the exit code."""
    p = commands.add_parser("claims", help="what the four papers claim, decided by what this program measures")
    p.add_argument("--paper", choices=PAPERS, help="only the claims of one paper (default: all)")
    p.add_argument(
        "--prior",
        default="gallery",
        metavar="PRIOR",
        help="prior of the runs in 3D: gallery (exact scores; default), toybox (the network), or a network's folder",
    )
    p.add_argument("--quick", action="store_true", help="short runs and few seeds: minutes, few rows decided")
    add_out(p, "claims")
    p.add_argument("--page", type=Path, metavar="FILE", help="page to write (default: claims.md in the --out folder)")
    p.set_defaults(call=_claims)


def _claims(args: argparse.Namespace) -> int:
    from sdlab.claims.claim import Plan
    from sdlab.claims.papers import papers
    from sdlab.claims.run import counts, run_claims
    from sdlab.headless import interruptible

    page = args.page or args.out / "claims.md"
    plan, stop = Plan(_prior(args.prior), args.quick), threading.Event()
    with claimed(args.out), interruptible(stop.set) as interrupted:
        rows = run_claims(papers(args.paper), plan, args.out, page, stop)
    for row in rows:
        print(f"{row.paper:13} {row.section:28} {row.outcome:22} {row.statement}\n{'':43}{row.figure}; {row.why}")
    print(f"{', '.join(f'{n} {outcome}' for outcome, n in counts(rows).items())}; page: {page}")
    return 130 if interrupted() else 0


def _prior(given: str) -> str:
    """Return the name of a prior, or an absolute path. Raises ValueError for a folder that does not exist."""
    if given in ("gallery", "toybox"):
        return given
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise ValueError(f"--prior {given}: give gallery, toybox, or the folder of a network")
    return str(folder.resolve())
