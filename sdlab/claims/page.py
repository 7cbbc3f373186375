"""The page of the claims, in Markdown, with pictures in a folder beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from sdlab.claims.claim import Claim, Unmeasured
from sdlab.claims.decisions import FAILS, HOLDS, LEVEL, OPEN

if TYPE_CHECKING:
    from sdlab.claims.run import Row

WIDTH = 1100  # pixels of a picture on the page
COLOURS = 128  # of it; sheets of renders and plots look the same with few


class Section(NamedTuple):
    """A paper on the page: its title, rows, claims whose experiments have not finished, pictures, and what is not
    measured."""

    title: str
    rows: Sequence[Row]
    pending: Sequence[Claim]
    pictures: Sequence[Path]
    unmeasured: Sequence[Unmeasured]


def write_page(page: Path, sections: Sequence[Section], command: str, took: str, quick: bool) -> None:
    """Write the page and copies of the pictures that exist."""
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = page.with_suffix("")
    lines = [*_head(sections, command, took, quick)]
    for section in sections:
        lines += ["", f"## {section.title}", *_section(section)]
        for picture in section.pictures:
            if picture.exists():
                folder.mkdir(exist_ok=True)
                name = picture.name if picture.stem.startswith(picture.parent.name) else _qualified(picture)
                _copy(picture, folder / name)
                lines += ["", f"![{Path(name).stem}]({folder.name}/{name})"]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _qualified(picture: Path) -> str:
    return f"{picture.parent.name}-{picture.name}"


def _head(sections: Sequence[Section], command: str, took: str, quick: bool) -> list[str]:
    rows = [row for section in sections for row in section.rows]
    short = " Short runs with few seeds: most rows need the whole command to be decided." if quick else ""
    numbers = ", ".join(f"{outcome} {sum(row.outcome == outcome for row in rows)}" for outcome in (HOLDS, FAILS, OPEN))
    return [
        "# Claims",
        "",
        f"`{command}` made this page; its experiments took {took}.{short}",
        "",
        f"Verdicts on {len(rows)} claims: {numbers}. Each is decided by figures of a command: the mean of a difference "
        f"that is positive if the claim holds, ± its standard error. A claim holds if the {100 * LEVEL:.0f} % interval "
        "by Student's t lies above 0, does not hold if it lies below, and cannot be decided if it contains 0. Counts "
        "and identities are compared as they are. The priors are the toybox's: what holds for Stable Diffusion may not "
        "hold for them, and the reverse.",
    ]


MARKS = {HOLDS: "**holds**", FAILS: "**does not hold**", OPEN: "cannot be decided here"}


def _section(section: Section) -> list[str]:
    lines = ["", "| section | claim | figure | verdict | why |", "|---|---|---|---|---|"]
    for row in section.rows:
        cells = (row.section, row.statement, row.figure, MARKS[row.outcome], row.why)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    if not section.rows:
        lines = []
    commands: dict[str, list[int]] = {}
    for number, row in enumerate(section.rows, 1):
        commands.setdefault(row.command, []).append(number)
    if commands:
        lines += ["", "Commands, by row:", ""]
        lines += [f"- {', '.join(map(str, numbers))}: `{command}`" for command, numbers in commands.items()]
    if section.pending:
        lines += ["", "Not run yet:", ""]
        lines += [f"- {claim.section}: {claim.statement}" for claim in section.pending]
    if section.unmeasured:
        lines += ["", "Not measured:", ""]
        lines += [f"- {each.section}: {each.statement} ({each.why})" for each in section.unmeasured]
    return lines


def _copy(picture: Path, to: Path) -> None:
    """Copy a PNG, at most WIDTH pixels wide and with a palette, so that the page stays small."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
        if small.width > WIDTH:
            small = small.resize((WIDTH, small.height * WIDTH // small.width), Image.Resampling.LANCZOS)
        small.quantize(COLOURS).save(to, optimize=True)
