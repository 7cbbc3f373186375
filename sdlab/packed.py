"""A run's folder in a ZIP archive: its settings, and its newest whole checkpoint as bytes. Free of torch.

The archive is not trusted: names are never used as paths, sizes are limited, and a checkpoint counts only if its files
have the hashes that were written with them. What is in it is read later, as safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np

from sdlab.folders import Archive, Read, is_archive, reason_of

SETTINGS, RECORD, CHECKPOINT = "settings.toml", "run.json", "checkpoint"  # in a run's folder
TENSORS, VALUES, SUMS = "tensors.safetensors", "values.json", "SHA256SUMS"  # in a checkpoint's
MOST_TEXT = 4_000_000  # bytes of settings, values, record and hashes each
MOST_NAMED = 3  # runs that a message names


class PackedRun(NamedTuple):
    """What a run's archive holds: `settings`, and with a checkpoint that can be used its step, its files' contents and
    the settings in it. Without one, `step` is -1, and `remark` says why, "" if there is none at all."""

    settings: str
    step: int = -1
    tensors: np.ndarray = np.zeros(0, np.uint8)
    values: str = ""
    present: str = ""  # the settings in the checkpoint, which may have changed in the run
    remark: str = ""


def run_in(raw: bytes, given: str, most: int) -> PackedRun:
    """Return the run in an archive, with a checkpoint of at most `most` bytes.

    Raises ValueError, which begins with `given`, if it is no archive or holds no run or several."""
    if not is_archive(raw):
        raise ValueError(f"{given} is no ZIP file: pack a folder that `run --out` has written")
    files = Archive(raw, given)
    root = _root(files.names, given)
    with files.reading() as read:
        settings = _text(read, f"{root}{SETTINGS}", f"{given}: {SETTINGS}")
        found = PackedRun(settings)
        for step, folder in _checkpoints(files.names, root):
            try:
                return _with_checkpoint(found, read, step, folder, set(files.names), most)
            except Exception as e:  # reading from an archive raises all kinds of errors
                why = f"its checkpoint of step {step} cannot be used: {reason_of(e)}"
                found = found._replace(remark=found.remark or why)
    return found


def _root(names: list[str], given: str) -> str:
    """Return the folder of the run in an archive, "" or with a slash at its end."""
    folders = [name.removesuffix(SETTINGS) for name in names if name.rpartition("/")[2] == SETTINGS]
    roots = [folder for folder in folders if f"/{CHECKPOINT}/" not in f"/{folder}"]
    if not roots:
        raise ValueError(f"{given} holds no run: there is no {SETTINGS} in it")
    if len(roots) > 1:
        named = ", ".join(folder or "/" for folder in roots[:MOST_NAMED])
        raise ValueError(f"{given} holds {len(roots)} runs ({named}): pack one of them")
    return roots[0]


def _checkpoints(names: list[str], root: str) -> list[tuple[int, str]]:
    """Return (step, folder) of the checkpoints of a run, the newest first."""
    below = f"{root}{CHECKPOINT}/"
    steps = {name.removeprefix(below).partition("/")[0] for name in names if name.startswith(below)}
    numbers = {step for step in steps if step.isdecimal() and step.isascii() and len(step) < 12}
    return sorted(((int(step), f"{below}{step}/") for step in numbers), reverse=True)


def _with_checkpoint(run: PackedRun, read: Read, step: int, folder: str, names: set[str], most: int) -> PackedRun:
    """Return `run` with a checkpoint. ValueError that says what is wrong with it."""
    if f"{folder}{SUMS}" not in names:
        raise ValueError(f"{SUMS} is missing")
    sums = hashes(_text(read, f"{folder}{SUMS}", SUMS))
    content = {}
    for name in (TENSORS, VALUES, SETTINGS, RECORD):
        if name not in sums or f"{folder}{name}" not in names:
            raise ValueError(f"{name} is missing")
        content[name] = read(f"{folder}{name}", most + 1)
        most -= len(content[name])
        if most < 0:
            raise ValueError("it is larger than the limit")
        if hashlib.sha256(content[name]).hexdigest() != sums[name]:
            raise ValueError(f"{name} does not have the hash in {SUMS}")
    values, present, record = (content[name].decode("utf-8") for name in (VALUES, SETTINGS, RECORD))
    if json.loads(record).get("settings", "").strip() != run.settings.strip():
        raise ValueError(f"it belongs to other settings than {SETTINGS}")
    tensors = np.frombuffer(content[TENSORS], np.uint8)
    return run._replace(step=step, tensors=tensors, values=values, present=present, remark="")


def hashes(text: str) -> dict[str, str]:
    """Return name -> hash of the files that a checkpoint lists. ValueError if the list is damaged."""
    lines = [line.partition("  ") for line in text.splitlines()]
    if not all(name for _, _, name in lines):
        raise ValueError(f"{SUMS} is damaged")
    return {name: digest for digest, _, name in lines}


def _text(read: Read, name: str, given: str) -> str:
    raw = read(name, MOST_TEXT + 1)
    if len(raw) > MOST_TEXT:
        raise ValueError(f"{given} has more than {MOST_TEXT:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{given} is not encoded in UTF-8") from e
