"""Save named parts to a folder and load them. Safetensors and JSON only, so that a foreign file cannot run code.

A checkpoint folder holds one sub-folder per saved step, the newest two. Each is written under a temporary name,
flushed, and renamed once it is complete, so that a killed process leaves no incomplete checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = 2
FORMAT = 1

Parts = Mapping[str, Mapping[str, Any]]


def save(folder: Path, step: int, parts: Parts, texts: Mapping[str, str]) -> Path:
    """Write `parts` (nested dicts of tensors and JSON values) and `texts` (file name -> content) of step `step`.

    Return the new sub-folder. OSError if the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    values = _split(parts, "", tensors)
    target = folder / f"{step:08d}"
    scratch = folder / f".{target.name}.{os.getpid()}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    save_file(tensors, scratch / "tensors.safetensors")
    header = {"format": FORMAT, "step": step, "values": values, "tensors": sorted(tensors)}
    (scratch / "values.json").write_text(json.dumps(header), encoding="utf-8")
    for name, text in texts.items():
        (scratch / name).write_text(text, encoding="utf-8")
    for path in scratch.iterdir():
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    _flush(folder)
    for old in sorted(_complete(folder))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load(folder: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return (step, parts, texts) of the newest readable checkpoint in `folder`.

    ValueError that says what is wrong with the newest one if none can be read.
    """
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder at {folder}")
    candidates = sorted(_complete(folder), reverse=True)
    if not candidates:
        raise ValueError(f"no complete checkpoint in {folder}: expected sub-folders such as 00000100/")
    first_problem = ""
    for candidate in candidates:
        try:
            return _read(candidate)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            first_problem = first_problem or f"checkpoint {candidate} is broken: {e}"
    raise ValueError(first_problem)


def _complete(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]


def _read(path: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    header = json.loads((path / "values.json").read_text(encoding="utf-8"))
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r}, this version reads {FORMAT}")
    tensors = load_file(path / "tensors.safetensors")
    if sorted(tensors) != header["tensors"]:
        raise ValueError("the tensors do not match the list in values.json")
    parts = _join(header["values"], "", tensors)
    texts = {p.name: p.read_text(encoding="utf-8") for p in path.glob("*.toml")}
    return int(header["step"]), parts, texts


def _split(node: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move the tensors of a nested dict into `tensors`, keyed by path; return the rest, which must be JSON values."""
    rest: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, Mapping):
            rest[key] = _split(value, path, tensors)
        else:
            rest[key] = value
    return rest


def _join(node: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    joined = {
        k: _join(v, f"{prefix}/{k}" if prefix else k, tensors) if isinstance(v, dict) else v for k, v in node.items()
    }
    head = f"{prefix}/" if prefix else ""
    for path, tensor in tensors.items():
        if path.startswith(head) and "/" not in path[len(head) :]:
            joined[path[len(head) :]] = tensor
    return joined


def _flush(path: Path) -> None:
    """Flush a file or folder to disk, before a rename makes it visible (Windows cannot flush folders)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
