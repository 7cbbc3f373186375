"""The benchmark of the page: tests of its measurements and report, not of speed."""

import asyncio
import json
import sys

import numpy as np
import pytest
import torch

from sdlab import cli
from sdlab.bench import first_sight, four_lanes, page_cost, visitor
from sdlab.bench import page as bench
from sdlab.bench.served import Sample, growth
from sdlab.live.messages import Failed

TINY = ["--preset", "mixture", "--set", "scene.n_init=60", "--set", "scene.max_gaussians=60", "--set", "camera.views=1"]


@pytest.mark.browser
@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("with_browser")
def test_everything_is_measured_in_one_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "QUICK", bench.Size(visits=1, rounds=1, turn=3.0, lanes=2.0))
    monkeypatch.setattr(visitor, "WINDOW", {"width": 480, "height": 360})  # many pixels take long to draw in software
    assert cli.main(["bench", "page", "--quick", *TINY, "--seconds", "4", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "page.json").read_text())

    (sight,) = result["first_sight"]
    assert 0 < sight["ready"] < sight["change"]
    assert 0 < sight["loss_published"] <= sight["loss_seen"]

    cost = {row["way"]: row for row in result["cost"]}
    assert set(cost) == set(page_cost.WAYS)
    assert cost["headless"]["times_headless"] == cost["headless"]["session_times_headless"] == 1
    for row in cost.values():
        assert row["steps_per_second"] > 0
        assert row["session_ms"] > 0
    assert cost["lens"]["browser_cores"] > cost["headless"]["browser_cores"], "without a page it has nothing to do"

    lanes = result["lanes"]
    assert set(lanes["steps"]) == set(four_lanes.LOSSES)
    assert min(lanes["steps"].values()) > 0
    handlers = {row["handler"]: row for row in lanes["handlers"]}
    assert {"arrive", "poll", "start", "branch", "tab", "focus", "knob"} <= set(handlers)
    assert handlers["knob"]["calls"] == 3, "three losses were chosen"
    assert handlers["all"]["calls"] == sum(row["calls"] for row in lanes["handlers"][2:])
    assert abs(handlers["all, as the browser saw them"]["calls"] - handlers["all"]["calls"]) <= 5
    assert handlers["all"]["p50"] <= handlers["all"]["p95"] <= handlers["all"]["max"]
    assert lanes["memory"]["first_mb"] > 10

    assert cost["lens elsewhere"]["browser_cores"] < cost["lens"]["browser_cores"]

    assert len(result["requirements"]) == 2 + 4 + 4
    printed, bar = capsys.readouterr()
    assert "left" in bar
    assert "x headless" in printed


def test_without_playwright_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    assert cli.main(["bench", "page", "--quick", *TINY, "--out", str(tmp_path)]) == 2
    assert "pip install playwright" in capsys.readouterr().err
    assert not (tmp_path / "page.json").exists()


def test_memory_is_read_after_the_first_minute():
    growing_at_first = [Sample(5.0 * i, min(100.0 + 10 * i, 220.0), 3.0) for i in range(121)]
    found = growth(growing_at_first, 1 / 3)
    assert (found["from_second"], found["first_mb"], found["last_mb"]) == (60.0, 220.0, 220.0)
    assert found["mb_per_minute"] == pytest.approx(0, abs=1e-6)
    leaking = [Sample(5.0 * i, 100.0 + 0.5 * i, 0.25 * i) for i in range(121)]
    found = growth(leaking, 1 / 3)
    assert found["mb_per_minute"] == pytest.approx(3.0), "memory of the histories is not a leak"
    assert (found["first_history_mb"], found["last_history_mb"]) == (3.0, 30.0)


def test_what_is_required_is_judged():
    sights = [{"change": 20.0, "loss_seen": 3.0}, {"change": 9.0, "loss_seen": 61.0}]
    lanes = {
        "deviation_percent": 9.9,
        "handlers": [four_lanes._latency("all", [10.0] * 90 + [500.0] * 10), four_lanes._latency("browser", [])],
        "memory": {"mb_per_minute": 2.5},
    }
    cost = [{"title": "lens", "times_headless": 0.91, "required": 0.9}, {"title": "no page", "required": 0.0}]
    found = bench.requirements({"first_sight": sights, "cost": cost, "lanes": lanes})
    assert [row["met"] for row in found] == [False, True, False, True, True, False, False, False]
    assert bench.requirements({}) == [], "ended early: nothing was measured"


def test_times_are_differences_for_each_step():
    before = page_cost._Spent(10, 100.0, 5.0, 2.0, {1: 4.0, 2: 1.0})
    after = page_cost._Spent(20, 102.0, 6.0, 2.5, {1: 4.5, 3: 0.5})  # one process ended, another started
    found = after.since(before)
    assert found == {"rate": 5.0, "session_ms": 100.0, "others_ms": 50.0, "browser_ms": 100.0, "browser_cores": 0.5}
    with pytest.raises(RuntimeError, match=r"no step was done in 2.0 s"):
        after._replace(step=10).since(before)


def test_the_view_is_looked_at_in_its_middle():
    picture = np.zeros((40, 80, 3))
    picture[10:30, 20:60] = 1
    assert first_sight._middle(picture, 2).shape == (20, 40, 3)
    assert first_sight._middle(picture, 2).min() == 1

    shots = iter([np.zeros((80, 80, 3))] * 2 + [np.random.default_rng(0).uniform(0, 255, (80, 80, 3))] * 2)
    seen = first_sight._Screenshots(lambda: next(shots))
    assert not seen.stands_still(), "nothing is visible"
    assert not seen.stands_still(), "something has just appeared"
    assert seen.stands_still()


def test_calls_are_timed_by_handler():
    kept = []

    async def page(scope, receive, send):
        await receive()
        await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await send({"type": "http.response.body", "body": b"}"})

    async def receive():
        return {"type": "http.request", "body": b'[{"do": "step"}]'}

    async def send(message):
        pass

    app = visitor.Calls(page, kept)
    for path in (visitor.DESK, visitor.NEWS + "token", visitor.DO + "token", "/here/x"):
        asyncio.run(app({"type": "http", "path": path}, receive, send))
    assert [name for name, _ in kept] == ["arrive", "poll", "step"]
    assert all(50 <= ms < 5000 for _, ms in kept)


def test_a_session_that_fails_ends_the_waiting(quick):
    manager = visitor.MeteredManager(torch.device("cpu"), 1)
    seat = manager.open(quick)
    meter = manager.meters[seat.id]
    visitor.until(lambda: seat.session.status.phase == "ready", "a session", meter.require_health)
    meter._stepped(1)
    assert (meter.steps, meter.now[0]) == (1, 1)
    meter._listen(Failed(1, "the network is broken"))
    with pytest.raises(RuntimeError, match="at step 1: the network is broken"):
        visitor.until(lambda: False, "nothing", meter.require_health)
    manager.close_all()
    assert manager.count() == 0
    manager.shutdown()
