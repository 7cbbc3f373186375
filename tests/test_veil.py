"""Visitors see the names of the server's files, never its folders."""

import functools
import html
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from waiting import until

from sdlab.live.manager import Manager
from sdlab.settings import Settings, preset, to_toml
from sdlab.ui.server import build
from sdlab.ui.veil import Veil, name_of
from sdlab.ui.visitors import Visitors, public

BOX = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 3 4\nf 1 2 4\n"
FOLDERS = [tempfile.gettempdir(), str(Path.home()), str(Path.cwd()), sys.prefix]


TEXTS = (
    "prior.path '{}/net.bin': no such file",
    "<b>{}/net.bin</b>",
    '{{"path": "{}/net.bin"}}',
    "[Errno 2] {}/net.bin: and {}/net.bin",
    "({}/net.bin)",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("folder", [*FOLDERS, *(f"{folder}/a/b-c" for folder in FOLDERS), "/srv/our own & models"])
def test_of_a_path_the_name_is_left(folder: str, text: str):
    veil = Veil(["/srv/our own & models/net.bin"])
    plain, told = text.format(folder, folder), text.format("net.bin", "net.bin").replace("net.bin/net.bin", "net.bin")
    assert veil(plain) == told
    assert veil(html.escape(plain)) == html.escape(told)
    assert veil({"a": [plain, 3, None, (plain,)]}) == {"a": [told, 3, None, [told]]}


def test_other_text_stays():
    veil = Veil(["/srv/net"])
    for text in ("", "a red bear", "https://example.com/root/x", "and/or", "4/5", "~/x", "/srv", "C:\\x", "srv/net"):
        assert veil(text) == text
    assert name_of("C:\\models\\net") == name_of("/models/net/") == "net"


def test_settings_without_folders_come_back_to_the_same_server(tmp_path: Path):
    own = preset("gallery").patch("prior.path", str(tmp_path / "figures"))
    visitors = Visitors(*public(own))
    saved = visitors.shared(visitors.settings)
    assert str(tmp_path) not in to_toml(saved)
    assert saved.prior.path == "figures"
    assert visitors.read(to_toml(saved), "mine.toml") == visitors.settings
    assert Visitors(own).shared(own) == own, "nothing is hidden from the owner"
    assert Visitors(own).told(str(tmp_path)) == str(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[TestClient, Settings]]:
    monkeypatch.setattr("sdlab.settings.preset", functools.cache(preset))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    small = [("scene.n_init", 60), ("scene.max_gaussians", 90), ("camera.resolution", 16), ("camera.views", 1)]
    settings, locked = public(preset("mixture").patch_all(small))
    manager = Manager(max_sessions=1)
    with TestClient(build(manager, settings, None, locked), "http://127.0.0.1") as client:
        yield client, settings
    manager.shutdown()


def test_no_panel_no_answer_and_no_file_holds_a_folder_of_the_server(server: tuple[TestClient, Settings]):
    client, _ = server
    desk = client.post("/desk", json={}).json()
    heard: dict[str, list[str]] = {}

    def news() -> str:
        told = client.get(f"/news/{desk['token']}?page={desk['page']}").json().get("panels", {})
        for panel, value in told.items():
            heard.setdefault(panel, []).append(json.dumps(value))
        return heard.get("status", [""])[-1]

    def act(**what: object) -> None:
        assert client.post(f"/do/{desk['token']}", json=what).status_code == 204

    until(lambda: 'data-phase=\\"ready' in news())
    assert client.post(f"/uploads/{desk['token']}/scene.file?name=box.obj", content=BOX).status_code == 204
    until(lambda: "1-box.obj" in heard["form"][-1] or not news())
    act(do="step")
    until(lambda: 'data-step=\\"1\\"' in news())
    for file in Path(tempfile.gettempdir()).glob("sdlab-uploads-*/1-box.obj"):
        file.unlink()
    act(do="reset")
    until(lambda: "box.obj" in news(), say=lambda: heard["status"][-1])
    act(do="tab", tab="results")
    act(do="make", kind="toml")
    time.sleep(0.2)
    until(lambda: "results/" in (news() and heard["results"][-1]), say=lambda: heard["results"][-1])
    address = next(item["address"] for item in json.loads(heard["results"][-1])["items"])
    answers = [
        client.get("/").text,
        client.get(f"/{address}").text,
        *(text for told in heard.values() for text in told),
    ]
    assert {"form", "status", "timeline", "results"} <= heard.keys()
    for text in answers:
        assert not [folder for folder in FOLDERS if f"{folder}/" in text]
