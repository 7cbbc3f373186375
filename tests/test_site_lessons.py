"""Lessons in the static edition: what is recorded of a lesson's run, its pages, and the whole site in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from waiting import until

from sdlab import cli, lessons
from sdlab.lessons import library
from sdlab.lessons.check import check
from sdlab.lessons.parsing import read
from sdlab.own_loss import EXERCISE
from sdlab.settings import losses, preset
from sdlab.site import build
from sdlab.site.lesson_recording import PROBED, PageRecording, record_lesson
from sdlab.site.playground import link_to
from sdlab.site.recording import Recording, record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMALL = [("scene.n_init", 60), ("prior.size", 16), ("prior.images", 32), ("prior.null_images", 32), ("camera.views", 1)]
LESSON = f"""
title = "Points <i>walk</i>"
number = 1
minutes = 1
summary = "For *tests*."
preset = "playground"

[settings]
scene.n = 20
steps = 300

[[pages]]
title = "A hill"
text = "They start at **one** place. <script>alert(1)</script>"
do = [{{reset = true}}, {{run = true}}]
wait = {{reading = "found", at_least = 0.9, steps = 5, limit = 100}}

[[pages]]
title = "Another"
text = "The prompt changes."
formula = "eps_c - noise"
source = "DreamFusion, Equation 3"
highlight = ["charts"]
ask = {{question = "Where to?", choices = ["Nowhere", "*East*"], answer = 1, because = "the score does."}}
do = [{{mark = "before"}}, {{set = {{prompt.text = "east", losses.sds.cfg = 2.0}}}}, {{run = true}}]
wait = {{reading = "distance", above = "before", by = 0.2, steps = 15}}
look = "All of them."
answer = "It is the prior's score."

[[pages]]
title = "The noise"
text = "At every t."
highlight = ["lens"]
do = [{{pause = true}}]

[[pages]]
title = "Your own"
text = "Write it."
student = [{{write = '''{EXERCISE}'''}}]
wait = {{reading = "compare.cosine.own.sds", at_least = -1}}

[[pages]]
title = "An object"
text = "From four sides."
highlight = ["lens"]
ask = {{question = "What?", choices = ["A bear", "A car"], answer = 0, because = "the prompt says so."}}
do = [{{preset = "gallery"}}, {{set = {{{", ".join(f"{path} = {value}" for path, value in SMALL)}}}}}, {{advance = 30}}]
wait = {{steps = 30}}
"""


@pytest.fixture(scope="module")
def lesson() -> lessons.Lesson:
    return read(LESSON, "short")


@pytest.fixture(scope="module")
def found(lesson: lessons.Lesson) -> list[PageRecording]:
    return record_lesson(lesson, 8)


@pytest.fixture(scope="module")
def run() -> Recording:
    return record(preset("gallery").patch_all([*SMALL, ("steps", 12)]), {}, frames=4)


@pytest.fixture(scope="module")
def site(
    lesson: lessons.Lesson, found: list[PageRecording], run: Recording, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("site") / "out"
    plan = build.Plan("sds", "gallery", "SDS", "A summary.", preset("gallery").patch("steps", 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "record", lambda *_: run)
        patch.setattr(build, "record_lesson", lambda *_: found)
        assert build.build(out, [plan], [lesson], "python -m sdlab site", True) < 1_000_000
        yield out


def told_in(page: Path) -> dict[str, Any]:
    """What the player of a page is told."""
    return json.loads(page.read_text().split('<script id="run" type="application/json">')[1].split("</script>")[0])


# ---- recording ---------------------------------------------------------------------------------------------


def test_a_lesson_is_recorded_as_the_check_walks_it(lesson: lessons.Lesson, found: list[PageRecording]) -> None:
    rows = {row.page: row.outcomes[0] for row in check(lesson, 1, torch.device("cpu"))}
    for n, row in rows.items():
        assert found[n].outcome._replace(seconds=0) == row._replace(seconds=0), n
    assert not any(one.missed or one.outcome.problem for one in found)
    assert "own" not in losses()


def test_pages_keep_a_few_pictures_of_the_whole_way(found: list[PageRecording]) -> None:
    for one in found:
        steps = [shot.step for shot in one.run.shots]
        assert steps == sorted(set(steps))
        assert len(steps) <= 8
    assert found[0].run.shots[0].step == 0
    assert found[0].run.shots[-1].step == found[0].outcome.steps
    assert found[1].run.shots[0].step == found[0].run.shots[-1].step
    assert len(found[2].run.shots) == 1


def test_readings_end_with_what_was_reached(found: list[PageRecording]) -> None:
    for one in found[:2]:
        reached = one.outcome.reached
        assert reached is not None
        assert one.readings[-1] == (one.run.shots[-1].step, reached.value)
    assert found[1].marked is not None
    assert found[1].readings[-1][1] >= found[1].marked + 0.2


def test_the_lens_shows_steps_of_the_page_alone(found: list[PageRecording]) -> None:
    for one in (found[0], found[1]):  # their first picture is from before a step
        assert [len(shot.lens.pictures) > 0 for shot in one.run.shots] == [False] + [True] * (len(one.run.shots) - 1)
    assert all(len(shot.lens.pictures) for shot in found[4].run.shots)


def test_a_page_without_steps_shows_the_lens_at_many_t(found: list[PageRecording]) -> None:
    assert [one.t for one in found[2].probed] == list(PROBED)
    assert all(len(one.pictures) for one in found[2].probed)
    assert not any(one.probed for one in found if one is not found[2])


# ---- pages -------------------------------------------------------------------------------------------------


def test_texts_are_escaped(site: Path) -> None:
    text = (site / "lesson-short-1.html").read_text()
    assert "<strong>one</strong> place. &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Lesson 1: Points &lt;i&gt;walk&lt;/i&gt;" in text
    assert "<i>walk" not in (site / "index.html").read_text()
    assert "def gradient(self, x, model, aux):" in (site / "lesson-short-4.html").read_text()


def test_a_page_has_all_that_the_lesson_says(site: Path, found: list[PageRecording]) -> None:
    text = (site / "lesson-short-2.html").read_text()
    for part in ("The prompt changes.", "DreamFusion, Equation 3", "Where to?", "<em>East</em>", "the score does."):
        assert part in text
    for part in (
        "All of them.",
        "It is the prior&#x27;s score.",
        "prompt = east; CFG of SDS = 2.",
        "is at least 0.2 above the value marked “before”, after at least 15 steps",
    ):
        assert part in text
    reached = found[1].outcome.reached
    assert reached is not None
    assert f"Reached at step {reached.step}: " in text
    (curve, *_) = told_in(site / "lesson-short-2.html")["curves"]
    assert curve["title"] == "distance"
    assert curve["bounds"] == [pytest.approx(found[1].outcome.threshold, rel=1e-3)]


def test_pages_are_linked_in_a_row(site: Path) -> None:
    assert re.findall(r'rel="(prev|next)" href="([^"]+)"', (site / "lesson-short-2.html").read_text()) == [
        ("prev", "lesson-short-1.html"),
        ("next", "lesson-short-3.html"),
    ]
    for page in site.glob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)["#]', page.read_text()):
            assert (site / link).is_file(), (page.name, link)


def test_a_page_of_points_opens_the_playground() -> None:
    s = preset("playground").patch_all([("active", "jsd"), ("losses.jsd.cfg", 7.5), ("prompt.text", "south & east")])
    told = parse_qs(urlsplit(link_to(s)).fragment)
    assert told == {"loss": ["jsd"], "prompt": ["south & east"], "jsd.cfg": ["7.5"]}
    assert link_to(preset("playground").patch("active", "vdm")) == ""
    assert link_to(preset("playground").patch("optim.decay", 0.5)) == ""
    assert link_to(preset("gallery-2d")) == ""


# ---- in a browser ------------------------------------------------------------------------------------------


def opened(browser: Browser, width: int, errors: list[str]) -> Page:
    """A page without a network that notes what goes wrong in it."""
    page = browser.new_context(
        offline=True, viewport={"width": width, "height": 800}, reduced_motion="reduce"
    ).new_page()
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    return page


def walk(page: Page, site: Path) -> None:
    """Open every page of a site, answer its question and scrub to its end; nothing may be wider than the window."""
    for file in sorted(site.glob("*.html")):
        page.goto(file.as_uri())
        if page.locator("#ask").count():
            assert page.locator("#after").is_hidden(), file.name
            page.locator("[data-choice='0']").click()
        if page.locator("[data-scrubber]").count() and page.locator("[data-scrubber]").is_visible():
            page.locator("[data-scrub]").fill(page.locator("[data-scrub]").get_attribute("max") or "")
            assert page.locator("[data-step]").inner_text() == told_in(file)["labels"][-1]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), file.name


@pytest.mark.browser
def test_every_page_lives_without_server_and_network(site: Path, browser: Browser) -> None:
    errors: list[str] = []
    for width in (1280, 400):
        walk(opened(browser, width, errors), site)
    assert not errors


@pytest.mark.browser
def test_a_question_is_answered_before_the_effect_is_shown(site: Path, browser: Browser) -> None:
    errors: list[str] = []
    page = opened(browser, 400, errors)
    page.goto((site / "lesson-short-2.html").as_uri())
    assert page.locator("[data-because]").is_hidden()
    page.keyboard.press("Tab")  # the pages, then the choices
    page.locator("[data-choice='0']").press("Enter")
    assert page.locator("[role=status]").inner_text() == "It is “East”: the score does."
    assert page.locator("#after").is_visible()
    assert page.locator("[aria-pressed=true]").inner_text() == "Nowhere"
    page.locator("[data-choice='1']").click(force=True)  # the first answer counts
    assert page.locator("[aria-pressed=true]").inner_text() == "Nowhere"
    page.goto((site / "lesson-short-5.html").as_uri())
    page.get_by_role("button", name="Skip, and show it").click()
    assert page.evaluate("document.activeElement.dataset.choice") == "0"
    assert not errors


@pytest.mark.browser
def test_the_playground_takes_settings_from_its_address(site: Path, browser: Browser) -> None:
    errors: list[str] = []
    page = opened(browser, 1280, errors)
    page.goto(
        (site / "plane.html").as_uri() + "#loss=jsd&prompt=south+east&jsd.cfg=7.5&count=30&x=1&rate=99&sds.cfg=no"
    )
    assert page.locator("#loss").input_value() == "jsd"
    assert page.locator("#prompt").input_value() == "south east"
    assert page.locator("#rate").input_value() == "0.03"
    page.click("#go")
    # not Playwright's own way of waiting, which the page's policy forbids
    until(lambda: page.evaluate("document.getElementById('said').textContent.match(/^step ([0-9]+)/)[1] > 8"))
    assert "of 30 points" in page.locator("#said").inner_text()
    page.click("#reset")
    assert not errors


@pytest.mark.browser
def test_a_page_without_its_pictures_says_so(site: Path, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "sds.html").write_text((site / "sds.html").read_text())
    page = opened(browser, 1280, [])
    page.goto((tmp_path / "sds.html").as_uri())
    page.get_by_text("The pictures of this page are missing: sds-lens.webp has to lie beside it.").wait_for()


@pytest.mark.nightly
@pytest.mark.browser
@pytest.mark.timeout(3600)
def test_the_whole_site_is_built_and_every_page_lives(tmp_path: Path, browser: Browser) -> None:
    assert cli.main(["site", "--quick", "--out", str(tmp_path)]) == 0
    pages = {file.stem for file in tmp_path.glob("*.html")}
    assert pages >= {*losses(), *build.MORE, *(f"lesson-{name}-1" for name in library.names())}
    assert build.size_of(tmp_path) < build.LIMIT
    errors: list[str] = []
    for width in (1280, 400):
        walk(opened(browser, width, errors), tmp_path)
    assert not errors
