"""The benchmark of a step: tests of the report, not of speed."""

import json

import pytest

from sdlab.bench import step as bench
from sdlab.step import STAGES


def test_the_report_has_every_stage_and_the_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "WARM_UP", 2)
    result = bench.run(tmp_path / "b.json", quick=True, name="mixture")
    assert json.loads((tmp_path / "b.json").read_text()) == result
    assert set(result["stages_ms"]) == set(STAGES)
    assert 0 < result["load_seconds"] < 60
    assert result["step_over_bare_network"] > 1
    assert result["step_ms"] == pytest.approx(sum(result["stages_ms"].values()), rel=0.8)
    assert "torch_engine_step_ms" not in result, "the mixture has no engines to compare"
    assert "ratio" in capsys.readouterr().out
