"""NFSD, CSD, ISM, SDI and ASD: their identities under the mixture prior, in float64."""

import pytest
import torch

from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.inversion import ddim, invert
from sdlab.losses.asd import ASD
from sdlab.losses.csd import CSD
from sdlab.losses.dds import DDS
from sdlab.losses.ism import ISM
from sdlab.losses.jsd import JSD
from sdlab.losses.nfsd import NFSD
from sdlab.losses.sdi import SDI
from sdlab.losses.sds import SDS
from sdlab.losses.vsd import VSD
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import ROLES, PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.types import BoundPrior, Noised

EXACT = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture
def prior():
    return MixturePrior(height=4, width=4, precision="fp64").load(torch.device("cpu"))


def bound(prior, progress=0.0, step=0, **prompt):
    cams = sample_cameras(CameraSettings(views=4), StepRng(0, 0), 4)
    conds = PromptBank(prior).bind(PromptSettings(**prompt), ROLES, cams)
    return BoundPrior(prior, conds, cams, StepRng(0, step), progress)


def noised(prior, *t):
    rng = StepRng(0, 0)
    z0 = 0.5 * torch.randn(4, *prior.shape, generator=rng("z0"), dtype=torch.float64)
    noise, t = rng.randn("noise", z0), torch.tensor(t)
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


@pytest.fixture
def x(prior):
    return noised(prior, 60, 199, 200, 900)


def test_csd_with_the_coefficients_of_sds_is_sds(prior, x):
    s = 30.0
    csd = CSD(pos=s, pos_end=s, neg=0, neg_end=0, null=1 - s, null_end=1 - s, noise=-1, noise_end=-1)
    ours = csd.gradient(x, bound(prior, 0.3), None).residual
    torch.testing.assert_close(ours, SDS(cfg=s).gradient(x, bound(prior), None).residual, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("progress", "negative", "null"), [(0.0, 0.0, -1.0), (0.25, -0.5, -0.5), (0.5, -1.0, 0.0)])
def test_csd_ramps_from_nothing_to_the_negative_prompt(prior, x, progress, negative, null):
    model = bound(prior, progress)
    eps_c, eps_u, eps_n = model.eps(x.z_t, x.t, "pos", "uncond", "neg")
    expected = eps_c + negative * eps_n + null * eps_u
    torch.testing.assert_close(CSD().gradient(x, model, None).residual, expected, **EXACT)
    later = bound(prior, 1.0)
    end = CSD().gradient(x, later, None).residual
    torch.testing.assert_close(end, CSD(ramp=0.0).gradient(x, model, None).residual, **EXACT)


def test_nfsd_reads_the_negative_prompt_from_t_200_on(prior, x):
    a, b = (NFSD().gradient(x, bound(prior, negative=text), None).residual for text in ("ugly", "dark"))
    assert torch.equal(a[:2], b[:2])
    assert (a[2:] != b[2:]).flatten(1).any(1).all()
    eps_c, eps_u, eps_n = bound(prior, negative="ugly").eps(x.z_t, x.t, "pos", "uncond", "neg")
    torch.testing.assert_close(a[:2], (eps_u + 7.5 * (eps_c - eps_u))[:2], **EXACT)
    torch.testing.assert_close(a[2:], (eps_u - eps_n + 7.5 * (eps_c - eps_u))[2:], **EXACT)
    other_noise = x._replace(noise=torch.zeros_like(x.noise))
    assert torch.equal(NFSD().gradient(other_noise, bound(prior, negative="ugly"), None).residual, a), "noise-free"


def test_ism_without_interval_guidance_and_text_leaves_nothing_to_do(prior, x):
    silent = {"text": "", "view_dependent": False}
    still = ISM(interval=0, interval_end=0, cfg=1.0)
    assert still.gradient(x, bound(prior, **silent), None).residual.abs().max() < 1e-11
    assert ISM(cfg=1.0).gradient(x, bound(prior, **silent), None).residual.abs().max() > 1e-3
    assert still.gradient(x, bound(prior), None).residual.abs().max() > 1e-3


def test_ism_compares_two_levels_of_one_way(prior, x):
    model = bound(prior, 0.15, negative="ugly")  # half of the first part: an interval of 90
    s = (x.t - 90).clamp_min(0)
    assert s.tolist() == [0, 109, 110, 810]
    z_s = invert(model, x.z0, s, 3, roles=("uncond",))
    (eps_s,) = model.eps(z_s, s, "uncond")
    z_t = ddim(model, z_s, s, x.t, eps_s)
    eps_c, eps_n = model.eps(z_t, x.t, "pos", "neg")
    expected = eps_n + 7.5 * (eps_c - eps_n) - eps_s
    torch.testing.assert_close(ISM().gradient(x, model, None).residual, expected, **EXACT)
    back = ddim(model, z_t, x.t, s, eps_s)
    torch.testing.assert_close(back, z_s, rtol=1e-9, atol=1e-9)


def test_sdi_is_the_first_half_of_jsd_as_released(prior, x):
    knobs = {"cfg": 7.5, "inversion_cfg": -7.5, "inversion_eta": 0.3}
    ours = SDI(**knobs).gradient(x, bound(prior), None).residual
    theirs = JSD(form="code", k=0.0, **knobs).gradient(x, bound(prior), None).residual
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_asd_without_gamma_is_vsd(prior, x):
    residuals = {}
    for loss in (VSD(), ASD(gamma=0.0), ASD()):
        aux = loss.init_aux(prior, StepRng(0, -1))
        for step in range(4):
            model = bound(prior, step=step)
            g = loss.gradient(x, model, aux)
            loss.fit(x, model, aux, g)
        residuals[loss] = g.residual
    assert torch.equal(residuals[VSD()], residuals[ASD(gamma=0.0)])
    assert not torch.equal(residuals[VSD()], residuals[ASD()])


def test_asd_with_exact_scores_has_the_psi_that_gamma_asks_for(prior, x):
    gamma = -0.6
    vsd, asd = (
        loss.gradient(x, bound(prior), loss.init_aux(prior, StepRng(0, -1)))
        for loss in (VSD(network="exact"), ASD(network="exact", gamma=gamma))
    )
    expected = (vsd.preds["psi"] + gamma * vsd.preds["pos"]) / (1 + gamma)
    torch.testing.assert_close(asd.preds["psi"], expected, **EXACT)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [-0.75, 0.5])
def test_the_psi_of_asd_lies_beyond_the_noise(prior, x, kind, gamma):
    """The minimum over eps_psi, closed form: (noise + gamma eps_c) / (1 + gamma)."""
    from sdlab.priors.prediction import native_target
    from sdlab.priors.trainable import Trainable

    model = bound(prior)
    (eps_c,) = model.eps(x.z_t, x.t, "pos")
    best = (x.noise + gamma * eps_c) / (1 + gamma)
    native = native_target(kind, (x.z_t - x.sigma * best) / x.alpha, best, x.alpha, x.sigma).requires_grad_()
    psi = Trainable(torch.nn.Identity(), kind, prior.marginal)
    psi.errors(native, x.z0, x.noise, x.t, eps_c, gamma).sum().backward()
    assert native.grad.abs().max() < 1e-9


def test_dds_leaves_a_reference_alone_and_subtracts_it_else(prior, x):
    same = x._replace(ref=x.z0)
    assert DDS().gradient(same, bound(prior), None).residual.abs().max() < 1e-12
    edited = PromptSettings(text="a blue bear")
    cams = sample_cameras(CameraSettings(views=4), StepRng(0, 0), 4)
    conds = PromptBank(prior).bind(edited, DDS.roles, cams, reference=PromptSettings())
    model = BoundPrior(prior, conds, cams)
    g = DDS(cfg=3.0).gradient(same, model, None)
    ours = SDS(cfg=3.0).gradient(x, bound(prior, text="a blue bear"), None).residual
    theirs = SDS(cfg=3.0).gradient(x, bound(prior), None).residual
    torch.testing.assert_close(g.residual, ours - theirs, **EXACT)
