"""Subcommands of `python -m sdlab bench` that measure speed. Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlab.arguments import add_device, add_out, add_set, claim, listed, positive
from sdlab.options import DEFAULT_PRESET, choose_device, settings_for

if TYPE_CHECKING:
    from sdlab.bench.visitor import Serve

# name -> (module, help) of benchmarks that print a table and write one JSON file
BENCHES = {
    "raster": ("sdlab.bench.raster", "the CPU rasteriser against plain torch"),
    "step": ("sdlab.bench.step", "one live step against its network evaluations alone"),
    "network": ("sdlab.bench.network", "networks of several sizes on each engine"),
    "losses": ("sdlab.bench.losses", "one step of every loss relative to SDS, on each engine"),
    "sessions": (
        "sdlab.bench.sessions",
        "1, 2, 4 and 8 sessions that share a prior, taking turns or batching their forward passes",
    ),
    "gpu": (
        "sdlab.bench.gpu",
        "every loss, rasterisers and sessions at the size of Stable Diffusion, with random weights",
    ),
}


def add_subcommands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands. `call` of the parsed arguments runs the chosen one and returns the exit code."""
    for what in BENCHES:
        _add_bench(commands, what)
    _add_page(commands)
    _add_seats(commands)


def _add_bench(commands: argparse._SubParsersAction, what: str) -> None:
    module, text = BENCHES[what]
    p = commands.add_parser(what, help=text)
    p.add_argument("--out", type=Path, metavar="FILE", help=f"JSON file to write (default: bench-{what}.json)")
    p.add_argument("--quick", action="store_true", help="fewer repetitions")
    if what in ("step", "losses", "sessions"):
        p.add_argument("--preset", default=DEFAULT_PRESET, help="preset name (default %(default)s)")
    if what == "losses":
        p.add_argument("--losses", default="", metavar="NAMES", help="only SDS and these losses (default: all)")
    if what in ("sessions", "gpu"):
        add_device(p)
    if what == "gpu":
        p.add_argument(
            "--size",
            default="sd-2.1-base",
            help="sd-2.1-base, or tiny to try the command on any machine (default %(default)s)",
        )
    p.set_defaults(call=_bench, module=module)


def _bench(args: argparse.Namespace) -> int:
    out = args.out or Path(f"bench-{args.what}.json")
    more: dict[str, Any] = {"name": args.preset} if "preset" in args else {}
    if "losses" in args:
        more["only"] = listed(args.losses)
    if "device" in args:
        more["device"] = choose_device(args.device)
    if "size" in args:
        more["size"] = args.size
    import_module(args.module).run(out, quick=args.quick, **more)
    print(f"written to {out}")
    return 0


# ---- a server with pages ---------------------------------------------------------------------------------


def _served(commands: argparse._SubParsersAction, what: str, text: str) -> argparse.ArgumentParser:
    """Add a benchmark of a server, with the options that they have in common."""
    p = commands.add_parser(what, help=text)
    add_out(p, what)
    p.add_argument("--preset", default=DEFAULT_PRESET, help="preset name (default %(default)s)")
    add_set(p)
    add_device(p)
    return p


def _serve(preset: str, locked: Collection[str] = ()) -> Serve:
    """Return a function that serves pages as app.py does; they begin with `preset` and refuse `locked` knobs."""
    from sdlab.settings import preset_names
    from sdlab.ui.server import build, server

    name = preset if preset in preset_names() else None
    return lambda manager, first: server(build(manager, first, name, locked), port=0)


def _add_page(commands: argparse._SubParsersAction) -> None:
    text = "time to first image, cost of an open page, and four lanes, with a server and a real browser"
    p = _served(commands, "page", text)
    p.add_argument("--seconds", type=positive, metavar="N", help="seconds for the part with four lanes (default 600)")
    p.add_argument("--quick", action="store_true", help="one round of short turns, and four lanes for 20 seconds")
    p.set_defaults(call=_page)


def _page(args: argparse.Namespace) -> int:
    from sdlab.bench import page

    claim(args.out)
    s, device = settings_for(args.preset, args.set), choose_device(args.device)
    size = page.QUICK if args.quick else page.Size()
    size = size._replace(lanes=float(args.seconds or size.lanes))
    page.run_page(s, args.preset, device, _serve(args.preset), size, args.out)
    print(f"written to {args.out}")
    return 0


def _add_seats(commands: argparse._SubParsersAction) -> None:
    text = "how many runs a server carries at how many steps a second, and whether they are kept apart"
    p = _served(commands, "seats", text)
    p.add_argument("--seats", type=positive, default=8, metavar="N", help="most runs at a time (default %(default)s)")
    p.add_argument("--seconds", type=positive, default=20, metavar="N", help="per row of the table (default 20)")
    p.add_argument(
        "--minutes",
        type=positive,
        default=0,
        metavar="N",
        help="then open as many pages in a real browser for this long, which also try to get at each other's runs",
    )
    p.set_defaults(call=_seats)


def _seats(args: argparse.Namespace) -> int:
    from sdlab.bench import seats

    claim(args.out)
    s, device = settings_for(args.preset, args.set), choose_device(args.device)

    from sdlab.ui.visitors import public

    own, locked = public(s)
    size = args.seats, args.seconds, args.minutes
    met = seats.run(own, args.preset, device, *size, _serve(args.preset, locked), args.out)
    print(f"written to {args.out}")
    return 0 if met else 1
