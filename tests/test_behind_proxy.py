"""The page behind a reverse proxy: frames arrive, or the visitor is told which header is missing."""

import functools
import json
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import viser
from small_proxy import Location, SmallProxy
from waiting import LONG, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from sdlab.live.manager import Manager
from sdlab.settings import preset
from sdlab.ui.server import build, server
from sdlab.web import Site

DEPLOY = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
NGINX = [Location.of_nginx(block) for block in re.findall(r"```nginx\n(.*?)```", DEPLOY, re.DOTALL)]
CADDY = [Location.of_caddy(block) for block in re.findall(r"```caddy\n(.*?)```", DEPLOY, re.DOTALL)]
UPGRADE = {"Upgrade": "$http_upgrade", "Connection": "upgrade"}
OF_GRADIO = {  # of Gradio's own guide to nginx: the port of the public address is lost
    **UPGRADE,
    "Host": "$host",
    "X-Forwarded-Host": "$host",
    "X-Forwarded-Proto": "$scheme",
}
DEFAULT_HOST = {**UPGRADE, "Host": "$proxy_host"}
NO_UPGRADE = {"Host": "$http_host", "Connection": "close"}


@pytest.fixture(scope="module")
def started(unhurried: None) -> Iterator[Callable[..., int]]:
    """Starts a server for a site and returns its port."""
    running = []

    @functools.cache
    def start(site: Site, on_space: bool = False) -> int:
        settings = preset("mixture").patch_all([("scene.n_init", 60), ("scene.max_gaussians", 90), ("camera.views", 1)])
        manager = Manager(max_sessions=20)
        made = server(build(manager, settings, "mixture", site=site, on_space=on_space), port=0)
        thread = threading.Thread(target=made.run, daemon=True)
        thread.start()
        running.append((made, thread))
        until(lambda: made.started)
        return made.servers[0].sockets[0].getsockname()[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.settings.preset", functools.cache(preset))
        yield start
    for made, thread in running:
        made.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab.example"]
    subprocess.run(["openssl", *made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


@pytest.fixture
def publish() -> Iterator[Callable[..., SmallProxy]]:
    made: list[SmallProxy] = []

    def start(*args, **options) -> SmallProxy:
        made.append(SmallProxy(*args, **options))
        return made[-1]

    yield start
    for proxy in made:
        proxy.close()


class Browser:
    """A browser that has the page at `name`:`port` below `path`."""

    def __init__(self, proxy: SmallProxy, name: str, path: str, tls: bool = False, port: str | None = None) -> None:
        scheme = "https" if tls else "http"
        self.host = f"{name}:{proxy.port}" if port is None else name + port
        self.origin = f"{scheme}://{self.host}"
        self.base = f"{scheme}://127.0.0.1:{proxy.port}{path}"
        self.client = httpx.Client(verify=False, headers={"Host": self.host}, timeout=LONG)

    def get(self, path: str = "") -> httpx.Response:
        return self.client.get(self.base + path)

    def arrive(self) -> httpx.Response:
        return self.client.post(f"{self.base}desk", json={"dark": False}, headers={"Origin": self.origin})

    def seat(self, desk: dict[str, str]) -> str:
        stage: list = []

        def there() -> bool:
            told = self.get(f"news/{desk['token']}?page={desk['page']}").json()
            stage.extend(told.get("panels", {}).get("stage", []))
            return bool(stage)

        until(there)
        return stage[0]["token"]

    def frames(self, seat: str) -> int:
        """Return the bytes of the first message of a view."""
        unverified = ssl._create_unverified_context() if self.base.startswith("https") else None
        with connect(
            f"ws{self.base.removeprefix('http')}viewport/{seat}",
            origin=self.origin,
            additional_headers={"Host": self.host},
            subprotocols=[f"viser-v{viser.__version__}"],
            ssl=unverified,
            max_size=None,
            open_timeout=LONG,
        ) as socket:
            return len(socket.recv(timeout=LONG))

    def watch(self) -> None:
        """Load the page, all that its HTML names, get a desk and a frame."""
        page = self.get()
        assert page.status_code == 200
        for asset in {*re.findall(r'(?:src|href)="\./([^"]+)"', page.text), "theme.css", "page/news.js"}:
            assert self.get(asset).status_code == 200, asset
        arrival = self.arrive()
        assert arrival.status_code == 200, arrival.text
        desk = arrival.json()
        with self.client.stream("GET", f"{self.base}here/{desk['token']}?page={desk['page']}") as stream:
            assert next(stream.iter_raw()) == b":\n\n"
        seat = self.seat(desk)
        assert self.get(f"viewport/{seat}/").status_code == 200
        assert self.frames(seat) > 100


def known(path: str = "", port: int | None = None) -> Site:
    return Site.of([f"http://lab.example{f':{port}' if port else ''}{path}"])


def test_the_guide_has_examples_for_both():
    assert [(x.path, x.strips, x.headers["Host"]) for x in NGINX] == [(p, True, "$http_host") for p in ("/", "/lab/")]
    assert [(x.path, x.strips) for x in CADDY] == [("/", True), ("/lab/", True)]


@pytest.mark.parametrize("location", [*NGINX, *CADDY], ids=["nginx", "nginx-path", "caddy", "caddy-path"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_frames_arrive_with_the_examples_of_the_guide(location: Location, tls: bool, started, publish, certificate):
    proxy = publish(location, started(known()), tls=certificate if tls else None)
    Browser(proxy, "lab.example", location.path, tls).watch()


@pytest.mark.parametrize("path", ["/", "/lab/"])
@pytest.mark.parametrize("port", [None, "", ":8443"], ids=["its-port", "no-port", "other-port"])
def test_frames_arrive_with_gradios_own_guide(path: str, port: str | None, started, publish):
    proxy = publish(Location(path, True, OF_GRADIO), started(known()))
    Browser(proxy, "lab.example", path, port=port).watch()


def test_frames_arrive_if_the_path_is_passed_on(started, publish):
    proxy = publish(Location("/lab/", False, NGINX[1].headers), started(known("/lab")))
    browser = Browser(proxy, "lab.example", "/lab/")
    browser.watch()
    assert browser.client.get(browser.base[:-1]).headers["location"] == "/lab/"
    stripping = publish(Location("/lab/", True, NGINX[1].headers), started(known("/lab")))
    Browser(stripping, "lab.example", "/lab/").watch()


def test_frames_arrive_if_only_the_option_names_the_address(started, publish):
    proxy = publish(Location("/", True, DEFAULT_HOST), started(known(port=8443)))
    Browser(proxy, "lab.example", "/", port=":8443").watch()


@pytest.mark.parametrize("port", ["", ":8443"])
def test_a_name_that_the_server_does_not_know_is_said_on_the_page(port: str, started, publish):
    proxy = publish(Location("/", True, OF_GRADIO), started(Site()))
    page = Browser(proxy, "lab.example", "/", port=port).get()
    assert page.status_code == 421
    assert page.headers["content-type"].startswith("text/plain")
    assert "start it with --public-url http://lab.example." in page.text


def test_a_proxy_that_hides_the_address_is_said_on_the_page(started, publish):
    proxy = publish(Location("/", True, DEFAULT_HOST), started(Site()))
    browser = Browser(proxy, "lab.example", "/", port=":8443")
    assert browser.get().status_code == 200
    refused = browser.arrive()
    assert refused.status_code == 403
    assert "This page is at http://lab.example:8443, but the request that reached the server is for 127" in refused.text
    assert "proxy_set_header Host $http_host" in refused.text
    assert "--public-url http://lab.example:8443" in refused.text


def test_a_proxy_without_websockets_is_said_in_the_view(started, publish):
    proxy = publish(Location("/", True, NO_UPGRADE), started(known()))
    browser = Browser(proxy, "lab.example", "/")
    seat = browser.seat(browser.arrive().json())
    assert "No WebSocket of this view has reached the server" in browser.get(f"viewport/{seat}/why").text
    with pytest.raises(InvalidStatus, match="426"):
        browser.frames(seat)
    assert "proxy_set_header Upgrade $http_upgrade" in browser.get(f"viewport/{seat}/why").text


# ---- in a browser ----------------------------------------------------------------------------------------


def opened(browser, address: str) -> tuple:
    """A tab, and what its console says that is an error."""
    page = browser.new_context(viewport={"width": 900, "height": 600}).new_page()
    page.set_default_timeout(1000 * LONG)
    errors: list[str] = []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    return page, errors


@pytest.mark.browser
@pytest.mark.parametrize("slash", ["/", ""])
def test_below_a_path_the_page_lives_without_any_option(browser, started, publish, slash: str):
    """Even where the proxy does not send the visitor from /lab to /lab/."""
    location = Location("/lab" if not slash else "/lab/", True, OF_GRADIO)
    proxy = publish(location, started(Site()))
    page, errors = opened(browser, f"http://localhost:{proxy.port}/lab{slash}")
    page.wait_for_selector('#status [data-phase="ready"]')
    until(lambda: page.url.endswith("/lab/"))
    view = page.frame_locator(".lane iframe").locator("html[data-drawn]")
    view.wait_for(state="attached")
    assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--radius-md')"), "the theme is there"
    assert page.evaluate("window.gradio_config.root") == f"http://localhost:{proxy.port}/lab"
    assert not errors or not slash, "what was asked for before the slash was there is not found"
    page.context.close()


@pytest.mark.browser
def test_the_view_says_in_words_that_no_socket_comes_through(browser, started, publish):
    proxy = publish(Location("/", True, NO_UPGRADE), started(Site()))
    page, _ = opened(browser, f"http://localhost:{proxy.port}/")
    alert = page.frame_locator(".lane iframe").locator("p[role=alert]")
    alert.wait_for()
    assert "This view cannot connect. The proxy in front of this server does not forward" in alert.text_content()
    page.context.close()


@pytest.mark.browser
def test_the_page_says_in_words_that_its_address_is_hidden(browser, started, publish):
    proxy = publish(Location("/", True, DEFAULT_HOST), started(Site()))
    page, _ = opened(browser, f"http://localhost:{proxy.port}/")
    line = page.locator("#status .say.error")
    line.wait_for()
    assert json.dumps(line.text_content()).count("X-Forwarded-Host") == 1
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize(("site", "shown"), [("https://huggingface.co", True), ("https://evil.example", False)])
def test_on_a_space_the_hub_frames_the_page_and_nobody_else(browser, site: str, shown: bool, started):
    port = started(Site(), on_space=True)
    context = browser.new_context()
    context.grant_permissions(["local-network-access"])  # this Space is on the same machine
    page = context.new_page()
    page.set_default_timeout(1000 * LONG)
    frame = f'<iframe allow="local-network-access *" src="http://localhost:{port}/" width="900" height="700"></iframe>'
    page.route(f"{site}/**", lambda route: route.fulfill(body=frame, content_type="text/html"))
    if shown:
        page.goto(f"{site}/spaces/me/lab")
        view = page.frame_locator("iframe").frame_locator(".lane iframe").locator("html[data-drawn]")
        view.wait_for(state="attached")
    else:
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
            page.goto(f"{site}/spaces/me/lab")
        assert not page.frames[1].query_selector("#status")
    context.close()
