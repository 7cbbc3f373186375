"""Subcommands that reproduce papers (under `python -m sdlab bench`) or distil the whole toybox (under `python -m sdlab
toybox`). Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlab.arguments import add_device, add_out, claim, listed, positive
from sdlab.examples import FOLDER, OPENING
from sdlab.experiments.measuring import add_features
from sdlab.headless import interruptible
from sdlab.options import DEFAULT_PRESET, choose_device, refuse_reserved, settings_for

if TYPE_CHECKING:
    from sdlab.experiments.objects import Runner
    from sdlab.experiments.variants import Variant
    from sdlab.settings import Settings

VARIANT_HELP = "losses, each optionally with knobs, such as vsd:network=copy,esd:lam=1"
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
    _add_six(commands)
    _add_cutoffs(commands)
    _add_janus_losses(commands)
    _add_gallery_losses(commands)
    _add_gallery_residuals(commands)
    _add_esd(commands)
    _add_views(commands)
    _add_divergences(commands)
    add_features(commands)
    _add_tasks(commands)


def add_distilling(commands: argparse._SubParsersAction) -> None:
    """Add `objects` and `janus` to `toybox`. `call` works as in `add_benches`."""
    _add_objects(commands)
    _add_janus(commands)


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


def _measured(args: argparse.Namespace, runner: Runner, measure: Callable[[], Any]) -> int:
    """Prepare and measure. Return the exit code: 130 if Ctrl-C ended the measurement early; results so far are kept."""
    claim(args.out)
    runner.prepare()
    with interruptible(runner.stop.set) as interrupted:
        measure()
    return 130 if interrupted() else 0


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
    code = _stoppable(lambda stop: import_module(args.module).run(out, quick=args.quick, stop=stop, **more))
    if code == 0 or out.exists():  # interrupted before anything was finished, there is no file
        print(f"written to {out}")
    return code


def _stoppable(measure: Callable[[Callable[[], bool]], Any]) -> int:
    """Measure, passing a function that tells whether to stop. Return the exit code: 130 after Ctrl-C or SIGTERM, which
    keep what is finished."""
    stop = threading.Event()
    with interruptible(stop.set) as interrupted:
        measure(stop.is_set)
    return 130 if interrupted() else 0


# ---- the plane and images ----------------------------------------------------------------------------------------


def _add_playground(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("playground", help="toy experiment of the JSD paper: SDS and JSD in the plane")
    add_out(p, "playground")
    p.add_argument("--quick", action="store_true", help="a tenth of the seeds")
    p.set_defaults(call=_playground)


def _playground(args: argparse.Namespace) -> int:
    from sdlab.experiments import playground

    claim(args.out)
    return _stoppable(lambda stop: playground.run(args.out, args.quick, stop))


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
    p.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of every run; repeatable"
    )
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
    return _measured(args, runner, lambda: table.run_table(runner, wanted, size, args.out))


# ---- comparisons of losses --------------------------------------------------------------------------------------


def _add_six(commands: argparse._SubParsersAction) -> None:
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
    return _measured(args, runner, lambda: six.run_six(runner, variants, args.out, args.steps))


def _add_cutoffs(commands: argparse._SubParsersAction) -> None:
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
    return _measured(args, runner, lambda: six.run_six(runner, variants, args.out, args.steps, "cutoffs"))


def _add_janus_losses(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "janus-losses", help="count the fronts that each loss grows without view words in the prompt"
    )
    p.add_argument(
        "--variants", default="", metavar="LIST", help=f"{VARIANT_HELP} (default: vsd,esd:lam=0.5,esd:lam=1)"
    )
    p.add_argument(
        "--objects", default="bear,cat,clock", metavar="NAMES", help="objects that have a front (default %(default)s)"
    )
    p.add_argument(
        "--seeds",
        type=positive,
        default=3,
        metavar="N",
        help="number of seeds, counted up from --seed (default %(default)s)",
    )
    _add_comparing(p, "janus-losses", seconds=60)
    p.set_defaults(call=_janus_losses)


def _janus_losses(args: argparse.Namespace) -> int:
    from sdlab.experiments import janus_losses as janus
    from sdlab.experiments.objects import parse_objects

    labels = [("--variants", x) for x in listed(args.variants) or janus.VARIANTS]
    runner, variants = comparison(args, labels, reserved=("active", "prompt.text", "prompt.view_dependent"))
    names = parse_objects(args.objects, "--objects", front=True)
    entries = janus.entries(variants, names, args.seeds)
    return _measured(args, runner, lambda: janus.run_janus_losses(runner, entries, args.out, args.steps))


def _add_gallery_losses(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("gallery-losses", help="distil three objects with every loss on exact scores of images")
    p.add_argument("--losses", default="", metavar="NAMES", help="only these losses (default: all)")
    p.add_argument("--objects", default="bear,car,robot", metavar="NAMES", help="objects to make (default %(default)s)")
    p.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of every run; repeatable"
    )
    p.add_argument("--steps", type=positive, help="steps per run (default: from each preset)")
    p.add_argument("--seconds", type=positive, default=300, help="time limit per run, in seconds (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
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
    return _measured(args, runner, lambda: bench.run_gallery_losses(runner, todo, args.out))


def _add_gallery_residuals(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "gallery-residuals",
        help="residuals of losses at images that already fit the prompt, and the noise of inversions",
    )
    p.add_argument("--losses", default="", metavar="LIST", help=VARIANT_HELP)
    p.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of the preset gallery; repeatable"
    )
    add_out(p, "gallery-residuals")
    add_device(p)
    p.set_defaults(call=_gallery_residuals)


def _gallery_residuals(args: argparse.Namespace) -> int:
    from sdlab.experiments import gallery_residuals as bench
    from sdlab.experiments.objects import Runner

    s = settings_for("gallery", args.set)
    losses = bench.variants(listed(args.losses) or bench.LOSSES, s)
    runner = Runner(s, choose_device(args.device))
    return _measured(args, runner, lambda: bench.run_residuals(runner, losses, args.out))


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
    p.add_argument(
        "--seeds",
        type=positive,
        default=3,
        metavar="N",
        help="number of seeds, counted up from --seed (default %(default)s)",
    )
    p.add_argument("--preset", default="gallery-esd-views", help="preset of every run (default %(default)s)")
    p.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of every run; repeatable"
    )
    p.add_argument("--steps", type=positive, help="steps per run (default: from the preset)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
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
    return _measured(args, runner, lambda: esd_views.run(runner, runs, args.out))


def _add_views(commands: argparse._SubParsersAction) -> None:
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
    return _measured(args, runner, lambda: views.run_views(runner, runs, args.out, args.table, args.steps))


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
    p.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of every run; repeatable"
    )
    p.add_argument("--steps", type=positive, help="steps per run (default: from each preset)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
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
        code = _measured(args, runner, lambda name=name, runner=runner: tasks.run(runner, name, args.out, args.quick))
        if code:
            return code
    return 0


def _add_comparing(p: argparse.ArgumentParser, what: str, seconds: int) -> None:
    """Add the options that `bench six`, `bench cutoffs` and `bench janus-losses` share."""
    add_out(p, what)
    p.add_argument("--preset", help="preset of every run (default: FAMILY-<loss> if it exists, otherwise FAMILY)")
    p.add_argument("--family", help="presets to choose from by loss, such as gallery (default toybox)")
    p.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of every run; repeatable"
    )
    p.add_argument("--seconds", type=positive, help=f"seconds per run (default {seconds}; with --steps: no limit)")
    p.add_argument("--steps", type=positive, help="steps per run (default: as many as fit into --seconds)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
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


# ---- distilling the whole toybox ---------------------------------------------------------------------------------


def _add_objects(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("objects", help="distil every object and let the judge read the results")
    p.add_argument("--only", metavar="NAMES", help="only these objects, such as bear,car")
    p.add_argument("--colour", default="", help="one colour for all objects (default: each has its own)")
    p.add_argument("--keep", action="store_true", help="also write the Gaussians to DIR/<object>/scene.ply")
    _add_distilling(p, "objects")
    p.set_defaults(call=_objects)


def _objects(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    runner = _distilling(args, reserved=("prompt.text",))
    cases = objects.cases(runner.settings, objects.parse_objects(args.only, "--only"), args.colour)
    return _measured(args, runner, lambda: objects.run_objects(runner, cases, args.out, args.keep))


def _add_janus(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("janus", help="count fronts with view-dependent prompts off and on")
    p.add_argument("--objects", metavar="NAMES", help="only these objects, which must have a front, such as bear,car")
    p.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="number of seeds, counted up from --seed (default %(default)s)",
    )
    _add_distilling(p, "janus")
    p.set_defaults(call=_janus)


def _janus(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    runner = _distilling(args, reserved=("prompt.text", "prompt.view_dependent"))
    cases = objects.janus_cases(
        runner.settings, objects.parse_objects(args.objects, "--objects", front=True), args.seeds
    )
    return _measured(args, runner, lambda: objects.run_janus(runner, cases, args.out))


def _add_distilling(p: argparse.ArgumentParser, what: str) -> None:
    """Add the options that `toybox objects` and `toybox janus` share."""
    add_out(p, what)
    p.add_argument(
        "--preset", default=DEFAULT_PRESET, help="preset name or path of a settings.toml (default %(default)s)"
    )
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob; repeatable")
    p.add_argument("--steps", type=positive, help="steps per run (default: from the preset)")
    p.add_argument("--seconds", type=positive, default=60, help="time limit per run, in seconds (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
    p.add_argument("--jobs", type=positive, default=1, help="parallel runs; they share the CPU (default %(default)s)")
    add_device(p)


def _distilling(args: argparse.Namespace, reserved: Sequence[str]) -> Runner:
    """Return the runner of `objects` or `janus`. Raises ValueError for bad options and for assignments to `reserved`
    knobs."""
    from sdlab.experiments.objects import Runner

    refuse_reserved(args.set, reserved)
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed)
    return Runner(s, choose_device(args.device), args.seconds, args.jobs)
