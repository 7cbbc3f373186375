"""Checkpoints: complete or absent, and readable without trusting them."""

import json
from pathlib import Path

import pytest
import torch

from sdlab.live import checkpoint
from sdlab.live.diary import changes_in
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.settings import from_toml, preset


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


# ---- a run of version 0.1.0: SDS, from step 6 on DDS, from step 9 on VDM -------------------------------------------

OLD = Path(__file__).parent / "data" / "run_of_0_1"


def leaves(node, path=""):
    if not isinstance(node, dict):
        return {path: node}
    return {p: leaf for key, value in node.items() for p, leaf in leaves(value, f"{path}/{key}").items()}


def test_a_checkpoint_of_0_1_restores_every_part_and_steps_on():
    session = Session(preset("mixture"))
    session.prepare()
    session.restore(OLD / "checkpoint")
    step, parts, texts = checkpoint.load(OLD / "checkpoint")
    saved, restored = leaves(parts), leaves(session.moment().parts)
    assert saved.keys() == restored.keys()
    for path, value in saved.items():
        same = torch.equal(value, restored[path]) if isinstance(value, torch.Tensor) else value == restored[path]
        assert same, path
    assert session.settings == from_toml(texts["settings.toml"], "old settings")
    assert session.settings.active == "vdm"
    assert session.state.step == step == 12
    assert session.state.aux["vdm"].fitted == 5
    assert session.state.reference.prompt.text == "a red ball"
    session.run(until=20)
    assert (session.state.step, session.state.aux["vdm"].fitted, session.state.skipped) == (20, 13, 0)
    session.do(Patch.one("active", "dds"))
    session.run(until=22)
    assert session.state.reference.prompt.text == "a red ball", "kept, since it was frozen with the same knobs"


def test_a_run_of_0_1_replays_from_its_settings_and_diary():
    settings = from_toml((OLD / "settings.toml").read_text(), "old settings")
    changes, last = changes_in(OLD / "metrics.jsonl")
    assert (settings.active, settings.prompt.text, settings.losses["sds"].cfg) == ("sds", "a red ball", 20.0)
    assert changes == [(6, [("active", "dds"), ("prompt.text", "a blue ball")]), (9, [("active", "vdm")])]
    assert last == 12
    session = Session(settings)
    for step, at_once in changes:
        session.plan(step, Patch(tuple(at_once)))
    session.run(until=last)
    saved = checkpoint.load(OLD / "checkpoint")[1]["scene"]
    for name, tensor in session.state.scene.state_dict().items():  # bit for bit only on the machine of the run
        torch.testing.assert_close(tensor, saved[name], rtol=1e-2, atol=1e-2)
