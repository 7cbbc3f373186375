"""Subcommands of `python -m sdlab bench` that compare losses on the same prompts and seeds.

`call` of the parsed arguments runs the chosen one and returns the exit code. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdlab.arguments import add_device, add_out, add_seed, add_seeds, add_set, listed, positive
from sdlab.experiments.stopping import measured
from sdlab.options import choose_device, refuse_reserved, settings_for

if TYPE_CHECKING:
    from sdlab.experiments.objects import Runner
    from sdlab.experiments.variants import Variant

VARIANT_HELP = "losses, each optionally with knobs, such as vsd:network=copy,esd:lam=1"


def add_six(commands: argparse._SubParsersAction) -> None:
    """Add `six`."""
    p = commands.add_parser("six", help="compare six losses: one prompt, one seed, equal time")
    p.add_argument("--prompt", help="prompt (default: from the preset)")
    p.add_argument("--losses", default="", metavar="LIST", help=f"additional {VARIANT_HELP}")
    p.add_argument("--only", default="", metavar="LIST", help="losses to use instead of the six, in the same notation")
    _add_comparing(p, "six", seconds=60)
    p.set_defaults(call=_six)


def _six(args: argparse.Namespace) -> int:
    from sdlab.experiments import six

    labels = [("--only", x) for x in listed(args.only)] or [("--losses", x) for x in six.SIX]
    labels += [("--losses", x) for x in listed(args.losses)]
    runner, variants = comparison(args, labels, reserved=("active", "prompt.text"), text=args.prompt)
    six.asked_for(runner.settings.prompt.text)  # raises before any work for a prompt that the judge cannot read
    return measured(args, runner, lambda: six.run_six(runner, variants, args.out, args.steps))


def add_cutoffs(commands: argparse._SubParsersAction) -> None:
    """Add `cutoffs`."""
    p = commands.add_parser("cutoffs", help="compare cut-offs of DCA in VDM: one prompt, one seed")
    p.add_argument("--prompt", help="prompt (default: from the preset)")
    p.add_argument("--cutoffs", default="", metavar="LIST", help="timesteps, 0 for no cut-off (default: 0,100,300,500)")
    p.add_argument("--flat", action="store_true", help="images instead of an object: shorthand for --preset toybox-2d")
    _add_comparing(p, "cutoffs", seconds=60)
    p.set_defaults(call=_cutoffs)


def _cutoffs(args: argparse.Namespace) -> int:
    from sdlab.experiments import six

    if args.flat:
        if args.preset:
            raise ValueError(f"--flat and --preset {args.preset}: give one of them; --flat means toybox-2d")
        args.preset = "toybox-2d"
    cutoffs = listed(args.cutoffs) or six.CUTOFFS
    labels = [("--cutoffs", f"vdm:dca_cutoff={cutoff}") for cutoff in cutoffs]
    runner, variants = comparison(args, labels, ("active", "prompt.text", "losses.vdm.dca_cutoff"), args.prompt)
    six.asked_for(runner.settings.prompt.text)
    return measured(args, runner, lambda: six.run_six(runner, variants, args.out, args.steps, "cutoffs"))


def add_janus_losses(commands: argparse._SubParsersAction) -> None:
    """Add `janus-losses`."""
    p = commands.add_parser(
        "janus-losses", help="count the fronts that each loss grows without view words in the prompt"
    )
    p.add_argument(
        "--variants", default="", metavar="LIST", help=f"{VARIANT_HELP} (default: vsd,esd:lam=0.5,esd:lam=1)"
    )
    p.add_argument(
        "--objects", default="bear,cat,clock", metavar="NAMES", help="objects that have a front (default %(default)s)"
    )
    add_seeds(p, 3)
    _add_comparing(p, "janus-losses", seconds=60)
    p.set_defaults(call=_janus_losses)


def _janus_losses(args: argparse.Namespace) -> int:
    from sdlab.experiments import janus_losses as janus
    from sdlab.experiments.objects import parse_objects

    labels = [("--variants", x) for x in listed(args.variants) or janus.VARIANTS]
    runner, variants = comparison(args, labels, reserved=("active", "prompt.text", "prompt.view_dependent"))
    names = parse_objects(args.objects, "--objects", front=True)
    entries = janus.entries(variants, names, args.seeds)
    return measured(args, runner, lambda: janus.run_janus_losses(runner, entries, args.out, args.steps))


def add_views(commands: argparse._SubParsersAction) -> None:
    """Add a command for each table and figure that compares 3D objects over 120 views."""
    from sdlab.experiments.tables import TABLES

    for name, table in TABLES.items():
        p = commands.add_parser(name, help=table.title)
        p.add_argument(
            "--variants", default="", metavar="LIST", help=f"{VARIANT_HELP} (default: {','.join(table.variants)})"
        )
        p.add_argument("--objects", default="bear,cat,robot", metavar="NAMES", help="objects (default %(default)s)")
        p.add_argument("--seeds", type=positive, default=2, metavar="N", help="seeds from --seed (default %(default)s)")
        _add_comparing(p, name, seconds=60)
        p.set_defaults(call=_views, table=name)


def _views(args: argparse.Namespace) -> int:
    from sdlab.experiments import tables, views
    from sdlab.experiments.objects import parse_objects
    from sdlab.experiments.variants import preset_for

    table = tables.TABLES[args.table]
    args.family = args.family or ("" if args.preset else "gallery")
    of_vdm = settings_for(args.preset or preset_for("vdm", args.family), args.set).knob("losses.vdm.cfg").value
    spelled = listed(args.variants) or [label.replace(tables.AS_VDM, f"sds:cfg={of_vdm:g}") for label in table.variants]
    args.set = [*table.knobs, *args.set]
    runner, variants = comparison(args, [("--variants", x) for x in spelled], ("active", "prompt.text"))
    runs = views.entries(variants, parse_objects(args.objects, "--objects"), args.seeds)
    return measured(args, runner, lambda: views.run_views(runner, runs, args.out, args.table, args.steps))


def _add_comparing(p: argparse.ArgumentParser, what: str, seconds: int) -> None:
    """Add the options that all of these commands share."""
    add_out(p, what)
    p.add_argument("--preset", help="preset of every run (default: FAMILY-<loss> if it exists, otherwise FAMILY)")
    p.add_argument("--family", help="presets to choose from by loss, such as gallery (default toybox)")
    add_set(p, "a knob of every run")
    p.add_argument("--seconds", type=positive, help=f"seconds per run (default {seconds}; with --steps: no limit)")
    p.add_argument("--steps", type=positive, help="steps per run (default: as many as fit into --seconds)")
    add_seed(p)
    add_device(p)
    p.set_defaults(default_seconds=seconds)


def comparison(
    args: argparse.Namespace, labels: Sequence[tuple[str, str]], reserved: Sequence[str], text: str | None = None
) -> tuple[Runner, list[Variant]]:
    """Return the runner and the variants of a comparison.

    `labels` holds pairs of the option that named a variant and its spelling; `text` is the prompt, or None for the
    preset's own. Raises ValueError for bad options and for assignments to `reserved` knobs.
    """
    from sdlab.experiments.objects import Runner
    from sdlab.experiments.variants import PRESET, Variant, parse_variant, preset_for

    refuse_reserved(args.set, reserved)
    named = {"steps": args.steps, "seed": args.seed, "prompt__text": text}
    if args.preset and args.family:
        raise ValueError(f"--preset {args.preset} and --family {args.family}: give one of them")
    family = args.family or PRESET
    base = settings_for(args.preset or family, args.set, **named)
    named["prompt__text"] = base.prompt.text  # the preset tuned for a loss may have another prompt
    variants = {}
    for option, label in labels:
        loss, assignments = parse_variant(label, option)
        preset = args.preset or preset_for(loss, family)
        s = settings_for(preset, [*args.set, f"active={loss}", *assignments], **named)
        variants[label] = Variant(label, preset, s)
    seconds = args.seconds or (float("inf") if args.steps else args.default_seconds)
    return Runner(base, choose_device(args.device), float(seconds)), list(variants.values())
