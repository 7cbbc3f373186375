"""The examples run, and do what they say, in a small size and on the prior that needs no network."""

import runpy
from pathlib import Path

import pytest
import torch

from sdlab.cameras import CameraSettings, turntable

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(number: str, out: Path, steps: int = 12):
    (path,) = (p for p in EXAMPLES if p.name.startswith(number))
    return runpy.run_path(str(path))["main"](name="mixture", steps=steps, out=out)


def test_a_preset_is_run_and_exported(tmp_path, capsys):
    assert run("01", tmp_path / "run").state.step == 12
    names = {"scene.ply", "turntable.png", "turntable.mp4", "cameras.json"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == names
    assert "scene.ply" in capsys.readouterr().out


@pytest.mark.slow
def test_loss_and_prompt_change_mid_run(tmp_path, capsys):
    session = run("02", tmp_path)
    assert (session.settings.active, session.settings.prompt.text) == ("sds", "a blue bear")
    assert capsys.readouterr().out.splitlines() == [
        "from step 4 on: active = vdm",
        "from step 8 on: active = sds",
        "from step 8 on: prompt.text = a blue bear",
    ]


@pytest.mark.slow
def test_a_loss_of_ones_own_moves_the_scene(tmp_path):
    session = run("03", tmp_path)
    assert session.settings.loss.title == "Focused"
    assert (session.state.skipped, session.state.step) == (0, 12)


def test_the_lens_is_saved(tmp_path, capsys):
    run("04", tmp_path, steps=40)
    assert (tmp_path / "lens.png").is_file()
    out = capsys.readouterr().out
    assert "noisy: z_t" in out
    assert "cosines with" in out


@pytest.mark.slow
def test_a_prior_of_ones_own_teaches_its_colour(tmp_path):
    session = run("05", tmp_path, steps=150)
    assert session.prior.name == "discs"
    with torch.no_grad():
        rgb = session.state.scene.render(turntable(1, CameraSettings(), 32), torch.ones(1, 3)).rgb[0, :, 12:20, 12:20]
    red, _, blue = rgb.mean((1, 2)).tolist()
    assert blue > red + 0.2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_short(path):
    assert sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) <= 40
