"""The command line: `python -m sdlab run | resume | replay | list | bench | toybox`.

Errors end with exit code 2 and one line that names the knob or the option.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdlab import machine
from sdlab.toybox.cli import claim

# Seconds between checkpoints of a headless run; a slow disk may want them rarer.
CHECKPOINT_EVERY = float(os.environ.get("SDLAB_CHECKPOINT_EVERY", "20"))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 interrupted (a checkpoint was written)."""
    args = _parser().parse_args(argv)
    warnings.showwarning = _warn
    try:
        return args.call(args)
    except KeyboardInterrupt:  # while loading; a run that steps ends by itself, with its results
        print("sdlab: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as e:
        print(f"sdlab: {_one_line(e)}", file=sys.stderr)
        return 2


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sdlab: {message}", file=sys.stderr)


def _one_line(e: Exception) -> str:
    return " ".join((str(e) or type(e).__name__).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sdlab", description="Score Distillation Lab, without the page.")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="distil headless, with results in a folder")
    run.add_argument("preset", help="a preset's name (see `list presets`) or a settings.toml")
    run.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob, e.g. losses.sds.cfg=20"
    )
    run.add_argument(
        "--at",
        nargs=2,
        action="append",
        default=[],
        metavar=("STEP", "PATH=VALUE"),
        help="change a knob when STEP steps are done, e.g. --at 200 active=vdm; several at one step act as one",
    )
    run.add_argument("--prior", help="short for --set prior.path=...: toybox, a folder, or a hub id")
    run.add_argument("--steps", type=_positive, help="planned number of steps")
    run.add_argument("--seed", type=int, help="of every random draw")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    run.add_argument("--size", type=_pixels, default=256, help="pixels of the turntable, 16 to 2048")
    run.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds already")
    _add_device(run)
    run.set_defaults(call=_run)

    resume = commands.add_parser("resume", help="go on from the checkpoint of an earlier run")
    resume.add_argument("dir", type=Path, metavar="DIR", help="the folder that `run --out` wrote")
    resume.add_argument("--steps", type=_positive, help="go on until this step (default: as planned)")
    resume.add_argument("--size", type=_pixels, default=256, help="pixels of the turntable, 16 to 2048")
    _add_device(resume)
    resume.set_defaults(call=_resume)

    replay = commands.add_parser("replay", help="run a run again, with every change at its step")
    replay.add_argument("dir", type=Path, metavar="DIR", help="the folder that `run --out` wrote")
    replay.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    replay.add_argument("--size", type=_pixels, default=256, help="pixels of the turntable, 16 to 2048")
    replay.add_argument("--overwrite", action="store_true", help="replace the run that --out holds already")
    _add_device(replay)
    replay.set_defaults(call=_replay)

    sheet = commands.add_parser("sheet", help="the turntables of several runs in one picture")
    sheet.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="folders that `run --out` wrote")
    sheet.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    sheet.set_defaults(call=_sheet)

    listing = commands.add_parser("list", help="what there is to choose from")
    listing.add_argument("what", choices=("losses", "priors", "scenes", "presets", "knobs"))
    listing.set_defaults(call=_list)

    bench = commands.add_parser("bench", help="measure speed and compare losses; prints a table and writes JSON")
    benches = bench.add_subparsers(dest="what", required=True, metavar="raster | step | network | losses | six | ...")
    for what, text in FILE_BENCHES.items():
        _add_file_bench(benches, what, text)
    _add_playground(benches)
    _add_table31(benches)
    _add_six(benches)
    _add_cutoffs(benches)
    _add_janus_losses(benches)
    _add_page(benches)

    from sdlab.toybox import cli as toybox

    box = commands.add_parser("toybox", help="the embedded prior: its pictures, its training, what it distils to")
    box.set_defaults(call=_toybox, toybox_command=lambda args: box.print_help())
    boxes = box.add_subparsers(
        title="commands", metavar="train | sample | pictures | judge | train-judge | objects | janus"
    )
    toybox.add_subcommands(boxes)
    _add_objects(boxes)
    _add_janus(boxes)
    return parser


# name -> help of the benches that take no more than a file for their results
FILE_BENCHES = {
    "raster": "the rasteriser alone, beside plain torch",
    "step": "one live step, beside the bare evaluations of the network",
    "network": "networks of several sizes, by each engine",
    "losses": "a step of every loss, against SDS, by each engine",
    "sessions": "1, 2, 4 and 8 sessions that share the prior, in turns and with batched forwards",
    "entropy": "does ESD's lambda spread the views? Exact and learnt scores",
    "gpu": "a step of every loss at the size of Stable Diffusion, rasterisers, sessions; random weights",
    "figure10": "variance of eps and its correlation with the noise over t (DreamMapping, figure 10)",
}


def _add_file_bench(commands: Any, what: str, text: str) -> None:
    p = commands.add_parser(what, help=text)
    p.add_argument("--out", type=Path, metavar="FILE", help=f"JSON file (default: bench-{what}.json)")
    p.add_argument("--quick", action="store_true", help="fewer repeats")
    if what in ("step", "losses", "sessions"):
        p.add_argument("--preset", default="toybox", help="a preset's name (default %(default)s)")
    if what in ("sessions", "gpu"):
        _add_device(p)
    if what == "gpu":
        p.add_argument("--size", default="sd-2.1-base", help="sd-2.1-base, or tiny for a trial on any machine")
    p.set_defaults(call=_bench)


def _add_playground(commands: Any) -> None:
    p = commands.add_parser("playground", help="the toy experiment of the JSD paper: SDS and JSD in the plane")
    p.add_argument("--out", type=Path, default=Path("out") / "playground", metavar="DIR", help="(default %(default)s)")
    p.add_argument("--quick", action="store_true", help="a tenth of the seeds")
    p.set_defaults(call=_playground)


def _playground(args: argparse.Namespace) -> int:
    from sdlab.experiments import playground

    claim(args.out)
    playground.run(args.out, args.quick)
    return 0


def _add_table31(commands: Any) -> None:
    p = commands.add_parser("table31", help="pictures by every loss beside DDIM: FID, KID, seconds (SBP thesis)")
    p.add_argument("--out", type=Path, default=Path("out") / "table31", metavar="DIR", help="(default %(default)s)")
    p.add_argument("--captions", type=_positive, metavar="N", help='such as "a red bear" (default 64)')
    p.add_argument("--steps", type=_positive, metavar="N", help="of every loss (default 60)")
    p.add_argument("--seeds", type=_positive, metavar="N", help="pictures of each caption (default 2)")
    p.add_argument("--losses", default="", metavar="LIST", help=f"ddim, {VARIANT_HELP} (default: all of the table)")
    p.add_argument("--preset", default="toybox-2d", help="one of pictures (default %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of all")
    p.add_argument("--quick", action="store_true", help="8 captions, 40 steps, one seed, fewer references")
    _add_device(p)
    p.set_defaults(call=_table31)


def _table31(args: argparse.Namespace) -> int:
    from sdlab.experiments import text_to_2d as table
    from sdlab.experiments.objects import Bench

    _refuse_taken(args, ("active", "prompt.text", "prompt.view_dependent", "scene.n", "seed", "steps"))
    size, steps = (table.QUICK, table.QUICK_STEPS) if args.quick else (table.Size(), table.STEPS)
    steps = args.steps or steps
    size = size._replace(captions=args.captions or size.captions, seeds=args.seeds or size.seeds)

    def settings(defaults: Sequence[str], changes: Sequence[str]) -> Any:
        return settings_for(args.preset, [*table.common(steps), *defaults, *args.set, *changes], steps=steps)

    wanted = table.methods(_listed(args.losses) or table.METHODS, settings)
    bench = Bench(settings((), ()), choose_device(args.device))
    return _measured(args, bench, lambda: table.run_table(bench, wanted, size, args.out))


def _add_six(commands: Any) -> None:
    p = commands.add_parser("six", help="the losses of the papers: one prompt, one seed, the same seconds each")
    p.add_argument("--prompt", help="what to make (default: the preset's)")
    p.add_argument("--losses", default="", metavar="LIST", help=f"more than the six; {VARIANT_HELP}")
    p.add_argument("--only", default="", metavar="LIST", help="these instead of the six, written likewise")
    _add_comparing(p, "six", seconds=60)
    p.set_defaults(call=_six)


def _add_cutoffs(commands: Any) -> None:
    p = commands.add_parser("cutoffs", help="VDM with several cut-offs of DCA: one prompt, one seed")
    p.add_argument("--prompt", help="what to make (default: the preset's)")
    p.add_argument("--cutoffs", default="", metavar="LIST", help="timesteps, 0 for none (default: 0,100,300,500)")
    p.add_argument("--flat", action="store_true", help="pictures, no object: short for --preset toybox-2d")
    _add_comparing(p, "cutoffs", seconds=60)
    p.set_defaults(call=_cutoffs)


def _add_janus_losses(commands: Any) -> None:
    p = commands.add_parser("janus-losses", help="count fronts of several losses, without view words")
    p.add_argument(
        "--variants", default="", metavar="LIST", help=f"{VARIANT_HELP} (default: vsd,esd:lam=0.5,esd:lam=1)"
    )
    p.add_argument(
        "--objects", default="bear,cat,clock", metavar="NAMES", help="some with a front (default %(default)s)"
    )
    p.add_argument("--seeds", type=_positive, default=3, metavar="N", help="seed to seed + N - 1 (default %(default)s)")
    _add_comparing(p, "janus-losses", seconds=60)
    p.set_defaults(call=_janus_losses)


def _add_page(commands: Any) -> None:
    p = commands.add_parser("page", help="what the page costs, four lanes, first sight: a server and a browser")
    p.add_argument("--out", type=Path, default=Path("out") / "page", metavar="DIR", help="(default %(default)s)")
    p.add_argument("--preset", default="toybox", help="a preset's name (default %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob")
    p.add_argument("--seconds", type=_positive, metavar="N", help="of the four lanes (default 600)")
    p.add_argument("--quick", action="store_true", help="one round of short turns, 20 seconds of four lanes")
    _add_device(p)
    p.set_defaults(call=_page)


def _page(args: argparse.Namespace) -> int:
    from sdlab.bench import page

    claim(args.out)
    s, device = settings_for(args.preset, args.set), choose_device(args.device)

    from sdlab.settings import preset_names
    from sdlab.ui.server import build, server

    name = args.preset if args.preset in preset_names() else None
    size = page.QUICK if args.quick else page.Size()
    size = size._replace(lanes=float(args.seconds or size.lanes))
    page.run_page(s, args.preset, device, lambda m, first: server(build(m, first, name), port=0), size, args.out)
    print(f"written to {args.out}")
    return 0


VARIANT_HELP = "losses with some of their knobs set: vsd:network=copy,esd:lam=1"


def _add_comparing(p: argparse.ArgumentParser, what: str, seconds: int) -> None:
    """The options that `bench six`, `bench cutoffs` and `bench janus-losses` share."""
    p.add_argument("--out", type=Path, default=Path("out") / what, metavar="DIR", help="for results (%(default)s)")
    p.add_argument("--preset", help="for all (default: toybox-<loss> where there is one, otherwise toybox)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob of all")
    p.add_argument("--seconds", type=_positive, help=f"of each run (default {seconds}; with --steps: no limit)")
    p.add_argument("--steps", type=_positive, help="of each run (default: as many as the seconds allow)")
    p.add_argument("--seed", type=int, default=0, help="of every random draw (default %(default)s)")
    _add_device(p)
    p.set_defaults(default_seconds=seconds)


def _add_objects(commands: Any) -> None:
    p = commands.add_parser("objects", help="distil every object and let the judge say what came out")
    p.add_argument("--only", metavar="NAMES", help="some of the objects: bear,car")
    p.add_argument("--colour", default="", help="one colour for all (default: each object has its own)")
    p.add_argument("--keep", action="store_true", help="also keep the Gaussians: DIR/<object>/scene.ply")
    _add_distilling(p, "objects")
    p.set_defaults(call=_objects)


def _add_janus(commands: Any) -> None:
    p = commands.add_parser("janus", help="count fronts with view-dependent prompts off and on")
    p.add_argument("--objects", metavar="NAMES", help="some of the objects with a front: bear,car")
    p.add_argument("--seeds", type=_positive, default=1, metavar="N", help="runs of each, seed to seed + N - 1")
    _add_distilling(p, "janus")
    p.set_defaults(call=_janus)


def _add_distilling(p: argparse.ArgumentParser, what: str) -> None:
    """The options that `toybox objects` and `toybox janus` share."""
    p.add_argument("--out", type=Path, default=Path("out") / what, metavar="DIR", help="for results (%(default)s)")
    p.add_argument("--preset", default="toybox", help="a preset's name or a settings.toml (default %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="set a knob")
    p.add_argument("--steps", type=_positive, help="of each run (default: the preset's)")
    p.add_argument("--seconds", type=_positive, default=60, help="a run ends then at the latest (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of every random draw (default %(default)s)")
    p.add_argument("--jobs", type=_positive, default=1, help="runs at a time; more slow each other (default 1)")
    _add_device(p)


def _toybox(args: argparse.Namespace) -> int:
    args.toybox_command(args)
    return 0


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (cuda where there is one)")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _pixels(text: str) -> int:
    if not text.isdigit() or not 16 <= int(text) <= 2048:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 16 to 2048")
    return int(text)


# ---- run and resume --------------------------------------------------------------------------------------


def settings_for(preset: str, assignments: Sequence[str], **named: Any) -> Any:
    """Settings of a preset or a TOML file with `path=value` assignments; ValueError names what is wrong."""
    from sdlab.knobs import parse
    from sdlab.settings import from_toml, preset_names
    from sdlab.settings import preset as by_name

    file = Path(preset)
    is_file = preset not in preset_names() and file.suffix == ".toml" and file.is_file()
    s = from_toml(file.read_text(encoding="utf-8"), preset) if is_file else by_name(preset)
    changes: list[tuple[str, Any]] = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected PATH=VALUE, such as losses.sds.cfg=20")
        changes.append((path.strip(), parse(s.knob(path.strip()), value)))
    changes += [(path.replace("__", "."), value) for path, value in named.items() if value is not None]
    return s.patch_all(changes)


Plan = list[tuple[int, list[tuple[str, Any]]]]  # what changes after how many steps


def plan_for(s: Any, given: Sequence[Sequence[str]]) -> Plan:
    """The plan that `--at STEP PATH=VALUE` options mean for a run that begins with `s`; ValueError names what is
    wrong."""
    from sdlab.knobs import parse

    steps: dict[int, list[tuple[str, Any]]] = {}
    for number, text in given:
        path, equals, value = text.partition("=")
        if not number.isdigit() or not equals:
            raise ValueError(f"--at {number} {text!r}: expected STEP PATH=VALUE, such as 200 active=vdm")
        if int(number) >= s.steps:
            raise ValueError(f"--at {number}: the run has {s.steps} steps; allowed are 0 to {s.steps - 1}")
        steps.setdefault(int(number), []).append((path.strip(), parse(s.knob(path.strip()), value)))
    plan = sorted(steps.items())
    for _, changes in plan:
        s = s.patch_all(changes)
    return plan


def _run(args: argparse.Namespace) -> int:
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed, prior__path=args.prior)
    plan = plan_for(s, args.at)
    _make_room(args.out, args.overwrite)
    return _drive(s, args.out, args, args.preset, until=s.steps, resumed=False, plan=plan, compare=not plan)


def _make_room(out: Path, overwrite: bool) -> None:
    claim(out)
    if (out / "checkpoint").exists():
        if not overwrite:
            raise ValueError(f"--out {out} holds a run already: `resume` it, choose another folder, or add --overwrite")
        shutil.rmtree(out / "checkpoint")


def _replay(args: argparse.Namespace) -> int:
    from sdlab.live.diary import changes_in
    from sdlab.settings import from_toml

    source: Path = args.dir
    if not (source / "settings.toml").is_file():
        raise ValueError(f"DIR = {source}: there is no settings.toml; give a folder that `run --out` wrote")
    if args.out.resolve() == source.resolve():
        raise ValueError(f"--out {args.out} is the run to be replayed: choose another folder")
    s = from_toml((source / "settings.toml").read_text(encoding="utf-8"), f"settings of {source}")
    plan, last = changes_in(source / "metrics.jsonl")
    _make_room(args.out, args.overwrite)
    return _drive(s, args.out, args, _earlier_preset(source), until=last, resumed=False, plan=plan)


def _resume(args: argparse.Namespace) -> int:
    from sdlab.live import checkpoint
    from sdlab.settings import from_toml

    out: Path = args.dir
    if not out.is_dir():
        raise ValueError(f"DIR = {out}: there is no such folder; give the folder that `run --out` wrote")
    claim(out)
    number, _, texts = checkpoint.load(out / "checkpoint")
    s = from_toml(texts.get("settings.toml", ""), f"settings of the checkpoint in {out}")
    until = args.steps or s.steps
    if number >= until:
        raise ValueError(f"--steps {until}: the run in {out} is at step {number} already; give a larger number")
    kept = ((step, [(path, value) for path, value in changes]) for step, changes in _earlier(out, "plan", []))
    plan = [(step, changes) for step, changes in kept if step >= number]
    return _drive(s, out, args, _earlier_preset(out), until, resumed=True, plan=plan)


def _earlier(out: Path, key: str, otherwise: Any) -> Any:
    """What the run in `out` was started with."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads((out / "run.json").read_text(encoding="utf-8"))[key]
    return otherwise


def _earlier_preset(out: Path) -> str:
    return str(_earlier(out, "preset", out))


def _drive(
    s: Any,
    out: Path,
    args: argparse.Namespace,
    preset: str,
    until: int,
    resumed: bool,
    plan: Plan,
    compare: bool = False,
) -> int:
    """Run until step `until` with a progress bar, a diary and checkpoints, and the changes of `plan` at their steps;
    then write the results, with `compare` those of points next to what SDS makes of them."""
    from tqdm import tqdm

    from sdlab.live.diary import Recorder
    from sdlab.live.messages import Failed, Patch, Rejected, Skipped, Status, Stepped, Stop
    from sdlab.live.session import Session
    from sdlab.settings import to_toml

    started = time.perf_counter()
    session = Session(s, choose_device(args.device))
    session.listen(_say_loading)
    rasteriser = _say_rasteriser(s.scene, session.device)
    session.prepare()  # before anything is written: a prior that is not there must not leave half a run behind
    if resumed:
        session.restore(out / "checkpoint")
    else:
        (out / "settings.toml").write_text(to_toml(session.pinned()), encoding="utf-8")
        (out / "run.json").write_text(json.dumps({"preset": preset, "plan": plan}), encoding="utf-8")
    for number, changes in plan:
        session.plan(number, Patch(tuple(changes)))
    first = session.state.step if resumed else 0
    recorder = Recorder(out / "metrics.jsonl", keep_until=first if resumed else None)
    often = 0.5 if sys.stderr.isatty() else 10.0  # a log file needs fewer lines than a terminal
    bar = tqdm(total=until, initial=first, unit="step", mininterval=often, maxinterval=often)
    last_save = time.monotonic()
    said, said_at = "", 0.0
    failed = ""

    def say(phase: str, text: str) -> None:
        """What it does, before the bar: a network that warms up says so many times a second, and takes no steps."""
        nonlocal said, said_at
        before, said = said, text if phase == "running" else phase
        bar.set_description_str(said, refresh=False)
        if (said == phase) != (before == phase) or time.monotonic() - said_at > often:
            said_at = time.monotonic()
            bar.refresh()

    def listen(event: Any) -> None:
        nonlocal last_save, failed
        recorder(event)
        match event:
            case Stepped(number, stats):
                bar.update(number - bar.n)
                if "n_gaussians" in stats:
                    bar.set_postfix_str(f"{stats['n_gaussians']:.0f} Gaussians", refresh=False)
                if time.monotonic() - last_save > CHECKPOINT_EVERY:
                    recorder.flush()
                    session.save(out / "checkpoint")
                    last_save = time.monotonic()
            case Status(_, phase, text):
                say(phase, text)
            case Skipped(number, what):
                bar.write(f"step {number} skipped: {what} is not finite", file=sys.stderr)
            case Rejected(number, path, value, reason):
                bar.write(f"step {number}: {path} = {value!r} was refused: {reason}", file=sys.stderr)
            case Failed(_, reason):
                failed = reason
                session.send(Stop())

    session.listen(listen)
    with _interruptible(lambda: session.send(Stop())) as interrupted:
        session.run(until=until)
    wall = time.perf_counter() - started
    bar.close()
    session.save(out / "checkpoint")
    recorder.close()
    if failed:
        raise RuntimeError(f"stopped at step {session.state.step} because {failed}; the state is in {out}/checkpoint")
    session.export(out, args.size)
    result = {**_result(session, preset, wall), **rasteriser}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{session.state.step} steps in {result['seconds']} s ({result['steps_per_s']}/s), "
        f"{_size_of(session.state.scene)}, results in {out}"
    )
    if interrupted():
        return 130
    if compare and s.scene.kind == "points":
        from sdlab.experiments.playground import beside_sds

        beside_sds(s, session.prior, out)
    return 0


def _size_of(scene: Any) -> str:
    name, tensor = next(iter(scene.params.items()))
    return f"{len(tensor)} {'Gaussians' if 'means' in scene.params else name}"


def _say_loading(event: Any) -> None:
    from sdlab.live.messages import Status

    if isinstance(event, Status) and event.phase in ("loading", "compiling"):
        print(f"{event.text} ...", file=sys.stderr)


def _say_rasteriser(scene: Any, device: Any) -> dict[str, str]:
    """What draws the scene, for its result; told to the user where it is not what one would expect there."""
    if scene.kind != "splats":
        return {}
    from sdlab.raster import backend_for

    if device.type == "cuda":
        print("checking gsplat, which compiles itself at its first use; that takes minutes, once ...", file=sys.stderr)
    name, note = backend_for(device)
    if note:
        print(f"sdlab: {note}", file=sys.stderr)
    return {"rasteriser": name, "rasteriser_note": note}


@contextlib.contextmanager
def _interruptible(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C finishes the step and keeps the results; a second one interrupts as usual."""
    hit: list[int] = []

    def handler(number: int, frame: Any) -> None:
        hit.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(hit)
    finally:
        signal.signal(signal.SIGINT, previous)


def _result(session: Any, preset: str, wall: float) -> dict[str, Any]:
    state, s = session.state, session.effective
    return {
        "preset": preset,
        "prompt": s.prompt.text,
        "prior": session.prior.name,
        "prior_commit": session.prior.commit,
        "engine": session.prior.engine_name,
        "engine_note": session.prior.engine_note,
        "loss": s.active,
        "seed": s.seed,
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "wall_seconds": round(wall, 2),
        "steps_per_s": round(state.step / state.seconds, 2) if state.seconds else 0.0,
        "prior_share": round(state.prior_seconds / state.seconds, 3) if state.seconds else 0.0,
        "start_note": getattr(state.scene, "note", ""),
        "n_gaussians": int(state.scene.params["means"].shape[0]) if "means" in state.scene.params else 0,
        "skipped_nonfinite": state.skipped,
        "peak_rss_mb": machine.peak_rss_mb(),
        "device": str(session.device),
        "machine": machine.processor(),
        "versions": machine.versions(),
    }


def choose_device(name: str) -> Any:
    """The torch device of 'cpu', 'cuda' or 'auto'; ValueError when this machine has no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|cuda(:\d{1,2})?", name) is None:
        raise ValueError(f"--device {name}: allowed are auto, cpu, cuda and one of several as cuda:1")
    device, count = torch.device(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count}, the first of them cuda:0" if count else "none; use cpu"
        raise ValueError(f"--device {name}: of CUDA devices torch sees here {found}")
    return device


def _sheet(args: argparse.Namespace) -> int:
    from sdlab.export.writers import contact_sheet

    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out {args.out}: must end in .png")
    contact_sheet(args.runs, args.out)
    print(f"written to {args.out}")
    return 0


# ---- distilling the whole toybox -------------------------------------------------------------------------


def _objects(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    bench = _distilling(args, taken=("prompt.text",))
    cases = objects.cases(bench.settings, objects.choose(args.only, "--only"), args.colour)
    return _measured(args, bench, lambda: objects.run_objects(bench, cases, args.out, args.keep))


def _janus(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    bench = _distilling(args, taken=("prompt.text", "prompt.view_dependent"))
    cases = objects.janus_cases(bench.settings, objects.choose(args.objects, "--objects", front=True), args.seeds)
    return _measured(args, bench, lambda: objects.run_janus(bench, cases, args.out))


def _distilling(args: argparse.Namespace, taken: Sequence[str]) -> Any:
    """What both commands distil with; ValueError for bad options and for knobs that the command sets itself."""
    from sdlab.experiments.objects import Bench

    _refuse_taken(args, taken)
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed)
    return Bench(s, choose_device(args.device), args.seconds, args.jobs)


def _refuse_taken(args: argparse.Namespace, taken: Sequence[str]) -> None:
    for text in args.set:
        if text.partition("=")[0].strip() in taken:
            raise ValueError(f"--set {text!r}: this command sets {' and '.join(taken)} itself")


def _measured(args: argparse.Namespace, bench: Any, measure: Callable[[], Any]) -> int:
    """Exit code of a measurement that Ctrl-C ends early, with what is finished."""
    claim(args.out)
    bench.prepare()
    with _interruptible(bench.stop.set) as interrupted:
        measure()
    return 130 if interrupted() else 0


# ---- list and bench --------------------------------------------------------------------------------------


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


def _bench(args: argparse.Namespace) -> int:
    from importlib import import_module

    out = args.out or Path(f"bench-{args.what}.json")
    more: dict[str, Any] = {"name": args.preset} if "preset" in args else {}
    if "device" in args:
        more["device"] = choose_device(args.device)
    if "size" in args:
        more["size"] = args.size
    import_module(f"sdlab.bench.{args.what}").run(out, quick=args.quick, **more)
    print(f"written to {out}")
    return 0


# ---- losses beside each other ------------------------------------------------------------------------------


def _six(args: argparse.Namespace) -> int:
    from sdlab.experiments import six

    labels = [("--only", x) for x in _listed(args.only)] or [("--losses", x) for x in six.SIX]
    labels += [("--losses", x) for x in _listed(args.losses)]
    bench, variants = _comparing(args, labels, taken=("active", "prompt.text"), text=args.prompt)
    six.asked_for(bench.settings.prompt.text)  # refused before any work, if it must be
    return _measured(args, bench, lambda: six.run_six(bench, variants, args.out, args.steps))


def _cutoffs(args: argparse.Namespace) -> int:
    from sdlab.experiments import six

    if args.flat:
        if args.preset:
            raise ValueError(f"--flat and --preset {args.preset}: give one of them; --flat means toybox-2d")
        args.preset = "toybox-2d"
    cutoffs = _listed(args.cutoffs) or six.CUTOFFS
    labels = [("--cutoffs", f"vdm:dca_cutoff={cutoff}") for cutoff in cutoffs]
    bench, variants = _comparing(args, labels, ("active", "prompt.text", "losses.vdm.dca_cutoff"), args.prompt)
    six.asked_for(bench.settings.prompt.text)
    return _measured(args, bench, lambda: six.run_six(bench, variants, args.out, args.steps, "cutoffs"))


def _janus_losses(args: argparse.Namespace) -> int:
    from sdlab.experiments import janus_losses as janus
    from sdlab.experiments.objects import choose

    labels = [("--variants", x) for x in _listed(args.variants) or janus.VARIANTS]
    bench, variants = _comparing(args, labels, taken=("active", "prompt.text", "prompt.view_dependent"))
    names = choose(args.objects, "--objects", front=True)
    entries = janus.entries(variants, names, args.seeds)
    return _measured(args, bench, lambda: janus.run_janus_losses(bench, entries, args.out, args.steps))


def _listed(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text and not parts:
        raise ValueError(f"{text!r} is an empty list: give names between its commas, or leave the option out")
    return parts


def _comparing(
    args: argparse.Namespace, labels: Sequence[tuple[str, str]], taken: Sequence[str], text: str | None = None
) -> tuple[Any, list[Any]]:
    """What these commands compare with, and their variants; `labels` are these, each with the option that names it."""
    from sdlab.experiments.objects import Bench
    from sdlab.experiments.variants import PRESET, Variant, preset_of, spelled

    _refuse_taken(args, taken)
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
