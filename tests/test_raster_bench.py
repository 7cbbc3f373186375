"""The rasteriser benchmark measures what it reports, in a scene small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdlab.bench import raster
from sdlab.cameras import look_at
from sdlab.raster import cpu, reference


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(raster, "COUNTS", (50, 5000))
    monkeypatch.setattr(raster, "SIZES", (16, 256))
    monkeypatch.setattr(raster, "SECONDS_PER_CELL", 0.0)
    cpu.set_threads(3)
    torch_threads = torch.get_num_threads()
    try:
        result = raster.run(tmp_path / "raster.json", quick=True)
        assert cpu.get_threads() == 3
    finally:
        cpu.set_threads(None)
    assert torch.get_num_threads() == torch_threads
    assert json.loads((tmp_path / "raster.json").read_text()) == result
    assert [(row["scene"], row["gaussians"], row["pixels"]) for row in result["rows"]] == [
        ("ball", 50, 16),
        ("shell", 50, 16),
    ]
    table = capsys.readouterr().out
    for row in result["rows"]:
        assert min(row[column] for column in raster.COLUMNS) > 0
        for side in (8, 16):
            assert row[f"ratio_{side}"] == row[f"torch_{side}_ms"] / row["cpu_1_ms"]
            assert f"{row[f'ratio_{side}']:.1f}x" in table


@pytest.mark.parametrize("name", raster.SCENES)
def test_scenes_fill_the_picture_and_are_reproducible(name: str):
    scene = raster.build(name, 300)
    assert all(torch.equal(a, b) for a, b in zip(scene, raster.build(name, 300), strict=True))
    cams = look_at(torch.tensor([30.0]), torch.tensor([15.0]), torch.tensor([2.8]), 49.1, 32, 32)
    with torch.no_grad():
        render = reference.rasterize(*scene, cams.viewmats, cams.Ks, 32, 32)
    assert 0.2 < render.alpha.mean() < 0.9
    assert (render.info.radii > 0).all()
