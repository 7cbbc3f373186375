"""Serve an application in a thread of the tests' process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from fastapi import FastAPI
from waiting import until

from sdlab.ui.server import server


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve `app` as app.py does; yields its address without a slash at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: running.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(10)
