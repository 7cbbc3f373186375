"""Examples: runs that the page offers with one click, each a preset with what differs from it.

They are listed in assets/examples/examples.toml. Beside it are their thumbnails, and the recording that plays while a
page opens; `python -m sdlab examples` makes both.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sdlab.settings import Settings

FOLDER = Path(__file__).parents[1] / "assets" / "examples"
OPENING, OPENING_END = "opening", "opening-end"  # the recording that plays while a page opens, and its last picture
KEYS = {"title", "text", "preset", "settings", "beside"}


class Example(NamedTuple):
    """A run, or two runs beside each other, that begin at once when the example is opened."""

    name: str
    title: str
    text: str  # one sentence or two
    preset: str
    settings: Settings
    beside: Settings | None = None  # of the second lane

    @property
    def lanes(self) -> tuple[Settings, ...]:
        """The settings of each lane."""
        return (self.settings,) if self.beside is None else (self.settings, self.beside)

    @property
    def thumbnail(self) -> str:
        """The name of its picture in `FOLDER`."""
        return f"example-{self.name}.webp"


def load(presets: Mapping[str, Settings], folder: Path = FOLDER) -> dict[str, Example]:
    """Return the examples of `presets`, by name. ValueError names the example, and what is wrong with it."""
    file = folder / "examples.toml"
    listed = tomllib.loads(file.read_text(encoding="utf-8"))
    return {name: _example(name, said, presets) for name, said in listed.items() if said.get("preset") in presets}


def _example(name: str, said: Mapping[str, Any], presets: Mapping[str, Settings]) -> Example:
    try:
        if odd := sorted(said.keys() - KEYS):
            raise ValueError(f"unknown key {odd[0]}; there are {', '.join(sorted(KEYS))}")
        settings = presets[said["preset"]].patch_all(said.get("settings", {}).items())
        beside = settings.patch_all(said["beside"].items()) if "beside" in said else None
        return Example(name, said["title"], said["text"], said["preset"], settings, beside)
    except (ValueError, KeyError) as e:
        raise ValueError(f"example {name}: {f'{e} is missing' if isinstance(e, KeyError) else e}") from e
