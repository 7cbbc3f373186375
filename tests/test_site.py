"""The static edition: what is recorded, and that its pages live without server and network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlab.live.messages import Patch
from sdlab.settings import losses, preset
from sdlab.site import build
from sdlab.site.recording import Recording, moments, record, sheet, thinned

CHROMIUM = Path("/usr/bin/chromium")


def plan(name: str = "sds") -> build.Plan:
    """A short run of a small scene."""
    small = [("steps", 12), ("scene.n_init", 60), ("prior.size", 16), ("prior.images", 32), ("prior.null_images", 32)]
    settings = preset("gallery").patch_all([*small, ("camera.views", 1)])
    change = {6: Patch.one("prompt.text", "a blue bear")}
    return build.Plan(name, "gallery", "SDS </script>", "A <b>summary</b>.", settings, change)


@pytest.fixture(scope="module")
def found() -> Recording:
    one = plan()
    return record(one.settings, one.changes, frames=4)


@pytest.fixture(scope="module")
def site(found: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    made = build.Site(out, "python -m sdlab site", True)
    made.plane()
    made.run(plan(), found, None, None)
    made.index([plan()])
    return out


def test_every_loss_is_recorded_and_more() -> None:
    names = [one.name for one in build.plans()]
    assert names[: len(losses())] == list(losses())
    assert set(names[len(losses()) :]) == set(build.MORE)


def test_unknown_run_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"--runs nonsense: there are .*sds.*janus"):
        build.plans(names=["nonsense"])


def test_short_runs_keep_their_change_in_the_middle() -> None:
    whole, short = (build.plans(quick, ["dds"])[0] for quick in (False, True))
    ((at, patch),) = short.changes.items()
    assert at / short.settings.steps == pytest.approx(next(iter(whole.changes)) / whole.settings.steps, abs=0.02)
    assert dict(patch.changes)["schedule.start"] == at


def test_moments_are_denser_at_first() -> None:
    steps = moments(500, 36)
    assert steps[0] == 1
    assert steps[-1] == 500
    assert len(steps) == 36
    assert steps[10] < 100


def test_recording_holds_what_the_run_showed(found: Recording) -> None:
    assert found.steps == moments(12, 4)
    assert len(found.views) == len(found.lens) == len(found.judged) == 4
    assert [step for step, _ in found.curves["grad_rms"]] == list(range(1, 13))
    assert all({"saturation", "fronts", "judge"} <= read.keys() for read in found.judged)


def test_sheet_puts_frames_in_rows() -> None:
    frames = [np.full((4, 6, 3), n, np.uint8) for n in range(5)]
    whole, cell, columns = sheet(frames, 3)
    assert (whole.shape, cell, columns) == ((8, 18, 3), (6, 4), 3)
    assert whole[5, 7, 0] == 4
    assert whole[5, 13, 0] == 255


def test_curves_are_thinned_to_means() -> None:
    points = thinned([(n, float(n)) for n in range(1000)] + [(1000, float("nan"))])
    assert len(points) == 160
    assert points[0] == [3.0, 3.0]


def test_files_of_the_site(site: Path) -> None:
    names = {file.name for file in site.iterdir()}
    assert names == {
        *("index.html", "plane.html", "README.md", "sds.html", "sds.webp", "sds-views.webp", "sds-lens.webp"),
    }
    text = (site / "sds.html").read_text()
    assert "SDS &lt;/script&gt;" in text
    assert "A &lt;b&gt;summary" in text
    told = json.loads(text.split('<script id="run" type="application/json">')[1].split("</script>")[0])
    lens = Image.open(site / "sds-lens.webp")
    assert lens.size == (told["lens"]["cells"] * told["lens"]["size"], len(told["steps"]) * told["lens"]["size"])
    assert "--at 6 prompt.text=&#34;a blue bear&#34;" in text


def test_front_matter_is_what_a_static_space_takes(site: Path) -> None:
    from huggingface_hub import SpaceCardData, metadata_load

    told = metadata_load(str(site / "README.md"))
    assert told is not None
    card = SpaceCardData(**told)
    assert (card.sdk, card.app_file) == ("static", "index.html")
    assert (site / str(card.app_file)).is_file()
    assert len(told["short_description"]) <= 60


def test_a_site_that_is_too_large_says_so(found: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LIMIT", 1000)
    monkeypatch.setattr(build, "record", lambda *_: found)
    with pytest.raises(ValueError, match="record fewer --runs"):
        build.build(tmp_path / "out", [plan()], "python -m sdlab site", True)


@pytest.mark.skipif(not CHROMIUM.is_file() or shutil.which("chromium") is None, reason="needs the system's Chromium")
def test_pages_live_without_server_and_network(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 400, "height": 800}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        for name in ("index", "plane", "sds"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
        page.locator("[data-scrub]").fill("3")
        assert page.locator("[data-step]").inner_text() == f"step {moments(12, 4)[3]}"
        page.goto((site / "plane.html").as_uri())
        page.select_option("#loss", "jsd")
        page.fill("#prompt", "south east")
        page.click("#go")
        page.wait_for_function("document.getElementById('said').textContent.match(/^step ([0-9]+)/)[1] > 8")
        page.click("#reset")
        assert page.locator("#said").inner_text().startswith("step ")
        browser.close()
        assert not errors
