"""Table 3.1 at toybox scale: distances against closed forms, a text per image, rows that survive failures."""

import dataclasses
import json
import math

import pytest
import tiny_models
import torch
from PIL import Image

from sdlab import cli
from sdlab.experiments import objects, protocols
from sdlab.experiments import text_to_2d as table31
from sdlab.live.session import Session
from sdlab.metrics.distances import fid, kid
from sdlab.options import settings_for
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.settings import preset
from sdlab.toybox import judge
from sdlab.toybox.figures import caption_of, plain_facts

TUNED = protocols.TUNED
FEW = ["--captions", "3", "--steps", "3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that knows a few of the toybox's objects and three colours."""
    return tiny_models.pixel_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def prior(tiny):
    return settings(tiny).prior.load(torch.device("cpu"))


def settings(tiny, n=1):
    knobs = [("prior.path", str(tiny)), ("prior.engine", "torch"), ("scene.n", n), ("steps", 3)]
    return preset("toybox-2d").patch_all(knobs)


def run(tiny, *arguments):
    knobs = ["--set", f"prior.path={tiny}", "--set", "prior.engine=torch"]
    return cli.main(["bench", "table31", "--quick", *knobs, *[str(a) for a in arguments]])


def found(folder):
    return json.loads((folder / "table31.json").read_text())


# ---- distances --------------------------------------------------------------------------------------------------


def drawn(n, d=4, seed=0, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fid_of_equal_sets_is_zero_fewer_than_features_too():
    for n, d in ((50, 4), (5, 40)):
        x = drawn(n, d)
        assert fid(x, x) == pytest.approx(0, abs=1e-9)
        assert fid(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
        assert fid(x, x + 3.0) == pytest.approx(9 * d, rel=1e-9), "only the means differ"


def test_fid_of_two_gaussians_is_their_distance():
    # |difference of means|^2 + sum (std_a - std_b)^2 for common axes
    stds = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    a, b = drawn(40_000) * stds, drawn(40_000, seed=1, shift=0.5) * stds.flip(0)
    shift = (0.5 * stds.flip(0)).square().sum()
    assert fid(a, b) == pytest.approx(float(shift + (stds - stds.flip(0)).square().sum()), rel=0.02)
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-6)


def test_fid_agrees_with_the_matrix_square_root():
    a, b = drawn(30, 5), drawn(20, 5, seed=1, scale=1.5)
    first, second = (torch.cov(x.T) for x in (a, b))
    values = torch.linalg.eigvals(first @ second).real.clamp_min(0)
    expected = (a.mean(0) - b.mean(0)).square().sum() + torch.trace(first + second) - 2 * values.sqrt().sum()
    assert fid(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_kid_has_no_bias_where_fid_has():
    pairs = [(drawn(20, 8, seed=2 * i), drawn(30, 8, seed=2 * i + 1)) for i in range(300)]
    kids = torch.tensor([kid(a, b) for a, b in pairs])
    assert abs(float(kids.mean())) < 3 * float(kids.std()) / math.sqrt(len(kids))
    assert float(kids.min()) < 0
    assert min(fid(a, b) for a, b in pairs) > 1.0


def test_kid_sees_another_mean_and_another_spread():
    a = drawn(100)
    other = [kid(a, drawn(100, seed=1, **change)) for change in ({"shift": 1.0}, {"scale": 2.0}, {})]
    assert other[0] > 0.5
    assert other[1] > 0.5
    assert abs(other[2]) < 0.2


def test_kid_is_the_sum_over_all_pairs():
    a, b = drawn(3, 2), drawn(4, 2, seed=1)

    def k(x, y):
        return float((x @ y / 2 + 1) ** 3)

    within = [
        sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for x, n in ((a, 3), (b, 4))
    ]
    between = sum(k(x, y) for x in a for y in b) / 12
    assert kid(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-9)


@pytest.mark.parametrize("distance", [fid, kid])
def test_one_picture_has_no_spread(distance):
    with pytest.raises(ValueError, match="1 and 5 images"):
        distance(drawn(1), drawn(5))


def test_features_are_what_the_heads_read_averaged_over_the_places():
    classifier = judge.Classifier(widths=(4, 6), size=16).eval()
    rgb = torch.rand(3, 3, 16, 16)
    whole = classifier.layers(2 * rgb - 1).view(3, 6, 4, 4)
    assert torch.allclose(judge.features(classifier, rgb), whole.mean((2, 3)), atol=1e-6)
    assert judge.features(classifier, (255 * rgb).to(torch.uint8)).shape == (3, 6)
    assert judge.features(classifier, torch.rand(2, 3, 9, 9)).shape == (2, 6), "of any size"


# ---- captions ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_captions_hold_only_words_that_the_prior_knows(prior):
    captions = [caption_of(f) for f in table31.captions_for(prior, 9)]
    assert set(captions) == {
        f"a {colour} {name}" for colour in ("red", "green", "blue") for name in ("bear", "cat", "car")
    }
    few = table31.captions_for(prior, 3)
    assert len({f.object for f in few}) == len({f.colour for f in few}) == 3, "few captions differ as much as possible"
    with pytest.raises(ValueError, match=r"--captions 10: .* knows only 9 pairs"):
        table31.captions_for(prior, 10)


def test_each_picture_of_a_batch_has_its_own_text(prior, tiny):
    roles = ("pos", "plain", "uncond", "neg", "target")
    texts = ["a red bear", "a blue car", "a red bear"]
    s = settings(tiny, len(texts)).prompt
    cams = settings(tiny, len(texts)).scene.build(StepRng(0, 0), torch.device("cpu"), prior, "").cams
    together = table31.CaptionBank(prior, texts).bind(s, roles, cams)
    for i, text in enumerate(texts):
        alone = PromptBank(prior).bind(dataclasses.replace(s, text=text), roles, cams[:1])
        for role in roles:
            assert torch.equal(together[role].hidden[i : i + 1], alone[role].hidden), (role, text)
    assert not torch.equal(together["pos"].hidden[0], together["pos"].hidden[1])


def test_batches_are_few_and_equal():
    assert [part.stop - part.start for part in table31.batches(64)] == [16] * 4
    assert table31.batches(8) == [slice(0, 8)]
    parts = table31.batches(35)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert sorted(part.stop - part.start for part in parts) == [11, 12, 12]


@pytest.mark.slow
def test_real_images_show_what_the_captions_say():
    facts = [plain_facts("bear", "red"), plain_facts("car", "blue"), plain_facts("tree", "green")]
    rgb = table31.real_images(facts, 2, 32)
    assert rgb.shape == (6, 3, 32, 32)
    seen = judge.read(judge.load(), rgb)
    assert [(t.object, t.colour) for t in seen] == 2 * [("bear", "red"), ("car", "blue"), ("tree", "green")]
    assert not torch.equal(rgb[:3], rgb[3:])
    assert torch.equal(table31.real_images(facts, 1, 32, first=1), rgb[3:]), "later images of the same series"


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_methods_make_pictures_from_the_same_start_and_draws(tiny, tmp_path, monkeypatch, capsys):
    draws, starts = {}, {}
    real = table31.step

    def step(state, s, *rest):
        if state.step == 0:
            starts.setdefault((s.active, s.seed), state.scene.params["latents"].detach().clone())
        report = real(state, s, *rest)
        draws.setdefault((s.active, s.seed), []).append((report.x.t, report.x.noise))
        return report

    monkeypatch.setattr(table31, "step", step)
    monkeypatch.setattr(table31, "BATCH", 2)
    monkeypatch.setattr(table31, "SAMPLING_STEPS", 5)
    assert (
        run(
            tiny,
            *FEW,
            "--losses",
            ",".join(TUNED),
            "--seeds",
            2,
            "--set",
            "losses.jsd.inversion_steps=2",
            "--set",
            "losses.vdm.warm_up=2",
            "--out",
            tmp_path,
        )
        == 0
    )

    # two rounds of two batches each, with the same draws for every loss
    seeds = [0, 1, 1000, 1001]
    losses = [name for name in TUNED if name != "ddim"]
    assert set(draws) == set(starts) == {(name, seed) for name in losses for seed in seeds}
    for seed in seeds:
        for name in losses:
            assert torch.equal(starts[name, seed], starts["sds", seed])
            assert len(draws[name, seed]) == 3
            for own, of_sds in zip(draws[name, seed], draws["sds", seed], strict=True):
                assert all(map(torch.equal, own, of_sds)), (name, seed)
    assert not torch.equal(starts["sds", 0][0], starts["sds", 1000][0])

    result = found(tmp_path)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["true", *TUNED]
    for name, row in rows.items():
        assert row["note"] == ""
        assert row["seeds"] == len(row["fid_true"]["each"]) == 2
        for score in ("fid_true", "kid_true", "fid_ddim", "kid_ddim"):
            assert math.isfinite(row[score]["mean"]), (name, score)
            assert row[score]["std"] >= 0
        assert 0 <= row["object"]["mean"] <= 1
        assert ("seconds" in row) == (name != "true")
    assert rows["true"]["fid_true"]["mean"] < min(rows[name]["fid_true"]["mean"] for name in TUNED)
    # three steps, and VDM's warm-up; psi's warm-up is a fifth of the steps, so none, and psi trains in the first of the
    # three, from four noises
    expected = {
        "ddim": 10,
        "sds": 6,
        "nfsd": 9,
        "csd": 9,
        "vsd": 13,
        "sbp": 6,
        "jsd": 18,
        "esd": 16,
        "vdm": 10,
        "ism": 18,
    }
    assert {name: rows[name]["evaluations"] for name in expected} == expected
    assert result["changes"]["sbp"]["losses.sbp.switch"] == 0.2
    assert result["references"] == {"true": 12, "ddim": 3}
    assert result["captions"] == ["a red bear", "a green cat", "a blue car"]
    with Image.open(tmp_path / "table31.png") as sheet:
        assert sheet.height > len(rows) * table31.CELL
    assert (tmp_path / "table31.png").stat().st_size < objects.SHEET_BYTES
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in rows)
    assert "±" in out


def test_a_lesson_beforehand_counts_as_evaluations(prior, tiny, monkeypatch):
    bench = objects.Runner(settings(tiny), torch.device("cpu"))
    bench.prepare()
    studio = table31.Studio(bench, table31.captions_for(prior, 2))
    wanted = [("active", "vsd"), ("losses.vsd.warm_up", 2), ("losses.vsd.every", 1), ("optim.lr_latents", 0.1)]
    s = settings(tiny).patch_all(wanted)
    made = studio.make(protocols.Method("vsd", s), 0)
    assert made.evaluations == (3 + 1) + 1 + 3 * (3 + 1)  # the first training pass also predicts, as a step does
    assert made.rgb.shape == (2, 3, 8, 8)
    assert 0 <= float(made.rgb.min()) <= float(made.rgb.max()) <= 1
    assert (made.seconds or 0) > 0


def test_one_picture_alone_is_the_sessions_own(prior, tiny):
    """The loop over batches equals the session's, except for the text."""
    bench = objects.Runner(settings(tiny), torch.device("cpu"))
    bench.prepare()
    (facts,) = table31.captions_for(prior, 1)
    s = settings(tiny).patch_all([("active", "vdm"), ("losses.vdm.warm_up", 0), ("seed", 3000)])
    made = table31.Studio(bench, [facts]).make(protocols.Method("vdm", s), 3)
    session = Session(s.patch("prompt.text", caption_of(facts)))
    session.run(until=s.steps)
    assert torch.equal(made.rgb, session.prior.decode(session.state.scene.params["latents"].detach()))


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows_that_are_finished(tiny, tmp_path, monkeypatch, capsys):
    real = table31.step

    def step(state, s, *rest):
        if s.active == "nfsd":
            benches[0].stop.set()
        return real(state, s, *rest)

    benches, run_table = [], table31.run_table
    monkeypatch.setattr(table31, "run_table", lambda bench, *rest: benches.append(bench) or run_table(bench, *rest))
    monkeypatch.setattr(table31, "step", step)
    assert run(tiny, *FEW, "--losses", "ddim,sds,nfsd,csd", "--out", tmp_path) == 0
    assert [row["method"] for row in found(tmp_path)["rows"]] == ["true", "ddim", "sds"]
    assert "±" not in capsys.readouterr().out.split("± over seeds")[0], "one seed has no spread"


def test_a_killed_run_leaves_the_rows_that_are_finished(tiny, tmp_path, monkeypatch):
    """SIGKILL leaves no time to write: each row is on disk before the next begins."""
    real, rows = table31.step, []

    def step(state, s, *rest):
        if s.active == "nfsd" and not rows:
            rows.extend(row["method"] for row in found(tmp_path)["rows"])
        return real(state, s, *rest)

    monkeypatch.setattr(table31, "step", step)
    assert run(tiny, *FEW, "--losses", "ddim,sds,nfsd", "--out", tmp_path) == 0
    assert rows == ["true", "ddim", "sds"]


def test_a_method_that_fails_is_noted_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    real = table31.step

    def step(state, s, *rest):
        if s.active == "sbp":
            raise RuntimeError("no bridge today")
        return real(state, s, *rest)

    monkeypatch.setattr(table31, "step", step)
    assert run(tiny, *FEW, "--losses", "sbp,sds", "--out", tmp_path) == 0
    _, sbp, sds = found(tmp_path)["rows"]
    assert sbp["note"] == "seed 0 failed: RuntimeError: no bridge today"
    assert (sbp["seeds"], sds["seeds"], sds["note"]) == (0, 1, "")


def test_a_variant_has_a_row_of_its_own_and_what_it_says_wins():
    def settings_of(defaults, changes):
        return settings_for("toybox-2d", [*protocols.common(60), *defaults, *changes])

    plain, variant = protocols.methods(["sbp", "sbp:switch=0.6", "sbp"], settings_of)
    assert (plain.label, variant.label) == ("sbp", "sbp:switch=0.6")
    switches = [m.settings.losses["sbp"].switch for m in (plain, variant)]
    assert switches == [0.2, 0.6]
    optim = plain.settings.optim
    rates = [optim.lr_latents * optim.decay ** (k / 60) for k in range(60)]
    assert sum(rates) == pytest.approx(protocols.TRAVEL, rel=0.03)
    assert plain.settings.losses["vsd"].warm_up == 12
    assert not plain.settings.prompt.view_dependent


def test_the_thesis_has_its_own_scales_and_its_own_direction_of_csd():
    """Section 5.1: s = 100, 7.5, 7.5, 40; w1 = w2 = 40, of which w2, of the negative prompt, falls to 0 in a fifth."""

    def settings_of(defaults, changes):
        return settings_for("toybox-2d", [*protocols.common(60), *defaults, *changes])

    labels = ["sds@thesis", "nfsd@thesis", "vsd@thesis", "sbp@thesis", "csd@thesis", "sbp@thesis:form=full", "sds"]
    sds, nfsd, vsd, sbp, csd, full, tuned = (m.settings.loss for m in protocols.methods(labels, settings_of))
    assert (sds.cfg, nfsd.cfg, vsd.cfg, sbp.sds_cfg, sbp.w, sbp.switch) == (100, 7.5, 7.5, 40, 25, 0.2)
    assert (csd.pos, csd.neg, csd.null, csd.noise) == (40, -40, 0, 0)
    assert (csd.pos_end, csd.neg_end, csd.null_end, csd.noise_end, csd.ramp) == (40, 0, -40, 0, 0.2)
    assert (full.form, full.stage, full.sds_cfg) == ("full", "two-stage", 40)
    assert tuned.cfg == 7.5
    assert {"sds@thesis", "csd@thesis", "sbp@thesis:form=full", "sds"} <= set(protocols.METHODS)


@pytest.mark.slow
def test_a_table_continues_where_it_ended(tiny, tmp_path, monkeypatch, capsys):
    assert run(tiny, *FEW, "--losses", "ddim,sds", "--out", tmp_path) == 0
    before = {row["method"]: row for row in found(tmp_path)["rows"]}
    real, stepped = table31.step, set()

    def step(state, s, *rest):
        stepped.add(s.active)
        return real(state, s, *rest)

    monkeypatch.setattr(table31, "step", step)
    assert run(tiny, *FEW, "--losses", "ddim,sds,csd@thesis", "--out", tmp_path) == 0
    assert stepped == {"csd"}
    after = {row["method"]: row for row in found(tmp_path)["rows"]}
    assert "2 of 3 results are in" in capsys.readouterr().out
    assert list(after) == ["true", "ddim", "sds", "csd@thesis"]
    assert all(after[name] == before[name] for name in ("ddim", "sds"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "sds@paper"], "--losses sds@paper: no such protocol; there are sds@thesis"),
        (["--losses", "sdss"], "--losses sdss: did you mean sds?"),
        (["--losses", "dds"], "--losses dds: it edits an existing image"),
        (["--preset", "toybox"], "scene.kind is 'splats'"),
        (["--captions", "10"], "--captions 10"),
        (["--captions", "1"], "--captions 1: "),
        (["--set", "scene.n=3"], "this command sets"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tiny, tmp_path, capsys, arguments, message):
    assert run(tiny, *arguments, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "table31.json").exists()
