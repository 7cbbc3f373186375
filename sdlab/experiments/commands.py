"""The subcommands that reproduce the papers, under `python -m sdlab bench`, and that distil the whole toybox, under
`python -m sdlab toybox`. Nothing heavy is imported before one is called."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlab.arguments import add_device, claim, listed, positive
from sdlab.headless import interruptible
from sdlab.options import choose_device, refuse_reserved, settings_for

if TYPE_CHECKING:
    from sdlab.experiments.objects import Bench
    from sdlab.experiments.variants import Variant
    from sdlab.settings import Settings

VARIANT_HELP = "losses with some of their knobs set: vsd:network=copy,esd:lam=1"
# name -> (module, help), of the experiments that write one JSON file with a plot beside it
PLOTTED = {
    "entropy": ("sdlab.experiments.entropy", "does ESD's lambda spread the views? Exact and learnt scores"),
    "figure10": (
        "sdlab.experiments.eps_statistics",
        "variance of eps and its correlation with the noise over t (DreamMapping, figure 10)",
    ),
}


def add_benches(commands: argparse._SubParsersAction) -> None:
    """Add the experiments to the commands of `bench`; `call` of the parsed arguments runs one, returning the exit
    code."""
    for what in PLOTTED:
        _add_plotted(commands, what)
    _add_playground(commands)
    _add_table31(commands)
    _add_six(commands)
    _add_cutoffs(commands)
    _add_janus_losses(commands)


def add_distilling(commands: argparse._SubParsersAction) -> None:
    """Add `objects` and `janus` to the commands of `toybox`, as `add_benches` does."""
    _add_objects(commands)
    _add_janus(commands)


def _measured(args: argparse.Namespace, bench: Bench, measure: Callable[[], Any]) -> int:
    """Prepare and measure. Returns the exit code: 130 if Ctrl-C ended it early, with the results so far written."""
    claim(args.out)
    bench.prepare()
    with interruptible(bench.stop.set) as interrupted:
        measure()
    return 130 if interrupted() else 0


# ---- one JSON file and a plot ------------------------------------------------------------------------------------


def _add_plotted(commands: argparse._SubParsersAction, what: str) -> None:
    module, text = PLOTTED[what]
    p = commands.add_parser(what, help=text)
    p.add_argument("--out", type=Path, metavar="FILE", help=f"JSON file (default: bench-{what}.json)")
    p.add_argument("--quick", action="store_true", help="fewer repeats")
    p.set_defaults(call=_plotted, module=module)


def _plotted(args: argparse.Namespace) -> int:
    out = args.out or Path(f"bench-{args.what}.json")
    import_module(args.module).run(out, quick=args.quick)
    print(f"written to {out}")
    return 0


# ---- the plane and pictures --------------------------------------------------------------------------------------


def _add_playground(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("playground", help="the toy experiment of the JSD paper: SDS and JSD in the plane")
    p.add_argument("--out", type=Path, default=Path("out") / "playground", metavar="DIR", help="(default %(default)s)")
    p.add_argument("--quick", action="store_true", help="a tenth of the seeds")
    p.set_defaults(call=_playground)


def _playground(args: argparse.Namespace) -> int:
    from sdlab.experiments import playground

    claim(args.out)
    playground.run(args.out, args.quick)
    return 0


def _add_table31(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("table31", help="pictures by every loss beside DDIM: FID, KID, seconds (SBP thesis)")
    p.add_argument("--out", type=Path, default=Path("out") / "table31", metavar="DIR", help="(default %(default)s)")
    p.add_argument("--captions", type=positive, metavar="N", help='such as "a red bear" (default 64)')
    p.add_argument("--steps", type=positive, metavar="N", help="of every loss (default 60)")
    p.add_argument("--seeds", type=positive, metavar="N", help="pictures of each caption (default 2)")
    p.add_argument("--losses", default="", metavar="LIST", help=f"ddim, {VARIANT_HELP} (default: all of the table)")
    p.add_argument("--preset", default="toybox-2d", help="one of pictures (default %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of all")
    p.add_argument("--quick", action="store_true", help="8 captions, 40 steps, one seed, fewer references")
    add_device(p)
    p.set_defaults(call=_table31)


def _table31(args: argparse.Namespace) -> int:
    from sdlab.experiments import text_to_2d as table
    from sdlab.experiments.objects import Bench

    refuse_reserved(args.set, ("active", "prompt.text", "prompt.view_dependent", "scene.n", "seed", "steps"))
    size, steps = (table.QUICK, table.QUICK_STEPS) if args.quick else (table.Size(), table.STEPS)
    steps = args.steps or steps
    size = size._replace(captions=args.captions or size.captions, seeds=args.seeds or size.seeds)

    def settings(defaults: Sequence[str], changes: Sequence[str]) -> Settings:
        return settings_for(args.preset, [*table.common(steps), *defaults, *args.set, *changes], steps=steps)

    wanted = table.methods(listed(args.losses) or table.METHODS, settings)
    bench = Bench(settings((), ()), choose_device(args.device))
    return _measured(args, bench, lambda: table.run_table(bench, wanted, size, args.out))


# ---- losses beside each other ------------------------------------------------------------------------------------


def _add_six(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("six", help="the losses of the papers: one prompt, one seed, the same seconds each")
    p.add_argument("--prompt", help="what to make (default: the preset's)")
    p.add_argument("--losses", default="", metavar="LIST", help=f"more than the six; {VARIANT_HELP}")
    p.add_argument("--only", default="", metavar="LIST", help="these instead of the six, written likewise")
    _add_comparing(p, "six", seconds=60)
    p.set_defaults(call=_six)


def _six(args: argparse.Namespace) -> int:
    from sdlab.experiments import six

    labels = [("--only", x) for x in listed(args.only)] or [("--losses", x) for x in six.SIX]
    labels += [("--losses", x) for x in listed(args.losses)]
    bench, variants = comparison(args, labels, reserved=("active", "prompt.text"), text=args.prompt)
    six.asked_for(bench.settings.prompt.text)  # refused before any work, if it must be
    return _measured(args, bench, lambda: six.run_six(bench, variants, args.out, args.steps))


def _add_cutoffs(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("cutoffs", help="VDM with several cut-offs of DCA: one prompt, one seed")
    p.add_argument("--prompt", help="what to make (default: the preset's)")
    p.add_argument("--cutoffs", default="", metavar="LIST", help="timesteps, 0 for none (default: 0,100,300,500)")
    p.add_argument("--flat", action="store_true", help="pictures, no object: short for --preset toybox-2d")
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
    bench, variants = comparison(args, labels, ("active", "prompt.text", "losses.vdm.dca_cutoff"), args.prompt)
    six.asked_for(bench.settings.prompt.text)
    return _measured(args, bench, lambda: six.run_six(bench, variants, args.out, args.steps, "cutoffs"))


def _add_janus_losses(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("janus-losses", help="count fronts of several losses, without view words")
    p.add_argument(
        "--variants", default="", metavar="LIST", help=f"{VARIANT_HELP} (default: vsd,esd:lam=0.5,esd:lam=1)"
    )
    p.add_argument(
        "--objects", default="bear,cat,clock", metavar="NAMES", help="some with a front (default %(default)s)"
    )
    p.add_argument("--seeds", type=positive, default=3, metavar="N", help="seed to seed + N - 1 (default %(default)s)")
    _add_comparing(p, "janus-losses", seconds=60)
    p.set_defaults(call=_janus_losses)


def _janus_losses(args: argparse.Namespace) -> int:
    from sdlab.experiments import janus_losses as janus
    from sdlab.experiments.objects import choose

    labels = [("--variants", x) for x in listed(args.variants) or janus.VARIANTS]
    bench, variants = comparison(args, labels, reserved=("active", "prompt.text", "prompt.view_dependent"))
    names = choose(args.objects, "--objects", front=True)
    entries = janus.entries(variants, names, args.seeds)
    return _measured(args, bench, lambda: janus.run_janus_losses(bench, entries, args.out, args.steps))


def _add_comparing(p: argparse.ArgumentParser, what: str, seconds: int) -> None:
    """Add the options that `bench six`, `bench cutoffs` and `bench janus-losses` share."""
    p.add_argument("--out", type=Path, default=Path("out") / what, metavar="DIR", help="for results (%(default)s)")
    p.add_argument("--preset", help="for all (default: toybox-<loss> where there is one, otherwise toybox)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of all")
    p.add_argument("--seconds", type=positive, help=f"of each run (default {seconds}; with --steps: no limit)")
    p.add_argument("--steps", type=positive, help="of each run (default: as many as the seconds allow)")
    p.add_argument("--seed", type=int, default=0, help="of every random draw (default %(default)s)")
    add_device(p)
    p.set_defaults(default_seconds=seconds)


def comparison(
    args: argparse.Namespace, labels: Sequence[tuple[str, str]], reserved: Sequence[str], text: str | None = None
) -> tuple[Bench, list[Variant]]:
    """Return the bench and the variants of a comparison. `labels` are pairs: the option that named a variant, and its
    spelling; `text` is the prompt, None for the preset's. Raises ValueError for bad options and `reserved` knobs."""
    from sdlab.experiments.objects import Bench
    from sdlab.experiments.variants import PRESET, Variant, preset_of, spelled

    refuse_reserved(args.set, reserved)
    named = {"steps": args.steps, "seed": args.seed, "prompt__text": text}
    base = settings_for(args.preset or PRESET, args.set, **named)
    named["prompt__text"] = base.prompt.text  # a tuned preset may have another
    variants = {}
    for option, label in labels:
        loss, assignments = spelled(label, option)
        preset = args.preset or preset_of(loss)
        s = settings_for(preset, [*args.set, f"active={loss}", *assignments], **named)
        variants[label] = Variant(label, preset, s)
    seconds = args.seconds or (float("inf") if args.steps else args.default_seconds)
    return Bench(base, choose_device(args.device), float(seconds)), list(variants.values())


# ---- distilling the whole toybox ---------------------------------------------------------------------------------


def _add_objects(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("objects", help="distil every object and let the judge say what came out")
    p.add_argument("--only", metavar="NAMES", help="some of the objects: bear,car")
    p.add_argument("--colour", default="", help="one colour for all (default: each object has its own)")
    p.add_argument("--keep", action="store_true", help="also keep the Gaussians: DIR/<object>/scene.ply")
    _add_distilling(p, "objects")
    p.set_defaults(call=_objects)


def _objects(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    bench = _distilling(args, reserved=("prompt.text",))
    cases = objects.cases(bench.settings, objects.choose(args.only, "--only"), args.colour)
    return _measured(args, bench, lambda: objects.run_objects(bench, cases, args.out, args.keep))


def _add_janus(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("janus", help="count fronts with view-dependent prompts off and on")
    p.add_argument("--objects", metavar="NAMES", help="some of the objects with a front: bear,car")
    p.add_argument("--seeds", type=positive, default=1, metavar="N", help="runs of each, seed to seed + N - 1")
    _add_distilling(p, "janus")
    p.set_defaults(call=_janus)


def _janus(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    bench = _distilling(args, reserved=("prompt.text", "prompt.view_dependent"))
    cases = objects.janus_cases(bench.settings, objects.choose(args.objects, "--objects", front=True), args.seeds)
    return _measured(args, bench, lambda: objects.run_janus(bench, cases, args.out))


def _add_distilling(p: argparse.ArgumentParser, what: str) -> None:
    """Add the options that `toybox objects` and `toybox janus` share."""
    p.add_argument("--out", type=Path, default=Path("out") / what, metavar="DIR", help="for results (%(default)s)")
    p.add_argument("--preset", default="toybox", help="a preset's name or a settings.toml (default %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob")
    p.add_argument("--steps", type=positive, help="of each run (default: the preset's)")
    p.add_argument("--seconds", type=positive, default=60, help="a run ends then at the latest (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of every random draw (default %(default)s)")
    p.add_argument("--jobs", type=positive, default=1, help="runs at a time; more slow each other (default 1)")
    add_device(p)


def _distilling(args: argparse.Namespace, reserved: Sequence[str]) -> Bench:
    """Return the bench that both commands use. Raises ValueError for bad options and `reserved` knobs."""
    from sdlab.experiments.objects import Bench

    refuse_reserved(args.set, reserved)
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed)
    return Bench(s, choose_device(args.device), args.seconds, args.jobs)
