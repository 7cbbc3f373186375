"""Command-line values: types for argparse, options that several commands share, output folders checked up front."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sdlab.files import Locked, held


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for an integer from `low` to `high`, or of at least `low`."""
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer {allowed}")
        return value

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type for a finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


positive = whole(1)
turntable_pixels = whole(16, 2048)


def listed(text: str) -> list[str]:
    """Split a comma-separated list. Raises ValueError for text that holds no name, such as ","; "" is an empty list."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text and not parts:
        raise ValueError(f"{text!r} is a list without names: put names between the commas, or omit the option")
    return parts


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`; `options.choose_device` reads its value."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (cuda if available; default)")


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """Add `--out`, a folder for results, by default out/`name`."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out") / name,
        metavar="DIR",
        help="folder for the results (default %(default)s)",
    )


def add_set(parser: argparse.ArgumentParser, what: str = "a knob") -> None:
    """Add `--set`, which sets `what`; `options.settings_for` reads its values."""
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help=f"set {what}; repeatable")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add `--seed`, by default 0."""
    parser.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")


def add_seeds(parser: argparse.ArgumentParser, number: int) -> None:
    """Add `--seeds`, by default `number`."""
    parser.add_argument(
        "--seeds",
        type=positive,
        default=number,
        metavar="N",
        help="number of seeds, counted up from --seed (default %(default)s)",
    )


def add_own_loss(parser: argparse.ArgumentParser) -> None:
    """Add `--own-loss`; `own_loss.OwnLoss` reads the file."""
    parser.add_argument(
        "--own-loss", type=Path, metavar="FILE", help="a loss of your own, in Python: the loss `own`; runs the file"
    )


def claim(out: Path, given: str = "--out") -> None:
    """Raise ValueError, naming the option `given`, if results cannot be written to the folder `out`; to be called
    before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink(missing_ok=True)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        raise ValueError(f"{given} {out}: cannot write there ({why}); choose another folder") from e


@contextlib.contextmanager
def claimed(out: Path, given: str = "--out") -> Iterator[None]:
    """Check the folder `out` as `claim` does, and keep other runs out of it during the block. Raises ValueError, naming
    the option `given`, if one is writing there."""
    claim(out, given)
    try:
        lock = contextlib.ExitStack()
        lock.enter_context(held(out))
    except Locked as e:
        raise ValueError(f"{given} {out}: another run ({e}) is writing there; choose another folder") from e
    with lock:
        yield


def claim_file(out: Path, inputs: Iterable[Path] = (), given: str = "--out") -> None:
    """Like `claim`, for a file. Raises ValueError, too, if it is one of the `inputs` of the command."""
    claim(out.parent, given)
    try:
        is_folder, resolved = out.is_dir(), out.resolve()
    except (OSError, ValueError) as e:
        raise ValueError(f"{given} {out}: cannot write there ({getattr(e, 'strerror', None) or e})") from e
    if is_folder:
        raise ValueError(f"{given} {out}: this is a folder; give a file name")
    if resolved in {path.resolve() for path in inputs}:
        raise ValueError(f"{given} {out}: this file is an input, which would be overwritten; give another name")
