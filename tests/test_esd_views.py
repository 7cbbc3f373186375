"""ESD on exact scores of one object's own views: the gallery, the measures, lambda's effect, and experiments that
continue where they ended."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from sdlab import cli
from sdlab.auxiliary.score import ExactScores
from sdlab.cameras import CameraSettings, turntable
from sdlab.experiments import entropy_term, esd_views, janus_losses, objects
from sdlab.experiments.journal import Journal, key_of
from sdlab.experiments.variants import Variant
from sdlab.live import critic
from sdlab.live.session import Session
from sdlab.priors import sides
from sdlab.priors.gallery import GalleryPrior, GalleryScores
from sdlab.priors.mixture import MixturePrior
from sdlab.priors.sources.toybox import ToyboxSource, circle, from_circle, read_key, shot_of
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.settings import default_settings, preset
from sdlab.step import bind_prior, step
from sdlab.types import BoundPrior, Noised

CPU = torch.device("cpu")
TINY = ["--set", "scene.n_init=40", "--set", "scene.max_gaussians=60", "--set", "prior.images=20", "--steps", "3"]


# ---- the gallery of one object ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share", "fronts"), [(45, 0.6, 27), (10, 0.0, 0), (10, 1.0, 10), (1, 0.3, 0)])
def test_the_circle_has_the_share_of_fronts_that_is_asked_for(count, share, fronts):
    azimuths = circle(count, share)
    assert len(azimuths) == count
    assert sum(abs(azimuth) <= 40 for azimuth in azimuths) == fronts


def test_cameras_of_the_circle_are_even_and_shared_evenly():
    counts = Counter(circle(45, 0.6))
    assert sorted(counts) == [-180 + 30 * i for i in range(12)]
    assert counts == {azimuth: 9 if abs(azimuth) <= 30 else 2 for azimuth in counts}


def test_all_images_show_the_same_object_and_only_the_camera_moves():
    source = ToyboxSource(front_share=0.5)
    key = source.key("a red bear")
    images = source.draw(key, 24, 16, 0)
    at = circle(24, 0.5)
    for i, image in enumerate(images):
        same = torch.tensor([torch.equal(image, other) for other in images])
        assert same.tolist() == [azimuth == at[i] for azimuth in at]
    shot = shot_of(read_key(key), 7)
    sides = [from_circle(shot, azimuth) for azimuth in (0.0, 90.0)]
    parts = zip(shot._fields, *sides, strict=True)
    assert [name for name, a, b in parts if np.any(np.asarray(a != b))] == ["azimuth"]
    assert not torch.equal(images, source.draw(key, 24, 16, 1)), "another seed is another object"


def test_a_view_word_selects_nothing_where_one_object_is_seen_from_all_sides():
    source = ToyboxSource(front_share=0.6)
    assert source.key("a red bear, back view") == source.key("a red bear")
    assert "no effect" in source.remark("a red bear, back view")
    assert source.remark("a red bear") == ""
    assert ToyboxSource().remark("a red bear, back view") == ""
    assert len({source.identity, ToyboxSource(0.5).identity, ToyboxSource().identity}) == 3


def test_one_object_is_only_offered_where_it_exists():
    with pytest.raises(ValueError, match=r"prior\.one_object .* prior\.source = folder"):
        GalleryPrior(source="folder", path="pets", one_object=True)


# ---- the measures -----------------------------------------------------------------------------------------------


def test_views_that_are_images_of_the_prior_are_read_as_those():
    azimuths = torch.arange(12) * 30.0
    azimuths = (azimuths + 180) % 360 - 180
    x = torch.randn(12, 3, 64, generator=StepRng(0, 0)("x"), dtype=torch.float64)
    all_sides = sides.read(x, x, azimuths, 0.3)
    assert (all_sides.fronts, all_sides.iv, all_sides.iq) == (3, round(math.log(12), 3), 0)
    janus = sides.read(x[:1].expand(12, -1, -1), x, azimuths, 0.3)
    assert (janus.fronts, janus.iv, janus.iq) == (12, 0, 0)
    undecided = sides.read(x.mean(0, keepdim=True), x, azimuths, 1000.0)
    assert undecided.fronts == pytest.approx(3 / 12, abs=0.01)
    assert undecided.iq == pytest.approx(math.log(12), abs=0.01)


def test_charts_and_lessons_read_such_views_by_the_prior_and_others_by_the_judge():
    session = Session(preset("gallery-esd-views"), CPU)
    session.prepare()
    prior = session.prior
    assert isinstance(prior, GalleryScores)
    rgba = prior.source.draw(prior.source.key("a pink frog"), 45, 16, 0).permute(0, 2, 3, 1).int().numpy()
    turns = circle(45, 0.6)
    once = [turns.index((30 * i + 180) % 360 - 180) for i in range(12)]  # every side, in order
    over_white = np.uint8((rgba[..., :3] + 255 - rgba[..., 3:]).clip(0, 255))  # colours are premultiplied
    assert critic.metrics_of_sides(over_white[once], session)["fronts"] == pytest.approx(3, abs=0.5)
    assert critic.metrics_of_sides(over_white[once[:1] * 12], session)["fronts"] == pytest.approx(12, abs=0.5)
    assert critic.metrics_of_sides(over_white[once], Session(preset("playground"), CPU)) == {}


def test_the_variety_of_the_prior_is_that_of_its_azimuths():
    assert esd_views.prior_variety(0.25, 12) == pytest.approx(math.log(12))
    assert esd_views.prior_variety(1.0, 12) == pytest.approx(math.log(3))


def test_the_term_of_esd_is_the_difference_of_the_exact_scores():
    s = default_settings("mixture", "splats").patch_all(
        [("active", "vsd"), ("scene.n_init", 60), ("prompt.view_dependent", False), ("losses.vsd.cfg", 1.0)]
    )
    prior = MixturePrior(height=8, width=8).load(CPU)
    session = Session(s, CPU, lambda *_: prior)
    session.prepare()
    cams = turntable(3, CameraSettings(), 8)
    with torch.no_grad():  # off the axis, so that the views differ
        session.state.scene.params["means"][:, 0] += 0.5
        z0 = prior.encode(session.state.scene.render(cams, torch.ones(3, 3)).rgb)
    (size,) = entropy_term.sizes(session.state.scene, cams, s, prior, times=(800,))
    t = torch.full((3,), 800)
    alpha, sigma = prior.marginal(t)
    terms, residuals = [], []
    for k in range(entropy_term.DRAWS):
        noise = StepRng(s.seed, k).randn("entropy term 800", z0)
        z_t = alpha * z0 + sigma * noise
        offsets = z_t[:, None] - alpha[:, None] * z0[None]
        share = torch.softmax(-(offsets**2).sum((2, 3, 4)) / (2 * sigma.view(-1, 1) ** 2), 1)
        together = (share[..., None, None, None] * offsets).sum(1) / sigma
        model = bind_prior(prior, s, PromptBank(prior), cams, StepRng(0, k), 1.0)
        (eps,) = model.eps(z_t, t, "pos")
        terms.append((together - noise).square().sum())
        residuals.append((eps - noise).square().sum())
    expected = math.sqrt(float(sum(terms) / sum(residuals)))
    assert size.exact == pytest.approx(expected, rel=1e-2)
    assert size.learnt is None
    assert expected > 0.01


def test_the_term_vanishes_where_diffused_views_do_not_overlap():
    prior = MixturePrior(height=8, width=8).load(CPU)
    z0 = torch.stack([torch.full((3, 8, 8), v) for v in (-1.0, 1.0)])
    for time, overlap in ((50, False), (950, True)):
        t = torch.full((2,), time)
        alpha, sigma = prior.marginal(t)
        noise = StepRng(0, 0).randn("noise", z0)
        x = Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)
        own, together = ExactScores().ask(x, BoundPrior(prior, {}), (True, False))
        assert (float((own - together).abs().max()) > 1e-3) == overlap


# ---- lambda -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_moving_lambda_in_a_running_scene_takes_its_extra_fronts_away():
    s = preset("gallery-esd-views")
    prior = s.prior.load(CPU)
    session = Session(s, CPU, lambda *_: prior)
    session.prepare()
    found = []
    for lam, end in ((0.0, 100), (1.0, 250)):
        now = s.patch("losses.esd.lam", lam)
        while session.state.step < end:
            step(session.state, now, prior, session.bank)
        cams = turntable(12, s.camera, 32)
        with torch.no_grad():
            z = prior.encode(session.state.scene.render(cams, torch.ones(12, 3)).rgb)
        found.append(sides.shown(z, prior, s.prompt.text))
    vsd, esd = found
    assert vsd.fronts > 10
    assert esd.fronts < 6
    assert esd.iv > vsd.iv + 0.5


@pytest.mark.slow
def test_bench_esd_writes_what_it_prints_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(objects, "load_judge", lambda: None)
    arguments = ["bench", "esd", *TINY, "--objects", "cat", "--lambdas", "1,0", "--seeds", "2", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    result = json.loads((tmp_path / "esd.json").read_text())
    assert [(row["lambda"], row["seed"], row["steps"]) for row in result["rows"]] == [
        (0, 0, 3),
        (1, 0, 3),
        (0, 1, 3),
        (1, 1, 3),
    ]
    assert [line["runs"] for line in result["table"]] == [2, 2]
    votes = [row["fronts"] for row in result["rows"] if row["lambda"] == 0]
    assert result["table"][0]["fronts"] == pytest.approx(np.mean(votes), abs=0.01)
    assert result["table"][0]["fronts_error"] == pytest.approx(np.std(votes, ddof=1) / math.sqrt(2), abs=0.01)
    assert (tmp_path / "esd.png").stat().st_size > 5000
    assert (tmp_path / "esd-views.png").exists()
    assert "the prior's own images: 7.2 fronts of 12" in capsys.readouterr().out
    runs = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join([*runs[:3], runs[3][:40]]))  # killed while it wrote
    assert cli.main(arguments) == 0
    assert "3 of 4 runs are in" in capsys.readouterr().out
    again = json.loads((tmp_path / "esd.json").read_text())["rows"]
    assert [row["fronts"] for row in again] == [row["fronts"] for row in result["rows"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lambdas", "0,2"], ["--lambdas 0,2", "0 to 1"]),
        (["--lambdas", "half"], ["--lambdas half", "not a number"]),
        (["--preset", "toybox"], ["prior.one_object", "gallery-esd-views"]),
        (["--preset", "gallery"], ["prior.one_object", "gallery-esd-views"]),
        (["--objects", "mushroom"], ["--objects mushroom", "same from all sides"]),
        (["--set", "losses.esd.lam=1"], ["losses.esd.lam", "itself"]),
    ],
)
def test_bad_input_of_bench_esd(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(objects.Runner, "prepare", lambda self: pytest.fail("work was begun"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "esd", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


# ---- what janus-losses can show ---------------------------------------------------------------------------------


def rows_of(vsd, term=0.5):
    size = [{"t": t, "exact": term, "learnt": 0.3} for t in (100, 500, 900)]
    rows = [{"variant": "vsd", "object": "cat", "seed": i, "front_votes": n} for i, n in enumerate(vsd)]
    return [{**row, "entropy_term": size} for row in rows]


@pytest.mark.parametrize(
    ("vsd", "share", "term", "reasons"),
    [
        ([8, 10], 0.5, 0.5, []),
        ([4, 5], 0.5, 0.5, ["more fronts"]),
        ([6, 6], 0.5, 0.5, ["more fronts"]),
        ([8, 10], 0.5, 0.01, ["do not overlap"]),
        ([1, 2], 0.5, 0.01, ["more fronts", "do not overlap"]),
    ],
)
def test_no_conclusion_about_esd_where_there_cannot_be_one(vsd, share, term, reasons):
    base = Variant("vsd", "toybox", preset("toybox").patch("active", "vsd"))
    rows = rows_of(vsd, term)
    found = janus_losses.obstacles(rows, base, {"cat": share}, janus_losses.term_sizes(rows))
    assert len(found) == len(reasons)
    for reason, text in zip(reasons, found, strict=True):
        assert reason in text


def test_only_timesteps_of_the_run_count():
    base = Variant("vsd", "toybox", preset("toybox").patch("active", "vsd"))  # t from 100 to 700
    rows = rows_of([9], term=0.0)
    rows[0]["entropy_term"][2]["exact"] = 0.5  # at t = 900
    (reason,) = janus_losses.obstacles(rows, base, {"cat": 0.1}, janus_losses.term_sizes(rows))
    assert "t 100 to 700" in reason


def test_vsd_is_the_baseline_wherever_it_stands():
    s = preset("toybox")
    sds, vsd, esd = (Variant(name, "toybox", s.patch("active", name)) for name in ("sds", "vsd", "esd"))
    assert janus_losses.baseline([sds, vsd, esd]) is vsd
    assert janus_losses.baseline([sds, esd]) is sds


def test_variety_is_the_entropy_of_the_views_read():
    def row(*views):
        return {"read": [{"view": view} for view in views]}

    assert janus_losses.variety(row(*["front view"] * 12)) == 0
    true = ["front view"] * 3 + ["side view"] * 6 + ["back view"] * 3
    assert janus_losses.variety(row(*true)) == pytest.approx(1.04, abs=0.001)


# ---- the journal ------------------------------------------------------------------------------------------------


def test_a_journal_keeps_whole_lines_and_pictures(tmp_path):
    journal = Journal(tmp_path)
    picture = np.full((4, 8, 3), 7, np.uint8)
    journal.add("a", {"fronts": 1}, picture)
    journal.add("b", {"fronts": 2})
    with journal.path.open("a") as file:
        file.write('{"key": "c", "result": {"fro')
    again = Journal(tmp_path)
    assert (len(again), again.get("a"), again.get("b"), again.get("c")) == (2, {"fronts": 1}, {"fronts": 2}, None)
    np.testing.assert_array_equal(again.strip("a"), picture)
    assert again.strip("b") is None
    again.add("c", {"note": "failed at step 3: out of memory"})
    assert again.finished("a")
    assert not Journal(tmp_path).finished("c"), "a failed run is done again"
    again.add("c", {"note": "", "fronts": 3})
    assert Journal(tmp_path).finished("c")


def test_a_key_differs_with_every_setting_that_matters_to_the_run():
    s = preset("mixture").patch("active", "esd")
    changed = [
        ("losses.esd.lam", 0.7),
        ("seed", 3),
        ("prompt.text", "a cat"),
        ("schedule.t_min", 0.2),
        ("prior.seed", 1),
    ]
    keys = {key_of(s), *(key_of(s.patch(*change)) for change in changed), key_of(s, "more")}
    assert len(keys) == len(changed) + 2
    assert key_of(s.patch("losses.sds.cfg", 3.0)) == key_of(s), "knobs of other losses do not"
