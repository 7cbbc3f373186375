"""The command line, called as by a user."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from waiting import until

from sdlab import cli, headless
from sdlab.bench import commands as bench
from sdlab.experiments import commands as experiments
from sdlab.export.writers import SH_C0
from sdlab.live import checkpoint

ROOT = Path(__file__).parents[1]
SMALL = ["--set", "scene.n_init=60", "--set", "scene.max_gaussians=80", "--size", "48"]


def run(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "bear"
    arguments = ["run", "mixture", "--set", "prompt.text=a red bear", *SMALL, "--steps", 30, "--seed", 4, "--out", out]
    assert run(*arguments) == 0
    return out


def test_a_run_leaves_everything_behind(done):
    names = {p.name for p in done.iterdir()}
    expected = {"settings.toml", "metrics.jsonl", "scene.ply", "turntable.png", "turntable.mp4"}
    expected |= {"cameras.json", "checkpoint"}
    assert expected | {"result.json"} <= names
    result = json.loads((done / "result.json").read_text())
    assert result["preset"] == "mixture"
    assert result["prompt"] == "a red bear"
    assert result["prior"] == "mixture"
    assert (result["loss"], result["seed"], result["steps"], result["skipped_nonfinite"]) == ("sds", 4, 30, 0)
    assert result["seconds"] > 0
    rounding = 0.006 / result["seconds"]  # they have two decimals
    assert result["steps_per_s"] == pytest.approx(30 / result["seconds"], rel=rounding)
    assert 0 < result["prior_share"] < 1
    assert result["peak_rss_mb"] > 50
    assert {"sdlab", "python", "torch"} <= set(result["versions"])
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 31))


def test_the_ply_is_what_splat_viewers_read(done):
    data = (done / "scene.ply").read_bytes()
    header, _, body = data.partition(b"end_header\n")
    names = [line.split()[-1].decode() for line in header.splitlines() if line.startswith(b"property float")]
    assert names[:3] == ["x", "y", "z"]
    assert names[-4:] == ["rot_0", "rot_1", "rot_2", "rot_3"]
    table = np.frombuffer(body, dtype=[(n, "<f4") for n in names])
    scene = load_file(next((done / "checkpoint").glob("*/tensors.safetensors")))
    assert len(table) == len(scene["scene/means"])
    np.testing.assert_array_equal(table["x"], scene["scene/means"][:, 0].numpy())
    np.testing.assert_allclose(table["opacity"], scene["scene/opacity_logits"].numpy(), rtol=1e-6)
    colour = 0.5 + SH_C0 * table["f_dc_1"]
    np.testing.assert_allclose(colour, scene["scene/color_logits"][:, 1].sigmoid().numpy(), atol=1e-6)
    norm = sum(table[f"rot_{i}"] ** 2 for i in range(4))
    np.testing.assert_allclose(norm, 1, atol=1e-5)


def test_an_independent_reader_opens_the_ply(done):
    import trimesh

    cloud = trimesh.load(done / "scene.ply")
    assert len(cloud.vertices) == json.loads((done / "result.json").read_text())["n_gaussians"]


def test_the_turntable_has_eight_views_and_the_film_its_frames(done):
    import imageio.v3 as iio

    strip = np.asarray(Image.open(done / "turntable.png"))
    assert strip.shape == (48, 8 * 48, 3)
    views = strip.reshape(48, 8, 48, 3).swapaxes(0, 1)
    assert all(not np.array_equal(views[0], v) for v in views[1:])
    film = iio.imread(done / "turntable.mp4", plugin="FFMPEG")
    assert film.shape == (72, 48, 48, 3)
    assert abs(film[0].astype(float) - views[0]).mean() < 12  # the first frame is the front, up to compression


@pytest.mark.slow
def test_resume_goes_on_and_equals_the_longer_run(done, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    common = ["--set", "prompt.text=a red bear", *SMALL, "--seed", 4]
    assert run("run", "mixture", *common, "--steps", 30, "--out", whole) == 0
    assert run("run", "mixture", *common, "--steps", 30, "--out", part) == 0
    assert run("resume", part, "--steps", 36, "--size", 48) == 0
    assert run("resume", whole, "--steps", 33, "--size", 48) == 0
    assert run("resume", whole, "--steps", 36, "--size", 48) == 0
    a, b = (load_file(p / "checkpoint" / "00000036" / "tensors.safetensors") for p in (whole, part))
    assert a.keys() == b.keys()
    assert all(bool((a[k] == b[k]).all()) for k in a)
    lines = [json.loads(x)["step"] for x in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 37))
    assert json.loads((whole / "result.json").read_text())["preset"] == "mixture"


def test_a_folder_that_holds_a_run_is_not_mixed_with_another(tmp_path, capsys):
    first = ["run", "mixture", *SMALL, "--steps", 6, "--seed", 1, "--out", tmp_path]
    second = ["run", "mixture", *SMALL, "--steps", 3, "--seed", 2, "--out", tmp_path]
    assert run(*first) == 0
    before = (tmp_path / "scene.ply").read_bytes()
    assert run(*second) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert (tmp_path / "scene.ply").read_bytes() == before
    assert run(*second, "--overwrite") == 0
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["00000001", "00000003"]
    assert run("resume", tmp_path, "--size", 48) == 2
    assert "already at step 3" in capsys.readouterr().err
    assert run("resume", tmp_path, "--steps", 5, "--size", 48) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["seed"], result["steps"]) == (2, 5)


def test_a_prior_that_is_not_there_leaves_no_half_run(tmp_path, capsys):
    assert run("run", "toybox", "--prior", tmp_path / "nothing", "--out", tmp_path / "a") == 2
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_keeps_the_results(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "sdlab", "run", "mixture", *SMALL, "--steps", "100000", "--out", str(tmp_path / "o")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "o" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, 90)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"results in" in out
    assert (tmp_path / "o" / "scene.ply").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "toybx", "--out", "{tmp}/a"], ["toybx", "did you mean toybox", "list presets"]),
        (["run", "mixture", "--set", "losses.sds.cgf=3", "--out", "{tmp}/a"], ["losses.sds.cgf", "losses.sds.cfg"]),
        (["run", "mixture", "--set", "losses.sds.cfg=900", "--out", "{tmp}/a"], ["losses.sds.cfg", "900", "0 to 200"]),
        (["run", "mixture", "--set", "losses.sds.cfg", "--out", "{tmp}/a"], ["--set", "PATH=VALUE"]),
        (["run", "mixture", "--set", "prompt.text=" + "x" * 10_000, "--out", "{tmp}/a"], ["prompt.text", "300"]),
        (["run", "mixture", "--seed", "-1", "--out", "{tmp}/a"], ["seed", "-1"]),
        (["run", "mixture", "--steps", "2", "--out", "/proc/nowhere"], ["--out", "/proc/nowhere", "cannot write"]),
        (["run", "mixture", "--steps", "2", "--out", "{tmp}/a", "--device", "tpu0"], ["--device", "tpu0"]),
        (["run", "toybox", "--prior", "{tmp}/nothing", "--out", "{tmp}/a"], ["prior.path", "nothing"]),
        (["resume", "{tmp}/nothing"], ["DIR", "nothing"]),
        (["resume", "{tmp}"], ["checkpoint"]),
    ],
)
def test_bad_input_ends_with_2_and_one_line_that_names_the_knob(arguments, words, tmp_path, capsys):
    assert run(*[a.replace("{tmp}", str(tmp_path)) for a in arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in last
    assert len(last) < 700


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "mixture", "--steps", "0", "--out", "x"], "--steps"),
        (["bench", "moon"], "moon"),
        (["list", "x"], "'x'"),
    ],
)
def test_bad_options_end_with_2_too(arguments, word, capsys):
    with pytest.raises(SystemExit) as e:
        run(*arguments)
    assert e.value.code == 2
    assert word in capsys.readouterr().err


def test_a_broken_checkpoint_is_named_and_left_alone(done, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(done, broken)
    for file in broken.glob("checkpoint/*/tensors.safetensors"):
        file.write_bytes(b"not a checkpoint")
    assert run("resume", broken) == 2
    assert "is broken" in capsys.readouterr().err
    assert (broken / "scene.ply").read_bytes() == (done / "scene.ply").read_bytes()
    assert (broken / "metrics.jsonl").read_bytes() == (done / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("what", "word"),
    [("losses", "DreamFusion"), ("priors", "mixture"), ("presets", "toybox"), ("knobs", "camera.views")],
)
def test_lists(what, word, capsys):
    assert run("list", what) == 0
    assert word in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error():
    """As in `python -m sdlab list knobs | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sdlab", "list", "knobs"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_settings_file_can_be_run_in_place_of_a_preset(done, tmp_path):
    assert run("run", done / "settings.toml", "--size", 48, "--steps", 2, "--out", tmp_path / "again") == 0
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert (result["prompt"], result["seed"], result["n_gaussians"]) == ("a red bear", 4, 60)


TOGGLES = [("active=vdm", 8), ("active=sbp", 16), ("active=jsd", 22), ("losses.jsd.cfg=2", 22), ("active=sds", 26)]


@pytest.mark.slow
def test_a_run_with_toggles_replays_bit_for_bit_and_resumes_with_its_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(headless, "CHECKPOINT_EVERY", 0)
    monkeypatch.setattr(checkpoint, "KEPT", 100)
    plan = [x for change, step in TOGGLES for x in ("--at", step, change)]
    short = ["--set", "losses.vdm.warm_up=5", "--set", "losses.jsd.inversion_steps=2", "--steps", 30]
    assert run("run", "mixture", *SMALL, *short, *plan, "--out", tmp_path / "one") == 0
    lines = [json.loads(x) for x in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    applied = [
        (x["step"], f"{x['path']}={x['value']:g}" if x["path"] != "active" else f"active={x['value']}")
        for x in lines
        if x.get("event") == "applied"
    ]
    assert applied == [(step, change) for change, step in TOGGLES]
    assert not any(x.get("event") in ("skipped", "rejected", "failed") for x in lines)
    assert run("replay", tmp_path / "one", "--out", tmp_path / "two", "--size", 48) == 0
    scene = (tmp_path / "one" / "scene.ply").read_bytes()
    assert (tmp_path / "two" / "scene.ply").read_bytes() == scene
    for newer in sorted((tmp_path / "one" / "checkpoint").iterdir()):
        if int(newer.name) > 12:
            shutil.rmtree(newer)
    assert run("resume", tmp_path / "one", "--size", 48) == 0
    assert (tmp_path / "one" / "scene.ply").read_bytes() == scene


def test_plans_that_cannot_be_are_refused(tmp_path, capsys):
    for given, words in (
        (["x", "active=vdm"], ["--at x", "STEP PATH=VALUE"]),
        (["5", "active"], ["--at 5", "STEP PATH=VALUE"]),
        (["30", "active=vdm"], ["--at 30", "0 to 29"]),
        (["5", "active=vdx"], ["active", "'vdx'", "vdm"]),
        (["5", "losses.vdm.cfg=900"], ["losses.vdm.cfg", "900"]),
    ):
        assert run("run", "mixture", "--steps", 30, "--at", *given, "--out", tmp_path / "x") == 2
        text = capsys.readouterr().err
        assert all(word in text for word in words), text
    assert run("replay", tmp_path, "--out", tmp_path / "y") == 2
    assert "settings.toml" in capsys.readouterr().err


def test_a_contact_sheet_of_runs(done, tmp_path, capsys):
    assert run("sheet", done, done, "--out", tmp_path / "sheet.png") == 0
    sheet, strip = np.asarray(Image.open(tmp_path / "sheet.png")), np.asarray(Image.open(done / "turntable.png"))
    assert sheet.shape[0] > 2 * strip.shape[0]
    assert np.array_equal(sheet[30 : 30 + 48, 8:-8], strip)
    assert run("sheet", done, tmp_path, "--out", tmp_path / "other.png") == 2
    assert f"{tmp_path} is not the folder of a finished run" in capsys.readouterr().err
    assert run("sheet", done, "--out", tmp_path / "sheet.gif") == 2


@pytest.mark.parametrize("what", [*bench.BENCHES, *experiments.PLOTTED])
def test_a_bench_runs_its_module_and_names_the_file_it_wrote(what, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(bench.BENCHES[what][0] if what in bench.BENCHES else experiments.PLOTTED[what][0])
    asked = []
    monkeypatch.setattr(module, "run", lambda out, quick, **more: asked.append((out, quick)))
    monkeypatch.chdir(tmp_path)
    assert run("bench", what, "--quick") == 0
    assert asked == [(Path(f"bench-{what}.json"), True)]
    assert f"written to bench-{what}.json" in capsys.readouterr().out
