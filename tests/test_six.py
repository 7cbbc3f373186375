"""Comparisons of losses: what is run, for how long, with which random numbers; the judge is a stand-in."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sdlab import cli, settings
from sdlab.experiments import comparing, janus_losses, objects, six, variants
from sdlab.settings import preset

TINY = ["--preset", "mixture", "--set", "scene.n_init=40", "--set", "scene.max_gaussians=60"]
STEPS = ["--steps", "3"]
MIXTURE = '[prior]\nkind = "mixture"\n[scene]\nn_init = 40\n'


@pytest.fixture
def judge(monkeypatch):
    """Replace the judge: it reads even views as a red bear from the front, odd ones as a blue car from behind."""

    def read(rgb):
        kinds = (
            SimpleNamespace(object="bear", colour="red", view="front view"),
            SimpleNamespace(object="car", colour="blue", view="back view"),
        )
        return [kinds[i % 2] for i in range(len(rgb))]

    monkeypatch.setattr(objects, "load_judge", lambda: read)


def run(*arguments):
    return cli.main(["bench", *[str(a) for a in arguments]])


def found(folder, name="six"):
    return json.loads((folder / f"{name}.json").read_text())


# ---- six -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_losses_draw_the_same_and_are_judged_and_drawn(judge, tmp_path, capsys):
    assert run("six", *TINY, *STEPS, "--only", "sds,vsd:warm_up=2,jsd", "--seed", 4, "--out", tmp_path) == 0
    result = found(tmp_path)
    rows = result["rows"]
    assert [(row["variant"], row["steps"], row["evaluations"]) for row in rows] == [
        ("sds", 3, 2),
        ("vsd:warm_up=2", 3, 4),
        ("jsd", 3, 14),
    ]
    assert all((row["object_votes"], row["colour_votes"], row["views"]) == (4, 4, 8) for row in rows)
    assert all((row["front_votes"], row["front_views"], row["seed"], row["note"]) == (6, 12, 4, "") for row in rows)
    assert 0 < rows[1]["warm_up_seconds"] < rows[1]["seconds"], "the warm-up counts"
    assert rows[0]["warm_up_seconds"] == 0
    assert rows[1]["changes"] == {"active": "vsd", "losses.vsd.warm_up": 2}
    same = {"steps_compared": 3, "cameras": "equal", "t": "equal", "noise": "equal"}
    assert result["draws"] == [{"variant": "vsd:warm_up=2", **same}, {"variant": "jsd", **same}]
    assert result["digests"]["steps"] == 3
    assert len({json.dumps({**one, "variant": ""}) for one in result["digests"]["of"]}) == 1
    assert (result["prompt"], result["true_fronts"], result["machine"] != "") == ("a red bear", 3, True)
    with Image.open(tmp_path / "six.png") as sheet:
        pixels = np.asarray(sheet)
    assert sheet.height > 3 * objects.PORTRAIT_SIZE
    bars = (pixels == objects.RED).all(-1).sum()
    assert bars == 3 * 6 * 4 * (objects.STRIP_SIZE - 16), "a bar under each front"
    out, err = capsys.readouterr()
    assert "jsd against sds, 3 steps: cameras, t, noise equal" in out
    assert re.search(r"2/3 \[00:\d\d<00:\d\d", err), "the time left"


def test_the_six_are_the_papers_and_more_can_be_added(monkeypatch):
    asked = []
    monkeypatch.setattr(comparing, "comparison", lambda args, labels, **_: asked.append(labels) or 1 / 0)
    for more in ([], ["--losses", "sds:cfg=20, esd:lam=1"], ["--only", "vdm"]):
        with pytest.raises(ZeroDivisionError):
            run("six", *more)
    labels = [[label for _, label in each] for each in asked]
    assert labels[0] == ["sds", "vsd", "esd", "vdm", "sbp", "jsd"]
    assert labels[1] == [*labels[0], "sds:cfg=20", "esd:lam=1"]
    assert labels[2] == ["vdm"]


@pytest.mark.slow
def test_cutoffs_are_runs_of_vdm_that_differ_in_the_cutoff_alone(judge, tmp_path, capsys):
    warm_up = ["--set", "losses.vdm.warm_up=2"]
    assert run("cutoffs", *TINY, *STEPS, *warm_up, "--cutoffs", "0,999", "--seed", 4, "--out", tmp_path) == 0
    result = found(tmp_path, "cutoffs")
    rows = result["rows"]
    changed = [{k: v for k, v in row["changes"].items() if k != "losses.vdm.warm_up"} for row in rows]
    assert changed == [{"active": "vdm", "losses.vdm.dca_cutoff": n} for n in (0, 999)]
    same = {"steps_compared": 3, "cameras": "equal", "t": "equal", "noise": "equal"}
    assert result["draws"] == [{"variant": "vdm:dca_cutoff=999", **same}]
    assert all(0 < row["saturation"] < 1 and 0 < row["sharpness"] < 1 for row in rows)
    assert all((row["object_votes"], row["front_votes"], row["front_views"]) == (4, 6, 12) for row in rows)
    with Image.open(tmp_path / "cutoffs.png") as sheet:
        assert sheet.height > 2 * objects.PORTRAIT_SIZE
    assert "; an object with one front has 3 of them" in capsys.readouterr().out


@pytest.mark.slow
def test_pictures_are_read_and_shown_as_they_are(judge, tmp_path, monkeypatch, capsys):
    presets = tmp_path / "presets"
    presets.mkdir()
    flat = MIXTURE.replace("[scene]\nn_init = 40", '[scene]\nkind = "image"\nn = 6')
    (presets / "toybox-2d.toml").write_text(flat + "[losses.vdm]\nwarm_up = 2\n")
    monkeypatch.setattr(settings, "PRESETS", presets)
    assert run("cutoffs", "--flat", *STEPS, "--out", tmp_path) == 0
    result = found(tmp_path, "cutoffs")
    rows = result["rows"]
    assert [row["variant"] for row in rows] == [f"vdm:dca_cutoff={n}" for n in six.CUTOFFS]
    assert all((row["preset"], row["views"], row["object_votes"]) == ("toybox-2d", 6, 3) for row in rows)
    assert not any("front_views" in row or "gaussians" in row for row in rows)
    assert {row["noise"] for row in result["draws"]} == {"equal"}
    with Image.open(tmp_path / "cutoffs.png") as sheet:
        assert sheet.width >= 6 * objects.PORTRAIT_SIZE
        assert sheet.height > 4 * objects.PORTRAIT_SIZE
    assert "front" not in capsys.readouterr().out.partition("saturat.")[0].splitlines()[0]


def test_the_cutoffs_of_the_ablation_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(comparing, "comparison", lambda args, labels, *_: asked.append((args.preset, labels)) or 1 / 0)
    for more in ([], ["--flat", "--cutoffs", "50"]):
        with pytest.raises(ZeroDivisionError):
            run("cutoffs", *more)
    assert asked == [
        (None, [("--cutoffs", f"vdm:dca_cutoff={n}") for n in (0, 100, 300, 500)]),
        ("toybox-2d", [("--cutoffs", "vdm:dca_cutoff=50")]),
    ]


def test_saturation_and_sharpness_are_those_of_the_pictures():
    grey = np.full((2, 8, 8, 3), 100, np.uint8)
    assert six.image_stats(grey) == {"saturation": 0, "sharpness": 0}
    red = grey.copy()
    red[1, ..., 0] = 151
    assert six.image_stats(red) == {"saturation": 0.1, "sharpness": 0}
    checks = grey.copy()
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 200
    assert six.image_stats(checks)["saturation"] == 0
    assert six.image_stats(checks)["sharpness"] > 0.1


@pytest.mark.slow
def test_a_run_fills_its_seconds_and_its_schedules_follow_the_clock(judge, tmp_path, monkeypatch):
    seen = []
    real = variants.step

    def step(state, s, *rest):
        seen.append(state.step / s.steps)
        return real(state, s, *rest)

    monkeypatch.setattr(variants, "step", step)
    assert run("six", *TINY, "--only", "sds", "--seconds", 1, "--out", tmp_path) == 0
    (row,) = found(tmp_path)["rows"]
    assert seen.pop(0) == 0, "an uncounted step first compiles"
    assert 1 <= row["seconds"] < 10
    assert (row["steps"], row["note"]) == (len(seen), "")
    assert seen[0] == 0
    # progress through the planned steps follows progress through the time, up to the end
    assert 0.5 < seen[-1] <= 1
    assert all(b > a - 0.05 for a, b in itertools.pairwise(seen))


@pytest.mark.slow
def test_steps_that_take_too_long_are_stopped_with_a_note(judge, tmp_path):
    assert run("six", *TINY, "--only", "sds", "--steps", 10**6, "--seconds", 1, "--out", tmp_path) == 0
    (row,) = found(tmp_path)["rows"]
    assert row["note"] == f"stopped after 1 s at step {row['steps']} of 1000000"


@pytest.mark.slow
def test_seconds_that_the_warm_up_uses_up_are_told(judge, tmp_path, capsys):
    assert run("six", *TINY, "--only", "sds,vsd:warm_up=2000", "--seconds", 1, "--out", tmp_path) == 0
    row = found(tmp_path)["rows"][1]
    assert (row["steps"], row["evaluations"]) == (0, 0)
    assert row["note"].startswith("after 1 s the warm-up of its network was at step ")
    assert row["note"].endswith(" of 2000")
    assert row["warm_up_seconds"] == pytest.approx(row["seconds"], abs=0.2)
    assert "against" not in capsys.readouterr().out, "there is nothing to compare"


@pytest.mark.slow
def test_a_tuned_preset_is_taken_and_what_it_changes_on_purpose_is_named(judge, tmp_path, monkeypatch, capsys):
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "toybox.toml").write_text(MIXTURE)
    (presets / "toybox-sbp.toml").write_text(f'[prompt]\ntext = "a cat"\n{MIXTURE}[schedule]\nt_max = 0.5\n')
    monkeypatch.setattr(settings, "PRESETS", presets)
    assert run("six", *STEPS, "--only", "sds,sbp,sbp:w=2", "--prompt", "a blue bear", "--out", tmp_path) == 0
    result = found(tmp_path)
    assert [row["preset"] for row in result["rows"]] == ["toybox", "toybox-sbp", "toybox-sbp"]
    assert {row["prompt"] for row in result["rows"]} == {"a blue bear"}
    line = "differs from step 0: schedule.t_max = 0.98 and 0.5"
    assert [row["t"] for row in result["draws"]] == [line, line]
    assert {row["noise"] for row in result["draws"]} == {"equal"}
    assert f"sbp against sds, 3 steps: cameras, noise equal; t {line}" in capsys.readouterr().out
    # --preset applies to every run
    assert run("six", "--preset", "toybox", *STEPS, "--only", "sds,sbp", "--out", tmp_path / "b") == 0
    assert found(tmp_path / "b")["draws"][0]["t"] == "equal"


@pytest.mark.slow
def test_noise_that_differs_without_a_reason_is_an_error_after_the_results(judge, tmp_path, monkeypatch, capsys):
    real, count = variants.draw_of, iter(range(100))
    monkeypatch.setattr(variants, "draw_of", lambda report: real(report)._replace(noise=bytes([next(count)])))
    assert run("six", *TINY, *STEPS, "--only", "sds,sbp", "--out", tmp_path) == 2
    assert "sbp: drew other random numbers than sds" in capsys.readouterr().err
    result = found(tmp_path)
    assert result["unexplained"] == ["sbp"]
    assert result["draws"][0]["noise"] == "differs from step 0: no knob explains it"
    assert (tmp_path / "six.png").exists()


@pytest.mark.slow
def test_a_step_that_fails_is_noted_and_the_others_go_on(judge, tmp_path, monkeypatch):
    real = variants.step

    def step(state, s, *rest):
        if s.active == "sbp" and state.step == 1:
            raise RuntimeError("no bridge today")
        return real(state, s, *rest)

    monkeypatch.setattr(variants, "step", step)
    assert run("six", *TINY, *STEPS, "--only", "sbp,sds", "--out", tmp_path) == 0
    rows = found(tmp_path)["rows"]
    assert [(row["steps"], row["note"]) for row in rows] == [
        (1, "failed at step 1: RuntimeError: no bridge today"),
        (3, ""),
    ]


@pytest.mark.slow
def test_ctrl_c_writes_what_is_finished(judge, tmp_path, monkeypatch):
    real, begun = variants.run_case, []

    def follow(bench, case, planned):
        begun.append(case)
        if len(begun) == 2:
            threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
            return real(bench, case, 10**6)
        return real(bench, case, planned)

    monkeypatch.setattr(six, "run_case", follow)
    started = time.monotonic()
    assert run("six", *TINY, *STEPS, "--only", "sds,sbp,jsd", "--out", tmp_path) == 130
    assert time.monotonic() - started < 30
    result = found(tmp_path)
    assert (result["planned"], result["finished"], result["draws"]) == (3, 1, [])


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("a red bear", ("bear", "red")),
        ("A Crimson teddy bear wearing a blue hat", ("bear", "red")),
        ("a bear wearing a blue hat", ("bear", "")),
        ("a red steam train", ("train", "red")),
        ("rear view of a grey kitty on a green box", ("cat", "gray")),
    ],
)
def test_the_prompt_says_what_the_judge_is_asked_for(prompt, what):
    assert six.asked_for(prompt) == what


def test_a_portrait_stands_beside_its_turntable():
    picture = np.full((20, 20, 3), 7, np.uint8)
    strip = np.concatenate([np.full((8, 8, 3), i, np.uint8) for i in range(4)], axis=1)
    whole = six.beside(picture, strip)
    assert whole.shape == (20, 20 + six.GAP + 16, 3)
    right = whole[:, 20 + six.GAP :, 0]
    assert [right[0, 0], right[0, 8], right[8, 0], right[8, 8], right[16, 0]] == [0, 1, 2, 3, 255]
    assert (whole[:, 20 : 20 + six.GAP] == 255).all()


# ---- agreement --------------------------------------------------------------------------------------------------


def draws(n, **other):
    plain = [variants.Draw(b"c%d" % i, b"t%d" % i, b"n%d" % i) for i in range(n)]
    for name, at in other.items():
        plain[at] = plain[at]._replace(**{name: b"else"})
    return plain


def variant(label, s):
    return variants.Variant(label, "mixture", s)


def test_runs_are_compared_over_the_steps_they_share(quick):
    a, b = variant("a", quick), variant("b", quick.patch("active", "sbp"))
    (same,) = variants.agreements([(a, draws(5)), (b, draws(3))])
    assert (same.steps, same.differs, same.unexplained) == (3, {}, False)
    (beyond,) = variants.agreements([(a, draws(5, noise=4)), (b, draws(3))])
    assert not beyond.differs
    (other,) = variants.agreements([(a, draws(5)), (b, draws(3, noise=2, t=1))])
    assert other.unexplained
    assert other.row()["t"].startswith("differs from step 1")
    assert other.row()["noise"].startswith("differs from step 2")
    assert other.row()["cameras"] == "equal"


@pytest.mark.parametrize(
    ("name", "path", "value", "is_reason"),
    [
        ("cameras", "camera.views", 1, True),
        ("cameras", "camera.elevation_max", 10.0, True),
        ("cameras", "schedule.t_max", 0.5, False),
        ("noise", "camera.views", 1, True),
        ("noise", "camera.elevation_max", 10.0, False),
        ("t", "schedule.per_view", False, True),
        ("t", "schedule.weight", "uniform", False),
        ("t", "losses.sds.cfg", 20.0, False),
    ],
)
def test_only_a_knob_that_decides_is_a_reason(quick, name, path, value, is_reason):
    pair = [(variant("a", quick), draws(2)), (variant("b", quick.patch(path, value)), draws(2, **{name: 0}))]
    (found,) = variants.agreements(pair)
    assert found.unexplained is not is_reason
    assert (path in found.differs[name]) is is_reason


def test_a_schedule_that_falls_gives_other_timesteps_where_steps_are_fewer(quick):
    s = quick.patch("schedule.kind", "linear")
    (found,) = variants.agreements([(variant("a", s), draws(2)), (variant("b", s), draws(2, t=1))])
    assert not found.unexplained
    assert "schedule.kind = linear" in found.differs["t"]


def test_a_fingerprint_tells_cameras_timesteps_and_noise_apart(quick):
    from sdlab.live.session import Session
    from sdlab.prompts import PromptBank
    from sdlab.step import step

    def first(s):
        session = Session(s)
        session.prepare()
        return variants.draw_of(step(session.state, s, session.prior, PromptBank(session.prior)))

    plain = first(quick)
    assert first(quick.patch("active", "sbp")) == plain
    seeded, flat = first(quick.patch("seed", 1)), first(quick.patch("schedule.t_max", 0.3))
    assert all(x != y for x, y in zip(plain, seeded, strict=True))
    assert [x == y for x, y in zip(plain, flat, strict=True)] == [True, False, True]


# ---- janus ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fronts_are_counted_without_view_words_for_every_variant(judge, tmp_path, capsys):
    arguments = ["--objects", "bear,duck", "--seeds", 2, "--variants", "sds,sbp:w=2", "--seed", 5]
    assert run("janus-losses", *TINY, *STEPS, *arguments, "--out", tmp_path) == 0
    result = found(tmp_path, "janus-losses")
    runs = [(row["object"], row["seed"], row["variant"]) for row in result["rows"]]
    assert runs == [(name, seed, v) for seed in (5, 6) for name in ("bear", "duck") for v in ("sds", "sbp:w=2")]
    assert not any(row["view_dependent"] for row in result["rows"])
    six_of_twelve = {"mean": 6, "spread": 0, "runs": 2}
    assert result["objects"]["duck"] == {"sds": six_of_twelve, "sbp:w=2": six_of_twelve}
    assert result["all"]["sds"] == {"mean": 6, "spread": 0, "runs": 4}
    assert result["object_share"] == {"sds": 0.25, "sbp:w=2": 0.25}
    assert result["differences"] == [["sbp:w=2", 0, 0, 4]]
    assert result["true_fronts"] == 3
    with Image.open(tmp_path / "janus-losses.png") as sheet:
        bars = (np.asarray(sheet) == objects.RED).all(-1).sum()
    assert bars == 4 * 6 * 4 * (objects.STRIP_SIZE - 16), "one seed, two objects, two variants"
    assert result["prior_fronts"] == {"bear": 6, "duck": 6}, "half of the prior's own images"
    assert ["all", "6.0", *["6.0", "+-", "0.0"] * 2] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run("janus-losses", *TINY, *STEPS, *arguments, "--out", tmp_path) == 0
    assert "8 of 8 runs are in" in capsys.readouterr().out, "an experiment continues"
    assert found(tmp_path, "janus-losses")["rows"] == result["rows"]


def test_runs_of_one_object_and_seed_differ_in_the_variant_alone():
    s = preset("mixture")
    pair = [variant("vsd", s.patch("active", "vsd")), variant("esd", s.patch("active", "esd"))]
    entries = janus_losses.entries(pair, ["bear", "car"], 2)
    assert len(entries) == 8
    for a, b in zip(entries[::2], entries[1::2], strict=True):
        assert [path for path, _ in a.case.settings.differences(b.case.settings)] == ["active"]
        assert not a.case.settings.prompt.view_dependent
    assert [e.case.settings.seed for e in entries[::2]] == [0, 0, 1, 1]


def test_spread_and_difference_are_those_of_the_sample_and_of_pairs():
    votes = {("a", "bear", 0): 2, ("a", "bear", 1): 4, ("a", "car", 0): 9}
    votes |= {("b", "bear", 0): 1, ("b", "bear", 1): 1, ("b", "duck", 0): 12}
    rows = [dict(zip(("variant", "object", "seed"), key, strict=True), front_votes=n) for key, n in votes.items()]
    found = janus_losses.fronts(rows, ["a", "b", "c"])
    assert found["a"] == {"mean": 5, "spread": pytest.approx(np.std([2, 4, 9], ddof=1), abs=0.01), "runs": 3}
    assert "c" not in found
    # -1 and -3: a mean of -2, a deviation of 1.41, an error of 1
    assert janus_losses.difference(rows, "a", "b") == ("b", -2, 1, 2)
    assert janus_losses.difference(rows, "a", "c") == ("c", 0, 0, 0)


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["six", "--only", "vdmm"], ["--only vdmm", "did you mean vdm?", "jsd"]),
        (["six", "--losses", "vsd:network"], ["--losses vsd:network", "LOSS:KNOB=VALUE"]),
        (["six", "--losses", "vsd:netwrk=copy"], ["losses.vsd.netwrk", "losses.vsd.network"]),
        (["six", "--prompt", "a red gnu"], ["--prompt", "a red gnu", "bear"]),
        (["six", "--set", "active=vsd"], ["active", "itself"]),
        (["cutoffs", "--cutoffs", "300,1000"], ["losses.vdm.dca_cutoff", "1000", "999"]),
        (["cutoffs", "--cutoffs", "none"], ["losses.vdm.dca_cutoff", "none"]),
        (["cutoffs", "--set", "losses.vdm.dca_cutoff=1"], ["losses.vdm.dca_cutoff", "itself"]),
        (["cutoffs", "--flat", "--preset", "toybox"], ["--flat", "--preset toybox"]),
        (["six", "--family", "toybx"], ["toybx", "did you mean toybox"]),
        (["six", "--family", "toybox", "--preset", "toybox"], ["--preset toybox and --family toybox"]),
        (["six", "--preset", "toybx"], ["toybx", "did you mean toybox"]),
        (["six", "--out", "/proc/nowhere"], ["--out", "/proc/nowhere"]),
        (["janus-losses", "--variants", "esd:lam=7"], ["losses.esd.lam", "7"]),
        (["janus-losses", "--objects", "mushroom"], ["--objects mushroom", "same from all sides"]),
        (["janus-losses", "--set", "prompt.view_dependent=true"], ["prompt.view_dependent", "itself"]),
        (["losses", "--preset", "toybx"], ["toybx", "did you mean toybox"]),
    ],
)
def test_bad_input_ends_with_2_and_one_line_before_any_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(objects.Runner, "prepare", lambda self: pytest.fail("work was begun"))
    monkeypatch.chdir(tmp_path)
    assert run(arguments[0], "--out", tmp_path / "a", *arguments[1:]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


def test_options_are_offered_where_they_apply(capsys):
    for arguments in (["raster", "--seconds", 3], ["six", "--quick"], ["step", "--only", "sds"]):
        with pytest.raises(SystemExit) as e:
            run(*arguments)
        assert e.value.code == 2
        assert arguments[1] in capsys.readouterr().err
