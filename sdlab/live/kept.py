"""Runs on disk while they go, for pages that come back after the server has died.

A folder has one sub-folder per desk, named by the SHA-256 of the desk's token: the folder gives no token away, and a
run is found by its token only. In it, `run.json` names the checkpoint of each lane, in the format of
`sdlab.live.checkpoint`. It is replaced once new checkpoints are complete, so that a killed process leaves the old ones
or the new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdlab.files import LOCK, Locked, held, remove, whole, why, write_whole
from sdlab.knobs import FrozenDict
from sdlab.live import checkpoint
from sdlab.live.checkpoint import Saved
from sdlab.live.moments import size_of

INDEX = "run.json"
FORMAT = 1
MOST_RUN = 400_000_000  # bytes of the state of one lane; an auxiliary network with its optimiser takes 100 MB
MOST_BYTES = 4_000_000_000  # of all runs; the oldest are removed first
MOST_AGE = 7 * 24 * 3600.0  # seconds
NAME = re.compile(r"[0-9a-f]{64}")
FILES = "files"
FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")
PART = re.compile(r"[0-9]{1,12}")  # the folder of a checkpoint
PROMPT = 60  # characters of the prompt that a list shows


class KeptLane(NamedTuple):
    """The checkpoint of one lane, in the sub-folder `part`; `preset` is the one that was picked last. `files` are the
    names, below `FILES`, of the uploaded files that it uses, by knob."""

    part: str
    step: int
    preset: str | None
    prompt: str
    files: Mapping[str, str]


class KeptRun(NamedTuple):
    """The run of a desk as it was at a time (seconds since the epoch), in its folder; `walk` is the place in a lesson,
    see `sdlab.lessons.walk.Walk.kept`."""

    folder: Path
    lanes: tuple[KeptLane, ...]
    at: float
    walk: Mapping[str, Any] | None = None

    def load(self, lane: KeptLane) -> Saved:
        """Return the checkpoint of a lane. ValueError if it is damaged or gone."""
        return checkpoint.load(self.folder / lane.part)

    def files(self, lane: KeptLane) -> dict[str, Path]:
        """Return the uploaded files of a lane, by knob."""
        return {knob: self.folder / FILES / name for knob, name in lane.files.items()}

    def __str__(self) -> str:
        first, *others = self.lanes
        lanes = f", {1 + len(others)} lanes" if others else ""
        when = ago(time.time() - self.at)
        return f"{first.prompt!a}, {first.preset or 'own settings'}, step {first.step}{lanes}, {when} ago"


class Store:
    """The runs in `folder`, which is created, private to the user. ValueError when it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.name == "posix" and stat.S_IMODE(folder.stat().st_mode) & 0o077:
                if any(not _is_ours(path) for path in folder.iterdir()):
                    raise ValueError(f"--resume {folder}: others can read this folder; use another, or chmod 700 it")
                folder.chmod(0o700)
        except OSError as e:
            raise ValueError(f"--resume {folder}: {why(e)}") from e

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder to this process. ValueError if another one has it."""
        try:
            with held(self.folder):
                yield
        except Locked as e:
            raise ValueError(f"--resume {self.folder}: {e} keeps its runs there") from e

    def find(self, token: str) -> KeptRun | None:
        """Return the run of the desk with a token, None if there is none."""
        return _read(self._of(token))

    def list(self) -> list[KeptRun]:
        """Return all runs, the newest first."""
        found = (_read(path) for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        return sorted((run for run in found if run is not None), key=lambda run: -run.at)

    def write(
        self, token: str, saved: Saved, preset: str | None, prompt: str, uploads: Mapping[str, Path] = FrozenDict()
    ) -> KeptLane:
        """Write the checkpoint of a lane, to be named in `commit`, and copies of its `uploads`, by knob. ValueError if
        it is too large, OSError if it cannot be written."""
        if size_of(saved.parts) > MOST_RUN:
            raise ValueError(f"its state is larger than {MOST_RUN / 1e6:.0f} MB")
        folder = self._of(token)
        folder.mkdir(mode=0o700, exist_ok=True)
        part = str(1 + max((int(path.name) for path in folder.iterdir() if PART.fullmatch(path.name)), default=0))
        try:
            checkpoint.save(folder / part, saved.step, saved.parts, saved.texts)
        except OSError:
            remove(folder / part)
            raise
        files = {knob: _copied(path, folder / FILES) for knob, path in uploads.items()}
        return KeptLane(part, saved.step, preset, prompt[:PROMPT], files)

    def commit(self, token: str, lanes: Sequence[KeptLane], walk: Mapping[str, Any] | None = None) -> None:
        """Let these be the run of a desk, at this place in a lesson, and remove the checkpoints before. OSError if that
        cannot be written."""
        folder = self._of(token)
        told = {"format": FORMAT, "at": time.time(), "lanes": [lane._asdict() for lane in lanes], "walk": walk}
        write_whole(folder / INDEX, json.dumps(told))
        used = {INDEX, FILES} | {lane.part for lane in lanes} | {name for lane in lanes for name in lane.files.values()}
        for path in (*folder.iterdir(), *(folder / FILES).glob("*")):
            if path.name not in used:
                remove(path)

    def prune(self) -> None:
        """Remove runs that are too old or damaged, and the oldest while all together are too large."""
        left = MOST_BYTES
        whole = {run.folder: run for run in self.list()}
        for folder, run in whole.items():
            left -= _bytes_in(folder)
            if left < 0 or time.time() - run.at > MOST_AGE:
                remove(folder)
        for path in self.folder.iterdir():
            if NAME.fullmatch(path.name) and path not in whole and time.time() - path.stat().st_mtime > MOST_AGE:
                remove(path)

    def _of(self, token: str) -> Path:
        return self.folder / hashlib.sha256(token.encode()).hexdigest()


def ago(seconds: float) -> str:
    """Return a duration in its largest unit: 40 s, 12 min, 3 h, 2 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _copied(path: Path, folder: Path) -> str:
    """Copy an uploaded file to a folder, unless that was done; return the name that it has there."""
    name = f"{path.parent.name}-{path.name}"  # files of the same name may have been uploaded to several pages
    if not (folder / name).exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        with whole(folder / name) as scratch:
            shutil.copyfile(path, scratch)
    return name


def _is_ours(path: Path) -> bool:
    return path.name == LOCK or NAME.fullmatch(path.name) is not None


def _read(folder: Path) -> KeptRun | None:
    """Return the run in a folder, None if there is none or its index is damaged."""
    try:
        told = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        lanes = tuple(_lane(each) for each in told["lanes"])
        at = float(told["at"])
        walk = told.get("walk")
        walk = None if walk is None else dict(walk)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return KeptRun(folder, lanes, at, walk) if lanes and told.get("format") == FORMAT else None


def _lane(told: dict[str, Any]) -> KeptLane:
    """Return a lane of an index; ValueError, KeyError or TypeError if it is none."""
    if not PART.fullmatch(told["part"]):
        raise ValueError("no folder of a checkpoint")
    preset, files = told["preset"], dict(told["files"])
    if not all(FILE.fullmatch(name) for name in files.values()):
        raise ValueError("no name of an uploaded file")
    return KeptLane(
        told["part"], int(told["step"]), None if preset is None else str(preset), str(told["prompt"]), files
    )


def _bytes_in(folder: Path) -> int:
    with contextlib.suppress(OSError):  # another thread may be replacing a part of it
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
