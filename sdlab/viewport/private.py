"""A viser server that only this process can use.

viser opens a port on the loopback interface for every server. Any program of this machine can connect to it, and so can
any web page in its browser. So the server here serves no files, and closes every connection that does not know its
secret path before anything of the scene is sent.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import rich
import viser
import viser.infra
from websockets.asyncio.server import ServerConnection

UNKNOWN_CLIENT = 4401


class PrivateSocket(viser.infra.WebsockServer):
    """viser's own server of HTTP and WebSockets, for clients that ask for the path /`secret`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "http_server_root": None})
        self.secret = secrets.token_urlsafe(32)
        self.on_client_connect(self._check)  # the first to be called, before viser sends anything

    async def _check(self, client: viser.infra.WebsockClientConnection) -> None:
        connection = self._live_connections[client.client_id]
        if not self._is_ours(connection):
            await connection.close(UNKNOWN_CLIENT, "unknown client")

    def _is_ours(self, connection: ServerConnection) -> bool:
        request = connection.request
        return (
            request is not None
            and "Origin" not in request.headers
            and hmac.compare_digest(request.path.encode(), f"/{self.secret}".encode())
        )


class LocalServer(viser.ViserServer):
    """A viser server that never opens a public tunnel; by default any client may request one."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None

    @property
    def address(self) -> str:
        """The WebSocket's address, which holds the secret."""
        assert isinstance(self._websock_server, PrivateSocket)
        return f"ws://127.0.0.1:{self.get_port()}/{self._websock_server.secret}"


_starting = threading.Lock()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Silence viser, which prints a line whenever a server starts or stops, even with verbose=False."""
    console = rich.get_console()
    with _starting:
        quiet, console.quiet = console.quiet, True
        try:
            yield
        finally:
            console.quiet = quiet


def start_server() -> LocalServer:
    """Start a server on a free port of the loopback interface. RuntimeError if this viser cannot be made private."""
    with muted():
        usual = viser.infra.WebsockServer
        viser.infra.WebsockServer = PrivateSocket  # viser has no option for it; it looks the class up by this name
        try:
            server = LocalServer(host="127.0.0.1", port=0, verbose=False)
        finally:
            viser.infra.WebsockServer = usual
    if not isinstance(server._websock_server, PrivateSocket):
        server.stop()
        raise RuntimeError(f"viser {viser.__version__} serves its ports to everybody; install the version required")
    return server


class _Quiet(logging.Filter):
    """Drops what strangers on these ports cause: one traceback for every handshake that fails."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("opening handshake failed", "connection rejected"))


logging.getLogger("websockets.server").addFilter(_Quiet())
