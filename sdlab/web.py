"""Shared by all HTTP routes: where the server can be reached, who may ask, capped request bodies, refusals."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from fastapi import Request
from fastapi.responses import PlainTextResponse

UNREAD = (403, 404, 405, 409, 413, 415, 421)  # statuses that are decided before the body is read
HUB = "https://huggingface.co https://*.hf.space"  # the Hub shows a Space's page in a frame
HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,253}))(?::([0-9]{1,5}))?")
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
FORWARDING = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "forwarded", "via")


# ---- addresses -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """The addresses of a server: `origins` (scheme://host[:port]) and `names` under which browsers may reach it, and
    the path `prefix` ("" or "/lab") below which a proxy publishes it.

    A page on a foreign site can make its own name resolve to this machine (DNS rebinding) and then counts as the same
    origin. It cannot change the Host header, which holds that name. Requests for names that are not listed are
    therefore refused. IP addresses and localhost cannot be rebound; a server that is for its owner only, and so locks
    nothing, still answers to `loopback` addresses alone, lest a proxy publish it by accident.
    """

    origins: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    prefix: str = ""
    loopback: bool = False

    @classmethod
    def of(cls, urls: Iterable[str] = (), prefix: str = "", names: Iterable[str] = ()) -> Site:
        """Return the site for public addresses `urls`, a root path (or a whole URL) and further host names.

        Raises ValueError that names the option for an invalid address or path.
        """
        given = [(f"--public-url {url}", url) for url in urls]
        if "://" in prefix:
            given.append((f"--root-path {prefix}", prefix))
            prefix = ""
        parsed = [_public(option, url) for option, url in given]
        paths = {path for path in (prefix.rstrip("/"), *(url.path.rstrip("/") for url in parsed)) if path}
        if len(paths) > 1:
            raise ValueError(f"--root-path and --public-url name different paths: {', '.join(sorted(paths))}")
        path = "".join(paths)
        if PREFIX.fullmatch(path) is None:
            raise ValueError(f"--root-path {path}: a path such as /lab is needed")
        known = {name.lower() for name in names if name} | {url.hostname or "" for url in parsed}
        return cls(frozenset(f"{url.scheme}://{url.netloc}".lower() for url in parsed), frozenset(known), path)

    @property
    def urls(self) -> list[str]:
        """Return the public addresses of the page, each with a slash at its end."""
        return [f"{origin}{self.prefix}/" for origin in sorted(self.origins)]

    @property
    def is_public(self) -> bool:
        """Return whether an address was given that other machines can reach."""
        return any(not _is_loopback(urlsplit(origin).hostname or "") for origin in self.origins)

    @classmethod
    def of_environment(cls, urls: Iterable[str], prefix: str, host: str) -> Site:
        """Return the site of a server that listens on `host`, with this machine's name and a Space's addresses."""
        spaces = [name.strip() for name in os.environ.get("SPACE_HOST", "").split(",") if name.strip()]
        machine = socket.gethostname()
        own = (host, machine, f"{machine}.local")
        site = cls.of([*urls, *(f"https://{name}" for name in spaces)], prefix, own)
        return replace(site, loopback=_is_loopback(host) and not site.is_public)

    def answers_to(self, host: str) -> bool:
        """Return whether `host`, the value of a Host header, is one of the server's names."""
        found = HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1].rstrip(".")
        return name in self.names or _is_loopback(name) or (not self.loopback and _address(name) is not None)

    def is_own(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request comes from a page of this server, or from a client that is not a browser.

        The browser's address is compared with the Host header, with what a proxy reports in X-Forwarded-Host and
        X-Forwarded-Port (which a foreign page cannot set), and with `origins`. A proxy may have dropped the port.
        """
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        origin = origin.lower()
        asked = HOST.fullmatch(_short(_place(origin)))
        if asked is None:
            return False
        ours = [_short(headers.get("host", "").lower()), _short(_first(headers, "x-forwarded-host"))]
        if origin in self.origins or asked[0] in ours:
            return True
        port = _first(headers, "x-forwarded-port")
        if port and any(asked[0] == f"{_name(host)}:{port}" for host in ours):
            return True
        return asked[1] in ours and any(name in headers for name in FORWARDING)

    def unknown_host(self, headers: Mapping[str, str]) -> str:
        """Return what to tell a client that asked for a name which is not ours, "" if all names are."""
        asked = [headers.get("host", ""), _first(headers, "x-forwarded-host")]
        foreign = [host for host in asked[: 1 + bool(asked[1])] if not self.answers_to(host)]
        if not foreign:
            return ""
        if HOST.fullmatch(foreign[-1].lower()) is None:
            return "The Host header of this request is not a host name."
        scheme = "https" if _first(headers, "x-forwarded-proto") == "https" else "http"
        return (
            f"This server does not answer to {foreign[-1]}. If that is its address, start it with --public-url "
            f"{scheme}://{foreign[-1]}. (Foreign web pages could otherwise reach it through a name of theirs.)"
        )

    def foreign_origin(self, headers: Mapping[str, str]) -> str:
        """Return what to tell a page whose address differs from ours: behind a proxy, which header is missing."""
        origin, host = headers.get("origin", ""), headers.get("host", "")
        if HOST.fullmatch(_place(origin.lower())) is None:
            return "This request comes from another site."
        return (
            f"This page is at {origin}, but the request that reached the server is for {host}. If a proxy is in "
            "between, it must pass on the address that the browser used: in the header Host (nginx: proxy_set_header "
            f"Host $http_host) or X-Forwarded-Host. Or start the server with --public-url {origin}."
        )


ANYWHERE = Site()  # answers to every IP address, and to no name but localhost


def _public(option: str, url: str) -> SplitResult:
    try:
        parsed = urlsplit(url)
    except ValueError:  # such as half of an IPv6 address
        parsed = urlsplit("")
    if parsed.scheme not in ("http", "https") or HOST.fullmatch(parsed.netloc.lower()) is None:
        raise ValueError(f"{option}: an address such as https://lab.example or http://lab.example:8080/lab is needed")
    return parsed


def _first(headers: Mapping[str, str], name: str) -> str:
    """Return the first entry of a forwarded header, which is the one of the proxy next to the browser."""
    return headers.get(name, "").split(",")[0].strip().lower()


def _place(origin: str) -> str:
    """Return the host[:port] of an origin, "" where there is none."""
    scheme, _, place = origin.partition("://")
    return place if scheme in ("http", "https") else ""


def _short(host: str) -> str:
    """Return host[:port] without a port that browsers leave out."""
    return host.removesuffix(":80").removesuffix(":443")


def _name(host: str) -> str:
    found = HOST.fullmatch(host)
    return found[1] if found else ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return address.is_loopback if address else name == "localhost" or name.endswith(".localhost")


def embedders(on_space: bool) -> str:
    """Return the value of frame-ancestors: the sites that may show this server's page and views in a frame."""
    return f"'self' {HUB}" if on_space else "'self'"


# ---- requests and answers --------------------------------------------------------------------------------


def refusal(text: str, status: int) -> PlainTextResponse:
    """Return an answer that says why a request was not done. One that is refused before its body has been read ends
    the connection, or the server would have to take the rest of it.

    It is plain text without what a browser could take for markup, since names and contents of files are quoted in it.
    """
    harmless = "".join(c if c.isprintable() and c not in "<>&" else "_" for c in text)
    return PlainTextResponse(harmless, status, {"Connection": "close"} if status in UNREAD else None)


async def capped_body(request: Request, most: int) -> bytes | None:
    """Return the request body, or None (and stop reading) when it exceeds `most` bytes."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > most:
        return None
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def source_hash(text: str) -> str:
    """Return how a Content-Security-Policy names an inline script or style with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
