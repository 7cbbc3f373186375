"""Commands of the toybox: train the prior, sample from it, judge it, look at its training pictures.

`add_subcommands` hangs them under any argparse parser: `python -m sdlab.toybox ...` uses it, the project's
own command line mounts it under `toybox`. A bad value ends with exit code 2 and one line that names the option.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DEFAULT_WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "toybox"


def default_data() -> Path:
    """Where rendered pictures are kept between runs: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sdlab" / "toybox"


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a finite number from low to high."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def picture_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return path


def device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine") from error
    return text


def add_train(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("train", help="train the prior from scratch, or go on with a run")
    p.add_argument("--out", type=Path, required=True, help="folder of the run: checkpoint.pt, log.json, toybox/")
    p.add_argument("--data", type=Path, default=default_data(), help="where pictures are kept (default %(default)s)")
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--samples",
        type=whole(1, 10**9),
        help="samples to train on (default 400000); with --resume, a longer plan than the run began with",
    )
    length.add_argument("--minutes", type=real(0.5, 1e5), help="plan the samples for this time, by measured speed")
    p.add_argument("--batch", type=whole(1, 65536), default=32, help="samples in a step (default %(default)s)")
    p.add_argument("--lr", type=real(1e-7, 1.0), default=8e-4, help="peak learning rate (default %(default)s)")
    p.add_argument("--ema", type=real(0.0, 0.99999), default=0.9995, help="memory of the average (default %(default)s)")
    p.add_argument(
        "--pictures", type=whole(1, 10**8), default=300_000, help="different pictures, 12 kB each (default %(default)s)"
    )
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="of pictures, weights and all draws")
    p.add_argument("--device", type=device, default="cpu", help="torch device (default %(default)s)")
    p.add_argument(
        "--threads",
        type=whole(1, 1024),
        default=os.cpu_count() or 1,
        help="CPU threads (default: all cores; one where other work runs, since threads then wait for each other)",
    )
    p.add_argument("--checkpoint-minutes", type=real(0.01, 1e5), default=5.0, help="between checkpoints (default 5)")
    p.add_argument("--start", type=Path, help="start from the weights of this toybox folder instead of from noise")
    p.add_argument("--compile", action="store_true", help="torch.compile: a fifth faster after a minute or two")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out, with the plan it began with")
    p.set_defaults(toybox_command=run_train)


def add_sample(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("sample", help="draw pictures for prompts into a grid, captions underneath")
    p.add_argument("prompts", nargs="+", help='for example "a red bear, front view"')
    p.add_argument("--out", type=picture_file, required=True, help="the picture to write (.png)")
    p.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="a toybox folder (default: the shipped one)")
    p.add_argument("--each", type=whole(1, 64), default=1, help="samples of each prompt (default %(default)s)")
    p.add_argument("--columns", type=whole(1, 64), default=8, help="pictures in a row (default %(default)s)")
    p.add_argument("--cfg", type=real(0.0, 100.0), default=4.0, help="guidance scale (default %(default)s)")
    p.add_argument("--steps", type=whole(1, 1000), default=30, help="DDIM steps (default %(default)s)")
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="of the starting noise")
    p.add_argument("--device", type=device, default="cpu", help="torch device (default %(default)s)")
    p.set_defaults(toybox_command=run_sample)


def add_pictures(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("pictures", help="training pictures with their captions, as a grid")
    p.add_argument("--out", type=picture_file, required=True, help="the picture to write (.png)")
    p.add_argument("--count", type=whole(1, 1024), default=48, help="how many (default %(default)s)")
    p.add_argument("--columns", type=whole(1, 64), default=8, help="pictures in a row (default %(default)s)")
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="which series of pictures")
    p.set_defaults(toybox_command=run_pictures)


def add_judge(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("judge", help="how often samples show the object, colour and view that was asked for")
    p.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="a toybox folder (default: the shipped one)")
    p.add_argument("--out", type=Path, help="also write the figures there as JSON")
    p.add_argument("--data", type=Path, default=default_data(), help="where the classifier is kept (%(default)s)")
    p.add_argument("--cfg", type=real(0.0, 100.0), default=4.0, help="guidance scale (default %(default)s)")
    p.add_argument("--steps", type=whole(1, 1000), default=30, help="DDIM steps (default %(default)s)")
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="of the starting noise")
    p.set_defaults(toybox_command=run_judge)


def add_subcommands(commands: argparse._SubParsersAction) -> None:
    """Add train, sample, pictures and judge; `toybox_command` of what is parsed is the function to call with it."""
    add_train(commands)
    add_sample(commands)
    add_pictures(commands)
    add_judge(commands)


def without_progress_bars() -> None:
    """The libraries draw a bar for every small file they read or write."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def run_train(options: argparse.Namespace) -> None:
    import torch

    from sdlab.toybox.train import Plan, train

    without_progress_bars()
    torch.set_num_threads(options.threads)
    plan = Plan(
        options.samples or 400_000,
        options.batch,
        options.lr,
        options.ema,
        options.pictures,
        options.seed,
        str(options.start or ""),
    )
    train(
        options.out,
        options.data,
        plan,
        minutes=options.minutes,
        resume=options.resume,
        longer=options.samples,
        device=torch.device(options.device),
        threads=options.threads,
        compiled=options.compile,
        checkpoint_minutes=options.checkpoint_minutes,
    )


def run_sample(options: argparse.Namespace) -> None:
    import torch

    from sdlab.toybox import model, sample

    without_progress_bars()
    box = model.load(options.weights, torch.device(options.device))
    prompts = [prompt for prompt in options.prompts for _ in range(options.each)]
    rgb = sample.sample(box, prompts, scale=options.cfg, steps=options.steps, seed=options.seed)
    sample.save_grid(rgb, prompts, options.out, options.columns)
    print(f"written to {options.out}")


def run_pictures(options: argparse.Namespace) -> None:
    from sdlab.toybox import pictures, sample

    pool = pictures.make_pool(options.seed, options.count)
    sample.save_grid(pool.rgb.transpose(0, 2, 3, 1) / 255.0, pool.captions, options.out, options.columns)
    print(f"written to {options.out}")


def run_judge(options: argparse.Namespace) -> None:
    import torch

    from sdlab.toybox import model
    from sdlab.toybox.judge import judge, kept_classifier

    without_progress_bars()
    box = model.load(options.weights, torch.device("cpu"))
    verdict = judge(box, kept_classifier(options.data), scale=options.cfg, steps=options.steps, seed=options.seed)
    print(f"{'':24}true pictures  samples")
    for question, share in verdict.samples.items():
        print(f"{question:24}{verdict.true[question]:13.1%}{share:9.1%}")
    print(f"\n{'samples of':12}{'object':>8}{'colour':>8}{'view':>8}")
    for name, shares in verdict.by_object.items():
        print(f"{name:12}{shares['object']:8.0%}{shares['colour']:8.0%}{shares['view']:8.0%}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"cfg": options.cfg, **verdict._asdict()}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sdlab.toybox", description="The embedded prior of the lab.")
    add_subcommands(parser.add_subparsers(required=True, metavar="train | sample | pictures | judge"))
    options = parser.parse_args(arguments)
    try:
        options.toybox_command(options)
    except (ValueError, OSError) as error:
        print(f"toybox: {error}", file=sys.stderr)
        return 2
    return 0
