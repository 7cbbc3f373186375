"""The API: what its clients can do, and what is out of their reach."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from serving import served
from waiting import until

from sdlab.live.manager import Manager
from sdlab.settings import losses, preset
from sdlab.ui.api import _number
from sdlab.ui.guard import MOST_SAID
from sdlab.ui.server import build
from sdlab.ui.visitors import LOCKED

EXAMPLE = Path(__file__).parents[1] / "examples/06_api.py"
SMALL = {"scene.n_init": 60, "scene.max_gaussians": 90, "camera.views": 1}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A public server with the API, and one seat too few for three runs."""
    manager = Manager(max_sessions=3)
    settings = preset("mixture").patch_all(list(SMALL.items()))
    app = build(manager, settings, "mixture", locked=LOCKED, api=True)
    with served(app) as address:
        yield f"{address}/"
    manager.shutdown()


@pytest.fixture(scope="module")
def lab(url: str) -> Client:
    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def run(lab: Client) -> Iterator[str]:
    token = lab.predict(preset="mixture", prompt="a red bear", changes={**SMALL, "steps": 4000}, api_name="/start")[
        "run"
    ]
    until(lambda: lab.predict(token, api_name="/status")["step"] > 2, 30)
    yield token
    lab.predict(token, api_name="/stop")


def refusal(lab: Client, *said: Any, **named: Any) -> str:
    with pytest.raises(AppError) as caught:
        lab.predict(*said, **named)
    return str(caught.value)


def test_example_starts_changes_looks_and_exports(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"](url, name="mixture", steps=30, out=tmp_path)
    said = capsys.readouterr().out
    assert ": active = sbp" in said
    (ply,) = tmp_path.glob("*.ply")
    assert ply.read_bytes().startswith(b"ply\n")
    assert (tmp_path / "seen.jpg").read_bytes().startswith(b"\xff\xd8")


def test_endpoints_are_typed_and_described(lab: Client) -> None:
    told = lab.view_api(return_format="dict", print_info=False)["named_endpoints"]
    names = ("presets", "start", "status", "set", "frame", "compare", "export", "stop")
    assert told.keys() == {f"/{name}" for name in names}
    for one in told.values():
        assert one["description"]
        assert all(parameter["python_type"]["type"] for parameter in one["parameters"])
    assert [p["parameter_name"] for p in told["/start"]["parameters"]] == ["preset", "prompt", "changes", "paused"]


def test_changes_are_applied_or_refused_with_a_reason(lab: Client, run: str) -> None:
    told = lab.predict(run, changes={"losses.sds.cfg": 3.5, "active": "vsd"}, api_name="/set")
    assert {path: one["value"] for path, one in told["applied"].items()} == {"losses.sds.cfg": 3.5, "active": "vsd"}
    assert told["loss"] == "vsd"
    assert "losses.sds.cfg" in refusal(lab, run, changes={"losses.sds.cfg": -3}, api_name="/set")
    assert "nonsense" in refusal(lab, run, changes={"losses.nonsense.cfg": 3}, api_name="/set")
    assert lab.predict(run, paused=True, api_name="/set")["refused"] == {}
    until(lambda: lab.predict(run, api_name="/status")["phase"] == "paused")


def test_visitors_limits_hold(lab: Client, run: str) -> None:
    assert "visitors" in refusal(
        lab, run, changes={"prior.precision": "fp64", "scene.file": "/etc/passwd"}, api_name="/set"
    )
    too_many = lab.predict(run, changes={"camera.views": 16}, api_name="/set")
    assert "camera.views" in str(too_many["refused"])
    assert "this server offers" in refusal(lab, preset="/etc/passwd", api_name="/start")
    assert "visitors" in refusal(lab, preset="mixture", changes={"camera.views": 16}, api_name="/start")


def test_all_losses_are_compared(lab: Client, run: str) -> None:
    told = lab.predict(run, api_name="/compare")
    assert told["losses"].keys() == losses().keys()
    assert told["losses"]["sds"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert told["losses"]["sds"]["rms"] > 0


def test_a_run_is_out_of_reach_without_its_token(lab: Client, run: str, url: str) -> None:
    for token in ("", run[:-1], run.swapcase(), "*", "../" + run):
        for endpoint in ("/status", "/frame", "/compare", "/export", "/stop", "/set"):
            assert "there is no such run" in refusal(lab, token, api_name=endpoint)
    view = lab.predict(run, api_name="/status")["view"].split("/")[1]
    assert "there is no such run" in refusal(lab, view, api_name="/stop")  # who may look may not steer
    assert httpx.get(f"{url}results/{run}/x").status_code == 404


def test_seats_are_limited_and_given_back(lab: Client) -> None:
    runs = [lab.predict(preset="mixture", changes=SMALL, paused=True, api_name="/start")["run"] for _ in range(3)]
    assert "seats of this server are taken" in refusal(lab, preset="mixture", changes=SMALL, api_name="/start")
    for one in runs:
        assert lab.predict(one, api_name="/stop") is True
    assert "there is no such run" in refusal(lab, runs[0], api_name="/status")
    again = lab.predict(preset="mixture", changes=SMALL, paused=True, api_name="/start")
    assert lab.predict(again["run"], api_name="/stop") is True


def test_foreign_pages_and_long_calls_are_refused(url: str) -> None:
    call = f"{url}gradio_api/call/presets"
    assert httpx.post(call, json={"data": []}).status_code == 200
    assert httpx.post(call, json={"data": []}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.post(call, content=b"[" * (MOST_SAID + 1)).status_code == 413
    assert httpx.post(call, content=iter([b"{}"])).status_code == 413  # chunked: of any length
    assert httpx.post(f"{url}gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert httpx.get(f"{url}gradio_api/file=/etc/passwd").status_code == 404


def test_tools_for_agents_have_a_switch_of_their_own(url: str) -> None:
    assert httpx.get(f"{url}gradio_api/info").status_code == 200
    assert httpx.post(f"{url}gradio_api/mcp/", json={}).status_code == 404
    assert httpx.get(f"{url}gradio_api/mcp/schema").status_code == 404


def test_without_the_switch_there_is_no_api() -> None:
    from fastapi.testclient import TestClient

    manager = Manager(max_sessions=1)
    with TestClient(build(manager, preset("mixture"), "mixture"), "http://127.0.0.1:7860") as client:
        for path in ("/config", "/gradio_api/info"):
            assert client.get(path).status_code == 404
        assert client.post("/gradio_api/call/start", json={"data": []}).status_code == 404


def test_numbers_are_fit_for_json() -> None:
    assert [_number(x) for x in (1.23456789, float("nan"), float("inf"), None)] == [1.23457, None, None, None]
