"""Commands of the toybox: train the prior and its judge, sample, evaluate, show the training images.

`add_subcommands` adds them to any argparse parser: `python -m sdlab.training ...` uses it directly, and the project's
command line mounts it under `toybox`. A bad value ends with exit code 2 and one line that names the option.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdlab.arguments import claim, claim_file, real, whole
from sdlab.machine import cache_folder, n_processors
from sdlab.toybox import SCALE

if TYPE_CHECKING:
    from sdlab.types import Prior

DEFAULT_WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "toybox"


def default_data() -> Path:
    """Return the folder in which rendered images are cached between runs, inside the project's cache folder."""
    return cache_folder() / "toybox"


def require_toybox(folder: Path, option: str) -> None:
    """Raise ValueError, naming `option`, unless `folder` looks like a toybox folder."""
    if not (folder / "unet").is_dir():
        raise ValueError(f"{option}: {folder} is not a toybox folder: it has no unet/")


def channel_list(text: str) -> tuple[int, ...]:
    """Parse two to four channel counts, each a multiple of 16 from 16 to 1024."""
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if not 2 <= len(numbers) <= 4 or any(n % 16 or not 16 <= n <= 1024 for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} must be two to four multiples of 16 up to 1024, such as 48,96,192")
    return tuple(numbers)


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
        raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine") from error
    return text


def add_train(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("train", help="train the prior from scratch, or continue a run")
    p.add_argument("--out", type=Path, required=True, help="folder of the run: checkpoint.pt, log.json, toybox/")
    p.add_argument("--data", type=Path, default=default_data(), help="cache folder for images (default %(default)s)")
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--samples",
        type=whole(1, 10**9),
        help="samples to train on (default 400000); with --resume, a longer plan for the run",
    )
    length.add_argument("--minutes", type=real(0.5, 1e5), help="train for about this long, from the measured speed")
    p.add_argument("--batch", type=whole(1, 65536), default=32, help="samples per step (default %(default)s)")
    p.add_argument("--lr", type=real(1e-7, 1.0), default=2e-3, help="peak learning rate (default %(default)s)")
    p.add_argument(
        "--ema", type=real(0.0, 0.99999), default=0.9995, help="EMA decay of the weights (default %(default)s)"
    )
    p.add_argument(
        "--pictures", type=whole(1, 10**8), default=300_000, help="distinct images, 3 kB each (default %(default)s)"
    )
    p.add_argument(
        "--seed", type=whole(0, 2**31 - 1), default=0, help="seed of images, weights and all random draws (default 0)"
    )
    p.add_argument("--device", type=device, default="cpu", help="torch device (default %(default)s)")
    p.add_argument(
        "--threads",
        type=whole(1, 1024),
        default=n_processors(),
        help="CPU threads (default: all cores; use 1 on a busy machine, where threads wait for each other)",
    )
    p.add_argument(
        "--checkpoint-minutes", type=real(0.01, 1e5), default=5.0, help="minutes between checkpoints (default 5)"
    )
    p.add_argument(
        "--channels", type=channel_list, default=(48, 96, 192), help="channels per U-Net level (default 48,96,192)"
    )
    p.add_argument(
        "--patch", type=whole(1, 8), default=1, help="side in pixels of the blocks that the U-Net works on (default 1)"
    )
    p.add_argument(
        "--predict",
        choices=("v_prediction", "epsilon"),
        default="v_prediction",
        help="prediction type (default %(default)s)",
    )
    p.add_argument(
        "--betas",
        choices=("squaredcos_cap_v2", "scaled_linear"),
        default="squaredcos_cap_v2",
        help="noise schedule (default %(default)s)",
    )
    p.add_argument(
        "--reading",
        type=whole(0, 10**7),
        default=48_000,
        help="captions for the text encoder's pre-training (default %(default)s)",
    )
    p.add_argument("--start", type=Path, help="initial weights: a toybox folder (default: random weights)")
    p.add_argument("--resume", action="store_true", help="continue the run in --out, with its original settings")
    p.set_defaults(toybox_command=run_train)


def _add_sampling(p: argparse.ArgumentParser) -> None:
    """Add the options of everything that draws samples."""
    p.add_argument("--cfg", type=real(0.0, 100.0), default=SCALE, help="guidance scale (default %(default)s)")
    p.add_argument("--steps", type=whole(1, 1000), default=30, help="DDIM steps (default %(default)s)")
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of the starting noise (default 0)")
    p.add_argument("--device", type=device, default="cpu", help="torch device (default %(default)s)")


def add_sample(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("sample", help="sample images for prompts into a captioned grid")
    p.add_argument("prompts", nargs="+", help='for example "a red bear, front view"')
    p.add_argument("--out", type=picture_file, required=True, help="image file to write (.png)")
    p.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="toybox folder (default: the shipped one)")
    p.add_argument("--each", type=whole(1, 64), default=1, help="samples per prompt (default %(default)s)")
    p.add_argument("--columns", type=whole(1, 64), default=8, help="images per row (default %(default)s)")
    _add_sampling(p)
    p.set_defaults(toybox_command=run_sample)


def add_pictures(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("pictures", help="render training images into a captioned grid")
    p.add_argument("--out", type=picture_file, required=True, help="image file to write (.png)")
    p.add_argument("--count", type=whole(1, 1024), default=48, help="number of images (default %(default)s)")
    p.add_argument("--columns", type=whole(1, 64), default=8, help="images per row (default %(default)s)")
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of the images (default %(default)s)")
    p.set_defaults(toybox_command=run_pictures)


def add_judge(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("judge", help="measure with the judge how well samples match their captions")
    p.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="toybox folder (default: the shipped one)")
    p.add_argument("--judge", type=Path, help="folder written by `train-judge` (default: the shipped judge)")
    p.add_argument("--out", type=Path, help="also write the results to this JSON file")
    p.add_argument("--each", type=whole(1, 1000), default=16, help="samples per held-out caption (default 16)")
    parts = "true,held-out,two-objects,no-view,descriptors"
    p.add_argument("--only", default=parts, metavar="PARTS", help="measure only these parts (default: %(default)s)")
    _add_sampling(p)
    p.set_defaults(toybox_command=run_judge)


def add_train_judge(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("train-judge", help="train the judge, a classifier, on ground-truth images only")
    p.add_argument("--out", type=Path, required=True, help="folder to write: judge.safetensors, config.json")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--samples", type=whole(1, 10**9), help="training samples, counting repeats (default 600000)")
    length.add_argument("--minutes", type=real(0.1, 1e5), help="train for about this long, from the measured speed")
    p.add_argument(
        "--pictures", type=whole(1, 10**7), default=120_000, help="distinct images, 12 kB each (default %(default)s)"
    )
    p.add_argument("--batch", type=whole(2, 65536), default=128, help="samples per step (default %(default)s)")
    p.add_argument("--lr", type=real(1e-7, 1.0), default=4e-3, help="peak learning rate (default %(default)s)")
    p.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of weights, order and noise (default 0)")
    p.add_argument("--threads", type=whole(1, 1024), help="CPU threads (default: OMP_NUM_THREADS or all cores)")
    p.set_defaults(toybox_command=run_train_judge)


def add_subcommands(commands: argparse._SubParsersAction) -> None:
    """Add the commands. The parsed options hold the function to call with them as `toybox_command`."""
    add_train(commands)
    add_sample(commands)
    add_pictures(commands)
    add_judge(commands)
    add_train_judge(commands)


def without_progress_bars() -> None:
    """Disable the libraries' own progress bars, which they show for every small file."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT (Ctrl-C) or SIGTERM arrived, so that a checkpoint can be written.

    A second signal raises KeyboardInterrupt at once.
    """
    ended = threading.Event()

    def handle(number: int, frame: object) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        print("stopping after a last checkpoint; interrupt again to stop at once", file=sys.stderr)
        ended.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_train(options: argparse.Namespace) -> None:
    import torch

    from sdlab.toybox.model import Shape
    from sdlab.training.train import Plan, train

    if options.out.is_dir() or not options.resume:  # a missing folder has no run to resume
        claim(options.out)
    if options.start:
        require_toybox(options.start, "--start")
    without_progress_bars()
    torch.set_num_threads(options.threads)
    plan = Plan(
        options.samples or 400_000,
        options.batch,
        options.lr,
        options.ema,
        options.pictures,
        options.seed,
        start=str(options.start or ""),
        reading=options.reading,
        shape=Shape(options.channels, patch=options.patch, prediction=options.predict, betas=options.betas),
    )
    with stop_on_signals() as stop:
        train(
            options.out,
            options.data,
            plan,
            minutes=options.minutes,
            resume=options.resume,
            longer=options.samples,
            device=torch.device(options.device),
            threads=options.threads,
            checkpoint_minutes=options.checkpoint_minutes,
            stop=stop,
        )


def load_prior(folder: Path, device: str) -> Prior:
    """Load the prior from `folder` in its fastest engine. Raises ValueError, naming --weights, if there is none."""
    import torch

    from sdlab.priors.diffusers import DiffusersPrior

    without_progress_bars()
    require_toybox(folder, "--weights")
    return DiffusersPrior(path=str(folder)).load(torch.device(device))


def run_sample(options: argparse.Namespace) -> None:
    from sdlab.toybox import sample
    from sdlab.toybox.progress import Meter

    claim_file(options.out)
    prior = load_prior(options.weights, options.device)
    prompts = [prompt for prompt in options.prompts for _ in range(options.each)]
    rgb = sample.sample(
        prior,
        prompts,
        scale=options.cfg,
        steps=options.steps,
        seed=options.seed,
        progress=Meter("samples", len(prompts)),
    )
    sample.save_grid(rgb, prompts, options.out, options.columns)
    print(f"wrote {options.out}")


def run_pictures(options: argparse.Namespace) -> None:
    from sdlab.toybox import pictures, sample

    claim_file(options.out)
    pool = pictures.make_pool(options.seed, options.count)
    sample.save_grid(pool.rgb.transpose(0, 2, 3, 1) / 255.0, pool.captions, options.out, options.columns)
    print(f"wrote {options.out}")


def run_judge(options: argparse.Namespace) -> None:
    from sdlab.toybox import figures, judge

    parts = figures.parse_parts(options.only)
    if options.out:
        claim_file(options.out)
    classifier = judge.load(options.judge)
    sampling = figures.Sampling(options.each, options.cfg, options.steps, options.seed)
    prior = load_prior(options.weights, options.device)
    found = figures.measure(prior, classifier, sampling, parts)
    print(figures.report(found))
    if options.out:
        how = {**sampling._asdict(), "engine": prior.engine_name, "shares": "[right answers, total]"}
        options.out.write_text(json.dumps({**how, **found}, indent=1) + "\n", encoding="utf-8")


def run_train_judge(options: argparse.Namespace) -> None:
    import torch

    from sdlab.machine import n_cores
    from sdlab.toybox.judge import save
    from sdlab.training.judge import Plan, train

    claim(options.out)
    torch.set_num_threads(options.threads or n_cores())  # more threads than cores slow each other down
    plan = Plan(options.samples or Plan().samples, options.pictures, options.batch, options.lr, options.seed)
    classifier = train(plan, minutes=options.minutes)
    save(classifier, options.out)
    for question, shares in classifier.facts["accuracy"].items():
        print(f"{question:24}{shares['right'] / shares['of']:8.2%}  {shares['right']}/{shares['of']}")
    print(f"wrote {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sdlab.training", description="Train, sample and evaluate the toybox prior."
    )
    add_subcommands(parser.add_subparsers(required=True, metavar="train | sample | pictures | judge | train-judge"))
    options = parser.parse_args(arguments)
    try:
        options.toybox_command(options)
    except (ValueError, OSError) as error:
        print(f"toybox: {error}", file=sys.stderr)
        return 2
    return 0
