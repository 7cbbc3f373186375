"""A window of its own, with a stand-in for pywebview."""

import asyncio
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import app as program
from sdlab.ui import desktop

ROOT = Path(__file__).parents[1]


class Window(SimpleNamespace):
    """pywebview, as far as it is used: the "user" reads the page once, and closes the window."""

    def __init__(self, error: str = "") -> None:
        super().__init__(settings={}, error=error, seen="", title="", url="")

    def create_window(self, title: str, url: str, **look: Any) -> None:
        self.title, self.url = title, url

    def start(self, on_open: Any) -> None:
        if self.error:
            raise RuntimeError(self.error)
        on_open()
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            self.seen = answer.read().decode()


def page() -> FastAPI:
    made = FastAPI()
    made.state.closing = asyncio.Event()
    made.get("/")(lambda: PlainTextResponse("the page"))
    return made


def served(window: Window, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return the exit code, and whether the port is closed afterwards as connect_ex tells."""
    monkeypatch.setitem(sys.modules, "webview", window)
    listener = program.bind("127.0.0.1", "0")
    port = listener.getsockname()[1]
    code = program.serve_window(page(), listener)
    with socket.socket() as probe:
        return code, probe.connect_ex(("127.0.0.1", port))


def test_the_window_shows_the_page_and_its_end_is_the_servers(monkeypatch: pytest.MonkeyPatch):
    window = Window()
    code, refused = served(window, monkeypatch)
    assert (code, window.seen, window.title) == (0, "the page", desktop.TITLE)
    assert window.url.startswith("http://127.0.0.1:")
    assert refused
    assert window.settings["ALLOW_DOWNLOADS"], "results are downloads"


def test_without_a_backend_it_says_so_in_one_line_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    code, refused = served(Window("You must have either QT or GTK with Python extensions installed\nmore"), monkeypatch)
    said = capsys.readouterr().err
    assert code == 2
    assert refused
    assert said.count("\n") == 1
    assert "no window can be opened (You must have either QT or GTK with Python extensions installed)" in said
    assert "extras/desktop.txt" in said
    assert "without --desktop, the page opens in a browser as ever" in said


@pytest.mark.parametrize(
    ("arguments", "package", "said"),
    [
        ([], False, "--desktop needs pywebview, which is not installed: pip install -r extras/desktop.txt; without"),
        ([], True, "--desktop needs a screen"),
        (["--host", "0.0.0.0"], True, "--host 0.0.0.0: with --desktop, the server is for this computer only"),
        (["--public-url", "https://lab.example"], True, "--public-url https://lab.example: with --desktop"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(
    arguments: list[str],
    package: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    found = SimpleNamespace() if package else None
    monkeypatch.setattr(desktop.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(program, "has_screen", lambda: False)
    monkeypatch.setattr(program, "build", lambda *_: pytest.fail("it was built"))
    assert program.main(["--desktop", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_the_checks_import_nothing_slow():
    code = "import sys; import sdlab.ui.desktop; sys.exit(bool({'torch', 'gradio', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
