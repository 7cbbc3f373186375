"""The branches for Windows of `sdlab.files`, on a pretended Windows: locks are of bytes, and bar others from reading
them; files that are open stay; folders cannot be opened."""

import errno
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sdlab import files as ours


class Windows(ModuleType):
    """As much of Windows' `os` and `msvcrt` as locks and flushing need. The rest is this system's `os`."""

    name = "nt"
    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self._opened: dict[int, tuple[str, int]] = {}  # path and flags of each handle
        self._locked: dict[str, int] = {}  # the handle that has the first byte

    def __getattr__(self, attribute):
        return getattr(os, attribute)

    @property
    def opened(self) -> list[str]:
        return [path for path, _ in self._opened.values()]

    def open(self, path, flags, mode=0o777):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        handle = os.open(path, flags, mode)
        self._opened[handle] = (str(path), flags)
        return handle

    def close(self, handle):
        path, _ = self._opened.pop(handle)
        if self._locked.get(path) == handle:
            del self._locked[path]
        os.close(handle)

    def read(self, handle, n):
        path, _ = self._opened[handle]
        if self._locked.get(path, handle) != handle:
            raise PermissionError(errno.EACCES, "Permission denied")
        return os.read(handle, n)

    def fsync(self, handle):
        if not self._opened[handle][1] & os.O_RDWR:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(handle)

    def locking(self, handle, mode, n):
        assert (mode, n, os.lseek(handle, 0, os.SEEK_CUR)) == (self.LK_NBLCK, 1, 0), "the first byte, without waiting"
        if self._locked.setdefault(self._opened[handle][0], handle) != handle:
            raise PermissionError(errno.EACCES, "Permission denied")


@pytest.fixture
def windows():
    return Windows()


@pytest.fixture
def files(windows, monkeypatch):
    """`sdlab.files` as Windows imports it."""
    spec = importlib.util.spec_from_file_location("files_on_windows", ours.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with monkeypatch.context() as importing:
        importing.setattr(os, "name", "nt")
        spec.loader.exec_module(module)
    monkeypatch.setattr(module, "os", windows)
    unlink = Path.unlink

    def unlinked(path, missing_ok=False):
        if str(path) in windows.opened:
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlinked)
    return module


def test_a_folder_is_held_by_one_at_a_time(files, windows, tmp_path):
    with files.held(tmp_path):
        assert windows.opened == [str(tmp_path / files.LOCK)]
        with pytest.raises(files.Locked, match=r"^another process$"), files.held(tmp_path):
            pass  # the holder's number is in bytes that others cannot read
        assert (tmp_path / files.LOCK).read_text() == str(os.getpid())
    assert windows.opened == []
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_has_open_stays_and_is_free(files, windows, tmp_path):
    other = None
    with files.held(tmp_path):
        other = windows.open(tmp_path / files.LOCK, os.O_RDWR)
    assert (tmp_path / files.LOCK).exists()
    with files.held(tmp_path):
        pass
    windows.close(other)
    with files.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_flushed_and_replaced_and_a_folder_is_not_flushed(files, windows, tmp_path):
    files.write_whole(tmp_path / "a.txt", "x")
    files.flush(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert windows.opened == []


def test_a_temporary_folder_goes_with_its_lock(files, windows, tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    folder = files.TemporaryFolder("sdlab-")
    assert len(windows.opened) == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", files.LOCK]
    monkeypatch.setattr(files, "SETTLED", -1.0)
    files.sweep_temporary("sdlab-")
    assert Path(folder.name).is_dir(), "its process lives"
    folder.cleanup()
    assert windows.opened == []
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_folder_of_a_killed_process_is_swept(files, tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "sdlab-dead").mkdir()
    (tmp_path / f"sdlab-dead{files.LOCK}").write_text("1")
    monkeypatch.setattr(files, "SETTLED", -1.0)
    files.sweep_temporary("sdlab-")
    assert list(tmp_path.iterdir()) == []
