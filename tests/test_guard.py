"""The border of the server: what is mounted and what is answered, for which hosts and origins, with which headers."""

import functools
import json
import random
import re
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio
import pytest
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from starlette.routing import Mount
from starlette.websockets import WebSocketDisconnect
from waiting import until

from sdlab.live.manager import Manager
from sdlab.settings import preset
from sdlab.ui import guard
from sdlab.ui.front import PLACE, SCRIPT
from sdlab.ui.guard import OPEN, Guard, routes_at
from sdlab.ui.server import build
from sdlab.web import Site

HERE = "http://127.0.0.1:7860"
LAB = Site.of(["https://lab.example", "https://other.example:8443"], names=["my-box"])

# Every route that a request can reach. A new one belongs here and in `guard.OPEN`, after a thought about who may ask.
REACHED = {
    ("GET", "/"),
    ("POST", "/desk"),
    ("GET", "/here/{token}"),
    ("GET", "/news/{token}"),
    ("POST", "/do/{token}"),
    ("POST", "/uploads/{token}/{knob}"),
    ("GET", "/results/{token}/{result_id}"),
    ("GET", "/page/{name}"),
    ("GET", "/viewport/{token}/"),
    ("GET", "/viewport/{token}/why"),
    ("GET", "/viewport/{token}"),
    ("WS", "/viewport/{token}"),
    ("WS", "/viewport/{token}/"),
    ("GET", "/flat/{file}"),
    ("GET", "/flat/{token}/"),
    ("GET", "/flat/{token}/now"),
    ("GET", "/flat/{token}/ground"),
    ("POST", "/flat/{token}/start"),
    # Gradio's; its own / is never reached, since ours comes first
    ("GET", "/assets/{path:path}"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/static/{path:path}"),
}


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=4)
    yield manager
    manager.shutdown()


@pytest.fixture(scope="module")
def app(manager: Manager) -> FastAPI:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.settings.preset", functools.cache(preset))
        settings = preset("mixture").patch_all([("scene.n_init", 60), ("scene.max_gaussians", 90)])
        return build(manager, settings, "mixture", locked=["prior.path"])


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, HERE, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def desk(client: TestClient) -> dict[str, str]:
    given = client.post("/desk", json={"dark": False}).json()
    lane: dict[str, Any] = {}

    def is_there() -> bool:
        stage = client.get(f"/news/{given['token']}?page={given['page']}").json()["panels"].get("stage")
        lane.update(stage[0] if stage else {})
        return bool(stage)

    until(is_there)
    return {**given, "seat": lane["token"]}


# ---- routes ----------------------------------------------------------------------------------------------


def mounted(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Methods and paths of all routes, those of mounted applications and included routers among them."""
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if isinstance(route, Mount):
            yield from mounted(route.routes, path.rstrip("/"))
        elif hasattr(route, "original_router"):
            yield from mounted(route.original_router.routes, prefix)
        else:
            for method in getattr(route, "methods", None) or ["WS"]:
                yield method, path


def samples(path: str) -> Iterator[str]:
    """Addresses that a route answers."""
    for rest in ("x", "a/b", "js/iframeResizer.contentWindow.min.js"):
        yield re.sub(r"\{[^}]*\}", "abc", re.sub(r"\{[^}]*:path\}", rest, path))


def test_only_listed_routes_are_reached(app: FastAPI):
    found = set(mounted(app.routes))
    assert len(found) > 90, "Gradio's are among them"
    reached = {(m, p) for m, p in found for sample in samples(p) if any(r.method == m for r in routes_at(sample))}
    assert reached == REACHED


def test_every_route_of_ours_is_listed(app: FastAPI):
    """What is not listed could never be reached."""
    ours = set(mounted(route for route in app.routes if not isinstance(route, Mount)))
    lost = {(m, p) for m, p in ours - REACHED if m != "HEAD"}
    assert not lost


def test_a_new_route_is_closed_until_it_is_listed():
    app = FastAPI()
    app.add_middleware(Guard)
    app.get("/secret")(lambda: "hello")
    app.websocket("/secret")(lambda socket: socket.accept())
    client = TestClient(app, HERE)
    assert client.get("/secret").status_code == 404
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/secret"):
        pass


GRADIO = (
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/run/arrive"),
    ("POST", "/gradio_api/api/predict"),
    ("POST", "/gradio_api/call/arrive"),
    ("POST", "/gradio_api/call/v2/arrive"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/cancel"),
    ("POST", "/gradio_api/reset"),
    ("POST", "/gradio_api/stream/x"),
    ("POST", "/gradio_api/vibe-edit"),
    ("POST", "/login"),
    ("GET", "/gradio_api/file=http://93.184.216.34/"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/file=..%2f..%2fetc%2fpasswd"),
    ("GET", "/gradio_api/proxy=http://93.184.216.34/"),
    ("GET", "/gradio_api/proxy=https://x.hf.space/"),
    ("GET", "/gradio_api/deep_link?session_hash=x"),
    ("GET", "/gradio_api/dev/reload"),
    ("GET", "/gradio_api/heartbeat/x"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("GET", "/gradio_api/queue/status"),
    ("GET", "/gradio_api/upload_progress?upload_id=x"),
    ("GET", "/gradio_api/stream/a/b/1/playlist.m3u8"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/startup-events"),
    ("GET", "/gradio_api/app_id"),
    ("GET", "/gradio_api/token"),
    ("GET", "/gradio_api/user"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/gradio_api/theme.css"),
    ("GET", "/gradio_api/custom_component/1/client/component/x.js"),
    ("GET", "/gradio_api/mcp/sse"),
    ("GET", "/config"),
    ("GET", "/svelte/x"),
    ("GET", "/static/img/logo.svg"),
    ("GET", "/assets/..%2f..%2fetc%2fpasswd"),
    ("GET", "/assets/../../../etc/passwd"),
    ("GET", "/assets/.hidden"),
    ("GET", "/monitoring"),
    ("GET", "/pwa_icon"),
    ("GET", "/manifest.json"),
    ("GET", "/logout"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/flat/..%2f..%2fapp.py"),
    ("GET", "/page/..%2fserver.py"),
    ("GET", "/viewport/abc/..%2f..%2fx"),
    ("PUT", "/desk"),
    ("OPTIONS", "/"),
    ("OPTIONS", "/desk"),
    ("TRACE", "/"),
    ("DELETE", "/results/a/b"),
    ("PROPFIND", "/"),
    ("GET", "/teacher"),  # there is no classroom
    ("GET", "/teacher/"),
    ("GET", "/teacher/room"),
    ("GET", "/teacher/code/teacher.js"),
    ("POST", "/teacher/pin"),
    ("POST", "/teacher/do"),
)


@pytest.mark.parametrize(("method", "path"), GRADIO)
def test_what_the_page_does_not_need_is_closed(client: TestClient, method: str, path: str):
    answer = client.request(method, path, content=b"{}" if method == "POST" else None)
    assert answer.status_code in (404, 405)
    assert "access-control-allow-origin" not in answer.headers
    assert "location" not in answer.headers


def test_the_page_has_what_it_needs(client: TestClient):
    page = client.get("/").text
    wanted = set(re.findall(r'(?:src|href)="\./([^"]+)"', page)) | {"theme.css", "page/news.js", "favicon.ico"}
    assert len(wanted) >= 5
    for path in wanted | {"static/js/iframeResizer.contentWindow.min.js"}:
        assert client.get(f"/{path}").status_code == 200, path
    folder = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
    files = [file.name for file in folder.iterdir() if file.is_file()]
    assert len(files) > 100
    assert all(routes_at(f"/assets/{name}") for name in files)


# ---- hosts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "known"),
    [
        *((f"{name}{port}", True) for name in ("127.0.0.1", "localhost", "[::1]") for port in ("", ":7860", ":1")),
        *((name, True) for name in ("LOCALHOST", "a.localhost:1", "127.8.9.1", "192.168.1.5:7860", "[fe80::1]")),
        *((name, True) for name in ("lab.example", "LAB.example:80", "lab.example.", "other.example", "my-box:7860")),
        *((name, False) for name in ("evil.example", "evil.example:7860", "lab.example.evil.example", "xlab.example")),
        *((name, False) for name in ("localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "my-box.x")),
        *((name, False) for name in ("", ":7860", "127.0.0.1:x", "127.0.0.1:7860:1", "127.0.0.1/", "a@127.0.0.1", "*")),
        *((name, False) for name in ("127.0.0.1 ", "127.1", "0x7f000001", "2130706433", "lab.example,evil", "[::1")),
        *((name, False) for name in ('lab.example"><script>', "lab.example#", "lab.example\\", "lab.éxample")),
    ],
)  # fmt: skip
def test_names_that_a_server_answers_to(host: str, known: bool):
    assert LAB.answers_to(host) is known


@pytest.mark.parametrize("path", ["/", "/theme.css", "/desk", "/news/x", "/results/a/b", "/viewport/x/", "/flat/x/now"])
def test_a_page_that_rebinds_its_name_gets_nothing(client: TestClient, path: str):
    """Such a page may set any header but Host, for requests to what is then its own origin."""
    for more in ({}, {"Origin": "http://evil.example:7860"}, {"X-Forwarded-Host": "127.0.0.1:7860"}):
        method = "POST" if path == "/desk" else "GET"
        answer = client.request(method, path, headers={"Host": "evil.example:7860", **more})
        assert answer.status_code == 421
        assert "does not answer to evil.example:7860" in answer.text
        assert "--public-url http://evil.example:7860" in answer.text
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/viewport/x", headers={"Host": "evil.example"}):
        pass


def test_a_server_for_its_owner_is_not_published_by_accident():
    own = Site.of_environment([], "", "127.0.0.1")
    assert own.answers_to("localhost:7860")
    assert not own.answers_to("192.168.1.5")
    assert own.unknown_host({"host": "127.0.0.1:7860", "x-forwarded-host": "lab.example"})
    assert own.unknown_host({"host": "127.0.0.1:7860", "x-forwarded-host": "192.168.1.5"})
    assert not own.unknown_host({"host": "127.0.0.1:7860", "x-forwarded-host": "localhost:8080"})
    published = Site.of_environment(["https://lab.example/lab/"], "", "127.0.0.1")
    assert published.is_public
    assert published.prefix == "/lab"
    assert not published.unknown_host({"host": "127.0.0.1:7860", "x-forwarded-host": "lab.example"})
    assert not Site.of_environment(["http://localhost:8080"], "", "127.0.0.1").is_public


def test_a_space_knows_its_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPACE_HOST", "me-lab.hf.space, lab.example")
    space = Site.of_environment([], "", "0.0.0.0")
    for name in ("me-lab.hf.space", "lab.example"):
        assert not space.unknown_host({"host": name})
        assert space.is_own({"host": "10.1.2.3:7860", "origin": f"https://{name}"})
    assert space.unknown_host({"host": "you-lab.hf.space"})


@pytest.mark.parametrize(
    ("urls", "prefix", "said"),
    [
        (["lab.example"], "", "--public-url lab.example: an address such as https://lab.example"),
        (["ftp://lab.example"], "", "--public-url ftp://lab.example"),
        (["https://"], "", "--public-url https://"),
        (["https://me:pw@lab.example"], "", "--public-url"),
        (["https://lab.example:port"], "", "--public-url"),
        ([], "lab", "--root-path lab: a path such as /lab is needed"),
        ([], "/a b", "--root-path /a b"),
        ([], "https://", "--root-path https://"),
        (["https://lab.example/a"], "/b", "--root-path and --public-url name different paths: /a, /b"),
    ],
)
def test_invalid_addresses_are_named(urls: list[str], prefix: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        Site.of(urls, prefix)


# ---- origins ---------------------------------------------------------------------------------------------

PROXIED = {"x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"host": "lab.example"}, True),  # no browser
        ({"host": "lab.example", "origin": "https://lab.example"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://localhost:7860"}, False),
        ({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
        ({"host": "lab.example:443", "origin": "https://lab.example"}, True),
        ({"host": "lab.example", "origin": "https://LAB.example"}, True),
        # the browser's own word
        ({"host": "lab.example", "sec-fetch-site": "same-origin"}, True),
        ({"host": "lab.example", "sec-fetch-site": "none"}, True),
        ({"host": "lab.example", "sec-fetch-site": "cross-site"}, False),
        ({"host": "lab.example", "sec-fetch-site": "same-site"}, False),
        # proxies: what they report of the address
        ({"host": "10.0.0.1:80", "x-forwarded-host": "lab.example", "origin": "https://lab.example"}, True),
        ({"host": "a", "x-forwarded-host": "lab.example:8443", "origin": "https://lab.example:8443"}, True),
        ({"host": "a", "x-forwarded-host": "lab.example, inner", "origin": "https://lab.example"}, True),
        ({"host": "a", "x-forwarded-host": "inner, x.example", "origin": "https://x.example"}, False),
        ({"host": "a", "x-forwarded-host": "b", "x-forwarded-port": "8443", "origin": "https://b:8443"}, True),
        ({"host": "a", "x-forwarded-host": "b", "x-forwarded-port": "8443", "origin": "https://c:8443"}, False),
        ({"host": "lab.example", "x-forwarded-port": "8443", "origin": "https://lab.example:8443"}, True),
        # proxies that drop the port
        ({"host": "lab.example", **PROXIED, "origin": "https://lab.example:8443"}, True),
        ({"host": "lab.example", "x-forwarded-host": "lab.example", "origin": "https://lab.example:8443"}, True),
        ({"host": "lab.example", "origin": "https://lab.example:8443"}, False),
        ({"host": "lab.example:7860", **PROXIED, "origin": "https://lab.example:8443"}, False),
        # proxies that say nothing: only --public-url helps
        ({"host": "127.0.0.1:7860", "origin": "https://other.example:8443"}, True),
        ({"host": "127.0.0.1:7860", "origin": "https://other.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://other.example:8443"}, False),
        ({"host": "127.0.0.1:7860", **PROXIED, "origin": "https://third.example"}, False),
        # foreign pages
        ({"host": "lab.example", "origin": "https://lab.example.evil.example"}, False),
        ({"host": "lab.example", "origin": "https://evil.example", **PROXIED}, False),
        ({"host": "lab.example", "origin": "https://lab.example@evil.example"}, False),
        ({"host": "lab.example", "origin": "https://evil.example#lab.example"}, False),
        ({"host": "lab.example", "origin": "https://evil.example/lab.example"}, False),
        ({"host": "lab.example", "origin": "null"}, False),
        ({"host": "lab.example", "origin": "lab.example"}, False),
        ({"host": "lab.example", "origin": "https://[lab.example"}, False),
        ({"host": "lab.example", "origin": "file://"}, False),
        ({"host": "", "origin": ""}, False),
        ({"host": "", "origin": "https://", **PROXIED}, False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same_origin(headers: dict[str, str], ours: bool):
    assert LAB.is_own(headers) is ours


PUBLIC = (
    "/",
    "/theme.css",
    "/favicon.ico",
    "/assets/index.js",
    "/static/js/iframeResizer.contentWindow.min.js",
    "/page/news.js",
    "/flat/flat.js",
)


def addresses(desk: dict[str, str]) -> dict[str, tuple[str, str]]:
    """One address of every listed route, with a key that exists."""
    token, seat = desk["token"], desk["seat"]
    made = [
        ("GET", "/"),
        ("GET", "/theme.css"),
        ("GET", "/favicon.ico"),
        ("GET", "/assets/index.js"),
        ("GET", "/static/js/iframeResizer.contentWindow.min.js"),
        ("GET", "/page/news.js"),
        ("POST", "/desk"),
        ("GET", f"/here/{token}"),
        ("GET", f"/news/{token}"),
        ("POST", f"/do/{token}"),
        ("POST", f"/uploads/{token}/scene.file"),
        ("GET", f"/results/{token}/abc"),
        ("GET", f"/viewport/{seat}/"),
        ("GET", f"/viewport/{seat}/why"),
        ("GET", f"/viewport/{seat}"),
        ("GET", "/flat/flat.js"),
        ("GET", f"/flat/{seat}/"),
        ("GET", f"/flat/{seat}/now"),
        ("POST", f"/flat/{seat}/start"),
    ]
    return {f"{method} {path}": (method, path) for method, path in made}


def test_one_address_of_every_route_is_tried(desk: dict[str, str]):
    tried = list(addresses(desk).values())
    for route in OPEN:
        if route.method != "WS":
            assert any(m == route.method and re.fullmatch(route.pattern, path) for m, path in tried), route


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1.evil.example", "http://localhost:7860"],
)  # fmt: skip
def test_foreign_pages_are_refused_everywhere(client: TestClient, desk: dict[str, str], origin: str):
    for method, path in addresses(desk).values():
        if path in PUBLIC:
            continue
        answer = client.request(
            method, path, json={"dark": True} if method == "POST" else None, headers={"Origin": origin}
        )
        assert answer.status_code == 403, (method, path)
        assert "access-control-allow-origin" not in answer.headers
    headers = {"Host": "127.0.0.1:7860", "Origin": origin}
    with (
        pytest.raises(WebSocketDisconnect) as ended,
        client.websocket_connect(f"/viewport/{desk['seat']}", headers=headers) as socket,
    ):
        socket.receive_bytes()
    assert ended.value.code == 4403
    obstacle = client.get(f"/viewport/{desk['seat']}/why").text
    assert (f"This page is at {origin}, but" in obstacle) == origin.startswith("http")


def test_every_websocket_route_looks_at_the_origin():
    assert [route.pattern for route in OPEN if route.method == "WS"] == [f"/viewport/{guard.TOKEN}/?"]


def test_another_site_may_link_to_what_is_public_and_to_nothing_else(client: TestClient, desk: dict[str, str]):
    """Browsers also send an Origin for modules and styles of their own page, whatever a proxy has made of it."""
    for method, path in addresses(desk).values():
        if method == "GET":
            for foreign in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://lab.example"}):
                assert (client.get(path, headers=foreign).status_code == 403) == (path not in PUBLIC), path
    assert sum(route.public for route in OPEN) == len(PUBLIC)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_forms_of_any_page_are_refused(client: TestClient, desk: dict[str, str], content_type: str):
    """A browser sends these without asking first, and an old one without an Origin."""
    headers = {"Content-Type": content_type} if content_type else {}
    for path in ("/desk", f"/do/{desk['token']}"):
        assert client.post(path, content=b'{"dark": true}', headers=headers).status_code == 415


# ---- headers ---------------------------------------------------------------------------------------------


def test_every_answer_carries_the_security_headers(client: TestClient, desk: dict[str, str]):
    tried = [*addresses(desk).values(), ("GET", "/nowhere"), ("PUT", "/desk"), ("GET", "/news/none")]
    for method, path in tried:
        if path.startswith("/here/"):
            path = "/here/none"  # another would last
        answer = client.request(method, path, json={} if method == "POST" else None)
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]
        assert "server" not in headers
        assert "set-cookie" not in headers
        policy = headers["content-security-policy"]
        framed = answer.headers.get("content-type", "").startswith("text/html")
        assert policy.endswith("frame-ancestors 'self'" if framed else "frame-ancestors 'none'"), path
        assert headers["x-frame-options"] == ("SAMEORIGIN" if framed else "DENY")
        assert "content-type" in headers or not answer.content, path


def test_on_a_space_the_hub_may_frame_the_page_and_its_views():
    app, site = (
        FastAPI(),
        {"Content-Security-Policy": "default-src 'self'; frame-ancestors 'self' https://huggingface.co"},
    )
    app.add_middleware(Guard)
    app.get("/")(lambda: Response(headers=site))
    answer = TestClient(app, HERE).get("/")
    assert "huggingface.co" in answer.headers["content-security-policy"]
    assert "x-frame-options" not in answer.headers


def test_the_page_runs_its_own_scripts_only(client: TestClient):
    answer = client.get("/")
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert "'unsafe-inline'" not in rules["script-src"], "handlers in attributes would run"
    assert rules["script-src"].count("'sha256-") == len(SCRIPT.findall(answer.text)) > 3
    assert (rules["default-src"], rules["object-src"], rules["base-uri"]) == ("'self'", "'none'", "'self'")


def test_the_page_is_the_same_at_every_address(client: TestClient):
    page = client.get("/").text
    assert PLACE not in page
    assert "127.0.0.1" not in page
    for headers in ({"Host": "localhost:1"}, {"X-Forwarded-Host": "127.0.0.9", "X-Forwarded-Proto": "https"}):
        assert client.get("/?deep_link=x&__theme=</script>", headers=headers).text == page
    packed = client.get("/", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == page
    assert client.head("/").status_code == 200


# ---- pages and their desks -------------------------------------------------------------------------------


def test_a_page_is_named_by_the_server_and_cannot_end_the_run_of_another(client: TestClient, desk: dict[str, str]):
    assert len(desk["page"]) >= 20
    other = client.post("/desk", json={"dark": False}).json()
    assert other["page"] != desk["page"]
    assert other["token"] != desk["token"]
    assert client.get(f"/here/{other['token']}?page={desk['page']}").status_code == 204
    assert "panels" in client.get(f"/news/{desk['token']}?page={desk['page']}").json(), "its run goes on"
    assert client.get(f"/news/{desk['token']}?page=guess").json()["token"] == ""


# ---- nonsense --------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    -1,
    1e308,
    10**30,
    "",
    "x" * 2000,
    "</script>",
    "\0",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": 1},
]
LEAKS = (tempfile.gettempdir(), str(Path.home()), str(Path(gradio.__file__).parents[1]), "Traceback", 'File "')


def nonsense(count: int, seed: int = 19) -> Iterator[bytes]:
    """Bodies: JSON of the wrong shape, cut or wild bytes."""
    rng = random.Random(seed)
    verbs = [
        "start",
        "knob",
        "preset",
        "settings",
        "goto",
        "make",
        "close",
        "view",
        "draw",
        "probe",
        "look",
        "nothing",
        3,
    ]
    keys = ["knob", "value", "lane", "prompt", "settings", "name", "step", "row", "t", "kind", "id", "dark", "token"]
    for i in range(count):
        act = {"do": rng.choice(verbs), **{k: rng.choice(ODD) for k in rng.sample(keys, 4)}}
        text = json.dumps(rng.choice([act, [act] * 3, rng.choice(ODD), {"data": [act], "fn_index": i}]))
        yield rng.choice([text.encode(), text[: rng.randrange(len(text) + 1)].encode(), rng.randbytes(40), b"[" * 5000])


@pytest.mark.parametrize("count", [120, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_nonsense_is_never_a_server_error_and_tells_no_path(
    client: TestClient, desk: dict[str, str], count: int, capfd
):
    tokens = ["none", desk["token"], desk["seat"], "%00", "a b", "é", "x" * 300]
    rng, types = random.Random(7), ["application/json", "text/plain", "application/json; charset=utf-16", ""]
    for body in nonsense(count):
        token, query = rng.choice(tokens), "".join(rng.choices(string.printable, k=12))
        method, path = rng.choice(
            [
                ("POST", "/desk"),
                ("POST", f"/do/{token}"),
                ("POST", f"/flat/{token}/start"),
                ("POST", f"/uploads/{token}/{rng.choice(['scene.file', 'prior.path', 'x', '%3Cscript%3E'])}"),
                ("GET", f"/news/{token}"),
                ("GET", f"/here/{rng.choice(['none', '%00'])}"),
                ("GET", f"/results/{token}/{token}"),
                ("GET", f"/flat/{token}/now"),
                ("GET", f"/viewport/{token}/why"),
            ]
        )
        params = {rng.choice(["page", "name", "since", "run", "row", "dark"]): query}
        answer = client.request(
            method,
            path,
            params=params,
            content=body if method == "POST" else None,
            headers={"Content-Type": rng.choice(types)},
        )
        assert answer.status_code < 500, (method, path, body, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"].startswith(("text/plain", "application/json")), (path, answer.headers)
        assert not any(leak in answer.text for leak in LEAKS), answer.text
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("length", ["-5", "abc", "9" * 30, "1e3", "+5", "0x10", "5, 5", ""])
def test_odd_lengths_of_a_body_are_refused(client: TestClient, desk: dict[str, str], length: str):
    request = client.build_request(
        "POST", f"/do/{desk['token']}", content=b"[]", headers={"Content-Type": "application/json"}
    )
    request.headers["Content-Length"] = length
    assert client.send(request).status_code == 413
