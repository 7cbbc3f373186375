"""The lens shows what a loss saw, and changes nothing."""

import dataclasses
import threading

import numpy as np
import pytest
import tiny_models as tiny
import torch
from waiting import until

from sdlab import lens
from sdlab.lens.colours import LATENT_REACH, MOST, false_colours, is_pixels, round_up
from sdlab.lens.colours import shown as as_shown
from sdlab.lens.numbers import places
from sdlab.live import watching
from sdlab.live.messages import Compare, Goto, Patch, Reset, Stop
from sdlab.live.session import Session
from sdlab.live.watching import Drawing
from sdlab.losses.jsd import JSD
from sdlab.optim import SceneOptimiser
from sdlab.pictures import to_uint8
from sdlab.priors.truth import Truth, truth_of
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.scenes.image import Images
from sdlab.schedule import sample_t
from sdlab.settings import losses, preset
from sdlab.step import State
from sdlab.types import Guidance, cat_conds

ALL = sorted(losses())
SHORT = [(f"losses.{name}.warm_up", 2) for name in ("vsd", "esd", "asd", "vdm")]


@pytest.fixture
def small(quick):
    """One t for all views, networks that are ready at once, little inversion."""
    return quick.patch_all([*SHORT, ("schedule.per_view", False), ("losses.sdi.inversion_steps", 3)])


def begun(settings, steps: int = 3) -> Session:
    session = Session(settings)
    session.run(until=steps)
    return session


def parts(session: Session) -> tuple:
    """All that a lens is given of a session."""
    return session.state, session.effective, session.prior, session.bank


def compared(*given, **names) -> lens.Comparison:
    """What the comparison comes to when every loss has answered."""
    return list(lens.comparison_steps(*given, **names))[-1]


def everything(session: Session) -> dict[str, torch.Tensor]:
    """All numbers of a session's state by name."""
    found = {}

    def collect(name, value):
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().clone()
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{name} {key}", inner)
        elif isinstance(value, (int, float, str)):
            found[f"{name} = {value}"] = torch.zeros(())

    held = dict(session.moment().parts)
    held["session"] = {k: v for k, v in held["session"].items() if "seconds" not in k}
    collect("", {**held, "step": session.state.step})
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# ---- a step -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", ALL)
def test_a_probe_at_the_steps_own_t_shows_what_the_step_then_sees(small, loss):
    s = small.patch("active", loss)
    session = begun(s)
    t = int(sample_t(s.schedule, StepRng(s.seed, 3), 1, s.progress(3)))
    before = lens.probe(*parts(session), t=t, row=1)
    session.run(until=4)
    report = session.report
    after = lens.views_of_step(report, s, session.prior, row=1)
    assert after.labels == before.labels
    assert after.captions == before.captions
    assert np.array_equal(after.pictures, before.pictures)
    assert (after.t, after.rms, after.scale, after.view) == (t, before.rms, before.scale, before.view)
    assert len(set(after.labels)) == len(after.labels) == len(after.pictures)
    for key in report.guidance.preds:
        assert f"x0: {s.loss.term(key).title}" in after.labels


@pytest.mark.parametrize("loss", ALL)
def test_a_step_is_shown_without_asking_again(small, monkeypatch, loss):
    session = begun(small.patch("active", loss))
    report, asked, eps = session.report, [], session.prior.eps
    monkeypatch.setattr(session.prior, "eps", lambda *given: asked.append(given) or eps(*given))
    shown = lens.views_of_step(report, session.effective, session.prior)
    assert not asked
    assert {f"x0: {session.effective.loss.term(name).title}" for name in report.guidance.preds} <= set(shown.labels)
    assert not shown.note


@pytest.mark.parametrize("loss", ["sds", "csd", "dds", "vsd", "vdm", "nfsd", "sbp"])
def test_a_perfect_prediction_leads_back_to_the_picture(small, loss):
    session = begun(small.patch("active", loss))
    report = session.report
    x = report.x
    perfect = Guidance(
        report.guidance.residual, dict.fromkeys(report.guidance.preds, x.noise), asked=report.guidance.asked
    )
    found = places(x, perfect, session.prior)
    assert found.keys() == perfect.preds.keys()
    for name, place in found.items():
        x0 = (place.z_t - place.sigma * x.noise) / place.alpha
        torch.testing.assert_close(x0, x.ref if name == "ref" else x.z0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("loss", "key"), [("sdi", "inversion"), ("sbp", "source")])
def test_the_noise_that_an_inversion_found_leads_back_to_the_picture(small, loss, key):
    session = begun(small.patch_all([("active", loss), ("losses.sbp.form", "full"), ("losses.sbp.leg_steps", 2)]))
    report = session.report
    place = places(report.x, report.guidance, session.prior)[key]
    assert not torch.equal(place.z_t, report.x.z_t)
    x0 = (place.z_t - place.sigma * report.guidance.preds[key]) / place.alpha
    torch.testing.assert_close(x0, report.x.z0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["sds", "sdi", "jsd"])
def test_the_one_step_target_is_where_the_guided_prediction_leads(small, loss):
    s = small.patch_all([("active", loss), (f"losses.{loss}.cfg", 3.0)])
    session = begun(s)
    report = session.report
    g = report.guidance
    at = places(report.x, g, session.prior)
    hat = g.preds["uncond"] + 3.0 * (g.preds["pos"] - g.preds["uncond"])
    expected = (at["pos"].z_t - at["pos"].sigma * hat) / at["pos"].alpha
    if loss == "jsd":  # which sets the minority sample's against it
        expected = report.x.z0 - report.x.sigma / report.x.alpha * (hat - g.preds["minority"])
    target = s.loss.one_step_target(report.x, report.guidance.residual)
    torch.testing.assert_close(target, expected, rtol=1e-3, atol=1e-3)


def test_the_heat_map_says_which_places_are_to_become_brighter(small):
    session = begun(small)
    report = session.report
    residual = torch.zeros_like(report.guidance.residual)
    residual[:, :, :8] = -1.0  # descended: the upper half becomes brighter
    residual[:, :, 8:] = 0.5
    report = dataclasses.replace(report, guidance=report.guidance._replace(residual=residual))
    shown = lens.views_of_step(report, session.effective, session.prior)
    heat, push = (shown.pictures[shown.labels.index(name)].astype(int) for name in ("residual", "push"))
    above, below = heat[4, 4], heat[-4, 4]
    assert above[0] > above[2] + 50, "red"
    assert below[2] > below[0] + 30, "blue"
    assert (push[4, 4] > 128).all()
    assert (push[-4, 4] < 128).all()
    assert shown.scale == 2.0
    assert shown.rms == pytest.approx(shown.weight * 0.625**0.5, rel=1e-4)


def test_a_view_or_a_t_that_there_is_not_is_refused(small):
    session = begun(small, 1)
    with pytest.raises(ValueError, match="view 2: this step has 2"):
        lens.probe(*parts(session), t=10, row=2)
    with pytest.raises(ValueError, match="t = 1000: allowed is 0 to 999"):
        lens.probe(*parts(session), t=1000)


def test_a_step_of_the_past_keeps_its_camera_while_t_is_moved(small):
    session = begun(small)
    a, b = (lens.probe(*parts(session), t=t, step=1) for t in (100, 900))
    assert np.array_equal(a.pictures[0], b.pictures[0])
    assert not np.array_equal(a.pictures[1], b.pictures[1])
    assert not np.array_equal(a.pictures[0], lens.probe(*parts(session), t=100).pictures[0])


def test_the_colour_scale_holds_still():
    assert [round_up(x) for x in (0.0, 0.011, 1.0, 2.1, 7.0, float("nan"))] == [1.0, 0.02, 1.0, 5.0, 10.0, 1.0]


def test_all_views_come_with_the_one_that_is_looked_at(small):
    session = begun(small.patch("camera.views", 3))
    session.run(until=2)
    of_step = lens.views_of_step(session.report, small, session.prior, 1)
    assert np.array_equal(of_step.renders, to_uint8(session.report.render.rgb))
    for seen in (of_step, lens.probe(*parts(session), t=300, row=1)):
        assert len(seen.views) == len(seen.renders) == 3
        assert seen.view == seen.views[1]


def test_of_a_scene_that_is_gone_nothing_is_shown(small):
    session = begun(small)
    session.run(until=3)
    session.watch_lens(True)
    session.send(Compare())
    session.run(until=4)
    assert session.lens.get() is not None
    assert session.comparison.get() is not None
    versions = session.lens.version, session.comparison.version
    session.do(Reset())
    assert session.lens.get() is session.comparison.get() is None
    assert (session.lens.version, session.comparison.version) == (versions[0] + 1, versions[1] + 1), "which is news"
    session.run(until=60)
    session.watch_lens(True)
    session.run(until=60)
    assert session.lens.get() is not None
    assert session.comparison.get() is None, "a comparison that was under way is given up"
    session.do(Goto(50))
    assert session.lens.get() is None


# ---- exact predictions ------------------------------------------------------------------------------------------


class FromPrior(Truth):
    """A truth that answers as the prior itself; its second sample of images is `off` away."""

    def __init__(self, prior, known: bool = True, off: float = 0.0):
        self.prior = prior
        self.known = known
        self.off = off

    def has(self, text):
        return self.known

    def x0(self, text, z_t, alpha, sigma, sample=0):
        levels, _ = self.prior.marginal(torch.arange(1000))
        t = (levels - alpha).abs().argmin().view(1)
        eps = self.prior.eps(z_t, t, cat_conds([self.prior.embed(text)]))
        return (z_t - sigma * eps * (1 + self.off * sample)) / alpha


@pytest.mark.parametrize("loss", ["sds", "nfsd", "sbp", "jsd", "sdi", "vsd"])
def test_exact_predictions_are_asked_where_the_networks_were(small, loss):
    """The text of each role, and its z_t: then a truth that answers as the prior has no error."""
    session = begun(small.patch("active", loss))
    report, s, prior = session.report, session.effective, session.prior
    plain = lens.views_of_step(report, s, prior, row=1)
    seen = lens.views_of_step(report, s, prior, row=1, truth=FromPrior(prior, off=0.25))
    pairs = [label.removeprefix("exact: ") for label in seen.labels if label.startswith("exact: ")]
    texts = [s.loss.term(name).title for name in report.guidance.preds if name in s.loss.roles]
    assert pairs == texts
    for title in pairs:
        i = seen.labels.index(f"exact: {title}")
        assert seen.labels[i - 1] == f"x0: {title}"
        assert np.abs(seen.pictures[i].astype(int) - seen.pictures[i - 1]).max() <= 1
        assert f"{title} 0% (25%)" in seen.note
    kept = [i for i, label in enumerate(seen.labels) if not label.startswith("exact: ")]
    assert tuple(seen.labels[i] for i in kept) == plain.labels
    assert np.array_equal(seen.pictures[kept], plain.pictures)
    assert not plain.note


def test_what_is_not_drawn_yet_or_not_for_one_text_has_no_exact_prediction(small):
    session = begun(small.patch("guidance.perp_neg", True))
    given = session.report, session.effective, session.prior
    assert lens.texts_with_truth(session.effective) == [""]
    with_perp_neg = lens.views_of_step(*given, truth=FromPrior(session.prior))
    assert [label for label in with_perp_neg.labels if "exact" in label] == ["exact: no prompt"]
    unknown = lens.views_of_step(*given, truth=FromPrior(session.prior, known=False))
    assert unknown.labels == lens.views_of_step(*given).labels
    assert set(lens.texts_with_truth(small)) >= {"", f"{small.prompt.text}, front view"}


def test_a_probe_asks_at_its_own_t(small):
    session = begun(small)
    seen = lens.probe(*parts(session), t=50, truth=FromPrior(session.prior))
    assert "prompt 0% (0%)" in seen.note


def test_a_prior_without_exact_predictions_says_so(small):
    session = begun(small)
    session.watch_lens(True, exact=True)
    session.run(until=4)
    seen = session.lens.get()
    assert "only networks of the toybox's images" in seen.note
    assert len(seen.labels) > 3
    session.watch_lens(True)
    session.run(until=4)
    assert not session.lens.get().note


class Slow(Truth):
    """A truth whose images take as long to draw as a test wants."""

    def __init__(self):
        self.drawn: list[str] = []
        self.begun: list[str] = []
        self.may = threading.Semaphore(0)

    def has(self, text):
        return text in self.drawn

    def prepare(self, text):
        self.begun.append(text)
        self.may.acquire()
        if text == "too much":
            raise MemoryError("no room")
        self.drawn.append(text)

    def x0(self, text, z_t, alpha, sigma, sample=0):
        return z_t / alpha


def test_the_run_goes_on_while_images_are_drawn_and_they_show_at_once(small, monkeypatch):
    truth = Slow()
    monkeypatch.setattr(watching, "truth_of", lambda config, prior: truth)
    session = begun(small)
    session.watch_lens(True, exact=True)
    session.run(until=6)
    seen, texts = session.lens.get(), lens.texts_with_truth(small)
    assert session.state.step == 6
    assert f"0 of {len(texts)} texts" in seen.note
    assert not any(label.startswith("exact: ") for label in seen.labels)
    truth.may.release(len(texts))
    owner = threading.Thread(target=session.run, args=(None, False))  # paused: only the news updates the lens
    owner.start()
    session.watch_lens(True, exact=True)
    until(lambda: "texts" not in session.lens.get().note)
    session.send(Stop())
    owner.join()
    assert [label for label in session.lens.get().labels if "exact" in label] == ["exact: prompt", "exact: no prompt"]


def test_images_are_drawn_beside_the_run_and_only_while_they_are_wanted():
    truth, news = Slow(), []
    drawing = Drawing(truth, lambda: news.append(len(truth.drawn)))
    assert "0 of 3 texts" in drawing.want(("a", "b", "c"))
    until(lambda: truth.begun == ["a"])
    truth.may.release()
    until(lambda: truth.begun == ["a", "b"])
    assert news == [1]
    assert "1 of 3 texts" in drawing.want(("a", "b", "c"))
    drawing.want(())  # nobody looks any more
    truth.may.release(5)
    until(lambda: truth.drawn == ["a", "b"])
    until(lambda: drawing._thread is None)
    assert truth.begun == ["a", "b"], "c is not begun"
    assert drawing.want(("a", "b")) == ""
    assert drawing.want(("c",))
    until(lambda: "c" in truth.drawn)


def test_images_that_cannot_be_drawn_are_given_up_once():
    truth = Slow()
    truth.may.release(5)
    drawing = Drawing(truth, lambda: None)
    drawing.want(("too much", "b"))
    until(lambda: "no room" in drawing.want(("too much", "b")))
    assert truth.begun == ["too much"]


@pytest.mark.slow
def test_the_lens_beside_the_embedded_network(monkeypatch):
    monkeypatch.setattr(watching, "truth_of", lambda config, prior: truth_of(config, prior, 64, 64))
    s = preset("toybox").patch_all([("scene.n_init", 200), ("prior.engine", "torch")])
    seen, alone = begun(s, 1), begun(s, 1)
    seen.watch_lens(True, t=900, exact=True)

    def complete() -> bool:
        seen.run(until=1)
        seen.watch_lens(True, t=900, exact=True)
        return seen.lens.get() is not None and "drawing images" not in seen.lens.get().note

    until(complete, 120)
    shown = seen.lens.get()
    assert shown.labels[2:6] == ("x0: prompt", "exact: prompt", "x0: no prompt", "exact: no prompt")
    network, exact = (shown.pictures[i].astype(float) for i in (2, 3))
    assert 0 < np.abs(network - exact).mean() < 40
    for session in (seen, alone):
        session.run(until=4)
    assert_same(everything(seen), everything(alone))


# ---- nothing changes --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sds", "vsd", "asd", "vdm", "dds", "jsd"])
def test_a_run_goes_on_as_if_nobody_had_looked(small, loss):
    s = small.patch("active", loss)
    seen, alone = begun(s), begun(s)
    aux = {name: dict(vars(model)) for name, model in seen.state.aux.items()}
    before = everything(seen)
    lens.probe(*parts(seen), t=300)
    comparison = compared(*parts(seen))
    assert comparison.done == len(ALL)
    assert_same(before, everything(seen))
    assert {name: dict(vars(model)) for name, model in seen.state.aux.items()} == aux
    assert seen.state.aux_keys == alone.state.aux_keys
    for session in (seen, alone):
        session.run(until=6)
    assert_same(everything(seen), everything(alone))


def test_looking_between_steps_does_not_disturb_parked_networks(small):
    """psi of VSD is parked while VDM is in force, and goes on later as it was."""

    def run(look: bool):
        session = begun(small.patch("active", "vsd"))
        session.send(Patch((("active", "vdm"),)))
        session.run(until=5)
        if look:
            assert "not trained" not in compared(*parts(session)).notes[ALL.index("vsd")]
        session.send(Patch((("active", "vsd"),)))
        session.run(until=7)
        return everything(session)

    assert_same(run(True), run(False))


def test_a_scene_that_remembers_its_samples_keeps_those_of_its_last_step():
    session = begun(preset("playground-gaussian").patch("scene.n", 8))
    before = session.state.scene._seen.clone()
    compared(*parts(session), names=["sds"])
    assert torch.equal(session.state.scene._seen, before)


# ---- all losses -------------------------------------------------------------------------------------------------


def test_cosines_of_all_losses(small):
    s = 30.0
    knobs = {"pos": s, "pos_end": s, "neg": 0, "neg_end": 0, "null": 1 - s, "null_end": 1 - s, "noise": -1}
    as_sds = [(f"losses.csd.{name}", float(value)) for name, value in {**knobs, "noise_end": -1}.items()]
    session = begun(small.patch_all([*as_sds, ("losses.sds.cfg", s)]))
    found = compared(*parts(session))
    at = {name: i for i, name in enumerate(found.losses)}
    assert found.losses == tuple(ALL)
    assert found.cosines.shape == (len(ALL), len(ALL))
    assert found.pictures.shape[:2] == (len(ALL), 2)
    assert found.pictures.shape[2:] == found.renders.shape[1:]
    np.testing.assert_array_equal(found.cosines, found.cosines.T)
    editing = [i for name, i in at.items() if losses()[name].needs_reference]
    others = [i for i in at.values() if i not in editing]
    assert (found.cosines[others, others] == 1).all()
    for i in editing:
        assert np.isnan(found.cosines[i]).all(), "what is zero has no direction"
        assert found.rms[i] == 0
        assert "as it is now: zero" in found.notes[i]
    assert found.cosines[at["csd"], at["sds"]] == pytest.approx(1, abs=1e-6)
    assert found.rms[at["csd"]] == pytest.approx(found.rms[at["sds"]], rel=1e-5)
    assert abs(found.cosines[at["sbp"], at["sds"]]) < 0.99
    assert (np.abs(found.cosines[np.ix_(others, others)]) <= 1).all()


def test_the_compared_gradient_is_that_of_the_next_step(small):
    session = begun(small.patch("schedule.per_view", True))
    found = compared(*parts(session), names=["sds"])
    session.run(until=4)
    assert found.rms[0] == pytest.approx(float(session.report.stats["grad_rms"]), rel=1e-5)
    assert found.t == tuple(session.report.x.t.tolist())
    assert found.nfe == (2,)


def test_a_reference_that_there_is_is_compared_with(small):
    session = begun(small.patch("active", "dds"))
    state, s, prior, bank = parts(session)
    found = compared(state, s.patch("prompt.text", "a blue cat"), prior, bank, names=["dds"])
    assert found.notes == ("",)
    assert found.rms[0] > 1e-3


def test_a_network_that_has_learnt_little_is_said_to(small):
    session = begun(small.patch_all([("active", "vsd"), ("losses.esd.warm_up", 100), ("losses.asd.warm_up", 0)]))
    found = compared(*parts(session), names=["vsd", "esd", "asd", "vdm", "sds"])
    learnt = session.state.aux["score"].fitted
    untrained = "its own network is not trained yet"
    assert found.notes == ("", f"its own network has learnt {learnt} of 100 steps", untrained, untrained, "")
    assert np.isfinite(found.rms).all()


def test_an_untrained_psi_need_not_be_built(small):
    session = begun(small)
    state, s, prior, bank = parts(session)
    vsd = s.patch("active", "vsd")
    state.aux["score"], state.aux_keys["score"] = vsd.loss.init_aux(prior, StepRng(0, -1)), vsd.loss.aux_key()
    built = compared(state, s, prior, bank, names=["vsd", "esd"])
    del state.aux["score"], state.aux_keys["score"]
    free = compared(state, s, prior, bank, names=["vsd", "esd"])
    np.testing.assert_allclose(free.rms, built.rms, rtol=1e-5)
    assert np.abs(free.pictures.astype(int) - built.pictures).max() <= 1
    assert free.nfe == built.nfe == (3, 4)


def test_a_loss_that_fails_is_listed_and_the_others_go_on(small, monkeypatch):
    def fails(*args):
        raise RuntimeError("no such luck")

    session = begun(small)
    monkeypatch.setattr(JSD, "gradient", fails)
    found = compared(*parts(session), names=["jsd", "sds"])
    assert found.notes == ("RuntimeError: no such luck", "")
    assert np.isnan(found.rms[0])
    assert np.isnan(found.cosines[0]).all()
    assert found.cosines[1, 1] == 1
    with pytest.raises(ValueError, match="active = 'nonsense'"):
        compared(*parts(session), names=["sds", "nonsense"])


def test_one_loss_at_a_time_while_the_run_goes_on(small):
    session = begun(small)
    whole = compared(*parts(session))
    state, seen = session.state, []
    for number, found in enumerate(lens.comparison_steps(*parts(session)), 1):
        assert found.done == number
        assert np.isfinite(found.rms).sum() == number
        session.run(until=state.step + 1)
        seen.append(found)
    np.testing.assert_array_equal(seen[-1].cosines, whole.cosines)
    np.testing.assert_array_equal(seen[-1].pictures, whole.pictures)


def test_the_network_is_asked_in_batches_that_it_is_compiled_for(small, monkeypatch):
    session = begun(small)
    sizes, eps = [], session.prior.eps
    monkeypatch.setattr(session.prior, "eps", lambda z_t, t, cond: sizes.append(len(z_t)) or eps(z_t, t, cond))
    found = compared(*parts(session), names=["nfsd", "ism", "vsd"])
    assert set(sizes) == {2 * 2}
    assert found.nfe == (3, 6, 3)
    monkeypatch.undo()
    alone = compared(session.state, session.effective.patch("active", "nfsd"), *parts(session)[2:], ["nfsd"])
    np.testing.assert_allclose(found.rms[0], alone.rms[0], rtol=1e-6)


# ---- other priors and scenes ------------------------------------------------------------------------------------


def test_points_are_drawn_all_together():
    session = begun(preset("playground").patch_all([("active", "sds"), ("scene.n", 10), *SHORT]))
    seen = lens.views_of_step(session.report, session.effective, session.prior, row=9)
    assert seen.labels == ("points", "noisy", "x0: prompt", "x0: no prompt", "one-step target", "push")
    assert seen.pictures.shape == (6, MOST, MOST, 3)
    assert seen.t == int(session.report.x.t[9])
    assert "its own t" in seen.note
    assert not lens.probe(*parts(session), t=500).note
    report = session.report
    still = dataclasses.replace(report, guidance=report.guidance._replace(residual=torch.zeros_like(report.x.z0)))
    still = lens.views_of_step(still, session.effective, session.prior).pictures
    assert np.array_equal(still[0], still[-1]), "nobody is pushed"
    assert not np.array_equal(seen.pictures[0], seen.pictures[-1])

    found = compared(*parts(session))
    assert found.renders.shape == (1, MOST, MOST, 3)
    assert found.pictures.shape == (len(ALL), 1, MOST, MOST, 3)
    silent = [name for name, rms in zip(found.losses, found.rms, strict=True) if rms == 0]
    assert silent == ["dds", "pds", "sbp"], "this plane takes both of its prompts for the same"
    for i, rms in enumerate(found.rms):
        assert np.array_equal(found.pictures[i], found.renders) == (rms == 0)
    assert np.array_equal(np.isnan(found.cosines.diagonal()), found.rms == 0)


def test_events_that_cannot_be_seen_have_no_pictures_but_cosines(small):
    s = dataclasses.replace(small, scene=Images(n=2)).patch("prior.channels", 4)
    prior = s.prior.load(torch.device("cpu"))
    scene = s.scene.build(StepRng(0, -1), prior.device, prior, "")
    given = State(scene, SceneOptimiser(scene.params, s.optim)), s, prior, PromptBank(prior)
    assert "4 channels" in lens.probe(*given, t=500).reason
    found = compared(*given, names=["sds", "csd"])
    assert "4 channels" in found.reason
    assert np.isfinite(found.cosines).all()


def test_pictures_are_shown_as_they_are(small):
    s = dataclasses.replace(small, scene=Images(n=2)).patch("prompt.view_dependent", False)
    session = begun(s)
    z0 = session.state.scene.params["latents"].detach()
    shown = lens.probe(*parts(session), t=200, row=1)
    expected = as_shown(session.prior.decode(z0[1:]))[0]
    assert shown.labels[0] == "picture"
    assert np.array_equal(shown.pictures[0], expected)
    assert shown.view == ""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sds", "sdi"])
def test_a_vae_decodes_all_pictures_at_once_and_nothing_extreme(small, tmp_path, monkeypatch, loss):
    folder = tiny.latent_model(tmp_path / "m")
    prior = dataclasses.replace(preset("toybox").prior, path=str(folder), engine="torch")
    s = dataclasses.replace(small, prior=prior).patch_all([("active", loss), ("prompt.negative", "a blue car")])
    session = begun(s, 2)
    seen, decode = [], session.prior.decode
    monkeypatch.setattr(session.prior, "decode", lambda z: seen.append(z) or decode(z))
    shown = lens.views_of_step(session.report, s, session.prior)
    assert len(seen) == 1
    assert len(shown.labels) == len(seen[0]) + 3, "the render, the residual and the push are no latents"
    shown = lens.probe(*parts(session), t=990)
    assert len(seen) == 2
    assert float(seen[1].abs().max()) == LATENT_REACH
    assert shown.pictures.shape == (len(shown.labels), 128, 128, 3)
    assert not is_pixels(session.prior)
    found = compared(*parts(session), names=["sds", "csd"])
    assert len(seen) == 2
    assert len(np.unique(found.pictures[0])) > 10


def test_false_colours_tell_channels_apart():
    for channels in (4, 16):
        colours = false_colours(torch.eye(channels)[:, :, None, None] * 0.5).flatten(1)
        apart = torch.cdist(colours, colours) + torch.eye(channels)
        assert apart.min() > 0.05
        assert torch.equal(false_colours(torch.zeros(1, channels, 2, 2)), torch.full((1, 3, 2, 2), 0.5))


@pytest.mark.slow
def test_the_embedded_prior(small):
    s = preset("toybox").patch_all([("scene.n_init", 200), *SHORT, ("losses.sdi.inversion_steps", 2)])
    seen, alone = begun(s, 2), begun(s, 2)
    assert is_pixels(seen.prior)
    shown = lens.probe(*parts(seen), t=400)
    assert shown.labels == ("render", "noisy", "x0: prompt", "x0: no prompt", "one-step target", "residual", "push")
    render, guess = (shown.pictures[i].astype(float) for i in (0, 2))
    assert np.abs(render - guess).mean() < 60, "what the prior makes of it looks like it"
    found = compared(*parts(seen))
    assert np.isfinite(found.rms).all(), found.notes
    for session in (seen, alone):
        session.run(until=4)
    assert_same(everything(seen), everything(alone))


# ---- figures ----------------------------------------------------------------------------------------------------


def test_the_control_variate_of_sds_is_the_noise(small):
    report = begun(small).report
    found = {name: float(value) for name, value in lens.stats_of(report, small.loss).items()}
    pos, noise = (x.flatten().numpy() for x in (report.guidance.preds["pos"], report.x.noise))
    assert found["noise_correlation"] == pytest.approx(np.corrcoef(pos, noise)[0, 1], abs=1e-5)
    assert found["control_correlation"] == found["noise_correlation"]
    shift = pos - report.guidance.preds["uncond"].flatten().numpy()
    assert found["guidance_rms"] == pytest.approx(np.sqrt((shift**2).mean()), rel=1e-5)


@pytest.mark.parametrize("loss", ALL)
def test_every_loss_has_figures(small, loss):
    s = small.patch_all([("active", loss), ("losses.csd.ramp", 1.0)])
    report = begun(s).report
    found = lens.stats_of(report, s.loss)
    assert ("noise_correlation" in found) == (loss not in ("sdi", "pfd", "ism", "jsd"))
    assert {"control_correlation", "guidance_rms", "guidance_share"} <= found.keys()
    assert all(value.shape == () and bool(torch.isfinite(value)) for value in found.values())
    if loss == "dds":
        assert found["control_correlation"] == pytest.approx(1, abs=1e-5), "the reference is what is there"
    if loss == "sbp":
        assert found["guidance_share"] == pytest.approx(1, abs=1e-5), "guidance is all there is"
