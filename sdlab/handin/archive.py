"""The ZIP file of a hand-in. Free of torch, since files of strangers are read in processes of their own.

    manifest.json     who, when, where; the lesson's record; free answers; the final states with their readings
    history.json      the stretches of all runs: how each began, every change, prints of the scene on the way
    settings/0.toml   settings that a run began with
    own_loss.py       the code of the student's own loss, if there is one
    preview.webp      the run as a small film
    SHA256SUMS        the hashes of all these, and in its last line a seal of them by the computer that made the file

The archive is not trusted: names are never used as paths, sizes are limited, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sdlab.folders import Archive, Read, is_archive, reason_of

FORMAT = 1
MANIFEST, HISTORY, PREVIEW, SUMS = "manifest.json", "history.json", "preview.webp", "SHA256SUMS"
CODE = "own_loss.py"
SETTINGS = re.compile(r"settings/\d{1,4}\.toml")
SEAL = "seal"  # in place of a file's name
MOST_BYTES = 20_000_000  # of a hand-in
MOST_TEXT = 8_000_000  # bytes of each file
MOST_FILES = 500
STAMP = (1980, 1, 1, 0, 0, 0)  # of all files: equal hand-ins are equal files


class HandIn(NamedTuple):
    """The content of a hand-in, unchecked: JSON and TOML as text. `edited` names the files whose hashes do not fit."""

    manifest: str
    history: str
    settings: dict[str, str]
    edited: tuple[str, ...]
    sums: str  # that the seal is about
    seal: str  # "" without one
    code: str = ""  # of the student's own loss, "" without one


def write(path: Path, files: Mapping[str, bytes], key: bytes) -> None:
    """Write a hand-in of these files, sealed with `key`. Raises OSError if it cannot be written."""
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    content = {**files, SUMS: f"{sums}{seal_of(sums, key)}  {SEAL}\n".encode("ascii")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in content.items():
            archive.writestr(zipfile.ZipInfo(name, STAMP), raw, zipfile.ZIP_DEFLATED)


def read(raw: bytes, given: str) -> HandIn:
    """Return what a hand-in holds. ValueError, which begins with `given`, if `raw` is none."""
    if not is_archive(raw):
        raise ValueError(f"{given} is no ZIP file")
    files = Archive(raw, given)
    for name in (MANIFEST, HISTORY, SUMS):
        if name not in files.names:
            raise ValueError(f"{given} is no hand-in: there is no {name} in it")
    if len(files.names) > MOST_FILES:
        raise ValueError(f"{given} has {len(files.names):,} files; a hand-in has at most {MOST_FILES}")
    with files.reading() as reading:
        sums, seal = _sums(_text(reading, SUMS, given), given)
        content = {name: _bytes(reading, name, given) for name in files.names if name != SUMS}
    hashes = {name: hashlib.sha256(found).hexdigest() for name, found in content.items()}
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines())}
    edited = sorted(name for name in {*hashes, *listed} if hashes.get(name) != listed.get(name))
    texts = {name: _decoded(found, name, given) for name, found in content.items() if name != PREVIEW}
    settings = {name: text for name, text in texts.items() if SETTINGS.fullmatch(name)}
    return HandIn(texts[MANIFEST], texts[HISTORY], settings, tuple(edited), sums, seal, texts.get(CODE, ""))


def _sums(text: str, given: str) -> tuple[str, str]:
    """Return the lines of the hashes, and the seal."""
    lines = text.splitlines()
    if not all(re.fullmatch(r"[0-9a-f]{64}  [\w./-]{1,100}", line) for line in lines):
        raise ValueError(f"{given}: {SUMS} is damaged")
    sealed = bool(lines) and lines[-1].endswith(f"  {SEAL}")
    sums = lines[:-1] if sealed else lines
    return "".join(f"{line}\n" for line in sums), lines[-1].partition(" ")[0] if sealed else ""


def _bytes(reading: Read, name: str, given: str) -> bytes:
    try:
        raw = reading(name, MOST_TEXT + 1)
    except Exception as e:  # reading from an archive raises all kinds of errors
        raise ValueError(f"{given}: {name} cannot be read: {reason_of(e)}") from e
    if len(raw) > MOST_TEXT:
        raise ValueError(f"{given}: {name} has more than {MOST_TEXT:,} bytes")
    return raw


def _text(reading: Read, name: str, given: str) -> str:
    return _decoded(_bytes(reading, name, given), name, given)


def _decoded(raw: bytes, name: str, given: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{given}: {name} is not encoded in UTF-8") from e


# ---- the seal ----------------------------------------------------------------------------------------------------


def seal_of(sums: str, key: bytes) -> str:
    """Return the seal that a computer with `key` puts under a list of hashes."""
    return hmac.new(key, sums.encode(), hashlib.sha256).hexdigest()


def is_sealed(found: HandIn, key: bytes) -> bool:
    """Return whether the computer with `key` made this hand-in, and nothing in it has changed since."""
    return not found.edited and hmac.compare_digest(seal_of(found.sums, key), found.seal)
