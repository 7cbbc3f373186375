"""The diary of a run on disk: `metrics.jsonl`, one line per event, in order.

Events are steps with their statistics (every step on a CPU, every tenth and the last on a GPU), changes, refusals,
skipped updates and failures.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from sdlab.files import why, write_whole
from sdlab.live.messages import Applied, Event, Failed, Rejected, Skipped, Stepped

FLUSH_EVERY = 1.0  # seconds


class Recorder:
    """A session listener that writes to `path`. It starts a new file, unless `keep_until` is given: then it drops the
    lines that a run resumed at that step repeats, and appends.

    Lines that cannot be written (a full disk) are kept in memory and written when there is room; `problem` says why,
    "" if all are on disk.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        if keep_until is None:
            path.unlink(missing_ok=True)
        else:
            _truncate(path, keep_until)
        self.problem = ""
        self._waiting: list[str] = []
        self._flushed_at = time.monotonic()
        self._file = path.open("ab", buffering=0)  # what a buffer cannot write is lost when the file is closed
        self._size = self._file.seek(0, os.SEEK_END)

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
        self._waiting.append(json.dumps(line) + "\n")
        if time.monotonic() - self._flushed_at > FLUSH_EVERY:
            self.flush()

    def flush(self, to_disk: bool = False) -> None:
        """Write the lines that wait, all or none, and with `to_disk` wait until they survive a loss of power; on
        failure, set `problem`."""
        self._flushed_at = time.monotonic()
        text = "".join(self._waiting).encode("utf-8")
        try:
            done = 0
            while done < len(text):  # a full disk may take a part
                done += self._file.write(text[done:])
            if to_disk:
                os.fsync(self._file.fileno())
        except OSError as e:
            self.problem = why(e)
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            return
        self._size += len(text)
        self._waiting, self.problem = [], ""

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        self.flush(to_disk=True)
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


def _truncate(path: Path, step: int) -> None:
    """Drop the lines that a run which continues after `step` steps writes again: of later steps, and of what happened
    between that step and the next, which a checkpoint of it does not contain."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line["step"] < step or (line["step"] == step and "event" not in line):
                kept.append(text)
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short when the process was killed
    write_whole(path, "".join(f"{text}\n" for text in kept))
