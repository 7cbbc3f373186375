"""The memory limit of a server: an estimate first, then a watch over runs, and last the system's refusal."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import until

from sdlab import machine
from sdlab.channel import Account, Turnstile, rest
from sdlab.live import memory as memory_module
from sdlab.live.manager import Manager
from sdlab.live.memory import LEAST, SHARE, Memory
from sdlab.live.messages import Noted, Patch, Rejected, Resume
from sdlab.live.session import Session
from sdlab.machine import memory_bytes
from sdlab.settings import Settings

WIDE = (
    *(("camera.views", 16), ("camera.resolution", 1024), ("scene.max_gaussians", 200_000), ("scene.n_init", 200_000)),
    *(("scene.scale_max", 5.0), ("scene.scale_min", 1.0), ("scene.opacity_init", 0.01)),
)


def in_a_child(code: str, seconds: float = 120) -> str:
    """Run Python code in a process of its own, which must end well, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_default_is_a_share_of_what_the_container_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, version in (("memory.max", 2), ("memory/memory.limit_in_bytes", 1)):
        folder = tmp_path / str(version)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("5000000000\n")
        monkeypatch.setattr(machine, "CGROUP", folder)
        assert memory_bytes() == 5_000_000_000
        assert Memory().limit == int(SHARE * 5e9)
        (folder / name).write_text("max\n")
        assert memory_bytes() == psutil.virtual_memory().total


@pytest.mark.parametrize("limit", [0, -1, LEAST - 1])
def test_a_limit_below_what_a_server_needs_is_refused(limit: int):
    with pytest.raises(ValueError, match=r"--memory .*: a server needs at least 2 GB"):
        Memory(limit)


def test_settings_that_would_not_fit_are_refused_before_they_are_tried(quick):
    manager = Manager(memory=Memory(8_000_000_000))
    session = manager.open(quick.patch("steps", 100_000)).session
    until(lambda: session.status.phase == "ready")
    session.send(Patch(WIDE))
    until(lambda: [e for e in session.events.since()[0] if isinstance(e, Rejected)])
    (why, *_) = [e.reason for e in session.events.since()[0] if isinstance(e, Rejected)]
    assert why.startswith("camera.views = 16")
    assert "a step would need about" in why
    assert "GB left of 8.0" in why
    assert "--memory" in why
    session.send(Resume())
    until(lambda: session.state.step > 3)
    manager.shutdown()


def test_a_change_that_needs_no_more_is_allowed_when_memory_is_full(quick, monkeypatch: pytest.MonkeyPatch):
    session = Session(quick)
    session.prepare()
    full = Memory(LEAST)
    monkeypatch.setattr(memory_module, "resident_bytes", lambda: 2 * LEAST)
    full.admit(quick.patch("losses.sds.cfg", 3.0), session._run)
    full.admit(quick.patch("camera.views", 1), session._run)
    with pytest.raises(ValueError, match=r"camera.views = 16: a step would need"):
        full.admit(quick.patch("camera.views", 16), session._run)


def grown(quick: Settings, size: int, running: bool = True) -> Session:
    """Return a session whose turn has made the process grow."""
    session = Session(quick, turn=Turnstile(lambda: size).turn(Account()))
    session.turn._size, session.running = 0, running
    return session


def test_the_run_that_has_grown_most_is_halted_and_one_at_a_time(quick, monkeypatch: pytest.MonkeyPatch):
    memory = Memory(LEAST)
    monkeypatch.setattr(memory_module, "resident_bytes", lambda: LEAST + 1)
    small, large, paused = sessions = grown(quick, 5), grown(quick, 500), grown(quick, 10_000, running=False)
    memory.make_room(sessions)
    assert [bool(session.turn.stop) for session in sessions] == [False, True, False]
    assert large.turn.stop.startswith("paused: this server's memory is full (2.0 of 2.0 GB), and this run has grown")
    memory.make_room(sessions)
    assert not small.turn.stop, "the first has not ended its step yet"
    large.turn.stop, large.running = "", False
    memory.make_room(sessions)
    assert small.turn.stop
    assert not paused.turn.stop


def test_a_halted_run_pauses_with_a_sentence_and_can_go_on(quick):
    manager = Manager()
    session = manager.open(quick.patch("steps", 100_000)).session
    until(lambda: session.status.phase == "ready")
    session.send(Resume())
    until(lambda: session.state.step > 3)
    session.turn.stop = "paused: no memory"
    until(lambda: session.status.phase == "paused")
    assert [e.text for e in session.events.since()[0] if isinstance(e, Noted)] == ["paused: no memory"]
    step = session.state.step
    session.send(Resume())
    until(lambda: session.state.step > step + 3)
    manager.shutdown()


def test_a_halt_in_the_first_step_after_a_change_undoes_the_change(quick, monkeypatch: pytest.MonkeyPatch):
    session = Session(quick)
    session.prepare()
    session.advance()
    original = type(session.prior).eps

    def grows(self, z_t, t, cond):
        session.turn.stop = "paused: no memory"
        rest()
        return original(self, z_t, t, cond)

    monkeypatch.setattr(type(session.prior), "eps", grows)
    session.do(Patch.one("camera.views", 4))
    session.running = True
    session.advance()
    assert session.settings == quick
    assert session.running
    (why,) = (e.reason for e in session.events.since()[0] if isinstance(e, Rejected))
    assert why == "rolled back, its first step failed: paused: no memory"


def test_no_seat_is_given_when_memory_is_full(quick, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_module, "resident_bytes", lambda: LEAST)
    manager = Manager(memory=Memory(LEAST))
    with pytest.raises(RuntimeError, match=r"this server's memory is full \(2.0 GB\)"):
        manager.open(quick)
    assert manager.count() == 0
    manager.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits data")
def test_without_an_estimate_the_system_refuses_and_the_process_lives():
    """What once killed a server: the step fails, the change is undone, and the run goes on."""
    code = f"""
import os, threading, time
from sdlab.live import memory
from sdlab.live.messages import Patch, Rejected, Reset, Resume
from sdlab.live.session import Session
from sdlab.settings import preset
session = Session(preset("mixture").patch("steps", 100_000))
threading.Thread(target=session.run, daemon=True).start()
while session._run.state is None or session.state.step < 3: time.sleep(0.05)
memory.bound(memory.resident_bytes() - memory.SLACK + 400_000_000)
session.send(Patch({WIDE!r})); session.send(Reset()); session.send(Resume())
end, refused = time.monotonic() + 60, []
while time.monotonic() < end and not refused:
    time.sleep(0.1)
    refused = [e.reason for e in session.events.since()[0] if isinstance(e, Rejected)]
print(refused[0].splitlines()[0])
step = session.state.step
while time.monotonic() < end and session.state.step < step + 3: time.sleep(0.1)
print(session.state.step >= step + 3, flush=True)
os._exit(0)
"""
    refused, goes_on = in_a_child(code).strip().splitlines()[-2:]
    assert "memory" in refused.lower(), refused
    assert goes_on == "True"
