"""Files that people bring: what is taken, what is refused and why, and where it is kept."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trimesh
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sdlab import clouds
from sdlab.ui import uploads
from sdlab.ui.uploads import UPLOADS, Uploads, most_bytes, routes

BOX = trimesh.creation.box().export(file_type="glb")
POINTS = (
    b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 "
)


def picture(size: tuple[int, int] = (20, 10)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


class Site:
    """A server with one bench, `own`, for visitors or for its owner."""

    def __init__(self, for_visitors: bool = False) -> None:
        self.uploads = Uploads()
        self.brought: list[Path] = []
        app = FastAPI()
        app.include_router(routes(lambda token: self.uploads if token == "own" else None, self.bring, for_visitors))
        self.client = TestClient(app)

    def bring(self, token: str, knob: str, name: str, raw: bytes) -> None:
        self.brought.append(self.uploads.keep(knob, name, raw))

    def post(self, raw, knob: str = "scene.file", token: str = "own", name: str = "box.glb", **headers: str):
        answer = self.client.post(f"/uploads/{token}/{knob}", content=raw, params={"name": name}, headers=headers)
        return answer.status_code, answer.text


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.uploads.close()


def test_a_mesh_and_a_picture_are_kept_as_they_came(site: Site):
    assert site.post(BOX) == (204, "")
    assert site.post(picture(), "scene.picture", name="red.png") == (204, "")
    assert [p.read_bytes() for p in site.brought] == [BOX, picture()]
    assert [p.name for p in site.brought] == ["1-box.glb", "2-red.png"]
    site.uploads.close()
    assert not any(p.exists() for p in site.brought)
    assert not site.brought[0].parent.exists()


def test_a_name_is_no_path(site: Site):
    for name in ("../../../etc/passwd", "/abs/x.glb", "a\\b\x00c.glb", "<b>.glb", "", "é" * 500):
        assert site.post(BOX, name=name)[0] == 204
    assert len({p.parent for p in site.brought}) == 1
    assert all(p.resolve().parent == p.parent.resolve() and len(p.name) < 80 for p in site.brought)


def test_the_oldest_files_go_first(site: Site):
    for _ in range(uploads.MOST_KEPT + 2):
        assert site.post(BOX)[0] == 204
    assert [p.exists() for p in site.brought] == [False] * 2 + [True] * uploads.MOST_KEPT


@pytest.mark.parametrize(
    ("knob", "raw", "said"),
    [
        ("scene.file", b"PK\x03\x04 and so on", r"'x\.glb' is an archive \(ZIP\)"),
        ("scene.file", BOX[:300], r"'x\.glb' is damaged or incomplete"),
        ("scene.file", POINTS + b"nan\n", r"'x\.glb' holds numbers that are not finite"),
        ("scene.file", b"v 0 0 0\nv 1 0 0\n", r"'x\.glb' is a mesh without faces"),
        ("scene.file", b"", r"'x\.glb' is of no format that is known: GLB, OBJ, STL and PLY"),
        ("scene.file", picture(), r"'x\.glb' is of no format that is known"),
        ("scene.picture", BOX, r"'x\.glb' is not a picture: PNG, JPEG and WebP"),
        ("scene.picture", picture()[:-30], r"'x\.glb' cannot be read"),
        ("scene.picture", picture((20_000, 5_001)), r"'x\.glb' has 20000 x 5001 pixels; allowed are 100,000,000"),
    ],
)
def test_what_is_of_no_use_is_refused_with_a_reason(site: Site, knob: str, raw: bytes, said: str):
    status, text = site.post(raw, knob, name="x.glb")
    assert status == 422
    assert text.startswith("'x.glb' ")
    assert re.search(said, text), text
    assert not site.brought
    assert site.post(BOX)[0] == 204, "the next one is taken"


def test_only_the_page_itself_may_bring_and_only_for_knobs_that_take_a_file(site: Site):
    assert site.post(BOX, token="other") == (404, "this session has ended")
    assert site.post(BOX, Origin="https://elsewhere.example")[0] == 403
    assert site.post(BOX, Origin="http://testserver")[0] == 204
    status, text = site.post(BOX, knob="prior.path")
    assert (status, text) == (404, "'prior.path' takes no file: allowed are scene.file, scene.picture")
    assert site.client.get("/uploads/own/scene.file").status_code == 405


def test_files_are_capped_more_tightly_for_visitors(monkeypatch):
    monkeypatch.setattr(uploads, "FOR_VISITORS", 1000)
    site = Site(for_visitors=True)
    assert site.post(b"v" * 1001) == (413, "'box.glb' is too large: 1,000 bytes are allowed")
    assert site.post(iter([b"v" * 600] * 2))[0] == 413, "also where nobody says how much will come"
    assert site.post(POINTS + b"0\n")[0] == 204
    assert most_bytes("scene.file", for_visitors=False) == UPLOADS["scene.file"].most == clouds.MAX_BYTES
    site.uploads.close()


def test_one_file_at_a_time(site: Site, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()

    def slow(raw: bytes, given: str) -> None:
        reading.set()
        go_on.wait(30)

    monkeypatch.setitem(UPLOADS, "scene.file", UPLOADS["scene.file"]._replace(check=slow))
    answers: list[tuple[int, str]] = []
    first = threading.Thread(target=lambda: answers.append(site.post(BOX)))
    first.start()
    assert reading.wait(30)
    assert site.post(BOX) == (409, "another file is on its way: wait for it")
    go_on.set()
    first.join(30)
    assert answers == [(204, "")]


def test_a_session_that_ends_meanwhile_keeps_nothing(site: Site):
    site.uploads.close()
    assert site.post(BOX) == (422, "the session of this file has ended")


def test_what_is_checked_is_what_the_run_will_read(site: Site):
    site.post(BOX)
    cloud = clouds.read_cloud(site.brought[0], 50, np.random.default_rng(0), "scene.file")
    assert cloud[0].shape == (50, 3)
    assert np.abs(cloud[0]).max() == pytest.approx(0.5, abs=0.01)
