"""The static edition: what is recorded, and that its pages live without server and network."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlab.lessons.readings import Reader
from sdlab.live import critic
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.settings import losses, preset
from sdlab.site import build
from sdlab.site.recording import Recording, judged_of, moments, record, sheet, thinned


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
    made = build.Site(out, "python -m sdlab site", True, has_lessons=False)
    made.readme()
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
    assert [shot.step for shot in found.shots] == moments(12, 4)
    assert all(len(shot.lens.pictures) for shot in found.shots)
    assert [step for step, _ in found.curves["grad_rms"]] == list(range(1, 13))
    assert all({"saturation", "fronts", "judge"} <= shot.judged.keys() for shot in found.shots)


def test_fronts_of_small_images_are_read_by_their_own_prior() -> None:
    few = [("scene.n_init", 100), ("steps", 2)]
    session = Session(preset("gallery-esd-views").patch_all(few))
    session.run(until=2)
    read, around = judged_of(session, Reader(session)), session.around.get()
    assert around is not None
    own = critic.metrics_of_sides(around.images, session)
    assert {name: read[name] for name in own} == own
    assert critic.metrics(around.images, "a pink frog", True)["iv"] != own["iv"]  # by the judge


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
    assert [row["labels"][0] for row in told["lens"]["rows"]] == ["render"] * len(told["steps"])


def test_front_matter_is_what_a_static_space_takes(site: Path) -> None:
    from huggingface_hub import SpaceCardData, metadata_load

    told = metadata_load(str(site / "README.md"))
    assert told is not None
    card = SpaceCardData(**told)
    assert (card.sdk, card.app_file) == ("static", "index.html")
    assert (site / str(card.app_file)).is_file()
    assert len(told["short_description"]) <= 60


def test_a_site_that_is_too_large_gets_smaller_pictures(
    found: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "record", lambda *_: found)
    size = build.build(tmp_path / "out", [plan()], [], "python -m sdlab site", True)
    monkeypatch.setattr(build, "LIMIT", size - 1000)
    assert build.fit(tmp_path / "out") <= size - 1000
    assert "pictures are compressed to quality 60" in capsys.readouterr().out
    monkeypatch.setattr(build, "LIMIT", 1000)
    with pytest.raises(ValueError, match="a site has at most 0 MB: choose fewer --runs or --lessons"):
        build.fit(tmp_path / "out")


def test_a_site_replaces_a_site_and_nothing_else(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    build.build(own, [], [], "python -m sdlab site", True)
    (own / "sds.html").write_text("from before")
    build.build(own, [], [], "python -m sdlab site", True)
    assert {file.name for file in own.iterdir()} == {"index.html", "plane.html", "README.md"}
    other.mkdir()
    (other / "thesis.html").write_text("not ours")
    with pytest.raises(ValueError, match=r"it has files that are not of a site, such as thesis\.html"):
        build.build(other, [], [], "python -m sdlab site", True)
    assert (other / "thesis.html").exists()


def test_nothing_runs_but_what_a_page_brings(site: Path) -> None:
    for name, scripts in (("index", 0), ("plane", 1), ("sds", 1)):
        text = (site / f"{name}.html").read_text()
        allowed = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
        assert "default-src 'none'" in allowed
        assert allowed.count("'sha256-") == scripts + 1
        for body in re.findall(r"<(?:style|script(?: type=\"module\")?)>(.*?)</(?:style|script)>", text, re.S):
            assert base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in allowed
