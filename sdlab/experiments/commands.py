"""Subcommands that reproduce papers (under `python -m sdlab bench`) or distil the whole toybox (under `python -m sdlab
toybox`). Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sdlab.arguments import add_device, add_out, add_seed, add_seeds, add_set, claim, listed, positive
from sdlab.examples import FOLDER, OPENING
from sdlab.experiments import comparing, distilling
from sdlab.experiments.comparing import VARIANT_HELP
from sdlab.experiments.measuring import add_features
from sdlab.experiments.stopping import measured, stoppable
from sdlab.options import choose_device, refuse_reserved, settings_for

if TYPE_CHECKING:
    from sdlab.settings import Settings

# name -> (module, help) of experiments that write one JSON file and a plot
PLOTTED = {
    "entropy": (
        "sdlab.experiments.entropy",
        "effect of ESD's lambda on the entropy of the views, with exact and learnt scores",
    ),
    "figure10": (
        "sdlab.experiments.eps_statistics",
        "variance of eps and its correlation with the noise over t (figure 10 of DreamMapping)",
    ),
    "truth": (
        "sdlab.experiments.truth",
        "error of the toybox's network against the closed form over its data, over t, by object and by view word",
    ),
}


def add_benches(commands: argparse._SubParsersAction) -> None:
    """Add the experiments to `bench`. `call` of the parsed arguments runs the chosen one and returns the exit code."""
    for what in PLOTTED:
        _add_plotted(commands, what)
    _add_playground(commands)
    _add_table31(commands)
    comparing.add_six(commands)
    comparing.add_cutoffs(commands)
    comparing.add_janus_losses(commands)
    _add_gallery_losses(commands)
    _add_gallery_residuals(commands)
    _add_esd(commands)
    comparing.add_views(commands)
    _add_divergences(commands)
    add_features(commands)
    _add_tasks(commands)


def add_distilling(commands: argparse._SubParsersAction) -> None:
    """Add `objects` and `janus` to `toybox`. `call` works as in `add_benches`."""
    distilling.add_objects(commands)
    distilling.add_janus(commands)


def add_examples(commands: argparse._SubParsersAction) -> None:
    """Add `examples`, which makes the pictures of the page's first minute."""
    p = commands.add_parser("examples", help="make the thumbnails of the page's examples and its opening recording")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"examples, or {OPENING} (default: all)")
    p.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder to write to (default: the page's)")
    add_device(p)
    p.set_defaults(call=_examples)


def _examples(args: argparse.Namespace) -> int:
    from sdlab.experiments.examples import make

    for file in make(args.names, args.out, choose_device(args.device)):
        print(f"{file}: {file.stat().st_size:,} bytes", flush=True)
    return 0


# ---- one JSON file and a plot ------------------------------------------------------------------------------------


def _add_plotted(commands: argparse._SubParsersAction, what: str) -> None:
    module, text = PLOTTED[what]
    p = commands.add_parser(what, help=text)
    p.add_argument("--out", type=Path, metavar="FILE", help=f"JSON file to write (default: bench-{what}.json)")
    p.add_argument("--quick", action="store_true", help="fewer repetitions")
    if what == "truth":
        p.add_argument(
            "--weights", default="toybox", metavar="FOLDER", help="a network trained on the toybox (default: toybox)"
        )
    p.set_defaults(call=_plotted, module=module)


def _plotted(args: argparse.Namespace) -> int:
    out = args.out or Path(f"bench-{args.what}.json")
    more = {"weights": args.weights} if "weights" in args else {}
    code = stoppable(lambda stop: import_module(args.module).run(out, quick=args.quick, stop=stop, **more))
    if code == 0 or out.exists():  # interrupted before anything was finished, there is no file
        print(f"written to {out}")
    return code


# ---- the plane and images ----------------------------------------------------------------------------------------


def _add_playground(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("playground", help="toy experiment of the JSD paper: SDS and JSD in the plane")
    add_out(p, "playground")
    p.add_argument("--quick", action="store_true", help="a tenth of the seeds")
    p.set_defaults(call=_playground)


def _playground(args: argparse.Namespace) -> int:
    from sdlab.experiments import playground

    claim(args.out)
    return stoppable(lambda stop: playground.run(args.out, args.quick, stop))


def _add_table31(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "table31", help="images by nine losses and by DDIM: FID, KID, seconds (table 3.1 of the SBP thesis)"
    )
    add_out(p, "table31")
    p.add_argument("--captions", type=positive, metavar="N", help="number of captions (default 64)")
    p.add_argument("--steps", type=positive, metavar="N", help="steps per loss (default 60)")
    p.add_argument("--seeds", type=positive, metavar="N", help="images per caption (default 2)")
    p.add_argument(
        "--losses",
        default="",
        metavar="LIST",
        help=f"ddim, or {VARIANT_HELP}; sds@thesis for the thesis' settings (default: the whole table)",
    )
    p.add_argument("--preset", default="toybox-2d", help="preset with an image scene (default %(default)s)")
    add_set(p, "a knob of every run")
    p.add_argument("--quick", action="store_true", help="8 captions, 40 steps, one seed, fewer reference images")
    add_device(p)
    p.set_defaults(call=_table31)


def _table31(args: argparse.Namespace) -> int:
    from sdlab.experiments import protocols
    from sdlab.experiments import text_to_2d as table
    from sdlab.experiments.objects import Runner

    refuse_reserved(args.set, ("active", "prompt.text", "prompt.view_dependent", "scene.n", "seed", "steps"))
    size, steps = (table.QUICK, table.QUICK_STEPS) if args.quick else (table.Size(), table.STEPS)
    steps = args.steps or steps
    size = size._replace(captions=args.captions or size.captions, seeds=args.seeds or size.seeds)

    def settings(defaults: Sequence[str], changes: Sequence[str]) -> Settings:
        return settings_for(args.preset, [*protocols.common(steps), *defaults, *args.set, *changes], steps=steps)

    wanted = protocols.methods(listed(args.losses) or protocols.METHODS, settings)
    runner = Runner(settings((), ()), choose_device(args.device))
    return measured(args, runner, lambda: table.run_table(runner, wanted, size, args.out))


# ---- exact scores, and tasks --------------------------------------------------------------------------------------


def _add_gallery_losses(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("gallery-losses", help="distil three objects with every loss on exact scores of images")
    p.add_argument("--losses", default="", metavar="NAMES", help="only these losses (default: all)")
    p.add_argument("--objects", default="bear,car,robot", metavar="NAMES", help="objects to make (default %(default)s)")
    add_set(p, "a knob of every run")
    p.add_argument("--steps", type=positive, help="steps per run (default: from each preset)")
    p.add_argument("--seconds", type=positive, default=300, help="time limit per run, in seconds (default %(default)s)")
    add_seed(p)
    add_out(p, "gallery-losses")
    add_device(p)
    p.set_defaults(call=_gallery_losses)


def _gallery_losses(args: argparse.Namespace) -> int:
    from sdlab.experiments import gallery_losses as bench
    from sdlab.experiments.objects import Runner, parse_objects
    from sdlab.settings import losses

    refuse_reserved(args.set, ("active", "prompt.text"))
    names = listed(args.losses) or list(losses())
    objects = parse_objects(args.objects, "--objects")
    own = [settings_for(bench.preset_for(loss), args.set, steps=args.steps, seed=args.seed) for loss in names]
    runner = Runner(own[0], choose_device(args.device), float(args.seconds))
    todo = bench.entries(names, objects, own)
    return measured(args, runner, lambda: bench.run_gallery_losses(runner, todo, args.out))


def _add_gallery_residuals(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "gallery-residuals",
        help="residuals of losses at images that already fit the prompt, and the noise of inversions",
    )
    p.add_argument("--losses", default="", metavar="LIST", help=VARIANT_HELP)
    add_set(p, "a knob of the preset gallery")
    add_out(p, "gallery-residuals")
    add_device(p)
    p.set_defaults(call=_gallery_residuals)


def _gallery_residuals(args: argparse.Namespace) -> int:
    from sdlab.experiments import gallery_residuals as bench
    from sdlab.experiments.objects import Runner

    s = settings_for("gallery", args.set)
    losses = bench.variants(listed(args.losses) or bench.LOSSES, s)
    runner = Runner(s, choose_device(args.device))
    return measured(args, runner, lambda: bench.run_residuals(runner, losses, args.out))


def _add_esd(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("esd", help="fronts and variety of the views over ESD's lambda, with exact scores")
    add_out(p, "esd")
    p.add_argument(
        "--objects",
        default="bear,cat,rabbit,robot,frog,owl",
        metavar="NAMES",
        help="objects that have a front (default %(default)s)",
    )
    p.add_argument(
        "--lambdas", default="", metavar="LIST", help="values of lambda, 0 is VSD (default: 0,0.5,0.7,0.85,1)"
    )
    add_seeds(p, 3)
    p.add_argument("--preset", default="gallery-esd-views", help="preset of every run (default %(default)s)")
    add_set(p, "a knob of every run")
    p.add_argument("--steps", type=positive, help="steps per run (default: from the preset)")
    add_seed(p)
    add_device(p)
    p.set_defaults(call=_esd)


def _esd(args: argparse.Namespace) -> int:
    from sdlab.experiments import esd_views
    from sdlab.experiments.objects import Runner, parse_objects

    refuse_reserved(args.set, ("active", "prompt.text", "losses.esd.lam"))
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed)
    names = parse_objects(args.objects, "--objects", front=True)
    lambdas = esd_views.parse_lambdas(args.lambdas, "--lambdas")
    runs = esd_views.entries(s, names, lambdas, args.seeds)
    runner = Runner(s, choose_device(args.device), float("inf"))
    return measured(args, runner, lambda: esd_views.run(runner, runs, args.out))


def _add_divergences(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "divergences", help="bounds of JSD's divergence, growth of its gradient, and the error of its inversion"
    )
    add_out(p, "divergences")
    p.add_argument("--quick", action="store_true", help="fewer seeds")
    p.set_defaults(call=_divergences)


def _divergences(args: argparse.Namespace) -> int:
    from sdlab.experiments import divergences

    claim(args.out)
    divergences.run(args.out, args.quick)
    return 0


def _add_tasks(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("tasks", help="illusions, painting to real, 3D sketch to real (tasks of the SBP thesis)")
    add_out(p, "tasks")
    p.add_argument("--only", default="", metavar="LIST", help="of illusion, painting, sketch (default: all)")
    p.add_argument("--quick", action="store_true", help="fewer runs")
    add_set(p, "a knob of every run")
    p.add_argument("--steps", type=positive, help="steps per run (default: from each preset)")
    add_seed(p)
    add_device(p)
    p.set_defaults(call=_tasks)


def _tasks(args: argparse.Namespace) -> int:
    from sdlab.experiments import tasks
    from sdlab.experiments.objects import Runner

    refuse_reserved(args.set, ("active", "prompt.text"))
    names = tasks.parse_tasks(args.only, "--only")
    all_settings = [
        settings_for(tasks.TASKS[name].PRESET, args.set, steps=args.steps, seed=args.seed) for name in names
    ]
    device = choose_device(args.device)
    for name, s in zip(names, all_settings, strict=True):
        runner = Runner(s, device, float("inf"))
        code = measured(args, runner, lambda name=name, runner=runner: tasks.run(runner, name, args.out, args.quick))
        if code:
            return code
    return 0
