"""A small reverse proxy that does to requests what nginx does with a `location` block, or Caddy with a site."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import ssl
import threading
from dataclasses import dataclass, field

HOP_BY_HOP = {"connection", "upgrade", "keep-alive", "te", "host", "proxy-connection"}


@dataclass
class Location:
    """What a proxy publishes at `path`: whether it removes that path, and the headers it sets, with nginx's variables.

    Without more, nginx sends its own address as Host and drops Upgrade.
    """

    path: str = "/"
    strips: bool = True
    headers: dict[str, str] = field(default_factory=lambda: {"Host": "$proxy_host", "Connection": "close"})

    @classmethod
    def of_nginx(cls, block: str) -> Location:
        """Return the location of a block of nginx's configuration; its port is replaced by the one tried."""
        found = cls()
        for words in (shlex.split(line.strip().rstrip(";{ ")) for line in block.splitlines()):
            match words:
                case ["location", path]:
                    found.path = path
                case ["proxy_pass", url]:
                    found.strips = url.count("/") == 3  # a path, if only /, replaces that of the location
                case ["proxy_set_header", name, value]:
                    found.headers[name] = value
        return found

    @classmethod
    def of_caddy(cls, block: str) -> Location:
        """Return the location of a site block of Caddy, which passes on Host and Upgrade."""
        below = re.search(r"(handle|handle_path) (\S+)\*", block)
        headers = {
            "Host": "$http_host",
            "X-Forwarded-Host": "$http_host",
            "X-Forwarded-Proto": "$scheme",
            "X-Forwarded-For": "$remote_addr",
            "Upgrade": "$http_upgrade",
            "Connection": "$http_connection",
        }
        return cls(below[2] if below else "/", below is None or below[1] == "handle_path", headers)


class SmallProxy:
    """Forwards one request per connection to 127.0.0.1:`upstream`, in a thread of its own."""

    def __init__(self, location: Location, upstream: int, tls: ssl.SSLContext | None = None) -> None:
        self._location, self._upstream, self._tls = location, upstream, tls
        self._serving: set[asyncio.Task | None] = set()  # the loop's own references are weak
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            await self._answer(reader, writer)
        finally:
            self._serving.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.strip().split("\r\n")
            method, path, _ = request.split(" ")
            given = dict(line.split(": ", 1) for line in lines)
            root = self._location.path
            if f"{path}/" == root:
                writer.write(f"HTTP/1.1 301 Moved\r\nLocation: {root}\r\nConnection: close\r\n\r\n".encode())
            elif not path.startswith(root):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                await self._forward(method, path, given, reader, writer)
        writer.close()

    async def _forward(self, method: str, path: str, given: dict[str, str], reader, writer) -> None:
        location = self._location
        path = "/" + path.removeprefix(location.path).lstrip("/") if location.strips else path
        headers = {name: value for name, value in given.items() if name.lower() not in HOP_BY_HOP}
        headers |= {name: self._filled(value, given) for name, value in location.headers.items()}
        if not headers.get("Upgrade"):
            headers["Connection"] = "close"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value)]
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        up_writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        pipes = [asyncio.create_task(_pipe(reader, up_writer)), asyncio.create_task(_pipe(up_reader, writer))]
        await pipes[1]
        pipes[0].cancel()
        up_writer.close()

    def _filled(self, value: str, given: dict[str, str]) -> str:
        """Replace nginx's variables; $host is the browser's host without its port."""
        asked = {name.lower(): text for name, text in given.items()}
        variables = {
            "$proxy_host": f"127.0.0.1:{self._upstream}",
            "$host": asked["host"].rsplit(":", 1)[0],
            "$http_host": asked["host"],
            "$http_upgrade": asked.get("upgrade", ""),
            "$http_connection": asked.get("connection", ""),
            "$scheme": "https" if self._tls else "http",
            "$server_port": asked["host"].rpartition(":")[2],
            "$remote_addr": "203.0.113.7",
            "$proxy_add_x_forwarded_for": "203.0.113.7",
        }
        return variables[value] if value.startswith("$") else value


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
