"""Hides the server's folders from visitors: of a path, they see the file's name."""

from __future__ import annotations

import html
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdlab.settings import PRESETS

REST = r"[^\s'\"<>&;,)\]]*"  # of a path in a sentence, in HTML or in JSON


class Veil:
    """Replaces paths in what is told: the given ones, and everything below the folders of this installation."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        known = {path for path in paths if Path(path).is_absolute()}
        self._known = sorted({*known, *map(html.escape, known)}, key=len, reverse=True)
        folders = {Path(tempfile.gettempdir()), Path.home(), Path.cwd(), PRESETS.parent, Path(sys.prefix)}
        self._folders = sorted({str(path) for path in folders if len(path.parts) > 1}, key=len, reverse=True)
        each = "|".join(re.escape(folder) for folder in self._folders)
        self._below = re.compile(rf"(?<![\w.])(?:{each})(?:[/\\]{REST})?")

    def __call__(self, told: Any) -> Any:
        """Return a text, or JSON with texts, without folders."""
        if isinstance(told, str):
            return self._text(told)
        if isinstance(told, dict):
            return {key: self(value) for key, value in told.items()}
        return [self(value) for value in told] if isinstance(told, (list, tuple)) else told

    def _text(self, text: str) -> str:
        for path in self._known:
            if path in text:
                text = text.replace(path, name_of(path))
        if any(folder in text for folder in self._folders):
            text = self._below.sub(lambda found: name_of(found[0]), text)
        return text


def name_of(path: str) -> str:
    """Return the last part of a path of this or another system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
