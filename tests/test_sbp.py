"""SBP under the mixture prior: its two stages, its source prompt, and where it vanishes."""

import pytest
import torch

from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.guidance import cfg
from sdlab.losses.sbp import SBP
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import DESCRIPTORS, QUALITY, PromptBank, PromptSettings, wording
from sdlab.rng import StepRng
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
    assert wording(PromptSettings(source="a {blurry} thing"), "source", "side view") == "a {blurry} thing"
