"""The mixture prior against autograd and closed forms; other tests rely on it as ground truth."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from sdlab.priors.mixture import SCHEDULES, Mixture, MixturePrior, MixtureScores, alphas_cumprod
from sdlab.types import BoundPrior, Cond, Prior, cat_conds

CPU = torch.device("cpu")
SHAPES = [(1, 1, 1), (2, 1, 1), (3, 8, 8), (4, 3, 5)]
EDGES = torch.tensor([0, 1, 499, 998, 999])


def exact(shape: tuple[int, int, int] = (3, 8, 8), **knobs) -> MixtureScores:
    c, h, w = shape
    return MixturePrior(channels=c, height=h, width=w, precision="fp64", **knobs).load(CPU)


def mixture(weights, means, stds, shape) -> Mixture:
    def as64(x):
        return torch.tensor(x, dtype=torch.float64)

    return Mixture(as64(weights), as64(means).view(len(weights), *shape), as64(stds))


def draw(shape, n, seed=0, dtype=torch.float64):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(cond: Cond, n: int) -> Cond:
    return cat_conds([cond] * n)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["", "a red bear"])
def test_eps_is_minus_sigma_times_the_gradient_of_the_log_density(shape, schedule, text):
    prior = exact(shape, schedule=schedule)
    z_t = draw(shape, len(EDGES)).requires_grad_()
    cond = batch(prior.embed(text), len(EDGES))
    (score,) = torch.autograd.grad(prior.log_density(z_t, EDGES, cond).sum(), z_t)
    _, sigma = prior.marginal(EDGES)
    torch.testing.assert_close(prior.eps(z_t.detach(), EDGES, cond), -sigma * score, rtol=1e-10, atol=1e-12)


def test_the_density_integrates_to_one():
    prior = exact((1, 1, 1))
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for t in (0, 500, 999):
        z_t, steps = x.view(-1, 1, 1, 1), torch.full((len(x),), t)
        density = prior.log_density(z_t, steps, batch(prior.embed("a cat"), len(x))).exp()
        assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)


def test_one_gaussian_gives_the_linear_closed_form():
    shape = (2, 2, 2)
    mean = draw(shape, 1, seed=3)
    only = Mixture(torch.ones(1, dtype=torch.float64), mean, torch.tensor([0.3], dtype=torch.float64))
    prior = MixtureScores(exact(shape).config, CPU, {"one": only})
    z_t = draw(shape, len(EDGES))
    alpha, sigma = prior.marginal(EDGES)
    expected = sigma * (z_t - alpha * mean) / (0.09 * alpha**2 + sigma**2)
    torch.testing.assert_close(prior.eps(z_t, EDGES, batch(prior.embed("one"), len(EDGES))), expected)


def test_near_one_of_two_components_only_that_one_counts():
    shape = (1, 1, 1)
    two = mixture([0.5, 0.5], [-1.0, 1.0], [0.05, 0.05], shape)
    right = mixture([1.0], [1.0], [0.05], shape)
    prior = MixtureScores(exact(shape).config, CPU, {"two": two, "right": right})
    t = torch.tensor([0, 5])
    z_t = torch.full((2, 1, 1, 1), 0.9, dtype=torch.float64)
    torch.testing.assert_close(
        prior.eps(z_t, t, batch(prior.embed("two"), 2)), prior.eps(z_t, t, batch(prior.embed("right"), 2))
    )


def test_two_equal_components_balance_halfway():
    shape = (1, 1, 1)
    prior = MixtureScores(exact(shape).config, CPU, {"two": mixture([2.0, 2.0], [-1.0, 1.0], [0.1, 0.1], shape)})
    eps = prior.eps(torch.zeros(len(EDGES), *shape, dtype=torch.float64), EDGES, batch(prior.embed("two"), len(EDGES)))
    assert eps.abs().max().item() < 1e-12


def test_a_point_mass_returns_the_noise_that_was_added():
    shape = (3, 4, 4)
    z0, noise = draw(shape, 1, seed=1), draw(shape, len(EDGES), seed=2)
    point = Mixture(torch.ones(1, dtype=torch.float64), z0, torch.zeros(1, dtype=torch.float64))
    prior = MixtureScores(exact(shape).config, CPU, {"point": point})
    alpha, sigma = prior.marginal(EDGES)
    eps = prior.eps(alpha * z0 + sigma * noise, EDGES, batch(prior.embed("point"), len(EDGES)))
    torch.testing.assert_close(eps, noise, rtol=1e-8, atol=1e-8)


def test_padding_changes_nothing_and_lets_roles_share_a_batch():
    shape = (2, 1, 1)
    named = {
        "one": mixture([1.0], [[0.3, -0.2]], [0.2], shape),
        "five": mixture([1.0] * 5, draw(shape, 5).tolist(), [0.2] * 5, shape),
    }
    config = exact(shape, components=2).config
    alone = MixtureScores(config, CPU, {"one": named["one"]})
    both = MixtureScores(config, CPU, named)
    assert both.embed("one").hidden.shape == (1, 6, 4)
    z_t, t = draw(shape, 3), torch.tensor([0, 500, 999])
    expected = alone.eps(z_t, t, batch(alone.embed("one"), 3))
    roles = {r: batch(both.embed(r), 3) for r in ("one", "five", "")}
    one, five, _ = BoundPrior(both, roles).eps(z_t, t, "one", "five", "")
    torch.testing.assert_close(one, expected)
    assert not torch.allclose(one, five)
    assert torch.isfinite(both.log_density(z_t, t, roles["one"])).all()


def test_the_unconditional_mixture_is_the_union_of_the_named_ones():
    shape = (1, 1, 1)
    named = {"a": mixture([1.0], [-1.0], [0.1], shape), "b": mixture([3.0, 1.0], [0.0, 1.0], [0.1, 0.2], shape)}
    prior = MixtureScores(exact(shape).config, CPU, named)
    z_t, t = draw(shape, 4), torch.tensor([0, 10, 500, 999])
    density = {r: prior.log_density(z_t, t, batch(prior.embed(r), 4)).exp() for r in ("a", "b", "")}
    torch.testing.assert_close(density[""], (density["a"] + density["b"]) / 2)


def test_a_text_always_means_the_same_mixture_and_differs_from_others():
    first, again = exact(), exact()
    torch.testing.assert_close(first.embed("a red bear").hidden, again.embed("a red bear").hidden, rtol=0, atol=0)
    assert not torch.equal(first.embed("a red bear").hidden, first.embed("a blue bear").hidden)
    assert not torch.equal(first.embed("a red bear").hidden, exact(seed=1).embed("a red bear").hidden)


def test_float32_agrees_with_float64():
    single, double = MixturePrior(height=8, width=8).load(CPU), exact()
    z_t = draw((3, 8, 8), len(EDGES))
    low = single.eps(z_t.float(), EDGES, batch(single.embed("a cat"), len(EDGES)))
    high = double.eps(z_t, EDGES, batch(double.embed("a cat"), len(EDGES)))
    assert low.dtype == torch.float32
    assert ((low - high).norm() / high.norm()).item() < 1e-4


def test_marginals_are_variance_preserving_and_grow_noisier():
    for schedule in SCHEDULES:
        alpha, sigma = exact(schedule=schedule).marginal(torch.arange(1000))
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
        assert (alpha.flatten().diff() < 0).all()
        assert sigma.min() > 0
    assert math.sqrt(1 - alphas_cumprod("scaled_linear")[0]) == pytest.approx(math.sqrt(0.00085))


def test_decoding_inverts_encoding():
    prior = exact((3, 8, 8))
    rgb = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(prior.decode(prior.encode(rgb)), rgb)
    large = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    z = prior.encode(large)
    assert z.shape == (2, 3, 8, 8)
    z.sum().backward()
    assert large.grad is not None
    assert (large.grad > 0).all()


def test_images_need_three_channels():
    with pytest.raises(ValueError, match=r"4 channels, images have 3.*prior\.channels"):
        exact((4, 8, 8)).encode(torch.rand(1, 3, 8, 8, dtype=torch.float64))


def test_it_is_a_prior_and_its_configuration_a_value():
    config = MixturePrior(components=5)
    assert isinstance(config.load(CPU), Prior)
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(MixturePrior(components=5))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"prior\.schedule = 'cosine'.*scaled_linear, linear"):
        alphas_cumprod("cosine")
    with pytest.raises(ValueError, match=r"mixture 'x'.*means must be \(1, 3, 8, 8\)"):
        MixtureScores(exact().config, CPU, {"x": mixture([1.0], [[0.0, 1.0]], [0.1], (2, 1, 1))})
    with pytest.raises(ValueError, match="weights must be positive"):
        MixtureScores(exact((1, 1, 1)).config, CPU, {"x": mixture([0.0], [0.0], [0.1], (1, 1, 1))})
    prior = exact((1, 1, 1))
    with pytest.raises(ValueError, match="2 images and conditioning for 1"):
        prior.eps(draw((1, 1, 1), 2), torch.tensor([1, 2]), prior.embed("x"))
