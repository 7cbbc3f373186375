"""Runs on the command line lose nothing: not the run before, not an input, not their own work."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from waiting import until

import sdlab.live.session as session_module
from sdlab import cli, files, headless
from sdlab.export import writers
from sdlab.headless import folder as run_folder
from sdlab.live import checkpoint, loop
from sdlab.live.diary import Recorder, changes_in
from sdlab.live.messages import Applied, Failed, Rejected, Skipped, Stepped
from sdlab.options import PATHS, paths_in, plan_for, planned_end
from sdlab.settings import default_settings, preset, priors, scenes, to_toml

ROOT = Path(__file__).parents[1]
SMALL = ["--set", "scene.n_init=60", "--set", "scene.max_gaussians=80", "--size", "16"]
SMALL_FIELD = (
    "prior.images",
    "prior.null_images",
    "prior.size",
    "scene.resolution",
    "scene.samples",
    "camera.resolution",
)
TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def last_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run("run", "mixture", *SMALL, "--steps", 8, "--at", 5, "losses.sds.cfg=9", "--out", out) == 0
    return out


@pytest.fixture
def done(finished, tmp_path):
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "done"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The settings of a run of images under exact scores."""
    from sdlab.scenes.image import Images

    file = tmp_path_factory.mktemp("images") / "images.toml"
    s = dataclasses.replace(preset("mixture"), scene=Images(n=2))
    file.write_text(to_toml(s.patch("prompt.view_dependent", False)))
    return file


@pytest.fixture(scope="module")
def illusions(images):
    """The settings of a run of illusions that writes every kind of file."""
    from sdlab.scenes.illusion import Illusion
    from sdlab.settings import from_toml

    file = images.with_name("illusions.toml")
    s = dataclasses.replace(from_toml(images.read_text()), scene=Illusion(n=1, transform="overlay"))
    file.write_text(to_toml(s))
    return file


@pytest.fixture(scope="module")
def outputs(finished, images, illusions, tmp_path_factory):
    """The names of all files that runs of every kind of scene write."""
    folder = tmp_path_factory.mktemp("kinds")
    names = {p.name for p in finished.iterdir()}
    kinds = {"splats"}
    small = {"gallery-field": [x for knob in SMALL_FIELD for x in ("--set", f"{knob}=16")]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.scenes.illusion.FILM_SIZE", 32)
        for settings in (images, illusions, "playground", "playground-gaussian", "gallery-field"):
            out = folder / Path(settings).stem
            more = small.get(str(settings), [])
            assert run("run", settings, *more, "--steps", 2, "--size", 16, "--out", out) == 0
            kinds.add(json.loads((out / "result.json").read_text())["preset"])
            names |= {p.name for p in out.iterdir()}
    assert len(kinds) == len(scenes()), "a kind of scene is missing here"
    return sorted(names)


# ---- what is in the folder already -------------------------------------------------------------------------------


def test_each_output_of_each_kind_of_run_makes_a_folder_contain_a_run(outputs, tmp_path, capsys):
    expected = {"scene.ply", "pictures.png", "picture-00.png", "trajectories.png", "samples.png", "beside-sds.png"}
    assert {*expected, "sheet-01.png", "turn.gif"} <= set(outputs)
    for name in outputs:
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        assert run("run", "mixture", *SMALL, "--steps", 1, "--out", out) == 2
        line = last_line(capsys)
        assert "already contains a run" in line
        assert name in line
        assert contents(out) == {name: b"mine"}


FILE = ["mixture", "--set", "scene.start=file", "--set"]
BAD = {
    "a prior that is not there": ["toybox", "--prior", "{tmp}/nothing"],
    "a prior that is a file": ["toybox", "--prior", "{tmp}/text"],
    "a preset that is not there": ["toybx"],
    "a settings file that is not there": ["{tmp}/nothing.toml"],
    "a file that is not there": [*FILE, "scene.file={tmp}/nothing.glb"],
    "a file of no format": [*FILE, "scene.file={tmp}/text"],
    "a picture that is not there": ["{images}", "--set", "scene.start=picture", "--set", "scene.picture={tmp}/x.png"],
    "a device that is not there": ["mixture", "--device", "cuda:77"],
    "a device that cannot be": ["mixture", "--device", "tpu"],
    "an unknown knob": ["mixture", "--set", "losses.sds.cgf=3"],
    "a value that is out of range": ["mixture", "--set", "losses.sds.cfg=900"],
    "a plan after the end": ["mixture", "--at", "77", "active=vdm"],
    "a start text without an object": ["mixture", "--set", "scene.start=object", "--set", "scene.start_text=zzz"],
}


@pytest.mark.parametrize("what", BAD)
def test_overwrite_with_a_bad_input_keeps_the_run(what, done, images, tmp_path, capsys):
    (tmp_path / "text").write_text("no mesh")
    before = contents(done)
    bad = [a.replace("{tmp}", str(tmp_path)).replace("{images}", str(images)) for a in BAD[what]]
    assert run("run", *bad, "--steps", 3, "--out", done, "--overwrite") == 2
    last_line(capsys)
    assert contents(done) == before


def test_replay_over_a_run_with_a_start_that_is_gone_keeps_it(done, finished, tmp_path, capsys):
    source = Path(shutil.copytree(finished, tmp_path / "source"))
    text = (source / "settings.toml").read_text()
    (source / "settings.toml").write_text(text.replace("[scene]", '[scene]\nstart = "file"\nfile = "nothing.obj"', 1))
    before = contents(done)
    assert run("replay", source, "--out", done, "--overwrite") == 2
    assert "nothing.obj" in last_line(capsys)
    assert contents(done) == before


def failing_step(monkeypatch, at: int, error: BaseException) -> None:
    """Let step number `at` of a run raise `error`."""
    step = loop.step

    def failing(state, *rest):
        if state.step == at:
            raise error
        return step(state, *rest)

    monkeypatch.setattr(loop, "step", failing)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), OSError(5, "I/O error")])
def test_a_run_that_fails_at_its_first_step_does_not_replace_another(error, done, monkeypatch, capsys):
    before = contents(done)
    failing_step(monkeypatch, 0, error)
    assert run("run", "mixture", *SMALL, "--steps", 3, "--out", done, "--overwrite") == 2
    assert "untouched" in last_line(capsys)
    assert contents(done) == before


def test_a_run_that_cannot_be_written_does_not_replace_another(done, monkeypatch, capsys):
    before = contents(done)
    no_room(monkeypatch)
    assert run("run", "mixture", *SMALL, "--steps", 3, "--out", done, "--overwrite") == 2
    assert "untouched" in last_line(capsys)
    assert contents(done) == before


def test_a_replaced_run_leaves_nothing_behind(done, images):
    assert run("run", images, "--steps", 2, "--out", done, "--overwrite") == 0
    names = {p.name for p in done.iterdir()}
    assert not names & {"scene.ply", "turntable.png", "turntable.mp4"}
    assert {int(p.name) for p in (done / "checkpoint").iterdir()} == {1, 2}
    assert [json.loads(x)["step"] for x in (done / "metrics.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("command", ["run", "run --overwrite", "replay", "resume"])
def test_a_folder_in_use_is_left_alone(command, done, finished, tmp_path, capsys):
    holder = [sys.executable, "-c", "import sys; from pathlib import Path; from sdlab.files import held\n"]
    holder[-1] += "with held(Path(sys.argv[1])): print('held', flush=True); input()"
    process = subprocess.Popen([*holder, str(done)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    before = contents(done)
    arguments = {
        "run": ["run", "mixture", "--out", done],
        "run --overwrite": ["run", "mixture", "--out", done, "--overwrite"],
        "replay": ["replay", finished, "--out", done, "--overwrite"],
        "resume": ["resume", done, "--steps", "9"],
    }[command]
    assert run(*arguments) == 2
    line = last_line(capsys)
    assert str(done) in line
    assert f"process {process.pid}" in line
    assert contents(done) == before
    process.kill()
    process.wait()
    with files.held(done):  # the system has released the lock of the killed process
        pass
    assert not (done / files.LOCK).exists()


# ---- inputs ------------------------------------------------------------------------------------------------------


def test_every_knob_with_a_text_is_known_to_be_a_path_or_not():
    texts = {"prompt.text", "prompt.negative", "prompt.target", "prompt.source", "scene.start_text", "active"}
    texts |= {"prior.revision", "prior.variant", "prompt.second", "prompt.third", "prompt.fourth", "scene.drawn"}
    for prior in priors():
        for scene in scenes():
            for path, knob in default_settings(prior, scene).knobs().items():
                if knob.type is str and knob.choices is None:
                    assert (path in PATHS) != (path in texts), f"{path}: add it to options.PATHS if it names a file"


INPUTS = {
    "settings": ("settings.toml", ["run", "{in}"]),
    "scene.file": ("scene.ply", ["run", "mixture", "--set", "scene.start=file", "--set", "scene.file={in}"]),
    "scene.picture": (
        "pictures.png",
        ["run", "{images}", "--set", "scene.start=picture", "--set", "scene.picture={in}"],
    ),
    "prior.path": ("checkpoint/model", ["run", "toybox", "--prior", "{in}"]),
    "scene.shap_e": ("checkpoint", ["run", "toybox", "--set", "scene.start=shap-e", "--set", "scene.shap_e={in}"]),
    "planned": ("checkpoint/model", ["run", "toybox", "--at", "1", "prior.path={in}"]),
    "replay": ("checkpoint/run", ["replay", "{in}"]),
}


@pytest.mark.parametrize("how", ["direct", "relative", "link to it", "link in its place"])
@pytest.mark.parametrize("what", INPUTS)
def test_an_input_is_not_overwritten(what, how, finished, images, tmp_path, monkeypatch, capsys):
    name, arguments = INPUTS[what]
    out = tmp_path / "out"
    given = out / name
    given.parent.mkdir(parents=True)
    if what == "settings":
        shutil.copy(finished / "settings.toml", given)
    elif what == "scene.file":
        given.write_text(TETRAHEDRON)
    elif what == "scene.picture":
        Image.new("RGB", (8, 8)).save(given)
    elif what == "replay":
        shutil.copytree(finished, given)
    else:
        given.mkdir()
        (given / "model_index.json").write_text("{}")
    if how == "link to it":
        given = tmp_path / "link.toml"
        given.symlink_to(out / name)
    elif how == "link in its place":
        given = tmp_path / f"real-{Path(name).name}"
        (out / name).rename(given)
        (out / name).symlink_to(given)
        if what in ("prior.path", "planned", "replay"):
            pytest.skip("a link inside the checkpoint folder is removed, what it points to is not")
    elif how == "relative":
        monkeypatch.chdir(out)
        given = Path(name)
    before = contents(tmp_path)
    filled = [a.replace("{in}", str(given)).replace("{images}", str(images)) for a in arguments]
    assert run(*filled, "--out", out, "--overwrite") == 2
    line = last_line(capsys)
    assert "would be overwritten" in line, line
    assert contents(tmp_path) == before


def test_a_folder_of_inputs_is_not_written_to(finished, tmp_path, capsys):
    (tmp_path / "mine.png").write_text("mine")
    shutil.copy(finished / "scene.ply", tmp_path)
    assert run("run", "toybox", "--prior", tmp_path, "--out", tmp_path, "--overwrite") == 2
    assert "would be overwritten" in last_line(capsys)


def test_a_name_of_a_prior_is_not_the_folder_of_results_that_has_its_name(tmp_path, monkeypatch, capsys):
    """`run toybox --out toybox`, twice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toybox").mkdir()
    (tmp_path / "toybox" / "scene.ply").write_text("an earlier result")
    run_folder.must_have_room(Path("toybox"), True, [("prior.path", "toybox")])
    with pytest.raises(ValueError, match="already contains a run"):
        run_folder.must_have_room(Path("toybox"), False, [("prior.path", "toybox")])


def test_a_sheet_does_not_replace_a_turntable_of_its_runs(done, capsys):
    before = contents(done)
    assert run("sheet", done, "--out", done / "turntable.png") == 2
    assert "would be overwritten" in last_line(capsys)
    assert contents(done) == before


# ---- full disks --------------------------------------------------------------------------------------------------


def no_room(monkeypatch, fails=lambda number: True, error=None) -> list[int]:
    """Let the saves of checkpoints fail whose number, from 1, `fails` chooses; return the numbers of all so far."""
    save, numbers = checkpoint.save_file, []

    def failing(*args, **kwargs):
        numbers.append(len(numbers) + 1)
        if fails(numbers[-1]):
            raise error or OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    return numbers


@pytest.mark.parametrize("kind", ["OSError", "SafetensorError", "diary"])
def test_a_periodic_save_that_fails_is_said_and_the_run_goes_on(kind, tmp_path, monkeypatch, capsys):
    from safetensors import SafetensorError

    monkeypatch.setattr(headless, "CHECKPOINT_EVERY", 0)
    if kind == "diary":
        count: list[int] = []

        def fsync(handle):
            count.append(handle)
            if 2 <= len(count) <= 3:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("sdlab.live.diary.os", SimpleNamespace(fsync=fsync, SEEK_END=os.SEEK_END))
    else:
        error = SafetensorError("I/O error: No space left on device") if kind == "SafetensorError" else None
        no_room(monkeypatch, lambda number: 2 <= number <= 4, error)
    assert run("run", "mixture", *SMALL, "--steps", 8, "--out", tmp_path / "a") == 0
    err = capsys.readouterr().err
    assert "could not be saved" in err
    assert "No space left on device" in err
    assert "the run continues" in err
    assert checkpoint.load(tmp_path / "a" / "checkpoint").step == 8
    assert [json.loads(x)["step"] for x in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()] == [
        *range(1, 9)
    ]


def test_a_last_save_that_fails_is_an_error_and_the_results_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(headless, "CHECKPOINT_EVERY", 0)
    no_room(monkeypatch, lambda number: number > 3)
    out = tmp_path / "a"
    assert run("run", "mixture", *SMALL, "--steps", 8, "--out", out) == 2
    line = last_line(capsys)
    assert "the checkpoint of step 8 could not be saved" in line
    assert "the last one is of step 3" in line
    assert (out / "scene.ply").is_file()
    monkeypatch.undo()
    assert run("resume", out, "--size", 16) == 0
    assert checkpoint.load(out / "checkpoint").step == 8


FULL = """
import resource, sys
from pathlib import Path
from sdlab import cli, headless
from sdlab.headless import folder as run_folder
from sdlab.live import checkpoint
headless.CHECKPOINT_EVERY = 0
sys.dont_write_bytecode = True  # Python 3.11 does not notice that a .pyc file was cut off
small = ["--set", "scene.n_init=60", "--set", "scene.max_gaussians=80", "--size", "48", "--steps", "6"]
for limit in map(int, sys.argv[2:]):
    out = Path(sys.argv[1]) / str(limit)
    code = cli.main(["run", "mixture", *small, "--steps", "3", "--out", str(out)])
    assert code == 0
    good = checkpoint.load(out / "checkpoint").step
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print("limit", limit, file=sys.stderr, flush=True)
    code = cli.main(["resume", str(out), "--steps", "6", "--size", "48"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("code", code, checkpoint.load(out / "checkpoint").step, file=sys.stderr, flush=True)
    if code:
        assert cli.main(["resume", str(out), "--steps", "6", "--size", "48"]) == 0
    assert run_folder.complete(out, 6)
    assert not [p.name for p in out.rglob(".*")]
"""
SIZES = [0, 100, 700, 3000, 9000, 20000, 40000, 60000, 80000, 100000]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(SIZES[1::4], marks=pytest.mark.slow),
        pytest.param([*range(0, 30000, 1000), *range(30000, 150000, 10000)], marks=pytest.mark.nightly),
    ],
)
def test_files_that_may_not_grow_cost_no_checkpoint_and_one_line(sizes, tmp_path):
    """Every size at which a file of a run can be cut: settings, diary, checkpoint, PLY, PNG, MP4."""
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), *map(str, sizes)], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Traceback" not in process.stderr
    codes = [line.split()[1:] for line in process.stderr.splitlines() if line.startswith("code ")]
    assert len(codes) == len(sizes)
    assert codes[0][0] == "2", "the smallest is too small for anything"
    assert codes[-1] == ["0", "6"], "the largest is enough"
    assert all(code in "02" and 3 <= int(step) <= 6 for code, step in codes), codes


def test_results_that_cannot_be_written_say_how_to_get_them(tmp_path, monkeypatch, capsys):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(writers, "write_ply", full)
    out = tmp_path / "a"
    assert run("run", "mixture", *SMALL, "--steps", 2, "--out", out) == 2
    line = last_line(capsys)
    assert all(word in line for word in ("results", str(out), "No space left", "resume")), line
    monkeypatch.undo()
    assert run("resume", out, "--size", 16) == 0
    assert (out / "turntable.mp4").is_file()


def test_earlier_results_stay_until_all_new_ones_are_there(done, monkeypatch):
    before = {name: content for name, content in contents(done).items() if "turntable" in name or "scene" in name}

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers, "write_film", fails)
    assert run("resume", done, "--steps", 10, "--size", 16) == 2
    now = contents(done)
    assert {name: now[name] for name in before} == before
    assert not [name for name in now if name.startswith(".")]


# ---- resume ------------------------------------------------------------------------------------------------------


def write_start(kind: str, folder: Path, images: Path, monkeypatch) -> list[str]:
    """Make what a run starts from; return the arguments that use it."""
    if kind == "mesh":
        (folder / "start.obj").write_text(TETRAHEDRON)
        return ["mixture", "--set", "scene.start=file", "--set", f"scene.file={folder}/start.obj", *SMALL]
    if kind == "picture":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "start.png")
        return [str(images), "--set", "scene.start=picture", "--set", f"scene.picture={folder}/start.png"]
    if kind == "settings":
        shutil.copy(images, folder / "start.toml")
        return [f"{folder}/start.toml"]
    from sdlab.scenes import splats
    from sdlab.types import Cloud

    points = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    monkeypatch.setattr(splats, "shap_e_points", lambda *_, **__: Cloud(points, np.full((60, 3), 0.5, np.float32)))
    return ["mixture", "--set", "scene.start=shap-e", *SMALL]


@pytest.mark.parametrize("kind", ["mesh", "picture", "settings", "shap-e"])
def test_resume_needs_nothing_that_only_the_start_needed(kind, images, tmp_path, monkeypatch):
    """It asks no start again, and gives the run that was not interrupted."""
    (tmp_path / "start").mkdir()
    start = write_start(kind, tmp_path / "start", images, monkeypatch)
    assert run("run", *start, "--steps", 6, "--out", tmp_path / "whole") == 0
    signal_at(monkeypatch, 3, signal.SIGINT)
    assert run("run", *start, "--steps", 6, "--out", tmp_path / "part") == 130
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "start")
    assert run("resume", tmp_path / "part", "--size", 16) == 0
    whole, part = (
        load_file(tmp_path / name / "checkpoint" / "00000006" / "tensors.safetensors") for name in ("whole", "part")
    )
    assert whole.keys() == part.keys()
    assert all(bool((whole[k] == part[k]).all()) for k in whole)


def test_each_missing_result_is_written_by_resume_at_the_planned_end(finished, images, tmp_path, capsys):
    names = json.loads((finished / "result.json").read_text())["files"]
    assert {"scene.ply", "turntable.png", "turntable.mp4", "cameras.json"} == set(names)
    for name in (*names, "result.json"):
        out = Path(shutil.copytree(finished, tmp_path / name))
        assert run("resume", out, "--size", 16) == 2
        assert "already at step 8" in last_line(capsys)
        (out / name).unlink()
        assert run("resume", out, "--size", 16) == 0
        assert (out / name).read_bytes() == (finished / name).read_bytes() or name == "result.json"
        assert json.loads((out / "result.json").read_text())["steps"] == 8
        assert run("resume", out, "--steps", 8, "--size", 16) == 2
        assert "--steps 8" in last_line(capsys)


def edited(text: str, how: str) -> bytes:
    return {
        "prompt": text.replace("[scene]", '[prompt]\ntext = "a blue car"\n[scene]', 1).encode(),
        "number": text.replace("steps = 8", "steps = 30").encode(),
        "unknown knob": b"nonsense = 3\n" + text.encode(),
        "not TOML": b"[[[",
        "not text": b"\xff\xfe\x00",
        "reformatted": b"# a comment\n\n" + text.encode(),
        "removed": b"",
    }[how]


@pytest.mark.parametrize("how", ["prompt", "number", "unknown knob", "not TOML", "not text", "reformatted", "removed"])
def test_edited_settings_are_said_by_resume_and_have_no_effect(how, done, capsys):
    before = (done / "settings.toml").read_text()
    (done / "settings.toml").write_bytes(edited(before, how))
    if how == "removed":
        (done / "settings.toml").unlink()
    assert run("resume", done, "--steps", 9, "--size", 16) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "was edited" in line]
    assert len(said) == (how not in ("reformatted", "removed"))
    if how in ("prompt", "number"):
        assert ("a blue car" if how == "prompt" else "steps = 30") in said[0]
    assert json.loads((done / "result.json").read_text())["prompt"] == "a red bear"


def test_edited_settings_and_changed_files_are_said_by_replay(tmp_path, capsys):
    mesh, out = tmp_path / "start.obj", tmp_path / "run"
    mesh.write_text(TETRAHEDRON)
    start = ["--set", "scene.start=file", "--set", f"scene.file={mesh}"]
    assert run("run", "mixture", *SMALL, *start, "--steps", 3, "--out", out) == 0
    assert run("replay", out, "--out", tmp_path / "same", "--size", 16) == 0
    err = capsys.readouterr().err
    assert "was edited" not in err
    assert "has changed" not in err
    assert (tmp_path / "same" / "scene.ply").read_bytes() == (out / "scene.ply").read_bytes()
    mesh.write_text(TETRAHEDRON.replace("v 1 0 0", "v 3 0 0"))
    settings = out / "settings.toml"
    settings.write_text(settings.read_text().replace("steps = 3", "steps = 4"))
    assert run("replay", out, "--out", tmp_path / "other", "--size", 16) == 0
    err = capsys.readouterr().err
    assert "steps = 4" in err
    assert f"scene.file ({mesh}) has changed since the run began" in err


def test_a_gallery_that_has_changed_is_said_by_resume_and_replay(tmp_path):
    """Its images are what the run learns from."""
    archive = tmp_path / "gallery.zip"
    archive.write_bytes(b"before")
    s = default_settings("gallery", "splats").patch_all([("prior.source", "folder"), ("prior.path", str(archive))])
    record = {"inputs": run_folder.digests(paths_in(s))}
    assert run_folder.changed(s, record) == []
    archive.write_bytes(b"after")
    assert run_folder.changed(s, record) == [f"prior.path ({archive}) has changed since the run began"]
    archive.unlink()
    assert run_folder.changed(s, record) == []


def test_a_damaged_newest_checkpoint_is_said_and_the_older_one_continues(done, finished, capsys):
    older = checkpoint.load(done / "checkpoint").step
    assert run("resume", done, "--steps", 12, "--size", 16) == 0
    scene = (done / "scene.ply").read_bytes()
    for file in (done / "checkpoint" / "00000012").iterdir():
        if file.name == "tensors.safetensors":
            raw = bytearray(file.read_bytes())
            raw[-3] ^= 1
            file.write_bytes(raw)
    capsys.readouterr()
    assert run("resume", done, "--steps", 12, "--size", 16) == 0
    err = capsys.readouterr().err
    assert "00000012 is broken" in err
    assert f"continues from step {older}" in err
    assert (done / "scene.ply").read_bytes() == scene
    names = {p.name for p in (done / "checkpoint").iterdir()}
    assert names == {"00000008", "00000012", "00000012.damaged"}


def test_the_plan_of_a_run_is_in_its_checkpoints(tmp_path, monkeypatch):
    """A run.json that is lost or damaged does not cost the planned changes."""
    for name in ("whole", "part"):
        if name == "part":
            signal_at(monkeypatch, 3, signal.SIGINT)
        plan = ["--at", 5, "losses.sds.cfg=2"]
        code = run("run", "mixture", *SMALL, "--steps", 8, *plan, "--out", tmp_path / name)
        assert code == (130 if name == "part" else 0)
    monkeypatch.undo()
    (tmp_path / "part" / "run.json").write_text("{")
    assert run("resume", tmp_path / "part", "--size", 16) == 0
    assert (tmp_path / "part" / "scene.ply").read_bytes() == (tmp_path / "whole" / "scene.ply").read_bytes()


def test_a_run_of_0_1_resumes_with_its_plan(tmp_path):
    old = Path(shutil.copytree(ROOT / "tests" / "data" / "run_of_0_1", tmp_path / "old"))
    assert run("resume", old, "--steps", 14, "--size", 16) == 0
    assert checkpoint.load(old / "checkpoint").checked
    assert json.loads((old / "result.json").read_text())["steps"] == 14


def test_a_run_of_0_1_with_a_damaged_record_says_that_its_plan_is_lost(tmp_path, capsys):
    old = Path(shutil.copytree(ROOT / "tests" / "data" / "run_of_0_1", tmp_path / "old"))
    (old / "run.json").write_text("{")
    assert run("resume", old, "--steps", 14, "--size", 16) == 0
    assert "planned with --at are not known" in capsys.readouterr().err


# ---- signals -----------------------------------------------------------------------------------------------------

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def signal_at(monkeypatch, at: int, number: int, times: int = 1) -> None:
    """Send a signal to this process before step `at`."""
    step = loop.step

    def signalled(state, *rest):
        if state.step == at:
            for _ in range(times):
                signal.raise_signal(number)
        return step(state, *rest)

    monkeypatch.setattr(loop, "step", signalled)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["run", "resume", "replay"])
def test_a_signal_ends_a_run_with_checkpoint_and_results(number, command, done, tmp_path, monkeypatch, capsys):
    before = [signal.getsignal(each) for each in SIGNALS]
    at = 9 if command == "resume" else 4
    signal_at(monkeypatch, at, number, times=1 if number == signal.SIGINT else 2)
    out = done if command == "resume" else tmp_path / "new"
    arguments = {
        "run": ["run", "mixture", "--set", "scene.n_init=60", "--steps", 99, "--out", out],
        "resume": ["resume", out, "--steps", 99],
        "replay": ["replay", done, "--out", out],
    }[command]
    assert run(*arguments, "--size", 16) == 130
    stopped = checkpoint.load(out / "checkpoint").step
    assert at <= stopped <= at + 1
    assert json.loads((out / "result.json").read_text())["steps"] == stopped
    assert run_folder.complete(out, stopped)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_while_loading_ends_the_run_before_it_begins(number, swallowed, done, monkeypatch, capsys):
    """A library may swallow the interrupt."""
    from sdlab.priors.mixture import MixturePrior

    load = MixturePrior.load

    def signalled(*args):
        with contextlib.suppress(KeyboardInterrupt) if swallowed else contextlib.nullcontext():
            signal.raise_signal(number)
        return load(*args)

    monkeypatch.setattr(MixturePrior, "load", signalled)
    before = contents(done)
    assert run("run", "mixture", *SMALL, "--steps", 5, "--out", done, "--overwrite") == 130
    assert last_line(capsys) == "sdlab: interrupted"
    assert contents(done) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_step_does_not_replace_a_run(number, done, monkeypatch):
    prepare = session_module.Session.run

    def signalled(self, *args, **kwargs):
        signal.raise_signal(number)
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(session_module.Session, "run", signalled)
    before = contents(done)
    assert run("run", "mixture", *SMALL, "--steps", 5, "--out", done, "--overwrite") == 130
    assert contents(done) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_export_lets_it_finish(number, tmp_path, monkeypatch):
    film = writers.write_film

    def signalled(*args, **kwargs):
        signal.raise_signal(number)
        return film(*args, **kwargs)

    monkeypatch.setattr(writers, "write_film", signalled)
    assert run("run", "mixture", *SMALL, "--steps", 3, "--out", tmp_path / "a") == 130
    assert run_folder.complete(tmp_path / "a", 3)


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with headless.interruptible(lambda: None) as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
            signal.raise_signal(signal.SIGTERM)
            assert interrupted()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts():
    with headless.interruptible(lambda: None):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_keeps_its_results(tmp_path):
    """The kernel sends SIGHUP, and writing to the terminal fails from then on."""
    master, slave = os.openpty()
    command = [
        sys.executable,
        "-m",
        "sdlab",
        "run",
        "mixture",
        *SMALL,
        "--steps",
        "100000",
        "--out",
        str(tmp_path / "o"),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_own_terminal, close_fds=True
    )
    os.close(slave)
    metrics = tmp_path / "o" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, 90)
    os.close(master)
    assert process.wait(60) == 130
    step = checkpoint.load(tmp_path / "o" / "checkpoint").step
    assert run_folder.complete(tmp_path / "o", step)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize(
    "times", [pytest.param(1, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.nightly)]
)
def test_kill_9_and_resume_give_the_run_that_was_not_killed(times, tmp_path):
    """Killed at random, resumed, and killed again: bit for bit, with every line of the diary once."""
    steps, rng = 100 + 150 * times, random.Random(7)
    common = ["run", "mixture", *SMALL, "--steps", str(steps), "--at", "60", "losses.sds.cfg=30"]
    assert run(*common, "--out", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    environment = {**os.environ, "SDLAB_CHECKPOINT_EVERY": "0.02", "OMP_NUM_THREADS": "1"}
    torn, folder = 0, out / "checkpoint"

    def saved() -> set[str]:
        return {p.name for p in folder.iterdir()} if folder.exists() else set()

    for _ in range(times):
        before = saved()
        arguments = ["resume", str(out), "--size", "16"] if before else [*common, "--out", str(out)]
        process = subprocess.Popen(
            [sys.executable, "-m", "sdlab", *arguments], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        )
        until(lambda p=process, b=before: saved() != b or p.poll() is not None, 120)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02 + 0.15 * rng.random())
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        torn += any(name.startswith(".") for name in saved())
    print(f"{torn} of {times} in the middle of a save")
    assert run("resume", out, "--size", 16) == 0
    assert run_folder.complete(out, steps)
    last = Path("checkpoint", f"{steps:08d}", "tensors.safetensors")
    a, b = (load_file(tmp_path / name / last) for name in ("whole", "killed"))
    assert a.keys() == b.keys()
    assert all(bool((a[k] == b[k]).all()) for k in a)
    for name in ("scene.ply", "turntable.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    kept = [(line["step"], line.get("event")) for line in diary(out)]
    assert kept == [(line["step"], line.get("event")) for line in diary(tmp_path / "whole")]
    assert not list(out.rglob(".*"))


# ---- failures ----------------------------------------------------------------------------------------------------


ERRORS = [RuntimeError("the network broke"), MemoryError(), OSError(5, "I/O error"), ValueError("x"), SystemExit(3)]


@pytest.mark.parametrize("command", ["run", "resume", "replay"])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_step_that_fails_ends_with_2_and_the_state_before_it(error, command, done, tmp_path, monkeypatch, capsys):
    failing_step(monkeypatch, 8 if command == "resume" else 2, error)
    out = done if command == "resume" else tmp_path / "new"
    arguments = {
        "run": ["run", "mixture", *SMALL, "--steps", 5, "--out", out],
        "resume": ["resume", out, "--steps", 12],
        "replay": ["replay", done, "--out", out],
    }[command]
    assert run(*arguments) == 2
    line = last_line(capsys)
    at = 8 if command == "resume" else 2
    assert f"stopped at step {at}" in line
    assert checkpoint.load(out / "checkpoint").step == at


# ---- ends and diaries --------------------------------------------------------------------------------------------


def diary(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_where_its_schedule_ends(tmp_path, capsys):
    late = ["mixture", *SMALL, "--set", "schedule.start=4", "--steps", 3]
    assert run("run", *late, "--at", 6, "losses.sds.cfg=5", "--out", tmp_path / "a") == 0
    assert diary(tmp_path / "a")[-1]["step"] == 7
    assert run("run", *late, "--at", 7, "losses.sds.cfg=5", "--out", tmp_path / "b") == 2
    assert "allowed are 0 to 6" in last_line(capsys)
    moved = ["--at", 2, "steps=5", "--at", 8, "schedule.start=6"]
    assert run("run", *late, *moved, "--out", tmp_path / "c") == 0
    assert diary(tmp_path / "c")[-1]["step"] == 11
    assert run("run", *late, "--at", 2, "steps=1", "--out", tmp_path / "d") == 0
    assert diary(tmp_path / "d")[-1]["step"] == 5


def test_the_planned_end_follows_the_plan_in_order():
    s = preset("mixture").patch("steps", 10)
    plan = plan_for(s, [("12", "steps=20"), ("5", "steps=15")])
    assert [step for step, _ in plan] == [5, 12]
    assert planned_end(s, plan) == 20
    assert planned_end(s.patch("steps", 15), plan, done=6) == 20
    assert planned_end(s, [(3, [("steps", -1)]), (4, [("steps", 12)])]) == 12, "a change that is refused moves nothing"


def test_resume_at_the_step_of_a_change_writes_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr(headless, "CHECKPOINT_EVERY", 0)
    arguments = ["run", "mixture", *SMALL, "--steps", 6, "--at", 3, "losses.sds.cfg=30"]
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    signal_at(monkeypatch, 3, signal.SIGINT)
    assert run(*arguments, "--out", tmp_path / "part") == 130
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "part" / "checkpoint" / "00000004")
    assert {"step": 3, "event": "applied"}.items() <= diary(tmp_path / "part")[3].items()
    assert run("resume", tmp_path / "part", "--size", 16) == 0
    events = [[(x["step"], x.get("event")) for x in diary(tmp_path / name)] for name in ("whole", "part")]
    assert events[0] == events[1]
    assert events[0].count((3, "applied")) == 1


def test_every_event_at_the_step_of_a_resume_is_written_again_or_kept(tmp_path):
    events = [
        Stepped.of(2),
        Skipped(2, "gradient"),
        Stepped.of(3),
        Applied(3, "active", "vdm"),
        Rejected(3, "active", "vdm", "no memory"),
        Failed(3, "no memory"),
        Skipped(3, "gradient"),
        Stepped.of(4),
    ]
    file = tmp_path / "metrics.jsonl"
    recorder = Recorder(file)
    for event in events:
        recorder(event)
    recorder.close()
    with file.open("ab") as open_file:
        open_file.write(b'3\n"x"\n[]\n\xff\xfe\n{"step": 4, "ev')
    again = Recorder(file, keep_until=3)
    for event in events[3:]:
        again(event)
    again.close()
    assert [(x["step"], x.get("event")) for x in diary(tmp_path)] == [
        *((2, None), (2, "skipped"), (3, None), (3, "applied"), (3, "rejected"), (3, "failed"), (3, "skipped")),
        (4, None),
    ]
    assert changes_in(file) == ([], 4)


@pytest.mark.parametrize("at", range(0, 200, 23))
def test_a_diary_on_a_full_disk_keeps_its_lines_and_writes_them_later(at, tmp_path):
    file = tmp_path / "metrics.jsonl"
    recorder = Recorder(file)
    recorder(Stepped.of(1, loss=1.0))
    recorder.flush()
    real, room = recorder._file, [at]

    class Full:
        """A file with room for `at` more bytes."""

        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, raw):
            if room[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            part = bytes(raw[: room[0]])
            room[0] -= len(part)
            return real.write(part)

    recorder._file = Full()
    for step in range(2, 12):
        recorder(Stepped.of(step, loss=1.0))
    recorder.flush()
    assert "No space left" in recorder.problem
    assert [x["step"] for x in diary(tmp_path)] == [1], "no line is cut"
    recorder._file = real
    recorder(Stepped.of(12, loss=1.0))
    recorder.close()
    assert recorder.problem == ""
    assert [x["step"] for x in diary(tmp_path)] == list(range(1, 13))


# ---- messages ----------------------------------------------------------------------------------------------------

ENCODINGS = {"utf-8": True, "utf-8-sig": True, "latin-1": False, "utf-16": False, "utf-32": False, "cp1252": False}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["s.toml", "S.TOML"])
def test_settings_are_read_in_utf_8_and_other_encodings_are_named(name, encoding, finished, tmp_path, capsys):
    file = tmp_path / name
    text = (finished / "settings.toml").read_text().replace("[scene]", '[prompt]\ntext = "ein Bär"\n[scene]', 1)
    file.write_bytes(text.encode(encoding))
    code = run("run", file, "--size", 16, "--steps", 1, "--out", tmp_path / "out")
    if ENCODINGS[encoding]:
        assert code == 0
        assert json.loads((tmp_path / "out" / "result.json").read_text())["prompt"] == "ein Bär"
    else:
        assert code == 2
        line = last_line(capsys)
        assert str(file) in line
        assert "UTF-8" in line


@pytest.mark.parametrize("given", ["nothing.toml", "folder.toml"])
def test_settings_that_cannot_be_read_are_named(given, tmp_path, capsys):
    (tmp_path / "folder.toml").mkdir()
    assert run("run", tmp_path / given, "--out", tmp_path / "out") == 2
    assert f"{tmp_path / given} cannot be read" in last_line(capsys)


IMPOSSIBLE = {"no user": "~nosuchuser/x", "too long": "x" * 400, "null": "a\0b", "surrogate": "a\udce9b"}
PLACES = {"prior.path": "toybox", "scene.file": "mixture", "scene.picture": "{images}", "scene.shap_e": "mixture"}


@pytest.mark.parametrize("what", IMPOSSIBLE)
@pytest.mark.parametrize("knob", PATHS)
def test_impossible_paths_name_their_knob(knob, what, images, tmp_path, capsys):
    name = PLACES[knob].replace("{images}", str(images))
    given = f"{knob}={IMPOSSIBLE[what]}"
    assert run("run", name, "--set", given, "--steps", 1, "--out", tmp_path / "out") == 2
    line = last_line(capsys)
    assert line.startswith(f"sdlab: {knob} = "), line
    assert len(line) < 300
    assert run("run", name, "--at", 1, given, "--steps", 2, "--out", tmp_path / "out") == 2
    assert last_line(capsys).startswith(f"sdlab: {knob} = ")


@pytest.mark.parametrize("knob", ["prompt.text", "prompt.negative", "prompt.target", "prompt.source"])
def test_half_characters_name_their_knob(knob, tmp_path, capsys):
    assert run("run", "mixture", "--set", f"{knob}=a \udcff b", "--out", tmp_path / "out") == 2
    line = last_line(capsys)
    assert knob in line
    assert "Unicode" in line


@pytest.mark.parametrize("step", ["²", "٣", "1.5", "-1", "1e3", "", " 3", "9" * 30])
def test_steps_of_a_plan_are_plain_digits(step, tmp_path, capsys):
    assert run("run", "mixture", "--at", step, "active=vdm", "--out", tmp_path / "x") == 2
    line = last_line(capsys)
    assert "--at" in line
    assert "STEP PATH=VALUE" in line


@pytest.mark.parametrize("name", ["図書", "a😀b", "ø"])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_is_no_error(encoding, name, tmp_path, monkeypatch):
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding))
    assert run("run", "mixture", *SMALL, "--steps", 1, "--out", tmp_path / name) == 0
    sys.stdout.flush()
    assert b"results in" in terminal.getvalue()
    assert (tmp_path / name / "result.json").is_file()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_fails_costs_no_results(stream, tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, stream, Gone())
    assert run("run", "mixture", *SMALL, "--steps", 3, "--out", tmp_path / "a") == 0
    assert run_folder.complete(tmp_path / "a", 3)
