"""The benchmark at the size of Stable Diffusion, with its small stand-in: tests of the report, not of speed."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from sdlab import cli
from sdlab.bench import gpu, sessions
from sdlab.bench.losses import entries
from sdlab.bench.stand_in import SIZES, unet_config, vae_config


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(gpu, "VIEWS", (2,))
    monkeypatch.setattr(gpu, "GAUSSIANS", (100,))
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(sessions, "SECONDS_QUICK", 0.2)
    monkeypatch.setattr(sessions, "WARM_UP", 1)
    few = ("sds", "ism", "vsd")
    monkeypatch.setattr(gpu, "entries", lambda s: [e for e in entries(s) if e.loss in few])


@pytest.mark.slow
@pytest.mark.nightly
def test_every_part_is_measured(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert cli.main(["bench", "gpu", "--size", "tiny", "--device", "cpu", "--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(row["loss"], row["evaluations"]) for row in result["losses"]] == [
        ("sds", 2),
        ("ism", 6),
        ("vsd (lora)", 2),
    ]
    for row in result["losses"]:
        assert row["step_ms"] > 0 < row["network_ms"]
        assert row["ratio"] == pytest.approx(row["step_ms"] / row["network_ms"], rel=0.02)
        assert row["memory_gb"] > 0
    assert result["rasterisers"][0]["cpu_ms"] > 0
    assert [row["sessions"] for row in result["sessions"]["rows"]] == [1, 2]
    assert "ratio" in capsys.readouterr().out


def test_the_full_size_wants_a_gpu(capsys):
    assert cli.main(["bench", "gpu", "--device", "cpu"]) == 2
    assert "--size tiny" in capsys.readouterr().err
    assert cli.main(["bench", "gpu", "--device", "cpu", "--size", "huge"]) == 2
    assert "sd-2.1-base, tiny" in capsys.readouterr().err


def test_the_stand_in_has_the_published_number_of_weights():
    """865 910 724 in the U-Net and 83 653 863 in the VAE of Stable Diffusion 2.1-base."""
    size = SIZES["sd-2.1-base"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(size))
        vae = AutoencoderKL.from_config(vae_config(size))
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
