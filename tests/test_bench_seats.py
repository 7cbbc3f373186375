"""Seats measured: shares, memory, and what an intruder may count as a success."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdlab.bench import intruder
from sdlab.bench import seats as bench
from sdlab.bench.intruder import Attempt, Seat, attempts, succeeded
from sdlab.bench.served import Sample, deviation, growth
from sdlab.cli import main

OWN, OTHER = Seat("own-desk-token", "own-page-name", "own-view-token"), Seat("its-desk", "its-page", "its-view")


def answering(status: int, text: str) -> Any:
    return SimpleNamespace(evaluate=lambda script, argument: [status, text])


@pytest.mark.parametrize(
    ("path", "status", "text", "broken"),
    [
        ("news/guess", 200, '{"token": "", "page": "x", "panels": {"status": "Session ended"}}', False),
        ("news/guess", 200, "{}", False),
        ("news/guess", 200, '{"token": "own-desk-token"}', False),
        ("news/guess", 200, '{"token": "another", "panels": {}}', True),
        ("news/guess", 200, '{"token": "", "panels": {"stage": ["its-view"]}}', True),
        ("do/guess", 204, "", False),
        ("do/guess", 200, "done", True),
        ("results/guess/1", 404, "there is no such file", False),
        ("viewport/guess", 101, "a message", True),
        ("viewport/guess", 403, "", False),
        ("gradio_api/info", 200, "{'named_endpoints': 1}", True),
        ("gradio_api/info", 0, "", False),
    ],
)
def test_what_counts_as_a_success(path: str, status: int, text: str, broken: bool):
    why = succeeded(answering(status, text), OWN, {"seat 2": OTHER}, Attempt("it", "GET", path))
    assert bool(why) == broken, why


def test_an_intruder_never_uses_the_secret_itself():
    tried = attempts(OWN, OTHER)
    assert len({attempt.what for attempt in tried}) == len(tried) > 25
    for attempt in tried:
        said = f"{attempt.path} {json.dumps(attempt.body)}".replace(f"..%2F{OTHER.desk}", "")
        assert OTHER.page not in said
        assert OTHER.desk not in said
    assert {attempt.method for attempt in tried} == {"GET", "POST", "WS"}
    assert intruder._next("abc") == "abA"
    assert intruder._next("abA") == "abB"


def test_shares_and_growth():
    assert deviation([10, 10, 10]) == 0.0
    assert deviation([9, 10, 11]) == 10.0
    grown = [Sample(10.0 * i, 1000 + i + 5 * (i < 6), 0.5 * i) for i in range(31)]
    found = growth(grown, 1 / 2)
    assert found["from_second"] == 60
    assert found["mb_per_minute"] == pytest.approx(3.0), (
        "1 MB in 10 s, half of it histories; the first minute is left out"
    )


@pytest.mark.nightly
@pytest.mark.browser
@pytest.mark.usefixtures("with_browser")
def test_two_pages_share_a_server_and_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    main(
        ["bench", "seats", "--preset", "mixture", "--seats", "2", "--seconds", "2", "--minutes", "1", "--out", str(out)]
    )
    found = json.loads((out / "seats.json").read_text())
    assert found["pages"]["intrusions"]["succeeded"] == []
    assert found["pages"]["intrusions"]["tried"] > 50
    assert found["pages"]["deviation_percent"] <= bench.FAIR
    assert "in the line" in found["pages"]["when_full"]
    assert "seats of this server are taken" in found["pages"]["when_full"].lower()
    assert found["alone"]["hidden"]["share"] < 0.6
    assert "attempts to get at another seat" in capsys.readouterr().out
