"""Command-line values: types for argparse, options that several commands share, output folders checked up front."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


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


def claim(out: Path) -> None:
    """Raise ValueError if results cannot be written to the folder `out`; to be called before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise ValueError(f"--out {out}: cannot write there ({e.strerror or e}); choose another folder") from e


def claim_file(out: Path) -> None:
    """Like `claim`, for a file."""
    if out.is_dir():
        raise ValueError(f"--out {out}: this is a folder; give a file name")
    claim(out.parent)
