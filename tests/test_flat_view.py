"""The view of flat scenes: who may see it, what it is told, how the start is moved; and the page in a browser."""

import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from waiting import LONG, until

from sdlab.live.frames import LATELY, flat_frame
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Advance, Patch, Pause, Rejected, Reset, Resume
from sdlab.live.session import Session
from sdlab.scenes.image import Images
from sdlab.settings import Settings, preset
from sdlab.toybox import figures
from sdlab.ui.flat_view import (
    FILES,
    HISTORY,
    LOSSLESS,
    MOST_BYTES,
    MOST_ROWS,
    UNIT,
    FlatViews,
    is_flat,
    pack,
    routes,
    saturation_of,
    sheet_of,
    true_saturation,
)
from sdlab.ui.guard import Guard

EMBEDDER = "https://example.org"


def plane(name: str = "playground", *changes: tuple[str, object]) -> Settings:
    return preset(name).patch_all([("steps", 100_000), *changes])


def pictures(n: int = 3) -> Settings:
    """Pictures of 16 x 16 under exact scores."""
    import dataclasses

    s = dataclasses.replace(preset("mixture"), scene=Images(n=n))
    return s.patch_all([("steps", 100_000), ("prompt.view_dependent", False)])


def unpack(message: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    arrays = {}
    for name, (kind, shape, offset) in header["arrays"].items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(message, np.dtype(kind), count, 4 + length + offset).reshape(shape)
    return header, arrays


def ran(s: Settings, steps: int) -> Session:
    session = Session(s)
    session.run(until=steps)
    return session


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    made = Manager(max_sessions=8)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def address(manager: Manager) -> Iterator[str]:
    app = FastAPI()
    app.add_middleware(Guard)
    app.include_router(routes(FlatViews(manager, locked=["scene.mean_x"]), EMBEDDER))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def opened(manager: Manager) -> Iterator[Callable[[Settings], Seat]]:
    seats = []

    def open_one(s: Settings) -> Seat:
        seats.append(manager.open(s))
        until(lambda: seats[-1].session.status.phase == "ready")
        return seats[-1]

    yield open_one
    for seat in seats:
        manager.close(seat.id)


# ---- what a frame carries --------------------------------------------------------------------------------------------


def test_terms_are_those_of_the_step_and_make_up_its_residual():
    session = ran(plane("playground", ("losses.sds.cfg", 7.5)), 3)
    flat = session.latest.get().flat
    assert flat.way.shape == (4, 100, 2)
    assert np.allclose(flat.way[-1], session.state.scene.params["points"].detach().flatten(1))
    assert flat.t.shape == (100,)
    t = flat.terms
    assert np.allclose(t["guided"], t["uncond"] + 7.5 * (t["pos"] - t["uncond"]), atol=1e-4)
    assert np.allclose(t["residual"], t["guided"] - t["noise"], atol=1e-4)


def test_the_exact_own_score_stands_in_for_the_noise():
    terms = ran(plane("playground", ("active", "vsd")), 2).latest.get().flat.terms
    assert "noise" not in terms
    assert np.allclose(terms["residual"], terms["pos"] - terms["psi"], atol=1e-4)  # at a guidance of 1


def test_before_the_first_step_there_are_points_but_no_terms():
    session = Session(plane())
    session.prepare()
    flat = session.latest.get().flat
    assert flat.way.shape == (1, 100, 2)
    assert not flat.terms
    assert not len(flat.t)


def test_only_points_have_numbers_of_their_own():
    assert ran(pictures(), 2).latest.get().flat is None
    session = ran(plane("playground-gaussian"), 2)
    assert session.latest.get().flat.way.shape == (1, 256, 2)


@pytest.mark.slow
def test_many_points_carry_less_of_their_ways():
    session = ran(plane("playground", ("scene.n", 2000)), 25)
    assert session.latest.get().flat.way.shape == (21, 2000, 2)
    session.state.scene._way = session.state.scene._way[:1] * 5000  # longer than what is kept
    way = flat_frame(session.state.scene, None, session.settings.loss).way
    assert len(way) == 1
    assert np.allclose(way[0], session.state.scene.params["points"].detach().flatten(1))


def test_a_reset_is_another_run(opened: Callable[[Settings], Seat]):
    session = opened(plane()).session
    session.send(Advance(3))
    until(lambda: session.latest.get().step == 3)
    before = session.latest.get().flat.run
    session.send(Reset())
    until(lambda: session.latest.get().step == 0)
    assert session.latest.get().flat.run != before


def test_which_settings_are_flat():
    assert all(is_flat(s) for s in (plane(), plane("playground-gaussian"), pictures()))
    assert not is_flat(preset("mixture"))


# ---- messages --------------------------------------------------------------------------------------------------------


def test_a_message_can_be_read_back():
    arrays = {"a": np.arange(3, dtype=np.int16), "b": np.ones((2, 2), np.float32), "none": np.zeros((0, 4), np.int32)}
    header, found = unpack(pack({"text": "ε"}, arrays))
    assert header["text"] == "ε"
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert header["arrays"][name][2] % 8 == 0


def test_a_frame_is_sent_once_and_of_the_ways_what_is_new(manager: Manager):
    session = ran(plane(), 30)
    views = FlatViews(manager)
    header, arrays = unpack(views.now(session))
    assert header["kind"] == "plane"
    assert header["step"] == 30
    assert list(arrays["rows"]) == list(range(31))
    way = session.state.scene.way
    assert np.abs(arrays["way"] / UNIT - way).max() <= 0.5 / UNIT + 1e-6
    assert np.allclose(arrays["term pos"], session.latest.get().flat.terms["pos"])
    assert views.now(session, header["version"]) is None
    _, arrays = unpack(views.now(session, "older", header["run"], 25))
    assert list(arrays["rows"]) == [26, 27, 28, 29, 30]
    _, arrays = unpack(views.now(session, "older", header["run"] + 1, 25))
    assert len(arrays["rows"]) == 31, "of another run everything is new"


def test_a_long_way_is_thinned_and_ends_where_the_points_are(manager: Manager):
    session = ran(plane("playground", ("scene.n", 10)), 150)
    _, arrays = unpack(FlatViews(manager).now(session))
    assert len(arrays["rows"]) == MOST_ROWS < LATELY
    assert (arrays["rows"][0], arrays["rows"][-1]) == (0, 150)
    assert (np.diff(arrays["rows"]) > 0).all()


def test_a_change_of_settings_is_news(manager: Manager):
    session = ran(plane(), 2)
    views = FlatViews(manager)
    first, _ = unpack(views.now(session))
    session.do(Patch.one("prompt.text", "south"))
    second, _ = unpack(views.now(session, first["version"]))
    assert second["prompt"] == "south"
    assert second["ground"] != first["ground"]


def test_reached_places_are_counted_as_in_the_bench(manager: Manager):
    session = ran(plane("playground", ("prompt.text", "all of them"), ("scene.n", 100)), 1)
    way = np.zeros((1, 100, 2), np.float32)
    way[0, :40] = (1, 0)
    way[0, 40:41] = (0, 1.2)
    frame = session.latest.get()
    session.latest.set(frame._replace(flat=frame.flat._replace(way=way)))
    header, _ = unpack(FlatViews(manager).now(session))
    assert header["reached"] == 2
    assert sorted(header["held"])[-2:] == [0.01, 0.4]


def test_points_that_ran_far_away_and_terms_that_are_not_finite_do_not_break_the_message(manager: Manager):
    session = ran(plane(), 1)
    frame = session.latest.get()
    terms = {"pos": np.full((100, 2), np.nan, np.float32)}
    flat = frame.flat._replace(way=np.full((1, 100, 2), 1e9, np.float32), terms=terms)
    session.latest.set(frame._replace(flat=flat))
    _, arrays = unpack(FlatViews(manager).now(session))
    assert (arrays["way"] == 32767).all()
    assert (arrays["term pos"] == 0).all()


def test_the_ground_gives_the_density_that_the_prior_knows(manager: Manager):
    session = ran(plane("playground-esd", ("prompt.text", "north east")), 1)
    header, arrays = unpack(FlatViews(manager).ground(session))
    assert header["names"] == list(session.prior.names)
    t, place = 300, torch.tensor([0.4, 0.7])
    squared = float(arrays["alphas_cumprod"][t])
    for name, text in (("asked", "north east"), ("all", "")):
        weight, x, y, std = arrays[name].T.astype(np.float64)
        variance = std**2 + (1 - squared) / squared  # in the plane's own units: p_t(alpha x) alpha^2
        distance = (place[0].item() - x) ** 2 + (place[1].item() - y) ** 2
        density = (weight / (2 * np.pi * variance) * np.exp(-0.5 * distance / variance)).sum()
        event = (squared**0.5 * place).view(1, 2, 1, 1)
        wanted = session.prior.log_density(event, torch.tensor([t]), session.prior.embed(text)).exp().item() * squared
        assert density == pytest.approx(wanted, rel=1e-4)


def test_the_fit_is_sent(manager: Manager):
    session = ran(plane("playground-gaussian"), 5)
    header, arrays = unpack(FlatViews(manager).now(session))
    assert header["fit"] == pytest.approx(list(session.state.scene.stats().values()), abs=1e-3)
    assert arrays["way"].shape == (1, 256, 2)


def test_pictures_come_as_one_sheet_with_their_saturation(manager: Manager):
    session = ran(pictures(3), 2)
    views = FlatViews(manager)
    header, arrays = unpack(views.now(session))
    assert (header["kind"], header["count"], header["size"]) == ("pictures", 3, [16, 16])
    sheet = np.asarray(Image.open(io.BytesIO(arrays["sheet"].tobytes())))
    preview = session.latest.get().preview
    assert sheet.shape == (32, 32, 3)
    assert np.array_equal(sheet[:16, 16:], preview[1])
    rgb = torch.from_numpy(preview).permute(0, 3, 1, 2).float() / 255
    assert arrays["saturations"][0, 0] == 2
    assert np.allclose(arrays["saturations"][0, 1:], figures.saturation(rgb), atol=1e-3)


def test_saturations_are_remembered_until_the_run_is_reset(manager: Manager):
    session = ran(pictures(2), 1)
    views = FlatViews(manager)
    frame = session.latest.get()
    for step in range(1, 2 * HISTORY):
        session.latest.set(frame._replace(step=step))
        header, arrays = unpack(views.now(session, row=step - 1))
        assert arrays["saturations"][:, 0].tolist() == [step]
    steps = unpack(views.now(session))[1]["saturations"][:, 0]
    assert len(steps) <= HISTORY
    assert (steps[0], steps[-1]) == (1, 2 * HISTORY - 1)
    assert (np.diff(steps) > 0).all()
    session.latest.set(frame._replace(step=0))
    header, arrays = unpack(views.now(session, row=2 * HISTORY - 1))
    assert arrays["saturations"][:, 0].tolist() == [0]
    assert header["after"] == -1, "the page must forget what it has"


def test_large_pictures_are_sent_small():
    noise = np.random.default_rng(0).integers(0, 255, (2, LOSSLESS * 2, LOSSLESS * 2, 3), np.uint8)
    assert sheet_of(noise)[:2] == b"\xff\xd8"
    assert sheet_of(noise[:, :LOSSLESS, :LOSSLESS])[:4] == b"\x89PNG"


def test_saturation_in_its_own_words():
    red, grey = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 90, np.uint8)
    red[..., 0] = 255
    assert saturation_of(np.concatenate([red, grey])) == [1.0, 0.0]


@pytest.mark.slow
def test_true_pictures_are_known_for_an_object_with_a_colour():
    assert true_saturation("something else entirely") is None
    assert true_saturation("a bear") is None
    assert 0.05 < true_saturation("a red bear") < 0.5


# ---- routes ----------------------------------------------------------------------------------------------------------


def test_who_may_see_it(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    for path in ("", "now", "ground"):
        url = f"{address}/flat/{seat.id}/{path}"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Origin": address}).status_code == 200
        assert httpx.get(url, headers={"Origin": "https://elsewhere.example"}).status_code == 403
        assert httpx.get(f"{address}/flat/{seat.id}x/{path}").status_code == (205 if path else 404)
        assert httpx.delete(url).status_code == 405
    page = httpx.get(f"{address}/flat/{seat.id}/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert f"frame-ancestors {EMBEDDER}" in policy
    assert "default-src 'none'" in policy
    assert "http" not in page.text.replace("https://", "x").replace("http-equiv", "x"), "no foreign addresses"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_its_files_need_no_token_and_no_other_is_given(address: str, file: str):
    answer = httpx.get(f"{address}/flat/{file}")
    assert answer.status_code == 200
    kind = "text/css" if file.endswith(".css") else "text/javascript"  # a module of another type is not run
    assert answer.headers["content-type"].split(";")[0] == kind
    for other in ("page.css", "..%2fapp.py", "flat.html"):
        assert httpx.get(f"{address}/flat/{other}").status_code == 404
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "//" not in text.replace("// ", "").replace("//\n", "") or "http" not in text


def test_a_view_is_no_sign_of_life(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    seat.ends_at, seen = time.monotonic() + 100, seat.last_seen
    httpx.get(f"{address}/flat/{seat.id}/now")
    assert seat.last_seen == seen
    assert seat.ends_at is not None


def test_the_same_frame_is_not_sent_twice(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    url = f"{address}/flat/{seat.id}/now"
    header, _ = unpack(httpx.get(url).content)
    assert httpx.get(url, params={"since": header["version"]}).status_code == 204
    assert httpx.get(url, params={"row": "much"}).status_code == 422


def test_the_view_ends_with_its_seat(manager: Manager, address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    manager.close(seat.id)
    for path in ("now", "ground"):
        answer = httpx.get(f"{address}/flat/{seat.id}/{path}")
        assert (answer.status_code, answer.content) == (205, b""), "no error, which a browser would report"


# ---- the start -------------------------------------------------------------------------------------------------------


def drag(address: str, seat: Seat, x: object, y: object, **headers: str) -> httpx.Response:
    return httpx.post(f"{address}/flat/{seat.id}/start", json={"x": x, "y": y}, headers=headers)


def starts_at(seat: Seat, x: float, y: float) -> bool:
    frame = seat.session.latest.get()
    return np.allclose(seat.session.state.scene.way[0], (x, y)) and frame.step == seat.session.state.step


def test_a_drag_moves_the_start_and_resets(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    seat.session.send(Advance(5))
    until(lambda: seat.session.latest.get().step == 5)
    assert drag(address, seat, 0.5, -0.25).json() == {"x": 0.5, "y": -0.25}
    until(lambda: seat.session.latest.get().step == 0 and starts_at(seat, 0.5, -0.25))
    assert seat.session.settings.scene.start_x == 0.5
    assert not seat.session.running, "it was paused"
    header, _ = unpack(httpx.get(f"{address}/flat/{seat.id}/now").content)
    assert header["start"]["at"] == [0.5, -0.25]


def test_a_run_goes_on_from_the_new_start(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    seat.session.send(Resume())
    until(lambda: seat.session.latest.get().step > 10)
    drag(address, seat, 1, 1)
    until(lambda: np.allclose(seat.session.state.scene.way[0], 1) and seat.session.latest.get().step > 3)
    assert seat.session.running
    seat.session.send(Pause())


def test_a_finished_run_begins_again(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane("playground").patch("steps", 5))
    seat.session.send(Resume())
    until(lambda: seat.session.status.phase == "paused" and seat.session.latest.get().step == 5)
    drag(address, seat, 1, 1)
    until(lambda: np.allclose(seat.session.state.scene.way[0], 1) and seat.session.latest.get().step == 5)


def test_a_start_is_kept_within_the_knobs_range(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    assert drag(address, seat, 99, -99.5).json() == {"x": 3.0, "y": -3.0}
    until(lambda: starts_at(seat, 3, -3))
    assert not [e for e in seat.session.events.since(0)[0] if isinstance(e, Rejected)]


def test_what_is_no_place_is_refused_and_changes_nothing(address: str, opened: Callable[[Settings], Seat]):
    seat = opened(plane())
    url = f"{address}/flat/{seat.id}/start"
    head = {"Content-Type": "application/json"}
    before = seat.session.settings
    for body in (
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"x":1}',
        b'{"x":1,"y":"2"}',
        b'{"x":1,"y":2,"z":3}',
        b'{"x":true,"y":1}',
    ):
        assert httpx.post(url, content=body, headers=head).status_code == 422
    for body in (b'{"x":NaN,"y":1}', b'{"x":1,"y":Infinity}', b'{"x":1e400,"y":1}', b"\xff\xfe", b"[" * 900):
        assert httpx.post(url, content=body, headers=head).status_code == 422
    assert httpx.post(url, content=b" " * (MOST_BYTES + 1), headers=head).status_code == 413
    assert httpx.post(url, content=(b" " * 400 for _ in range(9)), headers=head).status_code == 413
    assert httpx.post(url, content=b'{"x":1,"y":1}', headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.get(url).status_code == 405
    assert drag(address, seat, 1, 1, Origin="https://elsewhere.example").status_code == 403
    assert httpx.post(f"{address}/flat/nobody/start", json={"x": 1, "y": 1}).status_code == 404
    assert seat.session.settings is before


def test_a_scene_without_a_start_or_with_a_locked_one_says_so(address: str, opened: Callable[[Settings], Seat]):
    assert drag(address, opened(pictures()), 1, 1).status_code == 422
    seat = opened(plane("playground-gaussian"))
    answer = drag(address, seat, 1, 1)
    assert answer.status_code == 403
    assert "scene.mean_x" in answer.text
    header, _ = unpack(httpx.get(f"{address}/flat/{seat.id}/now").content)
    assert header["start"]["locked"]


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def look(browser, address: str, opened: Callable[[Settings], Seat]) -> Iterator[Callable]:
    """Open a run's view; what the console complains of fails the test."""
    errors: list[str] = []
    contexts = []

    def open_one(s: Settings, query: str = "", size: tuple[int, int] = (900, 560), **options):
        seat = opened(s)
        contexts.append(browser.new_context(viewport={"width": size[0], "height": size[1]}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * LONG)
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(f"{address}/flat/{seat.id}/{query}")
        page.wait_for_selector("body[data-step]")
        wait(page, "document.body.dataset.kind === 'pictures' || latest.ground !== null")
        return seat, page

    yield open_one
    for context in contexts:
        context.close()
    assert not errors


def inside(page, expression: str):
    """Evaluate an expression with what the view's modules export."""
    return page.evaluate(
        "Promise.all(['flat', 'dom', 'layers'].map((name) => import(`/flat/${name}.js`)))"
        f".then(([{{ latest, plane }}, {{ $ }}, {{ placed }}]) => ({expression}))"
    )


def wait(page, condition: str) -> None:
    """Until the expression is true; Playwright's own way is one that the page's policy forbids."""
    until(lambda: inside(page, condition))


def shot(page, selector: str = "#stage") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def settled(page) -> np.ndarray:
    """The view when nothing moves any more."""
    wait(page, "new Promise((yes) => setTimeout(() => yes(!latest.drawing), 150))")
    return shot(page)


@pytest.mark.browser
def test_a_frame_without_a_new_step_leaves_the_samples_of_a_fit_where_they_are(look: Callable):
    seat, page = look(plane("playground-gaussian"))
    seat.session.send(Advance(3))
    wait(page, "latest.frame.step === 3")
    before = inside(page, "[...plane.paths.rows.at(-1)]")
    again = (
        "{ ...latest.frame.arrays, rows: { data: [], shape: [0] }, way: { data: new Int16Array(), shape: [0, n, 2] } }"
    )
    inside(page, f"((n) => plane.take({{ ...latest.frame, arrays: {again} }}, latest.frame))(plane.paths.n)")
    settled(page)
    assert inside(page, "[...plane.paths.rows.at(-1)]") == before


@pytest.mark.browser
def test_points_move_while_it_runs_and_stop_with_it(look: Callable):
    seat, page = look(plane())
    before = settled(page)
    seat.session.send(Resume())
    wait(page, "+document.body.dataset.step > 30")
    during = shot(page)
    assert (np.abs(during - before).max(-1) > 40).sum() > 300
    wait(page, "+document.body.dataset.reached > 0")
    seat.session.send(Pause())
    until(lambda: seat.session.status.phase == "paused")
    wait(page, f"document.body.dataset.step === '{seat.session.latest.get().step}'")
    assert np.array_equal(settled(page), settled(page))
    drawn = page.evaluate("document.body.dataset.drawn")
    time.sleep(0.5)
    assert page.evaluate("document.body.dataset.drawn") == drawn, "at rest nothing is drawn"


@pytest.mark.browser
def test_arrows_can_be_left_out_one_by_one(look: Callable):
    seat, page = look(plane())
    seat.session.send(Advance(20))
    page.wait_for_selector("body[data-step='20']")
    terms = [b.get_attribute("data-term") for b in page.locator("#legend button").all()]
    assert set(terms) == {"uncond", "pos", "noise", "residual"}
    before = settled(page)
    for name in terms:
        button = page.locator(f"[data-term={name}]")
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
    without = settled(page)
    assert (np.abs(without - before).max(-1) > 40).sum() > 100
    for name in terms:
        page.locator(f"[data-term={name}]").click()
    page.mouse.move(5, 5)
    assert (np.abs(settled(page) - without).max(-1) > 40).sum() > 100


@pytest.mark.browser
def test_the_start_is_dragged(look: Callable):
    seat, page = look(plane())
    at = inside(page, "placed(plane.view(), plane.startAt(latest.frame))")
    to = inside(page, "placed(plane.view(), [0.5, 0.5])")
    page.mouse.move(*at)
    assert inside(page, "$('plane').style.cursor") == "grab"
    page.mouse.down()
    page.mouse.move(*to, steps=4)
    assert seat.session.settings.scene.start_x == -1, "not before it is let go"
    page.mouse.up()
    until(lambda: abs(seat.session.settings.scene.start_x - 0.5) < 0.01)
    assert abs(seat.session.settings.scene.start_y - 0.5) < 0.01
    wait(page, "Math.abs(latest.frame.start.at[0] - 0.5) < 0.01 && Math.abs(plane.paths.rows.at(-1)[0] - 0.5) < 0.01")


@pytest.mark.browser
def test_the_start_is_moved_by_keys_too(look: Callable):
    seat, page = look(plane())
    page.focus("#plane")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    until(lambda: abs(seat.session.settings.scene.start_x + 0.8) < 0.01)
    assert seat.session.settings.scene.start_y == 1.0


@pytest.mark.browser
def test_another_point_is_looked_at_by_touch(look: Callable):
    seat, page = look(plane("playground", ("scene.spread", 0.5)), size=(400, 400), has_touch=True)
    seat.session.send(Advance(2))
    page.wait_for_selector("body[data-step='2']")
    settled(page)
    # the point that lies farthest from where the ring could be meant
    point, at = inside(
        page,
        """(() => {
          const view = plane.view(), row = plane.paths.rows.at(-1);
          const [x, y] = placed(view, plane.startAt(latest.frame));
          return [...Array(plane.paths.n).keys()].slice(1)
            .map((p) => [p, placed(view, [row[2 * p], row[2 * p + 1]])])
            .filter(([, at]) => at[0] > 5 && at[0] < 395 && at[1] > 5 && at[1] < 250)
            .sort(([, a], [, b]) => Math.hypot(b[0] - x, b[1] - y) - Math.hypot(a[0] - x, a[1] - y))[0];
        })()""",
    )
    page.touchscreen.tap(*at)
    wait(page, f"plane.chosen === {point}")
    assert page.locator("#t").inner_text() == f"t = {seat.session.latest.get().flat.t[point]}"


@pytest.mark.browser
def test_density_at_t_trails_and_replay(look: Callable):
    seat, page = look(plane())
    seat.session.send(Advance(40))
    page.wait_for_selector("body[data-step='40']")
    plain = settled(page)
    for name in ("noised", "trails"):
        page.click(f"#{name}")
        page.mouse.move(5, 5)
        changed = settled(page)
        assert (np.abs(changed - plain).max(-1) > 3).sum() > 50, name
        page.click(f"#{name}")
    page.click("#replay")
    wait(page, "plane.shown > 1 && plane.shown < 20")
    wait(page, "plane.replaying === null && plane.shown === 40")


@pytest.mark.browser
def test_dark_from_the_address_and_from_the_page_around_it(look: Callable):
    _, page = look(plane(), "?dark")
    assert settled(page).mean() < 80
    page.evaluate("postMessage({ dark: false }, '*')")
    wait(page, "!document.documentElement.classList.contains('dark')")
    assert settled(page).mean() > 180
    page.evaluate("postMessage({ dark: 'yes' }, '*'); postMessage(null, '*')")
    assert settled(page).mean() > 180


@pytest.mark.browser
@pytest.mark.parametrize("size", [(900, 560), (400, 400), (1600, 900)])
def test_everything_has_room(look: Callable, size: tuple[int, int]):
    _, page = look(plane("playground-esd"), size=size)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def fits() -> bool:  # once the view has stepped back far enough
        left, top, unit, right, bottom = inside(
            page,
            "(() => { const v = plane.view(), c = $('card').getBoundingClientRect();"
            " return [v.x, v.y, v.unit, c.left > 100 ? c.left : innerWidth, c.left > 100 ? innerHeight : c.top]; })()",
        )
        far = (1 + 3 * 0.2) * unit  # of the outermost place
        return min(left, top) > far and left + far < right and top + far < bottom

    until(fits)


@pytest.mark.browser
@pytest.mark.parametrize("count", [1, 4, 25])
def test_pictures_are_shown_sharp_with_their_saturation(look: Callable, count: int):
    seat, page = look(pictures(count))
    assert page.locator("#pictures figure").count() == count
    assert page.evaluate("getComputedStyle(document.querySelector('#pictures canvas')).imageRendering") == "pixelated"
    seat.session.send(Advance(5))
    page.wait_for_selector("body[data-step='5']")
    wanted = saturation_of(seat.session.latest.get().preview)
    assert float(page.evaluate("document.body.dataset.saturation")) == pytest.approx(np.mean(wanted), abs=1e-3)
    assert float(page.locator("#pictures .value").first.inner_text()) == pytest.approx(wanted[0], abs=0.006)
    pixels = page.evaluate(
        "[...document.querySelector('#pictures canvas').getContext('2d').getImageData(0, 0, 16, 16).data]"
    )
    assert np.array_equal(np.reshape(pixels, (16, 16, 4))[..., :3], seat.session.latest.get().preview[0])
    boxes = [c.bounding_box() for c in page.locator("#pictures canvas").all()]
    card = page.locator("#card").bounding_box()
    assert all(
        b["x"] >= 0 and b["y"] >= 0 and b["x"] + b["width"] <= card["x"] and b["y"] + b["height"] <= 560 for b in boxes
    )
    assert page.locator("#course polyline").count() == 1


@pytest.mark.browser
def test_an_ended_run_is_said_and_its_console_stays_empty(look: Callable, manager: Manager):
    seat, page = look(plane())
    manager.close(seat.id)
    wait(page, "$('note').textContent.includes('ended')")
