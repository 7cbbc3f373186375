"""Whole files, locked folders, and what killed processes leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdlab import files
from sdlab.arguments import claim, claim_file, claimed
from sdlab.ui.results import Shelves

ROOT = Path(__file__).parents[1]


def started(code: str, *arguments: object) -> subprocess.Popen:
    """Start a process that prints a line when it is ready, and then waits."""
    lines = (
        f"import sys\nfrom pathlib import Path\nfrom sdlab import files\n{code}\nprint('ready', flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", lines, *map(str, arguments)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("existed", [False, True])
def test_a_whole_file_is_written_or_left(existed, tmp_path):
    file = tmp_path / "a.txt"
    if existed:
        file.write_text("before")

    def fail() -> None:
        with files.whole(file) as scratch:
            scratch.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.exists() == existed
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] * existed
    files.write_whole(file, "after")
    assert file.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_whole_file_takes_the_place_of_a_link_and_not_of_what_it_points_to(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    files.write_whole(tmp_path / "a", "ours")
    assert ((tmp_path / "mine").read_text(), (tmp_path / "a").read_text()) == ("mine", "ours")


def test_an_error_names_the_file_and_not_its_scratch(tmp_path):
    with pytest.raises(OSError, match=r"nowhere/a\.txt cannot be written \(No such file or directory\)"):
        files.write_whole(tmp_path / "nowhere" / "a.txt", "x")


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with files.held(tmp_path):
        with pytest.raises(files.Locked, match=f"process {os.getpid()}"), files.held(tmp_path):
            pass
        assert (tmp_path / files.LOCK).exists(), "the second try leaves the lock"
    with files.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = started("lock = files.held(Path(sys.argv[1])); lock.__enter__()", tmp_path)
    with pytest.raises(ValueError, match=rf"--out .*another run \(process {process.pid}\)"), claimed(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with claimed(tmp_path):
        assert (tmp_path / files.LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_many_processes_hold_a_folder_in_turn(tmp_path):
    """A lock file that is removed while another waits for it must not give it to both."""
    code = (
        "import sys, time; from pathlib import Path; from sdlab import files\n"
        "folder, done, end = Path(sys.argv[1]), 0, time.time() + 60\n"
        "while done < 30 and time.time() < end:\n"
        "    try:\n"
        "        with files.held(folder):\n"
        "            (folder / 'mine').mkdir(); (folder / 'mine').rmdir(); done += 1\n"
        "    except files.Locked: pass\n"
        "sys.exit(done != 30)\n"
    )
    everyone = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(4)]
    assert [process.wait(90) for process in everyone] == [0, 0, 0, 0]


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def unsupported(handle):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "_lock_handle", unsupported)
    with files.held(tmp_path), files.held(tmp_path):
        pass


@pytest.mark.parametrize("prefix", ["sdlab-results-", "sdlab-uploads-"])
def test_temporary_folders_of_killed_processes_are_swept(prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    make = "files.tempfile.tempdir = sys.argv[1]; folder = files.TemporaryFolder(sys.argv[2])"
    dead, alive = started(make, tmp_path, prefix), started(make, tmp_path, prefix)
    names = {p.name for p in tmp_path.iterdir()}
    assert len(names) == 4, "two folders, and a lock beside each"
    dead.kill()
    dead.wait()
    foreign = tmp_path / f"{prefix}without-a-lock"
    foreign.mkdir()
    Shelves()
    assert {p.name for p in tmp_path.iterdir()} == {*names, foreign.name}, "a young one may not be locked yet"
    for lock in tmp_path.glob(f"{prefix}*{files.LOCK}"):
        os.utime(lock, (time.time() - 100,) * 2)
    Shelves()
    left = {p.name for p in tmp_path.iterdir()}
    assert foreign.name in left
    assert len(left & names) == 2, "that of the living process stays"
    alive.communicate(b"\n")
    assert {p.name for p in tmp_path.iterdir()} == {foreign.name}


def test_a_temporary_folder_leaves_no_handle_open(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        files.TemporaryFolder("a-").cleanup()
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["/proc/nowhere", "x" * 300, "a\0b"])
def test_an_impossible_folder_names_the_option(out, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for check in (claim, lambda path: claim_file(path / "a.png")):
        with pytest.raises(ValueError, match=r"^--out .*cannot write there"):
            check(Path(out))


def test_an_input_is_no_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_text("mine")
    Path("b.png").symlink_to("a.png")
    for out in ("a.png", "b.png", str(tmp_path / "a.png"), "./x/../a.png"):
        with pytest.raises(ValueError, match="would be overwritten"):
            claim_file(Path(out), [tmp_path / "a.png"])
    claim_file(Path("c.png"), [tmp_path / "a.png"])
