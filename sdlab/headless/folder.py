"""The folder of a run: the run's own files, the files that it read, and how they differ from what was recorded."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlab.console import say
from sdlab.files import digest
from sdlab.options import paths_in, text_of

if TYPE_CHECKING:
    from sdlab.options import Plan
    from sdlab.settings import Settings

SETTINGS, RECORD, DIARY = "settings.toml", "run.json", "metrics.jsonl"
RESULT, CHECKPOINT = "result.json", "checkpoint"
OURS = re.compile(  # what runs of all kinds of scenes write; one of these is enough for a folder to contain a run
    r"settings\.toml|own_loss\.py|run\.json|metrics\.jsonl|result\.json|checkpoint|scene\.ply|turntable\.(png|mp4)|cameras\.json|"
    r"pictures\.png|"
    r"(picture|sheet)-\d\d+\.png|turn\.gif|trajectories\.png|samples\.png|beside-sds\.png|control-variate\.png"
)


def ours(out: Path) -> list[Path]:
    """Return what a run has written into the folder `out`, in order."""
    return sorted(path for path in out.iterdir() if OURS.fullmatch(path.name))


def inputs(s: Settings, plan: Plan) -> list[tuple[str, str]]:
    """Return the files and folders that a run may read, with the knobs that name them."""
    named = {path for path, _ in paths_in(s)}
    return [*paths_in(s), *(change for _, changes in plan for change in changes if change[0] in named)]


def must_have_room(out: Path, overwrite: bool, inputs: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError if a run in `out` would replace another without `overwrite`, or one of its `inputs`."""
    run = ours(out)
    if run and not overwrite:
        names = ", ".join(path.name for path in run[:3])
        raise ValueError(
            f"--out {out} already contains a run ({names}{', ...' if len(run) > 3 else ''}): `resume` it, "
            "choose another folder, or add --overwrite"
        )
    others = [path for path in out.iterdir() if path not in run and not path.name.startswith(".")]
    for given, value in inputs:
        path = Path(value).expanduser().resolve()
        if not path.exists():
            continue
        replaced = any(mine.resolve() in (path, *path.parents) for mine in run)
        # without `others`, a folder of this name holds only earlier results, as in `run toybox --out toybox`
        if replaced or (path == out.resolve() and others):
            raise ValueError(
                f"--out {out}: {given} ({value}) is read from there, and would be overwritten; choose another folder"
            )


def digests(inputs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of each input that is a file, by knob."""
    found = {}
    for knob, value in inputs:
        with contextlib.suppress(OSError):
            found[knob] = digest(Path(value).expanduser())
    return found


def changed(s: Settings, record: Mapping[str, Any]) -> list[str]:
    """Say which files that a run with `record` read have another content now; those that are gone are left out."""
    before, now = record.get("inputs", {}), digests(paths_in(s))
    return [
        f"{knob} ({value}) has changed since the run began"
        for knob, value in paths_in(s)
        if knob in now and before.get(knob, now[knob]) != now[knob]
    ]


def record_in(out: Path) -> dict[str, Any]:
    """Return run.json, which records how the run in `out` was started; {}, and a warning, if it cannot be read."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as e:
        say(f"{out / RECORD} cannot be read ({e}): changes that were planned with --at are not known")
        return {}
    return record


def other_code(s: Settings, out: Path) -> list[str]:
    """Say which losses of the user's own have other code than in the run in `out`."""
    from sdlab.settings import codes_of

    found = []
    for name, code in codes_of(s).items():
        with contextlib.suppress(OSError, ValueError):
            if (out / name).read_text(encoding="utf-8") != code:
                found.append(f"{out / name}, the loss of this run, differs from the file of --own-loss, which is used")
    return found


def edits(out: Path, record: Mapping[str, Any]) -> list[str]:
    """Say how settings.toml in `out` differs from what the run wrote; [] if it does not, or if that is not known."""
    from sdlab.settings import from_toml

    file = out / SETTINGS
    if "settings" not in record or not file.is_file():
        return []
    try:
        now = from_toml(text_of(file), "it")
        changes = from_toml(record["settings"]).differences(now)
        what = ", ".join(f"{path} = {value!r}" for path, value in changes)
    except (OSError, ValueError) as e:
        what = str(e)
    return [f"{file} was edited after the run began ({what})"] if what else []


def complete(out: Path, step: int) -> bool:
    """Return whether the results in `out` are those of `step`, and all there."""
    from sdlab.export.writers import SHOWN

    try:
        result = json.loads((out / RESULT).read_text(encoding="utf-8"))
        if "files" not in result:  # version 0.1
            return result["steps"] == step and any((out / name).is_file() for name in SHOWN)
        return result["steps"] == step and all((out / name).is_file() for name in result["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
