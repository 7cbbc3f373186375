"""SDS against closed forms under the mixture prior, where every score is known exactly."""

import pytest
import torch

from sdlab.guidance import cfg
from sdlab.losses.sds import SDS
from sdlab.priors.mixture import Mixture, MixturePrior, MixtureScores
from sdlab.types import BoundPrior, Noised, cat_conds

SHAPE = (3, 4, 4)


def gaussian(mean: float, std: float) -> Mixture:
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, torch.full((1, *SHAPE), mean, dtype=torch.float64), std * one)


@pytest.fixture
def prior():
    config = MixturePrior(channels=3, height=4, width=4, components=1, precision="fp64")
    return MixtureScores(config, torch.device("cpu"), {"bear": gaussian(0.7, 0.2), "": gaussian(0.0, 1.0)})


def bound(prior, n):
    return BoundPrior(prior, {r: cat_conds([prior.embed(w)] * n) for r, w in (("pos", "bear"), ("uncond", ""))})


def noised(prior, z0, noise, t):
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def closed_form(prior, z0, t, scale):
    """E[eps_hat - noise] for Gaussians: alpha sigma [ s (z0 - mu_c) / v_c + (1 - s) (z0 - mu_u) / v_u ]."""
    alpha, sigma = prior.marginal(t)
    v_c, v_u = (alpha * 0.2) ** 2 + sigma**2, alpha**2 + sigma**2
    return alpha * sigma * (scale * (z0 - 0.7) / v_c + (1 - scale) * z0 / v_u)


def test_mean_gradient_equals_its_closed_form_exactly_with_antithetic_noise(prior):
    g = torch.Generator().manual_seed(0)
    z0 = torch.randn(5, *SHAPE, generator=g, dtype=torch.float64)
    noise = torch.randn(5, *SHAPE, generator=g, dtype=torch.float64)
    t = torch.tensor([0, 20, 500, 980, 999])
    loss, model = SDS(cfg=7.5), bound(prior, 5)
    plus = loss.gradient(noised(prior, z0, noise, t), model, None).residual
    minus = loss.gradient(noised(prior, z0, -noise, t), model, None).residual
    torch.testing.assert_close((plus + minus) / 2, closed_form(prior, z0, t, 7.5), rtol=1e-10, atol=1e-10)


def test_mean_gradient_over_random_noise_converges_to_the_closed_form(prior):
    n = 4000
    g = torch.Generator().manual_seed(1)
    z0 = torch.full((n, *SHAPE), 0.3, dtype=torch.float64)
    noise = torch.randn(z0.shape, generator=g, dtype=torch.float64)
    t = torch.full((n,), 400)
    residual = SDS(cfg=3.0).gradient(noised(prior, z0, noise, t), bound(prior, n), None).residual
    mean, error = residual.mean(0), residual.std(0) / n**0.5
    expected = closed_form(prior, z0[:1], t[:1], 3.0)[0]
    assert ((mean - expected).abs() < 5 * error).all()
    assert (expected.abs() > 20 * error).all()  # the test would notice a wrong sign or factor


def test_guidance_scale_one_needs_no_null_and_zero_needs_no_prompt(prior):
    z0 = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = noised(prior, z0, torch.zeros_like(z0), torch.tensor([100, 700]))
    for scale, role in ((1.0, "pos"), (0.0, "uncond")):
        g = SDS(cfg=scale).gradient(x, bound(prior, 2), None)
        torch.testing.assert_close(g.residual, g.preds[role] - x.noise, rtol=0, atol=1e-14)


def test_form_a_at_s_plus_one_is_form_b_at_s():
    g = torch.Generator().manual_seed(3)
    uncond, pos = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    torch.testing.assert_close(cfg(uncond, pos, 8.5), pos + 7.5 * (pos - uncond))


def test_one_batched_forward_for_both_roles(prior):
    calls = []
    original = prior.eps
    prior.eps = lambda z, t, c: calls.append(len(z)) or original(z, t, c)
    model = bound(prior, 3)
    z0 = torch.zeros(3, *SHAPE, dtype=torch.float64)
    SDS().gradient(noised(prior, z0, z0, torch.tensor([1, 2, 3])), model, None)
    assert calls == [6]
    assert model.nfe == 2


def test_an_unbound_role_is_named(prior):
    model = bound(prior, 1)
    with pytest.raises(KeyError, match=r"'src' is not bound.*pos"):
        model.eps(torch.zeros(1, *SHAPE), torch.tensor([5]), "src")
