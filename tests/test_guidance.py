"""CFG, its rescaling, and Perp-Neg: published weights, and one picture never minding another."""

import pytest
import torch

from sdlab.cameras import look_at
from sdlab.guidance import cfg, guide, perp_neg, perp_neg_weights, rescaled
from sdlab.live.building import batches_of
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.losses.sds import SDS
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import PromptBank, PromptSettings, wording
from sdlab.rng import StepRng
from sdlab.settings import preset
from sdlab.types import PERP_ROLES, BoundPrior

TEXT = PromptSettings()
AZIMUTHS = (10.0, -70.0, 130.0, 175.0)


@pytest.fixture
def prior():
    return MixturePrior(height=4, width=4, precision="fp64").load(torch.device("cpu"))


def bound(prior, azimuths, elevation=10.0):
    n = len(azimuths)
    cams = look_at(torch.tensor(azimuths), torch.full((n,), elevation), torch.full((n,), 3.0), 40.0, 4, 4)
    bank = PromptBank(prior)
    conds, weights = bank.perp_neg(TEXT, cams)
    return BoundPrior(prior, bank.bind(TEXT, ("pos", "uncond"), cams) | conds, cams, perp_weights=weights)


def pictures(n):
    return torch.randn(n, 3, 4, 4, generator=StepRng(0, 0)("z"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("azimuth", "r", "weights"),
    [
        (0, 1.0, (0.0, -1.574)),  # threestudio's: front of front, and least of the side
        (45, 0.5, (-0.689, -0.689)),
        (89.999, 0.0, (-1.574, 0.0)),
        (90, 1.0, (0.0, -1.574)),  # from here on (side, front)
        (180, 0.0, (-0.394, -1.967)),
        (-135, 0.5, (-0.173, -1.746)),
    ],
)
def test_weights_of_perp_neg_are_the_published_ones(azimuth, r, weights):
    found_r, found = perp_neg_weights(azimuth, overhead=False)
    assert found_r == pytest.approx(r, abs=1e-3)
    assert found == pytest.approx(weights, abs=2e-3)
    assert perp_neg_weights(azimuth, overhead=True) == (1.0, (0.0, 0.0))


def test_what_is_avoided_is_perpendicular_to_what_is_wanted():
    own, other = pictures(4), pictures(4).flip(0)
    change = perp_neg(own, [other], torch.full((4, 1), -1.5, dtype=torch.float64)) - own
    assert (change * own).sum((1, 2, 3)).abs().max() < 1e-12
    assert (change * other).sum((1, 2, 3)).max() < 0
    torch.testing.assert_close(perp_neg(own, [own], -torch.ones(4, 1)), own, rtol=0, atol=1e-12)


def test_perp_neg_of_four_views_is_four_times_that_of_one(prior):
    """The released code of others pairs negatives with the wrong views from two views on."""
    z, t = pictures(4), torch.tensor([100, 300, 600, 900])
    together, _ = guide(bound(prior, AZIMUTHS), z, t, 7.5)
    for i, azimuth in enumerate(AZIMUTHS):
        alone, _ = guide(bound(prior, (azimuth,)), z[i : i + 1], t[i : i + 1], 7.5)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_perp_neg_is_its_formula(prior):
    model, z, t = bound(prior, AZIMUTHS), pictures(4), torch.tensor([100, 300, 600, 900])
    eps_u, pos, one, two = model.eps(z, t, "uncond", *PERP_ROLES)
    expected = eps_u + 7.5 * perp_neg(pos - eps_u, [one - eps_u, two - eps_u], model.perp_weights)
    hat, preds = guide(model, z, t, 7.5)
    torch.testing.assert_close(hat, expected, rtol=0, atol=0)
    assert torch.equal(preds["pos"], pos)


def test_words_of_perp_neg_go_from_view_to_view(prior):
    front, side = (prior.embed(wording(TEXT, "pos", f"{w} view")).hidden for w in ("front", "side"))
    back, above = (prior.embed(wording(TEXT, "pos", f"{w} view")).hidden for w in ("back", "overhead"))
    front, side, back, above = (torch.nan_to_num(h, neginf=0.0) for h in (front, side, back, above))
    for azimuth, expected in ((0.0, front), (90.0, side), (180.0, back), (45.0, (front + side) / 2)):
        found = bound(prior, (azimuth,)).conds["perp pos"].hidden
        torch.testing.assert_close(torch.nan_to_num(found, neginf=0.0), expected, rtol=1e-9, atol=1e-9)
    model = bound(prior, (30.0,), elevation=80.0)
    assert torch.equal(model.conds["perp pos"].hidden, above)
    assert not model.perp_weights.any()


def test_from_overhead_perp_neg_is_plain_guidance(prior):
    model, z, t = bound(prior, (30.0, 200.0), elevation=80.0), pictures(2), torch.tensor([200, 700])
    eps_c, eps_u = model.eps(z, t, "pos", "uncond")
    torch.testing.assert_close(guide(model, z, t, 7.5)[0], cfg(eps_u, eps_c, 7.5), rtol=1e-9, atol=1e-9)


def test_rescaling_gives_back_the_contrast(prior):
    hat, eps_c = 3 * pictures(4), pictures(4).flip(0)
    full = rescaled(hat, eps_c, 1.0)
    torch.testing.assert_close(full.flatten(1).std(1), eps_c.flatten(1).std(1))
    torch.testing.assert_close(rescaled(hat, eps_c, 0.7), 0.7 * full + 0.3 * hat)
    model, t = bound(prior, AZIMUTHS), torch.tensor([100, 300, 600, 900])
    model.perp_weights, model.rescale = None, 1.0
    hat, preds = guide(model, eps_c, t, 50.0)
    torch.testing.assert_close(hat.flatten(1).std(1), preds["pos"].flatten(1).std(1))


def test_both_are_live_knobs_of_a_run():
    s = preset("mixture").patch_all([("scene.n_init", 50), ("steps", 100)])
    on = s.patch_all([("guidance.perp_neg", True), ("guidance.rescale", 0.7)])
    assert batches_of(on) - batches_of(s) == {4 * s.camera.views}
    session = Session(s)
    session.run(until=3)
    assert session.report.nfe == 2
    session.do(Patch.one("guidance.perp_neg", True))
    session.run(until=6)
    assert session.report.nfe == 4
    session.do(Patch.one("prompt.view_dependent", False))
    session.run(until=8)
    assert session.report.nfe == 2, "without view words there is nothing to keep apart"
    assert session.state.skipped == 0
    assert isinstance(s.loss, SDS)
