"""Subcommands of `python -m sdlab toybox` that distil its objects and let the judge read them.

`call` of the parsed arguments runs the chosen one and returns the exit code. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdlab.arguments import add_device, add_out, add_seed, add_seeds, add_set, positive
from sdlab.experiments.stopping import measured
from sdlab.options import DEFAULT_PRESET, choose_device, refuse_reserved, settings_for

if TYPE_CHECKING:
    from sdlab.experiments.objects import Runner


def add_objects(commands: argparse._SubParsersAction) -> None:
    """Add `objects`."""
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
    return measured(args, runner, lambda: objects.run_objects(runner, cases, args.out, args.keep))


def add_janus(commands: argparse._SubParsersAction) -> None:
    """Add `janus`."""
    p = commands.add_parser("janus", help="count fronts with view-dependent prompts off and on")
    p.add_argument("--objects", metavar="NAMES", help="only these objects, which must have a front, such as bear,car")
    add_seeds(p, 1)
    _add_distilling(p, "janus")
    p.set_defaults(call=_janus)


def _janus(args: argparse.Namespace) -> int:
    from sdlab.experiments import objects

    runner = _distilling(args, reserved=("prompt.text", "prompt.view_dependent"))
    cases = objects.janus_cases(
        runner.settings, objects.parse_objects(args.objects, "--objects", front=True), args.seeds
    )
    return measured(args, runner, lambda: objects.run_janus(runner, cases, args.out))


def _add_distilling(p: argparse.ArgumentParser, what: str) -> None:
    """Add the options that `toybox objects` and `toybox janus` share."""
    add_out(p, what)
    p.add_argument(
        "--preset", default=DEFAULT_PRESET, help="preset name or path of a settings.toml (default %(default)s)"
    )
    add_set(p)
    p.add_argument("--steps", type=positive, help="steps per run (default: from the preset)")
    p.add_argument("--seconds", type=positive, default=60, help="time limit per run, in seconds (default %(default)s)")
    add_seed(p)
    p.add_argument("--jobs", type=positive, default=1, help="parallel runs; they share the CPU (default %(default)s)")
    add_device(p)


def _distilling(args: argparse.Namespace, reserved: Sequence[str]) -> Runner:
    """Return the runner of `objects` or `janus`. Raises ValueError for bad options and for assignments to `reserved`
    knobs."""
    from sdlab.experiments.objects import Runner

    refuse_reserved(args.set, reserved)
    s = settings_for(args.preset, args.set, steps=args.steps, seed=args.seed)
    return Runner(s, choose_device(args.device), args.seconds, args.jobs)
