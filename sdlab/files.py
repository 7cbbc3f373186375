"""Files that are whole or absent, folders that one process uses at a time, and scratch that dead processes left.

Scratch is named `.NAME.PID.tmp`, plus the suffix of a file, so that it is recognised when its process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil

if os.name == "nt":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
SETTLED = 60.0  # seconds after which the lock of a temporary folder must have been taken by its process
_SCRATCH = re.compile(r"\..+\.(\d+)\.tmp(\.\w+)?")


def why(e: OSError) -> str:
    """Return what is wrong, without the number and the path that `str` adds."""
    return e.strerror or str(e)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file or folder to disk, before a rename makes it visible (Windows cannot flush folders)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- scratch -----------------------------------------------------------------------------------------------------


def scratch_for(path: Path) -> Path:
    """Return the scratch path beside `path` of this process; it keeps the suffix, by which writers choose a format."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a scratch path that takes the place of the file `path` if the block succeeds; otherwise `path` stays as it
    was. Raises OSError that names `path` if it cannot be written."""
    scratch = scratch_for(path)
    try:
        yield scratch
        flush(scratch)
        os.replace(scratch, path)
    except OSError as e:
        raise OSError(f"{path} cannot be written ({why(e)})") from e
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file as in `whole`."""
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; one that is not there, or cannot be removed, is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove scratch of dead processes and of this one, which must not be writing to `folder`."""
    for path in folder.iterdir():
        name = _SCRATCH.fullmatch(path.name)
        if name is not None and (int(name[1]) == os.getpid() or not psutil.pid_exists(int(name[1]))):
            remove(path)


# ---- locks -------------------------------------------------------------------------------------------------------


class Locked(Exception):
    """Another process holds the lock; the text names it if known."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder` to this block: raises `Locked` if another process, or another block, has it. The system releases
    the lock of a process that dies. Where a file system has no locks, nothing is kept out."""
    handle = _lock(folder / LOCK)
    try:
        yield
    finally:
        _release(handle, folder / LOCK)


def _lock(path: Path) -> int:
    """Return the handle of `path`, locked and holding the process id."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock_handle(handle)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                holder = ""
                with contextlib.suppress(OSError):
                    holder = os.read(handle, 20).decode("ascii", "replace")
                os.close(handle)
                raise Locked(f"process {holder}" if holder else "another process") from e
        if _is_at(handle, path):
            with contextlib.suppress(OSError):  # a full disk: then the holder is not named
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)  # its holder removed it between our opening and locking it


def _lock_handle(handle: int) -> None:
    if os.name == "nt":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _release(handle: int, path: Path) -> None:
    if os.name == "nt":  # an open file cannot be removed
        os.close(handle)
    with contextlib.suppress(OSError):
        path.unlink()
    if os.name != "nt":
        os.close(handle)


# ---- temporary folders -------------------------------------------------------------------------------------------


class TemporaryFolder(tempfile.TemporaryDirectory):
    """A temporary folder with a locked file beside it, by which `sweep_temporary` recognises those of killed
    processes."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix=prefix, ignore_cleanup_errors=True)
        path = _lock_beside(Path(self.name))
        self._unlock = weakref.finalize(self, _release, _lock(path), path)

    def cleanup(self) -> None:
        super().cleanup()
        self._unlock()


def _lock_beside(folder: Path) -> Path:
    return folder.with_name(folder.name + LOCK)


def sweep_temporary(prefix: str) -> None:
    """Remove the temporary folders with `prefix` whose process was killed."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*{LOCK}"):
        with contextlib.suppress(OSError, Locked):
            if time.time() - lock.stat().st_mtime > SETTLED:
                handle = _lock(lock)
                shutil.rmtree(lock.with_name(lock.name.removesuffix(LOCK)), ignore_errors=True)
                _release(handle, lock)
