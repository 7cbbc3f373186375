"""Starts and benches of the SBP thesis' tasks: paintings, sketches, illusions."""

import json

import numpy as np
import pytest
import torch

from sdlab.cli import main
from sdlab.experiments import illusions, paintings, sketches, style, tasks
from sdlab.experiments.objects import Runner
from sdlab.live.session import Session
from sdlab.rng import StepRng
from sdlab.settings import preset
from sdlab.starts.drawn import BEYOND, drawn_pictures, seed_of
from sdlab.toybox import judge, sketch
from sdlab.toybox.pictures import COLOURS
from sdlab.toybox.sketch import sketch_points
from sdlab.toybox.surface import object_points

SMALL = [("prior.images", 24), ("prior.null_images", 48), ("prior.size", 32), ("prior.candidates", 16)]


# ---- drawn pictures --------------------------------------------------------------------------------------------------


def test_drawn_pictures_are_new_ones_of_the_text():
    red = drawn_pictures("a red elephant, painting", 3, 32, BEYOND, "scene.drawn")
    assert red.shape == (3, 3, 32, 32)
    assert 0 <= float(red.min()) < float(red.max()) <= 1
    assert float((red[0] - red[1]).abs().mean()) > 0.02
    assert torch.equal(red, drawn_pictures("painting of a red elephant", 3, 32, BEYOND, "scene.drawn"))
    plain = drawn_pictures("a red elephant", 1, 32, BEYOND, "scene.drawn")
    assert torch.equal(plain[0, :, 0, 0], torch.ones(3)), "no ground of its own"
    with pytest.raises(ValueError, match=r"scene\.drawn = 'a zorb': names nothing that the toybox can draw"):
        drawn_pictures("a zorb", 1, 32, 0, "scene.drawn")


def test_pictures_start_as_drawn_for_the_prompt():
    s = preset("painting-to-real").patch_all([*SMALL, ("scene.n", 2), ("prompt.text", "a blue car")])
    session = Session(s)
    session.prepare()
    shown = session.prior.decode(session.state.scene.params["latents"].detach())
    expected = drawn_pictures("a blue car, painting", 2, 32, seed_of(StepRng(0, -1)), "")
    assert torch.allclose(shown, expected, atol=1e-6)
    assert seed_of(StepRng(0, -1)) != seed_of(StepRng(1, -1))
    assert seed_of(StepRng(0, -1)) > 2**20, "beyond every gallery"


# ---- sketches --------------------------------------------------------------------------------------------------------


def test_a_sketch_is_near_the_object_in_a_few_flat_colours():
    rng = np.random.default_rng
    true = object_points("a red bear", 4000, rng(0)).points
    found = sketch_points("a red bear", 3000, rng(0))
    assert 1000 < len(found.points) <= 3000
    nearest = np.linalg.norm(found.points[::10, None] - true[None], axis=2).min(1)
    assert 0.01 < nearest.mean() < 0.12, "out of shape, but the same structure"
    tips = np.array(list(COLOURS.values()), np.float32)
    assert (np.abs(found.rgbs[:, None] - tips).max(2).min(1) < 1e-6).all()
    assert len(np.unique(found.rgbs, axis=0)) <= 4
    assert np.array_equal(found.points, sketch_points("a red bear", 3000, rng(0)).points)
    assert not np.array_equal(found.points[:500], sketch_points("a red bear", 3000, rng(1)).points[:500])
    with pytest.raises(ValueError, match="names no toybox object"):
        sketch_points("a zorb", 100, rng(0))


def test_ribbons_leave_gaps(monkeypatch):
    monkeypatch.setattr(sketch, "TRIES", 1)  # then every point on a ribbon is kept
    on_ribbons = len(sketch_points("a red snowman", 6000, np.random.default_rng(0)).points)
    assert 600 < on_ribbons < 5400
    monkeypatch.setattr(sketch, "RIBBON", 9.0)
    assert len(sketch_points("a red snowman", 6000, np.random.default_rng(0)).points) == 6000


def test_a_scene_starts_as_a_sketch():
    s = preset("sketch-to-real").patch_all([*SMALL, ("scene.n_init", 300), ("prompt.text", "a green frog")])
    scene = s.scene.build(StepRng(0, -1), torch.device("cpu"), s.prior.load(torch.device("cpu")), s.prompt.text)
    assert 50 < len(scene.params["means"]) <= 300
    assert float(scene.params["means"].detach().norm(dim=1).max()) == pytest.approx(s.scene.radius, abs=1e-3)


# ---- style -----------------------------------------------------------------------------------------------------------


def test_strokes_are_told_from_renders_on_either_ground():
    found = style.trained(64, count=150, tested=50)
    assert found.accuracy > 0.85
    classifier = judge.load()
    texts = ("a red elephant", "a red elephant, painting")
    plain, painted = (style.textures(classifier, drawn_pictures(text, 4, 64, BEYOND, "")) for text in texts)
    assert float(found.chances(plain).max()) < 0.5 < float(found.chances(painted).min())


# ---- benches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Few runs of few steps."""
    monkeypatch.setattr(illusions, "PAIRS", illusions.PAIRS[:1])
    monkeypatch.setattr(illusions, "SEEDS", 1)
    monkeypatch.setattr(paintings, "OBJECTS", ("elephant",))
    monkeypatch.setattr(sketches, "OBJECTS", ("bear",))
    monkeypatch.setattr(sketches, "TRUE_EACH", 2)
    monkeypatch.setattr(sketches, "METHODS", dict(list(sketches.METHODS.items())[:2]))
    monkeypatch.setattr(style, "trained", lambda size: CHEAP)


CHEAP = style.Style(torch.zeros(192), torch.ones(192), torch.ones(192) / 192, torch.tensor(0.0), 0.5)


def runner_for(name):
    s = preset(tasks.TASKS[name].PRESET).patch_all(
        [*SMALL, ("steps", 2), ("scene.n", 2)][: 6 if name != "sketch" else 5]
    )
    runner = Runner(s, torch.device("cpu"), float("inf"))
    runner.prepare()
    return runner


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_a_task_is_measured_once(name, few, tmp_path, capsys):
    runner = runner_for(name)
    found = tasks.run(runner, name, tmp_path)
    assert found["finished"] == found["planned"] > 0
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(written["rows"]) == found["planned"]
    assert written["table"] == found["table"]
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    capsys.readouterr()
    again = tasks.run(runner, name, tmp_path)
    assert again["table"] == found["table"]
    assert f"{found['planned']} of {found['planned']} runs are in" in capsys.readouterr().out


def test_the_paintings_themselves_are_the_measure_of_all_methods(few):
    s = preset("painting-to-real").patch("scene.n", 2)
    labels = dict(paintings.trials(s, False))
    assert labels["DDS"].settings.prompt.text.endswith("elephant, painting")
    assert labels["DDS"].planned[1].changes[0][1].endswith("elephant")
    key = [case.settings.scene.drawn.replace("{prompt}", case.settings.prompt.text) for case in labels.values()]
    assert len(set(key)) == 1, "every method starts from the same paintings"


def test_unknown_tasks_are_refused(capsys):
    assert main(["bench", "tasks", "--only", "collage"]) == 2
    assert "--only collage: the tasks are illusion, painting, sketch" in capsys.readouterr().err
