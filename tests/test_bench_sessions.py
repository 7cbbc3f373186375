"""The benchmark of sessions that share a prior: tests of the report, not of speed."""

import json
import re

import pytest

from sdlab import cli
from sdlab.bench import sessions as bench
from sdlab.priors.mixture import MixtureScores


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS_QUICK", 0.3)
    monkeypatch.setattr(bench, "COUNTS", (1, 3))


@pytest.mark.slow
def test_both_ways_are_measured_for_each_count(tmp_path, capsys):
    assert cli.main(["bench", "sessions", "--quick", "--preset", "mixture", "--out", str(tmp_path / "b.json")]) == 0
    result = json.loads((tmp_path / "b.json").read_text())
    assert [row["sessions"] for row in result["rows"]] == [1, 3]
    for row in result["rows"]:
        for way in bench.WAYS:
            assert row[way]["steps_per_second"] > 0
            assert 0 < row[way]["least_share"] <= 1
        assert row["in turns"]["requests_per_forward"] == 1
        assert row["batched"]["requests_per_forward"] >= 1
    assert result["rows"][0]["in turns"]["times_the_first"] == 1
    assert re.search(r"sessions\s+in turns", capsys.readouterr().out)


def test_a_session_that_fails_ends_it_with_the_reason(monkeypatch):
    def broken(*_):
        raise RuntimeError("the network is broken")

    monkeypatch.setattr(MixtureScores, "eps", broken)
    with pytest.raises(RuntimeError, match="the network is broken"):
        bench.run(quick=True, name="mixture", counts=(2,))
