"""What visitors of a public server may ask for: every range and budget, on every way in, and nothing for an owner."""

import dataclasses
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from test_handlers import Browser, Views, opened, presets_are_read_once, ready  # noqa: F401
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from waiting import until

from sdlab.live.clients import NO_LIMIT, Bucket, Client
from sdlab.live.cost import Load
from sdlab.live.manager import Manager
from sdlab.live.messages import Advance, Goto, Patch, Rejected, Reset, Resume
from sdlab.live.state import Run
from sdlab.settings import Settings, default_settings, preset, scenes, to_toml
from sdlab.types import Prior
from sdlab.ui import answers, budgets, flat_view
from sdlab.ui.budgets import BUDGETS, Budgets
from sdlab.ui.form import Rules, form_html
from sdlab.ui.page import Page
from sdlab.ui.visitors import MAX_LANES, VISITOR_FILES, VISITOR_LANES, Visitors, public


def small(**changes: Any) -> Settings:
    """Return quick settings within every range, of splats or of another `kind` of scene."""
    kind = str(changes.pop("kind", "splats"))
    if kind != "splats":
        base = default_settings("mixture", kind)
        return base.patch_all([(path.replace("__", "."), value) for path, value in changes.items()])
    base = [("scene.n_init", 60), ("scene.max_gaussians", 90), ("scene.scale_max", 0.1), ("steps", 100_000)]
    return preset("mixture").patch_all([*base, *((path.replace("__", "."), value) for path, value in changes.items())])


def refused(wanted: Settings, run: Run | None = None, policy: Budgets | None = None) -> str:
    """Return why visitors may not have these settings, "" if they may."""
    try:
        (policy or Budgets())(wanted, run or Run.of(small()))
    except ValueError as e:
        return str(e)
    return ""


# ---- ranges ----------------------------------------------------------------------------------------------


def ranged() -> list[tuple[str, str, int]]:
    """Return (kind of scene, path, largest value) of every knob with a range of its own for visitors."""
    found = []
    for kind in scenes():
        for path, k in default_settings("mixture", kind).knobs().items():
            most = budgets._most(path, kind)
            if most is not None and k.hi is not None and most < k.hi:
                found.append((kind, path, most))
    return found


def test_each_range_is_of_a_knob_that_exists():
    paths = {path if not path.startswith("losses.") else f"losses.{path.split('.')[-1]}" for _, path, _ in ranged()}
    assert paths >= set(budgets.MOST), "misspelt, or no smaller than the knob's own range"
    assert {(kind, path) for kind, named in budgets.MOST_OF_KIND.items() for path in named} <= {
        (kind, path) for kind, path, _ in ranged()
    }


@pytest.mark.parametrize(("kind", "path", "most"), ranged())
def test_a_value_beyond_a_visitors_range_is_refused_with_the_knob_the_value_and_the_range(kind, path, most):
    base = default_settings("mixture", kind)
    why = refused(base.patch(path, most + 1), Run.of(base))
    assert why == f"{path} = {most + 1:,}: visitors of this server may choose at most {most:,}; {NO_LIMIT}"
    assert "at most" not in refused(base.patch(path, most), Run.of(base))


def test_what_the_servers_own_presets_use_is_in_the_range():
    for own in ("gallery", "toybox"):
        visitors = Visitors(*public(preset(own)))
        assert visitors.budgets is not None
        for name in visitors.presets:
            wanted = visitors.fit(preset(name))
            assert refused(wanted, Run.of(visitors.settings), visitors.budgets) == "", name
    raised = Budgets([small(camera__views=12)])
    assert refused(small(camera__views=12), policy=raised) == ""
    assert "camera.views = 13: visitors of this server may choose at most 12" in refused(
        small(camera__views=13), policy=raised
    )


# ---- budgets ---------------------------------------------------------------------------------------------

HEAVY: dict[str, list[dict[str, Any]]] = {  # by budget, settings within each range that break it
    "drawing a step's views": [
        {"camera__views": 8, "camera__resolution": 512, "scene__max_gaussians": 20_000},
        {"scene__scale_max": 5.0, "scene__max_gaussians": 20_000, "camera__resolution": 256},
        {"camera__resolution": 512, "scene__n_init": 20_000, "scene__scale_max": 0.2},
        {"camera__resolution": 512, "kind": "field", "scene__samples": 128},
        {"camera__views": 8, "kind": "field", "scene__samples": 128, "scene__hidden": 64},
        {"camera__fovy": 10.0, "camera__resolution": 512, "scene__max_gaussians": 20_000},
    ],
    "a step would evaluate": [
        {"active": "sdi", "losses__sdi__inversion_steps": 20, "camera__views": 8},
        {"active": "sbp", "losses__sbp__form": "full", "losses__sbp__leg_steps": 20, "camera__views": 8},
        {"active": "pfd", "losses__pfd__reverse_steps": 20, "camera__views": 8},
        {"active": "pfd", "guidance__perp_neg": True, "camera__views": 4},
        {"active": "reward", "losses__reward__inner": "jsd", "losses__reward__noises": 8},
    ],
    "a training step of psi": [{"active": "vsd", "losses__vsd__every": 4, "camera__views": 8}],
    "psi would train on": [{"active": "esd", "losses__esd__every": 4, "losses__esd__lessons": 4, "camera__views": 8}],
}


def with_prior(run: Run, side: int) -> Run:
    """Return a run whose prior takes images of `side` pixels."""
    return dataclasses.replace(run, prior=prior_of(run.settings, image_size=side))


def prior_of(s: Settings, **other: Any) -> Prior:
    """Return the prior of `s` with other attributes."""
    prior = s.prior.load(torch.device("cpu"))
    for name, value in other.items():
        setattr(prior, name, value)
    return prior


@pytest.mark.parametrize(("said", "changes"), [(said, each) for said, some in HEAVY.items() for each in some])
def test_a_step_beyond_a_budget_is_refused_with_a_knob_and_what_is_allowed(said: str, changes: dict[str, Any]):
    side = 128 if "training step" in said else 64  # of 128 pixels, one view counts as four
    run = with_prior(Run.of(small(kind=changes.get("kind", "splats"))), side)
    wanted = small(**changes)
    why = refused(wanted, run)
    path = why.partition(" = ")[0]
    assert said in why
    assert path.replace(".", "__") in changes
    assert repr(wanted.knob(path).value) in why
    assert "visitors of this server may" in why
    assert why.endswith(NO_LIMIT)
    if "which is" in why:
        most = int(why.partition(f"which is {path} = ")[2].partition(" here")[0].replace(",", ""))
        assert refused(wanted.patch(path, most), run) == ""
        assert refused(wanted.patch(path, most + 1), run) != ""


def test_each_budget_has_a_case():
    assert len(HEAVY) == len(BUDGETS)
    assert all(any(budget.says.startswith(said) for budget in BUDGETS) for said in HEAVY)


def test_a_change_that_makes_a_heavy_step_lighter_is_allowed():
    heavy = small(camera__views=8, camera__resolution=512, scene__max_gaussians=20_000)
    assert refused(heavy.patch("camera.views", 7), Run.of(heavy)) == ""
    assert refused(heavy.patch("losses.sds.cfg", 3.0), Run.of(heavy)) == ""


def test_gaussians_that_the_scene_has_count_however_few_it_may_have_from_now_on():
    light = small()
    assert Load.of(light, None, 50_000).drawing_seconds > 10 * Load.of(light, None, 0).drawing_seconds
    assert Load.of(light, None, 50_000).step_bytes > 10 * Load.of(light, None, 0).step_bytes


def test_harmonics_are_work_and_memory():
    plain, directed = (Load.of(small(scene__sh_degree=degree, scene__max_gaussians=10_000)) for degree in (0, 3))
    per_view = 10_000 * 15
    assert directed.drawing_seconds - plain.drawing_seconds == pytest.approx(plain.views * per_view * 1e-7)
    assert directed.step_bytes - plain.step_bytes == pytest.approx(plain.views * per_view * 25)


def test_psi_may_copy_small_networks_only():
    s = small(active="vsd")
    run = dataclasses.replace(Run.of(s), prior=prior_of(s, n_parameters=800_000_000))
    why = refused(s.patch("losses.vsd.network", "copy"), run)
    assert why.startswith(
        "losses.vsd.network = 'copy': visitors of this server may copy networks of at most 50,000,000"
    )
    assert "800,000,000" in why
    assert why.endswith(NO_LIMIT)
    assert refused(s.patch("losses.vsd.network", "lora"), run) == ""


def test_the_estimate_of_a_steps_memory_knows_what_once_killed_a_server():
    wide = small(
        camera__views=16,
        camera__resolution=1024,
        scene__n_init=200_000,
        scene__max_gaussians=200_000,
        scene__scale_max=5.0,
    )
    assert Load.of(wide).step_bytes > 1e10
    assert Load.of(small()).step_bytes < 1e8


# ---- every way in ----------------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=8)
    yield manager
    manager.shutdown()


@pytest.fixture
def visitor(manager: Manager) -> Browser:
    """A page of a public server, ready to start."""
    browser = Browser(Page(manager, Views(), Visitors(*public(small())), "mixture"), "page")
    ready(browser)
    return browser


def told(browser: Browser, said: str) -> None:
    until(lambda: said in str(browser.panels().get("status", "")))


def goes_on(browser: Browser) -> None:
    """Check that the run takes steps with settings that visitors may have."""
    session = browser.desk.focus.seat.session
    before = session.state.step
    browser.act(do="start")
    until(lambda: session.state.step > before + 3)
    assert session.settings.camera.views <= 12
    assert browser.page.visitors.budgets is not None
    assert refused(session.settings, session._run, browser.page.visitors.budgets) == ""


@pytest.mark.parametrize("started", [False, True])
def test_a_knob_beyond_the_range_is_refused_and_the_run_goes_on(visitor: Browser, started: bool):
    if started:
        goes_on(visitor)
    visitor.act(do="knob", knob="camera.views", value=16)
    told(visitor, "Views = 16: visitors of this server may choose at most 12; on your own computer there is no such")
    goes_on(visitor)


def test_acts_that_come_together_are_weighed_together(visitor: Browser):
    """Each alone would be allowed, and none knows of the others when it arrives."""
    knobs = {"camera.views": 8, "camera.resolution": 512, "scene.max_gaussians": 20_000, "scene.n_init": 20_000}
    visitor.page.act(visitor.token, [{"do": "knob", "knob": path, "value": value} for path, value in knobs.items()])
    told(visitor, "drawing a step")
    goes_on(visitor)


def test_a_file_of_settings_beyond_the_range_is_refused(visitor: Browser):
    opened(visitor, to_toml(small(camera__views=16)))
    assert "own.toml: " in visitor.panels()["status"]
    opened(visitor, to_toml(default_settings("mixture", "image").patch("scene.n", 200)))
    assert "visitors of this server may choose at most 16" in visitor.panels()["status"]
    assert visitor.desk.focus.settings.camera.views == small().camera.views
    goes_on(visitor)


def test_a_preset_is_always_allowed_and_a_knob_on_top_of_it_is_not(visitor: Browser):
    visitor.act(do="preset", preset="mixture")
    visitor.act(do="knob", knob="camera.views", value=16)
    told(visitor, "Views = 16")
    assert visitor.desk.focus.preset == "mixture"


def test_a_branch_has_the_limits_of_its_page_and_its_account(visitor: Browser, manager: Manager):
    visitor.act(do="branch")
    until(lambda: len(visitor.desk.lanes) == 2)
    ready(visitor)
    one, other = visitor.desk.lanes
    assert one.seat.client is other.seat.client
    visitor.act(do="knob", knob="camera.views", value=16)
    told(visitor, "Views = 16")
    other.send(Patch((("camera.resolution", 1024),)))
    until(lambda: [e for e in other.seat.session.events.since()[0] if isinstance(e, Rejected)])


def test_knobs_that_wait_for_a_reset_are_weighed_with_the_scene_as_it_is_and_as_it_will_be(visitor: Browser):
    visitor.act(do="knob", knob="scene.max_gaussians", value=20_000)
    visitor.act(do="knob", knob="scene.n_init", value=20_000)
    session = visitor.desk.focus.seat.session
    session.send(Advance(1))
    until(lambda: session.state.step == 1)
    assert session.state.scene.stats()["n_gaussians"] == 20_000
    fewer = Patch((("scene.n_init", 60), ("scene.max_gaussians", 60)))
    session.send(fewer)
    session.send(Patch((("camera.views", 8), ("camera.resolution", 512))))
    until(lambda: [e for e in session.events.since()[0] if isinstance(e, Rejected)])
    (first, *_) = [e for e in session.events.since()[0] if isinstance(e, Rejected)]
    assert "drawing a step" in first.reason, "the scene still has 20,000 Gaussians"
    session.send(Reset())
    session.send(Patch((("camera.views", 8), ("camera.resolution", 128))))
    until(lambda: session.settings.camera.views == 8)


def test_the_timeline_leads_back_to_settings_that_were_allowed_only(visitor: Browser):
    session = visitor.desk.focus.seat.session
    session.send(Advance(2))
    until(lambda: session.state.step == 2)
    visitor.act(do="knob", knob="camera.views", value=16)
    visitor.act(do="goto", step=0)
    session.send(Goto(0))
    until(lambda: session.state.step == 0)
    assert session.settings.camera.views == small().camera.views


def test_an_owner_is_limited_in_nothing(manager: Manager):
    browser = Browser(Page(manager, Views(), Visitors(small()), "mixture"), "page")
    ready(browser)
    client = browser.desk.focus.seat.client
    assert math.isinf(client.messages.rate)
    assert client.most_seats is None
    knobs = {"camera.views": 16, "camera.resolution": 1024, "losses.vsd.rank": 256, "scene.n_init": 100_000}
    for path, value in {**knobs, "scene.max_gaussians": 2_000_000}.items():
        browser.act(do="knob", knob=path, value=value)
    session = browser.desk.focus.seat.session
    until(lambda: session.settings.knob("scene.max_gaussians").value == 2_000_000)
    assert {path: session.settings.knob(path).value for path in knobs} == knobs
    assert [e for e in session.events.since()[0] if isinstance(e, Rejected)] == []
    text = to_toml(small(camera__views=16))
    assert Visitors(small()).read(text, "own.toml").camera.views == 16


# ---- the form --------------------------------------------------------------------------------------------


def test_the_form_shows_the_ranges_that_visitors_have():
    guarded = Visitors(*public(small()))
    shown = form_html(guarded.settings, [], Rules(guarded.locked, guarded.shown))
    unlimited = form_html(guarded.settings, [])

    def of(form: str, path: str) -> str:
        return form.partition(f'data-path="{path}"')[2].partition("data-path=")[0]

    for path, most, hi in (
        ("camera.views", 12, 16),
        ("losses.vsd.rank", 32, 256),
        ("losses.sdi.inversion_steps", 20, 50),
    ):
        assert f'data-hi="{most}"' in of(shown, path)
        assert f"here at most {most}; on your own computer {hi:,}" in of(shown, path)
        assert f'data-hi="{hi}"' in of(unlimited, path)
        assert "on your own computer" not in of(unlimited, path)


# ---- messages, files, lanes, seats -----------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_its_rate():
    bucket = Bucket(rate=50.0, burst=10.0)
    assert [bucket.take() for _ in range(10)] == [0.0] * 10
    wait = bucket.take(5, patience=1.0)
    assert 0.05 < wait <= 0.1
    assert bucket.take(5) > 0.1, "and takes nothing, since that is too long"
    assert bucket.take(5) < 0.21
    assert math.isinf(bucket.take(11))
    assert Bucket().take(1e12) == 0.0


def served(page: Page) -> TestClient:
    app = FastAPI()
    app.include_router(answers.routes(page))
    return TestClient(app)


def test_acts_that_come_too_fast_are_held_up_and_then_refused_with_a_sentence(visitor: Browser):
    browser = served(visitor.page)
    many = [{"do": "knob", "knob": "losses.sds.cfg", "value": 3.0}] * 60
    codes = [browser.post(f"/do/{visitor.token}", json=many).status_code for _ in range(3)]
    assert codes[0] == 204
    assert codes[-1] == 429
    answer = browser.post(f"/do/{visitor.token}", json=many)
    assert answer.text == f"too many messages: this server takes 20 a second; {NO_LIMIT}"
    began = time.monotonic()
    assert browser.post(f"/do/{visitor.token}", json=many[:10]).status_code == 204
    assert time.monotonic() - began > 0.1
    goes_on(visitor)


def test_requests_for_news_are_held_up_too(visitor: Browser):
    browser = served(visitor.page)
    began = time.monotonic()
    codes = {browser.get(f"/news/{visitor.token}?page=page").status_code for _ in range(45)}
    assert codes == {200}
    assert time.monotonic() - began > 0.3
    visitor.desk.focus.seat.client.polls = Bucket(rate=0.1, burst=1.0)
    browser.get(f"/news/{visitor.token}?page=page")
    assert browser.get(f"/news/{visitor.token}?page=page").status_code == 429


def test_uploads_have_a_budget_of_bytes(visitor: Browser):
    bringing = visitor.page.bringing(visitor.token)
    assert bringing is not None
    stl = b"solid\n" + b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 1\nendloop\nendfacet\n"
    visitor.desk.focus.seat.client.uploads = Bucket(rate=10.0, burst=1.5 * len(stl))
    bringing.receive("scene.file", "a.stl", stl + b"endsolid\n")
    with pytest.raises(ValueError, match="visitors of this server may upload 60 MB a minute; try again in") as e:
        bringing.receive("scene.file", "a.stl", stl + b"endsolid\n")
    assert str(e.value).endswith(NO_LIMIT)


def test_a_page_may_wait_for_a_few_files_at_a_time():
    visitors = Visitors(*public(small()))
    visitors.must_have_room(VISITOR_FILES - 1)
    with pytest.raises(ValueError, match=f"{VISITOR_FILES} files are being made already") as e:
        visitors.must_have_room(VISITOR_FILES)
    assert str(e.value).endswith(NO_LIMIT)
    Visitors(small()).must_have_room(100)


def test_files_asked_for_together_stay_within_the_limit(visitor: Browser):
    turns = visitor.page.shelves._turns
    turns.take()  # nothing is made meanwhile
    visitor.page.act(visitor.token, [{"do": "make", "kind": "toml"}] * 10)
    told(visitor, "files are being made already")
    assert len(visitor.desk.shelf.list()) == VISITOR_FILES
    turns.pass_on()
    assert visitor.desk.shelf.join(20)


def test_visitors_have_fewer_lanes(visitor: Browser):
    for _ in range(MAX_LANES):
        visitor.act(do="branch")
        ready(visitor)
    assert len(visitor.desk.lanes) == VISITOR_LANES
    told(visitor, f"{VISITOR_LANES} lanes already: close one first, as many as visitors of this server may have")


def test_one_address_has_half_of_the_seats_at_most(manager: Manager):
    page = Page(manager, Views(), Visitors(*public(small())), "mixture")
    answered = [page.arrive(f"page {n}", address="10.0.0.7") for n in range(6)]
    assert [bool(answer["token"]) for answer in answered] == [True] * 4 + [False] * 2
    assert "8 seats, and may have 4: close a lane or a page first" in answered[-1]["panels"]["status"]
    assert page.arrive("another", address="10.0.0.8")["token"]
    unknown = [page.arrive(f"unknown {n}") for n in range(3)]
    assert all(answer["token"] for answer in unknown), "who cannot be told apart is not counted together"


def test_seats_of_one_address_include_lanes(manager: Manager):
    manager.open(small(), Client("10.0.0.7", 2))
    second = manager.open(small(), Client("10.0.0.7", 2))
    with pytest.raises(RuntimeError, match="your address has 2"):
        manager.branch(second.id)
    manager.close(second.id)
    manager.open(small(), Client("10.0.0.7", 2))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.5", None, "203.0.113.5"),
        ("203.0.113.5", "198.51.100.1", "203.0.113.5"),  # a visitor may say anything
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # what the proxy added comes last
        ("127.0.0.1", None, ""),
        ("127.0.0.1", "unknown", ""),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.5", None, "203.0.113.5"),
        ("::1", None, ""),
        ("testclient", None, ""),
    ],
)
def test_an_address_is_the_peers_or_what_a_trusted_proxy_says(peer: str, forwarded: str | None, address: str):
    class Seen:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            class Request:
                client = type("Client", (), {"host": scope["client"][0]})

            found.append(answers.client_address(Request()))

    found: list[str] = []
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    scope = {"type": "http", "client": (peer, 1234), "headers": headers, "scheme": "http"}
    coroutine = ProxyHeadersMiddleware(Seen())(scope, None, None)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert found == [address]


def test_a_start_of_many_pages_at_once_gives_one_address_no_more(manager: Manager):
    page = Page(manager, Views(), Visitors(*public(small())), "mixture")
    answered: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: answered.append(page.arrive(f"page {n}", address="10.0.0.7")))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(bool(answer["token"]) for answer in answered) == 4
    assert manager.count() == 4


def test_a_run_that_started_resumes_after_a_refusal(visitor: Browser):
    session = visitor.desk.focus.seat.session
    session.send(Resume())
    for value in (16, 9, 12):
        visitor.act(do="knob", knob="camera.views", value=value)
    until(lambda: session.state.step > 5)
    assert session.running


def test_moving_the_start_of_points_counts_as_an_act(manager: Manager):
    page = Page(manager, Views(), Visitors(*public(preset("playground"))), "playground")
    browser = Browser(page, "page")
    ready(browser)
    lane = browser.desk.focus
    lane.seat.client.messages = Bucket(rate=0.1, burst=1.0)
    app = FastAPI()
    app.include_router(flat_view.routes(flat_view.FlatViews(manager)))
    client = TestClient(app)
    codes = [client.post(f"/flat/{lane.seat.id}/start", json={"x": 0.5, "y": 0.5}).status_code for _ in range(2)]
    assert codes == [200, 429]
