"""The benchmark of networks: tests of the report, not of speed."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from sdlab.bench import network as bench
from sdlab.priors import choice, openvino
from sdlab.toybox.model import Shape

TINY = (
    Shape(channels=(16, 32), size=8, patch=1, text_width=32),
    Shape(channels=(16, 32), size=16, patch=2, text_width=32),
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "NETWORKS", TINY)
    monkeypatch.setattr(bench, "THREADS", (1,))  # on a busy machine, two threads wait a long time for each other
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_table_and_json(tiny, tmp_path, capsys):
    threads = torch.get_num_threads()
    result = bench.run(tmp_path / "b.json", quick=True)
    assert torch.get_num_threads() == threads
    assert os.environ["SDLAB_CACHE"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists(), "random networks do not belong in the user's cache"
    assert json.loads((tmp_path / "b.json").read_text()) == result
    native, blocks = result["rows"]
    assert (native["pixels"], native["patch"], blocks["pixels"], blocks["patch"]) == (8, 1, 16, 2)
    # both work on 8 x 8 positions: only the first and last layers differ, by nine more channels in and out
    assert blocks["parameters"] - native["parameters"] == 2 * 9 * 16 * 9 + 9
    assert blocks["gflop"] - native["gflop"] == pytest.approx(bench.BATCH * 64 * 2 * 9 * 16 * 9 * 2 / 1e9, abs=0.01)
    table = capsys.readouterr().out
    for row in result["rows"]:
        assert all(0 < ms["least"] <= ms["median"] for ms in row["ms"].values())
        assert f"{row['parameters']:,}" in table


@pytest.mark.slow
def test_without_openvino_torch_is_measured_and_the_table_says_so(tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino.library.cache_clear()
    choice.cpu_has_bf16.cache_clear()
    try:
        result = bench.run(quick=True)
    finally:
        openvino.library.cache_clear()
        choice.cpu_has_bf16.cache_clear()
    assert all(name.startswith("torch") for row in result["rows"] for name in row["ms"])
    assert "OpenVINO is not available" in capsys.readouterr().out
