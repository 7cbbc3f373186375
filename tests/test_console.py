"""The console has the program's own words only, whatever libraries print, warn and log."""

import asyncio
import contextlib
import io
import logging
import subprocess
import sys
import threading
import traceback
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import until

from sdlab import cli, console

ROOT = Path(__file__).parents[1]
LIBRARIES = ("trimesh", "asyncio", "uvicorn", "uvicorn.error", "gradio", "websockets.server", "torch", "numba", "PIL")


def print_a_traceback() -> None:
    try:
        raise ValueError("in a handler")
    except ValueError:
        traceback.print_exc()  # as Gradio does


def log_a_traceback(name: str) -> None:
    try:
        raise ValueError("in a library")
    except ValueError:
        logging.getLogger(name).exception("Exception in ASGI application")


def forget_a_failed_task() -> None:
    async def fail() -> None:
        raise OSError("connection lost")

    async def main() -> None:
        asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0)

    asyncio.run(main())


NOISES: dict[str, Callable[[], object]] = {
    "print": lambda: print("loading model..."),
    "write": lambda: sys.stderr.write("50%\n"),
    "traceback": print_a_traceback,
    "task": forget_a_failed_task,
    "deprecation": lambda: warnings.warn("use something else", DeprecationWarning, stacklevel=1),
    "warning": lambda: warnings.warn("TF32 is off", UserWarning, stacklevel=2),
    "runtime": lambda: warnings.warn("overflow in exp", RuntimeWarning, stacklevel=2),
    **{f"{name} logs": lambda name=name: logging.getLogger(name).error("no such file: %s", name) for name in LIBRARIES},
    **{f"{name} logs a traceback": lambda name=name: log_a_traceback(name) for name in LIBRARIES},
}
PRINTED = ("print", "write", "traceback")  # a command line has no streams of its own


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch):
    """Undoes what quietens a process."""
    handlers = logging.getLogger().handlers[:]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        yield
    logging.getLogger().handlers[:] = handlers


@pytest.mark.parametrize("noise", NOISES)
def test_libraries_are_not_heard_in_a_server_and_fill_its_log(noise: str, quiet, capsys, tmp_path: Path):
    with (tmp_path / "log").open("w") as log, console.own_words(log):
        console.tell("is at http://")
        NOISES[noise]()
        console.say("3 files were skipped")
    assert capsys.readouterr() == ("is at http://\n", "sdlab: 3 files were skipped\n")
    assert (tmp_path / "log").read_text(), "nothing is lost that somebody may need"
    with console.own_words():
        NOISES[noise]()
    assert capsys.readouterr() == ("", "")
    print("afterwards as before")
    assert capsys.readouterr().out == "afterwards as before\n"


@pytest.mark.parametrize("noise", [name for name in NOISES if name not in PRINTED])
def test_libraries_are_not_heard_on_a_command_line(noise: str, quiet, capsys):
    console.quieten()
    NOISES[noise]()
    assert capsys.readouterr() == ("", "")
    warnings.warn("'purple' is not known", console.Remark, stacklevel=1)
    assert capsys.readouterr().err == "sdlab: 'purple' is not known\n"


def test_torch_is_muted_once_it_is_there_unless_its_logs_are_asked_for(quiet, capsys, monkeypatch: pytest.MonkeyPatch):
    console.quieten()
    logger = logging.getLogger("torch.something")
    monkeypatch.setattr(logger, "propagate", False)
    for asked in ("+dynamo", None):
        logger.addHandler(logging.StreamHandler(sys.stderr))
        monkeypatch.setenv("TORCH_LOGS", asked) if asked else monkeypatch.delenv("TORCH_LOGS")
        cli.choose_device("cpu")
        logger.error("no such file")
        assert capsys.readouterr().err == ("no such file\n" if asked else "")


def test_an_error_of_this_program_that_a_library_logs_is_said_once_in_one_line(quiet, capsys):
    console.quieten()
    for text in ("first", "second"):
        try:
            cli.choose_device(f"gpu {text}")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    said = capsys.readouterr().err
    assert said.startswith("sdlab: an internal error was caught (options.py:")
    assert "--device gpu first: expected auto, cpu, cuda" in said
    assert said.count("\n") == 1


def test_a_thread_that_fails_is_said_in_one_line(quiet, capsys, tmp_path: Path):
    with (tmp_path / "log").open("w") as log, console.own_words(log):
        thread = threading.Thread(target=lambda: 1 / 0, name="sdlab-sweeper")
        thread.start()
        thread.join()
    said = "sdlab: sdlab-sweeper has ended because of an internal error (ZeroDivisionError: division by zero)\n"
    assert capsys.readouterr().err == said
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_console_that_has_gone_is_no_error(quiet, monkeypatch: pytest.MonkeyPatch):
    for stream in (None, io.StringIO()):
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        console.say("nobody hears this")
        console.tell("nor this")


NONSENSE = {
    "gradio_api/run/predict": b'{"data": [1], "fn_index": 99}',
    "gradio_api/queue/join": b'{"data": [], "fn_index": -1, "session_hash": "x"}',
    "gradio_api/component_server": b'{"component_id": 999, "fn_name": "x", "data": 1}',
    "do/nothing": b"{",
}


@pytest.mark.slow
def test_the_server_says_what_is_wrong_with_its_prior_and_nothing_of_nonsense(tmp_path: Path):
    log = tmp_path / "app.log"
    command = [sys.executable, "app.py", "--no-browser", "--port", "0", "--prior", "/no/such", "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said: list[str] = []
            threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
            address = process.stdout.readline().split()[5]
            until(lambda: said)
            for path, body in NONSENSE.items():
                request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
                with contextlib.suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(request, timeout=10).close()
        finally:
            process.terminate()
    assert said == [
        "sdlab: the prior cannot be prepared: prior.path = '/no/such': no such folder; it must be 'toybox', a folder "
        "in the diffusers layout, or a model on the Hugging Face Hub (owner/name)\n"
    ]


@pytest.mark.parametrize("log", ["/no/such/folder/x.log", "."])
def test_a_log_that_cannot_be_written_ends_with_one_line(log: str):
    done = subprocess.run([sys.executable, "app.py", "--log", log], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"app.py: --log {log}: ")
    assert done.stderr.count("\n") == 1
