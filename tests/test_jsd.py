"""JSD and DDIM inversion against closed forms of one Gaussian, whose flow is known exactly."""

import pytest
import torch

from sdlab.inversion import invert
from sdlab.losses.jsd import JSD
from sdlab.priors.mixture import Mixture, MixturePrior, MixtureScores
from sdlab.rng import StepRng
from sdlab.types import BoundPrior, Noised, cat_conds

SHAPE = (3, 4, 4)


def gaussian(mean, std):
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, torch.full((1, *SHAPE), mean, dtype=torch.float64), std * one)


def model_of(bear, null, n=2):
    config = MixturePrior(channels=3, height=4, width=4, components=1, precision="fp64")
    prior = MixtureScores(config, torch.device("cpu"), {"bear": bear, "": null})
    conds = {r: cat_conds([prior.embed(w)] * n) for r, w in (("pos", "bear"), ("uncond", ""))}
    return BoundPrior(prior, conds, rng=StepRng(0, 0))


def noised(model, z0, noise, t):
    alpha, sigma = model.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


@pytest.fixture
def pictures():
    return torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def on_the_flow(model, z0, t, mean, std):
    """The probability flow of a Gaussian keeps (z_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) as it is."""
    (a0, s0), (a, s) = model.marginal(torch.zeros_like(t)), model.marginal(t)
    scale = ((a * std) ** 2 + s**2).sqrt() / ((a0 * std) ** 2 + s0**2).sqrt()
    return a * mean + scale * (z0 - a0 * mean)


@pytest.mark.slow
def test_inversion_follows_the_flow_and_better_with_more_steps(pictures):
    model = model_of(gaussian(0.4, 0.5), gaussian(0.0, 1.0))
    t = torch.tensor([300, 900])
    exact = on_the_flow(model, pictures[0], t, 0.4, 0.5)
    errors = [float((invert(model, pictures[0], t, n) - exact).abs().max()) for n in (9, 90, 900)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # of first order: tenfold steps, a tenth of the error
    assert errors[2] < 0.01 * float(exact.abs().max())
    assert model.nfe == 999
    null = invert(model, pictures[0], t, 900, scale=0.0)
    assert (null - on_the_flow(model, pictures[0], t, 0.0, 1.0)).abs().max() < 0.01


def test_inversion_with_eta_keeps_the_variance_of_each_level():
    n = 400
    model = model_of(gaussian(0.0, 1.0), gaussian(0.0, 1.0), n)
    z0 = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.full((n,), 800)
    calm, stirred = (invert(model, z0, t, 20, eta=eta) for eta in (0.0, 1.0))
    assert float(stirred.std()) == pytest.approx(1.0, rel=0.02)  # the flow of a standard normal leaves it as it is
    assert float(calm.std()) == pytest.approx(1.0, rel=0.06)
    correlation = float((stirred * z0).mean() / (stirred.std() * z0.std()))
    assert correlation < 0.8 * float((calm * z0).mean() / (calm.std() * z0.std()))
    assert torch.equal(stirred, invert(model, z0, t, 20, eta=1.0))  # the same step draws the same noise


def test_paper_form_is_equation_12_on_a_gaussian(pictures):
    """Of a Gaussian every prediction is linear: eps = sigma (z_t - alpha mu) / v."""
    mean, std, s = 0.4, 0.5, 13.5
    model = model_of(gaussian(mean, std), gaussian(0.0, 1.0))
    x = noised(model, *pictures, torch.tensor([300, 900]))
    g = JSD(cfg=s).gradient(x, model, None)
    z_hat = invert(model, x.z0, x.t, 10)
    v = (x.alpha * std) ** 2 + x.sigma**2

    def eps_c(z):
        return x.sigma * (z - x.alpha * mean) / v

    z_bar = z_hat - x.sigma * eps_c(z_hat) + x.sigma * x.noise
    slope = (1 - s) * x.sigma + s * x.sigma / v  # of eps^ in z; the mixture "" has v = 1
    torch.testing.assert_close(g.residual, x.alpha / x.sigma * slope * (z_hat - z_bar), rtol=1e-9, atol=1e-9)
    assert model.nfe - 10 == 14


def test_equal_samples_leave_nothing_to_do(pictures):
    """When the fresh noise happens to be the one the prior finds in z^_t, the minority sample is z^_t itself."""
    model = model_of(gaussian(0.4, 0.5), gaussian(0.0, 1.0))
    x = noised(model, *pictures, torch.tensor([300, 900]))
    z_hat = invert(model, x.z0, x.t, 10)
    own = model.eps(z_hat, x.t, "pos")[0]
    assert JSD().gradient(x._replace(noise=own), model, None).residual.abs().max() < 1e-10
    assert JSD().gradient(x, model, None).residual.abs().max() > 0.1


def test_code_form_descends_both_distances(pictures):
    """Its residual is the sum of z - x0-hat(z^_t) and k (z - x0-hat(z-_t))."""
    model = model_of(gaussian(0.4, 0.5), gaussian(0.0, 1.0))
    x = noised(model, *pictures, torch.tensor([300, 900]))
    loss = JSD(form="code", k=0.7, cfg=3.0, inversion_cfg=-3.0, inversion_eta=0.3)
    g = loss.gradient(x, model, None)
    assert model.nfe == sum(loss.calls()) == 24
    z_hat = invert(model, x.z0, x.t, 10, -3.0, 0.3)

    def x0_hat(z):
        c, u = model.eps(z, x.t, "pos", "uncond")
        return (z - x.sigma * (u + 3.0 * (c - u))) / x.alpha

    x0_bar = x0_hat(z_hat)
    other = x0_hat(x.alpha * x0_bar + x.sigma * x.noise)
    torch.testing.assert_close(g.residual, (x.z0 - x0_bar) + 0.7 * (x.z0 - other), rtol=1e-9, atol=1e-9)


def test_without_k_the_code_form_is_score_distillation_by_inversion(pictures):
    model = model_of(gaussian(0.4, 0.5), gaussian(0.0, 1.0))
    x = noised(model, *pictures, torch.tensor([300, 900]))
    g = JSD(form="code", k=0.0).gradient(x, model, None)
    z_hat = invert(model, x.z0, x.t, 10)
    kappa = (z_hat - x.alpha * x.z0) / x.sigma
    c, u = model.eps(z_hat, x.t, "pos", "uncond")
    torch.testing.assert_close(g.residual, x.sigma / x.alpha * (u + 13.5 * (c - u) - kappa), rtol=1e-9, atol=1e-9)
