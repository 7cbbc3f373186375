"""Save named parts to a folder and load them. Safetensors and JSON only, so that a foreign file cannot run code.

A checkpoint can also be bytes, to be handed to another process (`packed`).

A checkpoint folder holds one sub-folder per saved step, the newest two. Each is written under a temporary name,
flushed, and renamed once it is complete, so that a killed process leaves no incomplete checkpoint. `SHA256SUMS` in each
lists the hashes of its files, in the format of `sha256sum`; one that does not match is not used.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_bytes
from torch import Tensor

from sdlab.errors import first_line
from sdlab.files import digest, flush, remove, scratch_for, sweep
from sdlab.packed import SETTINGS, SUMS, TENSORS, VALUES, PackedRun, hashes
from sdlab.settings import Settings, from_toml

KEPT = 2
FORMAT = 2  # 1, of version 0.1, has no hashes
TEXTS = "texts.json"  # in the metadata of a packed checkpoint
LENGTH = 8  # bytes at the start of a safetensors file that tell how long its header is
DAMAGED = ".damaged"  # suffix of a checkpoint that a resumed run has passed over

Parts = Mapping[str, Mapping[str, Any]]
T = TypeVar("T")


class Saved(NamedTuple):
    """What a checkpoint holds. `checked` tells whether its hashes match; those of format 1 have none."""

    step: int
    parts: dict[str, Any]
    texts: dict[str, str]
    checked: bool


def save(folder: Path, step: int, parts: Parts, texts: Mapping[str, str]) -> Path:
    """Write `parts` (nested dicts of tensors and JSON values) and `texts` (file name -> content) of step `step`.

    Return the new sub-folder. OSError if the folder cannot be written; the checkpoints in it are then as they were.
    """
    tensors: dict[str, Tensor] = {}
    values = _split(parts, "", tensors)
    target = folder / f"{step:08d}"
    scratch, aside = scratch_for(target), scratch_for(folder / f"{target.name}-old")
    folder.mkdir(parents=True, exist_ok=True)
    remove(scratch)
    try:
        scratch.mkdir()
        _write(scratch, {"format": FORMAT, "step": step, "values": values, "tensors": sorted(tensors)}, tensors, texts)
        if target.exists():  # moved, not removed: until the rename below, it is the only one of this step
            remove(aside)
            target.rename(aside)
        scratch.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        remove(scratch)
        raise
    flush(folder)
    sweep(folder)
    for old in sorted((p for p in _named(folder) if int(p.name) < step), reverse=True)[KEPT - 1 :]:
        remove(old)
    return target


def load(folder: Path) -> Saved:
    """Return the newest whole checkpoint in `folder`. ValueError as in `newest`."""
    return newest(folder, lambda saved: saved)[0]


def newest(folder: Path, use: Callable[[Saved], T]) -> tuple[T, str]:
    """Return what `use` makes of the newest whole checkpoint in `folder`, and why newer ones were passed over, or "".

    A checkpoint without hashes counts as damaged, too, if `use` raises an error. ValueError that says what is wrong
    with the newest one if none can be used.
    """
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder at {folder}")
    passed_over: list[str] = []
    for path in _candidates(folder):
        try:
            saved = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
            if path.name.isdigit():  # scratch that is not whole is no damage: its process was killed
                passed_over.append(f"checkpoint {path} is broken: {e}")
            continue
        try:
            return use(saved), "; ".join(passed_over)
        except Exception as e:
            if saved.checked:
                raise
            passed_over.append(f"checkpoint {path} is broken: {e}")
    if passed_over:
        raise ValueError(passed_over[0])
    raise ValueError(f"no complete checkpoint in {folder}: expected sub-folders such as 00000100/")


def settings_of(saved: Saved) -> Settings:
    """Return the settings in a checkpoint; ValueError if they are missing, cut, or not valid in this version."""
    text = saved.texts.get(SETTINGS)
    if text is None:
        raise ValueError(f"it has no {SETTINGS}")
    where = f"{SETTINGS} of the checkpoint"
    settings = from_toml(text, where)
    doc = tomllib.loads(text)
    if not all("kind" in doc.get(group, {}) for group in ("prior", "scene")):  # which are always written
        raise ValueError(f"{where} is empty or cut: prior.kind or scene.kind is missing")
    return settings


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints of steps after `step`, which a run that continues from there has passed over."""
    for path in _named(folder):
        if int(path.name) > step:
            kept = path.with_name(path.name + DAMAGED)
            remove(kept)
            path.rename(kept)


def _named(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]


def _candidates(folder: Path) -> list[Path]:
    """Return all checkpoints, the newest first, and after those of the same step the scratch of a process that was
    killed while it replaced them."""
    found = []
    for path in folder.iterdir():
        name = re.fullmatch(r"(\d+)|\.(\d+)(-old)?\.\d+\.tmp", path.name)
        if name is not None and path.is_dir() and (name[1] or (path / SUMS).is_file()):
            found.append((int(name[1] or name[2]), bool(name[1]), not name[3], path))
    return [path for *_, path in sorted(found, reverse=True)]


def _write(folder: Path, header: Mapping[str, Any], tensors: dict[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write the files of a checkpoint and flush them. Raises OSError."""
    try:
        save_file(tensors, folder / TENSORS)
    except SafetensorError as e:
        raise OSError(str(e).removeprefix("Error while serializing: ")) from e
    (folder / VALUES).write_text(json.dumps(header), encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / SUMS).write_text(sums, encoding="ascii", newline="\n")
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def _read(path: Path) -> Saved:
    """Return the contents of one checkpoint; an error if it is damaged."""
    checked = (path / SUMS).exists()
    names = _check(path) if checked else {p.name for p in path.glob("*.toml")}
    header = json.loads((path / VALUES).read_text(encoding="utf-8"))
    _must_be_known(header)
    if header["format"] != 1 and not checked:
        raise ValueError(f"{SUMS} is missing")
    # copied, since the tensors of `load_file` are the file: it could be removed or cut while a run uses them
    tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
    parts = _parts(header, tensors)
    texts = {name: (path / name).read_bytes().decode("utf-8") for name in names}
    return Saved(int(header["step"]), parts, texts, checked)


def _must_be_known(header: Mapping[str, Any]) -> None:
    """Raise ValueError for a format of another version."""
    if header.get("format") not in (1, FORMAT):
        raise ValueError(f"format {header.get('format')!r}, this version reads up to {FORMAT}")


def _parts(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the parts of a checkpoint. ValueError if its tensors are not those that it lists."""
    if sorted(tensors) != header["tensors"]:
        raise ValueError(f"the tensors do not match the list in {VALUES}")
    return _join(header["values"], "", tensors)


def unpack(run: PackedRun) -> Saved:
    """Return the checkpoint of a run in an archive. ValueError that says what is wrong with it."""
    try:
        header = json.loads(run.values)
        _must_be_known(header)
        parts = _parts(header, load_bytes(run.tensors.tobytes()))
        return Saved(int(header["step"]), parts, {SETTINGS: run.present}, True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as e:
        raise ValueError(f"the checkpoint of step {run.step} cannot be read: {first_line(e)}") from e


def packed(saved: Saved) -> bytes:
    """Return a checkpoint as the content of one safetensors file, whose metadata holds the JSON values and texts."""
    tensors: dict[str, Tensor] = {}
    values = _split(saved.parts, "", tensors)
    header = {"format": FORMAT, "step": saved.step, "values": values, "tensors": sorted(tensors)}
    return save_bytes(tensors, {VALUES: json.dumps(header), TEXTS: json.dumps(saved.texts)})


def unpacked(content: bytes) -> Saved:
    """Return the checkpoint in the bytes of `packed`. ValueError that says what is wrong with them."""
    try:
        length = int.from_bytes(content[:LENGTH], "little")
        told = json.loads(content[LENGTH : LENGTH + length])["__metadata__"]
        header = json.loads(told[VALUES])
        _must_be_known(header)
        parts = _parts(header, load_bytes(content))
        texts = {str(name): str(text) for name, text in json.loads(told[TEXTS]).items()}
        return Saved(int(header["step"]), parts, texts, True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as e:
        raise ValueError(f"the packed checkpoint cannot be read: {first_line(e)}") from e


def _check(path: Path) -> set[str]:
    """Return the names of the texts in a checkpoint; ValueError if a file does not have the hash written with it."""
    sums = hashes((path / SUMS).read_text(encoding="ascii"))
    for name in (TENSORS, VALUES):
        if name not in sums:
            raise ValueError(f"{SUMS} does not list {name}")
    for name, expected in sums.items():
        if digest(path / name) != expected:
            raise ValueError(f"{name} does not have the hash in {SUMS}")
    return set(sums) - {TENSORS, VALUES}


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
