"""A stand-in for the package `spaces` of ZeroGPU, and one for the platform that the real package talks to.

The stand-in of the package runs decorated functions in this process, in a forked one (as the real package does) or in a
fresh one, and can fail as the real one does. The stand-in of the platform answers the requests of spaces 0.51.3.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

WAIT = 120.0  # seconds for a state from another process


class Spaces:
    """The package: `how` is "inside", "fork" or "spawn". The next call fails with `error`, if there is one, after
    `states` states."""

    def __init__(self, how: str = "inside", with_startup: bool = True) -> None:
        self.how = how
        self.decorated: list[Callable[..., Any]] = []
        self.reports = 0
        self.asked: list[float] = []  # seconds of each call
        self.error: Exception | None = None
        self.states = 0
        self.zero = SimpleNamespace(startup=self.startup) if with_startup else SimpleNamespace()

    def startup(self) -> None:
        self.reports += bool(self.decorated)

    def GPU(self, duration: Callable[..., float]) -> Callable[..., Any]:
        def decorate(task: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
            def call(*args: Any) -> Iterator[bytes]:
                self.asked.append(duration(*args))
                error, self.error = self.error, None
                states = task(*args) if self.how == "inside" else elsewhere(self.how, task, args)
                for number, state in enumerate(states):
                    if error is not None and number >= self.states:
                        break
                    yield state
                if error is not None:
                    raise error

            self.decorated.append(task)
            return call

        return decorate


def elsewhere(how: str, task: Callable[..., Iterator[bytes]], args: tuple[Any, ...]) -> Iterator[bytes]:
    """Run `task` in another process, started by `how`; only bytes come back."""
    context = multiprocessing.get_context(how)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(task, args, theirs), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        while ours.poll(WAIT):
            yield ours.recv_bytes()
    except EOFError:
        pass
    finally:
        process.terminate()
        process.join()


def send(task: Callable[..., Iterator[bytes]], args: tuple[Any, ...], pipe: Any) -> None:
    from sdlab.raster import cpu

    cpu.set_threads(1)  # a forked process has none of the threads that drew before; on a GPU nothing is drawn here
    for state in task(*args):
        pipe.send_bytes(state)
    pipe.close()


class Platform:
    """Answers what the real package asks, at `address`; `heard` lists the requests. With `quota_left`, it refuses."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.quota_left: int | None = None
        platform = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                found = urlsplit(self.path)
                said = {name: values[0] for name, values in parse_qs(found.query).items()}
                platform.heard.append((found.path, said))
                code, body = platform.answer(found.path)
                content = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, Any]:
        if path == "/schedule" and self.quota_left is not None:
            return 429, {"left": self.quota_left, "wait": "PT2H"}
        if path == "/schedule":
            return 200, {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "secret"}
        return 200, {}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
