"""The lessons in the folder lessons/, by name."""

from __future__ import annotations

import difflib
import functools
import math
import tomllib
from pathlib import Path

from sdlab.console import say
from sdlab.knobs import shown
from sdlab.lessons.lesson import Lesson
from sdlab.lessons.parsing import read

FOLDER = Path(__file__).parents[2] / "lessons"


def names() -> list[str]:
    """Return the names of all lessons by number."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=lambda name: (_number(name), name))


def _number(name: str) -> float:
    path = FOLDER / f"{name}.toml"
    try:
        return _numbered(path, path.stat().st_mtime_ns)
    except (ValueError, TypeError, OSError):  # `load` says what is wrong with it
        return math.inf


@functools.lru_cache(64)
def _numbered(path: Path, changed: int) -> float:
    return float(tomllib.loads(path.read_text(encoding="utf-8")).get("number", math.inf))


def load(name: str) -> Lesson:
    """Return a lesson by name. ValueError for an unknown name, and for a file that is not a lesson."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name[:100], known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"lessons are {', '.join(known) or 'none'}"
        raise ValueError(f"there is no lesson {shown(name)}; {hint}")
    path = FOLDER / f"{name}.toml"
    return _loaded(path, path.stat().st_mtime_ns)


@functools.lru_cache(64)
def _loaded(path: Path, changed: int) -> Lesson:
    return read(path.read_text(encoding="utf-8"), path.stem, f"{path.parent.name}/{path.name}")


def listed() -> list[Lesson]:
    """Return all lessons by number, without files that are not lessons, which are told on the console."""
    found = []
    for name in names():
        try:
            found.append(load(name))
        except ValueError as e:
            say(f"the lesson {name} is left out: {e}")
    return found
