"""The command line: `python -m sdlab run | resume | replay | sheet | list | metrics | bench | ...`.

Errors end with exit code 2 and one line that names the knob or the option.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdlab import console, headless
from sdlab.arguments import add_device, add_own_loss, add_set, positive, turntable_pixels
from sdlab.bench import commands as bench
from sdlab.claims import commands as claims
from sdlab.experiments import commands as experiments
from sdlab.experiments.measuring import add_metrics
from sdlab.grading import commands as grading
from sdlab.options import choose_device, plan_for, settings_for
from sdlab.site import commands as site
from sdlab.training import cli as toybox


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 for success, 2 for bad input or a failed run, 130 after Ctrl-C, 141 if nobody reads the
    output."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not a terminal or file, or closed
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # paths may not fit its encoding
    args = _parser().parse_args(argv)
    console.quieten()
    try:
        return args.call(args)
    except KeyboardInterrupt:  # while loading; once a run takes steps, it handles Ctrl-C and writes its results
        console.say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # Python flushes it at the end
        return 141
    except (ValueError, OSError, RuntimeError) as e:
        console.say(_one_line(e))
        return 2


def _one_line(e: Exception) -> str:
    return " ".join((str(e) or type(e).__name__).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdlab", description="Score Distillation Lab on the command line.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_run(commands)
    _add_resume(commands)
    _add_replay(commands)
    _add_sheet(commands)
    _add_list(commands)
    grading.add_command(commands)
    add_metrics(commands)
    _add_bench(commands)
    claims.add_command(commands)
    experiments.add_examples(commands)
    site.add_command(commands)
    _add_lessons(commands)
    _add_toybox(commands)
    return parser


# ---- runs --------------------------------------------------------------------------------------------------------


def _add_run(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("run", help="run a distillation and write its results to a folder")
    p.add_argument("preset", help="preset name (see `list presets`) or path of a settings.toml")
    add_set(p, "a knob, such as losses.sds.cfg=20")
    p.add_argument(
        "--at",
        nargs=2,
        action="append",
        default=[],
        metavar=("STEP", "PATH=VALUE"),
        help="change a knob after STEP steps, such as --at 200 active=vdm; changes at the same step act together",
    )
    p.add_argument(
        "--prior", help="shorthand for --set prior.path=...: toybox, a folder, or a model id on the Hugging Face Hub"
    )
    p.add_argument("--steps", type=positive, help="number of steps (default: from the preset)")
    p.add_argument("--seed", type=int, help="random seed (default: from the preset)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    _add_size(p)
    p.add_argument("--overwrite", action="store_true", help="replace an existing run in DIR")
    add_device(p)
    add_own_loss(p)
    p.set_defaults(call=_run)


def _use_own_loss(args: argparse.Namespace) -> None:
    """Make the loss in the file of --own-loss, if it is given, one of all losses."""
    if args.own_loss is not None:
        from sdlab.own_loss import OwnLoss

        OwnLoss(args.own_loss.expanduser())


def _run(args: argparse.Namespace) -> int:
    _use_own_loss(args)
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed, prior__path=args.prior)
    plan, device = plan_for(s, args.at), choose_device(args.device)
    done = headless.run(s, device, args.out, args.preset, args.size, plan, args.overwrite)
    if done.interrupted:
        return 130
    if s.scene.kind == "points" and not plan:
        from sdlab.experiments.playground import compare_with_sds

        compare_with_sds(s, done.prior, args.out)
    return 0


def _add_resume(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("resume", help="continue a run from its last checkpoint")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder written by `run --out`")
    p.add_argument("--steps", type=positive, help="total number of steps to reach (default: as planned)")
    _add_size(p)
    add_device(p)
    add_own_loss(p)
    p.set_defaults(call=_resume)


def _resume(args: argparse.Namespace) -> int:
    _use_own_loss(args)
    done = headless.resume(args.dir, choose_device(args.device), args.size, args.steps)
    return 130 if done.interrupted else 0


def _add_replay(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("replay", help="repeat a run, with every change at its original step")
    p.add_argument("dir", type=Path, metavar="DIR", help="folder written by `run --out`")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    _add_size(p)
    p.add_argument("--overwrite", action="store_true", help="replace an existing run in the --out folder")
    add_device(p)
    add_own_loss(p)
    p.set_defaults(call=_replay)


def _replay(args: argparse.Namespace) -> int:
    _use_own_loss(args)
    done = headless.replay(args.dir, choose_device(args.device), args.out, args.size, args.overwrite)
    return 130 if done.interrupted else 0


def _add_size(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--size",
        type=turntable_pixels,
        default=256,
        help="side of a turntable view in pixels, 16 to 2048 (default %(default)s)",
    )


def _add_sheet(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("sheet", help="combine the turntables of several runs into one image")
    p.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="folders written by `run --out`")
    p.add_argument("--out", type=Path, required=True, metavar="PNG", help="image file to write")
    p.set_defaults(call=_sheet)


def _sheet(args: argparse.Namespace) -> int:
    from sdlab.export.writers import contact_sheet

    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out {args.out}: must end in .png")
    contact_sheet(args.runs, args.out)
    print(f"written to {args.out}")
    return 0


# ---- lists -------------------------------------------------------------------------------------------------------


def _add_list(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("list", help="list the available losses, priors, scenes, presets or knobs")
    p.add_argument("what", choices=("losses", "priors", "scenes", "presets", "knobs"))
    p.set_defaults(call=_list)


def _list(args: argparse.Namespace) -> int:
    from sdlab import settings
    from sdlab.knobs import allowed

    if args.what == "presets":
        for name in settings.preset_names():
            note = settings.about(name)
            print(f"{name:20} {note['title']}: {note['text']}")
    elif args.what == "losses":
        for name, cls in settings.losses().items():
            print(f"{name:20} {cls.title}: {cls.formula}  ({cls.paper})")
    elif args.what == "knobs":
        for path, k in settings.Settings().knobs().items():
            print(f"{path:30} {k.value!r:14} {allowed(k)}; {k.help} [{k.apply}]")
    else:
        members = settings.priors() if args.what == "priors" else settings.scenes()
        for name, cls in members.items():
            print(f"{name:20} {(cls.__doc__ or '').strip().splitlines()[0]}")
    return 0


def _add_lessons(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("lessons", help="list the lessons, or check that they show what they promise")
    p.add_argument("names", nargs="*", metavar="NAME", help="lessons (default: all)")
    p.add_argument(
        "--check", action="store_true", help="walk the lessons without a page; exit code 1 if an effect fails"
    )
    p.add_argument("--seeds", type=positive, default=3, help="seeds of each check (default %(default)s)")
    p.add_argument(
        "--page-number", type=positive, metavar="N", help="check page N alone, as if it was opened by a link"
    )
    p.add_argument("--page", type=Path, metavar="FILE", help="write the table to a page, such as docs/lessons.md")
    add_device(p)
    p.set_defaults(call=_lessons)


def _lessons(args: argparse.Namespace) -> int:
    from sdlab.lessons import commands

    return commands.run(args)


# ---- commands of the packages ------------------------------------------------------------------------------------


def _add_bench(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("bench", help="measure speed or reproduce an experiment; prints a table and writes JSON")
    benches = p.add_subparsers(dest="what", required=True, metavar="raster | step | network | losses | six | ...")
    bench.add_subcommands(benches)
    experiments.add_benches(benches)


def _add_toybox(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "toybox", help="tools for the included prior: its training images, training, evaluation, distilled objects"
    )
    p.set_defaults(call=_toybox, toybox_command=lambda args: p.print_help())
    boxes = p.add_subparsers(
        title="commands", metavar="train | sample | pictures | judge | train-judge | objects | janus"
    )
    toybox.add_subcommands(boxes)
    experiments.add_distilling(boxes)


def _toybox(args: argparse.Namespace) -> int:
    args.toybox_command(args)
    return 0
