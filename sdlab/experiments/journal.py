"""Results of a long experiment by run, so that an interrupted experiment continues where it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdlab.settings import Settings, default_settings

Run = TypeVar("Run")


class Journal:
    """Results by key, one line of JSON each in runs.jsonl in the folder `out`, and an image of each in strips/.

    A line cut off by a crash or a full disk is dropped when the file is opened: its run is done again.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / "runs.jsonl"
        self._strips = out / "strips"
        self._found: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            whole = [
                line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if _complete(line)
            ]
            self.path.write_text("".join(whole), encoding="utf-8")
            self._found = {entry["key"]: entry["result"] for entry in map(json.loads, whole)}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result of `key`, None if it has none yet."""
        return self._found.get(key)

    def finished(self, key: str) -> bool:
        """Return whether `key` has a result other than that of a run that failed."""
        return key in self._found and not self._found[key].get("note", "").startswith("failed")

    def unfinished(self, runs: Sequence[Run], key: Callable[[Run], str]) -> list[Run]:
        """Return the runs that have no result other than that of a failure, and print how many have one."""
        todo = [run for run in runs if not self.finished(key(run))]
        if len(todo) < len(runs):
            print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {self.path}")
        return todo

    def strip(self, key: str) -> UInt8[np.ndarray, "H W 3"] | None:
        """Return the image of `key`, None if it has none."""
        file = self._strips / f"{key}.png"
        return np.asarray(Image.open(file).convert("RGB")) if file.exists() else None

    def add(self, key: str, result: dict[str, Any], strip: UInt8[np.ndarray, "H W 3"] | None = None) -> None:
        """Append a result and write it, and its image, to the disk."""
        if strip is not None:
            self._strips.mkdir(exist_ok=True)
            Image.fromarray(strip).save(self._strips / f"{key}.png")
        self._found[key] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")


def _complete(line: str) -> bool:
    try:
        return line.endswith("\n") and {"key", "result"} <= json.loads(line).keys()
    except (ValueError, AttributeError):
        return False


def key_of(s: Settings, *more: object) -> str:
    """Return a key of the settings that differ from their defaults, knobs of inactive losses aside, and of `more`.

    It does not notice a change of the program or of a default: delete the journal then.
    """
    own = f"losses.{s.active}."
    changed = default_settings(s.prior.kind, s.scene.kind).differences(s)
    lines = [
        f"{s.prior.kind} {s.scene.kind}",
        *(f"{k} = {v!r}" for k, v in changed if _matters(k, own)),
        *map(str, more),
    ]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def _matters(path: str, own: str) -> bool:
    return path.startswith(own) or not path.startswith("losses.")
