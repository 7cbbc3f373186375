"""Files that people bring: what is taken, what is refused and why, and where it is kept."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import trimesh
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sdlab import folders
from sdlab.knobs import knobs_of
from sdlab.parsing import Limits
from sdlab.priors.sources.folder import FolderSource
from sdlab.settings import default_settings, priors, scenes
from sdlab.starts import clouds
from sdlab.ui import uploads, visitors
from sdlab.ui.guard import Guard
from sdlab.ui.uploads import UPLOADS, Bringing, Uploads, routes
from sdlab.ui.visitors import max_bytes

BOX = trimesh.creation.box().export(file_type="glb")
POINTS = (
    b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 "
)


def picture(size: tuple[int, int] = (20, 10)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def packed(content: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)
    return file.getvalue()


class Site:
    """A server with one desk, `own`, for visitors or for its owner; `in_use` are files that its lanes name."""

    def __init__(self, for_visitors: bool = False) -> None:
        self.uploads = Uploads()
        self.brought: list[Path] = []
        self.in_use: list[Path] = []
        app = FastAPI()
        app.add_middleware(Guard)
        own = Bringing(self.uploads, self.bring)
        app.include_router(
            routes(lambda token: own if token == "own" else None, lambda knob: max_bytes(knob, for_visitors))
        )
        self.client = TestClient(app, "http://127.0.0.1")

    def bring(self, knob: str, name: str, raw: bytes) -> None:
        self.brought.append(self.uploads.keep(knob, name, raw, self.in_use))

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


def test_a_zip_of_pictures_or_a_mesh_is_kept_for_a_gallery(site: Site):
    pets = packed({"cat/1.png": picture(), "cat/1.txt": b"red"})
    assert site.post(pets, "prior.path", name="pets.zip") == (204, "")
    assert site.post(BOX, "prior.path") == (204, "")
    assert [p.read_bytes() for p in site.brought] == [pets, BOX]
    assert [UPLOADS["prior.path"].use(p.read_bytes()) for p in site.brought] == ["folder", "mesh"]
    assert FolderSource(site.brought[0]).available("") == 1, "what is checked is what the prior will read"


def test_every_upload_is_for_a_knob_of_its_kind_and_a_switch_that_it_has():
    for path, upload in UPLOADS.items():
        group = path.partition(".")[0]
        member = {"scene": scenes(), "prior": priors()}[group][upload.kind]
        knobs = {k.path: k for k in knobs_of(member(), group)}
        assert path in knobs
        assert set(upload.uses) < set(knobs[upload.switch].choices or ())
    assert UPLOADS["prior.path"].fits(default_settings("gallery"))
    assert not UPLOADS["prior.path"].fits(default_settings("diffusers")), "its path is a model's"


def test_a_name_is_no_path(site: Site):
    for name in ("../../../etc/passwd", "/abs/x.glb", "a\\b\x00c.glb", "<b>.glb", "", "é" * 500):
        assert site.post(BOX, name=name)[0] == 204
    assert len({p.parent for p in site.brought}) == 1
    assert all(p.resolve().parent == p.parent.resolve() and len(p.name) < 80 for p in site.brought)


def test_the_oldest_files_go_first_that_nobody_needs(site: Site):
    for _ in range(uploads.MOST_KEPT):
        assert site.post(BOX)[0] == 204
    site.in_use.append(site.brought[1])
    assert [site.post(BOX)[0] for _ in range(2)] == [204, 204]
    gone = [n for n, p in enumerate(site.brought) if not p.exists()]
    assert gone == [0, 2]


@pytest.mark.parametrize(
    ("knob", "raw", "said"),
    [
        ("scene.file", b"PK\x03\x04 and so on", r"'x\.glb' is an archive \(ZIP\)"),
        ("scene.file", BOX[:300], r"'x\.glb' is damaged or incomplete"),
        ("scene.file", POINTS + b"nan\n", r"'x\.glb' contains NaN or infinity"),
        ("scene.file", POINTS.replace(b"vertex 1", b"vertex 0")[:-4], r"'x\.glb' holds no points"),
        ("scene.file", b"v 0 0 0\nv 1 0 0\n", r"'x\.glb' is a mesh without faces"),
        ("scene.file", b"", r"'x\.glb' is empty: GLB, OBJ, STL and PLY"),
        ("scene.file", picture(), r"'x\.glb' has an unknown format"),
        ("scene.picture", BOX, r"'x\.glb' is not an image: use PNG, JPEG or WebP"),
        ("scene.picture", picture()[:-30], r"'x\.glb' cannot be read"),
        ("prior.path", picture(), r"'x\.glb' is a single picture: upload a ZIP file of pictures"),
        ("prior.path", b"v 0 0 0\nv 1 0 0\n", r"'x\.glb' is a mesh without faces"),
        ("prior.path", b"", r"'x\.glb' is empty: .*; pictures come as a ZIP file$"),
        ("prior.path", POINTS + b"0\n", r"'x\.glb' has points or Gaussians but no faces"),
        ("prior.path", b"PK\x03\x04 and so on", r"'x\.glb' is a damaged ZIP file"),
        ("prior.path", b"7z\xbc\xaf and so on", r"'x\.glb' is an archive \(7z\)"),
    ],
)
def test_what_is_of_no_use_is_refused_with_a_reason(site: Site, knob: str, raw: bytes, said: str):
    status, text = site.post(raw, knob, name="x.glb")
    assert status == 422
    assert text.startswith("'x.glb' ")
    assert re.search(said, text), text
    assert not site.brought
    assert site.post(BOX)[0] == 204, "the next one is taken"


def test_a_picture_of_too_many_pixels_is_not_unpacked(site: Site):
    raw = bytearray(picture())
    raw[16:24] = struct.pack(">II", 12_000, 10_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    said = "'big.png' has 12000 x 10000 pixels; the limit is 100,000,000"
    assert site.post(bytes(raw), "scene.picture", name="big.png") == (422, said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "'x.zip' contains no pictures: give a folder, or a ZIP file, of PNG, JPEG or WebP pictures"),
        ({"box.glb": BOX}, "'x.zip' contains no pictures: give a folder, or a ZIP file, of PNG, JPEG or WebP pictures"),
        ({"a.png": picture()[:40]}, "'x.zip' contains no picture that can be read: a.png (damaged)"),
    ],
)
def test_a_zip_without_a_picture_is_refused(site: Site, content: dict[str, bytes], said: str):
    assert site.post(packed(content), "prior.path", name="x.zip") == (422, said)


def test_a_zip_beyond_the_limits_is_not_unpacked(site: Site):
    raw = bytearray(packed({f"{i}.png": picture() for i in range(2)}))
    for entry in re.finditer(rb"PK\x01\x02", bytes(raw)):
        raw[entry.start() + 24 : entry.start() + 28] = struct.pack("<I", 3_000_000_000)
    said = "'x.zip' has 6,000,000,000 bytes when unpacked; the limit is 4,000,000,000"
    assert site.post(bytes(raw), "prior.path", name="x.zip") == (422, said)
    many = b"PK\x05\x06" + folders.ENTRY * (folders.MAX_FILES + 1)
    assert site.post(many, "prior.path", name="x.zip") == (422, "'x.zip' has more than 200,000 files: leave some out")


def glb(change) -> bytes:
    """A textured box whose description `change` has changed."""
    mesh = trimesh.creation.box()
    texture = Image.new("RGB", (200, 100), (200, 30, 30))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture)
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    raw = mesh.export(file_type="glb")
    length = int.from_bytes(raw[12:16], "little")
    tree, rest = json.loads(raw[20 : 20 + length]), raw[20 + length :]
    change(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = b"glTF" + (2).to_bytes(4, "little") + (20 + len(text) + len(rest)).to_bytes(4, "little")
    return head + len(text).to_bytes(4, "little") + b"JSON" + text + rest


def many_nodes(tree: dict) -> None:
    mesh = next(node["mesh"] for node in tree["nodes"] if "mesh" in node)
    first = len(tree["nodes"])
    tree["nodes"] += [{"mesh": mesh, "name": f"copy{n}"} for n in range(100_000)]
    tree["scenes"][0]["nodes"] += range(first, len(tree["nodes"]))


def many_textures(tree: dict) -> None:
    part = next(mesh for mesh in tree["meshes"])["primitives"][0]
    tree["meshes"][0]["primitives"] = [part] * 24_999


def endless(tree: dict) -> None:
    tree["nodes"] = [{"children": [1], "name": "a"}, {"children": [0], "name": "b"}]
    tree["scenes"] = [{"nodes": [0]}]


def vast(tree: dict) -> None:
    tree["accessors"][0] = {"componentType": 5126, "type": "VEC3", "count": 10**12}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (many_nodes, r"has 100,00\d nodes; the limit is 50,000: simplify it"),
        (many_textures, r"has textures of 500,000,000 pixels; the limit is 400,000,000"),
        (endless, "is damaged: its nodes do not form a tree"),
        (vast, r"has [\d,]{17,} numbers in its meshes; the limit is 150,000,000"),
        (lambda tree: tree["nodes"].append({"mesh": 99}), "is damaged or incomplete"),
        (lambda tree: tree.update(accessors=3), "is damaged or incomplete"),
    ],
)
def test_a_small_file_that_would_unpack_into_a_large_one_is_refused(site: Site, change, said: str):
    assert site.post(glb(lambda tree: None))[0] == 204
    status, text = site.post(glb(change))
    assert status == 422
    assert re.match(rf"'box\.glb' {said}", text), text


def test_only_the_page_itself_may_bring_and_only_for_knobs_that_take_a_file(site: Site):
    assert site.post(BOX, token="other") == (404, "this session has ended")
    assert site.post(BOX, Origin="https://elsewhere.example")[0] == 403
    assert site.post(BOX, Origin="http://127.0.0.1")[0] == 204
    status, text = site.post(BOX, knob="prior.engine")
    assert (status, text) == (404, "'prior.engine' takes no file: allowed are scene.file, scene.picture, prior.path")
    assert site.client.get("/uploads/own/scene.file").status_code == 405


MARKUP = '<img src=x onerror="alert(1)">&lt;.glb'


def full(path: Path, raw: bytes) -> int:
    raise OSError(f"{path} cannot be written")


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (403, {"Origin": "https://<b>elsewhere.example"}),
        (404, {"token": "<b>other"}),
        (404, {"knob": "<script>alert(1)<%2Fscript>"}),
        (413, {"raw": bytes(1001)}),
        (422, {"raw": b"PK\x03\x04 and so on"}),
        (422, {"raw": b"<svg onload=alert(1)>", "knob": "scene.picture"}),
        (422, {"raw": b"glTF" + bytes(8) + b"\x10\0\0\0JSON" + b'{"<script>": "\\ud800"'}),
        (422, {"raw": packed({"<script>.png": b"no", "/etc/passwd": b"no"}), "knob": "prior.path"}),
        (507, {"raw": POINTS + b"0\n"}),
    ],
)
def test_refusals_are_plain_text_without_markup_or_paths_of_the_server(monkeypatch, status: int, asked: dict):
    monkeypatch.setattr(visitors, "MAX_UPLOAD", 1000)
    monkeypatch.setattr(Path, "write_bytes", full)
    site = Site(for_visitors=True)
    options = {"knob": "scene.file", "token": "own", "raw": BOX[:900], "Origin": "", **asked}
    answer = site.client.post(
        f"/uploads/{options['token']}/{options['knob']}",
        content=options["raw"],
        params={"name": MARKUP},
        headers={"Origin": options["Origin"]} if options["Origin"] else {},
    )
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert not re.search(r"[<>&\n]|\.\./|/tmp|site-packages|sdlab-uploads", answer.text), answer.text
    assert answer.text
    site.uploads.close()


def test_files_are_capped_more_tightly_for_visitors(monkeypatch):
    monkeypatch.setattr(visitors, "MAX_UPLOAD", 1000)
    site = Site(for_visitors=True)
    assert site.post(b"v" * 1001) == (413, "'box.glb' is too large: 1,000 bytes are allowed")
    assert site.post(iter([b"v" * 600] * 2))[0] == 413, "also where nobody says how much will come"
    assert site.post(POINTS + b"0\n")[0] == 204
    assert max_bytes("scene.file", locked=False) == UPLOADS["scene.file"].most == clouds.MAX_BYTES
    site.uploads.close()


def test_one_file_at_a_time_from_a_desk(site: Site, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()

    def slow(raw: bytes, given: str, limits: Limits) -> None:
        reading.set()
        go_on.wait(30)

    monkeypatch.setitem(UPLOADS, "scene.file", UPLOADS["scene.file"]._replace(check=slow))
    answers: list[tuple[int, str]] = []
    first = threading.Thread(target=lambda: answers.append(site.post(BOX)))
    first.start()
    assert reading.wait(30)
    assert site.post(BOX) == (409, "another upload is in progress: wait for it")
    go_on.set()
    first.join(30)
    assert answers == [(204, "")]


def test_a_file_does_not_wait_for_another_desks_file(site: Site):
    """One endless file and one small one, both for real."""
    site.post(BOX)
    endless = b"v 0 0 0\nv 1 0 0\nv 0 1 0\n" + b"".join(b"usemtl m%d\nf 1 2 3\n" % i for i in range(19_000))
    other = Site()
    answers: list[tuple[int, str]] = []
    first = threading.Thread(target=lambda: answers.append(site.post(endless, name="x.obj")))
    first.start()
    until = time.monotonic() + 30
    while not site.uploads.arriving.locked() and time.monotonic() < until:
        time.sleep(0.01)
    assert other.post(BOX)[0] == 204
    assert not answers, "the other file is still being read"
    first.join(60)
    assert [status for status, _ in answers] == [422]
    assert answers[0][1] == "'x.obj' takes more than 1.8 s to read, which is the limit: make it smaller or simpler"
    other.uploads.close()


def test_a_session_that_ends_meanwhile_keeps_nothing(site: Site):
    site.uploads.close()
    assert site.post(BOX) == (422, "the session of this file has ended")


def test_what_is_checked_is_what_the_run_will_read(site: Site):
    site.post(BOX)
    cloud = clouds.read_cloud(site.brought[0], 50, np.random.default_rng(0), "scene.file").found
    assert cloud[0].shape == (50, 3)
    assert np.abs(cloud[0]).max() == pytest.approx(0.5, abs=0.01)
