"""The views: what they show, who may see them, and that nothing is left of them."""

import contextlib
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import numpy as np
import psutil
import pytest
import uvicorn
import viser
import viser._messages
import viser._viser
from fastapi import FastAPI
from waiting import until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sdlab.channel import Latest
from sdlab.live.manager import Manager, Seat
from sdlab.live.session import Session
from sdlab.settings import default_settings, preset
from sdlab.types import Frame, SplatSnapshot
from sdlab.ui.guard import Guard
from sdlab.viewport.client import client_html
from sdlab.viewport.private import UNKNOWN_CLIENT, LocalServer
from sdlab.viewport.proxy import MAX_FRAME, is_camera_move, routes
from sdlab.viewport.splat_view import FLOOR, FLOOR_COLOUR, FLOOR_RADIUS, SplatView, Viewports, floor_lines

VERSION = f"viser-v{viser.__version__}"


def frame(step: int, n: int = 50) -> Frame:
    rng = np.random.default_rng(step)
    scene = SplatSnapshot(
        rng.normal(size=(n, 3)).astype(np.float32),
        np.tile(0.01 * np.eye(3, dtype=np.float32), (n, 1, 1)),
        rng.random((n, 3)).astype(np.float32),
        np.ones((n, 1), np.float32),
    )
    return Frame(step, 0.0, scene, np.zeros((1, 8, 8, 3), np.uint8), ("front view",), {})


def seat(token: str = "token") -> Seat:
    """A seat whose session does not run; frames are put into it by hand."""
    return Seat(token, Session(default_settings("mixture")), threading.Thread())


def is_listening(port: int) -> bool:
    return any(c.laddr.port == port for c in listeners())


def port_of(view: SplatView) -> int:
    return urlsplit(view.address).port or 0


def listeners() -> list:
    return [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]


# ---- the view --------------------------------------------------------------------------------------------


class Watched(SplatView):
    """A view that knows what it showed last."""

    shown_step: int | None = None

    def show(self, frame: Frame) -> None:
        super().show(frame)
        self.shown_step = frame.step


@pytest.fixture
def view() -> Iterator[Watched]:
    made = Watched(Latest())
    yield made
    made.close()
    assert made.join(5)


def test_the_server_listens_on_the_loop_back_interface_only(view: SplatView):
    assert [c.laddr.ip for c in listeners() if c.laddr.port == port_of(view)] == ["127.0.0.1"]


def dial_directly(address: str, **options) -> ClientConnection:
    return connect(address, subprotocols=[VERSION], max_size=None, **options)


def test_its_port_is_for_this_process_only(view: SplatView):
    """Any program of the machine, and any page in its browser, can reach the port."""
    view._latest.set(frame(1))
    until(lambda: view._splats is not None)
    port, secret = port_of(view), urlsplit(view.address).path
    with dial_directly(view.address) as client:
        assert client.recv(timeout=5), "the secret opens it"
    paths = ("", "/", "/guess", secret[:-1], f"{secret}x", f"{secret}/", f"/{secret}", secret.swapcase(), "/\xe9")
    strangers = [(f"ws://127.0.0.1:{port}{path}", None) for path in paths]
    for address, origin in [
        *strangers,
        (view.address, "http://evil.example"),
        (view.address, f"http://127.0.0.1:{port}"),
    ]:
        client = dial_directly(address, origin=origin)
        assert close_code(client) == UNKNOWN_CLIENT, address
    with socket.create_connection(("127.0.0.1", port), timeout=5) as http:
        http.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: http.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 426"), "no files"
    assert len(answer) < 500


def test_a_viser_that_cannot_be_made_private_is_not_used(monkeypatch: pytest.MonkeyPatch):
    usual = viser.infra.WebsockServer
    monkeypatch.setattr(viser._viser, "infra", SimpleNamespace(**{**vars(viser.infra), "WebsockServer": usual}))
    with pytest.raises(RuntimeError, match="serves its ports to everybody"):
        SplatView(Latest())


def test_no_public_tunnel_can_be_asked_for(monkeypatch: pytest.MonkeyPatch):
    opened = []
    monkeypatch.setattr(viser._viser, "ViserTunnel", lambda *args, **options: opened.append(args))
    asked = []
    answer = LocalServer.request_share_url
    monkeypatch.setattr(LocalServer, "request_share_url", lambda self: asked.append(answer(self)))
    v = SplatView(Latest())
    with connect(v.address, subprotocols=[VERSION], max_size=None) as client:
        client.send(msgspec.msgpack.encode(viser._messages.ShareUrlRequest().as_serializable_dict()))
        until(lambda: asked == [None])
    assert not opened
    v.close()
    assert v.join(5)


def test_new_frames_are_shown_and_may_change_their_size(view: Watched):
    for step, n in ((1, 50), (2, 80), (3, 20)):
        view._latest.set(frame(step, n))
        until(lambda step=step: view.shown_step == step)
        assert view._splats is not None
        assert len(view._splats.centers) == n


def test_pictures_take_the_place_of_gaussians_and_go_again(view: Watched):
    view._latest.set(frame(1))
    until(lambda: view.shown_step == 1)
    view._latest.set(frame(2)._replace(scene=None))
    until(lambda: view.shown_step == 2)
    assert view._splats is None
    assert view._picture is not None
    assert view._picture.image.shape[0] > 100, "small pictures are enlarged"
    view._latest.set(frame(3))
    until(lambda: view.shown_step == 3)
    assert view._splats is not None
    assert view._picture is None


def test_frames_come_at_a_rate_that_a_browser_can_use(view: Watched):
    shown = set()
    begun = time.monotonic()
    step = 0
    while time.monotonic() - begun < 1.0:
        step += 1
        view._latest.set(frame(step, 5))
        shown.add(view.shown_step)
        time.sleep(0.005)
    assert 3 <= len(shown) <= 13


def test_a_film_is_shown_in_place_of_the_present_until_it_ends(view: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sdlab.viewport.splat_view.FILM_SHOT", 0.3)
    monkeypatch.setattr("sdlab.viewport.splat_view.FILM_END", 0.3)
    view._latest.set(frame(9, 70))
    until(lambda: view.shown_step == 9)
    view.replay(tuple((step, frame(step, 50 + step).scene) for step in (1, 5)))
    until(lambda: view.replayed == 1)
    until(lambda: view.replayed == 5)
    assert view._splats is not None
    assert len(view._splats.buffer) == 55
    until(lambda: view.replayed is None)
    until(lambda: len(view._splats.buffer) == 70), "the present is back, though no frame has come"
    monkeypatch.setattr("sdlab.viewport.splat_view.FILM_END", 30.0)
    view.replay(((1, frame(1).scene),))
    until(lambda: view.replayed == 1)
    view.replay(())
    until(lambda: view.replayed is None), "and before its end when it is told so"


class Browser:
    """A browser that looks at a view; what viser says of it, without a connection."""

    def __init__(self, position: tuple[float, float, float]) -> None:
        self.camera = self
        self.position = np.array(position)
        self.look_at = np.zeros(3)
        self.up_direction = np.array([0.0, 0.0, 1.0])

    def atomic(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Failing(Watched):
    """A view that fails to show the frames of the steps in `bad`, as `error` says."""

    error: BaseException = RuntimeError("no such buffer")
    bad: tuple[int, ...] = ()

    def show(self, frame: Frame) -> None:
        if frame.step in self.bad:
            self.bad = self.bad[1:]
            raise self.error
        super().show(frame)


FAILURES = [
    RuntimeError("no such buffer"),
    ValueError("bad shape"),
    AssertionError(),
    OSError(24, "no files"),
    SystemExit(1),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
def test_a_view_that_fails_begins_again_and_one_that_fails_again_says_so(error: BaseException, capsys):
    v = Failing(Latest())
    v.error, v.bad = error, (2, 3)
    before = port_of(v)
    for number in (1, 2):
        v._latest.set(frame(number))
        until(lambda number=number: v.shown_step == number)
    assert v.trouble == ""
    assert port_of(v) != before
    until(lambda: is_listening(port_of(v)) and not is_listening(before))
    assert v._splats is not None, "the new server has the scene"
    v.set_dark(True)
    v._latest.set(frame(3))
    assert v.join(5)
    assert v.trouble.startswith("The 3D view has stopped (")
    assert "The run goes on" in v.trouble
    until(lambda: not is_listening(port_of(v)))
    for use in (lambda: v.set_dark(False), v.look_from_front, v.close, lambda: v.link([]), lambda: v.replay(())):
        use()  # by a page that still shows it
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "sdlab: a 3D view failed and was restarted",
        "sdlab: a 3D view failed again and has stopped",
    ]


def test_a_film_that_cannot_be_shown_does_not_end_the_view(view: Watched):
    view._latest.set(frame(4))
    until(lambda: view.shown_step == 4)
    view.shown_step = None
    view.replay(((1, np.zeros((3, 3))),))  # no images
    until(lambda: view.shown_step == 4)
    assert (view.replayed, view.trouble) == (None, "")


def test_cameras_of_linked_views_move_together_without_an_echo(monkeypatch: pytest.MonkeyPatch):
    made, shown = [SplatView(Latest()) for _ in range(3)], []
    browsers = [Browser((float(i), 1.0, 1.0)) for i in range(3)]
    try:
        for view, browser in zip(made, browsers, strict=True):
            monkeypatch.setattr(view._server, "get_clients", lambda browser=browser: {0: browser})
            view.link(made[:2])
        browsers[0].position = np.array([5.0, 5.0, 5.0])
        made[0]._moved(browsers[0])
        assert browsers[1].position.tolist() == [5, 5, 5]
        assert browsers[2].position.tolist() == [2, 1, 1], "nobody has linked the first to it"
        browsers[0].position = np.array([6.0, 6.0, 6.0])  # the hand goes on, while the other still reports
        made[1]._moved(browsers[1])
        assert browsers[0].position.tolist() == [6, 6, 6], "an echo moves nothing"
        monkeypatch.setattr(SplatView, "mode", property(lambda view: "depth"))
        monkeypatch.setattr(SplatView, "show_as", lambda view, mode: shown.append((view, mode)))
        made[2].begin_like(made[0])
        assert made[2]._server.initial_camera.position.tolist() == [6, 6, 6]
        assert shown == [(made[2], "depth")]
    finally:
        for view in made:
            view.close()
    assert all(view.join(5) for view in made)


def test_the_view_follows_the_theme(view: SplatView):
    for dark in (True, False):
        view.set_dark(dark)
        floor = view._server.scene.get_handle_by_name("/floor")
        assert np.array_equal(np.unique(floor.colors.reshape(-1, 3), axis=0), [FLOOR_COLOUR[dark]])
    view.close()
    assert view.join(5)
    view.set_dark(False)  # a late click on a closed view is nothing to fail over
    view.look_from_front()


def test_the_floor_is_a_disc_below_the_object():
    lines = floor_lines()
    assert lines.shape[1:] == (2, 3)
    assert np.allclose(lines[..., 2], FLOOR)
    assert np.allclose(np.hypot(lines[..., 0], lines[..., 1]), FLOOR_RADIUS, atol=1e-5)


def test_closing_the_seat_ends_server_and_thread():
    s = seat()
    views = Viewports()
    v = views.open(s)
    port = port_of(v)
    assert is_listening(port)
    for callback in s.on_close:
        callback()
    assert views.get("token") is None
    assert v.join(5)
    until(lambda: not is_listening(port))


# ---- through the page's port -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views() -> Viewports:
    return Viewports()


@pytest.fixture(scope="module")
def port(views: Viewports) -> Iterator[int]:
    app = FastAPI()
    app.add_middleware(Guard)
    app.include_router(routes(views))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1, ws_max_size=MAX_FRAME)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def open_view(views: Viewports) -> Iterator[SplatView]:
    s = seat("an-open-view")
    v = views.open(s)
    s.session.latest.set(frame(1))
    yield v
    views.close_all()
    assert v.join(5)


def get(port: int, token: str, **headers: str) -> tuple[int, str, dict]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/viewport/{token}/", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as e:
        return e.code, "", {}


def dial(port: int, token: str, slash: str = "", **options) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/viewport/{token}{slash}", subprotocols=[VERSION], max_size=None, **options)


def close_code(client: ClientConnection) -> int:
    with client, pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=5)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def test_the_page_of_a_view_is_visers_client_with_the_reconnect_fix(port: int, open_view: SplatView):
    status, body, headers = get(port, "an-open-view")
    assert status == 200
    assert "Document.prototype.hasFocus" in body
    assert body.index("hasFocus") < body.index("<script data-p")  # before the client itself
    assert headers["content-security-policy"].endswith("; frame-ancestors 'self'")
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert len(client_html()) > 500_000


def test_the_page_is_refused_to_wrong_tokens_and_foreign_pages(port: int, open_view: SplatView):
    assert get(port, "guess")[0] == 404
    assert get(port, "an-open-view", Origin="https://evil.example")[0] == 403
    assert get(port, "an-open-view", Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_the_stream_is_refused_to_wrong_tokens_and_foreign_pages(port: int, open_view: SplatView):
    assert close_code(dial(port, "guess")) == 4404
    assert close_code(dial(port, "an-open-view", origin="https://evil.example")) == 4403
    assert close_code(dial(port, "an-open-view", origin="null")) == 4403


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_stream_passes_version_and_splats(port: int, open_view: SplatView, slash: str):
    with dial(port, "an-open-view", slash, origin=f"http://127.0.0.1:{port}") as client:
        assert client.subprotocol == VERSION
        until(lambda: open_view._splats is not None)
        for step, n in ((1, 50), (2, 4000)):
            sent = frame(step, n)
            open_view._latest.set(sent)
            assert sent.scene is not None
            assert receives(client, sent.scene.means[0].tobytes())  # a splat's record begins with its centre


def receives(client: ClientConnection, part: bytes, timeout: float = 5.0) -> bool:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        message = client.recv(timeout=timeout)
        if isinstance(message, bytes) and part in message:
            return True
    return False


def test_a_client_of_another_version_is_hung_up_on(port: int, open_view: SplatView):
    with connect(f"ws://127.0.0.1:{port}/viewport/an-open-view", subprotocols=["viser-v0.0.1"]) as client:
        assert hangs_up(client)


def test_browsers_reach_a_view_that_began_again(port: int, open_view: SplatView, monkeypatch: pytest.MonkeyPatch):
    before, shown = port_of(open_view), open_view.show
    with dial(port, "an-open-view") as socket:
        socket.recv()
        failures = iter([lambda _: 1 / 0])
        monkeypatch.setattr(open_view, "show", lambda frame: next(failures, shown)(frame))
        open_view._latest.set(frame(2))
        until(lambda: port_of(open_view) != before)
        with contextlib.suppress(ConnectionClosed):
            while socket.recv(timeout=5):
                pass
    with dial(port, "an-open-view") as socket:
        assert socket.recv()


def test_closing_the_view_hangs_up(port: int, open_view: SplatView):
    with dial(port, "an-open-view") as client:
        client.recv(timeout=5)
        open_view.close()
        assert hangs_up(client)


def hangs_up(client: ClientConnection, timeout: float = 5.0) -> bool:
    end = time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            client.recv(timeout=timeout)
    except ConnectionClosed:
        return True
    return False


def test_a_watched_view_does_not_keep_its_seat(port: int, views: Viewports):
    manager = Manager(idle=0.5)
    try:
        s = manager.open(preset("mixture"))
        v = views.open(s)
        with dial(port, s.id) as client:
            client.recv(timeout=5)
            until(lambda: manager.count() == 0)
            assert v.join(5)
        assert views.get(s.id) is None
    finally:
        manager.shutdown()


def test_a_browser_without_a_socket_is_told_why(port: int, open_view: SplatView):
    """A proxy that forwards no WebSockets turns the handshake into a plain request."""
    url = f"http://127.0.0.1:{port}/viewport/an-open-view"
    assert "No WebSocket of this view has reached the server" in httpx.get(f"{url}/why").text
    assert httpx.get(url, headers={"Sec-WebSocket-Key": "x"}).status_code == 426
    assert "does not forward WebSockets" in httpx.get(f"{url}/why").text
    assert close_code(dial(port, "an-open-view", origin="https://lab.example")) == 4403
    assert "This page is at https://lab.example, but" in httpx.get(f"{url}/why").text
    assert httpx.get(f"http://127.0.0.1:{port}/viewport/guess/why").status_code == 404
    assert "static/line.js" not in client_html()
    assert "This view cannot connect" in client_html()


# ---- nonsense --------------------------------------------------------------------------------------------

MOVE: dict[str, Any] = {
    "type": "ViewerCameraMessage",
    "wxyz": [1.0, 0.0, 0.0, 0.0],
    "position": [3.0, 0.0, 1.0],
    "fov": 0.7,
    "near": 0.01,
    "far": 100.0,
    "image_height": 400,
    "image_width": 600,
    "look_at": [0.0, 0.0, 0.0],
    "up_direction": [0.0, 0.0, 1.0],
}
INF, NAN = float("inf"), float("nan")
WRONG: tuple[dict[str, Any], ...] = (
    *({"position": p} for p in ([NAN, 0, 0], [INF, 0, 0], [0, -INF, 0], [1e308] * 3, [1], [1] * 4, "abc", [[1]] * 3)),
    *({"wxyz": q} for q in ([0, 0, 0, 0], "abc", [1, 0, 0], {"a": 1})),
    *({"fov": f} for f in (0, -1, 4, NAN, "x", None)),
    *({side: n} for side in ("image_width", "image_height") for n in (2**62, -1, 2**70, "1")),
    {"up_direction": [0, 0, 0]},
    {"near": NAN},
    {"far": INF},
    {"extra": 1},
    {"type": "Message"},
    {"type": "__class__"},
    {"type": 3},
)  # fmt: skip
OTHERS = [cls.__name__ for cls in viser._messages.Message.get_subclasses() if cls.__name__ != MOVE["type"]]


def packed(message: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(message)
    except (OverflowError, TypeError):  # a whole number that the format does not have
        return b"\xff"


def nonsense(count: int) -> Iterator[bytes | str]:
    """Frames that no client of viser sends: wrong moves, viser's other messages, cut and wild bytes, texts."""
    rng = random.Random(5)
    shapes: list[Any] = [
        lambda i: packed({**MOVE, **WRONG[i % len(WRONG)]}),
        lambda i: packed({"type": OTHERS[i % len(OTHERS)], "uuid": "x", "updates": {"value": "a" * 9000}}),
        lambda i: rng.randbytes(rng.randrange(2000)),
        lambda i: packed(MOVE)[: rng.randrange(len(packed(MOVE)))],
        lambda i: packed([MOVE] * rng.randrange(50)),
        lambda i: b"\x91" * rng.randrange(100, 5000),
        lambda i: rng.choice([b"", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"]),
        lambda i: "x" * rng.randrange(900),
    ]
    for i in range(count):
        yield shapes[i % len(shapes)](i // len(shapes))


def test_only_moves_of_a_camera_count_as_such():
    assert is_camera_move(packed(MOVE))
    assert is_camera_move(packed({**MOVE, "fov": 1, "position": [1, 2, 3], "image_width": 0}))
    for wrong in WRONG:
        assert not is_camera_move(packed({**MOVE, **wrong})), wrong
    for field in MOVE:
        assert not is_camera_move(packed({k: v for k, v in MOVE.items() if k != field}))
    for name in OTHERS:
        assert not is_camera_move(packed({"type": name}))
    assert len(OTHERS) > 50


@pytest.mark.parametrize("count", [64, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_nonsense_closes_its_own_socket_in_silence(port: int, open_view: SplatView, count: int, capfd, caplog):
    for message in nonsense(count):
        client = dial(port, "an-open-view")
        client.send(message)
        assert closed_with(client) == 1008, message
    client = dial(port, "an-open-view")
    client.send(b"x" * (MAX_FRAME + 1))
    assert closed_with(client) == 1009
    with dial(port, "an-open-view") as client:
        client.send(packed(MOVE))
        open_view._latest.set(frame(2))
        assert receives(client, frame(2).scene.means[0].tobytes()), "the view goes on"
        until(lambda: len(open_view._server.get_clients()) == 1)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def closed_with(client: ClientConnection, timeout: float = 5.0) -> int:
    """The code with which a socket is closed, whatever it receives before."""
    with client, contextlib.suppress(ConnectionClosed):
        while client.recv(timeout=timeout) is not None:
            pass
    assert client.close_code is not None
    return client.close_code


@pytest.mark.parametrize("target", ["/nowhere", "/gradio_api/upload", "/viewport/guess/"])
def test_a_refused_body_is_not_read_to_its_end(port: int, target: str):
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = (b"100000\r\n" + bytes(0x100000) + b"\r\n") * 64  # of 1 MB
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sender:
        sender.sendall(head.encode())
        with pytest.raises(OSError, match=r"reset|Broken pipe|abort"):
            sender.sendall(chunks)
