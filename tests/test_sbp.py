"""SBP under the mixture prior: its two stages, its source prompt, and where it vanishes."""

import math

import pytest
import torch

from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.guidance import cfg
from sdlab.inversion import decode, flow_roles, invert
from sdlab.knobs import knobs_of
from sdlab.live.session import Session
from sdlab.losses.sbp import SBP
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import DESCRIPTORS, QUALITY, PromptBank, PromptSettings, wording
from sdlab.rng import StepRng
from sdlab.scenes.points import PointScene
from sdlab.settings import preset
from sdlab.types import BoundPrior, Noised


@pytest.fixture
def prior():
    return MixturePrior(height=4, width=4, precision="fp64").load(torch.device("cpu"))


def bound(prior, prompt=None, progress=1.0):
    cams = sample_cameras(CameraSettings(views=2), StepRng(0, 0), 4)
    prompt = prompt or PromptSettings()
    return BoundPrior(prior, PromptBank(prior).bind(prompt, SBP.roles, cams), cams, progress=progress)


@pytest.fixture
def x(prior):
    g = torch.Generator().manual_seed(0)
    z0, noise = torch.randn(2, 2, 3, 4, 4, generator=g, dtype=torch.float64)
    t = torch.tensor([150, 700])
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def test_bridge_is_the_difference_of_two_exact_scores(prior, x):
    model = bound(prior)
    target, source = model.eps(x.z_t, x.t, "target", "source")
    g = SBP(w=25.0).gradient(x, model, None)
    torch.testing.assert_close(g.residual, 25 * (target - source), rtol=1e-12, atol=1e-12)
    assert g.residual.abs().max() > 1e-3
    other_noise = x._replace(noise=torch.zeros_like(x.noise))
    assert torch.equal(SBP(w=25.0).gradient(other_noise, bound(prior), None).residual, g.residual)  # no noise term


def test_same_source_and_target_leave_nothing_to_do(prior, x):
    prompt = PromptSettings(target="{prompt}, sharp", source="{prompt}, sharp")
    assert SBP(w=25.0).gradient(x, bound(prior, prompt), None).residual.abs().max() == 0


def test_stages(prior, x):
    eps_c, eps_u = bound(prior).eps(x.z_t, x.t, "pos", "uncond")
    sds = cfg(eps_u, eps_c, 40.0) - x.noise
    bridge = SBP().gradient(x, bound(prior, progress=0.0), None).residual
    for stage, progress, expected in (
        ("two-stage", 0.59, sds),
        ("two-stage", 0.6, bridge),
        ("two-stage", 0.61, bridge),
        ("sds", 0.9, sds),
        ("bridge", 0.1, bridge),
    ):
        loss = SBP(stage=stage, switch=0.6, sds_cfg=40.0)
        residual = loss.gradient(x, bound(prior, progress=progress), None).residual
        torch.testing.assert_close(residual, expected, rtol=1e-12, atol=1e-12)


def test_restoring_form_is_sds_with_the_source_as_null(prior, x):
    """And so it does not vanish where both prompts say the same, unlike the paper's form."""
    target, source = bound(prior).eps(x.z_t, x.t, "target", "source")
    g = SBP(form="restoring", w=2.0).gradient(x, bound(prior), None)
    torch.testing.assert_close(g.residual, 2 * target - source - x.noise, rtol=1e-12, atol=1e-12)
    same = PromptSettings(target="{prompt}, sharp", source="{prompt}, sharp")
    assert SBP(form="restoring").gradient(x, bound(prior, same), None).residual.abs().max() > 1e-3


def test_wording_of_source_and_target():
    s = PromptSettings(text="a red bear")
    assert wording(s, "source", "front view") == f"a red bear, front view, {DESCRIPTORS}"
    assert wording(s, "target", "front view") == f"a red bear, front view, {QUALITY}"
    assert len(DESCRIPTORS.split(", ")) == 10
    s = PromptSettings(text="a red bear", source="{prompt}, painting", target="{prompt}", view_dependent=False)
    assert wording(s, "source", "front view") == "a red bear, painting"
    assert wording(s, "target", "front view") == "a red bear"
    assert wording(PromptSettings(source="a {blurry thing"), "source", "side view") == "a {blurry thing"
    with pytest.raises(ValueError, match=r"prompt\.source = .*unknown placeholder .\{promt\}.; only \{prompt\}"):
        PromptSettings(source="{promt}, blurry")


# ---- the full bridge -------------------------------------------------------------------------------------------------

SAME = PromptSettings(target="{prompt}, sharp", source="{prompt}, sharp", view_dependent=False)
WEST_TO_EAST = PromptSettings(target="east", source="west", view_dependent=False)


@pytest.fixture
def plane():
    return MixturePrior(layout="eight", schedule="linear", precision="fp64").load(torch.device("cpu"))


def at(prior, points, t):
    """Points [B, 2] at the timesteps `t`, with a noise that the full bridge must not look at."""
    z0 = torch.tensor(points, dtype=torch.float64).view(-1, 2, 1, 1)
    alpha, sigma = prior.marginal(torch.tensor(t))
    return Noised(z0, torch.full_like(z0, math.nan), torch.tensor(t), alpha, sigma, torch.full_like(z0, math.nan))


@pytest.mark.parametrize(
    ("knobs", "batches"),
    [
        ({"leg_steps": 4}, (1,) * 8),
        ({"leg_steps": 3, "source_cfg": 2.0, "target_cfg": 7.5}, (2,) * 6),
        ({"leg_steps": 3, "source_cfg": 0.0, "target_cfg": 7.5}, (1, 1, 1, 2, 2, 2)),
        ({"leg_steps": 2, "target_cfg": 7.5}, (1, 1, 2, 2)),
        ({"stage": "two-stage", "leg_steps": 1}, (1, 1)),
        ({"stage": "sds"}, (2,)),
    ],
)
def test_the_full_bridge_says_what_it_asks_of_the_prior(prior, x, knobs, batches):
    found = []

    class Watched(BoundPrior):
        def eps(self, z_t, t, *roles):
            found.append(roles)
            return super().eps(z_t, t, *roles)

    loss, given = SBP(form="full", **knobs), bound(prior)
    loss.gradient(x, Watched(prior, given.conds, given.cams), None)
    assert tuple(len(roles) for roles in found) == batches == loss.calls()
    if loss.stage != "sds":
        assert (found[0][0], found[-1][0]) == (("uncond" if loss.source_cfg == 0 else "source"), "target")


def test_the_full_bridge_is_its_two_ends_in_units_of_eps(prior, x):
    model, loss = bound(prior), SBP(form="full", w=25.0, leg_steps=6, source_cfg=2.0, target_cfg=3.0)
    z_hat = invert(model, x.z0, x.t, 6, 2.0, roles=("source", "uncond"))
    psi = decode(model, z_hat, x.t, 6, 3.0, roles=("target", "uncond"))
    g = loss.gradient(x, bound(prior), None)
    torch.testing.assert_close(g.residual, 25 * x.alpha / x.sigma * (x.z0 - psi), rtol=1e-9, atol=1e-9)
    for name, end in (("target", psi), ("source", x.z0)):
        torch.testing.assert_close((z_hat - x.sigma * g.preds[name]) / x.alpha, end, rtol=1e-9, atol=1e-9)
    assert float(g.stats["displacement"]) == pytest.approx(float((psi - x.z0).square().mean().sqrt()))
    assert "experimental" in next(k.help for k in knobs_of(loss, "sbp") if k.path.endswith("form"))


def test_one_step_of_the_full_bridge_is_equation_3_5_but_for_where_the_source_is_asked(prior, x):
    """Up to sigma at t = 0, which is 0.03."""
    model = bound(prior)
    zero = torch.zeros_like(x.t)
    (source,) = model.eps(x.z0, zero, "source")
    z_hat = invert(model, x.z0, x.t, 1, roles=("source",))
    (target,) = model.eps(z_hat, x.t, "target")
    alpha, sigma = model.marginal(zero)
    assert float(sigma.max()) < 0.03
    g = SBP(form="full", leg_steps=1).gradient(x, bound(prior), None)
    slope = alpha - x.alpha * sigma / x.sigma  # 1 without noise at t = 0
    torch.testing.assert_close(g.residual, slope * (target - source), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_with_equal_prompts_only_the_error_of_the_inversion_is_left(prior, x):
    """On pictures that the prior knows, whose flow is not too steep for the steps."""
    mixture = prior.mixture(wording(SAME, "source", "front view"))
    x = x._replace(z0=mixture.means[:2] + mixture.stds[:2].view(-1, 1, 1, 1) * x.noise)

    def error(steps):
        model = bound(prior, SAME)
        z_hat = invert(model, x.z0, x.t, steps, roles=("source",))
        return x.z0 - decode(model, z_hat, x.t, steps, roles=("target",))

    def residual(prompt, steps):
        return SBP(form="full", leg_steps=steps).gradient(x, bound(prior, prompt), None).residual

    for steps in (10, 50):
        expected = x.alpha / x.sigma * error(steps)
        torch.testing.assert_close(residual(SAME, steps), expected, rtol=1e-9, atol=1e-9)
    few, more, many = (float(error(n).square().mean().sqrt()) for n in (10, 50, 700))
    assert few > more > 3 * many
    assert many < 0.02
    other = PromptSettings(target="a bear", source="{prompt}, sharp", view_dependent=False)
    assert residual(SAME, 50).abs().max() < 0.1 * residual(other, 50).abs().max()


def test_between_two_gaussians_the_bridge_is_the_way_from_the_one_to_the_other(plane):
    """The flow of a Gaussian keeps (z_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2); up under one and down under
    another of the same std, a point is carried by the distance of the means less what of it is still to be seen
    at t."""
    x = at(plane, [[-1.0, 0.1], [-0.9, 0.0], [-1.0, -0.1]], [200, 500, 950])
    cond = PromptBank(plane).bind(WEST_TO_EAST, SBP.roles, sample_cameras(CameraSettings(views=3), StepRng(0, 0), 4))
    g = SBP(form="full", leg_steps=50).gradient(x, BoundPrior(plane, cond), None)
    moved = (-x.sigma / x.alpha * g.residual).flatten(1)
    std, zero = 0.1, torch.zeros_like(x.t)
    (a0, s0), (a, s) = (tuple(v.flatten() for v in plane.marginal(t)) for t in (zero, x.t))
    now, then = ((a0 * std) ** 2 + s0**2).sqrt(), ((a * std) ** 2 + s**2).sqrt()
    expected = 2.0 * (a0 - a * now / then)
    torch.testing.assert_close(moved[:, 0], expected, rtol=0.1, atol=0.0)
    assert expected.min() > 1.6
    assert moved[:, 1].abs().max() < 0.1


@pytest.mark.slow
def test_points_go_from_west_to_east_and_nothing_stops_them_there():
    start = [("scene.n", 20), ("scene.start_x", -1.0), ("scene.start_y", 0.0), ("steps", 120)]
    bridge = [("active", "sbp"), ("losses.sbp.form", "full"), ("prompt.source", "west"), ("prompt.target", "east")]
    session = Session(preset("playground").patch_all([*start, *bridge]))
    session.run(until=120)
    assert isinstance(session.state.scene, PointScene)
    way = session.state.scene.way.mean(1)  # [T + 1, 2]
    assert (way[:, 0].round(3)[1:] > way[:-1, 0].round(3)).all()
    assert abs(way[:, 1]).max() < 0.1
    nearest = min(range(len(way)), key=lambda k: abs(way[k, 0] - 1.0))
    assert abs(way[nearest, 0] - 1.0) < 0.05
    assert way[-1, 0] > 1.3, "the source prompt goes on saying west"


def test_the_roles_of_a_flow_are_its_text_and_with_guidance_the_empty_one():
    assert [flow_roles(1.0), flow_roles(2.0)] == [("pos",), ("pos", "uncond")]
    assert [flow_roles(1.0, "source"), flow_roles(0.5, "source")] == [("source",), ("source", "uncond")]
    assert flow_roles(0.0, "source") == ("uncond",)
