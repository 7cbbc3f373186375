"""Simulates a page open on another machine: its calls, its requests for news, and a view that receives all splats but
draws none.

    python distant.py ADDRESS TAB

opens a page at ADDRESS (with a trailing slash), switches to TAB, prints the seat id, and runs until its standard input
closes. It is a separate program that imports very little, so that it does not slow down what is measured. At the end it
prints its number of requests for news and the MB received.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from importlib.metadata import version
from typing import Any

from websockets import Subprotocol
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

ASK_EVERY = 0.5  # seconds, as in sdlab/ui/static/page/news.js


class Visitor:
    """A page that stays open until the program ends."""

    def __init__(self, address: str, tab: str) -> None:
        self._address = address
        self.requests, self.bytes = 0, 0
        given = json.loads(self._fetch("desk", {"dark": False}))
        self._token, self._page = given["token"], given["page"]
        self.seat = self._news()["panels"]["stage"][0]["token"]
        self._fetch(f"do/{self._token}", [{"do": "tab", "tab": tab}])

    def _news(self) -> dict[str, Any]:
        return json.loads(self._fetch(f"news/{self._token}?page={self._page}"))

    def _fetch(self, path: str, body: Any = None) -> bytes:
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, raw, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        self.bytes += len(content)
        return content

    def watch(self) -> None:
        """Receive everything sent to the 3D view."""
        address = f"ws{self._address.removeprefix('http')}viewport/{self.seat}"
        spoken = [Subprotocol(f"viser-v{version('viser')}")]
        try:
            with connect(address, subprotocols=spoken, max_size=None, compression=None, proxy=None) as socket:
                for message in socket:
                    self.bytes += len(message)
        except (OSError, WebSocketException):
            return  # the session has ended

    def ask(self, stop: threading.Event) -> None:
        """Request news until `stop` is set."""
        end = time.monotonic()
        while not stop.wait(max(end - time.monotonic(), 0.0)):
            end = time.monotonic() + ASK_EVERY
            self._news()
            self.requests += 1


def main(address: str, tab: str) -> None:
    """Run as described at the top of the file."""
    visitor, stop = Visitor(address, tab), threading.Event()
    for work in (visitor.watch, lambda: visitor.ask(stop)):
        threading.Thread(target=work, daemon=True).start()
    print(visitor.seat, flush=True)
    sys.stdin.read()
    stop.set()
    print(f"{visitor.requests} requests, {visitor.bytes / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
