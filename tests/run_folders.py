"""A run's folder as the command line writes it, and as a ZIP file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from sdlab.live.session import Session
from sdlab.packed import CHECKPOINT, RECORD, SETTINGS
from sdlab.settings import to_toml


def run_folder(session: Session, folder: Path) -> Path:
    """Write settings, record and a checkpoint of a session in another thread into `folder`."""
    text = to_toml(session.settings)
    record = json.dumps({"settings": text})
    (folder / SETTINGS).write_text(text)
    (folder / RECORD).write_text(record)
    session._inbox.ask(lambda: session.save(folder / CHECKPOINT, {RECORD: record})).result(30)
    return folder


def zipped(
    folder: Path, change: Callable[[dict[str, bytes]], object] = lambda files: None, below: str = "bear/"
) -> bytes:
    """Return a ZIP file of a folder, after `change` of its files by name."""
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    change(files)
    raw = BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(below + name, content)
    return raw.getvalue()
