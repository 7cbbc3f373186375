"""PFD, PDS and RewardSDS: their identities, and their formulas written down a second time; mixture prior, float64."""

from __future__ import annotations

import pickle
import sys
import types

import pytest
import torch
from test_kindred_losses import EXACT, bound, noised, prior, x  # noqa: F401  (fixtures)

from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.losses import reward
from sdlab.losses.dds import DDS
from sdlab.losses.pds import PDS
from sdlab.losses.pfd import PFD
from sdlab.losses.reward import RewardSDS
from sdlab.losses.sdi import SDI
from sdlab.losses.sds import SDS
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.settings import Settings
from sdlab.toybox import judge, pictures
from sdlab.toybox.agreement import agreement
from sdlab.types import BoundPrior

# ---- PFD -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["dpm++", "ddim"])
@pytest.mark.parametrize("knobs", [{"inversion_eta": 0.3}, {"inversion_eta": 0.0, "inversion_cfg": 1.0}])
def test_pfd_with_one_step_down_is_sdi(prior, x, solver, knobs):  # noqa: F811
    ours = PFD(reverse_steps=1, solver=solver, **knobs).gradient(x, bound(prior), None)
    theirs = SDI(**{"inversion_cfg": -6.5, **knobs}).gradient(x, bound(prior), None)
    torch.testing.assert_close(ours.residual, theirs.residual, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.preds["inversion"], theirs.preds["inversion"], **EXACT)
    assert torch.equal(ours.preds["pos"], theirs.preds["pos"])


@pytest.fixture
def smooth():
    """A prior whose flow leads to one place and is no harder near t = 0 than elsewhere."""
    return MixturePrior(height=4, width=4, precision="fp64", std=0.5, components=1).load(torch.device("cpu"))


def flow_down(prior, model, z_t, t, last, s):  # noqa: F811
    """Return x0-hat at the level `last` of the guided flow that begins with z_t at t: d(z / alpha) = eps
    d(sigma / alpha), in one Euler step for every timestep."""
    for here in range(t, last - 1, -1):
        (alpha, sigma), (alpha_next, sigma_next) = (prior.marginal(torch.tensor([k])) for k in (here, here - 1))
        eps_c, eps_u = model.eps(z_t, torch.full((len(z_t),), here), "pos", "uncond")
        eps = eps_u + s * (eps_c - eps_u)
        x0 = (z_t - sigma * eps) / alpha
        z_t = alpha_next * (z_t / alpha + eps * (sigma_next / alpha_next - sigma / alpha))
    return x0


def test_pfd_follows_the_prompts_flow_dpm_more_closely_than_ddim(smooth):
    x, model, errors = noised(smooth, 600, 600, 600, 600), bound(smooth), {}  # noqa: F811
    for steps in (5, 10, 20):
        for solver in ("ddim", "dpm++"):
            g = PFD(cfg=2.0, reverse_steps=steps, solver=solver, inversion_cfg=1.0).gradient(x, model, None)
            end = x.z0 - g.residual
            exact = flow_down(smooth, model, g.asked["pos"].z_t, 600, 600 // steps, 2.0)
            errors[solver, steps] = float((end - exact).square().mean().sqrt())
            torch.testing.assert_close((g.asked["flow"].z_t - x.sigma * g.preds["flow"]) / x.alpha, end, **EXACT)
    for steps in (5, 10, 20):
        assert errors["dpm++", steps] < 0.5 * errors["ddim", steps] < 0.02


def test_pfd_up_and_down_the_same_flow_leaves_the_image(smooth):
    x, same = noised(smooth, 100, 300, 500, 700), {"cfg": 1.0, "inversion_cfg": 1.0, "inversion_steps": 50}  # noqa: F811
    sdi, pfd = (PFD(reverse_steps=n, **same).gradient(x, bound(smooth), None).residual for n in (1, 50))
    sizes = [residual.square().mean().sqrt() for residual in (pfd, sdi)]
    assert sizes[0] < 0.2 * sizes[1]


def test_pfd_is_finite_where_levels_coincide(prior):  # noqa: F811
    x = noised(prior, 0, 1, 3, 999)  # noqa: F811
    assert torch.isfinite(PFD(reverse_steps=50).gradient(x, bound(prior), None).residual).all()


# ---- PDS -------------------------------------------------------------------------------------------------


def edited(prior):  # noqa: F811
    cams = sample_cameras(CameraSettings(views=4), StepRng(0, 0), 4)
    texts = PromptSettings(text="a blue bear")
    return BoundPrior(prior, PromptBank(prior).bind(texts, PDS.roles, cams, reference=PromptSettings()), cams)


def stochastic_latent(prior, z, eps_hat, noise, noise_s, t, stride):  # noqa: F811
    """Return (x_s - mu) / spread of one image, with the released code's coefficients, from betas and their products."""
    bars = [float(prior.marginal(torch.tensor([k]))[0]) ** 2 for k in (t, t - 1, t - stride)]
    beta = 1 - bars[0] / bars[1]
    x_t = bars[0] ** 0.5 * z + (1 - bars[0]) ** 0.5 * noise
    x_s = bars[2] ** 0.5 * z + (1 - bars[2]) ** 0.5 * noise_s
    x0 = (x_t - (1 - bars[0]) ** 0.5 * eps_hat) / bars[0] ** 0.5
    c_0 = bars[2] ** 0.5 * beta / (1 - bars[0])
    c_1 = (1 - beta) ** 0.5 * (1 - bars[2]) / (1 - bars[0])
    spread = ((1 - bars[2]) / (1 - bars[0]) * beta) ** 0.5
    chi = c_0 * ((1 - bars[0]) / bars[0]) ** 0.5 / spread
    return (x_s - c_0 * x0 - c_1 * x_t) / spread, chi


@pytest.mark.parametrize("stride", [1, 2, 20])
def test_pds_is_the_difference_of_the_stochastic_latents(prior, x, stride):  # noqa: F811
    x, model = x._replace(ref=x.z0.flip(0)), edited(prior)
    residual = PDS(cfg=3.0, stride=stride).gradient(x, model, None).residual
    noise_s = torch.randn(x.z0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    latents = []
    for z, role in ((x.z0, "pos"), (x.ref, "ref")):
        eps_c, eps_u = model.eps(x.alpha * z + x.sigma * x.noise, x.t, role, "uncond")
        eps = eps_u + 3.0 * (eps_c - eps_u)
        rows = [(z[i], eps[i], x.noise[i], noise_s[i], int(x.t[i]), stride) for i in range(4)]
        latents.append([stochastic_latent(prior, *row) for row in rows])
    for i, ((own, chi), (of_ref, _)) in enumerate(zip(*latents, strict=True)):
        torch.testing.assert_close(residual[i], (own - of_ref) / chi, rtol=1e-7, atol=1e-7)


def test_pds_without_a_stride_is_dds_and_pulls_harder_with_a_larger_one(prior, x):  # noqa: F811
    x, model = x._replace(ref=x.z0.flip(0)), edited(prior)
    dds = DDS(cfg=3.0).gradient(x, model, None).residual
    torch.testing.assert_close(PDS(cfg=3.0, stride=1).gradient(x, model, None).residual, dds, rtol=1e-8, atol=1e-8)
    pulls = [PDS(cfg=3.0, stride=n).gradient(x, model, None).residual - dds for n in (2, 4, 8)]
    away = x.z0 - x.ref
    for pull in pulls:
        ratio = pull / away
        assert (ratio > 0).all(), "back to the reference"
        assert ratio.flatten(1).std(1).max() < 1e-6 * ratio.max(), "by the same share everywhere"
    sizes = [float(pull.square().mean()) for pull in pulls]
    assert sizes == sorted(sizes)


def test_pds_with_equal_prompts_at_its_reference_is_0(prior, x):  # noqa: F811
    assert torch.equal(PDS().gradient(x._replace(ref=x.z0), bound(prior), None).residual, torch.zeros_like(x.z0))


# ---- RewardSDS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", reward.INNER)
def test_with_one_noise_it_is_its_inner_loss_bit_for_bit(prior, x, inner):  # noqa: F811
    x = x._replace(ref=x.z0.flip(0))
    one = Settings().patch_all([("active", "reward"), ("losses.reward.inner", inner), ("losses.reward.noises", 1)]).loss
    plain = Settings().losses[inner]
    found = []
    for loss in (one, plain):
        aux = loss.init_aux(prior, StepRng(0, -1))
        residuals = []
        for step in range(2):
            model = bound(prior, 0.3, step)
            g = loss.gradient(x, model, aux)
            loss.fit(x, model, aux, g)
            residuals.append(g.residual)
        found.append((residuals, model.nfe, loss.evaluations(), loss.calls(), loss.aux_name(), loss.aux_key()))
    (ours, *told), (theirs, *expected) = found
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert told == expected


class Watched(BoundPrior):
    """Remembers the noisy images that it was asked about."""

    def eps(self, z_t, t, *roles):
        vars(self).setdefault("seen", []).append(z_t)
        return super().eps(z_t, t, *roles)


@pytest.mark.parametrize("weighting", ["min-max", "best", "softmax"])
def test_the_residuals_of_k_noises_are_added_by_their_rewards(prior, x, weighting):  # noqa: F811
    plain = bound(prior)
    model = Watched(prior, plain.conds, plain.cams, StepRng(0, 0))
    s, count = 3.0, 5
    loss = RewardSDS(noises=count, weighting=weighting, temperature=2.0).among({"sds": SDS(cfg=s)})
    g = loss.gradient(x, model, None)
    assert model.nfe == 2 * count == sum(loss.calls())
    noises = torch.stack([(z - x.alpha * x.z0) / x.sigma for z in model.seen])
    assert any(torch.allclose(noise, x.noise) for noise in noises), "the step's own is one of them"
    assert torch.pdist(noises.flatten(1)).min() > 1, "each is another"
    expected = torch.zeros_like(x.z0)
    for b in range(len(x.z0)):
        rows = []
        for noise in noises[:, b : b + 1]:
            one = {role: type(cond)(cond.hidden[b : b + 1]) for role, cond in plain.conds.items()}
            z_t = x.alpha[b : b + 1] * x.z0[b : b + 1] + x.sigma[b : b + 1] * noise
            eps_c, eps_u = BoundPrior(prior, one).eps(z_t, x.t[b : b + 1], "pos", "uncond")
            score = ((eps_u - noise) ** 2).sum() / 2 - ((eps_c - noise) ** 2).sum() / 2
            rows.append((float(score), (eps_u + s * (eps_c - eps_u) - noise)[0]))
        rows.sort(key=lambda row: -row[0])
        ordered = [residual for _, residual in rows]
        if weighting == "best":
            expected[b] = ordered[0]
        elif weighting == "min-max":
            expected[b] = 0.9 * (ordered[0] + ordered[1]) / 2 - 0.1 * (ordered[-1] + ordered[-2]) / 2
        else:
            shares = torch.tensor([score / 2.0 for score, _ in rows], dtype=torch.float64).softmax(0)
            expected[b] = sum(share * residual for share, residual in zip(shares, ordered, strict=True))
    torch.testing.assert_close(g.residual, expected, rtol=1e-8, atol=1e-8)


def test_a_loss_that_finds_its_own_noise_tries_other_inversions(prior, x):  # noqa: F811
    def residual(**knobs):
        inner = SDI(inversion_steps=3, **knobs)
        around = RewardSDS(noises=3, weighting="best", inner="sdi").among({"sdi": inner})
        return around.gradient(x, bound(prior), None).residual, inner.gradient(x, bound(prior), None).residual

    assert torch.equal(*residual(inversion_eta=0.0))
    assert not torch.equal(*residual(inversion_eta=0.5))


def test_the_inner_loss_has_the_knobs_that_it_has_in_the_settings():
    s = Settings().patch_all([("active", "reward"), ("losses.reward.inner", "vsd"), ("losses.vsd.rank", 8)])
    assert s.loss.around is s.losses["vsd"]
    assert (s.loss.rank, s.loss.warm_up_steps(), s.loss.aux_name()) == (8, s.losses["vsd"].warm_up, "score")
    assert s.loss.evaluations() == (4 * 3, 1)
    copied = pickle.loads(pickle.dumps(s.loss))
    assert copied == s.loss
    assert copied.around == s.loss.around
    with pytest.raises(AttributeError):
        _ = s.loss.nonsense


def test_a_run_goes_through_the_new_losses_and_reward_vsd_shares_the_psi_of_vsd(quick):
    short = [("losses.vsd.warm_up", 2), ("losses.vsd.network", "copy"), ("losses.reward.noises", 2), ("steps", 100)]
    session = Session(quick.patch_all([*short, ("active", "vsd")]))
    session.prepare()
    session.run(until=2)
    psi = session.state.aux["score"]
    session.do(Patch((("active", "reward"), ("losses.reward.inner", "vsd"), ("losses.reward.reward", "judge"))))
    session.run(until=4)
    assert session.state.aux["score"] is psi
    assert psi.fitted == 2 + 4
    toggled = session.state.toggled
    for changes in (
        [("losses.reward.inner", "sds")],
        [("active", "pds"), ("prompt.text", "a blue car")],
        [("active", "dds")],
        [("active", "pfd"), ("schedule.noise", "object")],
    ):
        session.do(Patch(tuple(changes)))
        session.run(until=session.state.step + 1)
        assert session.state.toggled > toggled, "each is another regime"
        toggled = session.state.toggled
    assert session.state.skipped == 0


@pytest.mark.slow
def test_the_judge_prefers_what_the_prompt_says():
    shots = [judge.shot_of(i, judge.own_shot(0).facts._replace(**facts)) for i, facts in enumerate(FACTS)]
    rgb = judge.render(shots).float() / 255
    scores = agreement(["a red bear, front view"] * len(FACTS), rgb)
    assert scores.argmax() == 0
    assert scores[0] > -1
    with pytest.raises(ValueError, match="knows no object in 'a corgi'; it knows bear, cat"):
        agreement(["a corgi"], rgb[:1])


BARE = {"material": "", "pattern": "", "second": "", "second_colour": "", "style": "", "corruptions": ()}
FACTS = [
    {"object": name, "colour": colour, "view": view, **BARE}
    for name, colour, view in (
        ("bear", "red", "front view"),
        ("bear", "red", "back view"),
        ("bear", "blue", "front view"),
        ("car", "red", "front view"),
    )
]


def test_a_reward_that_cannot_tell_says_why(prior, x, monkeypatch, tmp_path):  # noqa: F811
    plain = bound(prior)

    def asked(kind, texts):
        model = BoundPrior(prior, plain.conds, plain.cams, texts=texts)
        return RewardSDS(reward=kind).gradient(x, model, None)

    with pytest.raises(ValueError, match=r"reward\.reward = 'judge': the judge knows no object in 'a corgi'"):
        asked("judge", ["a corgi"] * 4)
    monkeypatch.delenv(reward.IMAGEREWARD, raising=False)
    with pytest.raises(ValueError, match="SDLAB_IMAGEREWARD = '': no folder with"):
        asked("imagereward", ["a corgi"] * 4)
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).touch()
    monkeypatch.setenv(reward.IMAGEREWARD, str(tmp_path))
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(ValueError, match="the package image-reward cannot be imported"):
        asked("imagereward", ["a corgi"] * 4)


def test_image_reward_scores_each_image_for_its_own_prompt(prior, x, monkeypatch, tmp_path):  # noqa: F811
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).touch()
    scored = []

    def score(text, image):
        scored.append((text, image.size))
        return float(len(scored))

    stand_in = types.SimpleNamespace(load=lambda path, med_config: types.SimpleNamespace(score=score))
    monkeypatch.setenv(reward.IMAGEREWARD, str(tmp_path))
    monkeypatch.setitem(sys.modules, "ImageReward", stand_in)
    reward._image_reward_model.cache_clear()
    plain = bound(prior)
    texts = [f"a corgi, {word}" for word in pictures.COLOURS][:4]
    model = BoundPrior(prior, plain.conds, plain.cams, texts=texts)
    g = RewardSDS(reward="imagereward", noises=2, weighting="best").gradient(x, model, None)
    assert [text for text, _ in scored] == texts * 2
    assert float(g.stats["reward"]) == pytest.approx(4.5)
    reward._image_reward_model.cache_clear()
