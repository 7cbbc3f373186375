"""The experiments over all objects of the toybox: what they run, count and write, with a stand-in for the judge."""

import json
import re
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sdlab import cli
from sdlab.experiments import objects as bench
from sdlab.priors.mixture import MixturePrior
from sdlab.toybox.pictures import COLOURS

TINY = ["--preset", "mixture", "--set", "scene.n_init=40", "--set", "scene.max_gaussians=60", "--steps", "3"]
CPU = torch.device("cpu")


@pytest.fixture
def judge(monkeypatch):
    """Replace the judge: it reads even views as a red bear from the front, odd ones as a blue car from behind.

    Returns the list of the images it was shown.
    """
    shown = []

    def read(rgb):
        assert rgb.dtype == np.uint8
        shown.append(rgb)
        kinds = (
            SimpleNamespace(object="bear", colour="red", view="front view"),
            SimpleNamespace(object="car", colour="blue", view="back view"),
        )
        return [kinds[i % 2] for i in range(len(rgb))]

    monkeypatch.setattr(bench, "load_judge", lambda: read)
    return shown


def run(*arguments):
    return cli.main(["toybox", *[str(a) for a in arguments]])


def test_every_object_is_run_judged_and_reported(judge, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RECOGNISED", 4)
    loads = []
    load = MixturePrior.load
    monkeypatch.setattr(MixturePrior, "load", lambda self, *a: loads.append(1) or load(self, *a))
    assert run("objects", "--only", "bear,mushroom", *TINY, "--seed", 5, "--out", tmp_path, "--keep") == 0
    assert loads == [1], "one prior for all runs"
    assert [len(rgb) for rgb in judge] == [8, bench.JANUS_VIEWS, 8], "a mushroom has no front to count"
    assert judge[0].shape == (8, 16, 16, 3), "at the prior's resolution"

    found = json.loads((tmp_path / "objects.json").read_text())
    bear, mushroom = found["rows"]
    assert (bear["object"], bear["prompt"], bear["object_votes"], bear["recognised"]) == ("bear", "a red bear", 4, True)
    assert (mushroom["object_votes"], mushroom["recognised"], mushroom["seen_as"]) == (0, False, "bear")
    assert bear["colour_votes"] == 4
    assert mushroom["colour"] in COLOURS
    assert mushroom["colour"] != "red"
    assert (bear["fronts"], bear["fronts_right"]) == (6, False), "3 would be right"
    assert (mushroom["fronts"], mushroom["fronts_right"]) == (None, None)
    assert (found["with_front"], found["fronts_right"], found["object_in_all_views"]) == (1, 0, 0)
    assert [row["steps"] for row in found["rows"]] == [3, 3]
    assert all(row["seconds"] > 0 and row["note"] == "" and row["seed"] == 5 for row in found["rows"])
    assert (found["planned"], found["finished"], found["recognised"]) == (2, 2, 1)
    assert (found["object_share"], found["prior"]) == (4 / 16, "mixture")
    assert found["settings"]["scene.n_init"] == 40
    assert found["machine"]

    with Image.open(tmp_path / "objects.png") as sheet:
        assert sheet.width > 2 * bench.PORTRAIT_SIZE
    assert (tmp_path / "mushroom" / "scene.ply").read_bytes().startswith(b"ply")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "yes" in lines[2]
    assert "no (bear)" in lines[3]
    assert re.search(r"1/2 \[00:\d\d<00:\d\d", err), "the time left"
    assert "2/2" in err
    assert lines[-1].startswith(
        "1 of 2 recognised; 8 of 8 views read as the object on 0, as its colour on 0; fronts within 1"
    )


@pytest.mark.parametrize(("fronts", "right"), [(1, False), (2, True), (4, True), (5, False)])
def test_a_number_of_fronts_is_right_within_one_view(tmp_path, monkeypatch, fronts: int, right: bool):
    def read(rgb):
        few = fronts if len(rgb) == bench.JANUS_VIEWS else 0
        return [
            SimpleNamespace(object="bear", colour="red", view="front view" if i < few else "side view")
            for i in range(len(rgb))
        ]

    monkeypatch.setattr(bench, "load_judge", lambda: read)
    assert run("objects", "--only", "bear", *TINY, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "objects.json").read_text())
    assert (found["rows"][0]["fronts"], found["rows"][0]["fronts_right"]) == (fronts, right)
    assert (found["object_in_all_views"], found["colour_in_all_views"], found["fronts_right"]) == (1, 1, right)


def test_a_run_that_takes_too_long_is_stopped_and_judged_as_it_is(judge, tmp_path, capsys):
    slow = [*TINY[:-1], "1000000"]
    assert run("objects", "--only", "bear", *slow, "--seconds", 1, "--colour", "green", "--out", tmp_path) == 0
    (row,) = json.loads((tmp_path / "objects.json").read_text())["rows"]
    assert 1 <= row["seconds"] < 10
    assert 0 < row["steps"] < 1_000_000
    assert (row["prompt"], row["object_votes"], row["colour_votes"]) == ("a green bear", 4, 0)
    assert row["note"] == f"stopped after 1 s at step {row['steps']} of 1000000"
    assert row["note"] in capsys.readouterr().out
    assert not (tmp_path / "bear").exists(), "Gaussians are written only with --keep"


def test_a_run_whose_step_fails_is_reported_and_the_others_go_on(judge, tmp_path, monkeypatch, capsys):
    from sdlab.live import loop

    real = loop.step

    def step(state, s, *rest):
        if "duck" in s.prompt.text and state.step == 1:
            raise RuntimeError("no ducks today")
        return real(state, s, *rest)

    monkeypatch.setattr(loop, "step", step)
    assert run("objects", "--only", "duck,bear", *TINY, "--out", tmp_path) == 0
    duck, bear = json.loads((tmp_path / "objects.json").read_text())["rows"]
    assert (duck["steps"], bear["steps"], bear["note"]) == (1, 3, "")
    assert duck["note"] == "failed at step 1 of 3: RuntimeError: no ducks today"
    assert duck["note"] in capsys.readouterr().out


def test_ctrl_c_writes_what_is_finished(judge, tmp_path, monkeypatch, capsys):
    """The signal arrives in the second of three runs, which has many steps; nothing of it is written."""
    cases, session, begun = bench.cases, bench.Session, []

    def long_ducks(*a):
        return [c._replace(settings=c.settings.patch("steps", 10**6)) if c.object == "duck" else c for c in cases(*a)]

    def signalling(settings, *a):
        begun.append(settings.prompt.text)
        if len(begun) == 2:
            threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        return session(settings, *a)

    monkeypatch.setattr(bench, "cases", long_ducks)
    monkeypatch.setattr(bench, "Session", signalling)
    before = signal.getsignal(signal.SIGINT)
    started = time.monotonic()
    assert run("objects", "--only", "bear,duck,car", *TINY, "--out", tmp_path) == 130
    assert time.monotonic() - started < 30
    assert len(begun) == 2
    found = json.loads((tmp_path / "objects.json").read_text())
    assert (found["planned"], found["finished"]) == (3, 1)
    assert found["rows"][0]["object"] == "bear"
    assert "0 of 1 recognised" in capsys.readouterr().out, "4 votes of 8 are no majority"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_one_run_ends_the_others_and_keeps_what_is_finished(judge, tmp_path, monkeypatch):
    real = bench.portrait

    def portrait(outcome):
        if outcome.case.object == "duck":
            raise RuntimeError("no picture of a duck")
        return real(outcome)

    monkeypatch.setattr(bench, "portrait", portrait)
    assert run("objects", "--only", "bear,duck,car", *TINY, "--out", tmp_path) == 2
    assert [row["object"] for row in json.loads((tmp_path / "objects.json").read_text())["rows"]] == ["bear"]


@pytest.mark.slow
def test_several_runs_at_a_time_give_the_same_as_one_after_the_other(judge, tmp_path):
    for jobs in (1, 3):
        out = tmp_path / str(jobs)
        assert run("objects", "--only", "car,bear,duck", *TINY, "--jobs", jobs, "--keep", "--out", out) == 0
    for name in ("car", "bear", "duck"):
        one, three = (tmp_path / jobs / name / "scene.ply" for jobs in ("1", "3"))
        assert one.read_bytes() == three.read_bytes()
    order = [row["object"] for row in json.loads((tmp_path / "3" / "objects.json").read_text())["rows"]]
    assert order == ["car", "bear", "duck"], "in the requested order, whichever finished first"


def test_janus_flips_one_knob_and_counts_fronts(judge, tmp_path, capsys):
    assert run("janus", "--objects", "bear,duck", "--seeds", 2, *TINY, "--seed", 7, "--out", tmp_path) == 0
    assert {len(rgb) for rgb in judge} == {bench.JANUS_VIEWS}
    found = json.loads((tmp_path / "janus.json").read_text())
    kinds = [(row["object"], row["seed"], row["view_dependent"]) for row in found["rows"]]
    assert kinds == [(name, seed, on) for name in ("bear", "duck") for seed in (7, 8) for on in (False, True)]
    assert found["true_fronts"] == 3
    assert found["objects"] == {"bear": {"off": 6, "on": 6}, "duck": {"off": 6, "on": 6}}
    assert found["mean"] == {"off": 6, "on": 6}
    with Image.open(tmp_path / "janus.png") as sheet:
        assert sheet.height > 4 * bench.STRIP_SIZE
        pixels = np.asarray(sheet)
    assert (pixels == bench.RED).all(-1).sum() == 4 * 6 * 4 * (bench.STRIP_SIZE - 16), "a bar under each front"
    assert "mean             6.0     6.0" in capsys.readouterr().out


def test_off_and_on_are_told_apart_in_means():
    rows = [{"front_votes": votes, "view_dependent": on} for votes, on in ((9, False), (6, False), (3, True))]
    assert bench.mean_fronts(rows) == {"off": 7.5, "on": 3}


def test_janus_takes_the_objects_with_a_front_and_the_same_settings():
    from sdlab.settings import preset

    s = preset("toybox")
    names = bench.parse_objects(None, "--objects", front=True)
    assert "bear" in names
    assert "mushroom" not in names
    assert "mushroom" in bench.parse_objects(None, "--only")
    off, on = bench.janus_cases(s, ["bear"])
    assert [path for path, _ in off.settings.differences(on.settings)] == ["prompt.view_dependent"]


def test_a_list_of_no_objects_is_refused():
    with pytest.raises(ValueError, match=r"--only ' ,': names no object; choose from bear, "):
        bench.parse_objects(" ,", "--only")


def test_colours_vary_and_do_not_depend_on_the_selection():
    from sdlab.settings import preset

    s = preset("mixture")
    everything = bench.cases(s, bench.parse_objects(None, "--only"))
    assert len({case.colour for case in everything}) == len(COLOURS)
    by_name = {case.object: case for case in everything}
    for name in ("car", "tree"):
        assert bench.cases(s, [name]) == [by_name[name]]
    assert bench.cases(s, ["cat"], "orange")[0].settings.prompt.text == "an orange cat"


def test_the_judge_sees_the_distance_of_its_data_whatever_the_preset_says():
    from sdlab.cameras import CameraSettings, turntable
    from sdlab.toybox import pictures

    camera = bench.data_camera(CameraSettings(distance_min=5.0, distance_max=7.0, fovy=60.0))
    cams = turntable(8, camera, 64)
    assert torch.allclose(cams.distance, torch.tensor(pictures.DISTANCE))
    assert camera.fovy == pictures.FOV_DEGREES


def test_the_contact_sheet_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    size = bench.PORTRAIT_SIZE
    noise = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(16)]
    row = {"prompt": "a red bear", "object_votes": 3, "colour_votes": 8, "views": 8, "recognised": False}
    bench.save_portraits(noise, [row] * 16, tmp_path / "sheet.png")
    assert 100_000 < (tmp_path / "sheet.png").stat().st_size <= bench.SHEET_BYTES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["objects", "--only", "bear,beer"], ["--only beer", "did you mean bear?", "duck"]),
        (["objects", "--colour", "gren"], ["--colour gren", "did you mean green?"]),
        (["objects", "--set", "losses.sds.cgf=3"], ["losses.sds.cgf", "losses.sds.cfg"]),
        (["objects", "--set", "prompt.text=a cat"], ["prompt.text=a cat", "itself"]),
        (["objects", "--seed", "-1"], ["seed", "-1"]),
        (["objects", "--preset", "toybx"], ["toybx", "did you mean toybox"]),
        (["objects", "--device", "tpu0"], ["--device", "tpu0"]),
        (["objects", "--out", "/proc/nowhere"], ["--out", "/proc/nowhere"]),
        (["janus", "--objects", "mushroom"], ["--objects mushroom", "same from all sides", "bear"]),
        (["janus", "--objects", "gnu"], ["--objects gnu", "bear"]),
        (["janus", "--set", "prompt.view_dependent=false"], ["prompt.view_dependent", "itself"]),
    ],
)
def test_bad_input_ends_with_2_and_one_line_before_any_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.Runner, "prepare", lambda self: pytest.fail("work was begun"))
    assert run(arguments[0], "--out", tmp_path / "a", *arguments[1:]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line
