"""`bench gallery-losses`: which runs it takes, the edit of DDS, and its table; the judge is a stand-in."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from sdlab import cli, settings
from sdlab.experiments import gallery_losses as bench
from sdlab.experiments import objects
from sdlab.live.messages import Patch
from sdlab.settings import losses, preset

MIXTURE = '[prior]\nkind = "mixture"\n[scene]\nn_init = 40\nmax_gaussians = 60\n'


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Presets on a mixture of few Gaussians, and a judge that reads bears as bears and a car's every other view."""
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "gallery.toml").write_text(f"steps = 4\n{MIXTURE}")
    for name in ("vsd", "dds"):
        (presets / f"gallery-{name}.toml").write_text(
            f'active = "{name}"\nsteps = 6\n[about]\nbase = "gallery"\n'
            + ("[losses.vsd]\nwarm_up = 1\n" * (name == "vsd"))
        )
    monkeypatch.setattr(settings, "PRESETS", presets)
    read = lambda rgb: [  # noqa: E731
        SimpleNamespace(object="bear" if i % 2 == 0 else "car", colour="red", view="front view")
        for i in range(len(rgb))
    ]
    monkeypatch.setattr(objects, "load_judge", lambda: read)


@pytest.fixture
def judge_only(monkeypatch):
    monkeypatch.setattr(objects, "load_judge", lambda: None)


def run(*arguments):
    return cli.main(["bench", "gallery-losses", *[str(a) for a in arguments]])


def test_every_loss_has_a_preset_that_names_its_reason():
    for loss in losses():
        name = bench.preset_for(loss)
        assert preset(name).active == loss
        assert preset(name).prior.kind == "gallery"
        assert settings.about(name)["text"].endswith(".")


def test_a_loss_selected_during_a_gallery_run_has_the_knobs_of_its_preset():
    gallery = preset("gallery")
    for loss in losses():
        assert preset(bench.preset_for(loss)).loss == gallery.losses[loss]
    assert gallery.losses["vsd"].aux_key() == gallery.losses["esd"].aux_key(), "they share psi"


def test_dds_edits_an_object_of_another_colour():
    (entry,) = bench.entries(["dds"], ["bear"], [preset("gallery-dds")])
    case = entry.case
    assert (case.object, case.colour) == ("bear", "red")
    assert case.settings.active == "sds"
    assert "red" not in case.settings.prompt.text
    assert case.settings.prompt.text.endswith(" bear")
    half = case.settings.steps // 2
    assert case.planned == {
        half: Patch((("active", "dds"), ("prompt.text", "a red bear"), ("schedule.start", half))),
    }


def test_the_table_sums_up_each_loss(tiny, tmp_path, capsys):
    assert run("--losses", "sds,vsd,dds", "--objects", "bear,car", "--out", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "gallery-losses.json").read_text())
    assert [(row["loss"], row["preset"], row["steps"]) for row in result["table"]] == [
        ("sds", "gallery", 4),
        ("vsd", "gallery-vsd", 6),
        ("dds", "gallery-dds", 6),
    ]
    for row in result["table"]:
        assert row["object_votes"] == {"bear": 4, "car": 4}
        assert row["colour_votes"] == 16
        assert row["front_votes"] == {"bear": 12, "car": 12}
        assert not row["recognised"]
        assert row["saturation"] > 0
    assert result["recognised"] == []
    assert len(result["rows"]) == 6
    prompts = {(row["loss"], row["prompt"]) for row in result["rows"]}
    assert ("vsd", "a red bear") in prompts
    assert "0 of 3 losses recognised in all 8 views" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "gallery-losses.png") as sheet:
        assert sheet.width > 2 * bench.SHOWN * objects.STRIP_SIZE
        assert sheet.height > 3 * objects.STRIP_SIZE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--losses", "sdx"), "there is no preset gallery-sdx"),
        (("--objects", "bera"), "did you mean bear"),
        (("--set", "active=sds"), "active"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(arguments, words, tmp_path, capsys):
    assert run("--out", tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_residuals_tell_guidance_from_its_absence_and_bounded_scores_from_unbounded(judge_only, tmp_path, capsys):
    small = ["--set", "prior.size=16", "--set", "prior.images=48", "--set", "prior.null_images=48"]
    arguments = [
        "bench",
        "gallery-residuals",
        *small,
        "--losses",
        "sds:cfg=1,sds:cfg=30",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(arguments) == 0
    result = json.loads((tmp_path / "out" / "gallery-residuals.json").read_text())
    shifts = result["displacements"]
    assert all(a < b for a, b in zip(shifts["sds:cfg=1"], shifts["sds:cfg=30"], strict=True))
    noise = {(row["spread"], row["inversion_cfg"]): row["rms"] for row in result["inversions"]}
    assert all(a < b for a, b in zip(noise[0.1, 0.0], noise[0.0, 0.0], strict=True))
    assert "sds:cfg=30" in capsys.readouterr().out


def test_residuals_are_for_losses_of_the_prompt_alone(tmp_path, capsys):
    assert cli.main(["bench", "gallery-residuals", "--losses", "vsd", "--out", str(tmp_path)]) == 2
    assert "--losses vsd: only losses of the prompt" in capsys.readouterr().err
