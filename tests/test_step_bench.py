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
    assert list(result["sh_degrees"]) == ["1", "2", "3"]
    for at in result["sh_degrees"].values():
        assert at["step_ms"] > 0
        assert at["over_degree_0"] == pytest.approx(at["step_ms"] / result["step_ms"], rel=0.5)
    assert "torch_engine_step_ms" not in result, "the mixture has no engines to compare"
    assert "ratio" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gallery_is_measured_at_several_resolutions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "WARM_UP", 2)
    few = [("prior.images", 16), ("prior.null_images", 16), ("scene.n_init", 100), ("scene.max_gaussians", 100)]
    small = bench.preset("gallery").patch_all(few)
    monkeypatch.setattr(bench, "preset", lambda name: small)
    result = bench.run(tmp_path / "b.json", quick=True, name="gallery")
    assert list(result["sizes"]) == [32, 64, 96]
    for at in result["sizes"].values():
        assert at["step_ms"] > at["bare_ms"] > 0
        assert at["steps_per_second"] == pytest.approx(1000 / at["step_ms"], rel=0.05)
    assert "96 pixels" in capsys.readouterr().out
