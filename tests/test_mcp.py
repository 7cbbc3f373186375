"""The API's endpoints as tools for agents, called by MCP's own client where it is installed."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import served

import app as program
from sdlab.live.clients import Client as Visitor
from sdlab.live.manager import Manager
from sdlab.settings import preset
from sdlab.ui import agents
from sdlab.ui.guard import MOST_SAID
from sdlab.ui.server import build
from sdlab.ui.visitors import LOCKED

SMALL = {"scene.n_init": 60, "scene.max_gaussians": 90, "camera.views": 1}
ACCEPTED = {"Accept": "application/json, text/event-stream"}


# ---- the switch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "package", "said"),
    [
        (["--mcp"], True, "--mcp: it makes tools of the endpoints of --api, so add --api"),
        (["--mcp", "--api"], False, "pip install -r extras/mcp.txt"),
    ],
)
def test_what_it_needs_is_said_in_one_line(
    arguments: list[str],
    package: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(agents.importlib.util, "find_spec", lambda name: SimpleNamespace() if package else None)
    monkeypatch.setattr(program, "build", lambda *_: pytest.fail("it was built"))
    assert program.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


# ---- the tools -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=2)
    yield manager
    manager.shutdown()


@pytest.fixture(scope="module")
def url(manager: Manager) -> Iterator[str]:
    """A public server with tools for agents."""
    pytest.importorskip("mcp", reason="pip install -r extras/mcp.txt")
    settings = preset("mixture").patch_all(list(SMALL.items()))
    app = build(manager, settings, "mixture", locked=LOCKED, api=True, mcp=True)
    with served(app) as address:
        yield address


def with_agent(url: str, work: Callable[[Any], Any], **headers: str) -> Any:
    """Return what `work` returns, which is given a connected client."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def connected() -> Any:
        async with (
            httpx.AsyncClient(headers=headers, timeout=60) as http,
            streamable_http_client(url + agents.ADDRESS, http_client=http) as (reads, writes, _),
            ClientSession(reads, writes) as client,
        ):
            await client.initialize()
            return await work(client)

    return asyncio.run(asyncio.wait_for(connected(), 60))


async def answer(client: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    told = await client.call_tool(tool, arguments)
    assert not told.isError, told.content
    return json.loads(told.content[0].text)


async def refusal(client: Any, tool: str, **arguments: Any) -> str:
    told = await client.call_tool(tool, arguments)
    assert told.isError
    return told.content[0].text


def test_tools_have_the_apis_schema(url: str):
    described = httpx.get(f"{url}/gradio_api/info").json()["named_endpoints"]

    async def listed(client: Any) -> Any:
        return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in with_agent(url, listed)}
    assert {f"/{name}" for name in tools} == described.keys()
    for name, tool in tools.items():
        assert tool.inputSchema["properties"].keys() == {
            parameter["parameter_name"] for parameter in described[f"/{name}"]["parameters"]
        }
        assert tool.description.split()[0] in described[f"/{name}"]["description"]
    assert tools["status"].inputSchema["required"] == ["run"]
    assert {tool["name"] for tool in httpx.get(f"{url}{agents.ADDRESS}schema").json()} == tools.keys()


def test_an_agent_starts_changes_looks_and_exports(url: str):
    async def work(client: Any) -> tuple[Any, ...]:
        began = await answer(client, "start", preset="mixture", prompt="a red bear", changes={**SMALL, "steps": 4000})
        run = began["run"]
        while (await answer(client, "status", run=run))["step"] < 3:
            await asyncio.sleep(0.05)
        changed = await answer(client, "set", run=run, changes={"losses.sds.cfg": 3.5})
        seen = (await client.call_tool("frame", {"run": run})).content
        made = await answer(client, "export", run=run, format="ply")
        refused = await refusal(client, "set", run=run, changes={"losses.sds.cfg": -3})
        file = httpx.get(f"{url}/{made['url']}").content
        ended = await answer(client, "stop", run=run)
        return changed, seen, file, refused, ended, await refusal(client, "status", run=run)

    changed, seen, file, refused, ended, gone = with_agent(url, work)
    assert changed["applied"]["losses.sds.cfg"]["value"] == 3.5
    assert [content.type for content in seen] == ["text", "image"]
    assert seen[1].mimeType == "image/jpeg"
    assert base64.b64decode(seen[1].data).startswith(b"\xff\xd8")
    assert json.loads(seen[0].text).keys() == {"step"}
    assert file.startswith(b"ply\n")
    assert "losses.sds.cfg" in refused
    assert ended is True
    assert "there is no such run" in gone


def test_a_visitors_limits_hold_and_are_those_of_the_callers_address(
    url: str, manager: Manager, monkeypatch: pytest.MonkeyPatch
):
    seats: list[Visitor] = []
    opened = manager.open
    monkeypatch.setattr(manager, "open", lambda wanted, client: (seats.append(client), opened(wanted, client))[1])

    async def work(client: Any) -> list[str]:
        small = {"preset": "mixture", "changes": SMALL, "paused": True}
        run = (await answer(client, "start", **small))["run"]
        said = [
            await refusal(client, "start", **small),  # one of two seats is an address's share
            await refusal(client, "start", preset="/etc/passwd"),
            await refusal(client, "set", run=run, changes={"scene.file": "/etc/passwd"}),
        ]
        await answer(client, "stop", run=run)
        return said

    seat, file, locked = with_agent(url, work, **{"X-Forwarded-For": "203.0.113.7"})
    assert {client.address for client in seats} == {"203.0.113.7"}, "as the proxy on this machine tells"
    assert "seat" in seat
    assert "this server offers" in file
    assert "visitors" in locked


def test_an_error_of_the_server_is_not_told(url: str, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr("sdlab.ui.api.Api._find", fails)
    said = with_agent(url, lambda client: refusal(client, "status", run="x"))
    assert "secret" not in said
    assert "failed" in said


def test_the_guard_holds_for_tools(url: str):
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert httpx.post(url + agents.ADDRESS, json=ask, headers=ACCEPTED).status_code == 200
    for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 421)):
        assert httpx.post(url + agents.ADDRESS, json=ask, headers=ACCEPTED | headers).status_code == status
    long = {**ask, "params": {"cursor": "x" * MOST_SAID}}
    assert httpx.post(url + agents.ADDRESS, json=long, headers=ACCEPTED).status_code == 413
    assert httpx.get(url + agents.ADDRESS, headers=ACCEPTED).status_code == 405
    for path in ("sse", "messages/", "http/"):
        assert httpx.get(f"{url}{agents.ADDRESS}{path}").status_code == 404
