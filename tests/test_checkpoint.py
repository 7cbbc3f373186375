"""Checkpoints: complete or absent, and readable without trusting them."""

import json

import pytest
import torch

from sdlab.live import checkpoint


@pytest.fixture
def parts():
    return {
        "scene": {"means": torch.arange(6.0).view(2, 3)},
        "optim": {"means": {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}},
        "session": {"skipped": 1, "seconds": 2.5, "nothing": {}},
    }


def test_round_trip(tmp_path, parts):
    checkpoint.save(tmp_path, 12, parts, {"settings.toml": "seed = 3\n"})
    step, back, texts = checkpoint.load(tmp_path)
    assert step == 12
    assert texts == {"settings.toml": "seed = 3\n"}
    assert back["session"] == parts["session"]
    assert torch.equal(back["scene"]["means"], parts["scene"]["means"])
    assert torch.equal(back["optim"]["means"]["exp_avg"], parts["optim"]["means"]["exp_avg"])
    assert back["optim"]["means"]["step"] == 3.0


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path, parts):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, parts, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000010"]
    assert checkpoint.load(tmp_path)[0] == 10


def test_saving_a_step_again_replaces_it(tmp_path, parts):
    checkpoint.save(tmp_path, 5, parts, {})
    parts["session"]["skipped"] = 9
    checkpoint.save(tmp_path, 5, parts, {})
    assert checkpoint.load(tmp_path)[1]["session"]["skipped"] == 9


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "format", "list"])
def test_a_broken_newest_one_falls_back_to_the_one_before(tmp_path, parts, damage):
    checkpoint.save(tmp_path, 1, parts, {})
    newest = checkpoint.save(tmp_path, 2, parts, {})
    tensors, values = newest / "tensors.safetensors", newest / "values.json"
    header = json.loads(values.read_text())
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:40])
    elif damage == "gone":
        tensors.unlink()
    elif damage == "garbage":
        values.write_text("{")
    elif damage == "format":
        values.write_text(json.dumps({**header, "format": 99}))
    else:
        values.write_text(json.dumps({**header, "tensors": ["scene/other"]}))
    assert checkpoint.load(tmp_path)[0] == 1
    torch_file = tmp_path / "00000001" / "tensors.safetensors"
    torch_file.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"00000002 is broken"):
        checkpoint.load(tmp_path)


def test_a_half_written_one_is_not_seen(tmp_path, parts):
    (tmp_path / ".00000009.123.tmp").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 3, parts, {})
    assert checkpoint.load(tmp_path)[0] == 3


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")


def test_pickles_are_not_read(tmp_path, parts):
    folder = checkpoint.save(tmp_path, 1, parts, {})
    torch.save({"scene": 1}, folder / "tensors.safetensors")
    with pytest.raises(ValueError, match="broken"):
        checkpoint.load(tmp_path)
