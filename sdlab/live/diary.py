"""The diary of a run on disk: `metrics.jsonl`, one line per event, in order.

Events are steps with their statistics (every step on a CPU, every tenth on a GPU), changes, refusals, skipped updates
and failures.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import IO

from sdlab.live.messages import Applied, Event, Failed, Rejected, Skipped, Stepped


class Recorder:
    """A session listener that writes to `path`. It starts a new file, unless `keep_until` is given: then it drops the
    lines of later steps, which a resumed run repeats, and appends."""

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        self._path = path
        if keep_until is None:
            path.unlink(missing_ok=True)
        else:
            _truncate(path, keep_until)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        match event:
            case Stepped(step, stats):
                line: dict[str, object] = {"step": step, **{k: _rounded(v) for k, v in stats.items()}}
            case Applied(step, path, value, note):
                line = {"step": step, "event": "applied", "path": path, "value": value, "note": note}
            case Rejected(step, path, value, reason):
                line = {"step": step, "event": "rejected", "path": path, "value": value, "reason": reason}
            case Skipped(step, what):
                line = {"step": step, "event": "skipped", "what": what}
            case Failed(step, reason):
                line = {"step": step, "event": "failed", "reason": reason}
            case _:
                return
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def changes_in(path: Path) -> tuple[list[tuple[int, list[tuple[str, object]]]], int]:
    """Return the changes in a diary and its last step: ([(step, [(knob, value), ...]), ...], last step).

    Consecutive changes at one step count as one. A change that was rolled back because its first step failed is left
    out. ValueError if there is no diary at `path` or no step in it.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        changes: list[tuple[int, list[tuple[str, object]]]] = []
        for line in lines:
            if line.get("event") == "applied":
                if not changes or changes[-1][0] != line["step"]:
                    changes.append((int(line["step"]), []))
                changes[-1][1].append((line["path"], line["value"]))
            elif line.get("event") == "rejected" and changes and changes[-1][0] == line["step"]:
                with contextlib.suppress(ValueError):  # a change that was refused was never applied
                    changes[-1][1].remove((line["path"], line["value"]))
        changes = [(step, at_once) for step, at_once in changes if at_once]
        last = max(int(line["step"]) for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not the diary of a run ({e})") from e
    return changes, last


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _truncate(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line cut short when the process was killed
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
