"""The first minute without a browser: which examples a server offers, what opening one does, what is served for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from test_handlers import Browser, Views, ready
from waiting import until

from sdlab import examples
from sdlab.examples import FOLDER, OPENING, OPENING_END, Example
from sdlab.experiments.examples import HEIGHT, WIDTH, picture_of
from sdlab.live.manager import Manager
from sdlab.live.messages import Advance
from sdlab.live.session import Session
from sdlab.live.state import Run
from sdlab.settings import Settings, default_settings, preset, preset_names
from sdlab.ui import welcome
from sdlab.ui.page import Page
from sdlab.ui.server import modules
from sdlab.ui.visitors import Visitors, public

PRESETS = {name: preset(name) for name in preset_names()}
ALL = examples.load(PRESETS)


@pytest.fixture(scope="module", autouse=True)
def presets_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.settings.preset", PRESETS.__getitem__)
        yield


def own() -> Settings:
    return default_settings("mixture").patch_all([("scene.n_init", 20), ("camera.resolution", 16)])


# ---- which there are -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def visitors() -> Visitors:
    """Those of a public server as it is by default."""
    return Visitors(*public(preset("gallery")))


def test_visitors_are_offered_what_they_may_run(visitors: Visitors):
    assert 10 <= len(ALL) <= 12
    assert visitors.examples.keys() == ALL.keys()
    large = ALL["bear"].settings.patch_all([("scene.n_init", 30_000), ("scene.max_gaussians", 90_000)])
    assert visitors._as_admitted(ALL["bear"]._replace(settings=large)) is None


@pytest.mark.parametrize("name", ALL)
def test_each_example_is_admitted_by_the_limits_of_visitors(name: str, visitors: Visitors):
    assert visitors.budgets is not None
    for settings in visitors.examples[name].lanes:
        visitors.budgets(settings, Run.of(visitors.settings))
        assert visitors.admitted(settings, visitors.settings) == settings


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "settings"), [(name, lane) for name, e in ALL.items() for lane in e.lanes])
def test_each_example_runs(name: str, settings: Settings):
    session = Session(settings)
    session.run(until=2)
    assert session.state.step == 2, name


def test_a_mistake_in_the_list_is_named(tmp_path):
    for text, said in (
        ('[bear]\npreset = "gallery"\ntitle = "A bear"\n', "example bear: 'text' is missing"),
        ('[bear]\npreset = "gallery"\ntitle = ""\ntext = ""\nlane = 2\n', "example bear: unknown key lane"),
        ('[bear]\npreset = "gallery"\ntitle = ""\ntext = ""\nbeside = { step = 1 }\n', "example bear: "),
    ):
        (tmp_path / "examples.toml").write_text(text)
        with pytest.raises(ValueError, match=said):
            examples.load({"gallery": preset("gallery")}, tmp_path)


# ---- their pictures --------------------------------------------------------------------------------------------------


def test_every_example_has_a_small_picture_and_no_other_is_kept():
    kept = {file.name: file.stat().st_size for file in FOLDER.glob("example-*.webp")}
    assert kept.keys() == {example.thumbnail for example in ALL.values()}
    assert sum(kept.values()) < 300_000
    assert all(Image.open(FOLDER / name).size == (WIDTH, HEIGHT) for name in kept)


def test_the_recording_is_small_and_loops_and_has_a_still():
    film, still = (Image.open(FOLDER / f"{name}.webp") for name in (OPENING, OPENING_END))
    assert (FOLDER / f"{OPENING}.webp").stat().st_size < 500_000
    assert film.n_frames > 30  # type: ignore[attr-defined]
    assert (film.info["loop"], film.mode, still.mode, film.size) == (0, "RGBA", "RGBA", still.size)


def test_a_thumbnail_of_two_lanes_shows_both(tmp_path):
    black, white = (own().patch_all([("steps", 1), ("scene.n_init", n)]) for n in (1, 200))
    file = picture_of(Example("pair", "", "", "mixture", black, white), tmp_path)
    shown = np.asarray(Image.open(file).convert("L"))
    assert shown.shape == (HEIGHT, WIDTH)
    left, right = shown[:, : WIDTH // 2 - 1], shown[:, WIDTH // 2 + 1 :]
    assert left.mean() > right.mean() + 5, "a single Gaussian covers less of the white than a ball of them"


def test_what_the_first_minute_needs_is_served_and_nothing_else():
    app = FastAPI()
    app.include_router(modules())
    client = TestClient(app)
    for name in ("opening.webp", "example-bear.webp", "driver.js", "driver.css"):
        answer = client.get(f"/page/{name}")
        assert (answer.status_code, answer.content) == (200, welcome.FILES[name].read_bytes())
        assert answer.headers["content-type"].split(";")[0] in welcome.TYPES.values()
    for name in ("examples.toml", "driver.LICENSE", "..%2Fpage.css"):
        assert client.get(f"/page/{name}").status_code == 404


# ---- opening one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=3)
    yield manager
    manager.shutdown()


@pytest.fixture
def page(manager: Manager) -> Page:
    page = Page(manager, Views(), Visitors(own()))
    pair = Example("pair", "", "", "mixture", own().patch("seed", 1), own().patch_all([("seed", 1), ("active", "csd")]))
    page.visitors.examples = {
        "pair": pair,
        "one": Example("one", "", "", "mixture", own().patch("seed", 2)),
        "plane": Example("plane", "", "", "playground", preset("playground")),
    }
    return page


def test_an_example_starts_over_with_its_settings_and_a_second_lane(page: Page):
    browser = Browser(page, "page")
    ready(browser)
    browser.desk.focus.send(Advance(300))
    until(lambda: browser.desk.focus.step == 300)
    seat = browser.desk.focus.seat
    browser.act(do="example", name="pair")
    first, second = browser.desk.lanes
    assert (first.seat, browser.desk.focus) == (seat, first), "the run keeps its seat and the focus"
    until(lambda: 0 < first.step < 300)  # it has begun again
    until(lambda: second.step > 0)
    assert (first.settings, second.settings) == tuple(page.visitors.examples["pair"].lanes)
    assert "next reset" not in browser.panels()["status"]


def test_the_next_example_closes_the_second_lane_and_keeps_a_branch(page: Page):
    browser = Browser(page, "page")
    ready(browser)
    browser.act(do="example", name="pair")
    beside = browser.desk.lanes[1]
    browser.act(do="focus", lane=beside.seat.id)
    browser.act(do="example", name="one")
    assert [lane.settings.active for lane in browser.desk.lanes] == ["sds"]
    until(lambda: browser.desk.focus.settings.seed == 2 and browser.desk.focus.step > 0)
    browser.act(do="branch")
    branch = browser.desk.focus
    browser.act(do="example", name="plane")
    assert len(browser.desk.lanes) == 2, "a branch is the visitor's own"
    assert branch not in browser.desk.lanes, "it had the focus, and points need a new run"
    until(lambda: browser.desk.focus.step > 0)
    assert (browser.desk.focus.settings, browser.desk.focus.preset) == (preset("playground"), "playground")


def test_a_link_that_locks_presets_locks_examples(page: Page):
    token = page.arrive("page", query="?lock=preset&seed=5", fresh=True)["token"]
    desk = page._desks[token]
    page.act(token, {"do": "example", "name": "pair"})
    assert (len(desk.lanes), desk.focus.settings.seed) == (1, 5)
    token = page.arrive("page", query="?lock=seed&seed=5", fresh=True)["token"]
    page.act(token, {"do": "example", "name": "pair"})
    desk = page._desks[token]
    until(lambda: len(desk.lanes) == 2 and min(lane.step for lane in desk.lanes) > 0)
    assert [(lane.settings.seed, lane.settings.active) for lane in desk.lanes] == [(5, "sds"), (5, "csd")]
