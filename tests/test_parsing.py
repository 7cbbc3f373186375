"""Files parsed in child processes: what comes back, what a file cannot do, and what stays behind (nothing)."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import trimesh
from waiting import until

from sdlab import parsing
from sdlab.decoding import picture_of
from sdlab.parsing import children, wire
from sdlab.parsing.children import CHILDREN, Limits
from sdlab.shapes import Cloud, RawSplats
from sdlab.starts import clouds

ROOT = Path(__file__).parents[1]
SMALL = Limits(1.0, 150_000_000)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel limits address space on Linux only")


def ran(code: str, limits: Limits = SMALL, **options: Any) -> Any:
    """Evaluate Python in a child, as a file whose parser does whatever it likes."""
    return parsing.parsed(eval, code.encode(), given="'x.glb'", limits=limits, **options)


def living() -> list[psutil.Process]:
    """Return the children of this process that parse files, zombies included."""
    found = []
    for child in psutil.Process().children():
        try:
            if child.status() == psutil.STATUS_ZOMBIE or any("sdlab.parsing.child" in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.fixture
def none_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks that a test leaves no process and no temporary file behind."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    CHILDREN.close()
    yield
    CHILDREN.close()
    until(lambda: living() == [])  # an idle one may be about to end
    assert list(folder.iterdir()) == []


# ---- results


class Nested(NamedTuple):
    cloud: Cloud
    notes: tuple[str, ...]
    sure: bool


def through(value: Any, kinds: tuple[type, ...] = (), most: int = 10**6) -> Any:
    """Encode a value and decode it again."""
    arrays: list[np.ndarray] = []
    line = json.dumps(wire.encode(value, arrays))
    stream = io.BytesIO(b"".join(array.tobytes() for array in arrays))
    return wire.Decoder(stream, kinds, most).decode(json.loads(line))


def test_results_come_back_as_they_were():
    rng = np.random.default_rng(0)
    points, grey = rng.random((5, 3), np.float32), np.full((5, 3), 0.5, np.float32)
    nested = through(Nested(Cloud(points, grey), ("a", "ü <b>"), True), (Nested, Cloud))
    assert type(nested) is Nested
    assert type(nested.cloud) is Cloud
    assert np.array_equal(nested.cloud.points, points)
    assert nested[1:] == (("a", "ü <b>"), True)
    for name in ("?", "i1", "u2", "i4", "u8", "f2", "f8"):
        for shape in ((), (0,), (3, 0), (4,), (2, 3, 4)):
            array = rng.integers(0, 100, shape).astype(name)
            back = through(array)
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
            assert np.array_equal(back, array)
    crossed = rng.random((6, 4))[::2, ::-1].T
    assert np.array_equal(through(crossed), crossed)
    plain = {"state": {"state": 2**127 + 1, "inc": -1}, "list": [1, [2.5, None]], "tuple": (True, "x")}
    assert through(plain) == plain
    assert through(np.float32(0.25)) == 0.25
    for odd in (object(), np.array([object()]), np.array(["text"]), {1, 2}, np.zeros(2, complex)):
        with pytest.raises(TypeError):
            wire.encode(odd, [])


@pytest.mark.parametrize(
    "coded",
    [
        {"array": ["|O", 3]},
        {"array": ["<f4", -1]},
        {"array": ["<f4", True]},
        {"array": ["<f4", 2.0]},
        {"array": ["<f4", 10**9]},
        {"array": ["<f4", 10**30, 10**30]},
        {"array": []},
        {"array": [["<f4"]]},
        {"array": "<f4"},
        {"Cloud": [1]},
        {"Popen": ["rm"]},
        {"os.system": ["rm"]},
        {"tuple": [], "list": []},
        {},
        {"dict": [["a"], []]},
        {"dict": [[1], [2]]},
        {"dict": [1, 2]},
        [1, 2],
    ],
)
def test_a_reply_is_data_and_nothing_else(coded: Any):
    with pytest.raises((wire.Garbled, EOFError, ValueError, TypeError)) as error:
        wire.Decoder(io.BytesIO(bytes(100)), (Cloud,), 1000).decode(coded)
    assert error.type in (wire.Garbled, EOFError), error


@pytest.mark.parametrize("line", [b"", b"\n", b"[1]\n", b"nonsense\n", b'{"a": \n', b"[" * 100_000 + b"\n", b"\xff\n"])
def test_a_line_that_is_no_reply(line: bytes):
    with pytest.raises((wire.Garbled, EOFError)):
        wire.receive(io.BytesIO(line))


def test_a_cloud_is_the_same_as_one_read_here():
    raw = trimesh.creation.icosphere(subdivisions=1).export(file_type="glb")
    here, there = np.random.default_rng(3), np.random.default_rng(3)
    own, other = clouds.cloud_of(raw, 50, here, "x"), clouds.parsed_cloud(raw, 50, there, "x")
    assert isinstance(own.found, Cloud)
    assert isinstance(other.found, Cloud)
    assert np.array_equal(own.found.points, other.found.points)
    assert np.array_equal(own.found.rgbs, other.found.rgbs)
    assert here.random() == there.random(), "the generator has advanced as far"


def test_the_child_has_no_torch_and_starts_quickly():
    modules = ("sdlab.starts.clouds", "sdlab.meshes.surface", "sdlab.decoding", "sdlab.folders")
    heavy = ("torch", "gradio", "fastapi", "diffusers", "openvino")
    code = f"sorted(set({heavy!r}) & set(__import__('sys').modules))"
    assert ran(code, needs=modules) == []


def test_what_a_parser_prints_and_says():
    """Its prints reach nobody, its UserWarnings the caller."""
    assert ran("print('x') or __import__('os').write(1, b'x' * 10) or __import__('sys').stdin.read()") in (10, "")
    with pytest.warns(UserWarning, match=r"^3 points are far away$"):
        ran("__import__('warnings').warn('3 points are far away')")
    with pytest.raises(ValueError, match=r"^'y' is nothing$"):
        ran("(_ for _ in ()).throw(ValueError(\"'y' is nothing\"))")
    with pytest.raises(ValueError, match=r"^'x\.glb' cannot be read: division by zero$"):
        ran("1 / 0")


# ---- limits

SLOW = r"^'x\.glb' takes more than 1 s to read, which is the limit: make it smaller or simpler$"
LARGE = r"^'x\.glb' needs more than 150 MB of memory to read, which is the limit: make it smaller$"
CRASHED = r"^'x\.glb' is damaged: its parser crashed; re-export it$"
UNLIMITED = "[__import__('resource').setrlimit(kind, (-1, -1)) for kind in (0, 9)]"  # CPU time and address space


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("sum(iter(lambda: 1, 2))", SLOW, id="endless"),
        pytest.param("'a' * 40 in __import__('re').findall('(a+)+b', 'a' * 40)", SLOW, id="endless in C"),
        pytest.param("bytes(10**10)", LARGE, id="one allocation", marks=LINUX),
        pytest.param("[bytes(10**6) for _ in iter(int, 1)]", LARGE, id="many allocations", marks=LINUX),
        pytest.param("__import__('numpy').zeros(10**10)", LARGE, id="numpy", marks=LINUX),
        pytest.param(f"{UNLIMITED} and sum(iter(lambda: 1, 2))", SLOW, id="endless, measured", marks=LINUX),
        pytest.param(f"{UNLIMITED} and [bytes(10**6) for _ in iter(int, 1)]", LARGE, id="large, measured", marks=LINUX),
        pytest.param("__import__('os').abort()", CRASHED, id="abort"),
        pytest.param("__import__('os')._exit(0)", CRASHED, id="exit"),
        pytest.param("__import__('ctypes').string_at(0)", CRASHED, id="segmentation fault"),
        pytest.param("bytes(10**9)", LARGE, id="a large result", marks=LINUX),
    ],
)
def test_a_file_beyond_a_limit_harms_only_itself(none_left: None, code: str, said: str):
    began = time.monotonic()
    with pytest.raises(ValueError, match=said):
        ran(code)
    assert time.monotonic() - began < 30
    assert ran("1 + 1") == 2, "the next file is read"


def test_a_child_that_waits_is_ended(none_left: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "BUSY", 0.3)
    with pytest.raises(ValueError, match=SLOW):
        ran("__import__('time').sleep(100)")


@LINUX
def test_a_parser_writes_no_files(none_left: None, tmp_path: Path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=r"^'x\.glb' cannot be read: "):
        ran(f"__import__('pathlib').Path({str(path)!r}).write_text('x')")
    assert not path.exists() or path.stat().st_size == 0


def test_a_child_is_used_again_until_it_has_grown(none_left: None, monkeypatch: pytest.MonkeyPatch):
    pid = "__import__('os').getpid()"
    first = ran(pid)
    assert ran(pid) == first
    with pytest.raises(ValueError, match="cannot be read"):
        ran("1 / 0")
    assert ran(pid) == first, "a refused file is no reason to start another"
    ran("__import__('sys').modules.setdefault('kept', bytearray(260_000_000)) and 0", SMALL._replace(memory=10**9))
    assert ran(pid) != first
    monkeypatch.setattr(children, "IDLE", 0.0)
    ended = time.monotonic() + 10
    while living() and time.monotonic() < ended:
        time.sleep(0.05)
    assert living() == [], "an idle child ends"
    assert ran("2") == 2


def test_what_a_child_used_before_does_not_count(none_left: None):
    child = children.Child()
    child.expect(SMALL)
    child.hold_to_limits()
    request = children.Request("builtins:eval", (), (), b"sum(range(10**7))")
    assert child.ask(request, ()).result == sum(range(10**7))
    child.expect(Limits(0.001, 1))
    child.hold_to_limits()
    assert child.refusal == "", "it has not begun"
    assert child.is_alive()
    child.end()
    assert not child.is_alive()


def test_the_limits_of_one_file_do_not_hold_for_the_next(none_left: None):
    ran("1", Limits(1.0, 0))
    assert parsing.parsed(len, bytes(300_000_000), given="x", limits=SMALL) == 300_000_000


def test_children_stand_by(none_left: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "IDLE", 0.0)

    def ready() -> list[int]:
        ended = time.monotonic() + 30
        while len(CHILDREN._idle) < 2 and time.monotonic() < ended:
            time.sleep(0.05)
        return sorted(child._process.pid for child in CHILDREN._idle)

    parsing.stand_by(2)
    first = ready()
    assert len(first) == 2
    assert ran("'trimesh' in __import__('sys').modules")
    time.sleep(1.5)
    assert ready() == first, "these do not end when they are idle"
    with pytest.raises(ValueError, match=CRASHED):
        ran("__import__('os').abort()")
    assert len(set(ready()) & set(first)) == 1, "another takes the place of one that has ended"


def test_a_child_that_died_meanwhile_is_replaced(none_left: None):
    ran("1")
    for process in living():
        process.kill()
        process.wait()
    assert ran("2") == 2


def test_no_child_can_be_started(none_left: None, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **options: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(ValueError, match=r"^'x\.glb' cannot be read now: this computer"):
            ran("1")
    assert ran("1") == 1


# ---- several at once


def test_several_files_are_parsed_at_once_and_the_others_wait_in_order(none_left: None):
    ends: list[float] = []

    def slow() -> None:
        ran("__import__('time').sleep(0.5)")
        ends.append(time.monotonic())

    threads = [threading.Thread(target=slow) for _ in range(children.AT_ONCE + 1)]
    for thread in threads:
        thread.start()
    while len(living()) < children.AT_ONCE:
        time.sleep(0.02)
    assert len(living()) == children.AT_ONCE, "no more than that"
    for thread in threads:
        thread.join(30)
    assert len(ends) == len(threads)
    assert ends[-1] - ends[0] > 0.3, "the last has waited for a place"


def test_small_files_are_read_beside_an_endless_one(none_left: None):
    ran("1")
    said: list[str] = []

    def endless() -> None:
        try:
            ran("sum(iter(lambda: 1, 2))", Limits(2.0, 10**9))
        except ValueError as e:
            said.append(str(e))

    thread = threading.Thread(target=endless)
    thread.start()
    began = time.monotonic()
    raw = trimesh.creation.box().export(file_type="stl")
    clouds.parsed_cloud(raw, 10, np.random.default_rng(0), "x")
    assert time.monotonic() - began < 3 or not said
    assert not said, "before the other has run into its limit"
    thread.join(30)
    assert said


# ---- what stays


def test_ctrl_c_leaves_no_process(none_left: None):
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    ran("1")
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ran("__import__('time').sleep(100)", Limits(100.0, 10**9))
    assert living() == []
    assert ran("2") == 2


PARENT = """
import sys, threading, time
from sdlab import parsing
parsing.parsed(eval, b"1", given="x")
print("idle", flush=True)
if sys.argv[1] == "busy":
    limits = parsing.Limits(1.0, 10**9)
    threading.Thread(target=lambda: parsing.parsed(eval, b"sum(iter(lambda: 1, 2))", given="x", limits=limits)).start()
if sys.argv[1] != "ends":
    time.sleep(0.3)
    print("busy", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_child_of_a_killed_parent_ends(state: str):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, state], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert [parent.stdout.readline().strip() for _ in range(2)] == ["idle", "busy"]
        left = psutil.Process(parent.pid).children()
        assert len(left) == 1
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


def test_a_program_that_parses_ends_at_once_and_says_nothing(tmp_path: Path):
    """Neither do the tracebacks that trimesh logs reach the console."""
    raw = trimesh.creation.box().export(file_type="glb")
    (tmp_path / "x.glb").write_bytes(raw[:-300] + bytes(300))
    (tmp_path / "y.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 3\nproperty list x y z\nend_header\n1 2\n")
    code = f"""
import numpy, pathlib
from sdlab.starts.clouds import read_cloud
for name in ("x.glb", "y.ply"):
    try:
        read_cloud(pathlib.Path({str(tmp_path)!r}) / name, 5, numpy.random.default_rng(0), "scene.file")
    except ValueError as e:
        print("refused")
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "refused" in done.stdout
    assert time.monotonic() - began < 60


def test_gaussians_and_pictures_come_back_whole():
    columns = [*"xyz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
    columns += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    head = "".join(f"property float {name}\n" for name in columns)
    table = np.random.default_rng(0).standard_normal((40, len(columns))).astype("<f4")
    raw = f"ply\nformat binary_little_endian 1.0\nelement vertex 40\n{head}end_header\n".encode() + table.tobytes()
    found = clouds.parsed_cloud(raw, 1, np.random.default_rng(0), "x")
    assert isinstance(found.found, RawSplats)
    assert np.array_equal(found.found.means, table[:, :3])
    file = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 51)).save(file, "PNG")
    square = parsing.parsed(picture_of, file.getvalue(), 4, "x", given="x")
    assert square.shape == (4, 4, 3)
    assert np.allclose(square, (1, 0, 0.2))
