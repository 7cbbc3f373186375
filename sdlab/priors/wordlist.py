"""The word list of a model that knows few words: words.json next to its unet/, used to help users with prompts.

    {"groups": {"objects": ["bear", ...], "colours": [...], ...},   shown to the user, group by group
     "names": ["bear", "teddy bear", ...]}                          every name of an object, with synonyms

The file is optional and comes with the model, so it is not trusted: anything but plain text within limits is ignored.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from sdlab.console import Remark
from sdlab.priors.files import WORD_LIST

MAX_BYTES = 64_000
MAX_ENTRIES = 1000  # in all groups together, and in names
MAX_LENGTH = 60  # characters per entry
ALIKE = 0.75  # difflib ratio above which we suggest a known word; "cats" and "cat" have 0.86


class WordList(NamedTuple):
    """Words for display, by group, and the names of all objects."""

    groups: dict[str, tuple[str, ...]]
    names: tuple[str, ...]

    def names_object(self, text: str) -> bool:
        """Return whether `text` contains the name of an object, as whole words."""
        said = f" {' '.join(_words(text))} "
        return any(f" {' '.join(_words(name))} " in said for name in self.names)

    def nearest(self, word: str) -> str:
        """Return the known word spelled most like `word`, "" if none is close."""
        entries = [*self.names, *(entry for group in self.groups.values() for entry in group)]
        known = dict.fromkeys(w for entry in entries for w in _words(entry) if len(w) > 2)
        return next(iter(difflib.get_close_matches(word.lower()[:MAX_LENGTH], known, 1, ALIKE)), "")

    def shown(self) -> str:
        """Return one line per group."""
        return "\n".join(f"{group}: {', '.join(entries)}" for group, entries in self.groups.items())


def read_word_list(folder: Path) -> WordList | None:
    """Return the word list of the model in `folder`, or None; warn about one that is invalid."""
    file = folder / WORD_LIST
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as e:
        warnings.warn(f"ignoring {file}, which cannot be read: {e}", Remark, stacklevel=2)
        return None
    try:
        return _checked(raw)
    except (ValueError, RecursionError) as e:
        warnings.warn(f"ignoring {file}, which is not a valid word list: {e}", Remark, stacklevel=2)
        return None


def _checked(raw: bytes) -> WordList:
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    found = json.loads(raw.decode("utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("groups"), dict):
        raise ValueError("it must have 'groups', lists of words by name, and 'names', a list")
    groups = {_entry(group): _entries(entries, group) for group, entries in found["groups"].items()}
    if sum(len(entries) for entries in groups.values()) > MAX_ENTRIES:
        raise ValueError(f"it has more than {MAX_ENTRIES} entries in 'groups'")
    return WordList(groups, _entries(found.get("names"), "names"))


def _entries(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not 0 < len(found) <= MAX_ENTRIES:
        raise ValueError(f"{where[:MAX_LENGTH]!r} must be a list of 1 to {MAX_ENTRIES} entries")
    return tuple(_entry(e) for e in found)


def _entry(found: Any) -> str:
    if not isinstance(found, str) or not _words(found) or len(found) > MAX_LENGTH or not found.isprintable():
        raise ValueError(f"{str(found)[:MAX_LENGTH]!r} must be printable words of at most {MAX_LENGTH} characters")
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
